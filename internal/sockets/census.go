package sockets

import (
	"errors"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
)

// census is which network namespaces processes are in. Where there are thousands, to
// ask for each takes longer than a packet may wait; but those that have been in theirs
// for long stay there.
type census map[int]*resident

// resident is a process, and when it was seen first and read last.
type resident struct {
	netns       uint64 // inode
	closed      error  // why it may not be looked into
	first, read time.Time
}

// longestTrust is for how long at most it isn't read again where a process is.
const longestTrust = 10 * time.Second

// in lists the processes in a network namespace, and why another one, which may be in
// it, can't be looked into. errLate after some time; what was read is kept.
func (c census) in(inode uint64, until time.Time) (pids []int, closed, err error) {
	all, err := endpoint.PIDs()
	if err != nil {
		return nil, nil, err
	}
	c.forget(all)
	for _, pid := range all {
		now := time.Now()
		if now.After(until) {
			return nil, nil, errLate
		}
		r, err := c.where(pid, now)
		switch {
		case err != nil:
			return nil, nil, err
		case r.closed != nil:
			closed = r.closed
		case r.netns == inode:
			pids = append(pids, pid)
		}
	}
	return pids, closed, nil
}

// known lists some that were in a network namespace when they were read.
func (c census) known(inode uint64) (pids []int) {
	for pid, r := range c {
		if r.netns == inode {
			pids = append(pids, pid)
		}
	}
	return pids
}

// where is where a process is now.
func (c census) where(pid int, now time.Time) (*resident, error) {
	r := c[pid]
	if r == nil {
		r = &resident{first: now}
		c[pid] = r
	}
	if now.Sub(r.read) < min(max(remembered, r.read.Sub(r.first)), longestTrust) {
		return r, nil
	}
	netns, err := endpoint.NetNSOf(pid)
	if err != nil && !errors.Is(err, fault.ErrPermission) {
		return nil, err
	}
	r.netns, r.closed, r.read = netns, err, now
	return r, nil
}

// forget forgets who isn't among these, sorted.
func (c census) forget(pids []int) {
	if len(c) <= len(pids) {
		return
	}
	there := make(map[int]bool, len(pids))
	for _, pid := range pids {
		there[pid] = true
	}
	for pid := range c {
		if !there[pid] {
			delete(c, pid)
		}
	}
}
