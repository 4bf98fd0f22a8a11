package sqlstore

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Invariant: however large rows are, and whenever that changes, the server sends little more than is taken, once it has
// shown how large they are; and when they are small again, as many are asked for as before.
func TestEngine_LearnsHowManyRowsAreOfUse(t *testing.T) {
	const batch, maxBytes = 1000, 10_000
	e := &Engine{}
	read := func(size int) (asked, taken int) {
		asked = e.rowsFor(batch, maxBytes)
		p, bytes := page{}, 0
		for !p.cut {
			r := &row{id: int64(len(p.ids)), size: size}
			p.ids, p.rows, bytes = append(p.ids, r.id), append(p.rows, r), bytes+size
			p.cut = bytes > maxBytes || len(p.ids) == asked
		}
		e.learn(&p)
		return asked, len(p.ids)
	}
	asked, _ := read(1)
	require.Equal(t, minRead, asked, "at first")
	for _, size := range []int{1, 500, 1, 20_000, 100, 1} {
		read(size)
		asked, taken := read(size)
		require.LessOrEqual(t, asked, taken+taken/8+1, "rows of %d bytes", size)
		require.Equal(t, min(batch, maxBytes/size+1), taken, "rows of %d bytes", size)
	}
	e.learn(&page{ids: []int64{1, 2, 3}})
	require.Equal(t, batch, e.rowsFor(batch, maxBytes), "rows of others have no size")
}
