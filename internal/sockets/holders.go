package sockets

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/endpoint"
)

// holding is who had a socket open, sorted, and when.
type holding struct {
	pids       []int
	descriptor string // number that the first one has for it
	at         time.Time
}

// name finds the processes that have the sockets of packets open. It returns those
// of which nobody has.
func (l *look) name(numbers []int, processes []*Process) (left []int) {
	maps.DeleteFunc(l.holdings, func(_ identity, h *holding) bool { return time.Since(h.at) >= remembered })
	missing := map[uint64][]identity{} // of a namespace
	for _, i := range numbers {
		if id, ok := only(l.found[i]); ok && !l.remembers(id) && !slices.Contains(missing[id.netns], id) {
			missing[id.netns] = append(missing[id.netns], id)
		}
	}
	failed := map[uint64]error{}
	for inode, ids := range missing {
		failed[inode] = l.findHolders(inode, ids)
	}
	for _, i := range numbers {
		id, ok := only(l.found[i])
		if !ok {
			continue
		}
		if h := l.holdings[id]; h != nil {
			if processes[i] = l.process(id, h, l.packets[i].Time); processes[i] != nil {
				processes[i].Port = l.found[i][0].Local.Port()
			}
			continue
		}
		if l.failed[i] = failed[id.netns]; !errors.Is(l.failed[i], errLate) {
			left = append(left, i)
		}
	}
	return left
}

// only is the socket of a packet, if it is one that a process may have.
func only(found []Socket) (identity, bool) {
	if len(found) != 1 || found[0].Inode == 0 {
		return identity{}, false
	}
	return found[0].id(), true
}

// remembers says whether it is known who has a socket open, and is still right.
func (l *look) remembers(id identity) bool {
	h := l.holdings[id]
	if h == nil {
		return false
	}
	dir, err := endpoint.OpenProcess(h.pids[0])
	if err != nil {
		return false
	}
	defer dir.Close()
	return h.leads(dir, id)
}

// leads says whether the first process has the socket open as it had.
func (h *holding) leads(dir endpoint.ProcessDir, id identity) bool {
	target, err := dir.Link("fd/" + h.descriptor)
	return err == nil && target == id.String()
}

// String is the socket as descriptors of it are links to.
func (id identity) String() string { return fmt.Sprintf("socket:[%d]", id.inode) }

// findHolders finds the processes in a network namespace that have sockets open. It
// looks at all of them, or remembers nothing.
func (l *look) findHolders(inode uint64, ids []identity) error {
	holders := map[uint32]*holding{}
	for _, id := range ids {
		holders[id.inode] = &holding{at: time.Now()}
	}
	pids, closed, err := l.census.in(inode, l.until)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if l.late() {
			return errLate
		}
		if err := addHolder(holders, pid); err != nil {
			closed = fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	for _, id := range ids {
		if h := holders[id.inode]; len(h.pids) > 0 {
			l.holdings[id] = h
		}
	}
	return closed // of those that weren't found
}

// addHolder adds a process to the sockets that it has open.
func addHolder(holders map[uint32]*holding, pid int) error {
	dir, err := endpoint.OpenProcess(pid)
	if err != nil {
		return nil // it has ended
	}
	defer dir.Close()
	return Descriptors(dir, func(number string, inode uint32) {
		h := holders[inode]
		if h == nil || slices.Contains(h.pids, pid) {
			return
		}
		if len(h.pids) == 0 {
			h.descriptor = number
		}
		h.pids = append(h.pids, pid)
	})
}

// Descriptors calls fn with the number of each descriptor of a process that is one of a
// socket, and the socket's inode.
func Descriptors(dir endpoint.ProcessDir, fn func(number string, inode uint32)) error {
	return dir.Descriptors(func(number, target string) {
		text, isSocket := strings.CutPrefix(target, "socket:[")
		if !isSocket {
			return
		}
		if inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 32); err == nil {
			fn(number, uint32(inode))
		}
	})
}

// tick is the unit of the times at which processes started.
const tick = 10 * time.Millisecond

// process describes the first one that has a socket open: nil if it hasn't any more,
// or began after the packet was sent. It is read twice, so that it isn't another one
// with its pid.
func (l *look) process(id identity, h *holding, sent time.Time) *Process {
	dir, err := endpoint.OpenProcess(h.pids[0])
	if err != nil {
		return nil
	}
	defer dir.Close()
	first, alive := dir.Process(h.pids[0], l.boot)
	if !alive || !h.leads(dir, id) {
		return nil
	}
	again, alive := dir.Process(h.pids[0], l.boot)
	var clock unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &clock); err != nil || !alive || !again.Start.Equal(first.Start) {
		return nil
	}
	booted := time.Now().Add(-time.Duration(clock.Nano())) // exact, unlike l.boot
	if first.Start.Sub(l.boot) > sent.Sub(booted)+tick {
		return nil
	}
	return &Process{Process: again, Owners: len(h.pids)}
}
