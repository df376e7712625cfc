package bpf_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
)

func addCounter(total *bpf.Counter, one bpf.Counter) {
	total.Packets += one.Packets
	total.Bytes += one.Bytes
}

// classes reads what xdp-counter counted on an interface: the classes that
// aren't zero, by name.
func classes(t *testing.T, m *ebpf.Map, ifindex uint32) map[string]bpf.Counter {
	t.Helper()
	var each []bpf.InterfaceCounters
	if err := m.Lookup(ifindex, &each); err != nil {
		t.Fatal(err)
	}
	found := map[string]bpf.Counter{}
	for _, counters := range each {
		value := reflect.ValueOf(counters)
		for i := range value.NumField() {
			name := value.Type().Field(i).Name
			if name == "_" || name == "Reserved" {
				continue
			}
			packets, bytes := value.Field(i).FieldByName("Packets").Uint(), value.Field(i).FieldByName("Bytes").Uint()
			if packets != 0 {
				total := found[snake(name)]
				addCounter(&total, bpf.Counter{Packets: packets, Bytes: bytes})
				found[snake(name)] = total
			}
		}
	}
	return found
}

func snake(name string) string {
	return strings.ToLower(strings.ReplaceAll(name, "OtherEthertype", "other_ethertype"))
}

// wantClass checks that one packet was counted, in one class, and forgets it.
func wantClass(t *testing.T, c *ebpf.Collection, ifindex uint32, class string, size int) {
	t.Helper()
	want := map[string]bpf.Counter{class: {Packets: 1, Bytes: uint64(size)}}
	if got := classes(t, c.Maps["interfaces"], ifindex); !reflect.DeepEqual(got, want) {
		t.Errorf("interface %d counted %v, want %v", ifindex, got, want)
	}
	total := sum(t, c.Maps["packets"], uint32(0), addCounter)
	if want[class] != total {
		t.Errorf("in total %v, want %v", total, want[class])
	}
	clearEntry[bpf.InterfaceCounters](t, c.Maps["interfaces"], ifindex)
	clearEntry[bpf.Counter](t, c.Maps["packets"], 0)
}

// loopback is the interface that BPF_PROG_TEST_RUN uses.
const loopback = 1

func TestXDPCounterClasses(t *testing.T) {
	c := load(t, "xdp-counter", nil)
	for _, link := range links {
		for _, s := range samples() {
			t.Run(title(link.name, s.name), func(t *testing.T) {
				packet := over(link.layers, s.layers)
				if verdict := run(t, c.Programs["xdp_counter"], packet); verdict != xdpPass {
					t.Errorf("verdict %d, want XDP_PASS", verdict)
				}
				wantClass(t, c, loopback, s.class, len(packet))
			})
		}
	}
}

func TestXDPCounterWithoutEthernet(t *testing.T) {
	c := load(t, "xdp-counter", nil)
	for _, s := range samples() {
		if s.other {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			packet := Build(s.layers...)
			if verdict := run(t, c.Programs["xdp_counter_l3"], packet); verdict != xdpPass {
				t.Errorf("verdict %d, want XDP_PASS", verdict)
			}
			wantClass(t, c, loopback, s.class, len(packet))
		})
	}
	t.Run("neither 4 nor 6", func(t *testing.T) {
		packet := make([]byte, 60)
		run(t, c.Programs["xdp_counter_l3"], packet)
		wantClass(t, c, loopback, "other_ethertype", len(packet))
	})
}

func TestXDPCounterTruncated(t *testing.T) {
	c := load(t, "xdp-counter", nil)
	for _, p := range []struct {
		name    string
		packet  []byte
		headers int // bytes that must be there to classify
		class   string
	}{
		{"v4", ethernet(ip4(IPv4Header{}), TCP(1, 2, SYN)), 14 + 20, "tcp4"},
		{"qinq v4", over(links[2].layers, []Layer{ip4(IPv4Header{}), UDP(1, 2)}), 14 + 8 + 20, "udp4"},
		{"v6", ethernet(ip6(), UDP(1, 2)), 14 + 40, "udp6"},
		{"v6 fragment", ethernet(ip6(), Extension(HopByHop, 1), Fragment(1, 0, true), UDP(1, 2)), 14 + 40 + 16 + 8, "udp6"},
	} {
		for size := 14; size <= len(p.packet); size++ {
			run(t, c.Programs["xdp_counter"], p.packet[:size])
			class := p.class
			if size < p.headers {
				class = "truncated"
			}
			wantClass(t, c, loopback, class, size)
		}
	}
}

func TestXDPCounterThreeTags(t *testing.T) {
	c := load(t, "xdp-counter", nil)
	packet := Build(Ethernet(), VLAN(1), VLAN(2), VLAN(3), ip4(IPv4Header{}), UDP(1, 2))
	run(t, c.Programs["xdp_counter"], packet)
	wantClass(t, c, loopback, "other_ethertype", len(packet))
}

func TestXDPCounterBadHeaders(t *testing.T) {
	c := load(t, "xdp-counter", nil)
	short := ethernet(ip4(IPv4Header{}), UDP(1, 2))
	short[14] = 0x44 // 4 words: less than a header
	run(t, c.Programs["xdp_counter"], short)
	wantClass(t, c, loopback, "truncated", len(short))
	version := ethernet(ip4(IPv4Header{}), UDP(1, 2))
	version[14] = 0x65 // version 6 under IPv4's EtherType
	run(t, c.Programs["xdp_counter"], version)
	wantClass(t, c, loopback, "truncated", len(version))
}

// An interface index beyond the map is counted in entry 0.
func TestXDPCounterManyInterfaces(t *testing.T) {
	c := load(t, "xdp-counter", func(spec *ebpf.CollectionSpec) { spec.Maps["interfaces"].MaxEntries = 1 })
	packet := ethernet(ip4(IPv4Header{}), UDP(1, 2))
	run(t, c.Programs["xdp_counter"], packet)
	wantClass(t, c, 0, "udp4", len(packet))
}
