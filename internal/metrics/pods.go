package metrics

import (
	"cmp"
	"slices"
	"strconv"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/traffic"
)

// place is where a program counts: an interface or a cgroup. It is what a series is
// about, and not a Pod, because counters of a place come and go together: a sum of
// several would fall when one of them goes, and seem to have started anew.
type place struct {
	program string
	point   traffic.Point
	ifindex uint32 // at tc
	cgroup  uint64 // at cgroup
}

func (p place) compare(q place) int {
	return cmp.Or(cmp.Compare(p.program, q.program), cmp.Compare(p.point, q.point), cmp.Compare(p.ifindex, q.ifindex), cmp.Compare(p.cgroup, q.cgroup))
}

// reading is what a place has now, of all its addresses.
type reading struct {
	traffic.Counters
	device string
	live   bool // it is there, and a program is attached to it
}

// placesOf adds up what a sample has of each place.
func placesOf(program string, s traffic.Sample, gone map[uint64]bool) map[place]reading {
	places := map[place]reading{}
	inCgroup := slices.Contains(s.Attached, traffic.Cgroup)
	for key, counters := range s.Pods {
		p := place{program, key.Point, key.IfIndex, key.CgroupID}
		r := places[p]
		r.device, r.live = s.Devices[key.IfIndex]
		if key.Point == traffic.Cgroup {
			r.device, r.live = "", inCgroup && !gone[key.CgroupID]
		}
		r.Add(counters)
		places[p] = r
	}
	return places
}

// pods remembers which places have series.
type pods struct {
	most   int // places with series of their own
	places map[place]*podSeries
	others map[place]*traffic.Counters // by program and point: how much those without series of their own have grown
	read   map[string]bool             // programs that were read before
}

// podSeries are the series of a place.
type podSeries struct {
	labels []string // without the direction
	last   traffic.Counters
	grown  traffic.Counters // since the reading before
	own    bool
	gone   bool // it has been written once more; if it comes back it grows from last
}

func newPods(most int) *pods {
	return &pods{most: most, places: map[place]*podSeries{}, others: map[place]*traffic.Counters{}, read: map[string]bool{}}
}

// retain forgets programs that aren't loaded any more.
func (p *pods) retain(loaded map[string]bool) {
	keep(p.read, loaded, func(program string) string { return program })
	keep(p.places, loaded, func(p place) string { return p.program })
	keep(p.others, loaded, func(p place) string { return p.program })
}

func keep[K comparable, V any](m map[K]V, loaded map[string]bool, program func(K) string) {
	for key := range m {
		if !loaded[program(key)] {
			delete(m, key)
		}
	}
}

// update takes over the places of programs that were read.
func (p *pods) update(programs []string, now map[place]reading) {
	for at := range p.places {
		if _, ok := now[at]; !ok && slices.Contains(programs, at.program) {
			delete(p.places, at)
		}
	}
	for at, r := range now {
		one := p.places[at]
		if one == nil {
			one = &podSeries{gone: !r.live}
			if !p.read[at.program] { // counted before, and not growth
				one.last = r.Counters
			}
			p.places[at] = one
		}
		one.gone = one.gone && !r.live
		if !one.gone {
			one.grown, one.last = growth(one.last, r.Counters), r.Counters
		}
	}
	for _, program := range programs {
		p.read[program] = true
	}
	p.choose(now)
}

// choose gives places series of their own while there is room, those with the most
// bytes first, and adds what the rest have grown to the others.
func (p *pods) choose(now map[place]reading) {
	room := p.most
	var without []place
	for at, one := range p.places {
		switch {
		case one.own:
			room--
		case now[at].live:
			without = append(without, at)
		}
	}
	slices.SortFunc(without, func(a, b place) int {
		return cmp.Or(cmp.Compare(bytesOf(p.places[b].last), bytesOf(p.places[a].last)), a.compare(b))
	})
	for _, at := range without[:min(max(room, 0), len(without))] {
		p.places[at].own = true
	}
	for at, one := range p.places {
		if _, ok := now[at]; !ok || one.own || one.gone {
			continue
		}
		rest := place{program: at.program, point: at.point}
		if p.others[rest] == nil {
			p.others[rest] = &traffic.Counters{}
		}
		p.others[rest].Add(one.grown)
	}
}

func bytesOf(c traffic.Counters) uint64 { return c.TransmitBytes + c.ReceiveBytes }

// growth is what a place has more than before; all of it if it started anew.
func growth(before, now traffic.Counters) traffic.Counters {
	if now.TransmitBytes < before.TransmitBytes || now.TransmitPackets < before.TransmitPackets ||
		now.ReceiveBytes < before.ReceiveBytes || now.ReceivePackets < before.ReceivePackets {
		return now
	}
	return traffic.Counters{
		TransmitBytes: now.TransmitBytes - before.TransmitBytes, TransmitPackets: now.TransmitPackets - before.TransmitPackets,
		ReceiveBytes: now.ReceiveBytes - before.ReceiveBytes, ReceivePackets: now.ReceivePackets - before.ReceivePackets,
	}
}

// write writes the series of places that were read. Those of a place that is gone are
// written once more, as they were called.
func (p *pods) write(s *snapshot, now map[place]reading, owner func(place) (endpoint.Owner, bool), write writer) {
	for at, r := range now {
		one := p.places[at]
		if one.gone {
			continue
		}
		add := s.addLast
		if r.live {
			who, _ := owner(at)
			add, one.labels = s.add, podLabelsOf(at, r, who)
		}
		if one.own {
			write(add, one.labels, r.Counters)
		}
		if !r.live {
			one.own, one.gone, one.labels = false, true, nil
		}
	}
	for at, counters := range p.others {
		write(s.add, []string{at.program, string(at.point), "", other, "", "", "", "", ""}, *counters)
	}
}

func podLabelsOf(at place, r reading, who endpoint.Owner) []string {
	labels := []string{at.program, string(at.point), "", "", "", "", "", r.device, ""}
	if at.point == traffic.Cgroup {
		labels[8] = strconv.FormatUint(at.cgroup, 10)
	}
	if who.Pod != nil {
		labels[2], labels[3], labels[4] = text(who.Pod.Namespace), text(who.Pod.Name), who.Pod.UID
	}
	if who.Container != nil {
		labels[5], labels[6] = text(who.Container.Name), who.Container.ID
	}
	return labels
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// writer writes the series of a place.
type writer func(add func(*Metric, float64, ...string), labels []string, c traffic.Counters)

func writePod(add func(*Metric, float64, ...string), labels []string, c traffic.Counters) {
	labels = slices.Clip(labels)
	sent, received := append(labels, transmit), append(labels, receive)
	add(podBytes, float64(c.TransmitBytes), sent...)
	add(podBytes, float64(c.ReceiveBytes), received...)
	add(podPackets, float64(c.TransmitPackets), sent...)
	add(podPackets, float64(c.ReceivePackets), received...)
}
