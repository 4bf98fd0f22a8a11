package claim

import (
	"strconv"
	"strings"
)

// A message's ID is that of its row and, once claims were lost or rows' ids have begun anew, which generation of claims it is of.
// What becomes of a claim under a lost lease is told when the message may have been claimed again; and while one is still
// being published, its row's id may be given to another.
const generationMark = "."

// WithGeneration returns the ID of a claim, of a message whose row has this id.
func WithGeneration(id string, generation int) string {
	if generation == 0 {
		return id
	}
	return id + generationMark + strconv.Itoa(generation)
}

// RowID returns the id of the row. An ID is digits, or digits, a point and digits: nothing else may pass for one that was
// given, and be requeued or discarded. A minus may be before it, since somebody may insert rows with such ids by hand.
func RowID(id string) (int64, error) {
	row, generation, marked := strings.Cut(id, generationMark)
	if marked {
		if _, err := strconv.ParseUint(generation, 10, strconv.IntSize-1); err != nil { // which takes no sign
			return 0, err
		}
	}
	if strings.HasPrefix(row, "+") {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(row, 10, 64)
}

// Generation returns which generation of claims an ID is of, which [RowID] takes.
func Generation(id string) int {
	_, generation, _ := strings.Cut(id, generationMark)
	n, _ := strconv.Atoi(generation) // nothing is none
	return n
}
