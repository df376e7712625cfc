// Package detect has the rules that notice things in samples of traffic. They are
// functions of the samples and of the time between them, so that a recording gives
// what a watch gave. It doesn't touch the kernel.
package detect

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// Kind says what an endpoint is.
type Kind string

// The kinds.
const (
	Pod       Kind = "pod"
	Container Kind = "container" // in no Pod
	Address   Kind = "address"   // at an interface or in a cgroup of whom no more is known
)

// EndedBy says why an episode is over.
type EndedBy string

// The reasons.
const (
	Below EndedBy = "below" // the traffic was less for a whole window
	Gone  EndedBy = "gone"  // so it was, and the endpoint isn't in the samples any more
)

// Finding is that an endpoint's traffic has reached a rule's threshold, or that this
// is over.
type Finding struct {
	Rule      Burst
	Kind      Kind
	Source    traffic.Who   // of what is the endpoint's, that which grew most when it last did
	Sources   int           // how many there are, by address and interface or cgroup
	Point     traffic.Point // where it was counted
	Started   time.Time     // the sample that reached the threshold first
	Ended     time.Time     // the first one below it for good; the zero value: it isn't over
	EndedBy   EndedBy       // empty: it isn't over
	Amount    uint64        // in the window before this sample
	Peak      uint64        // the most in a window since it started
	Threshold uint64        // that was reached
	Usual     *Usual        // what the threshold is made of; nil: the rule has no factor
	MapFull   uint64        // packets that found no room for their address, since the first sample
}

// EndsBelow is what a window has to have less than for an episode to end: four fifths
// of the threshold, or half-way to what is usual where that is near.
func (f Finding) EndsBelow() uint64 {
	below := f.Threshold - f.Threshold/5
	if f.Usual == nil {
		return below
	}
	return max(below, f.Threshold-uint64(max(0, float64(f.Threshold)-f.Usual.Mean)/2))
}

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

// entry is what is known of counters.
type entry struct {
	traffic.Counters
	seen  clock
	owner *endpoint
}

// endpoint is whose counters are, and what the rules know of it.
type endpoint struct {
	identity
	source traffic.Who
	most   uint64 // by so many bytes source grew
	grew   clock  // when
	places int    // how many entries are its own
	seen   clock  // when one of them was in a sample last
	states []state
}

// state is what a rule knows of an endpoint.
type state struct {
	window
	usual   *history // nil: the rule has no factor
	reached *moment  // since when the threshold has been reached; nil: it isn't
	episode *episode // nil: none
}

// moment is a sample's time, on both clocks.
type moment struct {
	at   clock
	time time.Time
}

type episode struct {
	Finding
	calm *moment // since when there has been less; nil: there is more
}

// Detector applies rules to samples, one after the other.
type Detector struct {
	rules     []Burst
	keep      clock // how long what isn't in the samples any more is remembered
	needs     clock // how long it takes until every rule may have fired
	entries   map[place]*entry
	endpoints map[identity]*endpoint

	began, before, now clock             // before: of the sample before
	known              bool              // what the counters grew by since then
	last               *traffic.Document // without its Pods; nil: there was none
	mapFull            uint64
	longest            clock // between two samples
}

// milliseconds is a time on the samples' clock.
func milliseconds(d time.Duration) clock { return clock(d / time.Millisecond) }

// New returns a Detector that has seen no sample.
func New(rules []Burst) *Detector {
	d := &Detector{rules: rules, entries: map[place]*entry{}, endpoints: map[identity]*endpoint{}}
	for _, r := range rules {
		d.keep = max(d.keep, milliseconds(2*r.Window))
		d.needs = max(d.needs, milliseconds(r.Window+r.Lasting+r.Learning()))
	}
	d.began = milliseconds(2 * longestWindow) // no window begins before 0
	d.now = d.began
	return d
}

// Step takes the next sample and returns what the rules find, by rule and endpoint. A
// document without an interval begins a recording: what passed before it counts for
// nothing, as it isn't known when it did.
func (d *Detector) Step(doc traffic.Document) []Finding {
	d.advance(doc)
	for i := range doc.Pods {
		d.count(&doc.Pods[i])
	}
	doc.Pods = nil
	d.last = &doc
	found := d.judge()
	d.forget()
	return found
}

// advance moves the clock.
func (d *Detector) advance(doc traffic.Document) {
	elapsed := clock(0)
	switch {
	case d.last == nil:
	case doc.IntervalSeconds == nil:
		elapsed = max(0, milliseconds(doc.Time.Sub(d.last.Time)))
	default:
		elapsed = max(1, clock(*doc.IntervalSeconds*1000+0.5))
	}
	d.before, d.now = d.now, d.now+elapsed
	d.known = d.last != nil && doc.IntervalSeconds != nil && doc.ObservedAt == d.last.ObservedAt
	if d.known {
		d.longest = max(d.longest, elapsed)
		d.mapFull += grown(d.last.Loss.MapFull, doc.Loss.MapFull)
	}
}

