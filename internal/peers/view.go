package peers

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// View says what of a sample to show, and how.
type View struct {
	Point    traffic.Point          // empty: traffic.DefaultPoint
	Bypassed bool                   // packets are known to bypass tc, for traffic.DefaultPoint
	Sort     string                 // one of SortFields, "-" in front: descending; empty: DefaultSort
	Limit    int                    // peers to show; 0: all
	Device   string                 // only endpoints behind the device of that name
	Address  netip.Prefix           // only endpoints in the prefix; the zero value: all
	Match    func(traffic.Key) bool // only endpoints of which it is true; nil: all
	Peer     netip.Prefix           // only peers in the prefix; the zero value: all
	Failed   bool                   // only peers that haven't answered all attempts

	// Owner says who is behind an endpoint; nil: nobody is known.
	Owner func(traffic.Key) (endpoint.Owner, bool)
}

// DefaultSort puts the peers first that there was news of last.
const DefaultSort = "-last_seen"

var fields = sample.Fields[Peer]{
	"address":   func(a, b Peer) int { return a.Address.Compare(b.Address) },
	"pod":       func(a, b Peer) int { return a.ComparePods(b.Who) },
	"devname":   sample.By(func(p Peer) string { return sample.Value(p.DevName) }),
	"peer":      func(a, b Peer) int { return a.Peer.Address.Compare(b.Peer.Address) },
	"transport": sample.By(func(p Peer) string { return p.Transport }),
	"port":      sample.By(func(p Peer) uint16 { return sample.Value(p.Peer.Port) }),

	"attempts": sample.By(func(p Peer) uint64 { return p.Attempts }),
	"answers":  sample.By(func(p Peer) uint64 { return p.Answers }),
	"refusals": sample.By(func(p Peer) uint64 { return p.Refusals }),

	"new_attempts": sample.By(func(p Peer) uint64 { return sample.Value(p.NewAttempts) }),
	"new_answers":  sample.By(func(p Peer) uint64 { return sample.Value(p.NewAnswers) }),
	"new_refusals": sample.By(func(p Peer) uint64 { return sample.Value(p.NewRefusals) }),

	"first_seen": func(a, b Peer) int { return a.FirstSeen.Compare(b.FirstSeen) },
	"last_seen":  func(a, b Peer) int { return a.LastSeen.Compare(b.LastSeen) },
}

// SortFields lists what View.Sort can name.
func SortFields() []string { return fields.Names() }

// Check returns an error of kind fault.ErrUsage if the view can't be shown.
func (v View) Check() error {
	if err := fields.Check(v.sort()); err != nil {
		return err
	}
	if v.Limit < 0 {
		return fault.New(fault.ErrUsage, "show %d peers: the limit is negative", v.Limit)
	}
	return traffic.CheckPoint(v.Point)
}

func (v View) sort() string { return cmp.Or(v.Sort, DefaultSort) }

// Watch makes documents of the samples of one instance. The zero value has no sample
// yet.
type Watch struct {
	View // must pass Check

	before, now *Sample
	unseen      int64  // entries that were made since the first sample and that none has had
	lost        uint64 // the most that unseen has been
	noRoom      uint64 // since the first sample
}

// Take adds a sample of a Sampler, each after the one before, from its first one on.
//
// Loss.Peers is how many entries were made since the first sample less those that a
// sample has had. Entries are counted in Sample.Made right after they are made, and
// Made is read before they are. So one that is made during a sample is counted as
// lost by none: a later one tells, and it is exact when nothing is made while the
// samples are taken. But of the entries that are being made just when the first
// sample begins one a CPU may be taken for lost. It makes no difference when the
// kernel chooses to make room, which it does for 128 entries at a time.
func (w *Watch) Take(s Sample) {
	w.before, w.now = w.now, &s
	if s.First {
		w.before = nil
	} else {
		w.unseen += int64(sample.Grown(w.before.Made, s.Made))
		w.noRoom += sample.Grown(w.before.NoRoom, s.NoRoom)
	}
	for _, e := range s.Peers {
		isNew := e.Before == nil
		if s.First {
			isNew = !e.FirstSeen.Before(s.Time) // Made doesn't have it yet
		}
		if isNew {
			w.unseen--
		}
	}
	w.lost = uint64(max(int64(w.lost), w.unseen))
}

