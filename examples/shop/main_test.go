package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

const patience = time.Minute // with what should come soon

// asShop, in the environment, makes this test the shop. (A program that was built for the test would not do: go test goes
// by the test alone when it decides whether the last result still holds.)
const asShop = "SHOP_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asShop) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// database is a database of the test's own, on the server that the tests of the stores use.
type database struct {
	t                *testing.T
	name, url, admin string // admin is the URL of another one, on the same server
}

func newDatabase(t *testing.T) database {
	t.Helper()
	admin := cmp.Or(os.Getenv("WATERMILL_TEST_POSTGRES_URL"), "postgres://postgres@127.0.0.1:25432/postgres")
	own, err := url.Parse(admin)
	require.NoError(t, err)
	name := "shop_" + strings.ToLower(rand.Text()[:12])
	own.Path = "/" + name
	db := database{t: t, name: name, url: own.String(), admin: admin}
	db.on(admin, "CREATE DATABASE "+name, "ALTER DATABASE "+name+" SET synchronous_commit = off") // no power fails here
	t.Cleanup(func() { db.on(admin, "DROP DATABASE "+name+" WITH (FORCE)") })
	return db
}

// on runs statements, each by itself, on a connection of their own.
func (db database) on(url string, statements ...string) {
	db.t.Helper()
	ctx := context.Background() // also in a clean-up
	conn, err := pgx.Connect(ctx, url)
	require.NoError(db.t, err, "no PostgreSQL: run `make services`, or name a server in WATERMILL_TEST_POSTGRES_URL")
	defer conn.Close(ctx) //nolint:errcheck // the statements have told
	for _, statement := range statements {
		_, err := conn.Exec(ctx, statement)
		require.NoError(db.t, err, statement)
	}
}

func (db database) exec(statements ...string) {
	db.t.Helper()
	db.on(db.url, statements...)
}

// lock keeps everybody from a table until unlock is called.
func (db database) lock(table string) (unlock func()) {
	db.t.Helper()
	conn, err := pgx.Connect(db.t.Context(), db.url)
	require.NoError(db.t, err)
	unlock = sync.OnceFunc(func() { _ = conn.Close(context.Background()) })
	db.t.Cleanup(unlock)
	_, err = conn.Exec(db.t.Context(), "BEGIN; LOCK TABLE "+table)
	require.NoError(db.t, err)
	return unlock
}

// awaitWaiting waits until somebody waits for a table.
func (db database) awaitWaiting(table string) {
	db.t.Helper()
	eventually(db.t, func() bool {
		return db.text("SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = '"+table+"'::regclass") == "1"
	}, "somebody waits for "+table)
}

// texts returns the one column that query returns.
func (db database) texts(query string) []string {
	db.t.Helper()
	conn, err := pgx.Connect(db.t.Context(), db.url)
	require.NoError(db.t, err)
	defer conn.Close(context.Background()) //nolint:errcheck // the query has told
	rows, err := conn.Query(db.t.Context(), query)
	require.NoError(db.t, err)
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(db.t, err)
	return texts
}

func (db database) text(query string) string {
	db.t.Helper()
	texts := db.texts(query)
	require.Len(db.t, texts, 1, query)
	return texts[0]
}

// process is a shop that runs.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	url   string
	ended chan struct{} // closed when log is whole

	terminate func()

	mu  sync.Mutex
	log strings.Builder
}

// start starts a shop and waits until it takes orders.
func start(t *testing.T, db database) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	p := &process{t: t, cmd: exec.CommandContext(t.Context(), self, "-addr", "127.0.0.1:0"), ended: make(chan struct{})}
	p.terminate = sync.OnceFunc(func() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }) // a second one would kill it
	p.cmd.Env = append(os.Environ(), asShop+"=1", "DATABASE_URL="+db.url, "TOPICS="+db.name,
		"KAFKA="+os.Getenv("WATERMILL_TEST_KAFKA_BROKERS"))
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	addr := make(chan string, 1)
	go func() { // ends with the process
		defer close(p.ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			if _, after, ok := strings.Cut(lines.Text(), `msg="Taking orders" addr=`); ok {
				addr <- after
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended, unless the test has failed
		<-p.ended
		_ = p.cmd.Wait()
		if t.Failed() {
			t.Log(p.logged())
		}
	})
	select {
	case a := <-addr:
		p.url = "http://" + a
	case <-p.ended:
		require.Fail(t, "it has not started", p.logged())
	case <-time.After(patience):
		require.Fail(t, "it does not start", p.logged())
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return p
}

func (p *process) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// await waits until the shop has logged text.
func (p *process) await(text string) {
	p.t.Helper()
	eventually(p.t, func() bool { return strings.Contains(p.logged(), text) }, text)
}

// awaitEnd waits for the end of a shop that was told to terminate.
func (p *process) awaitEnd() {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		require.Fail(p.t, "it does not end")
	}
	require.NoError(p.t, p.cmd.Wait())
	require.Contains(p.t, p.logged(), "msg=Stopping")
}

// request returns status and body of the answer.
func (p *process) request(method, path, body string) (status int, answer string, err error) {
	request, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close() //nolint:errcheck // it was read
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, strings.TrimSpace(string(text)), err
}

func (p *process) get(path string) (status int, answer string) {
	p.t.Helper()
	status, answer, err := p.request(http.MethodGet, path, "")
	require.NoError(p.t, err)
	return status, answer
}

// eventually waits for something that comes about in another process.
func eventually(t *testing.T, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, patience, 20*time.Millisecond, what)
}
