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

func TestGaps_AreWhatLiesBetweenTheIDsThatWereSeen_AboveAndThroughPartsOfThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seen := rapid.SliceOfNDistinct(rapid.Int64Range(1, 60), 1, 40, rapid.ID[int64]).Draw(t, "seen")
		slices.Sort(seen)
		after := rapid.Int64Range(0, 60).Draw(t, "after")
		var all, higher, lower []int64
		for id := int64(1); id < seen[len(seen)-1]; id++ {
			switch {
			case slices.Contains(seen, id):
				continue
			case id > after:
				higher = append(higher, id)
			default:
				lower = append(lower, id)
			}
			all = append(all, id)
		}
		at, _ := slices.BinarySearch(seen, after+1)
		for what, got := range map[string]struct {
			runs []Run
			ids  []int64
		}{
			"all":       {gaps(0, seen), all},
			"behind":    {gaps(after, seen[at:]), higher},
			"the upper": {above(gaps(0, seen), after), higher},
			"the lower": {through(gaps(0, seen), after), lower},
		} {
			if !slices.Equal(idsOf(got.runs), got.ids) {
				t.Fatalf("%s between %v, with %d: %v", what, seen, after, got.runs)
			}
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
