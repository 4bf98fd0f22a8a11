// Package program runs the examples as their users do, as processes, for the examples' tests.
package program

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	timeout      = 2 * time.Minute  // of a program
	buildTimeout = 10 * time.Minute // SQLite takes minutes where nothing is in the cache
)

// Build builds the program of the current folder into dir and returns its path. It has the race detector if the test
// has.
func Build(dir string) (string, error) {
	path := filepath.Join(dir, "program")
	args := []string{"build", "-o", path}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "-race" && setting.Value == "true" {
				args = append(args, "-race")
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...) //nolint:gosec // a test's own arguments
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, output)
	}
	return path, nil
}

// Process is a running program. Its methods are called by the test's goroutine.
type Process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout bytes.Buffer
	lines  *bufio.Scanner  // its standard error, and that of the processes it has started
	stderr strings.Builder // what was read of it
}

// Start starts the program of path. It is killed at the end of the test, or after two minutes.
func Start(t *testing.T, path string, args ...string) *Process {
	t.Helper()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = read.Close() })
	require.NoError(t, read.SetReadDeadline(time.Now().Add(timeout)))
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	p := &Process{t: t, lines: bufio.NewScanner(read)}
	p.cmd = exec.CommandContext(ctx, path, args...) //nolint:gosec // a test's own program
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, write
	temp := t.TempDir()
	p.cmd.Env = append(os.Environ(), "TMPDIR="+temp, "TMP="+temp)
	require.NoError(t, p.cmd.Start())
	require.NoError(t, write.Close())
	t.Cleanup(func() {
		cancel()
		_ = p.cmd.Wait() // again, after End; or the first time, in a test that has failed
		left, err := os.ReadDir(temp)
		require.NoError(t, err)
		if !t.Failed() && p.cmd.ProcessState.Exited() {
			require.Empty(t, left, "temporary files are left")
		}
	})
	return p
}

// Await reads standard error to a line that contains text.
func (p *Process) Await(text string) {
	p.t.Helper()
	for p.lines.Scan() {
		p.stderr.WriteString(p.lines.Text() + "\n")
		if strings.Contains(p.lines.Text(), text) {
			return
		}
	}
	require.FailNow(p.t, "the line did not come", "%q: %v\n%s", text, p.lines.Err(), &p.stderr)
}

// Signal sends it a signal.
func (p *Process) Signal(signal os.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(signal))
}

// End waits until it has ended, and all processes that it has started, and returns what it has written and its exit
// status, -1 if it was killed.
func (p *Process) End() (stdout, stderr string, status int) {
	p.t.Helper()
	for p.lines.Scan() { // to the end of file, which is when nobody is left who could write
		p.stderr.WriteString(p.lines.Text() + "\n")
	}
	require.NoError(p.t, p.lines.Err(), "it has not ended, or a process that it has started has not")
	_ = p.cmd.Wait() // an exit status is for the caller to judge
	return p.stdout.String(), p.stderr.String(), p.cmd.ProcessState.ExitCode()
}
