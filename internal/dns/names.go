package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Names knows which names those who ask got addresses for, from answers on the wire.
// Nothing vouches for these: a name is what somebody may have meant, no proof. It is safe
// for concurrent use.
type Names struct {
	most  int
	grace time.Duration

	mu    sync.Mutex
	known map[nameKey][]learned // the last one last
}

// nameKey is an address and who asked, the zero Addr for whoever did last.
type nameKey struct{ client, addr netip.Addr }

type learned struct {
	name        string
	from, until time.Duration // since boot
}

// mostNames is how many names of an address are remembered of one who asks.
const mostNames = 4

// moment is how much later than it was used an answer may have come: the times are of two
// clocks.
const moment = 50 * time.Millisecond

// NewNames returns Names that keep at most so many, and each for a grace longer than its
// TTL: connections last longer than answers.
func NewNames(most int, grace time.Duration) *Names {
	return &Names{most: most, grace: grace, known: map[nameKey][]learned{}}
}

// Learn takes the addresses of an answer, which are those of the name that was asked for,
// whatever CNAMEs lead to them.
func (n *Names) Learn(a Answer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, address := range a.Addresses {
		n.learn(nameKey{a.Client.Addr(), address.Addr}, a, address.TTL)
		n.learn(nameKey{netip.Addr{}, address.Addr}, a, address.TTL)
	}
	if len(n.known) > n.most {
		n.shrink(a.Time)
	}
}

func (n *Names) learn(key nameKey, a Answer, ttl time.Duration) {
	l, names := learned{a.Name, a.Time, a.Time + ttl + n.grace}, n.known[key]
	if last := len(names) - 1; last >= 0 && names[last].name == a.Name && a.Time < names[last].until {
		l.from, names = names[last].from, names[:last]
	}
	n.known[key] = append(names[max(0, len(names)-mostNames+1):], l)
}

// Of returns the name by which client, or if it didn't ask anybody, knew an address at a
// time since boot (CLOCK_BOOTTIME); "" if that isn't known, or not any more.
func (n *Names) Of(client, addr netip.Addr, at time.Duration) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, key := range []nameKey{{client, addr}, {netip.Addr{}, addr}} {
		for _, l := range slices.Backward(n.known[key]) {
			if l.from <= at+moment && at < l.until {
				return l.name
			}
		}
	}
	return ""
}

// shrink forgets what has expired, and then, until a quarter is free, what expires first.
func (n *Names) shrink(now time.Duration) {
	keys := make([]nameKey, 0, len(n.known))
	for key := range n.known {
		if n.end(key) <= now {
			delete(n.known, key)
		} else {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b nameKey) int { return cmp.Compare(n.end(a), n.end(b)) })
	for _, key := range keys[:max(0, len(keys)-n.most*3/4)] {
		delete(n.known, key)
	}
}

// end is when the last name of an address expires.
func (n *Names) end(key nameKey) time.Duration {
	names := n.known[key]
	return names[len(names)-1].until
}
