package scan_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/watermill-outbox/outbox/internal/scan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Each history is a short one in which something would go wrong without the rule.
func TestReader_LosesAndReordersNothing_Because(t *testing.T) {
	for rule, history := range map[string]string{
		"what was not seen is read once more, for who ended between the snapshot and the list": "1a 2b 2+ r 1+ r3 f",
		"it is read in the snapshot that shows that its transaction has ended":                 "1a 2b 2+ f2 1+ 3a 3+ f",
		"and once more, for who ended between that and the list":                               "1a 2b 2+ f2 r 1+ r3 f",
		"it waits for all who may have taken its ids":                                          "1a 2b 3c 3+ f2 1+ f2 2+ f",
		"ranges that wait for others stay apart":                                               "1a 2b 2+ f2 3c 4d 4+ f2 1+ f2 3+ f",
		"past the cut nothing counts as read":                                                  "budget1 1a 1a 1b 2c 2+ f2 1+ f3",
		"past the cut nobody is struck off":                                                    "1a 2b 2+ 3c 4d 4+ f2 budget1 1+ 3+ f2",
		"who prepares has another name":                                                        "1a 2b 2+ f2 1p f2 1+ f",
		"and so has one that has prepared and ended since":                                     "1a 2b 2+ f2 r 1p r4 1+ r3 f",

		"it settles by the last value before the list":       "look list r2 1a r2 2b 2+ f 1+ f",
		"it settles when all have ended who held it then":    "look list r2 1a r2 look f 2b 2+ f 1+ f",
		"it settles what the next snapshot shows":            "look list r2 1a r2 look f 2b 2+ r 1+ r3 f",
		"it settles nothing without a list":                  "look list r2 1a r2 look f2 2b 2+ f 1+ f",
		"it does not settle what a prepared transaction has": "look list r2 1a r2 look f 1p look f 2b 2+ f 1+ f",

		"going back takes what is above once":          "1a 2b 2+ 3c 4d 4+ f back2 f2 3+ 1+ f2",
		"going back still waits for what is below":     "1a 2b 2+ f back1 f 1+ f",
		"going back is never forward":                  "1a 2b 2+ f 3c 4d 4+ back3 f 3+ f",
		"going back does not catch up for the second":  "lose1 1b 1+ 2a 2+ f gain1 back1 f2",
		"slots that were acquired are read from below": "lose1 1b 1+ 2a 2+ f gain1 f",
		"from the very beginning, each time":           "keep lose1 1b 1+ 2a 2+ f gain1 f lose1 gain1 f2 mark",
		"what comes late waits for what is below it":   "lose1 limit1 1b 1b 2d 3a 1+ 3+ f4 gain1 2+ f4",
		"but not for what is above it":                 "lose1 1b 2d 2d 2d 2+ f2 gain1 limit1 f 1+ f3",
		"what is new comes when all is caught up with": "lose1 1b 1+ f gain1 2b 2+ f",
		"what is new waits for what is below it":       "lose1 limit1 1b 1b 1+ f3 gain1 2b 2+ f4",

		"names begin again when the server does":  "1a 2b 2+ f2 1+ crash 3c 4a 4+ f2",
		"who has prepared survives that":          "1a 2b 2+ f2 1p crash f2 1+ f2",
		"and may end before the first list":       "1a 2b 2+ f2 1p crash f r 1+ r3 f",
		"though the range was passed just before": "1a 2b 2+ f 1p crash f r 1+ r3 f",
		"ids may be given again that were settled": "1a 1+ f 2b 2c 2- look f look f crash2 look f " +
			"3b 4c 4+ f 3+ f",
		"or were to be settled": "1a 1+ f 2b 2c 2- look f crash2 look f look f 3b 4c 4+ f 3+ f",
		"or were to be settled when somebody ends": "1a 1+ f 2b 2c 2- look f 3d look f crash2 look f look f " +
			"4b 5c 5+ f 4+ f",
		"after a failover ids begin again, for all":     "1a 1+ 2b 2+ f failover0 3a 3+ look f gain0 gain1 f",
		"after a failover there is nothing to wait for": "1a 2b 2+ f2 failover0 look f gain0 gain1 3a 3+ f",
		"after a failover nothing is settled":           "1a 1+ f 2b 2- look f look f failover0 look f gain0 gain1 3a 4b 4+ f 3+ f",
		"nor is anything about to be":                   "1a 1+ 2b 2- f failover0 look f gain0 gain1 look f 3a 4b 4+ f 3+ f",
		"nor when somebody ends":                        "1a 1+ 2b 2- f 3c look f failover0 look f gain0 gain1 look f 4a 5b 5+ f 4+ f",

		"of all that goes wrong, this was the first that a random history found": "limit1 budget1 1b 1a look r3 1+ 2a 2a r2 2a " +
			"r3 2+ 3a r 3-",
	} {
		t.Run(rule, func(t *testing.T) { play(t, history) })
	}
}

// What a range waits for is only what may have taken its ids: it is settled when they have ended, whoever writes then.
func TestReader_WaitsForNobodyElse(t *testing.T) {
	for of, history := range map[string]string{
		"those who came later":             "1a 2b 2+ f2 3c 1+ f2",
		"one of the same name":             "1a 2b 2+ f2 crash 3c f3",
		"a savepoint that was rolled back": "1~ 1a 1+ f 2b f",
	} {
		t.Run(of, func(t *testing.T) {
			w := newWorld()
			w.mustf(t, "%s", history)
			require.True(t, w.relays[0].reader.Begin().Quiet())
			require.NoError(t, w.finish())
		})
	}
}

// A page of what came late may be cut below rows that catching up has shown; those wait, or they would go before others of
// their key.
func TestFetch_DoesNotCatchUpPastTheCutOfWhatCameLate(t *testing.T) {
	f := (&scan.Reader{}).Begin()
	require.EqualValues(t, 5, f.Through(9, []int64{3, 5}, true))
	require.EqualValues(t, 9, f.Through(9, []int64{3, 5}, false))
	require.EqualValues(t, 4, f.Through(4, []int64{3, 5}, true))
}

// Nobody but the reads brings what is expected, so what they have brought must not be.
func TestReader_ExpectsOfAnAcquiredSlotWhatItHasNotCaughtUpWith(t *testing.T) {
	w := newWorld()
	w.mustf(t, "lose1 1b 1b 2a 1+ 2+ f gain1 limit1 f")
	r := &w.relays[0].reader
	require.False(t, r.Expects(1, 1))
	require.True(t, r.Expects(1, 2))
	require.False(t, r.Expects(0, 2))
	require.NoError(t, w.finish())
}

// With one writer at a time an id that is missing stays so.
func TestReader_InOrder_ReadsNothingAgain(t *testing.T) {
	r := &scan.Reader{InOrder: true}
	for _, ids := range [][]int64{{2, 4}, {7}} {
		r.Begin().End(ids, false, 0)
		require.True(t, r.Begin().Quiet())
		require.Empty(t, r.Begin().Again)
		r.Reset()
	}
}
