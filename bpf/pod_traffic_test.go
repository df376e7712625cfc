package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
)

func addPod(total *bpf.PodCounters, one bpf.PodCounters) {
	total.TransmitBytes += one.TransmitBytes
	total.TransmitPackets += one.TransmitPackets
	total.ReceiveBytes += one.ReceiveBytes
	total.ReceivePackets += one.ReceivePackets
}

func transmit(bytes, packets int) bpf.PodCounters {
	return bpf.PodCounters{TransmitBytes: uint64(bytes), TransmitPackets: uint64(packets)}
}

func receive(bytes, packets int) bpf.PodCounters {
	return bpf.PodCounters{ReceiveBytes: uint64(bytes), ReceivePackets: uint64(packets)}
}

func podKey(address string) bpf.PodKey {
	key := bpf.PodKey{Ifindex: loopback}
	key.Address.In6U.U6Addr8 = netip.MustParseAddr(address).As16()
	return key
}

// wantPods checks what pod-traffic counted: these Pods, these rows and nothing
// else; then it forgets it.
func wantPods(t *testing.T, c *ebpf.Collection, pods map[string]bpf.PodCounters, rows map[bpf.TrafficRow]bpf.PodCounters) {
	t.Helper()
	for address, want := range pods {
		if got := sum(t, c.Maps["pods"], podKey(address), addPod); got != want {
			t.Errorf("%s has %v, want %v", address, got, want)
		}
		if err := c.Maps["pods"].Delete(podKey(address)); err != nil {
			t.Fatal(err)
		}
	}
	var key bpf.PodKey
	if err := c.Maps["pods"].NextKey(nil, &key); err == nil {
		t.Errorf("unexpected entry %v", key)
	}
	for row := range bpf.TrafficRows {
		if got := sum(t, c.Maps["rows"], row, addPod); got != rows[row] {
			t.Errorf("row %d has %v, want %v", row, got, rows[row])
		}
		clearEntry[bpf.PodCounters](t, c.Maps["rows"], uint32(row))
	}
}

type podMap = map[string]bpf.PodCounters
type rowMap = map[bpf.TrafficRow]bpf.PodCounters

// ends returns the addresses of a sample.
func ends(s sample) (source, destination string) {
	packet := Build(s.layers...)
	if packet[0]>>4 == 6 {
		return source6, destination6
	}
	return source4, destination4
}

func TestPodTrafficDirections(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	for _, link := range links {
		for _, s := range samples() {
			t.Run(title(link.name, s.name), func(t *testing.T) {
				packet := over(link.layers, s.layers)
				source, destination := ends(s)
				out, in := transmit(len(packet), 1), receive(len(packet), 1)
				pods, rows := podMap{source: out}, rowMap(nil)
				if s.other {
					pods, rows = nil, rowMap{bpf.TCNonIP: out}
				}
				if verdict := run(t, c.Programs["pod_traffic_ingress"], packet); verdict != tcNext {
					t.Errorf("verdict %d, want TC_ACT_UNSPEC", verdict)
				}
				wantPods(t, c, pods, rows)
				pods, rows = podMap{destination: in}, nil
				if s.other {
					pods, rows = nil, rowMap{bpf.TCNonIP: in}
				}
				if verdict := run(t, c.Programs["pod_traffic_egress"], packet); verdict != tcNext {
					t.Errorf("verdict %d, want TC_ACT_UNSPEC", verdict)
				}
				wantPods(t, c, pods, rows)
			})
		}
	}
}

func TestPodTrafficWithoutEthernet(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	for _, s := range samples() {
		if s.other {
			continue
		}
		packet := Build(s.layers...)
		source, destination := ends(s)
		run(t, c.Programs["pod_traffic_ingress_l3"], packet)
		wantPods(t, c, podMap{source: transmit(len(packet), 1)}, nil)
		run(t, c.Programs["pod_traffic_egress_l3"], packet)
		wantPods(t, c, podMap{destination: receive(len(packet), 1)}, nil)
	}
}

