package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	wire "github.com/miekg/dns"
)

// Status is what became of an exchange.
type Status string

// What becomes of exchanges.
const (
	Answered   Status = "answered"
	Unanswered Status = "unanswered" // there was no response in time
	Unasked    Status = "unasked"    // a response whose query wasn't seen
)

// Unmeasured is the latency of an exchange of which not both messages were seen.
const Unmeasured = time.Duration(-1)

// Exchange is a query and its response, each of which may be missing. Nothing vouches
// for them: whoever can send packets past the program can make them up.
type Exchange struct {
	Status         Status
	Time           time.Time     // when the first of its packets was seen
	Latency        time.Duration // between query, if sent again the first, and response on the kernel's clock, or Unmeasured
	Client, Server netip.AddrPort
	Transport      string // "udp" or "tcp"
	Place          Place  // where that was seen

	ID                uint16
	Name, Type, Class string // "" where a response doesn't say; as in Record
	Rcode             string // as RcodeWord; "" of one that is unanswered
	Truncated         bool   // the server says so
	Answers           []Record
	Retries           int // how often the query was seen again at that place

	// About is for what Begun finds out.
	About any
}

// Place is where a packet was seen: an interface, or a cgroup's hook.
type Place struct {
	AtCgroup  bool
	IfIndex   uint32
	Ingress   bool   // the exchange's first packet was seen on the way in
	CgroupID  uint64 // of the socket that asks; 0: unknown
	FromAsker bool   // who asks is behind that side of the interface; at cgroup: in that cgroup
}

// sighting is a message at one place.
type sighting struct {
	message
	packed         []byte
	time           time.Duration
	client, server netip.AddrPort
	transport      string
	place          Place
}

// exchangeKey is what the messages of an exchange have in common. The question of a
// response may be missing.
type exchangeKey struct {
	client, server netip.AddrPort
	transport      string
	id             uint16
}

// point is a place, and which way packets pass it.
type point struct {
	atCgroup, ingress bool
	ifIndex           uint32
}

func (p Place) point() point { return point{p.AtCgroup, p.Ingress, p.IfIndex} }

// same says whether a response passes where a query did.
func (p point) same(response point) bool {
	return p.atCgroup == response.atCgroup && p.ifIndex == response.ifIndex && p.ingress != response.ingress
}

// pairing is an exchange of which messages may still come. Once it was told, not much
// of the exchange is kept.
type pairing struct {
	*Exchange
	began    time.Duration // since boot
	question question
	asked    []passage // of the query, by point
	answered []passage // of the response
	response *sighting // that was seen elsewhere than the query, and isn't told yet
	told     bool
}

// passage is when a message last passed a point.
type passage struct {
	point
	time time.Duration
}

// repetition is how a message passes a point.
type repetition int

const (
	firstTime repetition = iota
	samePacket
	anotherPacket
)

const (
	// sameAgain is within which time a message that passes a cgroup's hook again is still
	// the same packet: it meets programs of several cgroups that are in each other. Nobody
	// asks again so soon. An interface is passed once.
	sameAgain = 50 * time.Millisecond
	// settling is how long a response that was seen elsewhere is expected where its
	// query was.
	settling = 100 * time.Millisecond
	// linger is how long an exchange is known after it was told: its packets may pass
	// further places.
	linger = time.Second

	mostExchanges = 65536
	mostSettling  = 256 // responses that are kept
	mostAlike     = 16  // exchanges with the same addresses, ports and id
	sweepInterval = 50 * time.Millisecond
)

// exchanges finds the response to each query. All is given in the order in which the
// ring buffer has it: at whatever place, a query is there before its response.
type exchanges struct {
	timeout  time.Duration
	open     map[exchangeKey][]*pairing // with different questions
	count    int                        // of them
	settling int
	swept    time.Duration
	forgot   uint64      // that found no room
	begun    []*Exchange // since take was called
	told     []*Exchange // as well
}

func newExchanges(timeout time.Duration) *exchanges {
	return &exchanges{timeout: timeout, open: map[exchangeKey][]*pairing{}}
}

// take returns what has begun and what is to be told since the last call.
func (x *exchanges) take() (begun, told []*Exchange) {
	begun, told = x.begun, x.told
	x.begun, x.told = nil, nil
	return begun, told
}

// add takes a message.
func (x *exchanges) add(s sighting) {
	x.sweep(s.time)
	p := x.find(s)
	if s.response {
		x.answer(p, s)
	} else {
		x.ask(p, s)
	}
}

func (s sighting) key() exchangeKey { return exchangeKey{s.client, s.server, s.transport, s.id} }

// find returns the exchange of a message, nil if none is known. A response without a
// question is that of the exchange that began last.
func (x *exchanges) find(s sighting) *pairing {
	for _, p := range slices.Backward(x.open[s.key()]) {
		if s.question == p.question || s.response && s.question == (question{}) {
			return p
		}
	}
	return nil
}

// pass notes that a message passes a point.
func pass(passages *[]passage, at point, now time.Duration) repetition {
	i := slices.IndexFunc(*passages, func(p passage) bool { return p.point == at })
	if i < 0 {
		*passages = append(*passages, passage{at, now})
		return firstTime
	}
	before := (*passages)[i].time
	(*passages)[i].time = now
	if at.atCgroup && now-before < sameAgain {
		return samePacket
	}
	return anotherPacket
}

