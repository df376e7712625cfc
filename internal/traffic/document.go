package traffic

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/sample"
)

// Schema names the document that View.Document makes.
const Schema = "bpfnet.pods/v1"

// Document is what has passed at one point, by Pod. The sum of Pods and Others
// is Total.
type Document struct {
	Schema          string    `json:"schema"`
	Time            time.Time `json:"time"`
	IntervalSeconds *float64  `json:"interval_seconds"` // null: no sample before, no rates
	ObservedAt      Point     `json:"observed_at"`
	Loss            Loss      `json:"loss"`
	Pods            []Pod     `json:"pods"`
	Others          Others    `json:"others"`
	Total           Traffic   `json:"total"`
}

// Loss is what could not be attributed to a Pod for want of space.
type Loss struct {
	MapFull uint64 `json:"map_full"` // packets; they are in the row of that name
}

// Traffic is counters with their growth per second, null when it is unknown.
type Traffic struct {
	Counters
	TransmitBytesPerSecond   *uint64 `json:"transmit_bytes_per_second"`
	TransmitPacketsPerSecond *uint64 `json:"transmit_packets_per_second"`
	ReceiveBytesPerSecond    *uint64 `json:"receive_bytes_per_second"`
	ReceivePacketsPerSecond  *uint64 `json:"receive_packets_per_second"`
}

// Pod is the traffic of one address at one device or in one cgroup.
type Pod struct {
	Who
	Traffic
}

// Who is an address at one device or in one cgroup, and whose it is.
type Who struct {
	Address     netip.Addr `json:"address"`
	Namespace   *string    `json:"namespace"`
	Pod         *string    `json:"pod"`
	PodUID      *string    `json:"pod_uid"`
	Container   *string    `json:"container"` // null at tc for a Pod: its containers share the device
	ContainerID *string    `json:"container_id"`
	DevName     *string    `json:"devname"`
	IfIndex     *uint32    `json:"ifindex"`   // null at cgroup
	CgroupID    *string    `json:"cgroup_id"` // null at tc
}

// Others is the traffic of everything that Pods doesn't show.
type Others struct {
	Traffic
	Pods int        `json:"pods"` // Pods that a limit or a filter leaves out
	Rows []NamedRow `json:"rows"` // packets that belong to no Pod's entry, by why
}

// NamedRow is the traffic that belongs to no Pod's entry for one reason.
type NamedRow struct {
	Row string `json:"row"`
	Traffic
}

// View says what of a sample to show, and how.
type View struct {
	Point    Point          // empty: Sample.Default
	Bypassed bool           // packets are known to bypass tc, for Sample.Default
	Sort     string         // one of SortFields, "-" in front: descending; empty: DefaultSort
	Limit    int            // Pods to show; 0: all
	Device   string         // only Pods behind the device of that name
	Address  netip.Prefix   // only Pods in the prefix; the zero value: all
	Match    func(Key) bool // only Pods of which it is true; nil: all

	// Owner says who is behind an entry; nil: nobody is known.
	Owner func(Key) (endpoint.Owner, bool)
}

// DefaultSort puts the Pods with the most traffic first.
const DefaultSort = "-bytes"

var fields = sample.Fields[Pod]{
	"address": func(a, b Pod) int { return a.Address.Compare(b.Address) },
	"pod":     func(a, b Pod) int { return a.ComparePods(b.Who) },
	"devname": sample.By(func(p Pod) string { return sample.Value(p.DevName) }),
	"bytes":   sample.By(func(p Pod) uint64 { return p.bytes() }),
	"packets": sample.By(func(p Pod) uint64 { return p.packets() }),

	"transmit_bytes":   sample.By(func(p Pod) uint64 { return p.TransmitBytes }),
	"transmit_packets": sample.By(func(p Pod) uint64 { return p.TransmitPackets }),
	"receive_bytes":    sample.By(func(p Pod) uint64 { return p.ReceiveBytes }),
	"receive_packets":  sample.By(func(p Pod) uint64 { return p.ReceivePackets }),

	"bytes_per_second": sample.By(func(p Pod) uint64 {
		return sample.Value(p.TransmitBytesPerSecond) + sample.Value(p.ReceiveBytesPerSecond)
	}),
	"packets_per_second": sample.By(func(p Pod) uint64 {
		return sample.Value(p.TransmitPacketsPerSecond) + sample.Value(p.ReceivePacketsPerSecond)
	}),
	"transmit_bytes_per_second":   sample.By(func(p Pod) uint64 { return sample.Value(p.TransmitBytesPerSecond) }),
	"transmit_packets_per_second": sample.By(func(p Pod) uint64 { return sample.Value(p.TransmitPacketsPerSecond) }),
	"receive_bytes_per_second":    sample.By(func(p Pod) uint64 { return sample.Value(p.ReceiveBytesPerSecond) }),
	"receive_packets_per_second":  sample.By(func(p Pod) uint64 { return sample.Value(p.ReceivePacketsPerSecond) }),
}

