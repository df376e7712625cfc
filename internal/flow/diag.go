package flow

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/sockets"
)

// diagProtocol is a protocol and the transports that its sockets may be of.
type diagProtocol struct {
	number uint8
	words  []string
}

// diagProtocols are what sock_diag, and /proc of ping and raw, list sockets of.
var diagProtocols = []diagProtocol{
	{unix.IPPROTO_TCP, []string{"tcp"}},
	{unix.IPPROTO_UDP, []string{"udp"}},
	{unix.IPPROTO_UDPLITE, []string{"udplite"}},
	{unix.IPPROTO_ICMP, []string{"icmp"}},
	{unix.IPPROTO_RAW, []string{"raw", "icmp"}},
}

// moving are the states of TCP in which a socket has moved something.
const moving = sockets.AllStates &^ (1<<sockets.Listen | 1<<sockets.TimeWait | 1<<sockets.NewSynRecv)

// diag is the Sampler that asks sock_diag again and again.
type diag struct {
	filter   Filter
	full     bool // of TCP also what has no socket
	queries  []query
	since    time.Time
	accounts map[uint64]*account // by the socket's cookie
	order    []*account          // the same, as they were found
	surveys  uint32
	next     int        // the place in order that a survey has come to: most sockets are where they were
	pending  []*account // those in the survey of which it isn't known whose they are
	rows     []Row      // of the last sample
	owners   owners
	below    map[uint64]bool // whether a cgroup is one of the filter's, or below it
	roots    []string        // directories of the filter's cgroups
	lost     uint64          // bytes of closed sockets that were nobody's
}

// OpenDiag returns a Sampler that needs no program: it asks the kernel for the sockets
// of all network namespaces that processes are in or that have a name, by sock_diag.
// Counting begins now. Of datagrams nothing is counted. The notes, for people, say what it
// can't see.
// ErrUnsupported where the kernel tells nothing of TCP, and of other transports than
// "tcp", "udp", "udplite", "icmp" and "raw".
func OpenDiag(filter Filter) (Sampler, []string, error) {
	if err := filter.check(); err != nil {
		return nil, nil, err
	}
	d, err := newDiag(filter, moving)
	if err != nil {
		return nil, nil, err
	}
	s, err := d.take(context.Background(), time.Time{})
	if err != nil {
		return nil, nil, err
	}
	for _, a := range d.order {
		a.begin(a.moved)
	}
	d.since = time.Now()
	return d, s.notes(), nil
}

// newDiag returns a diag of TCP sockets in some states, as bits, and all others.
// ErrUnsupported if the filter has other transports.
func newDiag(filter Filter, states uint32) (*diag, error) {
	d := &diag{filter: filter, accounts: map[uint64]*account{}, below: map[uint64]bool{}}
	for _, word := range filter.Transports {
		if !slices.ContainsFunc(diagProtocols, func(p diagProtocol) bool { return slices.Contains(p.words, word) }) {
			return nil, fault.New(fault.ErrUnsupported, "list sockets of %s: sock_diag doesn't tell them", word)
		}
	}
	for _, p := range diagProtocols {
		asked := slices.ContainsFunc(p.words, func(word string) bool { return slices.Contains(filter.Transports, word) })
		if len(filter.Transports) > 0 && !asked {
			continue
		}
		q := query{p.number, sockets.AllStates}
		if p.number == unix.IPPROTO_TCP {
			q.states = states
		}
		d.queries = append(d.queries, q)
	}
	for _, id := range filter.Cgroups {
		dir, err := endpoint.CgroupDir(id)
		if err != nil {
			return nil, fmt.Errorf("find cgroup %d: %w", id, err)
		}
		d.roots = append(d.roots, dir)
	}
	return d, nil
}

// Close implements Sampler.
func (d *diag) Close() error { return nil }

// Sample implements Sampler.
func (d *diag) Sample(ctx context.Context) (Sample, error) {
	now := time.Now()
	s, err := d.take(ctx, now)
	if err != nil {
		return Sample{}, err
	}
	sample := Sample{Time: now, Since: d.since, Backend: Backend{TCPTransmit: Polling, TCPReceive: Polling, Datagrams: "none", Store: Polling}}
	gone, err := d.gone(s)
	if err != nil {
		return Sample{}, err
	}
	sample.Loss.Unattributed = d.lost
	if need := len(d.order); cap(d.rows) < need {
		d.rows = make([]Row, 0, need+need/8)
	}
	before, rows := d.rows, d.rows[:0]
	for _, a := range d.order {
		var closed *time.Time
		if gone[a] {
			closed = &now
		} else if !a.asked {
			continue // whose it is will be known in the next sample
		}
		if !d.fits(a) {
			continue
		}
		nobodys := a.nobodys()
		sample.Loss.Unattributed += nobodys
		if closed != nil {
			d.lost += nobodys
		}
		switch n := len(rows); {
		case !d.isAsked(a):
		case closed == nil && n < len(before) && a.has(&before[n]):
			rows = before[:n+1]
		default:
			rows = a.rows(rows, closed)
			if cap(rows) != cap(before) {
				before = nil // they have moved
			}
		}
	}
	d.forget(gone)
	d.rows, sample.Rows = rows, rows
	return sample, nil
}

