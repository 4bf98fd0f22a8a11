// Package torture runs an application with an outbox, several processes of it on PostgreSQL and Kafka, does harm to all of
// them for a while, and has package history decide whether what was promised was kept.
//
// What is drawn comes from a seed: which faults, when, for how long and to whom. What the machine does in between does not.
package torture_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/test/history"
)

var (
	duration = flag.Duration("duration", time.Minute, "for how long faults go on, a quarter of it on SQLite")
	seed     = flag.Uint64("seed", 0, "for what is drawn; 0 draws one")
	rate     = flag.Int("rate", 2400, "messages a second")
	results  = flag.String("results", "", "`file` that gets what was found; its last line is the totals")
)

// found is what the tests have.
var found = struct {
	report *history.Report
	faults int
	text   strings.Builder
}{report: history.NewReport()}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if *results != "" {
		text := fmt.Sprintf("%stotals: seed %d, %v, %d faults, %s\n", &found.text, *seed, *duration, found.faults, found.report.Totals())
		if err := os.WriteFile(*results, []byte(text), 0o600); err != nil {
			panic(err)
		}
	}
	os.Exit(code)
}

const (
	ttl = 2 * time.Second // of leases
	// concurrency is how many calls of Publish a relay makes at once: the default.
	concurrency = 256
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

// judge checks the history, and tells the totals.
func (r *run) judge(h *history.History, faults []fault) {
	recovered := table(recoveries(h, faults))
	report := history.Check(h)
	found.report.Add(report)
	found.faults += len(faults)
	text := fmt.Sprintf("%s\n%s%d faults, %s\n", r.t.Name(), recovered, len(faults), report)
	r.t.Log(text)
	found.text.WriteString(text + "\n")
	require.True(r.t, report.OK(), "promises were broken")
}

// ordersAreBilled tells who is to handle what has landed.
func ordersAreBilled(l history.Landing) []string {
	if l.Topic == orders {
		return []string{group}
	}
	return nil
}
