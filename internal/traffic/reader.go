package traffic

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	gomaps "maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/maps"
)

// Reader is the Sampler of a loaded instance. It opens the maps for each
// sample, so that it follows an instance that is replaced.
type Reader struct {
	api      datapath.API
	instance string
}

// NewReader returns a Sampler for a loaded instance of pod-traffic. It doesn't
// touch the kernel before the first sample.
func NewReader(api datapath.API, instance string) *Reader {
	return &Reader{api: api, instance: instance}
}

// rows are the BPF side's named rows in the order in which documents show them.
var rows = []struct {
	Row
	index bpf.TrafficRow
}{
	{Row{TC, "non_ip"}, bpf.TCNonIP},
	{Row{TC, "truncated"}, bpf.TCTruncated},
	{Row{TC, "too_deep"}, bpf.TCTooDeep},
	{Row{TC, "map_full"}, bpf.TCMapFull},
	{Row{TC, "not_a_pod"}, bpf.TCNotAPod},
	{Row{TC, "multicast"}, bpf.TCMulticast},
	{Row{TC, "unspecified"}, bpf.TCUnspecified},
	{Row{Cgroup, "truncated"}, bpf.CgroupTruncated},
	{Row{Cgroup, "map_full"}, bpf.CgroupMapFull},
	{Row{Cgroup, "multicast"}, bpf.CgroupMulticast},
	{Row{Cgroup, "unspecified"}, bpf.CgroupUnspecified},
}

// Sample implements Sampler.
func (r *Reader) Sample(ctx context.Context) (Sample, error) {
	attachments, err := r.api.Attachments(ctx, r.instance)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{Time: time.Now(), Pods: map[Key]Counters{}, Rows: map[Row]Counters{}}
	s.Attached, s.Devices = Attached(attachments)
	if err := r.readRows(ctx, &s); err != nil {
		return Sample{}, err
	}
	if err := r.readPods(ctx, &s); err != nil {
		return Sample{}, err
	}
	return s, r.readCgroupPods(ctx, &s)
}

// Attached says at which points attachments hang, and names their devices by index.
func Attached(attachments []datapath.Attachment) ([]Point, map[uint32]string) {
	points, devices := []Point{}, map[uint32]string{}
	for _, a := range attachments {
		if a.Defunct {
			continue
		}
		point := TC
		if strings.HasPrefix(a.Hook, "cgroup") {
			point = Cgroup
		}
		if !slices.Contains(points, point) {
			points = append(points, point)
		}
		if a.IfIndex != nil && a.DevName != nil {
			devices[*a.IfIndex] = *a.DevName
		}
	}
	slices.Sort(points)
	return points, devices
}

func (r *Reader) readRows(ctx context.Context, s *Sample) error {
	counted := map[bpf.TrafficRow]Counters{}
	err := datapath.WalkMap(ctx, r.api, r.instance, "rows", func(key, value []byte) error {
		counted[bpf.TrafficRow(binary.NativeEndian.Uint32(key))] = sum(value)
		return nil
	})
	for _, row := range rows {
		s.Rows[row.Row] = counted[row.index]
	}
	return err
}

func (r *Reader) readPods(ctx context.Context, s *Sample) error {
	return datapath.WalkMap(ctx, r.api, r.instance, "pods", func(key, value []byte) error {
		s.Pods[Key{Point: TC, Address: ReadAddress(key), IfIndex: binary.NativeEndian.Uint32(key[16:])}] = sum(value)
		return nil
	})
}

func (r *Reader) readCgroupPods(ctx context.Context, s *Sample) error {
	return datapath.WalkMap(ctx, r.api, r.instance, "cgroup_pods", func(key, value []byte) error {
		s.Pods[Key{Point: Cgroup, Address: ReadAddress(key), CgroupID: binary.NativeEndian.Uint64(key[16:])}] = sum(value)
		return nil
	})
}

// countersSize is the size of a bpf.PodCounters.
const countersSize = 32

// sum adds up the bpf.PodCounters of all CPUs.
func sum(perCPU []byte) Counters {
	var total Counters
	field := binary.NativeEndian.Uint64
	for c := range slices.Chunk(perCPU, countersSize) {
		total.Add(Counters{
			TransmitBytes: field(c), TransmitPackets: field(c[8:]), ReceiveBytes: field(c[16:]), ReceivePackets: field(c[24:]),
		})
	}
	return total
}

// ReadAddress reads the ip_addr_t that a key begins with: IPv6, or IPv4 mapped into
// it.
func ReadAddress(key []byte) netip.Addr { return netip.AddrFrom16([16]byte(key[:16])).Unmap() }

// Entry is the traffic of one address at one interface.
type Entry struct {
	Address netip.Addr `json:"address"`
	Counters
}

// Interfaces lists the indexes of the interfaces that have entries at tc.
func (r *Reader) Interfaces(ctx context.Context) ([]uint32, error) {
	found := map[uint32]bool{}
	err := datapath.WalkMap(ctx, r.api, r.instance, "pods", func(key, _ []byte) error {
		found[binary.NativeEndian.Uint32(key[16:])] = true
		return nil
	})
	return slices.Sorted(gomaps.Keys(found)), err
}

// Take returns what interfaces have at tc, each sorted by address, and removes it.
// They must be gone, or the program detached from them.
func (r *Reader) Take(ctx context.Context, indexes []uint32) (map[uint32][]Entry, error) {
	m, err := r.api.OpenMap(r.instance, "pods", false)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	taken := map[uint32][]Entry{}
	for _, index := range indexes {
		taken[index] = []Entry{}
	}
	var keys [][]byte
	err = maps.Walk(ctx, m, func(key, value []byte) error {
		index := binary.NativeEndian.Uint32(key[16:])
		if _, ok := taken[index]; ok {
			taken[index] = append(taken[index], Entry{ReadAddress(key), sum(value)})
			keys = append(keys, bytes.Clone(key))
		}
		return nil
	})
	if err == nil { // else those would be lost that it has come to
		err = remove(m, keys)
	}
	if err != nil {
		return nil, fmt.Errorf("take entries of interfaces that have gone out of %s/pods: %w", r.instance, err)
	}
	for _, entries := range taken {
		slices.SortFunc(entries, func(a, b Entry) int { return a.Address.Compare(b.Address) })
	}
	return taken, nil
}

// remove deletes entries, all that it can, and returns the first error.
func remove(m *ebpf.Map, keys [][]byte) (first error) {
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) && first == nil {
			first = err
		}
	}
	return first
}
