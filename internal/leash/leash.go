// Package leash starts servers for tests that must not outlive them, even if the test process panics or is killed.
package leash

import (
	"fmt"
	"io"
	"os/exec"
)

// Process is a server. A shell that has started it waits for a word on a pipe, which is the signal to end it by; when the
// test process is gone, so is the pipe.
type Process struct {
	shell  *exec.Cmd
	signal io.WriteCloser
}

// Start starts a server by the arguments of the command that is returned for the shell's. What it prints is appended to a
// file. It ends by ending, such as TERM, if nobody stops it.
func Start(command func(name string, args ...string) *exec.Cmd, ending, log string, args ...string) (*Process, error) {
	p := &Process{shell: command("sh", append([]string{
		"-c", `log=$1 ending=$2; shift 2; "$@" >>"$log" 2>&1 & trap '' HUP INT TERM; read -r signal; kill -s "${signal:-$ending}" $!; wait $!`,
		"sh", log, ending,
	}, args...)...)}
	var err error
	if p.signal, err = p.shell.StdinPipe(); err != nil {
		return nil, err
	}
	return p, p.shell.Start()
}

// Stop ends the server by a signal, and waits until it has gone.
func (p *Process) Stop(signal string) error {
	_, err := fmt.Fprintln(p.signal, signal)
	_ = p.shell.Wait() // how a server ends is no matter, and it closes the pipe
	return err
}
