package sqlstore

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Invariants of sharing, whatever instances come and go, and whatever writes fail:
//
//   - A slot is taken only where it is free, expired, or this instance's own.
//   - Nobody gives what makes its share smaller than it has to be, and nobody takes more than a fair share.
//   - When nothing changes any more, all slots are held and shares differ by the rounding only.
func TestShare_ComesToAFairShareOfAllSlots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, live := rapid.IntRange(1, 64).Draw(t, "slots"), rapid.IntRange(1, 9).Draw(t, "instances")
		owners := make([]string, n)
		held := make([]map[int]bool, live)
		names := make([]string, live)
		for i := range live {
			held[i], names[i] = map[int]bool{}, fmt.Sprint("relay ", i)
		}
		gone := make([]bool, n) // its owner does not renew it
		for slot := range n {
			switch who := rapid.IntRange(-2, live-1).Draw(t, "owner"); {
			case who == -1:
				owners[slot], gone[slot] = "somebody who has gone", true
			case who >= 0:
				owners[slot] = names[who]
				held[who][slot] = rapid.Bool().Draw(t, "and knows it")
			}
		}
		fair := (n + live - 1) / live
		round := func(me int, fails bool) (changed bool) {
			var slots []slotState
			for slot := range n {
				slots = append(slots, slotState{slot, owners[slot], gone[slot], held[me][slot]})
			}
			take, surplus := share(slots, names[me], live)
			for _, slot := range surplus {
				delete(held[me], slot)
				if !fails {
					owners[slot] = ""
				}
			}
			for _, slot := range take {
				if owner := owners[slot]; owner != "" && owner != names[me] && !gone[slot] {
					t.Fatalf("slot %d is taken from %s", slot, owner)
				}
				owners[slot], gone[slot], held[me][int(slot)] = names[me], false, true
			}
			mine := 0
			for _, is := range held[me] {
				if is {
					mine++
				}
			}
			if mine > fair {
				t.Fatalf("%d slots of %d are held by one of %d", mine, n, live)
			}
			return len(take)+len(surplus) > 0
		}
		for range rapid.IntRange(0, 10).Draw(t, "rounds with failures") {
			round(rapid.IntRange(0, live-1).Draw(t, "who"), rapid.Bool().Draw(t, "fails"))
		}
		for range 3 {
			for me := range live {
				round(me, false)
			}
		}
		for me := range live {
			if round(me, false) {
				t.Fatalf("shares still move")
			}
		}
		for slot, owner := range owners {
			who := slices.Index(names, owner)
			if who < 0 || !held[who][slot] {
				t.Fatalf("slot %d is served by nobody: its owner is %q", slot, owner)
			}
		}
	})
}

func TestShare_GivesASlotBackOnceMore_WhenThatFailed(t *testing.T) {
	take, surplus := share([]slotState{{0, "me", false, true}, {1, "me", false, false}}, "me", 2)
	require.Empty(t, take)
	require.Equal(t, []int{1}, surplus)
}
