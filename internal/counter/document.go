package counter

import (
	"cmp"
	"slices"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/sample"
)

// Schema names the document that View.Document makes.
const Schema = "bpfnet.counters/v1"

// Document is what has passed XDP, by interface. The sum of Interfaces and Others
// is Total.
type Document struct {
	Schema          string      `json:"schema"`
	Time            time.Time   `json:"time"`
	IntervalSeconds *float64    `json:"interval_seconds"` // null: no sample before, no rates
	ObservedAt      string      `json:"observed_at"`
	Interfaces      []Interface `json:"interfaces"`
	Others          Others      `json:"others"`
	Total           Rated       `json:"total"`
}

// Rated is a counter with its growth per second, null when it is unknown.
type Rated struct {
	Counter
	PacketsPerSecond *uint64 `json:"packets_per_second"`
	BytesPerSecond   *uint64 `json:"bytes_per_second"`
}

// Interface is the counters of one interface. The sum of Protocols is its own
// counter.
type Interface struct {
	DevName *string `json:"devname"`
	IfIndex *uint32 `json:"ifindex"` // null: interfaces beyond the size of the map
	Rated
	Protocols []Protocol `json:"protocols"` // those that were seen
}

// Protocol is the counters of one protocol of an interface.
type Protocol struct {
	EtherType *string `json:"ethertype"` // "ipv4", "ipv6", "arp"; null: any other, or unknown
	Protocol  *string `json:"protocol"`  // "tcp", "udp", "icmp", "sctp", "other"; null: not IP
	Truncated bool    `json:"truncated"` // too short to tell the protocol
	Counter
}

// Others is the counters of the interfaces that a limit or a filter leaves out.
type Others struct {
	Rated
	Interfaces int `json:"interfaces"`
}

// Class names one of Classes.
type Class struct {
	EtherType string // "ipv4", "ipv6", "arp"; "": any other, or unknown
	Protocol  string // "tcp", "udp", "icmp", "sctp", "other"; "": not IP
	Truncated bool   // too short to tell the protocol
}

// ClassNames returns the names in the order of Classes.
func ClassNames() []Class { return classNames[:] }

var classNames = [...]Class{
	{"ipv4", "tcp", false}, {"ipv4", "udp", false}, {"ipv4", "icmp", false}, {"ipv4", "sctp", false}, {"ipv4", "other", false},
	{"ipv6", "tcp", false}, {"ipv6", "udp", false}, {"ipv6", "icmp", false}, {"ipv6", "sctp", false}, {"ipv6", "other", false},
	{"arp", "", false}, {"", "", false}, {"", "", true},
}

// View says what of a sample to show, and how.
type View struct {
	Sort   string                  // one of SortFields, "-" in front: descending; empty: DefaultSort
	Limit  int                     // interfaces to show; 0: all
	Device string                  // only the interface of that name
	Match  func(index uint32) bool // only interfaces of which it is true; nil: all
}

// DefaultSort puts the interfaces with the most traffic first.
const DefaultSort = "-bytes"

var fields = sample.Fields[Interface]{
	"devname":            sample.By(func(i Interface) string { return sample.Value(i.DevName) }),
	"ifindex":            sample.By(func(i Interface) uint32 { return sample.Value(i.IfIndex) }),
	"packets":            sample.By(func(i Interface) uint64 { return i.Packets }),
	"bytes":              sample.By(func(i Interface) uint64 { return i.Bytes }),
	"packets_per_second": sample.By(func(i Interface) uint64 { return sample.Value(i.PacketsPerSecond) }),
	"bytes_per_second":   sample.By(func(i Interface) uint64 { return sample.Value(i.BytesPerSecond) }),
}

// SortFields lists what View.Sort can name.
func SortFields() []string { return fields.Names() }

// Check returns an error of kind fault.ErrUsage if the view can't be shown.
func (v View) Check() error {
	if err := fields.Check(v.sort()); err != nil {
		return err
	}
	if v.Limit < 0 {
		return fault.New(fault.ErrUsage, "show %d interfaces: the limit is negative", v.Limit)
	}
	return nil
}

func (v View) sort() string { return cmp.Or(v.Sort, DefaultSort) }

// Document shows a sample, with rates since an earlier one if before isn't nil.
// The view must pass Check. A counter that is lower than before started anew,
// its rates are unknown.
func (v View) Document(before *Sample, now Sample) Document {
	elapsed := since(before, now)
	d := Document{
		Schema: Schema, Time: now.Time.UTC().Truncate(time.Second), IntervalSeconds: sample.Interval(elapsed),
		ObservedAt: "xdp", Interfaces: []Interface{},
	}
	if before == nil {
		before = &Sample{}
	}
	var totalBefore, total, othersBefore, others Counter
	for _, candidate := range v.arrange(interfaces(before, now, elapsed)) {
		earlier := before.Interfaces[candidate.index].total()
		totalBefore.add(earlier)
		total.add(candidate.Counter)
		if !candidate.hidden {
			d.Interfaces = append(d.Interfaces, candidate.Interface)
			continue
		}
		d.Others.Interfaces++
		othersBefore.add(earlier)
		others.add(candidate.Counter)
	}
	d.Others.Rated = rate(othersBefore, others, elapsed)
	d.Total = rate(totalBefore, total, elapsed)
	return d
}

// candidate is an interface of the sample that may be shown.
type candidate struct {
	Interface
	index  uint32
	hidden bool
}

func interfaces(before *Sample, now Sample, elapsed time.Duration) []candidate {
	all := make([]candidate, 0, len(now.Interfaces))
	for index, counters := range now.Interfaces {
		i := Interface{
			Rated:     rate(before.Interfaces[index].total(), counters.total(), elapsed),
			Protocols: protocols(counters),
		}
		if index != 0 {
			i.IfIndex = &index
		}
		if name, ok := now.Devices[index]; ok {
			i.DevName = &name
		}
		all = append(all, candidate{Interface: i, index: index})
	}
	return all
}

func protocols(counters Classes) []Protocol {
	seen := []Protocol{}
	for i, name := range classNames {
		if counters[i].Packets > 0 {
			seen = append(seen, Protocol{word(name.EtherType), word(name.Protocol), name.Truncated, counters[i]})
		}
	}
	return seen
}

// word returns nil for the empty word.
func word(w string) *string {
	if w == "" {
		return nil
	}
	return &w
}

// arrange sorts interfaces, ties by index, and hides those that the filter and
// the limit leave out.
func (v View) arrange(all []candidate) []candidate {
	compare := fields.Compare(v.sort())
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(compare(a.Interface, b.Interface), cmp.Compare(a.index, b.index))
	})
	shown := 0
	for i := range all {
		matches := (v.Device == "" || sample.Value(all[i].DevName) == v.Device) && (v.Match == nil || v.Match(all[i].index))
		all[i].hidden = !matches || v.Limit > 0 && shown == v.Limit
		if !all[i].hidden {
			shown++
		}
	}
	return all
}

// since is the time between the samples; 0 if there is no earlier one.
func since(before *Sample, now Sample) time.Duration {
	if before == nil {
		return 0
	}
	return max(0, now.Time.Sub(before.Time))
}

// rate gives a counter its growth, rounded to whole packets and bytes.
func rate(before, now Counter, elapsed time.Duration) Rated {
	r := Rated{Counter: now}
	if now.Packets < before.Packets || now.Bytes < before.Bytes {
		return r
	}
	r.PacketsPerSecond = sample.PerSecond(now.Packets-before.Packets, elapsed)
	r.BytesPerSecond = sample.PerSecond(now.Bytes-before.Bytes, elapsed)
	return r
}
