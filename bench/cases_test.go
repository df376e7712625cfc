package bench

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
)

// benchCase is one program on one packet.
type benchCase struct {
	name    string
	program string // function
	object  func() (*ebpf.CollectionSpec, error)
	empty   string // function of the object or the yardsticks that does nothing, or only what comes before
	packet  []byte
	prepare func(*ebpf.Collection) error
	adjust  func(*ebpf.CollectionSpec) error
	maps    func(testing.TB) map[string]*ebpf.Map // that take the place of the object's
	goal    float64                               // net ns; 0 for yardsticks and what has no goal
}

// record is the name of what is measured of a case.
func (c benchCase) record() string { return "packet, " + c.name }

func builtin(name string) func() (*ebpf.CollectionSpec, error) {
	return func() (*ebpf.CollectionSpec, error) {
		program, _ := bpf.Lookup(name)
		return program.Spec()
	}
}

var (
	tcp4  = Build(Ethernet(), IPv4("10.77.0.4", "198.51.100.7", IPv4Header{}), TCP(40000, 80, SYN), Payload(10))
	ack4  = Build(Ethernet(), IPv4("10.77.0.4", "198.51.100.7", IPv4Header{}), TCP(40000, 40001, ACK), Payload(10))
	miss4 = Build(Ethernet(), IPv4("10.77.0.4", "198.51.100.7", IPv4Header{}), TCP(40000, 81, SYN), Payload(10))
	icmp4 = Build(Ethernet(), IPv4("10.77.0.4", "198.51.100.7", IPv4Header{}), ICMP(), Payload(56))
	tcp6  = Build(Ethernet(), IPv6("2001:db8::4", "2001:db8:1::7"), TCP(40000, 80, SYN), Payload(10))
	miss6 = Build(Ethernet(), IPv6("2001:db8::4", "2001:db8:1::7"), TCP(40000, 81, SYN), Payload(10))
	ext6  = Build(Ethernet(), IPv6("2001:db8::4", "2001:db8:1::7"), Extension(HopByHop, 0),
		Extension(DestinationOptions, 0), TCP(40000, 80, SYN), Payload(10))
	dns4  = Build(Ethernet(), IPv4("10.77.0.4", "198.51.100.7", IPv4Header{}), UDP(53, 40000), Data([]byte{0, 0, 0x81, 99: 0}))
	udp4  = Build(Ethernet(), IPv4("10.77.0.4", "198.51.100.7", IPv4Header{}), UDP(40000, 53), Payload(30))
	vlan4 = Build(Ethernet(), VLAN(10), IPv4("10.77.0.4", "198.51.100.7", IPv4Header{}), TCP(40000, 80, SYN))
)

