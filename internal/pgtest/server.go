package pgtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/watermill-outbox/outbox/internal/freeport"
	"github.com/watermill-outbox/outbox/internal/leash"
)

// binEnv names the variable that has the folder of the binaries to use instead.
const binEnv = "WATERMILL_TEST_POSTGRES_BIN"

// startTimeout is how long a server may take to answer: it may have to recover first, on a machine that is busy.
const startTimeout = time.Minute

// Own is a server of a test's own, which may be stopped, killed and promoted. It ends with the test.
type Own struct {
	bin, folder string
	port        int
	process     *leash.Process // nil while it is stopped
}

// StopMode is how a server stops; its value is the signal.
type StopMode string

const (
	// Fast ends all sessions, writes everything down, and waits until the standbys have it.
	Fast StopMode = "INT"
	// Crash ends at once; the next start recovers.
	Crash StopMode = "QUIT"
)

// What the machine has written survives the end of a process, so that fsync makes no difference to a crash here: a commit
// still waits until its log is written. Log is kept for standbys that were away for a while.
const ownConfig = `
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
shared_buffers = 32MB
max_connections = 100
max_prepared_transactions = 20
wal_level = replica
wal_keep_size = 2GB
hot_standby = on
wal_retrieve_retry_interval = 100ms
`

// Start starts a new and empty server.
func Start(tb testing.TB) *Own {
	tb.Helper()
	o := newOwn(tb)
	o.run(tb, "initdb", "-D", o.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	o.configure(tb, ownConfig)
	o.Start(tb)
	return o
}

// Replica starts a standby that streams from this server, asynchronously.
func (o *Own) Replica(tb testing.TB) *Own {
	tb.Helper()
	r := newOwn(tb)
	r.run(tb, "pg_basebackup", "-D", r.data(), "-d", o.URL(), "-X", "stream", "-c", "fast", "-R", "--no-sync")
	r.configure(tb, "")
	r.Start(tb)
	return r
}

func newOwn(tb testing.TB) *Own {
	tb.Helper()
	folder, err := os.MkdirTemp("", "outbox-postgres-") //nolint:usetesting // the user postgres cannot enter a TempDir
	if err != nil {
		tb.Fatal(err)
	}
	o := &Own{bin: binaries(tb), folder: folder, port: freeport.Port(tb)}
	if credential := postgresUser(tb); credential != nil {
		if err := os.Chown(folder, int(credential.Uid), int(credential.Gid)); err != nil {
			tb.Fatal(err)
		}
	}
	tb.Cleanup(func() { o.Remove(tb) })
	return o
}

// Remove ends the server, if it runs, and deletes its data.
func (o *Own) Remove(tb testing.TB) {
	tb.Helper()
	o.Stop(tb, Crash)
	if err := os.RemoveAll(o.folder); err != nil {
		tb.Error(err)
	}
}

func (o *Own) data() string { return filepath.Join(o.folder, "data") }
func (o *Own) log() string  { return filepath.Join(o.folder, "log") }

// configure appends to the server's settings; its port goes last, which is the one that counts.
func (o *Own) configure(tb testing.TB, settings string) {
	tb.Helper()
	f, err := os.OpenFile(filepath.Join(o.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		tb.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "%s\nport = %d\n", settings, o.port)
	if closeErr := f.Close(); err != nil || closeErr != nil {
		tb.Fatal(err, closeErr)
	}
}

// URL returns the server's address, without parameters.
func (o *Own) URL() string { return "postgres://postgres@" + o.Host() + "/postgres" }

// Host returns the server's host and port, for an address that names several.
func (o *Own) Host() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(o.port)) }

