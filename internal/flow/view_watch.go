package flow

import (
	"maps"
	"net/netip"
	"time"

	"bpfnet/internal/sample"
)

// Watch makes documents of samples.
type Watch struct {
	View
	grouping grouping
	ends     ends
	kernel   kernel

	now        *Sample
	elapsed    time.Duration // since the sample before; 0: there is none
	generation uint32        // number of the sample
	index      map[ID]int32  // of states
	states     []state
	free       []int32 // of states
	order      []int32 // states of the rows of the sample before: most are where they were

	flows     []news         // those with some, unless they are grouped
	groups    map[key]*entry // of all that there is and was
	total     entry
	processes map[process]*program

	local, peer party // of the row that is looked at
	masked      entry
}

// news are what a flow has had since the sample before.
type news struct {
	row          *Row
	name         string // of the peer
	moved, grown Counters
}

// state is what the last sample with a row had of it.
type state struct {
	id     ID
	seen   uint32 // the last generation that has it; 0: the state is free
	word   string
	name   string // of the peer; it is called so for good
	moved  Counters
	groups [2]*entry // it was counted for last; nil: none
	mate   *party    // at the other end, which is on this machine
	both   bool      // ends are counted, so what this one receives is what that one transmits
	socket *count    // nil: the kernel doesn't say what it has moved
}

type process struct {
	pid   uint32
	start uint64
}

// program is what a process runs, remembered when it has ended.
type program struct {
	path string
	seen uint32
}

// Bounds of what is remembered that is not in the samples any more.
const (
	mostGroups    = 1 << 16
	mostProcesses = 1 << 16
)

// NewWatch returns a Watch for one goroutine. The view has to pass Check.
func NewWatch(v View) *Watch {
	g, _ := newGrouping(v.By)
	return &Watch{View: v, grouping: g, index: map[ID]int32{}, groups: map[key]*entry{}, processes: map[process]*program{}, kernel: kernel{sockets: map[connection]*count{}}}
}

// Take adds a sample, each after the one before. It is read until the next one is taken.
func (w *Watch) Take(s Sample) {
	w.elapsed = 0
	if w.now != nil {
		w.elapsed = max(1, s.Time.Sub(w.now.Time))
	}
	w.now = &s
	w.generation++
	w.begin()
	// A socket may have been closed and used again.
	for _, closed := range []bool{true, false} {
		for i := range s.Rows {
			if r := &s.Rows[i]; (r.Closed != nil) == closed {
				w.see(r, i)
			}
		}
	}
	w.sweep()
}

func (w *Watch) begin() {
	if w.grouping.directed {
		w.ends.look(w.now.Rows)
	}
	w.kernel.begin()
	if n := len(w.now.Rows); w.generation == 1 {
		w.index, w.states, w.order = make(map[ID]int32, n), make([]state, 0, n), make([]int32, 0, n)
		w.flows, w.kernel.sockets = make([]news, 0, n), make(map[connection]*count, n)
	} else if w.flows = w.flows[:0]; w.generation == 2 {
		w.flows = nil // from now on there are few
	}
	w.total.rest()
	for _, g := range w.groups {
		g.rest()
	}
}

// rest makes an entry one that the sample has nothing of yet.
func (e *entry) rest() { e.flows, e.grown, e.news, e.name = 0, Counters{}, false, "" }

// see adds a row, the n-th of the sample. One that is there twice, as walks over changing
// tables have them, counts once.
func (w *Watch) see(r *Row, n int) {
	if !w.all && !r.Peer.IsValid() && r.Counters == (Counters{}) {
		return // a socket that listens, or waits
	}
	s, fresh := w.state(r, n)
	if s.seen == w.generation {
		return
	}
	s.seen = w.generation
	grown, word := r.since(s.moved), sample.Value(r.TCP).State
	changed := fresh || grown != Counters{} || word != s.word || r.Closed != nil
	s.moved.add(grown)
	s.word = word
	w.kernel.count(r, s, grown)
	if w.fits(r) {
		w.call(r, s, changed)
		w.total.count(grown, r.Status, changed)
		switch {
		case len(w.By) > 0:
			w.fold(r, s, grown, changed)
		case changed:
			w.flows = append(w.flows, news{r, s.name, s.moved, grown})
			if r.PID != 0 {
				w.executable(process{r.PID, r.Start}) // while it runs
			}
		}
	}
	if r.Closed != nil {
		w.forget(w.index[s.id])
	}
}

// call finds the name that a row knew its peer by when it began, or counting did.
func (w *Watch) call(r *Row, s *state, news bool) {
	if w.Name == nil || s.name != "" || !news || !r.Peer.IsValid() {
		return
	}
	began := r.Opened
	if began.IsZero() {
		began = w.now.Since
	}
	s.name = w.Name(r.Local.Addr(), r.Peer.Addr(), w.now.Time.Sub(began))
}

