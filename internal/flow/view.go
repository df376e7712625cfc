package flow

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/sample"
)

// View says what of samples to show, and how.
type View struct {
	By    []string // what to group by, of Dimensions; empty: nothing
	Sort  string   // one of SortFields, "-" in front: descending; empty: DefaultSort
	Limit int      // flows or groups to show; 0: all

	Filter   Filter               // only flows that fit, but for its cgroups
	InCgroup func(id uint64) bool // only flows of cgroups of which it is true; nil: all
	Peer     netip.Prefix         // only flows with a peer in the prefix; the zero value: all

	// Who is behind what is seen; nil: nobody is known.
	Owner      func(cgroup uint64) (endpoint.Owner, bool)
	OwnerAt    func(netip.Addr) (endpoint.Owner, bool)
	Executable func(pid uint32, start uint64) string // "": not known; asked once for each process
	Users      map[uint32]string
	Boot       time.Time // when CLOCK_BOOTTIME was 0
	// Name is by which name a local address knew a peer's, so long before the sample; "":
	// not known. It is asked until it is.
	Name func(local, peer netip.Addr, ago time.Duration) string

	all bool // also sockets that are no flows
}

// DefaultSort puts those first that moved the most since the sample before.
const DefaultSort = "-io.new_bytes"

// fields are those that entries can be sorted by, under the names they have in
// documents.
var fields = sample.Fields[*entry]{
	"flows":    sample.By(func(e *entry) int { return e.flows }),
	"io.bytes": sample.By(func(e *entry) uint64 { return e.total.bytes() }),
	// The first document has nothing new.
	"io.new_bytes":                 sample.By(func(e *entry) uint64 { return e.grown.bytes() }),
	"io.transmit_bytes":            sample.By(func(e *entry) uint64 { return e.total.TransmitBytes }),
	"io.receive_bytes":             sample.By(func(e *entry) uint64 { return e.total.ReceiveBytes }),
	"io.transmit_calls":            sample.By(func(e *entry) uint64 { return e.total.TransmitCalls }),
	"io.receive_calls":             sample.By(func(e *entry) uint64 { return e.total.ReceiveCalls }),
	"io.new_transmit_bytes":        sample.By(func(e *entry) uint64 { return e.grown.TransmitBytes }),
	"io.new_receive_bytes":         sample.By(func(e *entry) uint64 { return e.grown.ReceiveBytes }),
	"io.transmit_bytes_per_second": sample.By(func(e *entry) uint64 { return e.grown.TransmitBytes }),
	"io.receive_bytes_per_second":  sample.By(func(e *entry) uint64 { return e.grown.ReceiveBytes }),
	"process.pid":                  sample.By(func(e *entry) uint32 { return e.local.pid }),
	"process.command":              sample.By(func(e *entry) string { return e.local.command }),
	"process.executable":           sample.By(func(e *entry) string { return e.local.executable }),
	"user.uid":                     sample.By(func(e *entry) uint32 { return e.local.uid }),
	"container.name":               sample.By(func(e *entry) string { return e.local.container }),
	"k8s.pod":                      func(a, b *entry) int { return a.local.comparePods(&b.local) },
	"network.transport":            sample.By(func(e *entry) string { return e.transport }),
	"network.local.address":        func(a, b *entry) int { return a.local.address.Compare(b.local.address) },
	"network.local.port":           sample.By(func(e *entry) uint16 { return e.local.port }),
	"network.peer.address":         func(a, b *entry) int { return a.peer.address.Compare(b.peer.address) },
	"network.peer.port":            sample.By(func(e *entry) uint16 { return e.peer.port }),
	"tcp.state":                    sample.By(func(e *entry) string { return e.state }),
	"tcp.srtt_us":                  sample.By(func(e *entry) uint32 { return e.tcp().SRTT }),
	"tcp.min_rtt_us":               sample.By(func(e *entry) uint32 { return e.tcp().MinRTT }),
	"tcp.retransmits":              sample.By(func(e *entry) uint32 { return e.tcp().Retransmits }),
	"opened_at":                    func(a, b *entry) int { return a.opened().Compare(b.opened()) },
}

