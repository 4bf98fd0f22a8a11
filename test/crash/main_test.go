// Package crash ends processes at every step between a producer's INSERT and the mark of a published message, and looks
// whether what is promised holds when another process has done the rest.
//
// Nothing in the product knows of it. A process is ended at its seams: in what the Forwarder calls, which are the store and
// the broker; in what a handler and its router do; and in what the drivers do, which is what pgx writes and reads, and the
// statements, rows and commits of SQLite. It ends by SIGKILL, when it comes to a point that it is told for the n-th time.
// Some points have names, and a table; and there is a sweep, for which one process comes to its end and counts the steps of
// its database, and others end at each of them.
//
// After each crash, in the numbers of ARCHITECTURE.md and the README's promises:
//
//	P1, P3  the broker has the messages of the transactions that committed, and no others
//	P2      it has all of them, and nothing is left in the outbox
//	P4      of each key, the first deliveries are in order
//	P5      each handled message has had one effect, and its one message is in the broker
//	P6      a message that the broker refuses for good was set aside, once
//
// And no more is published twice than was in flight at the crash.
//
// store/memory is not here: it ends with its process, messages and all.
package crash_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(jobVariable); text != "" {
		doJob(text) // and end
	}
	goleak.VerifyTestMain(m)
}
