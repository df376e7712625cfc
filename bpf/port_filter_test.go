package bpf_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
)

// rule is a rule of a test policy; its number is its place, from 1.
type rule struct {
	side        bpf.PortSide
	protocol    bpf.PortProtocol
	first, last uint16
	drop        bool
}

type testPolicy struct {
	rules       []rule
	defaultDrop bool
	established bool
	strict      bool
}

func flag(set bool) uint8 {
	if set {
		return 1
	}
	return 0
}

// pages lays a policy out as the programs read it.
func (p testPolicy) pages(t *testing.T) map[uint32][]byte {
	t.Helper()
	pages := map[uint32][]byte{}
	for i, r := range p.rules {
		verdict := uint16(i + 1)
		if r.drop {
			verdict |= bpf.VerdictDrop
		}
		for port := uint32(r.first); port <= uint32(r.last); port++ {
			page, entry := bpf.PolicyIndex(r.side, r.protocol, uint16(port))
			if pages[page] == nil {
				pages[page] = make([]byte, 512)
			}
			binary.NativeEndian.PutUint16(pages[page][entry*2:], verdict)
		}
	}
	var header bytes.Buffer
	if err := binary.Write(&header, binary.NativeEndian, bpf.PolicyHeader{
		Version:     1,
		DefaultDrop: flag(p.defaultDrop),
		Established: flag(p.established),
		Strict:      flag(p.strict),
	}); err != nil {
		t.Fatal(err)
	}
	pages[bpf.PolicyHeaderPage] = header.Bytes()
	return pages
}

// install puts a policy in force.
func (p testPolicy) install(t *testing.T, c *ebpf.Collection) {
	t.Helper()
	program, _ := bpf.Lookup("port-filter")
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := ebpf.NewMap(spec.Maps["policy"].InnerMap)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	for page, content := range p.pages(t) {
		if err := inner.Put(page, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Maps["policy"].Put(uint32(0), inner); err != nil {
		t.Fatal(err)
	}
}

// number is the row of a rule.
func number(rule int) bpf.PortRow { return bpf.PortRows + bpf.PortRow(rule) }

// wantCounters checks that the counters hold rows and nothing else, among the
// named rows and the first rules, and forgets them.
func wantCounters(t *testing.T, c *ebpf.Collection, rows map[bpf.PortRow]bpf.Counter) {
	t.Helper()
	for row := range bpf.PortRows + 8 {
		if got := sum(t, c.Maps["counters"], row, addCounter); got != rows[row] {
			t.Errorf("row %d has %v, want %v", row, got, rows[row])
		}
		clearEntry[bpf.Counter](t, c.Maps["counters"], uint32(row))
	}
}

// hooks are the programs that must agree, with their words for pass and drop.
var hooks = []struct {
	program    string
	pass, drop uint32
}{
	{"port_filter_ingress", tcNext, tcDrop},
	{"port_filter_egress", tcNext, tcDrop},
	{"port_filter_xdp", xdpPass, xdpDrop},
}

var hooksWithoutEthernet = []struct {
	program    string
	pass, drop uint32
}{
	{"port_filter_ingress_l3", tcNext, tcDrop},
	{"port_filter_egress_l3", tcNext, tcDrop},
	{"port_filter_xdp_l3", xdpPass, xdpDrop},
}

// wantVerdict runs a packet through all hooks: it must be counted in row, and
// dropped or not.
func wantVerdict(t *testing.T, c *ebpf.Collection, packet []byte, row bpf.PortRow, drop bool) {
	t.Helper()
	for _, hook := range hooks {
		want := hook.pass
		if drop {
			want = hook.drop
		}
		if got := run(t, c.Programs[hook.program], packet); got != want {
			t.Errorf("%s: verdict %d, want %d", hook.program, int32(got), int32(want))
		}
		wantCounters(t, c, map[bpf.PortRow]bpf.Counter{row: {Packets: 1, Bytes: uint64(len(packet))}})
	}
}

type verdict struct {
	name   string
	layers []Layer
	row    bpf.PortRow
	drop   bool
}

func wantVerdicts(t *testing.T, policy testPolicy, verdicts []verdict) {
	t.Helper()
	c := load(t, "port-filter", nil)
	policy.install(t, c)
	for _, link := range links {
		for _, v := range verdicts {
			t.Run(title(link.name, v.name), func(t *testing.T) {
				wantVerdict(t, c, over(link.layers, v.layers), v.row, v.drop)
			})
		}
	}
}

// The object starts with a policy that passes everything.
func TestPortFilterFirstPolicy(t *testing.T) {
	c := load(t, "port-filter", nil)
	for _, s := range samples() {
		if s.name == "9 extensions" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			packet := ethernet(s.layers...)
			for _, hook := range hooks {
				if got := run(t, c.Programs[hook.program], packet); got != hook.pass {
					t.Errorf("%s: verdict %d, want %d", hook.program, int32(got), int32(hook.pass))
				}
			}
		})
	}
}