// ask takes a query. After the response it is that of another exchange.
func (x *exchanges) ask(p *pairing, s sighting) {
	if p != nil && p.told {
		x.forget(s.key(), p)
		p = nil
	}
	if p == nil {
		x.begin(s)
		return
	}
	at := s.place.point()
	if pass(&p.asked, at, s.time) == anotherPacket && at == p.Place.point() {
		p.Retries++
	}
}

// begin begins an exchange with a message.
func (x *exchanges) begin(s sighting) *pairing {
	key := s.key()
	if alike := x.open[key]; len(alike) >= mostAlike {
		x.lose(key, alike[0])
	}
	if x.count >= mostExchanges {
		x.shrink()
	}
	p := &pairing{began: s.time, question: s.question, Exchange: &Exchange{
		Time: time.Now().Add(s.time - sinceBoot()), Latency: Unmeasured, Client: s.client, Server: s.server, Transport: s.transport, Place: s.place, ID: s.id,
	}}
	if s.question != (question{}) {
		p.Name, p.Type, p.Class = s.question.name, wire.Type(s.question.qtype).String(), wire.Class(s.question.class).String()
	}
	first := []passage{{s.place.point(), s.time}}
	if s.response {
		p.answered = first
	} else {
		p.asked = first
	}
	x.open[key] = append(x.open[key], p)
	x.count++
	x.begun = append(x.begun, p.Exchange)
	return p
}

// answer takes a response. It is told when it passes where the query did, or if it
// doesn't soon, as it passed another place. One that is sent once more is that of a
// query which was sent once more, or of none.
func (x *exchanges) answer(p *pairing, s sighting) {
	if p == nil {
		x.tell(x.begin(s), s, Unasked)
		return
	}
	at := s.place.point()
	switch again := pass(&p.answered, at, s.time); {
	case p.told && again == anotherPacket && p.Retries == 0:
		x.forget(s.key(), p)
		x.tell(x.begin(s), s, Unasked)
	case p.told && again == anotherPacket:
		p.Retries--
	case p.told, again != firstTime:
	case p.Place.point().same(at) || p.response == nil && x.settling >= mostSettling:
		x.settle(p, s)
	case p.response == nil:
		s.packed, s.answers = slices.Clone(s.packed), nil
		p.response = &s
		x.settling++
	}
}

// settle tells an exchange with a response.
func (x *exchanges) settle(p *pairing, s sighting) {
	if p.response != nil {
		p.response = nil
		x.settling--
	}
	p.Latency = max(s.time-p.began, 0)
	x.tell(p, s, Answered)
}

func (x *exchanges) tell(p *pairing, s sighting, status Status) {
	p.Rcode, p.Truncated, p.Answers = RcodeWord(s.rcode), s.truncated, s.answers
	x.finish(p, status)
}

func (x *exchanges) finish(p *pairing, status Status) {
	p.Status, p.told = status, true
	x.told = append(x.told, p.Exchange)
	p.Exchange = &Exchange{Latency: p.Latency, Place: p.Place, Retries: p.Retries}
}

// sweep tells, now and then, what no response is expected of any more.
func (x *exchanges) sweep(now time.Duration) {
	if now-x.swept < sweepInterval {
		return
	}
	x.swept = now
	before := len(x.told)
	for key, alike := range x.open {
		for _, p := range slices.Backward(alike) {
			if now-p.began >= x.longest(p) {
				x.end(p)
				x.forget(key, p)
			}
		}
	}
	slices.SortFunc(x.told[before:], func(a, b *Exchange) int { return a.Time.Compare(b.Time) })
}

// longest is how long an exchange is kept.
func (x *exchanges) longest(p *pairing) time.Duration {
	switch {
	case p.told:
		return max(p.Latency, 0) + linger
	case p.response != nil:
		return p.response.time - p.began + settling
	}
	return x.timeout
}

// end tells an exchange as far as it is known.
func (x *exchanges) end(p *pairing) {
	switch {
	case p.told:
	case p.response != nil:
		s := *p.response
		s.message, _ = readMessage(s.packed, true) // it could be read before
		x.settle(p, s)
	default:
		x.finish(p, Unanswered)
	}
}

// shrink forgets the oldest quarter of all exchanges.
func (x *exchanges) shrink() {
	type one struct {
		key exchangeKey
		*pairing
	}
	var all []one
	for key, alike := range x.open {
		for _, p := range alike {
			all = append(all, one{key, p})
		}
	}
	slices.SortFunc(all, func(a, b one) int { return cmp.Compare(a.began, b.began) })
	for _, oldest := range all[:len(all)/4] {
		x.lose(oldest.key, oldest.pairing)
	}
}

// lose makes room.
func (x *exchanges) lose(key exchangeKey, p *pairing) {
	if !p.told {
		x.forgot++
	}
	if p.response != nil {
		x.settling--
	}
	x.forget(key, p)
}

func (x *exchanges) forget(key exchangeKey, p *pairing) {
	x.count--
	x.open[key] = slices.DeleteFunc(x.open[key], func(other *pairing) bool { return other == p })
	if len(x.open[key]) == 0 {
		delete(x.open, key)
	}
}
