//go:build linux

// Package torture runs an application with an outbox, several processes of it on PostgreSQL and Kafka, does harm to all of
// them for a while, and has package history decide whether what was promised was kept.
//
// What is drawn comes from a seed: which faults, when, for how long and to whom. What the machine does in between does not.
package torture_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/test/history"
)

var (
	duration = flag.Duration("duration", time.Minute, "for how long faults go on, a quarter of it on SQLite")
	seed     = flag.Uint64("seed", 0, "for what is drawn; 0 draws one")
	rate     = flag.Int("rate", 2000, "messages a second")
	results  = flag.String("results", "", "`file` that gets what was found; its last line is the totals")
	again    = flag.String("again", "", "`folder` that a failed run has kept, to be judged once more and nothing else")
)

// found is what the tests have.
var found = struct {
	report *history.Report
	faults int
	text   strings.Builder
}{report: history.NewReport()}

func TestMain(m *testing.M) {
	flag.Parse()
	if *again != "" {
		text, err := judgeAgain(*again)
		fmt.Println(text, err) //nolint:forbidigo // what the flag is for
		os.Exit(1)             // so that go test shows it
	}
	code := m.Run()
	if *results != "" {
		verdict := map[bool]string{true: "PASS", false: "FAIL"}[code == 0]
		text := fmt.Sprintf("%stotals: %s, seed %d, %v, %d faults, %s\n", &found.text, verdict, *seed, *duration, found.faults, found.report.Totals())
		if err := os.WriteFile(*results, []byte(text), 0o600); err != nil {
			panic(err)
		}
	}
	os.Exit(code)
}

const (
	ttl = time.Second // of leases
	// concurrency is how many calls of Publish a relay makes at once: enough not to leave a backlog behind each slow connection,
	// and few, so that one that goes on without its lease is soon beyond what being frozen excuses.
	concurrency = 32
	// patience is how long everything may take in the end, with all servers and processes at work.
	patience = 2 * time.Minute
)

func TestTorture_OfPostgreSQLAndKafka(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	run := newRun(t)
	c := newConductor(t, run.folder)
	c.start()
	c.harm(*duration * 3 / 4)
	c.settle()
	if c.disk.folder == "" {
		found.text.WriteString("No disk was full: that takes the right to mount one.\n")
	}
	run.judge(c.collect(), c.faults)
}

// run is one torture: a seed, and a folder that is kept if it fails.
type run struct {
	t      *testing.T
	folder string
}

func newRun(t *testing.T) *run {
	t.Helper()
	if *seed == 0 {
		*seed = rand.Uint64N(1_000_000) + 1
	}
	folder, err := os.MkdirTemp("", "outbox-torture-") //nolint:usetesting // it is kept if the test fails
	require.NoError(t, err)
	repeat := fmt.Sprintf("make torture SEED=%d DURATION=%v", *seed, *duration)
	t.Logf("%s; what happens is recorded in %s", repeat, folder)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the history is in %s; to repeat: %s", folder, repeat)
		} else {
			require.NoError(t, os.RemoveAll(folder))
		}
	})
	return &run{t, folder}
}

// judge checks the history, and tells the totals. It keeps the history if there is something wrong with it.
func (r *run) judge(h *history.History, faults []fault) {
	report, text := assess(h, faults)
	found.report.Add(report)
	found.faults += len(faults)
	text = r.t.Name() + "\n" + text
	r.t.Log(text)
	found.text.WriteString(text + "\n")
	if !report.OK() {
		kept, err := json.Marshal(keptHistory{h, faults})
		require.NoError(r.t, err)
		require.NoError(r.t, os.WriteFile(filepath.Join(r.folder, keptName), kept, 0o600))
		r.t.Errorf("promises were broken; to judge the history once more: go test ./test/torture -again %s", r.folder)
	}
	// Otherwise nothing was put to the test.
	require.NotZero(r.t, min(report.Messages, report.RolledBack, report.Effects, len(faults)), "%v", report)
	if len(faults) >= duplicatesAfter {
		require.NotZero(r.t, report.Duplicates, "%v", report)
	}
	least := int(duration.Seconds() * leastRate)
	require.Greater(r.t, report.Messages, least, "too little has happened")
}

// duplicatesAfter is how many faults it takes to expect that something was published twice.
const duplicatesAfter = 50

// leastRate is how many messages a second, at the least, put something to the test.
const leastRate = 50

func assess(h *history.History, faults []fault) (*history.Report, string) {
	report := history.Check(h)
	return report, fmt.Sprintf("%s%d faults, %s\n", table(recoveries(h, faults)), len(faults), report)
}

// keptHistory is what is known beside the records.
type keptHistory struct {
	History *history.History `json:"history"`
	Faults  []fault          `json:"faults"`
}

const keptName = "history.json"

func judgeAgain(folder string) (string, error) {
	text, err := os.ReadFile(filepath.Join(folder, keptName))
	if err != nil {
		return "", err
	}
	var kept keptHistory
	if err := json.Unmarshal(text, &kept); err != nil {
		return "", err
	}
	kept.History.Wanted = ordersAreBilled
	if kept.History.Events, err = history.Read(folder); err != nil {
		return "", err
	}
	_, verdict := assess(kept.History, kept.Faults)
	return verdict, nil
}

// ordersAreBilled tells who is to handle what has landed.
func ordersAreBilled(l history.Landing) []string {
	if l.Topic == orders {
		return []string{group}
	}
	return nil
}
