package drops

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// View says what of a sample to show, and how.
type View struct {
	Sort    string         // one of SortFields, "-" in front: descending; empty: DefaultSort
	Limit   int            // drops to show; 0: all
	Reasons []string       // only these; empty: all
	Device  string         // only at the interface of that name in the namespace Sample.Host
	Inside  bool           // only in the namespace Sample.Host
	Match   func(Key) bool // only those of which it is true; nil: all

	// Owner says whose packets they were; nil: nobody is known.
	Owner func(Key) (endpoint.Owner, bool)
	// Processes says who has the sockets open of drops that are shown, in their order,
	// nil where it isn't known; nil: nobody is known.
	Processes func([]Shown) []*Process
}

// Shown is a drop that is shown.
type Shown struct {
	Key
	Entry
	News bool // since the sample before
}

// DefaultSort puts first what was dropped last.
const DefaultSort = "-last_seen"

var fields = sample.Fields[Drop]{
	"reason":    sample.By(func(d Drop) string { return sample.Value(d.Reason) }),
	"location":  sample.By(func(d Drop) string { return sample.Value(d.Location) }),
	"pod":       func(a, b Drop) int { return a.Who.compare(b.Who) },
	"devname":   sample.By(func(d Drop) string { return sample.Value(d.DevName) }),
	"transport": sample.By(func(d Drop) string { return sample.Value(sample.Value(d.Network).Transport) }),
	"source":    func(a, b Drop) int { return sample.Value(a.Network).Source.compare(sample.Value(b.Network).Source) },
	"destination": func(a, b Drop) int {
		return sample.Value(a.Network).Destination.compare(sample.Value(b.Network).Destination)
	},

	"packets": sample.By(func(d Drop) uint64 { return d.Packets }),
	"bytes":   sample.By(func(d Drop) uint64 { return d.Bytes }),

	"packets_per_second": sample.By(func(d Drop) uint64 { return sample.Value(d.PacketsPerSecond) }),
	"bytes_per_second":   sample.By(func(d Drop) uint64 { return sample.Value(d.BytesPerSecond) }),

	"first_seen": func(a, b Drop) int { return a.FirstSeen.Compare(b.FirstSeen) },
	"last_seen":  func(a, b Drop) int { return a.LastSeen.Compare(b.LastSeen) },
}

func (w Who) compare(o Who) int {
	text := func(a, b *string) int { return cmp.Compare(sample.Value(a), sample.Value(b)) }
	return cmp.Or(text(w.Namespace, o.Namespace), text(w.Pod, o.Pod), text(w.Container, o.Container))
}

func (e *End) compare(o *End) int {
	a, b := sample.Value(e), sample.Value(o)
	return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(sample.Value(a.Port), sample.Value(b.Port)))
}

// SortFields lists what View.Sort can name.
func SortFields() []string { return fields.Names() }

// Check returns an error of kind fault.ErrUsage if the view can't be shown.
func (v View) Check() error {
	if v.Limit < 0 {
		return fault.New(fault.ErrUsage, "show %d drops: the limit is negative", v.Limit)
	}
	return fields.Check(v.sort())
}

func (v View) sort() string { return cmp.Or(v.Sort, DefaultSort) }

// Watch makes documents of the samples of one instance. The zero value has no sample
// yet.
type Watch struct {
	View // must pass Check

	before, now *Sample
	unseen      int64  // entries that were made since the first sample and that none has had
	lost        uint64 // the most that unseen has been
}

// Take adds a sample, each after the one before.
//
// Loss.Drops is how many entries were made since the first sample less those that a
// sample has had. Entries are counted in Sample.Made right after they are made, and
// Made is read before they are. So one that is made during a sample is counted as lost
// by none: a later one tells.
func (w *Watch) Take(s Sample) {
	w.before, w.now = w.now, &s
	if w.before != nil {
		w.unseen += int64(sample.Grown(w.before.Made, s.Made))
	}
	for key, e := range s.Entries {
		isNew := !e.FirstSeen.Before(s.Time) // Made doesn't have it yet
		if w.before != nil {
			was, known := w.before.Entries[key]
			isNew = !known || !was.FirstSeen.Equal(e.FirstSeen)
		}
		if isNew {
			w.unseen--
		}
	}
	w.lost = uint64(max(int64(w.lost), w.unseen))
}

// Document shows the last sample that was taken.
func (w *Watch) Document() Document {
	r := w.rates()
	d := Document{
		Schema: Schema, Time: w.now.Time.UTC().Truncate(time.Second), IntervalSeconds: sample.Interval(r.elapsed), Backend: backend,
		Loss:  Loss{Drops: w.lost, Missed: w.now.Missed, Reasons: w.now.NoRoom},
		Drops: []Drop{}, Reasons: []Reason{},
	}
	total, others := r.total(), r.total()
	rows, hidden := w.arrange(r)
	shown := make([]Shown, len(rows))
	for i, row := range rows {
		shown[i] = row.of
		others.less(r.entry(row.of.Key))
		d.Drops = append(d.Drops, row.doc)
	}
	if w.Processes != nil {
		for i, p := range w.Processes(shown) {
			d.Drops[i].Process = p
		}
	}
	d.Others, d.Total = Others{hidden, r.dropped(others)}, r.dropped(total)
	for number := range w.now.Reasons {
		d.Reasons = append(d.Reasons, Reason{w.reason(number), r.dropped(r.reason(number))})
	}
	slices.SortFunc(d.Reasons, func(a, b Reason) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(sample.Value(a.Reason), sample.Value(b.Reason)))
	})
	return d
}