// forget forgets sockets.
func (d *diag) forget(gone map[*account]bool) {
	if len(gone) == 0 {
		return
	}
	d.order = slices.DeleteFunc(d.order, func(a *account) bool { return gone[a] })
	for i, a := range d.order {
		a.place = i
	}
	for a := range gone {
		delete(d.accounts, a.socket.Cookie)
	}
}

// take looks at all sockets, and whose they are.
func (d *diag) take(ctx context.Context, now time.Time) (*survey, error) {
	d.surveys++
	d.next, d.pending = 0, d.pending[:0]
	s, err := takeSurvey(ctx, d.queries, func(found sockets.Socket) {
		if found.Protocol == unix.IPPROTO_TCP && found.Info == nil && !d.full {
			return // closed, it waits for what is late
		}
		a := d.find(found.Cookie)
		if a == nil {
			a = newAccount(found, now)
			a.place = len(d.order)
			d.accounts[found.Cookie], d.order = a, append(d.order, a)
		}
		d.next = a.place + 1
		a.take(found, d.surveys)
		if !a.asked {
			d.pending = append(d.pending, a)
		}
	})
	if err != nil {
		return nil, err
	}
	if s.missing[unix.IPPROTO_TCP] {
		return nil, fault.New(fault.ErrUnsupported, "list sockets: the kernel has no sock_diag of TCP").Hint("modprobe tcp_diag")
	}
	d.attribute(s.pids)
	return s, nil
}

// find returns what is known of a socket; nil: nothing is.
func (d *diag) find(cookie uint64) *account {
	if d.next < len(d.order) && d.order[d.next].socket.Cookie == cookie {
		return d.order[d.next]
	}
	return d.accounts[cookie]
}

// isThere says whether a socket is in the last survey.
func (d *diag) isThere(a *account) bool { return a.seen == d.surveys }

// attribute finds whose sockets are.
func (d *diag) attribute(pids []int) {
	all, changed := d.owners.update(pids, func(known func(uint32) bool) bool {
		return slices.ContainsFunc(d.pending, func(a *account) bool { return a.socket.Inode != 0 && !known(a.socket.Inode) })
	})
	ask := d.pending
	if changed {
		ask = d.order
	}
	for _, a := range ask {
		if !d.isThere(a) {
			continue
		}
		holders := d.owners.by[a.socket.Inode]
		if len(holders) > 0 && (changed || !a.asked) {
			a.own(holders, d.filter.PIDs)
		}
		a.asked = a.asked || all || len(holders) > 0 || a.socket.Inode == 0
	}
}

// gone says which sockets aren't there any more. A list of the kernel's may leave out
// some while others come and go, so it is asked for each one of TCP.
func (d *diag) gone(s *survey) (map[*account]bool, error) {
	gone, ask := map[*account]bool{}, map[uint64][]*account{}
	for _, a := range d.order {
		switch {
		case d.isThere(a) || s.partial:
		case a.socket.Protocol == unix.IPPROTO_TCP:
			gone[a] = true
			ask[a.socket.NetNS] = append(ask[a.socket.NetNS], a)
		default:
			gone[a] = true
		}
	}
	for inode, accounts := range ask {
		err := enter(inode, s.pids, func() error {
			for _, a := range accounts {
				there, err := sockets.Exists(a.socket)
				if err != nil {
					return err
				}
				if there {
					delete(gone, a)
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errGone) && !errors.Is(err, fault.ErrPermission) {
			return nil, err
		}
	}
	return gone, nil
}

// fits says whether a socket is one of the filter's, whosever it is.
func (d *diag) fits(a *account) bool {
	f := d.filter
	has := func(port uint16) bool { return slices.Contains(f.Ports, port) }
	return (len(f.Transports) == 0 || slices.Contains(f.Transports, a.transport)) &&
		(len(f.Ports) == 0 || has(end(a.socket, a.socket.Local).Port()) || has(end(a.socket, a.socket.Remote).Port())) &&
		(len(f.Cgroups) == 0 || d.isBelow(a.socket.Cgroup))
}

// isAsked says whether a socket is one of the filter's processes'.
func (d *diag) isAsked(a *account) bool {
	return len(d.filter.PIDs) == 0 || slices.ContainsFunc(d.filter.PIDs, a.isOf)
}

// isBelow says whether a cgroup is one of the filter's, or below one.
func (d *diag) isBelow(id uint64) bool {
	below, known := d.below[id]
	if !known {
		dir, err := endpoint.CgroupDir(id)
		below = slices.Contains(d.filter.Cgroups, id) || err == nil && slices.ContainsFunc(d.roots, func(root string) bool { return strings.HasPrefix(dir, root+"/") })
		d.below[id] = below
	}
	return below
}

// end is an end of a socket in a row; raw ones have no ports.
func end(s sockets.Socket, a netip.AddrPort) netip.AddrPort {
	if s.Protocol == unix.IPPROTO_RAW {
		return netip.AddrPortFrom(a.Addr(), 0)
	}
	return a
}