func TestPortFilterAllowList(t *testing.T) {
	policy := testPolicy{defaultDrop: true, rules: []rule{
		{bpf.SideDestination, bpf.PortTCP, 80, 80, false},
		{bpf.SideDestination, bpf.PortUDP, 8000, 8999, false},
		{bpf.SideSource, bpf.PortUDP, 53, 53, false},
		{bpf.SideDestination, bpf.PortSCTP, 0, 65535, false},
	}}
	for _, ip := range []Layer{ip4(IPv4Header{}), ip4(IPv4Header{Options: 3}), ip6()} {
		wantVerdicts(t, policy, []verdict{
			{"80/tcp", []Layer{ip, TCP(40000, 80, SYN)}, number(1), false},
			{"81/tcp", []Layer{ip, TCP(40000, 81, SYN)}, bpf.DefaultDrop, true},
			{"from 80/tcp", []Layer{ip, TCP(80, 40000, ACK)}, bpf.DefaultDrop, true},
			{"80/udp", []Layer{ip, UDP(40000, 80)}, bpf.DefaultDrop, true},
			{"7999/udp", []Layer{ip, UDP(40000, 7999)}, bpf.DefaultDrop, true},
			{"8000/udp", []Layer{ip, UDP(40000, 8000)}, number(2), false},
			{"8999/udp", []Layer{ip, UDP(40000, 8999)}, number(2), false},
			{"9000/udp", []Layer{ip, UDP(40000, 9000)}, bpf.DefaultDrop, true},
			{"from 53/udp", []Layer{ip, UDP(53, 40000)}, number(3), false},
			{"destination before source", []Layer{ip, UDP(53, 8000)}, number(2), false},
			{"0/sctp", []Layer{ip, SCTP(1, 0)}, number(4), false},
			{"65535/sctp", []Layer{ip, SCTP(1, 65535)}, number(4), false},
			{"gre", []Layer{ip, Protocol(47), Payload(8)}, bpf.DefaultDrop, true},
		})
	}
}

func TestPortFilterDenyList(t *testing.T) {
	policy := testPolicy{rules: []rule{
		{bpf.SideDestination, bpf.PortTCP, 25, 25, true},
		{bpf.SideSource, bpf.PortTCP, 6000, 6010, true},
		{bpf.SideDestination, bpf.PortTCP, 80, 80, false},
		{bpf.SideDestination, bpf.PortUDP, 67, 67, true},
	}}
	for _, ip := range []Layer{ip4(IPv4Header{}), ip6()} {
		wantVerdicts(t, policy, []verdict{
			{"25/tcp", []Layer{ip, TCP(40000, 25, SYN)}, number(1), true},
			{"25/udp", []Layer{ip, UDP(40000, 25)}, bpf.DefaultPass, false},
			{"from 6005/tcp", []Layer{ip, TCP(6005, 22, SYN)}, number(2), true},
			{"a drop of the source wins", []Layer{ip, TCP(6005, 80, SYN)}, number(2), true},
			{"both drop", []Layer{ip, TCP(6005, 25, SYN)}, number(1), true},
			{"22/tcp", []Layer{ip, TCP(40000, 22, SYN)}, bpf.DefaultPass, false},
			{"a rule before DHCP", []Layer{ip, UDP(68, 67)}, number(4), true},
		})
	}
}

func TestPortFilterUntouched(t *testing.T) {
	ip := ip4(IPv4Header{})
	untouched := []verdict{
		{"arp", []Layer{ARP()}, bpf.Untouched, false},
		{"icmp", []Layer{ip, ICMP(), Payload(8)}, bpf.Untouched, false},
		{"icmpv6", []Layer{ip6(), ICMPv6(128), Payload(8)}, bpf.Untouched, false},
		{"neighbour solicitation", []Layer{ip6(), ICMPv6(135), Payload(24)}, bpf.Untouched, false},
		{"icmpv6 behind extensions", []Layer{ip6(), Extension(HopByHop, 0), ICMPv6(143)}, bpf.Untouched, false},
		{"dhcp request", []Layer{ip, UDP(68, 67)}, bpf.Untouched, false},
		{"dhcp reply", []Layer{ip, UDP(67, 68)}, bpf.Untouched, false},
		{"dhcpv6", []Layer{ip6(), UDP(546, 547)}, bpf.Untouched, false},
		{"lldp", []Layer{EtherType(0x88cc, 46)}, bpf.NonIP, false},
	}
	always := []verdict{
		{"icmpv6 in v4", []Layer{ip, ICMPv6(128), Payload(8)}, bpf.DefaultDrop, true},
		{"dhcp from elsewhere", []Layer{ip, UDP(53, 68)}, bpf.DefaultDrop, true},
		{"dhcpv6 ports in v4", []Layer{ip, UDP(546, 547)}, bpf.DefaultDrop, true},
	}
	wantVerdicts(t, testPolicy{defaultDrop: true}, slices.Concat(untouched, always))
	for i := range untouched {
		untouched[i].row, untouched[i].drop = bpf.DefaultDrop, true
	}
	wantVerdicts(t, testPolicy{defaultDrop: true, strict: true}, slices.Concat(untouched, always))
}