// Start starts the server again after Stop, and waits until it answers.
func (o *Own) Start(tb testing.TB) {
	tb.Helper()
	var err error
	if o.process, err = leash.Start(o.command, string(Crash), o.log(), filepath.Join(o.bin, "postgres"), "-D", o.data()); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, o.URL())
		if err == nil {
			_ = conn.Close(ctx) // it has answered
			return
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(o.log())
			tb.Fatalf("PostgreSQL on port %d does not start: %v\n%s", o.port, err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop stops the server, if it runs, and waits until it has gone.
func (o *Own) Stop(tb testing.TB, mode StopMode) {
	tb.Helper()
	if o.process == nil {
		return
	}
	if err := o.process.Stop(string(mode)); err != nil {
		tb.Error(err)
	}
	o.process = nil
}

// Promote makes a standby a primary, and waits until it is one.
func (o *Own) Promote(tb testing.TB) {
	tb.Helper()
	o.Exec(tb, "SELECT pg_promote()")
}

// Exec runs a statement on a connection of its own, which may write also where that is off by default.
func (o *Own) Exec(tb testing.TB, query string, args ...any) {
	tb.Helper()
	ctx := context.Background() // also in a clean-up
	conn, err := pgx.Connect(ctx, o.URL()+"?default_transaction_read_only=off")
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(ctx) //nolint:errcheck // the statement has told
	if _, err := conn.Exec(ctx, query, args...); err != nil {
		tb.Fatalf("%s: %v", query, err)
	}
}

// Dump returns what pg_dump, told args, makes of the server's database.
func (o *Own) Dump(tb testing.TB, args ...string) []byte {
	tb.Helper()
	return o.run(tb, "pg_dump", append([]string{"-d", o.URL()}, args...)...)
}

// Restore runs a dump, in one transaction.
func (o *Own) Restore(tb testing.TB, dump []byte) {
	tb.Helper()
	cmd := o.command(filepath.Join(o.bin, "psql"), "-d", o.URL(), "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1")
	cmd.Stdin = bytes.NewReader(dump)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("psql: %v\n%s", err, out)
	}
}

// run runs one of the binaries and returns what it prints.
func (o *Own) run(tb testing.TB, name string, args ...string) []byte {
	tb.Helper()
	cmd := o.command(filepath.Join(o.bin, name), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s: %v\n%s%s", name, err, out, &stderr)
	}
	return out
}

func (o *Own) command(name string, args ...string) *exec.Cmd {
	cmd := AsPostgres(name, args...)
	cmd.Dir = o.folder
	return cmd
}

// AsPostgres returns a command that runs as the user postgres where this is root: PostgreSQL and PgBouncer refuse to.
func AsPostgres(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...) //nolint:gosec,noctx // of a test's own; who starts it ends it
	cmd.Dir = os.TempDir()
	credential, _ := findPostgresUser() // where there is none, the command says so
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	return cmd
}

func postgresUser(tb testing.TB) *syscall.Credential {
	tb.Helper()
	credential, err := findPostgresUser()
	if err != nil {
		tb.Fatalf("PostgreSQL does not run as root: %v", err)
	}
	return credential
}

// findPostgresUser returns nil where this is not root, and the servers are this user's.
func findPostgresUser() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil //nolint:nilnil // as its comment says
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// binaries returns the folder of those of PostgreSQL: the newest that is installed whole. (What services/services fetches
// has no pg_basebackup.)
func binaries(tb testing.TB) string {
	tb.Helper()
	if folder := os.Getenv(binEnv); folder != "" {
		return folder
	}
	var found []string
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin",
	} {
		folders, err := filepath.Glob(pattern)
		if err != nil {
			tb.Fatal(err)
		}
		found = append(found, folders...)
	}
	slices.Reverse(found) // versions have two digits
	if initdb, err := exec.LookPath("initdb"); err == nil {
		found = append(found, filepath.Dir(initdb))
	}
	needed := []string{"initdb", "postgres", "pg_basebackup", "pg_dump", "psql"}
	for _, folder := range found {
		if !slices.ContainsFunc(needed, func(name string) bool {
			_, err := exec.LookPath(filepath.Join(folder, name))
			return err != nil
		}) {
			return folder
		}
	}
	tb.Fatalf("no PostgreSQL to start a server of the test's own: install one (on Debian: the package postgresql), or name in "+
		"%s the folder on %s that has %s", binEnv, runtime.GOOS, strings.Join(needed, ", "))
	return ""
}