// row is a drop that may be shown.
type row struct {
	doc Drop
	of  Shown
}

// arrange returns what is shown, in order, and counts what isn't.
func (w *Watch) arrange(r rates) (rows []row, hidden int) {
	for key, e := range w.now.Entries {
		if !w.shows(key, e) {
			hidden++
			continue
		}
		c := r.entry(key)
		rows = append(rows, row{w.drop(key, e, r.dropped(c)), Shown{key, e, c.grown != Counters{}}})
	}
	compare := fields.Compare(w.sort())
	slices.SortFunc(rows, func(a, b row) int { return cmp.Or(compare(a.doc, b.doc), a.of.Key.Compare(b.of.Key)) })
	if w.Limit > 0 && len(rows) > w.Limit {
		hidden += len(rows) - w.Limit
		rows = rows[:w.Limit]
	}
	return rows, hidden
}

// CheckReasons returns an error of kind fault.ErrUsage if the kernel that a sample is of
// has no reason of the name that is asked for, ErrUnsupported if it tells none at all.
// Numbers may be those of modules.
func (v View) CheckReasons(s Sample) error {
	if len(v.Reasons) > 0 && len(s.Names) == 0 {
		return fault.New(fault.ErrUnsupported, "choose by reason: this kernel tells none; kernels do since 5.17")
	}
	var words []string
	for number, word := range s.Names {
		if number != 0 {
			words = append(words, word)
		}
	}
	slices.Sort(words)
	for _, word := range v.Reasons {
		if _, err := strconv.ParseUint(word, 10, 32); err != nil && !slices.Contains(words, word) {
			return fault.New(fault.ErrUsage, "the kernel has no reason %q", word).Hint("%s", nearest.Hint(word, words))
		}
	}
	return nil
}

func (w *Watch) shows(key Key, e Entry) bool {
	here := key.NetNS == w.now.Host
	return (len(w.Reasons) == 0 || slices.Contains(w.Reasons, sample.Value(w.reason(key.Reason)))) &&
		(w.Device == "" || here && e.DevName == w.Device) && (!w.Inside || here) && (w.Match == nil || w.Match(key))
}

// reason is the kernel's word for a reason, or its number where it has none: those of
// subsystems are in modules.
func (w *Watch) reason(number uint32) *string {
	name, ok := w.now.Names[number]
	switch {
	case ok && number != 0:
		return &name
	case number == 0:
		return nil
	}
	name = strconv.FormatUint(uint64(number), 10)
	return &name
}

func (w *Watch) drop(key Key, e Entry, dropped Dropped) Drop {
	d := Drop{Reason: w.reason(key.Reason), Dropped: dropped, Network: key.network(), Who: w.who(key, e), FirstSeen: e.FirstSeen, LastSeen: e.LastSeen}
	if name, ok := w.now.Locations[key.Location]; ok {
		d.Location = &name
	}
	if key.Direction != "" {
		d.Direction = &key.Direction
	}
	return d
}

func (w *Watch) who(key Key, e Entry) Who {
	who := Who{DevName: known(e.DevName), IfIndex: known(key.IfIndex), NetNS: known(key.NetNS)}
	if key.CgroupID != 0 {
		id := strconv.FormatUint(key.CgroupID, 10)
		who.CgroupID = &id
	}
	if w.Owner == nil {
		return who
	}
	owner, ok := w.Owner(key)
	if !ok {
		return who
	}
	if owner.Pod != nil {
		who.Namespace, who.Pod, who.PodUID = owner.Pod.Namespace, owner.Pod.Name, &owner.Pod.UID
	}
	if owner.Container != nil {
		who.Container, who.ContainerID = owner.Container.Name, &owner.Container.ID
	}
	return who
}

// known is nil for the zero value.
func known[T comparable](value T) *T {
	var zero T
	if value == zero {
		return nil
	}
	return &value
}

// EtherTypes that have a name.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

func (k Key) network() *Network {
	isIP := k.Source.Addr().IsValid()
	if !isIP && k.EtherType == 0 {
		return nil
	}
	n := &Network{}
	switch {
	case k.EtherType == etherIPv4, isIP && k.Source.Addr().Is4():
		n.Type = "ipv4"
	case k.EtherType == etherIPv6, isIP:
		n.Type = "ipv6"
	case k.EtherType == etherARP:
		n.Type = "arp"
	default:
		n.Type = fmt.Sprintf("%#04x", k.EtherType)
	}
	if isIP {
		n.Transport = known(traffic.Transport(k.Protocol))
		n.Source = &End{k.Source.Addr(), known(k.Source.Port())}
		n.Destination = &End{k.Destination.Addr(), known(k.Destination.Port())}
	}
	return n
}
