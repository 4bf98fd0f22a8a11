package scan

import (
	"slices"
	"sort"
)

// Run is the ids from From through To.
type Run struct{ From, To int64 }

// gaps returns the ids above after that lie below the last of seen and are not in it. seen ascends.
func gaps(after int64, seen []int64) []Run {
	var runs []Run
	for _, id := range seen {
		if id > after+1 {
			runs = append(runs, Run{after + 1, id - 1})
		}
		after = id
	}
	return runs
}

// without returns runs without the ids in seen. Both ascend. There may be very many runs, and nearly always none is in seen.
func without(runs []Run, seen []int64) []Run {
	if len(seen) == 0 {
		return runs
	}
	first := sort.Search(len(runs), func(i int) bool { return runs[i].To >= seen[0] })
	end := sort.Search(len(runs), func(i int) bool { return runs[i].From > seen[len(seen)-1] })
	if first >= end {
		return runs
	}
	left := slices.Clone(runs[:first])
	for _, r := range runs[first:end] {
		for len(seen) > 0 && seen[0] < r.From {
			seen = seen[1:]
		}
		for len(seen) > 0 && seen[0] <= r.To {
			if r.From < seen[0] {
				left = append(left, Run{r.From, seen[0] - 1})
			}
			r.From = seen[0] + 1
			seen = seen[1:]
		}
		if r.From <= r.To {
			left = append(left, r)
		}
	}
	return append(left, runs[end:]...)
}

// above returns what of runs is above id, in their memory.
func above(runs []Run, id int64) []Run {
	for len(runs) > 0 && runs[0].To <= id {
		runs = runs[1:]
	}
	if len(runs) > 0 && runs[0].From <= id {
		runs[0].From = id + 1
	}
	return runs
}

// through returns what of runs is not above id, in their memory.
func through(runs []Run, id int64) []Run {
	for len(runs) > 0 && runs[len(runs)-1].From > id {
		runs = runs[:len(runs)-1]
	}
	if n := len(runs); n > 0 {
		runs[n-1].To = min(runs[n-1].To, id)
	}
	return runs
}
