package detect

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// place is where an address was counted: the key of its counters.
type place struct {
	address  netip.Addr
	ifIndex  uint32
	cgroupID string
}

// identity tells endpoints apart.
type identity struct {
	kind Kind
	id   string // of Pods and containers
	place
}

func placeOf(who *traffic.Who) place {
	return place{who.Address, sample.Value(who.IfIndex), sample.Value(who.CgroupID)}
}

func identify(at place, who *traffic.Who) identity {
	switch {
	case who.PodUID != nil:
		return identity{kind: Pod, id: *who.PodUID}
	case who.ContainerID != nil:
		return identity{kind: Container, id: *who.ContainerID}
	}
	return identity{kind: Address, place: at}
}

func (i identity) compare(o identity) int {
	return cmp.Or(cmp.Compare(i.kind, o.kind), cmp.Compare(i.id, o.id), i.address.Compare(o.address),
		cmp.Compare(i.ifIndex, o.ifIndex), cmp.Compare(i.cgroupID, o.cgroupID))
}

// entry is what is known of a place.
type entry[S any] struct {
	counts       // of bursts
	seen   clock // when it was in a sample last
	owner  *endpoint[S]
}

// endpoint is whose an entry is, and what the rules know of it.
type endpoint[S any] struct {
	identity
	source traffic.Who
	most   uint64 // so much source did
	did    clock  // when
	places int    // how many entries are its own
	seen   clock  // when one of them was in a sample last
	alarms []alarm
	states []S // of each rule
}

// act remembers which of the endpoint's did most.
func (e *endpoint[S]) act(who *traffic.Who, n uint64, now clock) {
	if e.did < now || n > e.most {
		e.source, e.most, e.did = *who, n, now
	}
}

// firing says whether an episode is on.
func (e *endpoint[S]) firing() bool {
	return slices.ContainsFunc(e.alarms, func(a alarm) bool { return a.episode != nil })
}

// head is what samples of all kinds have.
type head struct {
	time     time.Time
	interval *float64 // nil: a recording begins
	point    traffic.Point
	hidden   int    // how many endpoints it leaves out
	lost     uint64 // what found no room, since some time before the first sample
}

// book has the endpoints in samples. S is what a rule knows of one.
type book[S any] struct {
	timings   []Timing // of the rules
	fresh     func(rule int) S
	keep      clock // how long what isn't in the samples any more is remembered
	needs     clock // how long it takes until every rule may have fired
	entries   map[place]*entry[S]
	endpoints map[identity]*endpoint[S]

	began, before, now clock // before: of the sample before
	known              bool  // what happened since then
	whole              bool  // all that there was then
	last               *head // nil: there was no sample
	lost               uint64
	longest            clock // between two samples
}

// milliseconds is a time on the samples' clock.
func milliseconds(d time.Duration) clock { return clock(d / time.Millisecond) }

func newBook[S any, R interface{ Times() Timing }](rules []R, fresh func(rule int) S) book[S] {
	b := book[S]{fresh: fresh, entries: map[place]*entry[S]{}, endpoints: map[identity]*endpoint[S]{}}
	for _, r := range rules {
		t := r.Times()
		b.timings = append(b.timings, t)
		b.keep = max(b.keep, milliseconds(2*t.Window))
		b.needs = max(b.needs, milliseconds(t.Window+t.Lasting))
	}
	b.began = milliseconds(2 * longestWindow) // no window begins before 0
	b.now = b.began
	return b
}

// advance moves the clock.
func (b *book[S]) advance(h head) {
	elapsed := clock(0)
	switch {
	case b.last == nil:
	case h.interval == nil:
		elapsed = max(0, milliseconds(h.time.Sub(b.last.time)))
	default:
		elapsed = max(1, clock(*h.interval*1000+0.5))
	}
	b.before, b.now = b.now, b.now+elapsed
	b.whole = b.last != nil && b.last.hidden == 0
	b.known = b.last != nil && h.interval != nil && h.point == b.last.point
	if b.known {
		b.longest = max(b.longest, elapsed)
		b.lost += sample.Grown(b.last.lost, h.lost)
	}
	b.last = &h
}

