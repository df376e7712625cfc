package detect

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/axiomhq/hyperloglog"
)

// mostExact is how many peers of an endpoint are known one by one.
const mostExact = 4096

// precision is the number of bits that choose a register of a sketch.
const precision = 12

// StandardError is the standard deviation of an estimate, as a part of the number:
// 1.04 by the square root of the number of registers.
const StandardError = 1.04 / (1 << (precision / 2))

// Contact is what makes a peer count.
type Contact string

// The kinds.
const (
	Attempted Contact = "attempted" // the endpoint tried to reach it
	Answered  Contact = "answered"  // and was answered
)

// The kinds' places in arrays.
const (
	attempted = iota
	answered
)

// address is an IP address in 16 bytes; IPv4 is mapped.
type address [16]byte

func (a address) ip() netip.Addr { return netip.AddrFrom16(a).Unmap() }

// contacts are the peers of an endpoint in a window: exact as long as they are few.
type contacts struct {
	last     map[address][2]clock // when each was attempted last, and answered; 0: never
	oldest   clock                // none of last is older
	since    clock                // last has all since then
	pruned   clock                // when what is older than the window was dropped
	sketches *[2]sketches         // nil: last has all in the window
}

// add adds a contact of a time.
func (c *contacts) add(a address, kind int, at, now, window clock) {
	if at <= now-window {
		return
	}
	times, known := c.last[a]
	if !known && len(c.last) >= mostExact {
		c.makeRoom(now, window)
	}
	if c.last == nil {
		c.last, c.oldest = map[address][2]clock{}, at
	}
	times[kind] = max(times[kind], at)
	c.last[a] = times
	c.oldest = min(c.oldest, at)
	if c.sketches != nil {
		c.sketches[kind].add(a, at, window/buckets)
	}
}

// makeRoom drops what is older than the window, or else everything, which sketches
// have from then on.
func (c *contacts) makeRoom(now, window clock) {
	if c.oldest <= now-window {
		c.prune(now, window)
	}
	if len(c.last) < mostExact {
		return
	}
	if c.sketches == nil {
		c.sketches = &[2]sketches{}
		for a, times := range c.last {
			for kind, at := range times {
				if at > now-window {
					c.sketches[kind].add(a, at, window/buckets)
				}
			}
		}
	}
	c.last, c.since = nil, now
}

// prune drops what is older than the window, and counts the rest.
func (c *contacts) prune(now, window clock) (n [2]uint64) {
	c.oldest, c.pruned = now, now
	for a, times := range c.last {
		latest := max(times[attempted], times[answered])
		if latest <= now-window {
			delete(c.last, a)
			continue
		}
		c.oldest = min(c.oldest, latest)
		for kind, at := range times {
			if at > now-window {
				n[kind]++
			}
		}
	}
	if len(c.last) == 0 {
		c.last = nil // a map never gets smaller
	}
	return n
}

// count counts the peers in the window, unless there can't be so many. partly says that
// these aren't all: estimate knows how many there are.
func (c *contacts) count(atLeast uint64, now, window clock) (n [2]uint64, partly bool) {
	if c.sketches != nil && c.since <= now-window {
		c.sketches = nil
	}
	if c.sketches == nil && uint64(len(c.last)) < atLeast && now-c.pruned < window/buckets {
		return n, false
	}
	return c.prune(now, window), c.sketches != nil
}

// latest are some of the peers that were contacted after a time, the last ones first.
func (c *contacts) latest(kind, most int, after clock) []netip.Addr {
	type contact struct {
		address
		at clock
	}
	var all []contact
	for a, times := range c.last {
		if times[kind] > after {
			all = append(all, contact{a, times[kind]})
		}
	}
	slices.SortFunc(all, func(x, y contact) int {
		return cmp.Or(cmp.Compare(y.at, x.at), slices.Compare(x.address[:], y.address[:]))
	})
	addresses := []netip.Addr{}
	for _, x := range all[:min(most, len(all))] {
		addresses = append(addresses, x.ip())
	}
	return addresses
}

// sketches are the peers of the last buckets, and of the one before them: a window that
// doesn't end with a bucket has that one, too.
type sketches [buckets + 1]struct {
	number clock // of the bucket
	*hyperloglog.Sketch
}

func (s *sketches) add(a address, at, width clock) {
	b := &s[at/width%(buckets+1)]
	if b.Sketch == nil {
		b.Sketch = newSketch()
	} else if b.number < at/width {
		b.Reset()
	}
	b.number = at / width
	b.Insert(a[:])
}

// estimate is about how many peers there are of a kind in the window.
func (s *sketches) estimate(now, window clock) uint64 {
	sum := newSketch()
	for _, b := range s {
		if b.Sketch != nil && (b.number+1)*(window/buckets) > now-window {
			_ = sum.Merge(b.Sketch) // they have the same precision
		}
	}
	return sum.Estimate()
}

// newSketch makes a sketch that has all registers from the beginning: the estimate
// then depends on nothing but what is in it.
func newSketch() *hyperloglog.Sketch {
	s, err := hyperloglog.NewSketch(precision, false)
	if err != nil {
		panic(err) // the precision is a constant
	}
	return s
}
