package baseline

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// mostEndpoints is how many a document has at most.
const mostEndpoints = 16384

// Learner makes a baseline of samples.
type Learner struct {
	meter       *meter
	contacts    *contacts
	endpoints   map[string]*known
	hour        time.Time // that the values are of
	from, until time.Time
	leftOut     map[string]bool // at most mostEndpoints
}

// known is what an endpoint normally does.
type known struct {
	peers peerSet // nil: not known
	ports portSet // nil: not known
	cells [hours]*Cell

	values [len(metrics)][]weighted // of the hour that isn't over
	most   [len(metrics)]uint64
}

// Learn returns a Learner that goes on from a document, which has passed Read.
func Learn(earlier Document) *Learner {
	size := time.Duration(earlier.WindowSeconds) * time.Second
	l := &Learner{meter: newMeter(size), contacts: newContacts(size), endpoints: earlier.known(), leftOut: map[string]bool{}}
	if earlier.LearnedFrom != nil {
		l.from = *earlier.LearnedFrom
	}
	if earlier.LearnedUntil != nil {
		l.until = *earlier.LearnedUntil
	}
	return l
}

// known is the document as rules need it.
func (d Document) known() map[string]*known {
	all := make(map[string]*known, len(d.Endpoints))
	for _, e := range d.Endpoints {
		k := &known{}
		if e.Peers != nil {
			k.peers = peerSet{}
		}
		for _, text := range e.Peers {
			if p, err := parsePeer(text); err == nil {
				k.peers.add(p)
			}
		}
		if e.Ports != nil {
			k.ports = portSet{}
		}
		for _, port := range e.Ports {
			k.ports[port] = true
		}
		for _, c := range e.Volume {
			if h, ok := parseHour(c.Hour); ok {
				k.cells[h] = &c
			}
		}
		all[e.Endpoint] = k
	}
	return all
}

// Pods learns from the next sample of traffic.
func (l *Learner) Pods(doc traffic.Document) {
	over := l.meter.step(doc)
	l.saw(l.meter.now)
	for _, w := range over {
		l.learn(w)
	}
}

// Peers learns from the next sample of peers.
func (l *Learner) Peers(doc peers.Document) {
	over := l.contacts.step(doc, true)
	l.saw(l.contacts.now)
	l.meet(over)
}

func (l *Learner) saw(at time.Time) {
	if !writable(at) {
		return
	}
	at = at.UTC().Truncate(time.Second)
	if l.from.IsZero() || at.Before(l.from) {
		l.from = at
	}
	if at.After(l.until) {
		l.until = at
	}
}

// endpoint returns what is known of an endpoint, nil if there is no room for it, or it
// has a name that a file can't have.
func (l *Learner) endpoint(name string) *known {
	k := l.endpoints[name]
	switch {
	case k != nil:
	case len(l.endpoints) >= mostEndpoints || checkName(name) != nil:
		if len(l.leftOut) < mostEndpoints {
			l.leftOut[name] = true
		}
	default:
		k = &known{}
		l.endpoints[name] = k
	}
	return k
}

// learn takes over what was seen as a whole in a window.
func (l *Learner) learn(w window) {
	if hour := w.begin.Truncate(time.Hour); !hour.Equal(l.hour) {
		l.fold()
		l.hour = hour
	}
	for i := range w.volumes {
		v := &w.volumes[i]
		k := l.endpoint(v.name)
		if k == nil || !v.whole {
			continue
		}
		for j, x := range v.amounts {
			x = min(x, largest)
			k.values[j] = append(k.values[j], weighted{float64(x), 1})
			k.most[j] = max(k.most[j], x)
		}
	}
}

// fold ends an hour.
func (l *Learner) fold() {
	for _, k := range l.endpoints {
		windows := uint64(len(k.values[0]))
		if windows == 0 {
			continue
		}
		h := hourOf(l.hour)
		if k.cells[h] == nil {
			k.cells[h] = &Cell{Hour: hourName(h)}
		}
		k.cells[h].fold(windows, k.values, k.most)
		k.values, k.most = [len(metrics)][]weighted{}, [len(metrics)]uint64{}
	}
}

// meet takes over whom endpoints have contacted.
func (l *Learner) meet(over []meetings) {
	for _, w := range over {
		for _, m := range w.all {
			k := l.endpoint(m.name)
			if k == nil {
				continue
			}
			if k.peers == nil {
				k.peers = peerSet{}
			}
			if k.ports == nil {
				k.ports = portSet{}
			}
			for _, r := range m.remotes {
				k.peers.add(netip.PrefixFrom(r.address, r.address.BitLen()))
				if !k.ports.contains(r.port) && checkPort(r.port) == nil {
					k.ports[r.port] = true
				}
			}
			k.peers.bound()
			k.ports.bound()
		}
	}
}

// Document is what was learned until now.
func (l *Learner) Document() Document {
	l.fold()
	l.meet(l.contacts.close())
	l.contacts.open = time.Time{}
	for _, e := range l.meter.entries {
		l.endpoint(NameOf(&e.who))
	}
	d := Document{Schema: Schema, WindowSeconds: uint64(l.meter.window / time.Second), Endpoints: []Endpoint{}}
	if !l.from.IsZero() {
		d.LearnedFrom, d.LearnedUntil = &l.from, &l.until
	}
	for _, name := range slices.Sorted(maps.Keys(l.endpoints)) {
		d.Endpoints = append(d.Endpoints, l.endpoints[name].document(name))
	}
	return d
}

func (k *known) document(name string) Endpoint {
	e := Endpoint{Endpoint: name, Volume: []Cell{}}
	if k.peers != nil {
		e.Peers = k.peers.list()
	}
	if k.ports != nil {
		e.Ports = k.ports.list()
	}
	for _, c := range k.cells {
		if c != nil {
			e.Volume = append(e.Volume, *c)
		}
	}
	return e
}

// LeftOut is how many endpoints the document doesn't have.
func (l *Learner) LeftOut() int { return len(l.leftOut) }

// Lost is how many packets, and how many peers and connections, found no room since the
// first sample.
func (l *Learner) Lost() (packets, contacts uint64) { return l.meter.mapFull, l.contacts.lost }

// TooFar returns the longest time between two samples of traffic, and whether nothing
// was learned of windows in between.
func (l *Learner) TooFar() (time.Duration, bool) {
	return l.meter.longest, l.meter.tooFar(l.meter.longest)
}
