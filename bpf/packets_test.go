package bpf_test

import (
	"fmt"

	. "bpfnet/bpf/packettest"
)

// sample is a packet with what the programs must find in it.
type sample struct {
	name   string
	layers []Layer // without Ethernet and tags
	class  string  // of xdp-counter
	other  bool    // neither source4 nor source6 is its source: not IP
}

const (
	source4, destination4 = "10.77.0.4", "198.51.100.7"
	source6, destination6 = "2001:db8::4", "2001:db8:1::7"
)

func ip4(header IPv4Header) Layer { return IPv4(source4, destination4, header) }
func ip6() Layer                  { return IPv6(source6, destination6) }

// samples are packets whose class follows from their headers.
func samples() []sample {
	return []sample{
		{"tcp4", []Layer{ip4(IPv4Header{}), TCP(40000, 80, SYN)}, "tcp4", false},
		{"tcp4 with payload", []Layer{ip4(IPv4Header{}), TCP(40000, 80, ACK), Payload(1000)}, "tcp4", false},
		{"udp4", []Layer{ip4(IPv4Header{}), UDP(40000, 53)}, "udp4", false},
		{"icmp4", []Layer{ip4(IPv4Header{}), ICMP(), Payload(8)}, "icmp4", false},
		{"sctp4", []Layer{ip4(IPv4Header{}), SCTP(40000, 80)}, "sctp4", false},
		{"gre4", []Layer{ip4(IPv4Header{}), Protocol(47), Payload(20)}, "other4", false},
		{"icmpv6 in v4", []Layer{ip4(IPv4Header{}), ICMPv6(128), Payload(8)}, "other4", false},
		{"options of 4 bytes", []Layer{ip4(IPv4Header{Options: 1}), TCP(40000, 80, SYN)}, "tcp4", false},
		{"options of 40 bytes", []Layer{ip4(IPv4Header{Options: 10}), UDP(40000, 80)}, "udp4", false},
		{"first fragment", []Layer{ip4(IPv4Header{ID: 7, More: true}), UDP(40000, 80), Payload(64)}, "udp4", false},
		{"later fragment", []Layer{ip4(IPv4Header{ID: 7, Offset: 9, Protocol: 17}), Payload(64)}, "udp4", false},
		{"last fragment of a byte", []Layer{ip4(IPv4Header{ID: 7, Offset: 9, Protocol: 6}), Payload(1)}, "tcp4", false},

		{"tcp6", []Layer{ip6(), TCP(40000, 80, SYN)}, "tcp6", false},
		{"udp6", []Layer{ip6(), UDP(40000, 53)}, "udp6", false},
		{"icmp6", []Layer{ip6(), ICMPv6(128), Payload(8)}, "icmp6", false},
		{"neighbour solicitation", []Layer{ip6(), ICMPv6(135), Payload(24)}, "icmp6", false},
		{"sctp6", []Layer{ip6(), SCTP(40000, 80)}, "sctp6", false},
		{"no next header", []Layer{ip6(), Protocol(59)}, "other6", false},
		{"esp6", []Layer{ip6(), Protocol(50), Payload(32)}, "other6", false},
		{"icmp in v6", []Layer{ip6(), ICMP(), Payload(8)}, "other6", false},
		{"hop-by-hop", []Layer{ip6(), Extension(HopByHop, 0), TCP(40000, 80, SYN)}, "tcp6", false},
		{"long routing header", []Layer{ip6(), Extension(Routing, 4), TCP(40000, 80, SYN)}, "tcp6", false},
		{"authentication header", []Layer{ip6(), Extension(Authentication, 3), UDP(1, 2)}, "udp6", false},
		{"all kinds of extensions", []Layer{ip6(), Extension(HopByHop, 1), Extension(DestinationOptions, 0),
			Extension(Routing, 2), Fragment(1, 0, false), Extension(Authentication, 1),
			Extension(DestinationOptions, 3), TCP(40000, 80, SYN)}, "tcp6", false},
		{"8 extensions", append(append([]Layer{ip6()}, extensions(8)...), UDP(1, 2)), "udp6", false},
		{"9 extensions", append(append([]Layer{ip6()}, extensions(9)...), UDP(1, 2)), "other6", false},
		{"extension of 2048 bytes", []Layer{ip6(), Extension(DestinationOptions, 255), UDP(1, 2)}, "udp6", false},
		{"atomic fragment", []Layer{ip6(), Fragment(1, 0, false), UDP(1, 2)}, "udp6", false},
		{"first fragment6", []Layer{ip6(), Fragment(1, 0, true), UDP(1, 2), Payload(64)}, "udp6", false},
		{"later fragment6", []Layer{ip6(), Fragment(1, 9, false), Protocol(17), Payload(64)}, "udp6", false},
		{"later fragment6 of options", []Layer{ip6(), Fragment(1, 9, false), Protocol(60), Payload(3)}, "other6", false},

		{"arp", []Layer{ARP()}, "arp", true},
		{"lldp", []Layer{EtherType(0x88cc, 46)}, "other_ethertype", true},
		{"pppoe", []Layer{EtherType(0x8864, 46)}, "other_ethertype", true},
	}
}

func extensions(n int) []Layer {
	layers := make([]Layer, n)
	for i := range layers {
		layers[i] = Extension(DestinationOptions, 0)
	}
	return layers
}

// links are the ways a packet starts.
var links = []struct {
	name   string
	layers []Layer
}{
	{"ethernet", []Layer{Ethernet()}},
	{"vlan", []Layer{Ethernet(), VLAN(10)}},
	{"qinq", []Layer{Ethernet(), ServiceVLAN(10), VLAN(20)}},
	{"two 802.1Q tags", []Layer{Ethernet(), VLAN(10), VLAN(20)}},
}

// over puts a link layer in front of other layers.
func over(link, layers []Layer) []byte {
	return Build(append(append([]Layer{}, link...), layers...)...)
}

// ethernet puts an Ethernet header in front of layers.
func ethernet(layers ...Layer) []byte { return over([]Layer{Ethernet()}, layers) }

func title(link, name string) string { return fmt.Sprintf("%s/%s", link, name) }