func TestPortFilterEstablished(t *testing.T) {
	policy := testPolicy{defaultDrop: true, established: true, rules: []rule{
		{bpf.SideDestination, bpf.PortTCP, 80, 80, false},
	}}
	for _, ip := range []Layer{ip4(IPv4Header{}), ip6()} {
		wantVerdicts(t, policy, []verdict{
			{"SYN", []Layer{ip, TCP(1000, 2000, SYN)}, bpf.DefaultDrop, true},
			{"SYN to an open port", []Layer{ip, TCP(1000, 80, SYN)}, number(1), false},
			{"SYN ACK", []Layer{ip, TCP(1000, 2000, SYN|ACK)}, bpf.Established, false},
			{"ACK", []Layer{ip, TCP(1000, 2000, ACK)}, bpf.Established, false},
			{"RST", []Layer{ip, TCP(1000, 2000, 0x04)}, bpf.Established, false},
			{"UDP", []Layer{ip, UDP(1000, 2000)}, bpf.DefaultDrop, true},
		})
	}
	policy.established = false
	wantVerdicts(t, policy, []verdict{
		{"ACK", []Layer{ip6(), TCP(1000, 2000, ACK)}, bpf.DefaultDrop, true},
	})
}

// clearFragments forgets the fragments seen.
func clearFragments(t *testing.T, c *ebpf.Collection) {
	t.Helper()
	var key [44]byte
	for c.Maps["fragments"].NextKey(nil, &key) == nil {
		if err := c.Maps["fragments"].Delete(key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPortFilterFragments(t *testing.T) {
	open := testPolicy{rules: []rule{{bpf.SideDestination, bpf.PortUDP, 53, 53, true}}}
	closed := testPolicy{defaultDrop: true, rules: []rule{{bpf.SideDestination, bpf.PortUDP, 53, 53, false}}}
	pieces := map[string]struct{ first53, first54, later, icmp []Layer }{
		"v4": {
			[]Layer{ip4(IPv4Header{ID: 9, More: true}), UDP(1, 53), Payload(64)},
			[]Layer{ip4(IPv4Header{ID: 9, More: true}), UDP(1, 54), Payload(64)},
			[]Layer{ip4(IPv4Header{ID: 9, Offset: 9, Protocol: 17}), Payload(64)},
			[]Layer{ip4(IPv4Header{ID: 9, Offset: 9, Protocol: 1}), Payload(64)},
		},
		"v6": {
			[]Layer{ip6(), Fragment(9, 0, true), UDP(1, 53), Payload(64)},
			[]Layer{ip6(), Fragment(9, 0, true), UDP(1, 54), Payload(64)},
			[]Layer{ip6(), Fragment(9, 9, false), Protocol(17), Payload(64)},
			[]Layer{ip6(), Fragment(9, 9, false), Protocol(58), Payload(64)},
		},
		"v6 options": {
			[]Layer{ip6(), Fragment(9, 0, true), Extension(DestinationOptions, 1), UDP(1, 53), Payload(64)},
			[]Layer{ip6(), Fragment(9, 0, true), Extension(DestinationOptions, 1), UDP(1, 54), Payload(64)},
			[]Layer{ip6(), Fragment(9, 9, false), Protocol(60), Payload(64)},
			[]Layer{ip6(), Fragment(9, 9, false), Protocol(58), Payload(64)},
		},
	}
	c := load(t, "port-filter", nil)
	for _, link := range links {
		for name, p := range pieces {
			t.Run(title(link.name, name), func(t *testing.T) {
				packet := func(layers []Layer) []byte { return over(link.layers, layers) }
				open.install(t, c)
				clearFragments(t, c)
				wantVerdict(t, c, packet(p.later), bpf.FragmentPass, false)
				wantVerdict(t, c, packet(p.first53), number(1), true)
				wantVerdict(t, c, packet(p.later), bpf.FragmentDrop, true)
				wantVerdict(t, c, packet(p.first54), bpf.DefaultPass, false)
				wantVerdict(t, c, packet(p.later), bpf.FragmentPass, false)
				closed.install(t, c)
				clearFragments(t, c)
				wantVerdict(t, c, packet(p.later), bpf.FragmentDrop, true)
				wantVerdict(t, c, packet(p.icmp), bpf.Untouched, false)
				wantVerdict(t, c, packet(p.first53), number(1), false)
				wantVerdict(t, c, packet(p.later), bpf.FragmentPass, false)
			})
		}
	}
}

// Fragments of another packet don't share a verdict.
func TestPortFilterFragmentsApart(t *testing.T) {
	c := load(t, "port-filter", nil)
	testPolicy{defaultDrop: true, rules: []rule{{bpf.SideDestination, bpf.PortUDP, 53, 53, false}}}.install(t, c)
	wantVerdict(t, c, ethernet(ip4(IPv4Header{ID: 9, More: true}), UDP(1, 53), Payload(64)), number(1), false)
	for _, later := range []Layer{
		ip4(IPv4Header{ID: 10, Offset: 9, Protocol: 17}),
		ip4(IPv4Header{ID: 9, Offset: 9, Protocol: 6}),
		IPv4("10.77.0.5", destination4, IPv4Header{ID: 9, Offset: 9, Protocol: 17}),
		IPv4(source4, "198.51.100.8", IPv4Header{ID: 9, Offset: 9, Protocol: 17}),
	} {
		wantVerdict(t, c, ethernet(later, Payload(64)), bpf.FragmentDrop, true)
	}
}

func TestPortFilterTruncated(t *testing.T) {
	c := load(t, "port-filter", nil)
	for _, p := range []struct {
		packet  []byte
		headers int
	}{
		// Without a tag new kernels refuse to make some of these skbs.
		{over(links[1].layers, []Layer{ip4(IPv4Header{}), TCP(1, 2, SYN)}), 14 + 4 + 20 + 20},
		{over(links[2].layers, []Layer{ip4(IPv4Header{Options: 2}), UDP(1, 2)}), 14 + 8 + 28 + 4},
		{over(links[1].layers, []Layer{ip6(), TCP(1, 2, SYN)}), 14 + 4 + 40 + 20},
		{over(links[1].layers, []Layer{ip6(), Extension(HopByHop, 0), SCTP(1, 2)}), 14 + 4 + 40 + 8 + 4},
	} {
		for size := 15; size <= len(p.packet); size++ {
			if size < p.headers {
				wantVerdict(t, c, p.packet[:size], bpf.Truncated, true)
			} else {
				wantVerdict(t, c, p.packet[:size], bpf.DefaultPass, false)
			}
		}
	}
}

func TestPortFilterTooDeep(t *testing.T) {
	c := load(t, "port-filter", nil)
	nine := ethernet(append(append([]Layer{ip6()}, extensions(9)...), UDP(1, 2))...)
	wantVerdict(t, c, nine, bpf.TooDeep, true)
	tags := Build(Ethernet(), VLAN(1), VLAN(2), VLAN(3), ip4(IPv4Header{}), UDP(1, 2))
	wantVerdict(t, c, tags, bpf.TooDeep, true)
}

func TestPortFilterWithoutEthernet(t *testing.T) {
	c := load(t, "port-filter", nil)
	testPolicy{defaultDrop: true, rules: []rule{{bpf.SideDestination, bpf.PortTCP, 80, 80, false}}}.install(t, c)
	for _, v := range []verdict{
		{"80/tcp", []Layer{ip4(IPv4Header{}), TCP(1, 80, SYN)}, number(1), false},
		{"81/tcp", []Layer{ip4(IPv4Header{}), TCP(1, 81, SYN)}, bpf.DefaultDrop, true},
		{"80/tcp v6", []Layer{ip6(), TCP(1, 80, SYN)}, number(1), false},
		{"81/tcp v6", []Layer{ip6(), TCP(1, 81, SYN)}, bpf.DefaultDrop, true},
		{"icmp", []Layer{ip4(IPv4Header{}), ICMP()}, bpf.Untouched, false},
		{"neither", []Layer{EtherType(0, 60)}, bpf.NonIP, false},
	} {
		packet := Build(v.layers...)
		for _, hook := range hooksWithoutEthernet {
			want := hook.pass
			if v.drop {
				want = hook.drop
			}
			if got := run(t, c.Programs[hook.program], packet); got != want {
				t.Errorf("%s: %s: verdict %d, want %d", v.name, hook.program, int32(got), int32(want))
			}
			wantCounters(t, c, map[bpf.PortRow]bpf.Counter{v.row: {Packets: 1, Bytes: uint64(len(packet))}})
		}
	}
}
