package traffic

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
)

// loaded is pod-traffic in the kernel, without pins: what a Reader needs of the
// datapath.
type loaded struct {
	datapath.API
	*ebpf.Collection
	attachments []datapath.Attachment
}

func load(t *testing.T) *loaded {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	program, _ := bpf.Lookup("pod-traffic")
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps["pods"].MaxEntries = 4
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(collection.Close)
	return &loaded{Collection: collection}
}

func (l *loaded) Attachments(context.Context, string) ([]datapath.Attachment, error) {
	return l.attachments, nil
}

func (l *loaded) OpenMap(instance, name string, _ bool) (*ebpf.Map, error) {
	m, ok := l.Maps[name]
	if !ok {
		return nil, fault.New(fault.ErrNotFound, "open map %s/%s: no such map", instance, name)
	}
	return m.Clone()
}

// frame is an Ethernet frame of 64 bytes with IPv4.
func frame(ethertype uint16, source, destination string) []byte {
	b := make([]byte, 64)
	binary.BigEndian.PutUint16(b[12:], ethertype)
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], 50)
	from, to := netip.MustParseAddr(source).As4(), netip.MustParseAddr(destination).As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	return b
}

func (l *loaded) pass(t *testing.T, function string, packet []byte) {
	t.Helper()
	if _, _, err := l.Programs[function].Test(packet); err != nil {
		t.Fatal(err)
	}
}

func TestSample(t *testing.T) {
	l := load(t)
	l.pass(t, "pod_traffic_ingress", frame(0x0800, "10.77.0.4", "10.77.0.9"))
	l.pass(t, "pod_traffic_ingress", frame(0x0800, "10.77.0.4", "10.77.0.9"))
	l.pass(t, "pod_traffic_egress", frame(0x0800, "10.77.0.9", "10.77.0.4"))
	l.pass(t, "pod_traffic_ingress", frame(0x0806, "0.0.0.0", "0.0.0.0"))
	s, err := NewReader(l, "pod-traffic").Sample(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Pods) != 1 {
		t.Fatalf("Pods are %v", s.Pods)
	}
	for key, counters := range s.Pods {
		if key.Point != TC || key.Address != netip.MustParseAddr("10.77.0.4") || counters != (Counters{128, 2, 64, 1}) {
			t.Errorf("%+v has %+v", key, counters)
		}
	}
	if got := s.Rows[Row{TC, "non_ip"}]; got != (Counters{64, 1, 0, 0}) {
		t.Errorf("non_ip is %+v", got)
	}
}

func TestSampleFullMap(t *testing.T) {
	l := load(t)
	const packets = 64
	for i := range packets {
		from := netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}).String()
		l.pass(t, "pod_traffic_ingress", frame(0x0800, from, "10.77.0.9"))
	}
	s, err := NewReader(l, "pod-traffic").Sample(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	d := View{Limit: 1}.Document(nil, s)
	if d.Total.TransmitPackets != packets || d.Total.TransmitBytes != packets*64 {
		t.Errorf("total is %+v, want %d packets", d.Total.Counters, packets)
	}
	if d.Loss.MapFull == 0 || d.Loss.MapFull+uint64(len(s.Pods)) != packets {
		t.Errorf("%d in map_full, %d Pods, want %d together", d.Loss.MapFull, len(s.Pods), packets)
	}
}

func TestSampleCgroup(t *testing.T) {
	l := load(t)
	var key bpf.CgroupPodKey
	key.Address.In6U.U6Addr8 = netip.MustParseAddr("2001:db8::7").As16()
	key.CgroupId = 4021
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]bpf.PodCounters, cpus)
	for i := range values {
		values[i] = bpf.PodCounters{TransmitBytes: 1, TransmitPackets: 2, ReceiveBytes: 3, ReceivePackets: 4}
	}
	if err := l.Maps["cgroup_pods"].Put(key, values); err != nil {
		t.Fatal(err)
	}
	s, err := NewReader(l, "pod-traffic").Sample(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(cpus)
	want := Counters{n, 2 * n, 3 * n, 4 * n}
	if got := s.Pods[Key{Point: Cgroup, Address: netip.MustParseAddr("2001:db8::7"), CgroupID: 4021}]; got != want {
		t.Errorf("got %+v of %v, want %+v", got, s.Pods, want)
	}
}

func TestAttached(t *testing.T) {
	name, index := "veth-a", uint32(4)
	points, devices := Attached([]datapath.Attachment{
		{Hook: "tcx_ingress", DevName: &name, IfIndex: &index},
		{Hook: "tcx_egress", DevName: &name, IfIndex: &index},
		{Hook: "cgroup_inet_ingress", Defunct: true},
	})
	if len(points) != 1 || points[0] != TC || devices[4] != "veth-a" {
		t.Errorf("%v, %v", points, devices)
	}
	if points, _ = Attached([]datapath.Attachment{{Hook: "cgroup_inet_egress"}}); len(points) != 1 || points[0] != Cgroup {
		t.Errorf("%v", points)
	}
}
