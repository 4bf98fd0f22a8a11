// Package measure has what scenarios look at: processes, topics, times.
package measure

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/prometheus/procfs"
)

// Process is a process of this machine with those that it has begun: a server with a process for each connection is one.
type Process struct{ pid int }

// NewProcess returns the process of a pid.
func NewProcess(pid int) Process { return Process{pid} }

// ServerAt returns the process that listens on a port of a host, which has to be an address of the loopback: whoever has
// that port here says nothing of another machine's.
func ServerAt(host string, port int) (Process, error) {
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return Process{}, fmt.Errorf("its CPU is unknown: %s is not known to be this machine", host)
	}
	return listenerOn(port)
}

// servers are the names of the programs that a server's port may be of: PostgreSQL and what runs Kafka. A container's port
// is a proxy's, and a tunnel's ssh's; their processor time is not that of the server.
var servers = []string{"postgres", "java"}

// listenerOn returns the server that listens on a TCP port of this machine's loopback, if its owner may be seen.
func listenerOn(port int) (Process, error) {
	listening, err := listeners(port)
	if err != nil {
		return Process{}, err
	}
	all, err := procfs.AllProcs()
	if err != nil {
		return Process{}, err
	}
	for _, p := range all {
		targets, _ := p.FileDescriptorTargets() // not those of other users
		if !slices.ContainsFunc(targets, func(target string) bool { return listening[target] }) {
			continue
		}
		name, err := p.Comm()
		if err != nil {
			return Process{}, err
		}
		if !slices.Contains(servers, name) {
			return Process{}, fmt.Errorf("its CPU is unknown: what listens on port %d is %s (pid %d), none of %v", port, name, p.PID, servers)
		}
		return topmost(p), nil
	}
	return Process{}, fmt.Errorf("its CPU is unknown: no process that may be seen listens on port %d", port)
}

// listeners returns the sockets of this machine that listen on a port of the loopback, by the names that the files of a
// process have for them.
func listeners(port int) (map[string]bool, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return nil, err
	}
	sockets, err := fs.NetTCP() //nolint:staticcheck // netlink is more than this takes
	if err != nil {
		return nil, err
	}
	sockets6, _ := fs.NetTCP6() //nolint:staticcheck // which a machine may not have
	const listening = 10
	names := map[string]bool{}
	for _, socket := range append(sockets, sockets6...) {
		here := socket.LocalAddr.IsUnspecified() || socket.LocalAddr.IsLoopback()
		if here && socket.St == listening && int(socket.LocalPort) == port { //nolint:gosec // a port
			names[fmt.Sprintf("socket:[%d]", socket.Inode)] = true
		}
	}
	return names, nil
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

// megabyte is what memory is told in.
const megabyte = 1e6

// Peak returns the most memory that the process has had resident, in megabytes.
func (p Process) Peak() (float64, error) {
	status, err := p.status()
	return float64(status.VmHWM) / megabyte, err
}

// Resident returns the memory that the process has resident now, in megabytes.
func (p Process) Resident() (float64, error) {
	status, err := p.status()
	return float64(status.VmRSS) / megabyte, err
}

func (p Process) status() (procfs.ProcStatus, error) {
	proc, err := procfs.NewProc(p.pid)
	if err != nil {
		return procfs.ProcStatus{}, err
	}
	status, err := proc.NewStatus()
	if err == nil && status.VmRSS == 0 { // as of one that has ended and that nobody has waited for
		err = errors.New("it has no memory")
	}
	if err != nil {
		return procfs.ProcStatus{}, fmt.Errorf("the memory of process %d: %w", p.pid, err)
	}
	return status, nil
}
