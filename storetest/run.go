package storetest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
)

// Run runs the suite. newHarness is called once for each subtest.
func Run(t *testing.T, newHarness func(t *testing.T) Harness, features Features) {
	t.Helper()
	features = features.withDefaults()
	for _, chapter := range chapters() {
		t.Run(chapter.name, func(t *testing.T) {
			for _, promise := range chapter.promises {
				t.Run(promise.name, func(t *testing.T) {
					if promise.alone {
						promise.check(newEnv(t, newHarness(t), realTime(features)))
						return
					}
					t.Parallel()
					if !features.VirtualTime {
						promise.check(newEnv(t, newHarness(t), features))
						return
					}
					skipped := false
					synctest.Test(t, func(t *testing.T) {
						defer func() { skipped = t.Skipped() }() // which the outer test does not learn otherwise
						promise.check(newEnv(t, newHarness(t), features))
					})
					if skipped {
						t.SkipNow()
					}
				})
			}
		})
	}
}

func realTime(f Features) Features {
	f.VirtualTime = false
	return f
}

type chapter struct {
	name     string
	promises []promise
}

type promise struct {
	name  string
	check func(e *env)
	// alone keeps the subtest from running beside others and in virtual time.
	alone bool
}

func chapters() []chapter {
	return []chapter{
		{"Features", featurePromises()},
		{"Save", savePromises()},
		{"SavedMessage", savedMessagePromises()},
		{"FetchPending", fetchPromises()},
		{"MarkProcessed", markProcessedPromises()},
		{"MarkFailed", markFailedPromises()},
		{"DeleteProcessedBefore", deletePromises()},
		{"Claim", claimPromises()},
		{"Settle", settlePromises()},
		{"Release", releasePromises()},
		{"Lease", leasePromises()},
		{"PauseTopics", pausePromises()},
		{"ProcessedStore", processedPromises()},
		{"RunInTx", transactorPromises()},
		{"Inspector", inspectorPromises()},
		{"Stats", statsPromises()},
		{"Notify", notifyPromises()},
		{"Close", closePromises()},
		{"Promises", promisePromises()},
		{"Bugs", bugPromises()},
	}
}

func featurePromises() []promise {
	return []promise{{name: "AreThoseOfTheStore", check: featuresAreThoseOfTheStore}}
}

// An interface that a store lost by a changed signature must not turn into a skipped test.
func featuresAreThoseOfTheStore(e *env) {
	s := e.open()
	require.NotNil(e, e.h.Begin, "Harness.Begin is required")
	require.NotNil(e, e.h.Write, "Harness.Write is required")
	require.NotNil(e, e.h.Written, "Harness.Written is required")

	_, leased := s.(outbox.LeasedStore)
	_, transactor := s.(outbox.Transactor)
	_, notifier := s.(outbox.Notifier)
	_, pauser := s.(outbox.TopicPauser)
	_, leader := s.(outbox.Leader)
	_, termReporter := s.(outbox.TermReporter)
	_, inspector := s.(outbox.Inspector)
	_, reporter := s.(outbox.StatsReporter)
	for _, f := range []struct {
		name          string
		declared, has bool
	}{
		{"Features.Slots, outbox.LeasedStore", e.features.Slots > 0, leased},
		{"Features.Transactor", e.features.Transactor, transactor},
		{"Features.Notifier", e.features.Notifier, notifier},
		{"Features.TopicPauser", e.features.TopicPauser, pauser},
		{"Features.Leader", e.features.Leader, leader},
		{"Features.TermReporter", e.features.TermReporter, termReporter},
		{"Features.Inspector", e.features.Inspector, inspector},
		{"Features.StatsReporter", e.features.StatsReporter, reporter},
	} {
		require.Equal(e, f.declared, f.has, "%s: declared is %t, but that a %T has it is %t", f.name, f.declared, s, f.has)
	}
	if e.h.Processed != nil {
		_, transactor = e.h.Processed(s).(outbox.Transactor)
		require.Equal(e, e.features.Transactor, transactor, "Features.Transactor: declared is %t, but that a %T has it is %t",
			e.features.Transactor, e.h.Processed(s), transactor)
	}
	_, savepoints := e.begin(s).(SavepointTx)
	require.Equal(e, e.features.Savepoints, savepoints, "Features.Savepoints: Harness.Begin must return a SavepointTx "+
		"if, "+
		"and only if, it is on")
}

// patience is how long the suite waits, in real or virtual time, for what must happen at some time.
var patience = 30 * time.Second

func newEnv(t *testing.T, h Harness, features Features) *env {
	t.Helper()
	limit := 4 * patience // a store that hangs shall fail its own subtest rather than the whole binary
	if features.VirtualTime {
		limit = 1000 * time.Hour // in a bubble hanging is noticed as such
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return &env{T: t, h: h, features: features, ctx: ctx}
}