// A GSO packet counts as the segments it will be split into.
func TestPodTrafficSegments(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	packet := ethernet(ip4(IPv4Header{}), TCP(1, 2, ACK), Payload(3000))
	for segments, want := range map[uint32]int{0: 1, 1: 1, 7: 7} {
		context := &SKBuff{GSOSegs: segments, GSOSize: 1400}
		runWith(t, c.Programs["pod_traffic_ingress"], packet, context)
		runWith(t, c.Programs["pod_traffic_egress"], packet, context)
		wantPods(t, c, podMap{
			source4:      transmit(len(packet), want),
			destination4: receive(len(packet), want),
		}, nil)
	}
}

func TestPodTrafficTruncated(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	for _, p := range []struct {
		packet  []byte
		headers int
		source  string
	}{
		// Without a tag new kernels refuse to make such an skb.
		{over(links[1].layers, []Layer{ip4(IPv4Header{}), UDP(1, 2)}), 14 + 4 + 20, source4},
		{over(links[2].layers, []Layer{ip4(IPv4Header{}), UDP(1, 2)}), 14 + 8 + 20, source4},
		{over(links[2].layers, []Layer{ip6(), UDP(1, 2)}), 14 + 8 + 40, source6},
	} {
		for size := 15; size <= len(p.packet); size++ {
			run(t, c.Programs["pod_traffic_ingress"], p.packet[:size])
			if size < p.headers {
				wantPods(t, c, nil, rowMap{bpf.TCTruncated: transmit(size, 1)})
			} else {
				wantPods(t, c, podMap{p.source: transmit(size, 1)}, nil)
			}
		}
	}
}

func TestPodTrafficThreeTags(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	packet := Build(Ethernet(), VLAN(1), VLAN(2), VLAN(3), ip4(IPv4Header{}), UDP(1, 2))
	run(t, c.Programs["pod_traffic_egress"], packet)
	wantPods(t, c, nil, rowMap{bpf.TCTooDeep: receive(len(packet), 1)})
}

// What has no room is in a row, and those who have an entry go on counting.
func TestPodTrafficMapFull(t *testing.T) {
	c := load(t, "pod-traffic", func(spec *ebpf.CollectionSpec) { spec.Maps["pods"].MaxEntries = 1 })
	first := ethernet(ip4(IPv4Header{}), UDP(1, 2))
	second := ethernet(IPv4("10.77.0.5", destination4, IPv4Header{}), UDP(1, 2))
	for _, packet := range [][]byte{first, second, first} {
		run(t, c.Programs["pod_traffic_ingress"], packet)
	}
	wantPods(t, c, podMap{source4: transmit(2*len(first), 2)},
		rowMap{bpf.TCMapFull: transmit(len(second), 1)})
}

// An address that is nobody's own has no entry: that of many receivers, that of
// a sender without one.
var nobodies = []struct {
	name, source, destination string
	layer                     func(source, destination string) Layer
}{
	{"multicast", source4, "224.0.0.251", v4},
	{"last multicast", source4, "239.255.255.255", v4},
	{"broadcast", source4, "255.255.255.255", v4},
	{"v6 multicast", source6, "ff02::1", IPv6},
	{"DHCP", "0.0.0.0", "255.255.255.255", v4},
	{"DAD", "::", "ff02::1:ff00:4", IPv6},
}

func v4(source, destination string) Layer { return IPv4(source, destination, IPv4Header{}) }

