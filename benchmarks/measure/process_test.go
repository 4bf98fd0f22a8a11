package measure

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/require"
)

// TestMain is also the program whose processes the tests look at.
func TestMain(m *testing.M) {
	if role := os.Getenv("MEASURE_TEST_ROLE"); role != "" {
		if err := play(role); err != nil {
			say(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// play does one thing, says what came of it in a line, and does the next when it is told a line.
func play(role string) error {
	in := bufio.NewReader(os.Stdin)
	defer in.ReadString('\n') //nolint:errcheck // until its parent is done with it
	switch role {
	case "busy":
		for { // however much of the machine it gets
			_, _ = os.Stat("/") // takes time of the system too
			usage, err := used()
			if of := seconds(usage); err != nil || of > 0.3 {
				say(of)
				return err
			}
		}
	case "large":
		memory, err := syscall.Mmap(-1, 0, large, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			return err
		}
		for i := 0; i < len(memory); i += os.Getpagesize() {
			memory[i] = 1
		}
		usage, err := used()
		if err != nil {
			return err
		}
		say(float64(usage.Maxrss) * 1024) // it has KB of 1024
		if _, err := in.ReadString('\n'); err != nil {
			return err
		}
		err = syscall.Munmap(memory)
		say("free")
		return err
	default: // an address
		listener, err := net.Listen("tcp", role)
		if err != nil {
			return err
		}
		say(listener.Addr().(*net.TCPAddr).Port)
		defer listener.Close() //nolint:errcheck // the process ends
		_, err = in.ReadString('\n')
		return err
	}
}

func seconds(usage syscall.Rusage) float64 {
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func say(what any) { _, _ = fmt.Fprintln(os.Stdout, what) } // its parent may be gone

const large = 200_000_000

func used() (usage syscall.Rusage, err error) {
	err = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return usage, err
}

type child struct {
	*exec.Cmd

	in  io.WriteCloser
	out *bufio.Reader
}

// begin starts the program under a name.
func begin(t *testing.T, name, role string) child {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	program := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.Symlink(self, program))
	c := child{Cmd: exec.Command(program)}
	c.Env = append(os.Environ(), "MEASURE_TEST_ROLE="+role)
	c.in, err = c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	c.out = bufio.NewReader(out)
	require.NoError(t, c.Start())
	t.Cleanup(c.end)
	return c
}

// end lets it end; again, it does nothing.
func (c child) end() {
	_ = c.in.Close()
	_ = c.Wait()
}

func (c child) says(t *testing.T) string {
	t.Helper()
	line, err := c.out.ReadString('\n')
	require.NoError(t, err, line)
	return strings.TrimSpace(line)
}

func (c child) number(t *testing.T) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(c.says(t), 64)
	require.NoError(t, err)
	return n
}

func TestProcess_CPU_IsWhatTheSystemSays_AlsoOfChildren(t *testing.T) {
	const ticks = 0.05 // the system counts hundredths, for user and system apart, and the child goes on a little
	self := NewProcess(os.Getpid())
	before, err := self.CPU()
	require.NoError(t, err)
	c := begin(t, "busy", "busy")
	busy := c.number(t)
	of, err := NewProcess(c.Process.Pid).CPU()
	require.NoError(t, err)
	require.InDelta(t, busy, of, ticks)

	during, err := self.CPU()
	require.NoError(t, err)
	c.end()
	after, err := self.CPU()
	require.NoError(t, err)
	usage, err := used()
	require.NoError(t, err)
	require.GreaterOrEqual(t, during-before, busy-ticks, "a child that runs")
	require.GreaterOrEqual(t, after-before, busy-ticks, "a child that has ended")
	require.LessOrEqual(t, after-before, busy+seconds(usage)+ticks)
}

func TestProcess_Peak_IsInMegabytes_AndIsForgotten(t *testing.T) {
	c := begin(t, "large", "large")
	says := c.number(t) / 1e6
	p := NewProcess(c.Process.Pid)
	peak, err := p.Peak()
	require.NoError(t, err)
	require.InEpsilon(t, says, peak, 0.02) // of 2^20 bytes they would be fewer by a twentieth
	require.Greater(t, peak, large/1e6)

	_, err = c.in.Write([]byte("\n"))
	require.NoError(t, err)
	require.Equal(t, "free", c.says(t))
	peak, err = p.Peak()
	require.NoError(t, err)
	require.InEpsilon(t, says, peak, 0.02)
	resident, err := p.Resident()
	require.NoError(t, err)
	require.Less(t, resident, says-0.9*large/1e6)
	p.ResetPeak()
	peak, err = p.Peak()
	require.NoError(t, err)
	require.Less(t, peak, says-0.9*large/1e6)
}

// One that has ended has no memory, which is not the same as none.
func TestProcess_Peak_OfOneThatHasEnded(t *testing.T) {
	c := begin(t, "large", "127.0.0.1:0")
	c.says(t)
	require.NoError(t, c.in.Close())
	p := NewProcess(c.Process.Pid)
	require.Eventually(t, func() bool { _, err := p.Peak(); return err != nil }, 10*time.Second, 10*time.Millisecond)
	_, err := p.Peak()
	require.ErrorContains(t, err, "it has no memory")
	c.end()
	_, err = p.Peak()
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestProcessOn_BelievesOnlyAServersName(t *testing.T) {
	for _, name := range []string{"postgres", "java"} {
		c := begin(t, name, "127.0.0.1:0")
		p, err := ServerAt("localhost", int(c.number(t)))
		require.NoError(t, err)
		require.Equal(t, NewProcess(c.Process.Pid), p)
	}
	c := begin(t, "docker-proxy", "0.0.0.0:0")
	_, err := ServerAt("127.0.0.1", int(c.number(t)))
	require.ErrorContains(t, err, fmt.Sprintf("is docker-proxy (pid %d)", c.Process.Pid))
	require.ErrorContains(t, err, "CPU is unknown")
}

// What listens on the same port of another address is somebody else.
func TestServerAt_IsOfTheLoopbackOnly(t *testing.T) {
	c := begin(t, "postgres", "127.0.0.1:0")
	port := int(c.number(t))
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		_, err := ServerAt(host, port)
		require.NoError(t, err, host)
	}
	for _, host := range []string{"192.0.2.1", "database.example.com", "", "/var/run/postgresql"} {
		_, err := ServerAt(host, port)
		require.ErrorContains(t, err, "is not known to be this machine", host)
	}
	c.end()
	_, err := ServerAt("127.0.0.1", port)
	require.ErrorContains(t, err, "no process that may be seen listens")
}

func TestTopmost_IsTheParentOfTheSameProgram(t *testing.T) {
	p, err := procfs.NewProc(begin(t, "postgres", "127.0.0.1:0").Process.Pid)
	require.NoError(t, err)
	require.Equal(t, NewProcess(p.PID), topmost(p), "the test is another program")
	self, err := procfs.Self()
	require.NoError(t, err)
	name, err := self.Comm()
	require.NoError(t, err)
	p, err = procfs.NewProc(begin(t, name, "127.0.0.1:0").Process.Pid)
	require.NoError(t, err)
	require.Equal(t, NewProcess(os.Getpid()), topmost(p))
}