// SortFields lists what View.Sort can name.
func SortFields() []string { return fields.Names() }

// Check returns an error of kind fault.ErrUsage if the view can't be shown.
func (v View) Check() error {
	if _, err := newGrouping(v.By); err != nil {
		return err
	}
	if v.Limit < 0 {
		return fault.New(fault.ErrUsage, "show %d flows: the limit is negative", v.Limit)
	}
	return fields.Check(v.sort())
}

func (v View) sort() string { return cmp.Or(v.Sort, DefaultSort) }

// fits says whether a row is to be shown and summed at all.
func (v *View) fits(r *Row) bool {
	f := &v.Filter
	return (len(f.PIDs) == 0 || slices.Contains(f.PIDs, r.PID)) &&
		(len(f.Transports) == 0 || slices.Contains(f.Transports, r.Transport)) &&
		(len(f.Ports) == 0 || slices.Contains(f.Ports, r.Local.Port()) || slices.Contains(f.Ports, r.Peer.Port())) &&
		(v.InCgroup == nil || v.InCgroup(r.Cgroup)) &&
		(!v.Peer.IsValid() || v.Peer.Contains(r.Peer.Addr()) || v.Peer.Contains(r.NAT.Addr()))
}

// entry is what is shown as one: a flow, or a group of them.
type entry struct {
	local, peer party // of sums by direction: who sends, and who receives
	transport   string
	state       string
	row         *Row // nil: a group
	flows       int  // that the sample has
	news        bool // since the sample before
	status      Status
	name        string // of the peer, by which all flows know it
	total       Counters
	grown       Counters // since the sample before
}

// count adds a row of the sample, which has moved something more or not.
func (e *entry) count(grown Counters, status Status, news bool) {
	e.flows++
	e.total.add(grown)
	e.grown.add(grown)
	e.news = e.news || news
	if worse(status, e.status) {
		e.status = status
	}
}

// called notes by which name a row that was counted knows the peer.
func (e *entry) called(name string) {
	if e.flows > 1 && name != e.name {
		name = ""
	}
	e.name = name
}

// statuses are all, best first.
var statuses = []Status{Exact, Shared, Sum, Polled}

// worse says whether a status is worse than another one, which "" is not.
func worse(status, than Status) bool {
	return status != than && slices.Index(statuses, status) > slices.Index(statuses, than)
}

func (e *entry) tcp() TCP {
	if e.row == nil {
		return TCP{}
	}
	return sample.Value(e.row.TCP)
}

func (e *entry) opened() time.Time { return sample.Value(e.row).Opened }

// compare is the order of entries that a sort leaves open.
func (e *entry) compare(other *entry) int {
	if c := cmp.Or(cmp.Compare(other.grown.bytes(), e.grown.bytes()), cmp.Compare(other.total.bytes(), e.total.bytes())); c != 0 {
		return c
	}
	return cmp.Or(e.local.compare(&other.local), e.peer.compare(&other.peer), cmp.Compare(e.transport, other.transport),
		cmp.Compare(e.state, other.state), cmp.Compare(sample.Value(e.row).Cookie, sample.Value(other.row).Cookie))
}

func (c *Counters) bytes() uint64 { return c.TransmitBytes + c.ReceiveBytes }

func (c *Counters) add(more Counters) {
	c.TransmitBytes += more.TransmitBytes
	c.ReceiveBytes += more.ReceiveBytes
	c.TransmitCalls += more.TransmitCalls
	c.ReceiveCalls += more.ReceiveCalls
}

// since is by how much counters grew.
func (c *Counters) since(before Counters) Counters {
	return Counters{
		TransmitBytes: max(c.TransmitBytes, before.TransmitBytes) - before.TransmitBytes, ReceiveBytes: max(c.ReceiveBytes, before.ReceiveBytes) - before.ReceiveBytes,
		TransmitCalls: max(c.TransmitCalls, before.TransmitCalls) - before.TransmitCalls, ReceiveCalls: max(c.ReceiveCalls, before.ReceiveCalls) - before.ReceiveCalls,
	}
}
