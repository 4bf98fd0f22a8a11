package sqlstore

// slotState is what the database says of a slot, and whether this instance holds it: it may have given up a lease that the
// database still has.
type slotState struct {
	number  int
	owner   string
	expired bool
	held    bool
}

// share decides which slots an instance is to take, and which to give back, where live instances share them: each has as
// many as there are for each, rounded up, so that shares that are as even as can be do not move.
func share(slots []slotState, me string, live int) (take []int64, surplus []int) {
	fair := (len(slots) + live - 1) / live
	mine := 0
	for _, s := range slots {
		if s.held {
			mine++
			if mine > fair {
				surplus = append(surplus, s.number)
			}
		}
	}
	for _, s := range slots {
		free := !s.held && (s.owner == "" || s.owner == me || s.expired)
		switch {
		case free && mine < fair:
			take = append(take, int64(s.number))
			mine++
		case !s.held && s.owner == me: // it was to be given back, and that failed
			surplus = append(surplus, s.number)
		}
	}
	return take, surplus
}

func numbers(slots []int) []int64 {
	all := make([]int64, len(slots))
	for i, slot := range slots {
		all[i] = int64(slot)
	}
	return all
}
