package baseline

import (
	"cmp"
	"slices"
	"time"

	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// meter adds up what endpoints move in windows, one after the other.
type meter struct {
	timeline
	point   traffic.Point
	entries map[traffic.Key]*entry
	mapFull uint64 // packets that no counters have, since the first sample
	full    uint64 // of the last sample
}

// entry is what is known of counters.
type entry struct {
	counters amounts // in the last sample that had them
	who      traffic.Who
	seen     time.Time // by that
	since    time.Time // when they were first
	growth   amounts   // since the sample before
	sum      amounts   // in the window that isn't over
}

// seen is where an instance was seen.
type seen struct {
	who    traffic.Who // of its addresses, that which did most
	places int         // how many there are, by interface or cgroup
	point  traffic.Point
}

// volume is what an instance has moved in a window.
type volume struct {
	instance
	seen
	amounts amounts
	whole   bool   // it was there from the beginning to the end
	most    uint64 // bytes of who
}

// window is a window that is over.
type window struct {
	begin, end time.Time
	volumes    []volume // by instance
}

func newMeter(size time.Duration) *meter {
	return &meter{timeline: timeline{window: size}, entries: map[traffic.Key]*entry{}}
}

// step takes the next sample and returns the windows that are over.
func (m *meter) step(doc traffic.Document) (over []window) {
	before, known := m.advance(doc.Time, doc.IntervalSeconds)
	known = known && doc.ObservedAt == m.point
	if known {
		m.mapFull += sample.Grown(m.full, doc.Loss.MapFull)
	}
	m.point, m.full = doc.ObservedAt, doc.Loss.MapFull
	for i := range doc.Pods {
		m.count(&doc.Pods[i], before, known, doc.Others.Pods == 0)
	}
	if !known {
		m.restart()
		return nil
	}
	for from := before; from.Before(m.now); {
		end := from.Truncate(m.window).Add(m.window)
		to := end
		if m.now.Before(end) {
			to = m.now
		}
		m.spread(before, from, to)
		if to.Equal(end) {
			over = append(over, m.close(end))
		}
		from = to
	}
	return over
}

// count notes by how much counters grew. What new ones have came since the sample
// before, unless that may have left them out; when it came that counters have grown by
// which weren't in that sample isn't known.
func (m *meter) count(pod *traffic.Pod, before time.Time, known, all bool) {
	key := keyOf(m.point, &pod.Who)
	e, counters := m.entries[key], amountsOf(pod.Counters)
	switch {
	case e == nil:
		e = &entry{since: m.now}
		m.entries[key] = e
		if known && all {
			e.growth = counters
		}
	case known && e.seen.Equal(m.now):
		return // the document has them twice
	case known && e.seen.Equal(before):
		e.growth = counters.since(e.counters)
	default:
		e.since = m.now
	}
	e.counters, e.who, e.seen = counters, pod.Who, m.now
}

// restart forgets the window that isn't over.
func (m *meter) restart() {
	for key, e := range m.entries {
		if !e.seen.Equal(m.now) {
			delete(m.entries, key)
			continue
		}
		e.since, e.growth, e.sum = m.now, amounts{}, amounts{}
	}
}

// spread adds what came in a part of the time since a sample, evenly spread over that.
func (m *meter) spread(before, from, to time.Time) {
	total := float64(m.now.Sub(before))
	first, last := float64(from.Sub(before))/total, float64(to.Sub(before))/total
	for _, e := range m.entries {
		if e.growth == (amounts{}) {
			continue
		}
		for i, n := range e.growth {
			e.sum[i] += share(n, last) - share(n, first)
		}
		if to.Equal(m.now) {
			e.growth = amounts{}
		}
	}
}

func share(n uint64, part float64) uint64 {
	if part >= 1 {
		return n
	}
	return min(n, uint64(float64(n)*part))
}

// close ends a window. Whose its counters are counts as known by then.
func (m *meter) close(end time.Time) window {
	w := window{begin: end.Add(-m.window), end: end}
	byInstance := map[instance]*volume{}
	for key, e := range m.entries {
		id := instanceOf(key, &e.who)
		if e.seen.Before(w.begin) {
			if m.now.Sub(e.seen) > 2*m.window {
				delete(m.entries, key)
			}
			continue
		}
		there := !e.since.After(w.begin) && e.seen.Equal(m.now)
		v := byInstance[id]
		if v == nil {
			v = &volume{instance: id, seen: seen{point: m.point}, whole: true}
			byInstance[id] = v
		}
		bytes := e.sum[0] + e.sum[len(e.sum)/2]
		v.places++
		if !v.who.Address.IsValid() || bytes > v.most || bytes == v.most && e.who.Address.Less(v.who.Address) {
			v.who, v.most = e.who, bytes
		}
		for i, n := range e.sum {
			v.amounts[i] += n
		}
		v.whole = v.whole && there
		e.sum = amounts{}
	}
	for _, v := range byInstance {
		w.volumes = append(w.volumes, *v)
	}
	slices.SortFunc(w.volumes, func(a, b volume) int { return a.compare(b.instance) })
	return w
}

func (i instance) compare(o instance) int {
	return cmp.Or(cmp.Compare(i.name, o.name), cmp.Compare(i.kind, o.kind), cmp.Compare(i.id, o.id))
}