func TestPodTrafficNobody(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	for _, p := range nobodies {
		t.Run(p.name, func(t *testing.T) {
			packet := ethernet(p.layer(p.source, p.destination), UDP(1, 2))
			size := len(packet)
			run(t, c.Programs["pod_traffic_egress"], packet)
			wantPods(t, c, nil, rowMap{bpf.TCMulticast: receive(size, 1)})
			run(t, c.Programs["pod_traffic_cgroup_ingress"], packet)
			wantPods(t, c, nil, rowMap{bpf.CgroupMulticast: receive(size-14, 1)})
			if p.source == source4 || p.source == source6 {
				return
			}
			run(t, c.Programs["pod_traffic_ingress"], packet)
			wantPods(t, c, nil, rowMap{bpf.TCUnspecified: transmit(size, 1)})
			run(t, c.Programs["pod_traffic_cgroup_egress"], packet)
			wantPods(t, c, nil, rowMap{bpf.CgroupUnspecified: transmit(size-14, 1)})
		})
	}
	if got := cgroupEntries(t, c); len(got) != 0 {
		t.Errorf("unexpected entries %v", got)
	}
}

// What is next to those addresses is somebody's, and so are they on the other
// side.
func TestPodTrafficSomebody(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	for _, address := range []string{
		"223.255.255.255", "240.0.0.0", "255.255.255.254", "0.0.0.0", "0.0.0.1", "::", "::1", "100::", "fe80::1",
	} {
		packet := alike(address)
		run(t, c.Programs["pod_traffic_egress"], packet)
		wantPods(t, c, podMap{address: receive(len(packet), 1)}, nil)
	}
	for _, address := range []string{"224.0.0.1", "255.255.255.255", "0.0.0.1", "::1", "::2:0:0", "::1:0:0:0", "1::", "ff02::1"} {
		packet := alike(address)
		run(t, c.Programs["pod_traffic_ingress"], packet)
		wantPods(t, c, podMap{address: transmit(len(packet), 1)}, nil)
	}
}

// alike is a packet from an address to itself.
func alike(address string) []byte {
	layer := v4
	if netip.MustParseAddr(address).Is6() {
		layer = IPv6
	}
	return ethernet(layer(address, address), UDP(1, 2))
}

func prefix(t *testing.T, text string) bpf.Prefix {
	t.Helper()
	p := netip.MustParsePrefix(text)
	key := bpf.Prefix{Prefixlen: uint32(p.Bits())}
	if p.Addr().Is4() {
		key.Prefixlen += 96
	}
	key.Address.In6U.U6Addr8 = p.Addr().As16()
	return key
}

func TestPodTrafficPrefixes(t *testing.T) {
	c := load(t, "pod-traffic", func(spec *ebpf.CollectionSpec) {
		if err := spec.Variables["match_prefixes"].Set(uint8(1)); err != nil {
			t.Fatal(err)
		}
	})
	for _, text := range []string{"10.77.0.0/16", "2001:db8::/48"} {
		if err := c.Maps["pod_prefixes"].Put(prefix(t, text), uint32(1)); err != nil {
			t.Fatal(err)
		}
	}
	const pod4, pod6 = "10.77.3.3", "2001:db8:0:1::9"
	for _, p := range []struct {
		name   string
		packet []byte
		pods   func(size int) podMap
		row    bool
	}{
		{"from a pod", ethernet(IPv4(pod4, "192.0.2.1", IPv4Header{}), UDP(1, 2)),
			func(size int) podMap { return podMap{pod4: transmit(size, 1)} }, false},
		{"to a pod", ethernet(IPv4("192.0.2.1", pod4, IPv4Header{}), UDP(1, 2)),
			func(size int) podMap { return podMap{pod4: receive(size, 1)} }, false},
		{"between pods", ethernet(IPv4(source4, pod4, IPv4Header{}), UDP(1, 2)),
			func(size int) podMap { return podMap{source4: transmit(size, 1), pod4: receive(size, 1)} }, false},
		{"neither", ethernet(IPv4("192.0.2.1", "192.0.2.2", IPv4Header{}), UDP(1, 2)),
			func(int) podMap { return nil }, true},
		{"from a pod, v6", ethernet(IPv6(pod6, "2001:db8:5::1"), UDP(1, 2)),
			func(size int) podMap { return podMap{pod6: transmit(size, 1)} }, false},
		{"between pods, v6", ethernet(IPv6(source6, pod6), UDP(1, 2)),
			func(size int) podMap { return podMap{source6: transmit(size, 1), pod6: receive(size, 1)} }, false},
		{"neither, v6", ethernet(IPv6("2001:db8:5::1", "2001:db8:5::2"), UDP(1, 2)),
			func(int) podMap { return nil }, true},
	} {
		t.Run(p.name, func(t *testing.T) {
			size := len(p.packet)
			for program, row := range map[string]bpf.PodCounters{
				"pod_traffic_ingress": transmit(size, 1),
				"pod_traffic_egress":  receive(size, 1),
			} {
				run(t, c.Programs[program], p.packet)
				rows := rowMap{}
				if p.row {
					rows[bpf.TCNotAPod] = row
				}
				wantPods(t, c, p.pods(size), rows)
			}
		})
	}
}