// SortFields lists what View.Sort can name.
func SortFields() []string { return fields.Names() }

// Check returns an error of kind fault.ErrUsage if the view can't be shown.
func (v View) Check() error {
	if err := fields.Check(v.sort()); err != nil {
		return err
	}
	if v.Limit < 0 {
		return fault.New(fault.ErrUsage, "show %d Pods: the limit is negative", v.Limit)
	}
	return CheckPoint(v.Point)
}

// CheckPoint returns an error of kind fault.ErrUsage for what is neither a point nor
// empty.
func CheckPoint(p Point) error {
	if p != "" && p != TC && p != Cgroup {
		return fault.New(fault.ErrUsage, "observe %q: no such point", string(p)).Hint("points are tc and cgroup")
	}
	return nil
}

func (v View) sort() string { return cmp.Or(v.Sort, DefaultSort) }

// Document shows a sample, with rates since an earlier one if before isn't nil.
// The view must pass Check. A counter that is lower than before started anew,
// its rates are unknown.
func (v View) Document(before *Sample, now Sample) Document {
	point := v.Point
	if point == "" {
		point, _ = now.Default(v.Bypassed)
	}
	rates := newRates(before, now)
	d := Document{
		Schema: Schema, Time: now.Time.UTC().Truncate(time.Second), IntervalSeconds: sample.Interval(rates.elapsed),
		ObservedAt: point, Pods: []Pod{}, Others: Others{Rows: []NamedRow{}},
	}
	var total, others change
	for _, pod := range v.arrange(v.pods(point, rates, now)) {
		c := rates.pod(pod.key)
		total.add(c)
		if pod.hidden {
			d.Others.Pods++
			others.add(c)
			continue
		}
		d.Pods = append(d.Pods, pod.Pod)
	}
	for _, row := range rows {
		if row.Point != point {
			continue
		}
		c := rates.row(row.Row)
		total.add(c)
		others.add(c)
		d.Others.Rows = append(d.Others.Rows, NamedRow{row.Name, rates.traffic(c)})
	}
	d.Others.Traffic, d.Total = rates.traffic(others), rates.traffic(total)
	d.Loss.MapFull = now.Rows[Row{point, "map_full"}].packets()
	return d
}

// candidate is a Pod of the sample that may be shown.
type candidate struct {
	Pod
	key    Key
	hidden bool
}

func (v View) pods(point Point, rates rates, now Sample) []candidate {
	var all []candidate
	for key := range now.Pods {
		if key.Point != point {
			continue
		}
		pod := Pod{Who: WhoOf(key, now.Devices, v.Owner), Traffic: rates.traffic(rates.pod(key))}
		all = append(all, candidate{Pod: pod, key: key})
	}
	return all
}

// WhoOf is whose the counters of a key are: devices has the names of interfaces, and
// owner who is behind a key; nil: nobody is known.
func WhoOf(key Key, devices map[uint32]string, owner func(Key) (endpoint.Owner, bool)) Who {
	w := Who{Address: key.Address}
	if key.Point == TC {
		w.IfIndex = &key.IfIndex
		if name, ok := devices[key.IfIndex]; ok {
			w.DevName = &name
		}
	} else {
		id := strconv.FormatUint(key.CgroupID, 10)
		w.CgroupID = &id
	}
	if owner != nil {
		w.name(owner(key))
	}
	return w
}

