package embedded

import (
	"syscall"
	"time"
)

// cpuTime returns what this process has used.
func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0 // it cannot fail: see getrusage(2)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