// cgroupEntries adds up the entries of cgroup_pods by address.
func cgroupEntries(t *testing.T, c *ebpf.Collection) map[netip.Addr]bpf.PodCounters {
	t.Helper()
	found := map[netip.Addr]bpf.PodCounters{}
	var key bpf.CgroupPodKey
	var each []bpf.PodCounters
	entries := c.Maps["cgroup_pods"].Iterate()
	for entries.Next(&key, &each) {
		if key.CgroupId == 0 {
			t.Error("an entry without a cgroup")
		}
		var total bpf.PodCounters
		for _, one := range each {
			addPod(&total, one)
		}
		found[netip.AddrFrom16(key.Address.In6U.U6Addr8).Unmap()] = total
	}
	if err := entries.Err(); err != nil {
		t.Fatal(err)
	}
	return found
}

// In cgroup_skb packets have no Ethernet header; BPF_PROG_TEST_RUN takes one
// and strips it.
func TestPodTrafficCgroup(t *testing.T) {
	c := load(t, "pod-traffic", nil)
	packet4 := ethernet(ip4(IPv4Header{Options: 2}), TCP(1, 2, ACK), Payload(100))
	packet6 := ethernet(ip6(), UDP(1, 2))
	for _, packet := range [][]byte{packet4, packet6} {
		for _, program := range []string{"pod_traffic_cgroup_egress", "pod_traffic_cgroup_ingress"} {
			if verdict := run(t, c.Programs[program], packet); verdict != cgroupYes {
				t.Errorf("%s: verdict %d, want 1", program, verdict)
			}
		}
	}
	got := cgroupEntries(t, c)
	pods := podMap{
		source4: transmit(len(packet4)-14, 1), destination4: receive(len(packet4)-14, 1),
		source6: transmit(len(packet6)-14, 1), destination6: receive(len(packet6)-14, 1),
	}
	for address, want := range pods {
		if got[netip.MustParseAddr(address)] != want {
			t.Errorf("%s has %v, want %v", address, got[netip.MustParseAddr(address)], want)
		}
	}
	if len(got) != len(pods) {
		t.Errorf("%d entries, want %d", len(got), len(pods))
	}
}

func TestPodTrafficCgroupRows(t *testing.T) {
	c := load(t, "pod-traffic", func(spec *ebpf.CollectionSpec) { spec.Maps["cgroup_pods"].MaxEntries = 1 })
	packet := ethernet(ip4(IPv4Header{}), UDP(1, 2))
	run(t, c.Programs["pod_traffic_cgroup_egress"], packet)
	run(t, c.Programs["pod_traffic_cgroup_ingress"], packet)
	truncated := append([]byte{}, packet[:14+8]...)
	truncated[12] = 0x88 // or new kernels refuse to make such an skb
	run(t, c.Programs["pod_traffic_cgroup_egress"], truncated)
	wantPods(t, c, nil, rowMap{
		bpf.CgroupMapFull:   receive(len(packet)-14, 1),
		bpf.CgroupTruncated: transmit(8, 1),
	})
}
