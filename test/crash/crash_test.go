package crash_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// lanes is how many processes crash at once, each in a database of its own: for most of the time somebody waits for a
// lease to end.
const lanes = 8

// points are where processes crash, by their roles.
func points(kind string) (all []job) {
	add := func(j job, nth int, names ...string) {
		for _, name := range names {
			j.At = target{name, nth}
			all = append(all, j)
		}
	}
	first := 1
	if kind == kindSQLite {
		first = 2 // after that of sqlite.New, which begins a transaction to see how it begins
	}

	producer := job{Role: roleProduce}
	add(producer, first, "before begin", "after begin", "before rollback", "after rollback")
	add(producer, 1, around("order", "insert", "commit")...)
	add(producer, 2, around("insert", "commit")...) // of several messages

	relay := job{Role: roleRelay}
	add(relay, 1, "before Claim", "after Claim", "before Publish", "after Publish", "before Settle", "after Settle",
		"before Release", "after Release", "before read", "after read")
	add(relay, 1, around("take slots", "delete", "give up slots")...)
	add(relay, 3, "after Claim", "before Publish", "after Publish", "before Settle", "after Settle")
	add(relay, 2, around("delete")...)
	if kind == kindSQLite { // what fails or is set aside is a transaction of several statements, all else commits by itself
		add(relay, 1, around("archive", "retry", "commit")...)
		add(relay, 1, "committing take slots", "committing delete", "committing give up slots")
	} else { // that is one statement, and there are others to share with
		add(relay, 1, around("settle", "appear", "leave")...)
	}
	keeping, marks := job{Role: roleRelay, Keep: true}, []string{"settle"}
	if kind == kindSQLite {
		marks = []string{"archive", "delete", "commit"}
	}
	add(keeping, 1, around(marks...)...)
	add(keeping, 2, around(marks...)...)
	relay.Hold = true
	add(relay, 1, around("renew slots")...)

	consumer := job{Role: roleConsume}
	add(consumer, first, "before begin", "after begin", "before rollback", "after rollback")
	add(consumer, 1, around("effect", "insert", "commit")...)
	add(consumer, 1, "before record", "after record", "after the handler", "before the ack", "after the ack")
	add(consumer, 3, "after record", "after the handler", "in commit", "before the ack", "after the ack")
	if kind != kindSQLite { // whose table has no row ids, and so no hook
		add(consumer, 1, "in record")
	}
	return all
}

func around(statements ...string) (names []string) {
	for _, s := range statements {
		names = append(names, "before "+s, "in "+s, "after "+s)
	}
	return names
}

func (j job) String() string {
	role := j.Role
	if j.Keep {
		role += " that keeps"
	}
	return fmt.Sprintf("%s/%s_%d", role, j.At.Point, j.At.Nth)
}

func TestPromises_Hold_WhenAProcessCrashesAtAPoint(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			todo := points(kind)
			results, next := make([]chan error, len(todo)), make(chan int, len(todo))
			for i := range todo {
				results[i] = make(chan error, 1)
				next <- i
			}
			close(next)
			wait := inLanes(t, kind, func(ctx context.Context, w *world) {
				for i := range next {
					end, err := w.crash(ctx, todo[i])
					results[i] <- errors.Join(err, todo[i].checkPlace(end))
				}
			})
			defer wait()
			for i, j := range todo {
				t.Run(j.String(), func(t *testing.T) { require.NoError(t, <-results[i]) })
			}
		})
	}
}

// checkPlace checks that the process has crashed where it was to, as far as that can be seen.
func (j job) checkPlace(end ending) error {
	if !end.crashed {
		return fmt.Errorf("the %s never came to the point %q", j.Role, j.At.Point)
	}
	is, should := -1, -1
	switch {
	case j.Role == roleProduce && j.At == target{"before commit", 1}:
		is, should = len(end.outcome.committed), 0
	case j.Role == roleProduce && j.At == target{"after commit", 1}:
		is, should = len(end.outcome.committed), 1
	case j.Role == roleRelay && j.At == target{"before Publish", 1}, j.Role == roleRelay && j.At == target{"after Release", 1}:
		is, should = len(end.outcome.again()), 0
	case j.Role == roleRelay && j.At == target{"after Publish", 1}:
		is, should = min(len(end.outcome.again()), 1), 1
	}
	if is != should {
		return fmt.Errorf("%s: there should be %d messages, and are %d", j, should, is)
	}
	return nil
}

// inLanes calls do in goroutines, which wait waits for, with worlds of their own.
func inLanes(t *testing.T, kind string, do func(ctx context.Context, w *world)) (wait func()) {
	t.Helper()
	var running sync.WaitGroup
	for range lanes {
		w := newWorld(t, kind)
		running.Go(func() { do(t.Context(), w) }) // ends with what is to do
	}
	return running.Wait
}

func TestPromises_Hold_AtWhateverStepAProcessCrashes(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a thousand processes; the points that have names are crashed at")
	}
	for _, kind := range kinds {
		for _, role := range []string{roleProduce, roleRelay, roleConsume} {
			t.Run(kind+"/"+role, func(t *testing.T) {
				t.Parallel()
				sweep(t, kind, role)
			})
		}
	}
}

// mustSteps returns steps at which a sweep must have crashed processes.
func mustSteps(kind, role string) (points []string) {
	changes := []string{"take slots", "delete", "settle", "appear", "leave", "give up slots"}
	looks := []string{"read"}
	switch {
	case role == roleProduce:
		changes, looks = []string{"order", "insert", "commit"}, []string{"begin", "rollback"}
	case role == roleConsume:
		changes, looks = []string{"effect", "insert", "commit"}, []string{"begin", "rollback", "record"}
	case kind == kindSQLite:
		changes = []string{"take slots", "delete", "archive", "retry", "commit", "give up slots"}
	}
	for _, s := range changes {
		points = append(points, "before "+s, "in "+s)
	}
	for _, s := range looks {
		points = append(points, "before "+s)
	}
	return points
}

// sweep has one process come to its end, which tells its steps, and then one crash at each of them. Since there is more
// than one goroutine in a process, some have fewer steps of a kind than others, and come to their end.
func sweep(t *testing.T, kind, role string) {
	t.Helper()
	end, err := newWorld(t, kind).crash(t.Context(), job{Role: role})
	require.NoError(t, err)
	var todo []target
	for _, step := range end.steps {
		for n := range step.Nth {
			todo = append(todo, target{step.Point, 1 + n})
		}
	}
	next := make(chan target, len(todo))
	for _, at := range todo {
		next <- at
	}
	close(next)
	var mu sync.Mutex
	crashes := map[string]int{}
	inLanes(t, kind, func(ctx context.Context, w *world) {
		for at := range next {
			end, err := w.crash(ctx, job{Role: role, At: at})
			mu.Lock()
			if err != nil {
				t.Errorf("%s, number %d: %v", at.Point, at.Nth, err)
			}
			if end.crashed {
				crashes[at.Point]++
			}
			mu.Unlock()
		}
	})()
	t.Logf("of %d processes crashed: %v", len(todo), crashes)
	for _, point := range mustSteps(kind, role) {
		require.Positive(t, crashes[point], point)
	}
}
