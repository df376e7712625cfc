package flow

import "net/netip"

// ends finds the other ends of flows, where both are on this machine.
type ends struct {
	rows   []*Row
	first  map[ports]int32 // of the rows that have them
	next   []int32         // row with the same ports; 0: none
	closed []*Row          // of samples before, the newest last
}

type ports struct{ local, peer uint16 }

// mostClosed bounds the closed flows whose other ends are still found.
const mostClosed = 4096

// target is whom packets go to in the end.
func (r *Row) target() netip.AddrPort {
	if r.NAT.IsValid() {
		return r.NAT
	}
	return r.Peer
}

// look takes the rows of a sample.
func (e *ends) look(rows []Row) {
	clear(e.first)
	if e.first == nil {
		e.first = map[ports]int32{}
	}
	e.rows, e.next = append(e.rows[:0], nil), append(e.next[:0], 0)
	for _, r := range e.closed {
		e.add(r)
	}
	for i := range rows {
		r := &rows[i]
		e.add(r)
		if r.Closed != nil {
			kept := *r // and not the whole sample
			e.closed = append(e.closed, &kept)
		}
	}
	e.closed = e.closed[max(0, len(e.closed)-mostClosed):]
}

func (e *ends) add(r *Row) {
	at := ports{r.Local.Port(), r.target().Port()}
	if at.local == 0 || at.peer == 0 {
		return
	}
	e.rows, e.next = append(e.rows, r), append(e.next, e.first[at])
	e.first[at] = int32(len(e.rows) - 1)
}

// other finds the flow at the other end; nil: it isn't known. isHere says whether an
// address is one of this machine.
func (e *ends) other(r *Row, isHere func(netip.Addr) bool) *Row {
	for i := e.first[ports{r.target().Port(), r.Local.Port()}]; i != 0; i = e.next[i] {
		if other := e.rows[i]; facing(r, other, isHere) {
			return other
		}
	}
	return nil
}

// facing says whether two flows with each other's ports are the ends of one. A socket
// that isn't bound to an address may have any; if neither is, both peers have to be on
// this machine.
func facing(a, b *Row, isHere func(netip.Addr) bool) bool {
	to, from := a.target().Addr(), b.target().Addr()
	open := 0
	for _, pair := range [][2]netip.Addr{{to, b.Local.Addr()}, {from, a.Local.Addr()}} {
		switch {
		case pair[0] == pair[1]:
		case pair[1].IsUnspecified():
			open++
		default:
			return false
		}
	}
	return a.Transport == b.Transport && (a.NetNS == b.NetNS || !to.IsLoopback()) && (open < 2 || isHere(to) && isHere(from))
}
