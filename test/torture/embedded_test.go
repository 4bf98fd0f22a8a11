//go:build linux

package torture_test

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/store/sqlite"
	"github.com/watermill-outbox/outbox/test/history"
)

// TestTorture_OfSQLite does harm to an application that is one process and a file: it is killed at any moment, the file is
// locked, and a second process on the file comes and goes.
func TestTorture_OfSQLite(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
	}
	run := newRun(t)
	e := newEmbedded(t, run.folder)
	e.harm(*duration / 4)
	e.settle()
	run.judge(e.collect(), e.faults)
}

// embedded is the application, in one process or two.
type embedded struct {
	t          *testing.T
	folder     string // of all files
	program    string
	random     *rand.Rand
	db         *sql.DB // another one of the file
	main, more *process
	faults     []fault
}

func newEmbedded(t *testing.T, folder string) *embedded {
	t.Helper()
	e := &embedded{t: t, folder: folder, random: rand.New(rand.NewPCG(*seed, 1))}
	e.program = filepath.Join(t.TempDir(), "embedded")
	runCommand(t, "go", "build", "-o", e.program, "./embedded")
	var err error
	e.db, err = sqlite.Open(filepath.Join(folder, "app.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.db.Close()) })
	_, err = e.db.ExecContext(t.Context(), `
		CREATE TABLE aggregates (id integer PRIMARY KEY, version integer NOT NULL);
		CREATE TABLE sent (id text NOT NULL, key text NOT NULL, number integer NOT NULL, topic text NOT NULL);
		CREATE TABLE effects (input text NOT NULL, output text NOT NULL)`)
	require.NoError(t, err)
	e.main = &process{name: "main", arguments: []string{"-ttl", ttl.String(), "-concurrency", strconv.Itoa(concurrency)}}
	e.more = &process{name: "second", arguments: []string{"-ttl", ttl.String(), "-concurrency", strconv.Itoa(concurrency)}}
	e.run(e.main)
	return e
}

func (e *embedded) run(p *process) { p.run(e.t, e.program, e.folder, *seed) }

// embeddedKinds are the faults, each as likely as the others.
var embeddedKinds = []struct {
	name string
	do   func(e *embedded, f *fault)
}{
	{"SIGKILL", func(e *embedded, f *fault) {
		e.kill(e.main, f)
		e.run(e.main)
	}},
	{"SIGTERM", func(e *embedded, f *fault) {
		e.end(e.main)
		f.Ready = history.Now()
		e.run(e.main)
	}},
	{"SIGSTOP past the lease, beside a second process", func(e *embedded, f *fault) {
		e.run(e.more)
		e.wait(ttl)
		e.main.signal(syscall.SIGSTOP)
		f.Ready = history.Now()
		time.Sleep(ttl)
		e.wait(ttl)
		e.main.signal(syscall.SIGCONT)
		e.end(e.more)
	}},
	{"a second process comes and is killed", func(e *embedded, f *fault) {
		e.run(e.more)
		e.wait(ttl)
		e.kill(e.more, f)
	}},
	{"SIGKILL, beside a second process", func(e *embedded, f *fault) {
		e.run(e.more)
		e.wait(ttl)
		e.kill(e.main, f)
		e.wait(2 * ttl)
		e.run(e.main)
		e.end(e.more)
	}},
	{"the file locked", func(e *embedded, f *fault) {
		tx, err := e.db.BeginTx(e.t.Context(), nil) // it is a writer from its beginning
		if err != nil {
			return // the others are as quick
		}
		e.wait(4 * ttl)
		require.NoError(e.t, tx.Rollback())
		f.Ready = history.Now()
	}},
}

func (e *embedded) kill(p *process, f *fault) {
	p.signal(syscall.SIGKILL)
	_ = p.wait(e.t) // it was killed
	f.Ready = history.Now()
}

func (e *embedded) end(p *process) {
	p.signal(syscall.SIGTERM)
	require.NoError(e.t, p.wait(e.t))
}

func (e *embedded) wait(longest time.Duration) {
	time.Sleep(longest/20 + time.Duration(e.random.Int64N(int64(longest-longest/20))))
}

func (e *embedded) harm(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
		k := embeddedKinds[e.random.IntN(len(embeddedKinds))]
		now := history.Now()
		f := fault{Kind: k.name, Begun: now, Ready: now}
		k.do(e, &f)
		e.t.Logf("%s, %.1f s", k.name, float64(history.Now()-now)/1e9)
		e.faults = append(e.faults, f)
		time.Sleep(f.due())
		e.wait(500 * time.Millisecond)
	}
}

// settle ends the process, starts one that produces nothing, and waits until everything is published and handled.
func (e *embedded) settle() {
	e.end(e.main)
	e.main.arguments = append(e.main.arguments, "-quiet")
	e.run(e.main)
	require.Eventually(e.t, func() bool {
		var waiting int
		err := e.db.QueryRowContext(e.t.Context(), `SELECT (SELECT count(*) FROM outbox_messages) +
			(SELECT count(*) FROM sent WHERE topic = 'orders') - (SELECT count(DISTINCT input) FROM effects)`).Scan(&waiting)
		return err == nil && waiting == 0
	}, patience, 100*time.Millisecond, "not everything is published and handled")
	e.end(e.main)
}

func (e *embedded) collect() *history.History {
	h := &history.History{
		Sent: map[string]history.Message{}, Slots: map[string]int{}, Concurrency: concurrency, Wanted: ordersAreBilled,
	}
	var err error
	h.Events, err = history.Read(e.folder)
	require.NoError(e.t, err)
	rows, err := e.db.QueryContext(e.t.Context(), "SELECT id, key, number, topic FROM sent")
	require.NoError(e.t, err)
	defer rows.Close() //nolint:errcheck // all were read
	for rows.Next() {
		var m history.Message
		require.NoError(e.t, rows.Scan(&m.ID, &m.Key, &m.Number, &m.Topic))
		h.Sent[m.ID], h.Slots[m.Key] = m, 0
	}
	require.NoError(e.t, rows.Err())
	effects, err := e.db.QueryContext(e.t.Context(), "SELECT input, output FROM effects")
	require.NoError(e.t, err)
	defer effects.Close() //nolint:errcheck // all were read
	for effects.Next() {
		of := history.Effect{Group: group}
		require.NoError(e.t, effects.Scan(&of.ID, &of.Output))
		h.Effects = append(h.Effects, of)
	}
	require.NoError(e.t, effects.Err())
	require.NoError(e.t, e.db.QueryRowContext(e.t.Context(), "SELECT (SELECT count(*) FROM outbox_messages) + (SELECT count(*) FROM outbox_archive)").Scan(&h.Left))
	h.Landings = e.landed(h.Sent)
	return h
}

// landed reads the broker's file.
func (e *embedded) landed(sent map[string]history.Message) (all []history.Landing) {
	f, err := os.Open(filepath.Join(e.folder, "broker"))
	require.NoError(e.t, err)
	defer f.Close() //nolint:errcheck // it was only read
	lines := bufio.NewScanner(f)
	for n := int64(0); lines.Scan(); n++ {
		var line struct {
			Topic    string           `json:"topic"`
			ID       string           `json:"id"`
			Metadata message.Metadata `json:"metadata"`
			Payload  []byte           `json:"payload"`
		}
		require.NoError(e.t, json.Unmarshal(lines.Bytes(), &line))
		msg := message.NewMessage(line.ID, line.Payload)
		msg.Metadata = line.Metadata
		all = append(all, history.Landing{
			ID: line.ID, Topic: line.Topic, Offset: n, Time: n,
		})
		if of, ok := sent[line.ID]; ok {
			all[n].Altered = of.Difference(line.Topic, history.KeyOf(line.Topic, msg), line.Payload)
		}
	}
	require.NoError(e.t, lines.Err())
	return all
}
