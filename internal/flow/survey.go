package flow

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/sockets"
)

// query is what sockets are listed.
type query struct {
	protocol uint8
	states   uint32 // bits
}

// survey is a look at the sockets of all network namespaces that processes are in, or that
// have a name.
type survey struct {
	pids    []int          // all processes, sorted
	seen    int            // namespaces
	skipped int            // namespaces that this user may not enter
	hidden  int            // processes that this user may not look into
	missing map[uint8]bool // protocols of which the kernel lists no sockets
	partial bool           // some sockets may be missing
}

// takeSurvey calls fn with the sockets of all network namespaces, one namespace after the
// other.
func takeSurvey(ctx context.Context, queries []query, fn func(sockets.Socket)) (*survey, error) {
	pids, err := endpoint.PIDs()
	if err != nil {
		return nil, err
	}
	s := &survey{pids: pids, missing: map[uint8]bool{}}
	places, named := map[uint64][]int{}, map[uint64]string{}
	var order []uint64
	for _, pid := range append(slices.Clip(pids), unix.Gettid()) { // the thread may be in another one than its process
		inode, err := endpoint.NetNSOf(pid)
		switch {
		case errors.Is(err, fault.ErrPermission):
			s.hidden++
			continue
		case err != nil:
			return nil, err
		case inode == 0: // it has ended
			continue
		}
		if places[inode] == nil {
			order = append(order, inode)
		}
		places[inode] = append(places[inode], pid)
	}
	for _, path := range netns.Named() {
		if inode, err := netns.Inode(path); err == nil && places[inode] == nil && named[inode] == "" {
			order, named[inode] = append(order, inode), path
		}
	}
	for _, inode := range order {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		look := func() error { return s.each(inode, queries, fn) }
		var err error
		if path := named[inode]; path != "" {
			err = enterNamed(inode, path, look)
		} else {
			err = enter(inode, places[inode], look)
		}
		switch {
		case errors.Is(err, fault.ErrPermission):
			s.skipped++
		case errors.Is(err, errGone):
		case err != nil:
			return nil, err
		default:
			s.seen++
		}
	}
	return s, nil
}

// errGone is the error of a network namespace that no process is in any more, or that has
// lost its name.
var errGone = errors.New("it is gone")

// enter runs fn in a network namespace that processes are in: ErrPermission if this user
// may not, errGone if they have left it.
func enter(inode uint64, pids []int, fn func() error) error {
	file, err := endpoint.OpenNetNS(inode, pids)
	if err != nil {
		return err
	}
	if file == nil {
		if slices.ContainsFunc(pids, func(pid int) bool { now, err := endpoint.NetNSOf(pid); return err != nil || now == inode }) {
			return fault.New(fault.ErrPermission, "open network namespace %d", inode)
		}
		return errGone
	}
	defer file.Close()
	return netns.Do(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), fn)
}

// enterNamed does so in one that has a name.
func enterNamed(inode uint64, path string, fn func() error) error {
	err := netns.Do(path, func() error {
		if now, err := netns.Inode(""); err != nil || now != inode {
			return errGone
		}
		return fn()
	})
	if now, gone := netns.Inode(path); err != nil && (gone != nil || now != inode) {
		return errGone
	}
	return err
}

// each lists the sockets of the network namespace that the thread is in.
func (s *survey) each(inode uint64, queries []query, fn func(sockets.Socket)) error {
	for _, q := range queries {
		whole, err := sockets.Each(q.protocol, q.states, func(one sockets.Socket) {
			one.NetNS = inode
			fn(one)
		})
		if errors.Is(err, unix.ENOENT) {
			s.missing[q.protocol] = true
			continue
		}
		if err != nil {
			return err
		}
		s.partial = s.partial || !whole
	}
	return nil
}

// notes say what the survey doesn't have.
func (s *survey) notes() (notes []string) {
	if s.skipped > 0 {
		notes = append(notes, fmt.Sprintf("sockets are missing of network namespaces that this user may not enter: %d", s.skipped))
	}
	if s.hidden > 0 {
		notes = append(notes, fmt.Sprintf("processes that this user may not look into, whose sockets are nobody's, or missing: %d", s.hidden))
	}
	return notes
}