// state returns what samples before had of the n-th row, and whether they had nothing.
func (w *Watch) state(r *Row, n int) (*state, bool) {
	if n < len(w.order) {
		if s := &w.states[w.order[n]]; s.seen != 0 && s.id.Cookie == r.Cookie && s.id == r.ID() {
			return s, false
		}
	}
	id := r.ID()
	at, known := w.index[id]
	if !known {
		if n := len(w.free); n > 0 {
			at, w.free = w.free[n-1], w.free[:n-1]
		} else {
			at, w.states = int32(len(w.states)), append(w.states, state{})
		}
		w.index[id] = at
		w.states[at] = state{id: id}
	}
	for len(w.order) <= n {
		w.order = append(w.order, at)
	}
	w.order[n] = at
	return &w.states[at], !known
}

func (w *Watch) forget(at int32) {
	delete(w.index, w.states[at].id)
	w.states[at] = state{}
	w.free = append(w.free, at)
}

// sweep forgets what samples don't have any more. A walk over a table that changes may
// miss a row once.
func (w *Watch) sweep() {
	for i := range w.states {
		if s := &w.states[i]; s.seen != 0 && w.generation-s.seen > 1 {
			w.forget(int32(i))
		}
	}
	w.kernel.sweep()
	if len(w.groups) > mostGroups {
		maps.DeleteFunc(w.groups, func(_ key, g *entry) bool { return g.flows == 0 })
	}
	if len(w.processes) > mostProcesses {
		maps.DeleteFunc(w.processes, func(_ process, p *program) bool { return p.seen != w.generation })
	}
}

// fold counts a row for its group, or for the one of each direction. Of what is moved
// between two flows of this machine, what they transmit counts.
func (w *Watch) fold(r *Row, s *state, grown Counters, news bool) {
	if !w.grouping.directed {
		if g := s.groups[0]; news || g == nil {
			w.local, w.peer = w.localParty(r), party{address: r.Peer.Addr(), port: r.Peer.Port()}
			s.groups[0] = w.group(&w.local, &w.peer, r)
			if g != nil && g != s.groups[0] {
				g.news = true // it has one less
			}
		}
		s.groups[0].count(grown, r.Status, news)
		if w.grouping.named {
			s.groups[0].called(s.name)
		}
		return
	}
	if news {
		w.local, w.peer = w.localParty(r), w.peerParty(r, s)
		if r.TransmitBytes > 0 {
			s.groups[0] = w.group(&w.local, &w.peer, r)
		}
		if r.ReceiveBytes > 0 && !s.both {
			s.groups[1] = w.group(&w.peer, &w.local, r)
		}
	}
	if g := s.groups[0]; g != nil {
		g.count(Counters{TransmitBytes: grown.TransmitBytes}, r.Status, grown.TransmitBytes > 0)
	}
	if g := s.groups[1]; g != nil && !s.both {
		g.count(Counters{TransmitBytes: grown.ReceiveBytes}, r.Status, grown.ReceiveBytes > 0)
	}
}

// group finds the group of a row, and gives it the names that there are now.
func (w *Watch) group(local, peer *party, r *Row) *entry {
	w.grouping.mask(&w.masked, local, peer, r)
	k := w.masked.key()
	g := w.groups[k]
	if g == nil {
		g = &entry{transport: k.transport, state: k.state}
		w.groups[k] = g
	}
	g.local, g.peer = w.masked.local, w.masked.peer
	return g
}

func (w *Watch) localParty(r *Row) party {
	p := party{
		address: r.Local.Addr(), port: r.Local.Port(), netns: r.NetNS,
		pid: r.PID, start: r.Start, command: r.Command, uid: r.UID, isUser: r.PID != 0,
	}
	if r.PID != 0 {
		p.executable = w.executable(process{r.PID, r.Start})
	}
	if w.Owner != nil && r.Cgroup != 0 {
		if owner, ok := w.Owner(r.Cgroup); ok {
			p.own(owner)
		}
	}
	return p
}

func (w *Watch) executable(of process) string {
	p := w.processes[of]
	if p == nil {
		p = &program{}
		if w.Executable != nil {
			p.path = w.Executable(of.pid, of.start)
		}
		w.processes[of] = p
	}
	p.seen = w.generation
	return p.path
}

// peerParty is who is at the other end: on this machine by its own flow, else by the
// address.
func (w *Watch) peerParty(r *Row, s *state) party {
	if other := w.ends.other(r, w.isHere); other != nil {
		mate := w.localParty(other)
		s.mate, s.both = &mate, w.fits(other)
	}
	if s.mate != nil {
		return *s.mate
	}
	to := r.target()
	p := party{address: to.Addr(), port: to.Port()}
	if w.OwnerAt != nil {
		if owner, ok := w.OwnerAt(to.Addr()); ok {
			p.own(owner)
		}
	}
	return p
}

func (w *Watch) isHere(address netip.Addr) bool {
	if address.IsLoopback() || w.OwnerAt == nil {
		return address.IsLoopback()
	}
	_, ok := w.OwnerAt(address)
	return ok
}