func cases() []benchCase {
	counter, filter, traffic := builtin("xdp-counter"), builtin("port-filter"), builtin("pod-traffic")
	names, contacts := builtin("dns"), builtin("peers")
	return append(blocklistCases(), []benchCase{
		{name: "yardstick/array-counter", program: "xdp_array", object: loadYardsticks, empty: "xdp_empty", packet: tcp4},
		{name: "yardstick/by-protocol", program: "xdp_protocol", object: loadYardsticks, empty: "xdp_empty", packet: tcp4},
		{name: "yardstick/port-bitmap", program: "xdp_bitmap", object: loadYardsticks, empty: "xdp_empty", packet: tcp4},
		{name: "yardstick/hash-1-address", program: "tc_hash", object: loadYardsticks, empty: "tc_empty", packet: tcp4},
		{name: "yardstick/hash-10k-addresses", program: "tc_vary_hash", object: loadYardsticks, empty: "tc_vary", packet: tcp4},

		{name: "xdp-counter/v4", program: "xdp_counter", object: counter, empty: "xdp_empty", packet: tcp4, goal: 4},
		{name: "xdp-counter/v6", program: "xdp_counter", object: counter, empty: "xdp_empty", packet: tcp6, goal: 4},
		{name: "xdp-counter/vlan", program: "xdp_counter", object: counter, empty: "xdp_empty", packet: vlan4},
		{name: "xdp-counter/v6-extensions", program: "xdp_counter", object: counter, empty: "xdp_empty", packet: ext6},

		{name: "port-filter/tc-v4-hit", program: "port_filter_ingress", object: filter, empty: "tc_empty", packet: tcp4, prepare: allow80, goal: 8},
		{name: "port-filter/tc-v4-miss", program: "port_filter_ingress", object: filter, empty: "tc_empty", packet: miss4, prepare: allow80, goal: 8},
		{name: "port-filter/tc-v4-established", program: "port_filter_ingress", object: filter, empty: "tc_empty", packet: ack4, prepare: allow80, goal: 8},
		{name: "port-filter/tc-v4-untouched", program: "port_filter_ingress", object: filter, empty: "tc_empty", packet: icmp4, prepare: allow80, goal: 8},
		{name: "port-filter/tc-v4-source", program: "port_filter_ingress", object: filter, empty: "tc_empty", packet: tcp4, prepare: allow80AndSource, goal: 8},
		{name: "port-filter/tc-v6-hit", program: "port_filter_ingress", object: filter, empty: "tc_empty", packet: tcp6, prepare: allow80, goal: 8},
		{name: "port-filter/tc-v6-miss", program: "port_filter_ingress", object: filter, empty: "tc_empty", packet: miss6, prepare: allow80, goal: 8},
		{name: "port-filter/xdp-v4-hit", program: "port_filter_xdp", object: filter, empty: "xdp_empty", packet: tcp4, prepare: allow80, goal: 8},
		{name: "port-filter/xdp-v4-miss", program: "port_filter_xdp", object: filter, empty: "xdp_empty", packet: miss4, prepare: allow80, goal: 8},
		{name: "port-filter/xdp-v6-hit", program: "port_filter_xdp", object: filter, empty: "xdp_empty", packet: tcp6, prepare: allow80, goal: 8},
		{name: "port-filter/xdp-v6-miss", program: "port_filter_xdp", object: filter, empty: "xdp_empty", packet: miss6, prepare: allow80, goal: 8},

		{name: "pod-traffic/tc-v4", program: "pod_traffic_ingress", object: traffic, empty: "tc_empty", packet: tcp4, goal: 40},
		{name: "pod-traffic/tc-v6", program: "pod_traffic_ingress", object: traffic, empty: "tc_empty", packet: tcp6, goal: 40},
		{name: "pod-traffic/tc-10k-addresses", program: "pod_traffic_vary", object: loadAddresses, empty: "tc_vary", packet: tcp4, goal: 40},
		{name: "pod-traffic/tc-v4-map-full", program: "pod_traffic_ingress", object: traffic, empty: "tc_empty", packet: tcp4, adjust: onePod, prepare: meetAnother},
		{name: "pod-traffic/tc-v4-prefix-hit", program: "pod_traffic_ingress", object: traffic, empty: "tc_empty", packet: tcp4, adjust: matchPrefixes, prepare: putPrefixes},
		{name: "pod-traffic/tc-v4-prefix-miss", program: "pod_traffic_ingress", object: traffic, empty: "tc_empty", packet: tcp4, adjust: matchPrefixes},
		{name: "pod-traffic/tc-v6-prefix-hit", program: "pod_traffic_ingress", object: traffic, empty: "tc_empty", packet: tcp6, adjust: matchPrefixes, prepare: putPrefixes},
		{name: "pod-traffic/tc-v6-prefix-miss", program: "pod_traffic_ingress", object: traffic, empty: "tc_empty", packet: tcp6, adjust: matchPrefixes},
		{name: "pod-traffic/cgroup-v4", program: "pod_traffic_cgroup_egress", object: traffic, empty: "cgroup_empty", packet: tcp4},
		{name: "pod-traffic/cgroup-v6", program: "pod_traffic_cgroup_egress", object: traffic, empty: "cgroup_empty", packet: tcp6},

		{name: "dns/tc-v4-other", program: "dns_ingress", object: names, empty: "tc_empty", packet: tcp4, goal: 4},
		{name: "dns/tc-v6-other", program: "dns_ingress", object: names, empty: "tc_empty", packet: tcp6, goal: 4},
		{name: "dns/cgroup-v4-other", program: "dns_cgroup_ingress", object: names, empty: "cgroup_empty", packet: tcp4, goal: 4},
		{name: "dns/tc-v4-answer-nobody-reads", program: "dns_ingress", object: names, empty: "tc_empty", packet: dns4},

		{name: "peers/tcp-data", program: "peers_ingress", object: contacts, empty: "tc_empty", packet: ack4, goal: 10},
		{name: "peers/tcp-data-cgroup", program: "peers_cgroup_egress", object: contacts, empty: "cgroup_empty", packet: ack4, goal: 10},
		{name: "peers/tcp-syn-again", program: "peers_ingress", object: contacts, empty: "tc_empty", packet: tcp4},
		{name: "peers/tcp-syn-new", program: "peers_new", object: loadContacts, empty: "new_alone", packet: tcp4},
		{name: "peers/udp-known", program: "peers_ingress", object: contacts, empty: "tc_empty", packet: udp4, goal: 90},
		{name: "peers/udp-served", program: "peers_ingress", object: contacts, empty: "tc_empty", packet: udp4, prepare: meetClient},
	}...)
}

