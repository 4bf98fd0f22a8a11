package scan

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestWithout_LeavesTheIDsThatWereNotSeen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := rapid.SliceOfNDistinct(rapid.Int64Range(1, 60), 0, 40, rapid.ID[int64]).Draw(t, "ids")
		seen := rapid.SliceOfNDistinct(rapid.Int64Range(1, 60), 0, 20, rapid.ID[int64]).Draw(t, "seen")
		slices.Sort(ids)
		slices.Sort(seen)
		want := slices.DeleteFunc(slices.Clone(ids), func(id int64) bool { return slices.Contains(seen, id) })
		runs := runsOf(ids)
		before := slices.Clone(runs)
		if got := without(runs, seen); !slices.Equal(idsOf(got), want) {
			t.Fatalf("%v without %v: %v", runs, seen, got)
		}
		if !slices.Equal(runs, before) {
			t.Fatal("its argument was changed")
		}
	})
}

func runsOf(ids []int64) (runs []Run) {
	for _, id := range ids {
		if n := len(runs); n > 0 && runs[n-1].To == id-1 {
			runs[n-1].To = id
		} else {
			runs = append(runs, Run{id, id})
		}
	}
	return runs
}

func idsOf(runs []Run) (ids []int64) {
	for _, r := range runs {
		for id := r.From; id <= r.To; id++ {
			ids = append(ids, id)
		}
	}
	return ids
}
