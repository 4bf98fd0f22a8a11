package storetest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/store/memory"
	"github.com/watermill-outbox/outbox/storetest"
)

// plainFlaws are the flaws of a store without leases, and subtests that must fail for each.
var plainFlaws = map[flaw][]string{
	"writes outside of the " +
		"transaction": {"Save/IsAtomicWithTheCallersTransaction", "FetchPending/SeesNothingOfAnOpenTransaction"},
	"commits " +
		"rollbacks": {"Save/IsAtomicWithTheCallersTransaction", "Promises/P3_WhatIsRolledBackLateIsNot"},
	"keeps half of a call": {"Save/WritesAllMessagesOfACallOrNone"},
	"commits in a typed " +
		"nil": {"Save/RefusesWhatIsNoTransaction", "Bugs/ANilOrTypedNilTxSilentlyAutocommitting"},
	"commits in anything":      {"Save/RefusesWhatIsNoTransaction"},
	"replaces the UUID":        {"SavedMessage/KeepsItsUUID", "Bugs/TheCallersMessageIDReplaced"},
	"shortens payloads":        {"SavedMessage/KeepsItsPayload"},
	"keeps the caller's map":   {"SavedMessage/IsNotChangedThroughWhatCallersHold"},
	"folds keys":               {"FetchPending/TellsKeysApart", "SavedMessage/KeepsItsTopicAndKey"},
	"settles by UUID":          {"SavedMessage/MayHaveTheUUIDOfAnother"},
	"ignores the limit":        {"FetchPending/ReturnsAtMostLimitMessages"},
	"returns the newest first": {"FetchPending/ReturnsAKeyInOrder", "Bugs/ReturningWithoutOrder"},
	"ignores claims": {
		"FetchPending/ClaimsAMessageOnce_WithinAnInstance", "FetchPending/ClaimsAMessageOnce_AmongManyGoroutines",
		"Bugs/SkipLockedOutsideATransaction",
	},
	"ignores claims of others": {
		"FetchPending/ClaimsAMessageOnce_AmongInstances", "Promises/P1toP4_WhileManyWriteAndRelay_ByHand",
	},
	"lets a key overtake a claim": {"FetchPending/HoldsAKeyBack_WhileOneOfItIsClaimed"},
	"lets a key overtake a wait": {
		"FetchPending/HoldsAKeyBack_WhileItsFirstWaits", "MarkFailed/HoldsBackItsKey",
		"Bugs/AFailedMessageOvertakenByLaterOnesOfItsKey",
	},
	"lets unkeyed messages wait": {"FetchPending/GivesMessagesWithoutAKeyIndependently"},
	"lets a delay block its key": {"FetchPending/HoldsADelayedMessageUntilItIsDue"},
	"ignores delays":             {"FetchPending/HoldsADelayedMessageUntilItIsDue", "MarkFailed/LetsTheMessageWait"},
	"misses late " +
		"commits": {"Promises/P2_WhatCommitsLateIsDelivered", "Promises/P4_WhatCommitsLateComesBeforeWhatFollowedIt"},
	"stops at an unknown id": {"MarkProcessed/SettlesTheOthers_WhenAnIDIsUnknown"},
	"wants each id once":     {"MarkProcessed/TakesAnIDTwice_InOneCall"},
	"counts no " +
		"retries": {"MarkFailed/CountsARetryAndKeepsTheError", "MarkFailed/SetsAside_AtTheMaximumAndNotBefore"},
	"retries at once":                 {"MarkFailed/LetsTheMessageWait", "Bugs/ARetryDelayThatIsNeverRead"},
	"gives up early":                  {"MarkFailed/SetsAside_AtTheMaximumAndNotBefore"},
	"deletes at the maximum":          {"Bugs/MessagesDeletedAtTheMaximumOfAttempts"},
	"deletes what was processed at t": {"DeleteProcessedBefore/IsStrict"},
	"deletes failed messages":         {"DeleteProcessedBefore/NeverTouchesPendingOrFailedMessages"},
	"strands claims":                  {"Bugs/ClaimedRowsStrandedByACrash"},
	"gives ids again":                 {"Bugs/IDsGivenAgain"},
	"requeues in place":               {"Inspector/Requeue_PutsItLastInItsKey"},
	"requeues without attempts":       {"Inspector/Requeue_MakesAMessagePendingAgain"},
}

// A brokenStore is a memory store of which some methods are replaced.
type brokenStore struct {
	*memory.Store
	claim     func(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error)
	settle    func(ctx context.Context, outcomes ...outbox.Outcome) error
	release   func(ctx context.Context, ids ...string) error
	owned     func(id string) bool
	leads     func() bool
	pause     func(topics ...string)
	notify    func(ctx context.Context, wake func()) error
	runInTx   func(ctx context.Context, fn func(ctx context.Context, tx any) error) error
	close     func() error
	processed outbox.ProcessedStore
}

func (s *brokenStore) Claim(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
	return s.claim(ctx, limit, maxBytes)
}

func (s *brokenStore) Settle(ctx context.Context, outcomes ...outbox.Outcome) error {
	return s.settle(ctx, outcomes...)
}