// name takes over whose it is; known: whether that is.
func (w *Who) name(owner endpoint.Owner, known bool) {
	if !known {
		return
	}
	if owner.Pod != nil {
		w.Namespace, w.Pod, w.PodUID = owner.Pod.Namespace, owner.Pod.Name, &owner.Pod.UID
	}
	if owner.Container != nil {
		w.Container, w.ContainerID = owner.Container.Name, &owner.Container.ID
	}
}

// ComparePods orders by the names of Pods and containers.
func (w Who) ComparePods(o Who) int {
	text := func(a, b *string) int { return cmp.Compare(sample.Value(a), sample.Value(b)) }
	return cmp.Or(text(w.Namespace, o.Namespace), text(w.Pod, o.Pod), text(w.Container, o.Container))
}

// Fits says whether it is behind a device, "" for any, and in a prefix, the zero value
// for any.
func (w Who) Fits(device string, prefix netip.Prefix) bool {
	return (device == "" || sample.Value(w.DevName) == device) && (!prefix.IsValid() || prefix.Contains(w.Address))
}

// arrange sorts Pods, ties by address, device and cgroup, and hides those that
// the filters and the limit leave out.
func (v View) arrange(all []candidate) []candidate {
	compare := fields.Compare(v.sort())
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(compare(a.Pod, b.Pod), a.key.Compare(b.key))
	})
	shown := 0
	for i := range all {
		all[i].hidden = !all[i].Fits(v.Device, v.Address) || v.Match != nil && !v.Match(all[i].key) || v.Limit > 0 && shown == v.Limit
		if !all[i].hidden {
			shown++
		}
	}
	return all
}

// change is counters and by how much they grew.
type change struct {
	now, grown Counters
	unknown    bool // counters that started anew make the growth unknown
}

func (c *change) add(other change) {
	c.now.Add(other.now)
	c.grown.Add(other.grown)
	c.unknown = c.unknown || other.unknown
}

// rates makes changes of two samples.
type rates struct {
	before  *Sample
	now     Sample
	elapsed time.Duration // 0: no rates
}

func newRates(before *Sample, now Sample) rates {
	r := rates{before: before, now: now}
	if before != nil {
		r.elapsed = max(0, now.Time.Sub(before.Time))
	}
	return r
}

func (r rates) pod(key Key) change {
	if r.elapsed == 0 {
		return change{now: r.now.Pods[key]}
	}
	return difference(r.before.Pods[key], r.now.Pods[key])
}

func (r rates) row(row Row) change {
	if r.elapsed == 0 {
		return change{now: r.now.Rows[row]}
	}
	return difference(r.before.Rows[row], r.now.Rows[row])
}

func difference(before, now Counters) change {
	c := change{now: now, grown: Counters{
		TransmitBytes:   now.TransmitBytes - before.TransmitBytes,
		TransmitPackets: now.TransmitPackets - before.TransmitPackets,
		ReceiveBytes:    now.ReceiveBytes - before.ReceiveBytes,
		ReceivePackets:  now.ReceivePackets - before.ReceivePackets,
	}}
	c.unknown = now.TransmitBytes < before.TransmitBytes || now.TransmitPackets < before.TransmitPackets ||
		now.ReceiveBytes < before.ReceiveBytes || now.ReceivePackets < before.ReceivePackets
	return c
}

// traffic gives a change its rates, rounded to whole bytes and packets.
func (r rates) traffic(c change) Traffic {
	t := Traffic{Counters: c.now}
	if c.unknown {
		return t
	}
	t.TransmitBytesPerSecond = sample.PerSecond(c.grown.TransmitBytes, r.elapsed)
	t.TransmitPacketsPerSecond = sample.PerSecond(c.grown.TransmitPackets, r.elapsed)
	t.ReceiveBytesPerSecond = sample.PerSecond(c.grown.ReceiveBytes, r.elapsed)
	t.ReceivePacketsPerSecond = sample.PerSecond(c.grown.ReceivePackets, r.elapsed)
	return t
}
