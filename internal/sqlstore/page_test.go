package sqlstore

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Whatever two reads of one snapshot have shown and where they were cut, what is taken of both is a prefix of all rows by
// id, those of others included: nothing enters without what comes before it.
func TestMerge_TakesAPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 30).Draw(t, "rows")
		ours := map[int64]*row{}
		var all, a, b []int64
		for id := range int64(n) {
			all = append(all, id)
			if rapid.Bool().Draw(t, "ours") {
				ours[id] = &row{id: id, size: rapid.IntRange(0, 3).Draw(t, "size")}
			}
			if rapid.Bool().Draw(t, "in the first") {
				a = append(a, id)
			} else {
				b = append(b, id)
			}
		}
		cut := func(ids []int64, what string) (p page) {
			at := rapid.IntRange(0, len(ids)).Draw(t, what)
			if p.ids = ids; at < len(ids) {
				p.ids, p.cut = ids[:at+1], true // a read that was cut has shown something
			}
			p.rows = rowsOf(ours, p.ids)
			return p
		}
		maxBytes := rapid.IntRange(0, 20).Draw(t, "bytes")
		merged := merge(cut(a, "first cut"), cut(b, "second cut"), maxBytes)
		if !slices.Equal(merged.ids, all[:len(merged.ids)]) {
			t.Fatalf("%v is not a prefix", merged.ids)
		}
		if !slices.Equal(merged.rows, rowsOf(ours, merged.ids)) {
			t.Fatal("the rows are not those of the ids")
		}
		bytes := 0
		for i, r := range merged.rows {
			if bytes > maxBytes && i > 0 && len(a) > 0 {
				t.Fatalf("%d bytes were taken, and more", bytes)
			}
			bytes += r.size
		}
		switch {
		case len(merged.ids) < n && !merged.cut:
			t.Fatalf("%d of %d rows, and nothing says that there are more", len(merged.ids), n)
		case len(merged.ids) == 0 && n > 0:
			t.Fatalf("none of %d rows", n)
		}
	})
}

func rowsOf(ours map[int64]*row, ids []int64) (rows []*row) {
	for _, id := range ids {
		if r := ours[id]; r != nil {
			rows = append(rows, r)
		}
	}
	return rows
}