// meet finds the entry of a place in a sample; was is when it was there before, and
// first says that it wasn't.
func (b *book[S]) meet(who *traffic.Who) (e *entry[S], was clock, first bool) {
	at := placeOf(who)
	e = b.entries[at]
	if e == nil {
		e, first = &entry[S]{seen: b.before}, true
		b.entries[at] = e
	}
	b.own(e, identify(at, who), who)
	if placeOf(&e.owner.source) == at {
		e.owner.source = *who // its names may be new
	}
	was = e.seen
	e.seen, e.owner.seen = b.now, b.now
	return e, was, first
}

// mostPlaces is how many places are known of which no counters are. Who forges the
// addresses that it sends from makes as many as it likes.
const mostPlaces = 1 << 16

// isFull says whether there is no room for a place without counters.
func (b *book[S]) isFull(who *traffic.Who) bool {
	return len(b.entries) >= mostPlaces && b.entries[placeOf(who)] == nil
}

// own says whose an entry is, which may be known only later.
func (b *book[S]) own(e *entry[S], id identity, who *traffic.Who) {
	switch {
	case e.owner == nil:
	case e.owner.identity == id:
		return
	case e.owner.kind == Address && b.endpoints[id] == nil && !e.owner.firing():
		delete(b.endpoints, e.owner.identity)
		e.owner.identity, b.endpoints[id] = id, e.owner
		return
	default: // it keeps what happened until now
		e.owner.places--
	}
	e.owner = b.endpoints[id]
	if e.owner == nil {
		e.owner = &endpoint[S]{identity: id, source: *who, alarms: make([]alarm, len(b.timings)), states: make([]S, len(b.timings))}
		for i := range e.owner.states {
			e.owner.states[i] = b.fresh(i)
		}
		b.endpoints[id] = e.owner
	}
	e.owner.places++
}

// judged is a finding and what it is ordered by.
type judged[F any] struct {
	finding F
	rule    int
	identity
}

// judge applies each rule to each endpoint.
func judge[S, F any](b *book[S], apply func(rule int, e *endpoint[S]) (F, bool)) []F {
	var all []judged[F]
	for id, e := range b.endpoints {
		for i := range b.timings {
			if f, ok := apply(i, e); ok {
				all = append(all, judged[F]{f, i, id})
			}
		}
	}
	slices.SortFunc(all, func(x, y judged[F]) int {
		return cmp.Or(cmp.Compare(x.rule, y.rule), x.compare(y.identity))
	})
	found := make([]F, len(all))
	for i := range all {
		found[i] = all[i].finding
	}
	return found
}

// forget drops what hasn't been in the samples for so long that no window has
// anything of it.
func (b *book[S]) forget() {
	for at, e := range b.entries {
		if b.now-e.seen > b.keep {
			e.owner.places--
			delete(b.entries, at)
		}
	}
	for id, e := range b.endpoints {
		if e.places == 0 && b.now-e.seen > b.keep && !e.firing() {
			delete(b.endpoints, id)
		}
	}
}

// Ready says whether the samples span the time in which every rule may have fired.
func (b *book[S]) Ready() bool { return b.now-b.began >= b.needs }

// Lost is how much found no room, since the first sample: also here.
func (b *book[S]) Lost() uint64 { return b.lost }

// TooFar returns the longest time between two samples, and the shortest window, if it
// isn't always known what that had in between.
func (b *book[S]) TooFar() (apart, window time.Duration, tell bool) {
	window = longestWindow
	for _, t := range b.timings {
		window = min(window, t.Window)
	}
	return time.Duration(b.longest) * time.Millisecond, window, tooFar(b.longest, milliseconds(window))
}

// Firing is how many episodes are on.
func (b *book[S]) Firing() (n int) {
	for _, e := range b.endpoints {
		for _, a := range e.alarms {
			if a.episode != nil {
				n++
			}
		}
	}
	return n
}