// Document shows the last sample that was taken.
func (w *Watch) Document() Document {
	point := w.Point
	if point == "" {
		point, _ = traffic.DefaultPoint(w.now.Attached, w.Bypassed)
	}
	elapsed := time.Duration(0)
	if w.before != nil {
		elapsed = max(0, w.now.Time.Sub(w.before.Time))
	}
	d := Document{
		Schema: Schema, Time: w.now.Time.UTC().Truncate(time.Second), IntervalSeconds: sample.Interval(elapsed),
		ObservedAt: point, Loss: Loss{Peers: w.lost, Endpoints: w.noRoom},
	}
	d.Endpoints, d.Others.Endpoints = w.endpoints(point)
	d.Peers, d.Others.Peers = w.peers(point)
	return d
}

func (w *Watch) endpoints(point traffic.Point) (shown []Endpoint, others int) {
	shown = []Endpoint{}
	keys := make([]traffic.Key, 0, len(w.now.Endpoints))
	for key := range w.now.Endpoints {
		if key.Point == point {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, traffic.Key.Compare)
	for _, key := range keys {
		who := traffic.WhoOf(key, w.now.Devices, w.Owner)
		if !w.shows(key, who) {
			others++
			continue
		}
		shown = append(shown, Endpoint{Who: who, Connections: w.now.Endpoints[key]})
	}
	return shown, others
}

// candidate is a peer that may be shown.
type candidate struct {
	Peer
	key Key
}

func (w *Watch) peers(point traffic.Point) (shown []Peer, others int) {
	var all []candidate
	for key, e := range w.now.Peers {
		if key.Endpoint.Point != point {
			continue
		}
		who := traffic.WhoOf(key.Endpoint, w.now.Devices, w.Owner)
		if !w.shows(key.Endpoint, who) || !w.showsPeer(key, e) {
			others++
			continue
		}
		all = append(all, candidate{w.peer(key, e, who), key})
	}
	compare := fields.Compare(w.sort())
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(compare(a.Peer, b.Peer), a.key.Endpoint.Compare(b.key.Endpoint), a.key.Address.Compare(b.key.Address),
			cmp.Compare(a.key.Protocol, b.key.Protocol), cmp.Compare(a.key.Port, b.key.Port))
	})
	if w.Limit > 0 && len(all) > w.Limit {
		others += len(all) - w.Limit
		all = all[:w.Limit]
	}
	shown = make([]Peer, len(all))
	for i := range all {
		shown[i] = all[i].Peer
	}
	return shown, others
}

func (w *Watch) shows(key traffic.Key, who traffic.Who) bool {
	return who.Fits(w.Device, w.Address) && (w.Match == nil || w.Match(key))
}

func (w *Watch) showsPeer(key Key, e Entry) bool {
	return (!w.Peer.IsValid() || w.Peer.Contains(key.Address)) && (!w.Failed || e.Answers < e.Attempts)
}

func (w *Watch) peer(key Key, e Entry, who traffic.Who) Peer {
	p := Peer{
		Who: who, Transport: traffic.Transport(key.Protocol), Peer: Remote{Address: key.Address},
		Counters: e.Counters, FirstSeen: e.FirstSeen, LastSeen: e.LastSeen,
	}
	if hasPorts(key.Protocol) {
		p.Peer.Port = &key.Port
	}
	if !w.now.First {
		before := sample.Value(e.Before)
		attempts, answers, refusals := e.Attempts-before.Attempts, e.Answers-before.Answers, e.Refusals-before.Refusals
		p.NewAttempts, p.NewAnswers, p.NewRefusals = &attempts, &answers, &refusals
	}
	return p
}

// Protocols of IP that have ports.
const (
	tcp     = 6
	udp     = 17
	sctp    = 132
	udpLite = 136
)

func hasPorts(protocol uint8) bool {
	return protocol == tcp || protocol == udp || protocol == sctp || protocol == udpLite
}
