package sockets

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/netns"
)

// query is a packet as its socket has it.
type query struct {
	ends
	packet   int  // its number
	received bool // by the socket, not sent
	fresh    bool
	cgroup   uint64 // of the socket; 0: not known
}

// place is where the socket of a packet may be: in a network namespace, at the
// interface of an index.
type place struct {
	netns uint64
	index uint32
	turns bool // what enters the interface has been sent there
}

// ask finds the sockets of packets, before anything else: they may be gone soon.
func (l *look) ask(numbers []int) {
	var order []uint64
	queries := map[uint64][]query{}
	for _, i := range numbers {
		p := l.packets[i]
		if p.Socket.Inode != 0 {
			l.found[i] = []Socket{{NetNS: p.Socket.NetNS, Inode: p.Socket.Inode}}
			continue
		}
		places, err := l.places(p)
		l.found[i], l.failed[i] = nil, err
		for _, at := range places {
			if queries[at.netns] == nil {
				order = append(order, at.netns)
			}
			queries[at.netns] = append(queries[at.netns], at.query(i, p))
		}
	}
	for _, inode := range order {
		if err := l.askIn(inode, queries[inode]); err != nil {
			for _, q := range queries[inode] {
				l.failed[q.packet] = err
			}
		}
	}
}

func (at place) query(number int, p Packet) query {
	q := query{ends{p.Protocol, p.Source, p.Destination, at.index}, number, p.Ingress != at.turns, time.Since(p.Time) < fresh, p.CgroupID}
	if q.received {
		q.local, q.remote = p.Destination, p.Source
	}
	return q
}

// places says where the socket of a packet may be. Of an interface with its other end
// in another namespace it is there.
func (l *look) places(p Packet) ([]place, error) {
	if p.Socket.NetNS != 0 {
		return []place{{p.Socket.NetNS, p.IfIndex, false}}, nil
	}
	if p.AtCgroup {
		return l.placesOf(p)
	}
	if p.NetNS != 0 && p.NetNS != l.networks.Host {
		return []place{{p.NetNS, p.IfIndex, false}}, nil
	}
	at, ok := l.behind(p.IfIndex)
	if !ok {
		if err := l.reread(); err != nil {
			return nil, err
		}
		at, ok = l.behind(p.IfIndex)
	}
	if !ok {
		return nil, nil
	}
	return []place{at}, nil
}

// behind is where the sockets of an interface of the host's are, false if that isn't
// known.
func (l *look) behind(index uint32) (place, bool) {
	if inner, ok := l.networks.Behind[index]; ok {
		return place{inner.NetNS, inner.IfIndex, true}, true
	}
	return place{l.networks.Host, index, false}, l.networks.Own[index]
}

// reread looks behind interfaces anew.
func (l *look) reread() error {
	if time.Since(l.read) < relook {
		return errLate
	}
	networks, err := endpoint.ReadNetworks(l.path)
	l.read = time.Now()
	if err == nil {
		l.networks = networks
	}
	return err
}

// placesOf says where the processes of the packet's cgroup are.
func (l *look) placesOf(p Packet) (places []place, err error) {
	pids, err := endpoint.InCgroup(p.CgroupID)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) { // it is gone
		return nil, nil
	}
	for _, pid := range pids {
		if l.late() {
			return nil, errLate
		}
		inode, err := endpoint.NetNSOf(pid)
		at := place{inode, p.IfIndex, false}
		if err == nil && inode != 0 && !slices.Contains(places, at) {
			places = append(places, at)
		}
	}
	return places, err
}

// askIn asks for sockets in a network namespace.
func (l *look) askIn(inode uint64, queries []query) error {
	path := l.path
	if inode != l.networks.Host {
		file, err := l.open(inode)
		if file == nil {
			return err
		}
		defer file.Close()
		path = fmt.Sprintf("/proc/self/fd/%d", file.Fd())
	}
	local := map[netip.Addr]bool{}
	return netns.Do(path, func() error {
		for _, q := range queries {
			if l.late() {
				l.failed[q.packet] = errLate
				continue
			}
			s, ok, err := q.socket(local)
			if err != nil {
				l.failed[q.packet] = fmt.Errorf("ask for sockets: %w", err)
			}
			if ok {
				s.NetNS = inode
				l.found[q.packet] = append(l.found[q.packet], s)
			}
		}
		return nil
	})
}

// open opens a network namespace, nil if no process is in it.
func (l *look) open(inode uint64) (*os.File, error) {
	file, err := endpoint.OpenNetNS(inode, l.census.known(inode))
	if file != nil || err != nil {
		return file, err
	}
	pids, closed, err := l.census.in(inode, l.until)
	if len(pids) == 0 {
		return nil, cmp.Or(err, closed)
	}
	return endpoint.OpenNetNS(inode, pids)
}

// socket finds the one socket that has sent a packet, or would get it. local has the
// answers of isLocal.
func (q query) socket(local map[netip.Addr]bool) (s Socket, ok bool, err error) {
	here, asked := local[q.local.Addr()]
	if !asked {
		if here, err = isLocal(q.ends); err != nil {
			return s, false, err
		}
		local[q.local.Addr()] = here
	}
	if !here {
		return s, false, nil
	}
	if q.protocol == unix.IPPROTO_UDP && !q.received {
		s, ok, err = q.only(AllStates) // who sends may have the port of others
	} else {
		s, ok, err = find(q.ends)
	}
	if ok && q.protocol == unix.IPPROTO_TCP && s.Inode == 0 {
		if s.State != SynReceived && s.State != Established && s.State != CloseWait {
			return s, false, nil // closed by its process
		}
		s, ok, err = q.only(1 << Listen) // which hasn't accepted it yet
	} else if ok && s.Remote.Port() == 0 && (!q.fresh || q.protocol == unix.IPPROTO_TCP && !q.received) {
		return s, false, nil // a listener sends nothing: its connection is gone
	}
	return s, ok && s.isOf(q.cgroup), err
}

// only finds the socket with the packet's local port that fits it, if there is just
// one.
func (q query) only(states uint32) (s Socket, ok bool, err error) {
	found, whole, err := list(q.ends, states)
	found = slices.DeleteFunc(found, func(s Socket) bool { return !s.isOf(q.cgroup) })
	if !whole || len(found) != 1 {
		return s, false, err
	}
	return found[0], true, nil
}

// isOf says whether the socket is a cgroup's, as far as that is known. 1 is the root's,
// which those of the kernel have, too.
func (s Socket) isOf(cgroup uint64) bool { return s.Cgroup == 0 || cgroup <= 1 || s.Cgroup == cgroup }
