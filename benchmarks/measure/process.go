// Package measure has what scenarios look at: processes, topics, times.
package measure

import (
	"fmt"
	"os"

	"github.com/prometheus/procfs"
)

// Process is a process of this machine with those that it has begun: a server with a process for each connection is one.
type Process struct{ pid int }

// NewProcess returns the process of a pid.
func NewProcess(pid int) Process { return Process{pid} }

// ProcessOn returns the process that listens on a TCP port of this machine, if its owner may be seen.
func ProcessOn(port int) (Process, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return Process{}, err
	}
	sockets, err := fs.NetTCP() //nolint:staticcheck // netlink is more than this takes
	if err != nil {
		return Process{}, err
	}
	sockets6, _ := fs.NetTCP6() //nolint:staticcheck // which a machine may not have
	const listening = 10
	wanted := map[string]bool{}
	for _, socket := range append(sockets, sockets6...) {
		if socket.St == listening && int(socket.LocalPort) == port { //nolint:gosec // a port
			wanted[fmt.Sprintf("socket:[%d]", socket.Inode)] = true
		}
	}
	all, err := fs.AllProcs()
	if err != nil {
		return Process{}, err
	}
	for _, p := range all {
		targets, _ := p.FileDescriptorTargets() // not those of other users
		for _, target := range targets {
			if wanted[target] {
				return topmost(p), nil
			}
		}
	}
	return Process{}, fmt.Errorf("no process that may be seen listens on port %d", port)
}

// topmost returns the parent for as long as it is the same program: its children have inherited the socket.
func topmost(p procfs.Proc) Process {
	for {
		stat, err := p.Stat()
		if err != nil {
			return Process{p.PID}
		}
		parent, err := procfs.NewProc(stat.PPID)
		if err != nil {
			return Process{p.PID}
		}
		if of, err := parent.Stat(); err != nil || of.Comm != stat.Comm {
			return Process{p.PID}
		}
		p = parent
	}
}

// CPU returns the seconds of processor time that the process and those it has begun have used, also those that have ended.
func (p Process) CPU() (float64, error) {
	proc, err := procfs.NewProc(p.pid)
	if err != nil {
		return 0, err
	}
	stat, err := proc.Stat()
	if err != nil {
		return 0, err
	}
	const ticksPerSecond = 100 // USER_HZ, the same on all of Linux
	ticks := float64(stat.UTime+stat.STime) + float64(stat.CUTime+stat.CSTime)
	all, err := procfs.AllProcs()
	if err != nil {
		return 0, err
	}
	for _, child := range all {
		if stat, err := child.Stat(); err == nil && stat.PPID == p.pid { // some end meanwhile
			ticks += float64(stat.UTime + stat.STime)
		}
	}
	return ticks / ticksPerSecond, nil
}

// ResetPeak forgets the peak of memory so far; see proc(5). Without the right to it, a later Peak is too high.
func (p Process) ResetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid), []byte("5"), 0)
}

// Peak returns the most memory that the process has had resident, in megabytes.
func (p Process) Peak() (float64, error) {
	proc, err := procfs.NewProc(p.pid)
	if err != nil {
		return 0, err
	}
	status, err := proc.NewStatus()
	return float64(status.VmHWM) / (1 << 20), err
}
