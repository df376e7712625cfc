package drops

import (
	"time"

	"bpfnet/internal/sample"
)

// change is counters and by how much they grew.
type change struct{ now, grown Counters }

func (c *change) add(o change) {
	c.now, c.grown = c.now.plus(o.now), c.grown.plus(o.grown)
}

func (c *change) less(o change) {
	c.now, c.grown = c.now.minus(o.now), c.grown.minus(o.grown)
}

func (c Counters) plus(o Counters) Counters {
	return Counters{c.Packets + o.Packets, c.Bytes + o.Bytes}
}

func (c Counters) minus(o Counters) Counters {
	return Counters{c.Packets - min(c.Packets, o.Packets), c.Bytes - min(c.Bytes, o.Bytes)}
}

// since is how much counters grew that may have begun anew.
func (c Counters) since(before Counters) change {
	if c.Packets < before.Packets || c.Bytes < before.Bytes {
		before = Counters{}
	}
	return change{c, c.minus(before)}
}

// rates makes changes of two samples.
type rates struct {
	before, now *Sample
	elapsed     time.Duration // 0: no rates
}

func (w *Watch) rates() rates {
	r := rates{before: &Sample{}, now: w.now}
	if w.before != nil {
		r.before, r.elapsed = w.before, max(0, w.now.Time.Sub(w.before.Time))
	}
	return r
}

// entry is the change of an entry. One that made room for others meanwhile, and was made
// again, has grown by what it has.
func (r rates) entry(key Key) change {
	was, now := r.before.Entries[key], r.now.Entries[key]
	if !was.FirstSeen.Equal(now.FirstSeen) {
		was = Entry{}
	}
	return now.since(was.Counters)
}

func (r rates) reason(number uint32) change {
	return r.now.Reasons[number].since(r.before.Reasons[number])
}

func (r rates) total() (c change) {
	for number := range r.now.Reasons {
		c.add(r.reason(number))
	}
	return c
}

func (r rates) dropped(c change) Dropped {
	return Dropped{c.now, sample.PerSecond(c.grown.Packets, r.elapsed), sample.PerSecond(c.grown.Bytes, r.elapsed)}
}
