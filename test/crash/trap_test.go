package crash_test

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// target is where a process is to crash: at a point, when it comes there for the n-th time.
type target struct {
	Point string `json:"point"`
	Nth   int    `json:"nth"`
}

// trap ends the process at its target. A nil trap, which is that of the test's own process, lets everything pass.
type trap struct {
	target

	mu     sync.Mutex     // held while the process ends, so that nothing passes meanwhile
	passed int            // times at the target
	steps  map[string]int // of the database, and how often they were taken
}

// at is called at a point.
func (t *trap) at(point string) {
	if t == nil || point != t.Point {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.passed++; t.passed < t.Nth {
		return
	}
	tell(saysCrash)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it can only succeed
	select {}
}

// step is called at a point that is a step of the database.
func (t *trap) step(point string) {
	t.mu.Lock()
	t.steps[point]++
	t.mu.Unlock()
	t.at(point)
}

// tellSteps tells of all the steps.
func (t *trap) tellSteps() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for point, n := range t.steps {
		tell(saysSteps, strconv.Itoa(n), point)
	}
}

// What a process says on its standard output, a line each.
const (
	saysCrash     = "crash"
	saysCommitted = "committed" // and which messages
	saysLost      = "lost"      // a lease, because the machine was too slow to renew it
	saysSteps     = "steps"     // and how many at which point
)

func tell(word string, about ...string) {
	_, _ = os.Stdout.WriteString(strings.Join(append([]string{word}, about...), " ") + "\n") // nobody may be there any more
}
