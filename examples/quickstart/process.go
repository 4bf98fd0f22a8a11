package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// stopTimeout is how long the service may take to end when it is asked to.
const stopTimeout = 30 * time.Second

// process is the service, as the application sees it.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer // the service ends when it is closed, if only by this process's death
	ended chan struct{}
	err   error // of its end, once ended is closed
}

// startService starts this program again, as the service. It is killed when ctx ends.
func startService(ctx context.Context, settings serviceSettings) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program, to start the service: %w", err)
	}
	encoded, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program) //nolint:gosec // itself
	cmd.Env = append(os.Environ(), serviceEnv+"="+string(encoded))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	p := &process{cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	go func() { // ends with the process
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// kill ends the service at whatever instruction it is, and waits for its end. It may be called more than once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // fails if it has ended already
	<-p.ended
}

// stop asks the service to end, and waits for it.
func (p *process) stop() error {
	if err := p.stdin.Close(); err != nil {
		return fmt.Errorf("stop the service: %w", err)
	}
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		p.kill()
		return fmt.Errorf("the service did not stop within %v", stopTimeout)
	}
	if p.err != nil {
		return fmt.Errorf("stop the service: %w", p.err)
	}
	return nil
}

// unexpectedEnd is the error of a service that has ended by itself; what it was has gone to standard error.
func (p *process) unexpectedEnd() error {
	if p.err != nil {
		return fmt.Errorf("the service has ended: %w", p.err)
	}
	return fmt.Errorf("the service has ended too early")
}
