//go:build linux && skewed

package main

import "time"

// setClockAhead makes time.Now return what it is later than. The time package has this function where package torture has
// built the program: it is put there by an overlay of the standard library.
func setClockAhead(d time.Duration) { time.SetAhead(d) }
