package baseline

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"bpfnet/internal/peers"
	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// contacts collects whom endpoints contact in windows.
type contacts struct {
	timeline
	open    time.Time // when the window began that isn't over
	entries map[traffic.Key]*contacted
	remotes int    // of all entries
	lost    uint64 // peers and connections that found no room, since the first sample
	full    uint64 // in the last sample
}

// What is known of a window at most. Who forges the addresses that it sends from, or
// contacts many, makes as many as it likes.
const (
	mostPlaces  = 1 << 16 // that have no counters
	mostRemotes = 1 << 19
)

// contacted is whom an endpoint's address has contacted in the window.
type contacted struct {
	who     traffic.Who
	remotes map[remote]bool
}

// remote is a port of a peer.
type remote struct {
	address netip.Addr
	port    string // "443/tcp", "icmp"
}

func (r remote) compare(o remote) int {
	return cmp.Or(r.address.Compare(o.address), comparePorts(r.port, o.port))
}

// meeting is whom an instance has contacted in a window, maybe nobody.
type meeting struct {
	instance
	seen
	remotes []remote
}

// meetings are those of a window that is over.
type meetings struct {
	begin, end time.Time
	all        []meeting // by instance
}

func newContacts(size time.Duration) *contacts {
	return &contacts{timeline: timeline{window: size}, entries: map[traffic.Key]*contacted{}}
}

// step takes the next sample and returns the windows that are over. Earlier: what was
// contacted before the first sample counts, too.
func (c *contacts) step(doc peers.Document, earlier bool) (over []meetings) {
	began := c.now.IsZero()
	c.advance(doc.Time, doc.IntervalSeconds)
	full := doc.Loss.Peers + doc.Loss.Endpoints
	if !began {
		c.lost += sample.Grown(c.full, full)
	}
	c.full = full
	if begin := c.begin(c.now); !begin.Equal(c.open) {
		over = c.close()
		c.open = begin
	}
	for i := range doc.Endpoints {
		c.entry(doc.ObservedAt, &doc.Endpoints[i].Who)
	}
	for i := range doc.Peers {
		p := &doc.Peers[i]
		c.meet(doc.ObservedAt, p, p.NewAttempts == nil && earlier || sample.Value(p.NewAttempts) > 0)
	}
	if c.now.Equal(c.open.Add(c.window)) {
		over = append(over, c.close()...)
		c.open = c.now
	}
	return over
}

// meet takes a peer, which has been contacted or only answered.
func (c *contacts) meet(point traffic.Point, p *peers.Peer, contacted bool) {
	if len(c.entries) >= mostPlaces && c.entries[keyOf(point, &p.Who)] == nil {
		c.lost++
		return
	}
	e := c.entry(point, &p.Who)
	r := remote{p.Peer.Address.Unmap().WithZone(""), portOf(p.Transport, p.Peer.Port)}
	switch {
	case !contacted || e.remotes[r]:
	case c.remotes >= mostRemotes:
		c.lost++
	default:
		e.remotes[r] = true
		c.remotes++
	}
}

func (c *contacts) entry(point traffic.Point, who *traffic.Who) *contacted {
	key := keyOf(point, who)
	e := c.entries[key]
	if e == nil {
		e = &contacted{remotes: map[remote]bool{}}
		c.entries[key] = e
	}
	e.who = *who
	return e
}

// close ends the window, if one is open. Whose the peers are counts as known by then.
func (c *contacts) close() []meetings {
	if c.open.IsZero() {
		return nil
	}
	byInstance := map[instance]*meeting{}
	for key, e := range c.entries {
		id := instanceOf(key, &e.who)
		m := byInstance[id]
		if m == nil {
			m = &meeting{instance: id, seen: seen{point: key.Point}}
			byInstance[id] = m
		}
		m.places++
		if !m.who.Address.IsValid() || e.who.Address.Less(m.who.Address) {
			m.who = e.who
		}
		for r := range e.remotes {
			m.remotes = append(m.remotes, r)
		}
	}
	over := meetings{begin: c.open, end: c.open.Add(c.window)}
	for _, m := range byInstance {
		slices.SortFunc(m.remotes, remote.compare)
		m.remotes = slices.Compact(m.remotes)
		over.all = append(over.all, *m)
	}
	slices.SortFunc(over.all, func(a, b meeting) int { return a.compare(b.instance) })
	c.entries, c.remotes = map[traffic.Key]*contacted{}, 0
	return []meetings{over}
}

func portOf(transport string, port *uint16) string {
	if port == nil {
		return transport
	}
	return strconv.FormatUint(uint64(*port), 10) + "/" + transport
}