func (s *brokenStore) Release(ctx context.Context, ids ...string) error {
	return s.release(ctx, ids...)
}
func (s *brokenStore) Owned(id string) bool                          { return s.owned(id) }
func (s *brokenStore) Leads() bool                                   { return s.leads() }
func (s *brokenStore) PauseTopics(topics ...string)                  { s.pause(topics...) }
func (s *brokenStore) Notify(ctx context.Context, wake func()) error { return s.notify(ctx, wake) }
func (s *brokenStore) Close() error                                  { return s.close() }

func (s *brokenStore) RunInTx(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
	return s.runInTx(ctx, fn)
}

// brokenProcessed is a ProcessedStore of which some methods are replaced.
type brokenProcessed struct {
	*memory.Processed
	mark  func(ctx context.Context, db any, group, msgID string, metadata json.RawMessage) (bool, error)
	purge func(ctx context.Context, db any, t time.Time) (int64, error)
	// runInTx carries the transaction for the brokenStore.
	runInTx func(ctx context.Context, fn func(ctx context.Context, tx any) error) error
}

func (p *brokenProcessed) RunInTx(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
	return p.runInTx(ctx, fn)
}

func (p *brokenProcessed) MarkProcessed(
	ctx context.Context, db any, group, msgID string, metadata json.RawMessage,
) (bool, error) {
	return p.mark(ctx, db, group, msgID, metadata)
}

func (p *brokenProcessed) PurgeProcessedBefore(ctx context.Context, db any, t time.Time) (int64, error) {
	return p.purge(ctx, db, t)
}

func unbroken(s *memory.Store) (*brokenStore, *brokenProcessed) {
	p := s.Processed()
	processed := &brokenProcessed{Processed: p, mark: p.MarkProcessed, purge: p.PurgeProcessedBefore}
	broken := &brokenStore{
		Store: s, claim: s.Claim, settle: s.Settle, release: s.Release, owned: s.Owned, leads: s.Leads, pause: s.PauseTopics,
		notify: s.Notify, close: s.Close, processed: processed,
	}
	broken.runInTx = func(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
		return s.RunInTx(ctx, func(ctx context.Context, tx any) error {
			return fn(outbox.ContextWithTx(ctx, broken, tx), tx)
		})
	}
	processed.runInTx = broken.runInTx
	return broken, processed
}

func brokenHarness(f flaw) func(t *testing.T) storetest.Harness {
	if _, plain := plainFlaws[f]; plain {
		return plainHarness(f)
	}
	return func(t *testing.T) storetest.Harness {
		h := memoryHarness(1)(t)
		open := h.Open
		h.Open = func(t *testing.T) outbox.Store {
			s, p := unbroken(open(t).(*memory.Store))
			if f != "" {
				memoryFlaws[f].breaks(s, p)
			}
			t.Cleanup(func() { _ = s.Store.Close() })
			return s
		}
		h.Processed = func(s outbox.Store) outbox.ProcessedStore { return s.(*brokenStore).processed }
		return h
	}
}

const brokenEnv = "STORETEST_FLAW"

// TestBroken fails, and is run by TestRun_Catches.
func TestBroken(t *testing.T) {
	f := flaw(os.Getenv(brokenEnv))
	if f == "" {
		t.Skip("runs in child processes of TestRun_Catches")
	}
	features := memoryFeatures(1)
	if _, plain := plainFlaws[f]; plain {
		features = plainFeatures()
	}
	storetest.Run(t, brokenHarness(f), features)
}

// What TestRun_Catches has failing must be the flaw, not the means by which it is brought about.
func TestRun_OnAnUnbrokenStoreThatCouldBeBroken(t *testing.T) {
	storetest.Run(t, brokenHarness(""), memoryFeatures(1))
}

// A suite that does not fail is worth nothing.
func TestRun_Catches(t *testing.T) {
	t.Parallel()
	wanted := maps.Clone(plainFlaws)
	for f, broken := range memoryFlaws {
		wanted[f] = broken.wanted
	}
	failure := regexp.MustCompile(`(?m)^ +--- FAIL: TestBroken/(\S+/\S+)`)
	for f, names := range wanted {
		t.Run("AStoreThat_"+strings.ReplaceAll(string(f), " ", "_"), func(t *testing.T) {
			t.Parallel()
			chapters, promises := map[string]bool{}, map[string]bool{}
			for _, name := range names {
				chapter, promise, _ := strings.Cut(name, "/")
				chapters[chapter], promises[promise] = true, true
			}
			run := fmt.Sprintf("-test.run=^TestBroken$/%s/%s", anyOf(chapters), anyOf(promises))
			child := exec.CommandContext(t.Context(), os.Args[0], run, "-test.timeout=60s")
			child.Env = append(os.Environ(), brokenEnv+"="+string(f))
			output, err := child.CombinedOutput()
			require.Error(t, err, "the suite passes")
			var failed []string
			for _, match := range failure.FindAllSubmatch(output, -1) {
				failed = append(failed, string(match[1]))
			}
			require.Subset(t, failed, names, "%s", output)
		})
	}
}

func anyOf(names map[string]bool) string {
	return "^(" + strings.Join(slices.Sorted(maps.Keys(names)), "|") + ")$"
}
