package scan_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// backlog writes 200 messages, and before each takes an id that is rolled back.
func (w *world) backlog(t *testing.T) {
	t.Helper()
	for i := 100; i < 300; i++ {
		w.mustf(t, "%d~ %da %d+", i, i, i)
	}
}

// Who begins to drain knows nothing of who may be writing: what the first pages did not show is read again once. After that
// nothing is, whoever writes.
func TestReader_DrainsABacklog_AndReadsNothingAgain(t *testing.T) {
	for beside, write := range map[string]func(w *world, page int){
		"nobody":             func(*world, int) {},
		"short transactions": func(w *world, page int) { w.mustf(t, "%db %d+", 1000+page, 1000+page) },
		"overlapping transactions": func(w *world, page int) {
			w.mustf(t, "%d%c", 1000+page, 'b'+page%2)
			if page > 0 {
				w.mustf(t, "%d+", 1000+page-1)
			}
		},
	} {
		t.Run("beside "+beside, func(t *testing.T) {
			w := newWorld()
			w.backlog(t)
			w.mustf(t, "limit5 budget5")
			for page := range 40 {
				write(w, page)
				w.mustf(t, "f")
			}
			require.GreaterOrEqual(t, w.relays[0].reader.Cursor(), int64(400))
			require.LessOrEqual(t, w.relays[0].reread, int64(40)) // of four pages, twice
			require.NoError(t, w.finish())
		})
	}
}

// While a transaction is open that has published, each id that was not seen is read again once, and what it waits for is
// one range. When it ends all of that is read twice, and no more.
func TestReader_DrainsABacklogBesideAnOpenTransaction_AndReadsEachIDAgainOnce(t *testing.T) {
	w := newWorld()
	w.mustf(t, "1b")
	w.backlog(t)
	w.mustf(t, "limit5 budget5")
	for range 41 {
		w.mustf(t, "f")
		require.LessOrEqual(t, w.relays[0].reader.Spans(), 2)
	}
	require.Equal(t, int64(201), w.relays[0].reread)
	w.mustf(t, "1+ f3")
	require.Equal(t, int64(201+201+200), w.relays[0].reread)
	require.True(t, w.relays[0].reader.Begin().Quiet())
	require.NoError(t, w.finish())
}

// Each of the transactions that a range waits for costs two reads of it when it ends.
func TestReader_ReadsARangeTwiceForEachTransactionThatEnds(t *testing.T) {
	w := newWorld()
	w.mustf(t, "1~ 2~ 3~ 4~ 5a 5+ f2")
	require.Equal(t, int64(4), w.relays[0].reread)
	for i := range 4 {
		w.mustf(t, "%d- f3", i+1)
		require.Equal(t, int64(4+8*(i+1)), w.relays[0].reread)
	}
	require.True(t, w.relays[0].reader.Begin().Quiet())
	require.NoError(t, w.finish())
}

func TestReader_CatchesUpOnce(t *testing.T) {
	w := newWorld()
	w.mustf(t, "lose1 1b 1+ 2a 2+ f gain1 f 3a 3+ f")
	f := w.relays[0].reader.Begin()
	require.Greater(t, f.CatchUp.From, f.CatchUp.To)
	require.False(t, f.CatchesUp(1))
	require.NoError(t, w.finish())
}

func TestReader_KeepsWhatItHasCaughtUpWith_WhenLateRowsAreCutBelowThat(t *testing.T) {
	w := newWorld()
	w.mustf(t, "lose1 1a 1c 2b 2b 2b 2b 2+ f2 gain1 limit2 f")
	require.Equal(t, int64(5), w.relays[0].reader.Begin().CatchUp.From)
	w.mustf(t, "budget1 1+ f")
	require.Equal(t, int64(5), w.relays[0].reader.Begin().CatchUp.From)
	require.NoError(t, w.finish())
}
