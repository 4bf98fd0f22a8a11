package storetest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/watermill-outbox/outbox"
	"github.com/watermill-outbox/outbox/internal/claim"
)

// memoryFlaws are flaws of a store with leases and of what goes with it.
var memoryFlaws = map[flaw]struct {
	wanted []string
	breaks func(s *brokenStore, p *brokenProcessed)
}{
	"claims beyond maxBytes": {
		[]string{"Claim/ReturnsAtMostMaxBytes", "Claim/ReturnsAMessageLargerThanMaxBytesAlone"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.claim = func(ctx context.Context, limit, _ int) ([]outbox.Message, error) {
				return s.Store.Claim(ctx, limit, 1<<30)
			}
		},
	},
	"observes nothing": {
		[]string{"Lease/TellsObserversOfItsGainAndLoss"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.claim = func(_ context.Context, limit, maxBytes int) ([]outbox.Message, error) {
				return s.Store.Claim(context.Background(), limit, maxBytes)
			}
		},
	},
	"hides that it has no lease": {
		[]string{"Lease/IsHeldByOneInstance", "Release/WithoutIDs_HandsOverAtOnce"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.claim = func(ctx context.Context, limit, maxBytes int) ([]outbox.Message, error) {
				msgs, _ := s.Store.Claim(ctx, limit, maxBytes)
				return msgs, nil
			}
		},
	},
	"takes an outcome without a status for processed": {
		[]string{"Settle/RefusesAnUnknownStatus"},
		breakOutcomes(func(o *outbox.Outcome) {
			if o.Status == "" {
				o.Status = outbox.StatusProcessed
			}
		}),
	},
	"leads always": {
		[]string{"Lease/MakesOneInstanceTheLeader"},
		func(s *brokenStore, _ *brokenProcessed) { s.leads = func() bool { return true } },
	},
	"settles without errors": {
		[]string{"Settle/CountsAFailedAttempt", "Settle/KeepsACountedWait_WhenAnotherInstanceTakesOver"},
		breakOutcomes(func(o *outbox.Outcome) { o.Err = nil }),
	},
	"counts without an error": {
		[]string{"Settle/CountsNothing_WithoutAnError", "Settle/ForgetsAnUncountedWait_WhenAnotherInstanceTakesOver"},
		breakOutcomes(func(o *outbox.Outcome) {
			if o.Err == nil {
				o.Err = fmt.Errorf("made up")
			}
		}),
	},
	"ignores RetryAfter": {
		[]string{"Settle/LetsAPendingMessageAndItsKeyWaitForRetryAfter", "FetchPending/HoldsAKeyBack_WhileItsFirstWaits"},
		breakOutcomes(func(o *outbox.Outcome) { o.RetryAfter = 0 }),
	},
	"archives everything": {
		[]string{"Settle/DeletesAProcessedMessage", "Settle/KeepsAProcessedMessage_WhenItIsToBeArchived"},
		breakOutcomes(func(o *outbox.Outcome) { o.Archive = true }),
	},
	"archives nothing": {
		[]string{"Settle/KeepsAProcessedMessage_WhenItIsToBeArchived"},
		breakOutcomes(func(o *outbox.Outcome) { o.Archive = false }),
	},
	"takes failed for processed": {
		[]string{"Settle/SetsAside", "Settle/TakesAllKindsOfOutcomesAtOnce"},
		breakOutcomes(func(o *outbox.Outcome) {
			if o.Status == outbox.StatusFailed {
				o.Status = outbox.StatusProcessed
			}
		}),
	},
	"does not mind unknown ids": {
		[]string{"Settle/SettlesTheOthers_WhenAnIDIsUnknown", "Settle/MayBeRepeated", "Release/EndsTheClaim"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.settle = func(ctx context.Context, outcomes ...outbox.Outcome) error {
				_ = s.Store.Settle(ctx, outcomes...)
				return nil
			}
		},
	},
	"stops settling at an unknown id": {
		[]string{"Settle/SettlesTheOthers_WhenAnIDIsUnknown"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.settle = func(ctx context.Context, outcomes ...outbox.Outcome) error {
				for _, o := range outcomes {
					if err := s.Store.Settle(ctx, o); err != nil {
						return err
					}
				}
				return nil
			}
		},
	},
	"settles nothing after a lost lease": {
		[]string{"Lease/GivesLateOutcomesOfItsFormerOwnerTheirEffect"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.settle = func(ctx context.Context, outcomes ...outbox.Outcome) error {
				var owned []outbox.Outcome
				for _, o := range outcomes {
					if s.Store.Owned(o.ID) {
						owned = append(owned, o)
					}
				}
				return s.Store.Settle(ctx, owned...)
			}
		},
	},
	"takes the outcome of a former claim for that of the newer one": {
		[]string{
			"Lease/KeepsNewerClaims_WhenOutcomesOfLostOnesComeLate",
			"Release/WithoutIDs_KeepsLaterClaims_WhenOutcomesOfFormerOnesComeLate",
		},
		func(s *brokenStore, _ *brokenProcessed) {
			idOf := func(id string) string {
				row, _, _ := strings.Cut(id, ".")
				for n := range 10 {
					if newer := claim.WithGeneration(row, n); s.Store.Owned(newer) {
						return newer
					}
				}
				return id
			}
			s.settle = func(ctx context.Context, outcomes ...outbox.Outcome) error {
				outcomes = slices.Clone(outcomes)
				for i := range outcomes {
					outcomes[i].ID = idOf(outcomes[i].ID)
				}
				return s.Store.Settle(ctx, outcomes...)
			}
			s.release = func(ctx context.Context, ids ...string) error {
				ids = slices.Clone(ids)
				for i := range ids {
					ids[i] = idOf(ids[i])
				}
				return s.Store.Release(ctx, ids...)
			}
			s.owned = func(id string) bool { return s.Store.Owned(idOf(id)) }
		},
	},
	"releases nothing": {
		[]string{"Release/LetsMessagesBeClaimedAgainAtOnce", "Release/KeepsTheOrderOfAKey"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.release = func(ctx context.Context, ids ...string) error {
				if len(ids) > 0 {
					return nil
				}
				return s.Store.Release(ctx)
			}
		},
	},
	"releases everything": {
		[]string{"Release/LeavesOtherClaimsAlone"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.release = func(ctx context.Context, _ ...string) error { return s.Store.Release(ctx) }
		},
	},
	"owns everything": {
		[]string{"Lease/IsOwnedUntilTheClaimEnds", "Lease/IsOwnedNoMore_WhenAnotherInstanceHasIt"},
		func(s *brokenStore, _ *brokenProcessed) { s.owned = func(string) bool { return true } },
	},
	"pauses nothing": {
		[]string{"PauseTopics/LeavesOutTheTopicAndWhatIsBehindItInItsKeys"},
		func(s *brokenStore, _ *brokenProcessed) { s.pause = func(...string) {} },
	},
	"never unpauses": {
		[]string{"PauseTopics/ReplacesTheSet"},
		func(s *brokenStore, _ *brokenProcessed) {
			var all []string
			s.pause = func(topics ...string) {
				all = append(all, topics...)
				s.Store.PauseTopics(all...)
			}
		},
	},
	"never wakes": {
		[]string{"Notify/WakesForCommitsOfAnotherInstance", "Notify/WakesForItsOwnCommits"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.notify = func(ctx context.Context, _ func()) error { return s.Store.Notify(ctx, func() {}) }
		},
	},
	"commits what panics": {
		[]string{"RunInTx/RollsBackWhenTheFunctionPanics"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.runInTx = func(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
				tx := s.Begin()
				defer tx.Commit() //nolint:errcheck // it is broken
				return fn(outbox.ContextWithTx(ctx, s, tx), tx)
			}
		},
	},
	"minds a cancelled context": {
		[]string{"RunInTx/DoesNotDependOnTheCancellationOfItsContext"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.runInTx = func(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
				return s.Store.RunInTx(ctx, func(txCtx context.Context, tx any) error {
					if err := fn(outbox.ContextWithTx(txCtx, s, tx), tx); err != nil {
						return err
					}
					return ctx.Err()
				})
			}
		},
	},
	"joins the transaction of its context": {
		[]string{"RunInTx/BeginsATransactionOfItsOwn_WithinAnother"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.runInTx = func(ctx context.Context, fn func(ctx context.Context, tx any) error) error {
				if tx, ok := outbox.TxFromContext(ctx, s); ok {
					return fn(ctx, tx)
				}
				return s.Store.RunInTx(ctx, func(ctx context.Context, tx any) error {
					return fn(outbox.ContextWithTx(ctx, s, tx), tx)
				})
			}
		},
	},
	"keeps its lease when closed": {
		[]string{"Close/GivesUpItsLeases"},
		func(s *brokenStore, _ *brokenProcessed) {
			s.close = func() error { return nil }
		},
	},
	"marks everything as new": {
		[]string{"ProcessedStore/MarkProcessed_IsNewOnce", "ProcessedStore/MarkProcessed_IsNewForOneOfMany"},
		breakMark(func(s *brokenStore, db any, group, msgID string, isNew bool) bool { return true }),
	},
	"marks outside of the transaction": {
		[]string{
			"ProcessedStore/MarkProcessed_GoesWithItsTransaction", "Bugs/ADedupKeyRecordedBeforeTheHandlerSucceeds",
			"ProcessedStore/MarkProcessed_WaitsForAConcurrentTransaction_ThatRollsBack",
		},
		func(s *brokenStore, p *brokenProcessed) {
			p.mark = func(ctx context.Context, _ any, group, msgID string, metadata json.RawMessage) (bool, error) {
				return p.Processed.MarkProcessed(ctx, nil, group, msgID, metadata)
			}
		},
	},
	"forgets the group": {
		[]string{"ProcessedStore/MarkProcessed_IsPerGroup"},
		func(s *brokenStore, p *brokenProcessed) {
			p.mark = func(ctx context.Context, db any, _, msgID string, metadata json.RawMessage) (bool, error) {
				return p.Processed.MarkProcessed(ctx, db, "group", msgID, metadata)
			}
		},
	},
	"cuts long ids": {
		[]string{"ProcessedStore/MarkProcessed_TakesLongIDs"},
		func(s *brokenStore, p *brokenProcessed) {
			p.mark = func(ctx context.Context, db any, group, msgID string, metadata json.RawMessage) (bool, error) {
				return p.Processed.MarkProcessed(ctx, db, group, msgID[:min(len(msgID), 255)], metadata)
			}
		},
	},
	"takes any metadata": {
		[]string{"ProcessedStore/MarkProcessed_RefusesMetadataThatAreNoJSON"},
		func(s *brokenStore, p *brokenProcessed) {
			p.mark = func(ctx context.Context, db any, group, msgID string, _ json.RawMessage) (bool, error) {
				return p.Processed.MarkProcessed(ctx, db, group, msgID, nil)
			}
		},
	},
	"purges what was marked at t": {
		[]string{"ProcessedStore/PurgeProcessedBefore_IsStrict"},
		func(s *brokenStore, p *brokenProcessed) {
			p.purge = func(ctx context.Context, db any, t time.Time) (int64, error) {
				return p.Processed.PurgeProcessedBefore(ctx, db, t.Add(1))
			}
		},
	},
}

func breakOutcomes(change func(o *outbox.Outcome)) func(s *brokenStore, _ *brokenProcessed) {
	return func(s *brokenStore, _ *brokenProcessed) {
		s.settle = func(ctx context.Context, outcomes ...outbox.Outcome) error {
			changed := append([]outbox.Outcome{}, outcomes...)
			for i := range changed {
				change(&changed[i])
			}
			return s.Store.Settle(ctx, changed...)
		}
	}
}

func breakMark(
	change func(s *brokenStore, db any, group, msgID string, isNew bool) bool,
) func(s *brokenStore, p *brokenProcessed) {
	return func(s *brokenStore, p *brokenProcessed) {
		p.mark = func(ctx context.Context, db any, group, msgID string, metadata json.RawMessage) (bool, error) {
			isNew, err := p.Processed.MarkProcessed(ctx, db, group, msgID, metadata)
			return change(s, db, group, msgID, isNew), err
		}
	}
}
