package claim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/watermill-outbox/outbox"
)

// ByHandBytes bounds one FetchPending, which has no parameter for it.
const ByHandBytes = 32 << 20

// FailedByHand returns the outcome for MarkFailed of a claimed message: the policy of a Forwarder made without options.
func FailedByHand(m *outbox.Message, err error) outbox.Outcome {
	if err == nil {
		err = errors.New("no error was given")
	}
	policy := outbox.DefaultConfig()
	if m.Retries+1 >= policy.MaxRetries {
		return outbox.Outcome{ID: m.ID, Status: outbox.StatusFailed, Err: err}
	}
	return outbox.Outcome{
		ID: m.ID, Status: outbox.StatusPending, RetryAfter: policy.RetryDelay(m.Retries + 1), Err: err,
	}
}

// ProcessedByHand returns the outcomes for MarkProcessed: kept until DeleteProcessedBefore.
func ProcessedByHand(ids []string) []outbox.Outcome {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	outcomes := make([]outbox.Outcome, len(ids))
	for i, id := range ids {
		outcomes[i] = outbox.Outcome{ID: id, Status: outbox.StatusProcessed, Archive: true}
	}
	return outcomes
}

// CheckOutcomes refuses outcomes that say nothing of what is to become of a message: it must not be lost to a zero value.
func CheckOutcomes(outcomes []outbox.Outcome) error {
	for _, o := range outcomes {
		switch o.Status {
		case outbox.StatusProcessed, outbox.StatusPending, outbox.StatusFailed:
		case outbox.StatusProcessing:
			fallthrough
		default:
			return fmt.Errorf("the outcome of message %q has the status %q, must be processed, pending or failed", o.ID, o.Status)
		}
	}
	return nil
}