// grown is by how much a counter grew that may have begun anew.
func grown(before, now uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// count adds what counters grew by to the windows of their endpoint.
func (d *Detector) count(pod *traffic.Pod) {
	known := d.known
	at := placeOf(&pod.Who)
	e := d.entries[at]
	if e == nil {
		e = &entry{seen: d.before}
		d.entries[at] = e
		known = known && d.last.Others.Pods == 0 // else they may be older
	} else if known && e.seen == d.now {
		return // the document has them twice
	}
	d.own(e, identify(at, &pod.Who), &pod.Who)
	if placeOf(&e.owner.source) == at {
		e.owner.source = pod.Who // its names may be new
	}
	if known {
		d.add(e, pod)
	}
	e.Counters, e.seen, e.owner.seen = pod.Counters, d.now, d.now
}

// own says whose counters are, which may be known only later.
func (d *Detector) own(e *entry, id identity, who *traffic.Who) {
	switch {
	case e.owner == nil:
	case e.owner.identity == id:
		return
	case e.owner.kind == Address && d.endpoints[id] == nil && !e.owner.firing():
		delete(d.endpoints, e.owner.identity)
		e.owner.identity, d.endpoints[id] = id, e.owner
		return
	default: // it keeps what passed until now
		e.owner.places--
	}
	e.owner = d.endpoints[id]
	if e.owner == nil {
		e.owner = &endpoint{identity: id, source: *who, states: make([]state, len(d.rules))}
		for i, r := range d.rules {
			if r.Factor > 0 {
				e.owner.states[i].usual = &history{whole: d.before/milliseconds(r.Window) + 1}
			}
		}
		d.endpoints[id] = e.owner
	}
	e.owner.places++
}

// anew says whether counters have begun anew: one is less than it was.
func anew(before, now traffic.Counters) bool {
	return now.TransmitBytes < before.TransmitBytes || now.TransmitPackets < before.TransmitPackets ||
		now.ReceiveBytes < before.ReceiveBytes || now.ReceivePackets < before.ReceivePackets
}

// add is count with counters of before.
func (d *Detector) add(e *entry, pod *traffic.Pod) {
	now, before := pod.Counters, e.Counters
	if anew(before, now) {
		before = traffic.Counters{}
	}
	growth := traffic.Counters{
		TransmitBytes: now.TransmitBytes - before.TransmitBytes, TransmitPackets: now.TransmitPackets - before.TransmitPackets,
		ReceiveBytes: now.ReceiveBytes - before.ReceiveBytes, ReceivePackets: now.ReceivePackets - before.ReceivePackets,
	}
	if growth == (traffic.Counters{}) {
		return
	}
	owner := e.owner
	if bytes := plus(growth.TransmitBytes, growth.ReceiveBytes); owner.grew < d.now || bytes > owner.most {
		owner.source, owner.most, owner.grew = pod.Who, bytes, d.now
	}
	for i, r := range d.rules {
		n, s := r.of(growth), &owner.states[i]
		if n == 0 {
			continue
		}
		s.add(e.seen, d.now, n, milliseconds(r.Window)/buckets)
		if s.usual != nil {
			s.usual.add(e.seen, d.before, d.now, n, milliseconds(r.Window))
		}
	}
}

// of is what the rule adds up of counters.
func (b Burst) of(c traffic.Counters) uint64 {
	transmit, receive := c.TransmitBytes, c.ReceiveBytes
	if b.Metric == Packets {
		transmit, receive = c.TransmitPackets, c.ReceivePackets
	}
	switch b.Direction {
	case Transmit:
		return transmit
	case Receive:
		return receive
	}
	return plus(transmit, receive)
}

// judged is a finding and what it is ordered by.
type judged struct {
	Finding
	rule int
	identity
}

func (d *Detector) judge() []Finding {
	var all []judged
	for id, e := range d.endpoints {
		for i := range d.rules {
			if f, ok := d.apply(i, e); ok {
				all = append(all, judged{f, i, id})
			}
		}
	}
	slices.SortFunc(all, func(a, b judged) int {
		return cmp.Or(cmp.Compare(a.rule, b.rule), a.compare(b.identity))
	})
	found := make([]Finding, len(all))
	for i := range all {
		found[i] = all[i].Finding
	}
	return found
}

// apply applies a rule to an endpoint.
func (d *Detector) apply(rule int, e *endpoint) (f Finding, found bool) {
	r, s := d.rules[rule], &e.states[rule]
	amount := s.sum(d.now, milliseconds(r.Window)/buckets)
	if s.episode != nil {
		f, found = d.end(r, s, e, amount)
	} else {
		f, found = d.raise(r, s, e, amount)
	}
	if s.usual != nil {
		s.usual.roll(d.before, d.now, milliseconds(r.Window), d.known, s.episode == nil)
	}
	return f, found
}

// raise begins an episode when the threshold is reached, and was for as long as the
// rule wants.
func (d *Detector) raise(r Burst, s *state, e *endpoint, amount uint64) (f Finding, found bool) {
	threshold, usual, ok := r.threshold(s, amount)
	if !ok || amount < threshold {
		s.reached = nil
		return f, false
	}
	if s.reached == nil || tooFar(d.now-d.before, milliseconds(r.Window)) {
		s.reached = &moment{d.now, d.last.Time}
	}
	if d.now-s.reached.at < milliseconds(r.Lasting) {
		return f, false
	}
	f = Finding{
		Rule: r, Kind: e.kind, Source: e.source, Sources: e.places, Point: d.last.ObservedAt, Started: s.reached.time,
		Amount: amount, Peak: amount, Threshold: threshold, Usual: usual, MapFull: d.mapFull,
	}
	s.episode, s.reached = &episode{Finding: f}, nil
	return f, true
}

// threshold is what has to be reached; it isn't known while the endpoint's history is
// being learned. Where the least isn't reached nothing else matters.
func (b Burst) threshold(s *state, amount uint64) (uint64, *Usual, bool) {
	if s.usual == nil || amount < b.Amount {
		return b.Amount, nil, true
	}
	usual := s.usual.known()
	if usual == nil {
		return 0, nil, false
	}
	return usual.threshold(b.Factor, b.Amount), usual, true
}

// end ends an episode when there has been less for a window.
func (d *Detector) end(r Burst, s *state, e *endpoint, amount uint64) (f Finding, found bool) {
	ep := s.episode
	ep.Peak = max(ep.Peak, amount)
	if amount >= ep.EndsBelow() {
		ep.calm = nil
		return f, false
	}
	if ep.calm == nil {
		ep.calm = &moment{d.now, d.last.Time}
	}
	if d.now-ep.calm.at < milliseconds(r.Window) {
		return f, false
	}
	f = ep.Finding
	f.Source, f.Sources, f.Amount, f.MapFull = e.source, e.places, amount, d.mapFull
	f.Ended, f.EndedBy = ep.calm.time, Below
	if e.seen < d.now {
		f.EndedBy = Gone
	}
	s.episode = nil
	if s.usual != nil {
		s.usual.whole = d.now/milliseconds(r.Window) + 1
	}
	return f, true
}

// firing says whether an episode is on.
func (e *endpoint) firing() bool {
	return slices.ContainsFunc(e.states, func(s state) bool { return s.episode != nil })
}

// forget drops what hasn't been in the samples for so long that no window has
// anything of it.
func (d *Detector) forget() {
	for at, e := range d.entries {
		if d.now-e.seen > d.keep {
			e.owner.places--
			delete(d.entries, at)
		}
	}
	for id, e := range d.endpoints {
		if e.places == 0 && d.now-e.seen > d.keep && !e.firing() {
			delete(d.endpoints, id)
		}
	}
}

// Ready says whether the samples span the time in which every rule may have fired.
func (d *Detector) Ready() bool { return d.now-d.began >= d.needs }

// MapFull is how many packets found no room for their address, since the first sample.
func (d *Detector) MapFull() uint64 { return d.mapFull }

// TooFar returns the longest time between two samples, and the shortest window, if it
// isn't always known what that had in between.
func (d *Detector) TooFar() (apart, window time.Duration, tell bool) {
	window = longestWindow
	for _, r := range d.rules {
		window = min(window, r.Window)
	}
	return time.Duration(d.longest) * time.Millisecond, window, tooFar(d.longest, milliseconds(window))
}

// Firing is how many episodes are on.
func (d *Detector) Firing() int {
	return d.sum(func(s state) bool { return s.episode != nil })
}

// Learning is for how many endpoints and rules it isn't known yet what is usual.
func (d *Detector) Learning() int {
	return d.sum(func(s state) bool { return s.usual != nil && s.usual.known() == nil })
}

func (d *Detector) sum(of func(state) bool) (n int) {
	for _, e := range d.endpoints {
		for _, s := range e.states {
			if of(s) {
				n++
			}
		}
	}
	return n
}
