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

// RowID returns the id of the row.
func RowID(id string) (int64, error) {
	row, _, _ := strings.Cut(id, generationMark)
	return strconv.ParseInt(row, 10, 64)
}

// Generation returns which generation of claims an ID is of.
func Generation(id string) int {
	_, generation, _ := strings.Cut(id, generationMark)
	n, _ := strconv.Atoi(generation) // nothing is none
	return n
}
