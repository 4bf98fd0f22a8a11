package crash_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// jobVariable holds the job of a process that is to crash, as JSON.
const jobVariable = "OUTBOX_CRASH_JOB"

// job is what a process does, and where it is to crash.
type job struct {
	Role     string `json:"role"`
	Kind     string `json:"kind"`     // of the store
	Database string `json:"database"` // the file, or the schema
	Folder   string `json:"folder"`   // of the broker, and of what the broker knows of its consumer
	Run      string `json:"run"`      // begins the ids of all messages
	Name     string `json:"name"`     // of the process, for the database
	Due      int    `json:"due"`      // how many messages there are to be relayed
	// Hold has the broker not answer the first message, so that the relay lives until it renews its leases.
	Hold   bool   `json:"hold"`
	Keep   bool   `json:"keep"`   // what was published, in the archive
	Broken string `json:"broken"` // in which way, see broken_test.go; empty for what is tested
	At     target `json:"at"`
}

const (
	roleProduce = "produce"
	roleRelay   = "relay"
	roleConsume = "consume"
)

// doJob is a process's main.
func doJob(text string) {
	go func() { // ends the process when the test has ended, which holds the other end
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	var j job
	err := json.Unmarshal([]byte(text), &j)
	t := &trap{target: j.At, steps: map[string]int{}}
	if err == nil {
		err = j.do(context.Background(), t)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	t.tellSteps()
	os.Exit(0)
}

// do is the job, in a process that may crash or, without a trap, in the test's own.
func (j job) do(ctx context.Context, t *trap) error {
	db, err := j.open(ctx, t)
	if err != nil {
		return err
	}
	switch j.Role {
	case roleProduce:
		err = j.produce(ctx, db, t)
	case roleRelay:
		err = j.relay(db, t)
	case roleConsume:
		err = j.consume(ctx, db, t)
	default:
		err = fmt.Errorf("no process has the role %q", j.Role)
	}
	return errors.Join(err, db.Close())
}

// ending is what a process has said.
type ending struct {
	crashed   bool // else it came to its end
	committed []string
	lost      int
	steps     []target // of its database, each with the number of its last time
	outcome   outcome  // what there is when others have done the rest
}

// patience is how long a process may take, on a machine that is busy.
const patience = time.Minute

// start has another process do the job, and waits for its end.
func (j job) start() (ending, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return ending{}, err
	}
	var stderr strings.Builder
	process := exec.Command(os.Args[0]) // this very program, which ends when its input does
	process.Env = append(os.Environ(), jobVariable+"="+string(text), "GORACE=halt_on_error=1")
	process.Stderr = &stderr
	stdin, err := process.StdinPipe()
	if err != nil {
		return ending{}, err
	}
	defer stdin.Close() //nolint:errcheck // Wait has closed it
	stdout, err := process.StdoutPipe()
	if err != nil {
		return ending{}, err
	}
	if err := process.Start(); err != nil {
		return ending{}, err
	}
	watchdog := time.AfterFunc(patience, func() { _ = process.Process.Kill() })
	defer watchdog.Stop()
	end := listen(stdout)
	err = process.Wait()
	var exit *exec.ExitError
	killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	switch {
	case killed == end.crashed && (killed || err == nil):
		return end, nil
	case killed:
		return end, fmt.Errorf("it did nothing for %v\n%s", patience, &stderr)
	}
	return end, fmt.Errorf("it has ended by itself: %w\n%s", err, &stderr)
}

func listen(to io.Reader) (end ending) {
	for lines := bufio.NewScanner(to); lines.Scan(); {
		word, about, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case saysCrash:
			end.crashed = true
		case saysCommitted:
			end.committed = append(end.committed, strings.Fields(about)...)
		case saysLost:
			end.lost++
		case saysSteps:
			n, point, _ := strings.Cut(about, " ")
			times, _ := strconv.Atoi(n) // tellSteps has written it
			end.steps = append(end.steps, target{point, times})
		}
	}
	return end
}
