//go:build linux

package torture_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox/internal/freeport"
	"github.com/watermill-outbox/outbox/internal/leash"
	"github.com/watermill-outbox/outbox/internal/pgtest"
)

// pooler is a PgBouncer in transaction mode, before whatever answers at an address.
type pooler struct {
	address, settings string
	process           *leash.Process // nil while it is stopped
}

func startPooler(t *testing.T, upstream string) *pooler {
	t.Helper()
	folder, err := os.MkdirTemp("", "outbox-pooler-") //nolint:usetesting // the user postgres cannot enter a TempDir
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(folder)) })
	require.NoError(t, os.Chmod(folder, 0o711))
	p := &pooler{address: freeport.Address(t), settings: filepath.Join(folder, "pgbouncer.ini")}
	_, port, err := net.SplitHostPort(p.address)
	require.NoError(t, err)
	host, upstreamPort, err := net.SplitHostPort(upstream)
	require.NoError(t, err)
	users := filepath.Join(folder, "users")
	require.NoError(t, os.WriteFile(users, []byte("\"publishing\" \"\"\n\"relaying\" \"\"\n\"handling\" \"\"\n"), 0o644))
	require.NoError(t, os.WriteFile(p.settings, fmt.Appendf(nil, `
[databases]
postgres = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = 30
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
server_login_retry = 0.2
server_connect_timeout = 3
`, host, upstreamPort, port, users), 0o644))
	p.start(t)
	t.Cleanup(func() { p.stop(t, "KILL") })
	return p
}

func (p *pooler) start(t *testing.T) {
	t.Helper()
	var err error
	p.process, err = leash.Start(pgtest.AsPostgres, "KILL", os.DevNull, "pgbouncer", "-q", p.settings)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		conn, err := net.DialTimeout("tcp", p.address, time.Second)
		if err == nil {
			_ = conn.Close() // it listens
		}
		return err == nil
	}, patience, 10*time.Millisecond, "PgBouncer does not start")
}

func (p *pooler) stop(t *testing.T, signal string) {
	t.Helper()
	if p.process == nil {
		return
	}
	require.NoError(t, p.process.Stop(signal))
	p.process = nil
}
