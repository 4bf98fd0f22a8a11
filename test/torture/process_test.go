//go:build linux

package torture_test

import (
	"encoding/json"
	"errors"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// build builds the application, with a standard library whose clock can be set for one process.
func build(t *testing.T) (program string) {
	t.Helper()
	folder := t.TempDir()
	root := strings.TrimSpace(runCommand(t, "go", "env", "GOROOT"))
	original := filepath.Join(root, "src", "time", "time.go")
	source, err := os.ReadFile(original)
	require.NoError(t, err)
	const now = "sec, nsec, mono := runtimeNow()\n"
	changed := strings.Replace(string(source), now, now+"\tsec += ahead.Load()\n", 1)
	require.NotEqual(t, string(source), changed, "time.Now of %s is not what it was", runtime.Version())
	overlay := map[string]string{
		original: write(t, folder, "time.go", changed),
		filepath.Join(root, "src", "time", "ahead.go"): write(t, folder, "ahead.go", `package time

import "sync/atomic"

var ahead atomic.Int64

// SetAhead has Now return what it is later than, in whole seconds.
func SetAhead(d Duration) { ahead.Store(int64(d / Second)) }
`),
	}
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	require.NoError(t, err)
	program = filepath.Join(folder, "app")
	runCommand(t, "go", "build", "-overlay", write(t, folder, "overlay.json", string(text)), "-tags", "skewed", "-o", program, "./app")
	return program
}

func write(t *testing.T, folder, name, text string) string {
	t.Helper()
	path := filepath.Join(folder, name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func runCommand(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), out)
	return string(out)
}

// process is a place for a process of the application, which is filled again when one has ended.
type process struct {
	role, name string
	pooled     bool
	arguments  []string // of each
	begun      int
	running    *exec.Cmd
	ended      chan error
}

// incarnation is the name of the process that runs, or ran last.
func (p *process) incarnation() string { return p.name + "." + strconv.Itoa(p.begun) }

// run starts a process. What it logs goes to the folder.
func (p *process) run(t *testing.T, program, folder string, seed uint64) {
	t.Helper()
	p.begun++
	log, err := os.OpenFile(filepath.Join(folder, p.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer log.Close() //nolint:errcheck // the process has it
	p.running = exec.Command(program, append([]string{
		"-name", p.incarnation(), "-records", folder, "-seed", strconv.FormatUint(seed^hash(p.incarnation()), 10),
	}, p.arguments...)...)
	p.running.Stdout, p.running.Stderr = log, log
	p.running.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it must not outlive the test
	require.NoError(t, p.running.Start())
	p.ended = make(chan error, 1)
	cmd, ended := p.running, p.ended
	go func() { ended <- cmd.Wait() }()
}

// signal sends a signal, and hears of a process that has ended by itself only when it waits for it.
func (p *process) signal(s syscall.Signal) {
	_ = p.running.Process.Signal(s) // it may have ended
}

// wait waits for the end of a process that was told to end, or was killed.
func (p *process) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p.ended:
		return p.checkEnd(t, err)
	case <-time.After(patience):
		t.Errorf("%s does not end", p.incarnation())
		p.signal(syscall.SIGQUIT) // its log gets all stacks
		return <-p.ended
	}
}

// gaveUp is the status of a process that has panicked, by Go, or whose Forwarder has ended though nobody has told it to.
const gaveUp = 2

// checkEnd checks that a process has ended as one may that was killed, that could not start or that somebody told to end. One
// that was told before it listened to signals has ended in order, too.
func (p *process) checkEnd(t *testing.T, err error) error {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if exit.ExitCode() == gaveUp {
		t.Errorf("%s has panicked or given up: see its log", p.incarnation())
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return err
}

func hash(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // it cannot fail
	return h.Sum64()
}
