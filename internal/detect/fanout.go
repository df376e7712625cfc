package detect

import (
	"fmt"
	"net/netip"
	"strconv"

	"bpfnet/internal/fault"
	"bpfnet/internal/peers"
)

// Fanout is the rule that fires when an endpoint contacts many external peers in
// little time.
type Fanout struct {
	Peers uint64 // the threshold
	Timing
	Contact Contact
}

// largestFanout is the largest threshold.
const largestFanout = 1 << 24

// fanoutForm is what people are told.
const fanoutForm = "a fan-out is PEERS/TIME[,attempted|answered][,for=TIME], as in 50/60s or 500/5m,answered"

// ParseFanout reads "50/60s", with options behind commas: what makes a peer count,
// "for=2m". Errors are of kind fault.ErrUsage.
func ParseFanout(text string) (Fanout, error) {
	f, err := parseFanout(text)
	if err != nil {
		return Fanout{}, fault.New(fault.ErrUsage, "read fan-out %q: %w", text, err).Hint("%s", fanoutForm)
	}
	return f, nil
}

func parseFanout(text string) (f Fanout, err error) {
	f.Timing, err = parseRule(text, longestWindow, func(amount string) (err error) {
		f.Peers, err = parseCount(amount, largestFanout)
		return err
	}, func(name, _ string, valued bool) (known, twice bool, err error) {
		if valued || name != string(Attempted) && name != string(Answered) {
			return false, false, nil
		}
		twice, f.Contact = f.Contact != "", Contact(name)
		return true, twice, nil
	})
	if f.Contact == "" {
		f.Contact = Attempted
	}
	return f, err
}

func parseCount(text string, largest uint64) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 || n > largest {
		return 0, fmt.Errorf("%q isn't a number from 1 to %d", text, largest)
	}
	return n, nil
}

// String writes the rule so that ParseFanout reads it, and the same one always the
// same.
func (f Fanout) String() string {
	text := strconv.FormatUint(f.Peers, 10) + "/" + seconds(f.Window)
	if f.Contact != Attempted {
		text += "," + string(f.Contact)
	}
	return text + f.lasting()
}

// kind is the place of what counts in arrays.
func (f Fanout) kind() int {
	if f.Contact == Answered {
		return answered
	}
	return attempted
}

// FanoutFinding is a fan-out, or that it is over. Its amount is that of the rule's
// contacts.
type FanoutFinding struct {
	Episode
	Rule      Fanout
	Attempted uint64       // different peers in the window before this sample
	Answered  uint64       // those that answered
	Estimated bool         // these numbers are, or were since it began, with the error StandardError
	Peers     []netip.Addr // some of those that counted when it began, the last ones first
}

// sampled is how many peers or ports a finding names.
const sampled = 10

// fan is what a rule knows of an endpoint.
type fan struct {
	contacts
	estimated bool         // numbers of the episode
	sample    []netip.Addr // of the episode
}

// Fanouts applies rules of fan-outs to samples, one after the other.
type Fanouts struct {
	book[fan]
	rules  []Fanout
	border border
}

// NewFanouts returns Fanouts that have seen no sample.
func NewFanouts(rules []Fanout, internal Internal) *Fanouts {
	f := &Fanouts{rules: rules, border: newBorder(internal)}
	f.book = newBook(rules, func(int) fan { return fan{contacts: contacts{since: f.before, pruned: f.before}} })
	return f
}

// Step takes the next sample and returns what the rules find, by rule and endpoint.
func (f *Fanouts) Step(doc peers.Document) []FanoutFinding {
	f.border.meet(doc.Endpoints)
	takePeers(&f.book, &doc, f.contact)
	found := judge(&f.book, f.apply)
	f.forget()
	return found
}

// takePeers takes a sample. contact gets what happened with each peer since the one
// before.
func takePeers[S any](b *book[S], doc *peers.Document, contact func(e *endpoint[S], at place, row *peers.Peer, when clock)) {
	b.advance(head{doc.Time, doc.IntervalSeconds, doc.ObservedAt, doc.Others.Endpoints, doc.Loss.Peers})
	for i := range doc.Endpoints {
		b.meet(&doc.Endpoints[i].Who)
	}
	for i := range doc.Peers {
		row := &doc.Peers[i]
		if b.isFull(&row.Who) {
			b.lost++
			continue
		}
		e, _, _ := b.meet(&row.Who)
		if b.known && row.NewAttempts != nil && row.NewAnswers != nil && row.NewRefusals != nil {
			// What the sample tells of last may have been long before it, if that is late.
			when := b.now - milliseconds(doc.Time.Sub(row.LastSeen))
			contact(e.owner, placeOf(&row.Who), row, min(max(when, b.before+1), b.now))
		}
	}
}

func (f *Fanouts) contact(e *endpoint[fan], at place, row *peers.Peer, when clock) {
	peer := row.Peer.Address.Unmap()
	if *row.NewAttempts == 0 && *row.NewAnswers == 0 || !f.border.external(peer, at) {
		return
	}
	e.act(&row.Who, *row.NewAttempts, f.now)
	for i, r := range f.rules {
		c := &e.states[i].contacts
		if *row.NewAttempts > 0 {
			c.add(peer.As16(), attempted, when, f.now, milliseconds(r.Window))
		}
		if *row.NewAnswers > 0 {
			c.add(peer.As16(), answered, when, f.now, milliseconds(r.Window))
		}
	}
}

// apply applies a rule to an endpoint.
func (f *Fanouts) apply(rule int, e *endpoint[fan]) (found FanoutFinding, ok bool) {
	r, s := f.rules[rule], &e.states[rule]
	on, atLeast := e.alarms[rule].episode, r.Peers
	if on != nil {
		atLeast = 0
	}
	kind, window := r.kind(), milliseconds(r.Window)
	n, partly := s.count(atLeast, f.now, window)
	if partly {
		n[kind] = max(n[kind], s.sketches[kind].estimate(f.now, window))
	}
	s.estimated = partly || on != nil && s.estimated
	found.Rule, found.Estimated = r, s.estimated
	if on != nil {
		found.Episode, ok = f.end(rule, e, n[kind], on.EndsBelow())
	} else if found.Episode, ok = f.raise(rule, e, n[kind], r.Peers); ok {
		s.sample = s.latest(kind, sampled, f.now-window)
	}
	if ok && partly {
		n[1-kind] = max(n[1-kind], s.sketches[1-kind].estimate(f.now, window))
	}
	found.Attempted, found.Answered, found.Peers = n[attempted], n[answered], s.sample
	return found, ok
}