func matchPrefixes(spec *ebpf.CollectionSpec) error {
	return spec.Variables["match_prefixes"].Set(uint8(1))
}

// putPrefixes makes the sources of the packets Pods.
func putPrefixes(c *ebpf.Collection) error {
	for _, prefix := range []netip.Prefix{netip.MustParsePrefix("::ffff:10.77.0.0/112"), netip.MustParsePrefix("2001:db8::/48")} {
		key := struct {
			Length  uint32
			Address [16]byte
		}{uint32(prefix.Bits()), prefix.Addr().As16()}
		if err := c.Maps["pod_prefixes"].Put(key, uint32(1)); err != nil {
			return err
		}
	}
	return nil
}

// meetClient has the far end of udp4 begin its flow.
func meetClient(c *ebpf.Collection) error {
	_, err := c.Programs["peers_egress"].Run(&ebpf.RunOptions{
		Data: Build(Ethernet(), IPv4("198.51.100.7", "10.77.0.4", IPv4Header{}), UDP(53, 40000), Payload(30)),
	})
	return err
}

func onePod(spec *ebpf.CollectionSpec) error {
	spec.Maps["pods"].MaxEntries = 1
	return nil
}

// meetAnother fills the room of onePod with an address of its own.
func meetAnother(c *ebpf.Collection) error {
	_, err := c.Programs["pod_traffic_ingress"].Run(&ebpf.RunOptions{Data: tcp6})
	return err
}

// allow80 puts a policy in force that lets new connections to port 80 and
// established ones through, and drops the rest.
func allow80(c *ebpf.Collection) error { return putPolicy(c, bpf.PolicyHeader{NoSource: 1}) }

// allow80AndSource is the same where source ports have to be looked up too.
func allow80AndSource(c *ebpf.Collection) error { return putPolicy(c, bpf.PolicyHeader{}) }

func putPolicy(c *ebpf.Collection, header bpf.PolicyHeader) error {
	place := c.Maps["second_policy"]
	page, entry := bpf.PolicyIndex(bpf.SideDestination, bpf.PortTCP, 80)
	var verdicts bpf.PolicyPage
	verdicts.Verdict[entry] = 1
	if err := place.Put(page, &verdicts); err != nil {
		return err
	}
	header.Version, header.DefaultDrop, header.Established = 1, 1, 1
	if err := place.Put(uint32(bpf.PolicyHeaderPage), &header); err != nil {
		return err
	}
	return c.Maps["policy"].Put(uint32(0), place)
}
