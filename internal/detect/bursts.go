package detect

import (
	"iter"

	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// Finding is a burst, or that it is over.
type Finding struct {
	Episode
	Rule  Burst
	Usual *Usual // what the threshold is made of; nil: the rule has no factor
}

// EndsBelow is what a window has to have less than for a burst to end: four fifths
// of the threshold, or half-way to what is usual where that is near.
func (f Finding) EndsBelow() uint64 {
	below := f.Episode.EndsBelow()
	if f.Usual == nil {
		return below
	}
	return max(below, f.Threshold-uint64(max(0, float64(f.Threshold)-f.Usual.Mean)/2))
}

// counts are counters as the endpoint sees them, each what it transmits and what it
// receives. Of connections that is what it opens and what others open to it.
type counts struct{ bytes, packets, connections [2]uint64 }

// of is what the rule adds up.
func (b Burst) of(c counts) uint64 {
	pair := c.bytes
	switch b.Metric {
	case Packets:
		pair = c.packets
	case Connections:
		pair = c.connections
	}
	switch b.Direction {
	case Transmit:
		return pair[0]
	case Receive:
		return pair[1]
	}
	return plus(pair[0], pair[1])
}

// grownTo is by how much counters grew. If one is less than it was they have all begun
// anew.
func (c counts) grownTo(now counts) counts {
	if now.less(c) {
		return now
	}
	return counts{less(now.bytes, c.bytes), less(now.packets, c.packets), less(now.connections, c.connections)}
}

func (c counts) less(o counts) bool {
	return smaller(c.bytes, o.bytes) || smaller(c.packets, o.packets) || smaller(c.connections, o.connections)
}

func smaller(a, b [2]uint64) bool { return a[0] < b[0] || a[1] < b[1] }

func less(a, b [2]uint64) [2]uint64 { return [2]uint64{a[0] - b[0], a[1] - b[1]} }

// state is what a rule knows of an endpoint.
type state struct {
	window
	usual  *history // nil: the rule has no factor
	raised *Usual   // what the threshold of the episode is made of
}

// Detector applies rules of bursts to samples of one kind, one after the other.
type Detector struct {
	book[state]
	rules []Burst
}

// New returns a Detector that has seen no sample.
func New(rules []Burst) *Detector {
	d := &Detector{rules: rules}
	d.book = newBook(rules, d.newState)
	for _, r := range rules {
		d.needs = max(d.needs, milliseconds(r.Window+r.Lasting+r.Learning()))
	}
	return d
}

func (d *Detector) newState(rule int) (s state) {
	if r := d.rules[rule]; r.Factor > 0 {
		s.usual = &history{whole: d.before/milliseconds(r.Window) + 1}
	}
	return s
}

// Step takes the next sample and returns what the rules find, by rule and endpoint. A
// document without an interval begins a recording: what passed before it counts for
// nothing, as it isn't known when it did.
func (d *Detector) Step(doc traffic.Document) []Finding {
	d.advance(head{doc.Time, doc.IntervalSeconds, doc.ObservedAt, doc.Others.Pods, doc.Loss.MapFull})
	return d.step(func(yield func(*traffic.Who, counts) bool) {
		for i := range doc.Pods {
			c := &doc.Pods[i].Counters
			if !yield(&doc.Pods[i].Who, counts{
				bytes:   [2]uint64{c.TransmitBytes, c.ReceiveBytes},
				packets: [2]uint64{c.TransmitPackets, c.ReceivePackets},
			}) {
				return
			}
		}
	})
}

// StepPeers is Step for rules that count connections.
func (d *Detector) StepPeers(doc peers.Document) []Finding {
	d.advance(head{doc.Time, doc.IntervalSeconds, doc.ObservedAt, doc.Others.Endpoints, doc.Loss.Endpoints})
	return d.step(func(yield func(*traffic.Who, counts) bool) {
		for i := range doc.Endpoints {
			e := &doc.Endpoints[i]
			if !yield(&e.Who, counts{connections: [2]uint64{e.Opened, e.Received}}) {
				return
			}
		}
	})
}

// step takes the counters of a sample.
func (d *Detector) step(rows iter.Seq2[*traffic.Who, counts]) []Finding {
	for who, now := range rows {
		e, was, first := d.meet(who)
		known := d.known
		switch {
		case first:
			known = known && d.whole // else they may be older
		case known && was == d.now:
			continue // the document has them twice
		}
		if known {
			d.add(e, was, who, e.grownTo(now))
		}
		e.counts = now
	}
	found := judge(&d.book, d.apply)
	d.forget()
	return found
}

// add adds what counters grew by since a sample to the windows of their endpoint.
func (d *Detector) add(e *entry[state], since clock, who *traffic.Who, growth counts) {
	if growth == (counts{}) {
		return
	}
	e.owner.act(who, plus(plus(growth.bytes[0], growth.bytes[1]), plus(growth.connections[0], growth.connections[1])), d.now)
	for i, r := range d.rules {
		n, s := r.of(growth), &e.owner.states[i]
		if n == 0 {
			continue
		}
		s.add(since, d.now, n, milliseconds(r.Window)/buckets)
		if s.usual != nil {
			s.usual.add(since, d.before, d.now, n, milliseconds(r.Window))
		}
	}
}

// apply applies a rule to an endpoint.
func (d *Detector) apply(rule int, e *endpoint[state]) (f Finding, found bool) {
	r, s := d.rules[rule], &e.states[rule]
	window, amount := milliseconds(r.Window), s.sum(d.now, milliseconds(r.Window)/buckets)
	f = Finding{Rule: r, Usual: s.raised}
	if on := e.alarms[rule].episode; on != nil {
		f.Episode = *on
		f.Episode, found = d.end(rule, e, amount, f.EndsBelow())
		if found && s.usual != nil {
			s.usual.whole = d.now/window + 1
		}
	} else if threshold, usual, ok := r.threshold(s, amount); ok {
		f.Usual, s.raised = usual, usual
		f.Episode, found = d.raise(rule, e, amount, threshold)
	} else {
		e.alarms[rule].reached = nil
	}
	if s.usual != nil {
		s.usual.roll(d.before, d.now, window, d.known, e.alarms[rule].episode == nil)
	}
	return f, found
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

// Learning is for how many endpoints and rules it isn't known yet what is usual.
func (d *Detector) Learning() (n int) {
	for _, e := range d.endpoints {
		for _, s := range e.states {
			if s.usual != nil && s.usual.known() == nil {
				n++
			}
		}
	}
	return n
}
