package bpf_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
)

// peerCounts are the counters of one peer.
type peerCounts struct{ attempts, answers, refusals uint64 }

// peersWatch is program peers, which sees what the endpoint source4 or source6 sends
// and receives.
type peersWatch struct {
	*ebpf.Collection
	send, receive string // functions
	link          []Layer
	verdict       uint32
	hook          bpf.PeerHook
}

// peersPoints are the places where it can be.
var peersPoints = []peersWatch{
	{send: "peers_ingress", receive: "peers_egress", link: links[0].layers, verdict: tcNext},
	{send: "peers_ingress", receive: "peers_egress", link: links[1].layers, verdict: tcNext},
	{send: "peers_ingress", receive: "peers_egress", link: links[2].layers, verdict: tcNext},
	{send: "peers_ingress_l3", receive: "peers_egress_l3", verdict: tcNext},
	{send: "peers_cgroup_egress", receive: "peers_cgroup_ingress", link: links[0].layers, verdict: cgroupYes, hook: bpf.PeerCgroup},
}

func (w peersWatch) load(t *testing.T, adjust func(*ebpf.CollectionSpec)) peersWatch {
	t.Helper()
	w.Collection = load(t, "peers", adjust)
	return w
}

// sent and received let packets pass.
func (w peersWatch) sent(t *testing.T, layers ...Layer) { t.Helper(); w.pass(t, w.send, layers) }

func (w peersWatch) received(t *testing.T, layers ...Layer) { t.Helper(); w.pass(t, w.receive, layers) }

func (w peersWatch) pass(t *testing.T, function string, layers []Layer) {
	t.Helper()
	if verdict := run(t, w.Programs[function], over(w.link, layers)); verdict != w.verdict {
		t.Errorf("%s: verdict %d", function, verdict)
	}
}

// want checks what is remembered, by protocol, address and port of the peer, and how
// many connections the endpoint opened and received; then it forgets it all.
func (w peersWatch) want(t *testing.T, want map[string]peerCounts, opened, received uint64) {
	t.Helper()
	var key bpf.PeerKey
	var value bpf.PeerEntry
	got := map[string]peerCounts{}
	for entries := w.Maps["peer_entries"].Iterate(); entries.Next(&key, &value); {
		got[fmt.Sprintf("%d %s %d", key.Protocol, addrOf(key.Peer.In6U.U6Addr8), key.Port)] = peerCounts{value.Attempts, value.Answers, value.Refusals}
		if key.Hook != w.hook || w.hook == bpf.PeerTC && key.Place != loopback || value.First == 0 || value.Last < value.First {
			t.Errorf("entry %+v has %+v", key, value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("remembered %v, want %v", got, want)
	}
	for peer, counts := range want {
		if got[peer] != counts {
			t.Errorf("%s has %v, want %v", peer, got[peer], counts)
		}
	}
	if made := w.row(t, bpf.PeersMade); made != uint64(len(want)) {
		t.Errorf("%d were made, want %d", made, len(want))
	}
	total := bpf.EndpointCounters{}
	var place bpf.EndpointKey
	var each []bpf.EndpointCounters
	for entries := w.Maps["peer_endpoints"].Iterate(); entries.Next(&place, &each); {
		for _, one := range each {
			total.Opened += one.Opened
			total.Received += one.Received
		}
	}
	if total.Opened != opened || total.Received != received {
		t.Errorf("opened %d and received %d, want %d and %d", total.Opened, total.Received, opened, received)
	}
	w.forget(t)
}

func (w peersWatch) row(t *testing.T, row bpf.PeerRow) uint64 {
	t.Helper()
	return sum(t, w.Maps["peer_rows"], row, func(total *uint64, one uint64) { *total += one })
}

func (w peersWatch) forget(t *testing.T) {
	t.Helper()
	for _, name := range []string{"peer_entries", "peer_flows", "incoming", "peer_endpoints"} {
		m := w.Maps[name]
		for key := make([]byte, m.KeySize()); m.NextKey(nil, &key) == nil; {
			if err := m.Delete(key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for row := range bpf.PeerRows {
		clearEntry[uint64](t, w.Maps["peer_rows"], uint32(row))
	}
}

// family is one of IP.
type family struct {
	name        string
	out, in     []Layer // from and to the endpoint
	peer        string  // its address
	icmp        uint8   // protocol
	request     uint8   // types of ICMP
	reply       uint8
	unreachable uint8
	router      Layer // from somebody else to the endpoint
}

var (
	in4, in6 = v4(destination4, source4), IPv6(destination6, source6)
	more6    = []Layer{Extension(HopByHop, 0), Extension(DestinationOptions, 1)}
	families = []family{
		{"v4", []Layer{ip4(IPv4Header{})}, []Layer{in4}, destination4, 1, 8, 0, 3, v4("203.0.113.1", source4)},
		{"v4 with options", []Layer{ip4(IPv4Header{Options: 3})}, []Layer{in4}, destination4, 1, 8, 0, 3, v4("203.0.113.1", source4)},
		{"v6", []Layer{ip6()}, []Layer{in6}, destination6, 58, 128, 129, 1, IPv6("2001:db8:f::1", source6)},
		{"v6 with extensions", slices.Insert(slices.Clone(more6), 0, ip6()), slices.Insert(slices.Clone(more6), 0, in6), destination6, 58, 128, 129, 1, IPv6("2001:db8:f::1", source6)},
	}
)

func (f family) sent(layers ...Layer) []Layer     { return slices.Concat(f.out, layers) }
func (f family) received(layers ...Layer) []Layer { return slices.Concat(f.in, layers) }

// refused is an ICMP message that a packet of the endpoint's can't be delivered.
func (f family) refused(code uint8, layers ...Layer) []Layer {
	return []Layer{f.router, Protocol(f.icmp, f.unreachable, code, 0, 0, 0, 0, 0, 0), Data(Build(f.sent(layers...)...))}
}

// key is how want names a peer.
func (f family) key(protocol uint8, port uint16) string {
	return fmt.Sprintf("%d %s %d", protocol, f.peer, port)
}

const tcpProtocol, udpProtocol, sctpProtocol, udpLiteProtocol = 6, 17, 132, 136

// step is a packet.
type step struct {
	sent   bool
	layers []Layer
}

func TestPeers(t *testing.T) {
	var points []peersWatch
	for _, at := range peersPoints {
		points = append(points, at.load(t, nil))
	}
	for _, f := range families {
		out := func(layers ...Layer) step { return step{true, f.sent(layers...)} }
		in := func(layers ...Layer) step { return step{false, f.received(layers...)} }
		refused := func(code uint8, layers ...Layer) step { return step{false, f.refused(code, layers...)} }
		syn := func(port uint16, sequence uint32) step { return out(Segment(port, 443, SYN, sequence, 0)) }
		web, dns, echo := f.key(tcpProtocol, 443), f.key(udpProtocol, 53), f.key(f.icmp, 0)
		lite := func(source, destination uint16) Layer {
			return Protocol(udpLiteProtocol, byte(source>>8), byte(source), byte(destination>>8), byte(destination), 0, 0, 0, 0)
		}
		type counts = map[string]peerCounts
		for _, c := range []struct {
			name             string
			steps            []step
			want             counts
			opened, received uint64
		}{
			{"connection", []step{syn(40000, 7), in(Segment(443, 40000, SYN|ACK, 100, 8)), out(Segment(40000, 443, ACK, 8, 101), Payload(9)),
				in(Segment(443, 40000, ACK, 101, 17), Payload(9)), out(Segment(40000, 443, ACK|fin, 17, 110)), in(Segment(443, 40000, ACK|rst, 110, 18))},
				counts{web: {1, 1, 0}}, 1, 0},
			{"SYN sent again, SYN-ACK sent again", []step{syn(40000, 7), syn(40000, 7), in(Segment(443, 40000, SYN|ACK, 100, 8)), in(Segment(443, 40000, SYN|ACK, 100, 8)), syn(40000, 7)},
				counts{web: {1, 1, 0}}, 1, 0},
			{"no answer", []step{syn(40000, 7), syn(40000, 7), syn(40001, 7)}, counts{web: {2, 0, 0}}, 2, 0},
			{"same port again", []step{syn(40000, 7), in(Segment(443, 40000, SYN|ACK, 100, 8)), syn(40000, 9), in(Segment(443, 40000, SYN|ACK, 200, 10))},
				counts{web: {2, 2, 0}}, 2, 0},
			{"refused", []step{syn(40000, 7), in(Segment(443, 40000, ACK|rst, 0, 8)), in(Segment(443, 40000, ACK|rst, 0, 8))}, counts{web: {1, 0, 1}}, 1, 0},
			{"numbers around zero", []step{syn(40000, 0xffffffff), in(Segment(443, 40000, SYN|ACK, 100, 0))}, counts{web: {1, 1, 0}}, 1, 0},
			{"fast open", []step{out(Segment(40000, 443, SYN, 7, 0), Payload(1000)), in(Segment(443, 40000, SYN|ACK, 100, 1008))}, counts{web: {1, 1, 0}}, 1, 0},
			{"answers to nothing", []step{in(Segment(443, 40000, SYN|ACK, 100, 8)), in(Segment(443, 40000, ACK|rst, 0, 8)), syn(40000, 7),
				in(Segment(443, 40001, SYN|ACK, 100, 8)), in(Segment(443, 40000, SYN|ACK, 100, 7)), in(Segment(443, 40000, rst, 100, 0))}, counts{web: {1, 0, 0}}, 1, 0},
			{"TCP server", []step{in(Segment(40000, 80, SYN, 7, 0)), in(Segment(40000, 80, SYN, 7, 0)), out(Segment(80, 40000, SYN|ACK, 100, 8)), in(Segment(40000, 80, ACK, 8, 101), Payload(5)),
				out(Segment(80, 40000, ACK, 101, 13), Payload(9)), in(Segment(40000, 80, SYN, 9, 0)), in(Segment(40000, 81, SYN, 7, 0)), out(Segment(81, 40000, ACK|rst, 0, 8))}, nil, 0, 3},
			{"odd flags", []step{out(Segment(1, 443, SYN|fin, 7, 0)), out(Segment(2, 443, SYN|rst, 7, 0)), out(Segment(3, 443, 0, 7, 0)), in(Segment(3, 443, 0, 7, 0))}, nil, 0, 0},

			{"UDP", []step{out(UDP(40000, 53)), in(UDP(53, 40000)), in(UDP(53, 40000)), out(UDP(40000, 53)), out(UDP(40001, 53))}, counts{dns: {2, 1, 0}}, 2, 0},
			{"UDP server", []step{in(UDP(40000, 53)), out(UDP(53, 40000)), in(UDP(40000, 53)), out(UDP(53, 40000)), in(UDP(40001, 53)), out(UDP(53, 40001))}, nil, 0, 2},
			{"UDP to who asked before", []step{in(UDP(40000, 53)), out(UDP(53, 40000)), out(UDP(40000, 53)), in(UDP(53, 40000))}, counts{dns: {1, 1, 0}}, 1, 1},
			{"UDP-Lite", []step{out(lite(40000, 53)), in(lite(53, 40000)), in(lite(1, 2)), out(lite(2, 1))}, counts{f.key(udpLiteProtocol, 53): {1, 1, 0}}, 1, 1},
			{"SCTP", []step{out(SCTP(40000, 53), Payload(4)), in(SCTP(53, 40000), Data([]byte{2, 0, 0, 4})), in(SCTP(1, 2)), out(SCTP(2, 1))}, counts{f.key(sctpProtocol, 53): {1, 1, 0}}, 1, 1},
			{"SCTP aborted", []step{out(SCTP(40000, 53), Payload(4)), in(SCTP(53, 40000), Data([]byte{6, 0, 0, 4}))}, counts{f.key(sctpProtocol, 53): {1, 0, 1}}, 1, 0},
			{"GRE", []step{out(Protocol(47), Payload(20)), in(Protocol(47), Payload(20)), out(Protocol(47), Payload(20))}, counts{f.key(47, 0): {1, 1, 0}}, 1, 0},
			{"GRE of the other", []step{in(Protocol(47), Payload(20)), out(Protocol(47), Payload(20))}, nil, 0, 1},

			{"echo", []step{out(Echo(f.icmp, f.request, 77)), out(Echo(f.icmp, f.request, 77)), in(Echo(f.icmp, f.reply, 77)), in(Echo(f.icmp, f.reply, 77)), out(Echo(f.icmp, f.request, 78))},
				counts{echo: {2, 1, 0}}, 2, 0},
			{"echo of the other", []step{in(Echo(f.icmp, f.request, 77)), out(Echo(f.icmp, f.reply, 77)), in(Echo(f.icmp, f.request, 77)), in(Echo(f.icmp, f.reply, 78))}, nil, 0, 1},
			{"both ping", []step{in(Echo(f.icmp, f.request, 77)), out(Echo(f.icmp, f.reply, 77)), out(Echo(f.icmp, f.request, 78)), in(Echo(f.icmp, f.reply, 78))}, counts{echo: {1, 1, 0}}, 1, 1},
			{"other ICMP", []step{out(Protocol(f.icmp, 135, 0, 0, 0, 0, 0, 0, 0)), in(Protocol(f.icmp, 136, 0, 0, 0, 0, 0, 0, 0)), out(Protocol(f.icmp, 13, 0, 0, 0, 0, 1, 0, 1))}, nil, 0, 0},

			{"TCP unreachable", []step{syn(40000, 7), refused(1, Segment(40000, 443, SYN, 7, 0)), refused(1, Segment(40000, 443, SYN, 7, 0))}, counts{web: {1, 0, 1}}, 1, 0},
			{"another TCP unreachable", []step{syn(40000, 7), refused(1, Segment(40000, 443, SYN, 8, 0)), refused(1, Segment(40001, 443, SYN, 7, 0)), refused(1, UDP(40000, 443))}, counts{web: {1, 0, 0}}, 1, 0},
			{"unreachable after the answer", []step{syn(40000, 7), in(Segment(443, 40000, SYN|ACK, 100, 8)), refused(1, Segment(40000, 443, SYN, 7, 0))}, counts{web: {1, 1, 0}}, 1, 0},
			{"UDP unreachable", []step{out(UDP(40000, 53)), refused(3, UDP(40000, 53)), out(UDP(40000, 53)), refused(3, UDP(40000, 53))}, counts{dns: {1, 0, 1}}, 1, 0},
			{"echo unreachable", []step{out(Echo(f.icmp, f.request, 77)), refused(1, Echo(f.icmp, f.request, 77))}, counts{echo: {1, 0, 1}}, 1, 0},
			{"GRE unreachable", []step{out(Protocol(47), Payload(20)), refused(2, Protocol(47), Payload(20))}, counts{f.key(47, 0): {1, 0, 1}}, 1, 0},
			{"answer unreachable", []step{in(UDP(40000, 53)), out(UDP(53, 40000)), refused(3, UDP(53, 40000))}, nil, 0, 1},
			{"nothing embedded", []step{out(UDP(40000, 53)), {false, []Layer{f.router, Protocol(f.icmp, f.unreachable, 1, 0, 0, 0, 0, 0, 0)}}}, counts{dns: {1, 0, 0}}, 1, 0},
			{"packet of somebody else", []step{out(UDP(40000, 53)), {false, []Layer{f.router, Protocol(f.icmp, f.unreachable, 1, 0, 0, 0, 0, 0, 0),
				Data(Build(f.received(UDP(40000, 53))...))}}}, counts{dns: {1, 0, 0}}, 1, 0},
		} {
			for _, w := range points {
				t.Run(fmt.Sprintf("%s/%s/%s%d", f.name, c.name, w.send, len(w.link)), func(t *testing.T) {
					for _, s := range c.steps {
						if s.sent {
							w.sent(t, s.layers...)
						} else {
							w.received(t, s.layers...)
						}
					}
					w.want(t, c.want, c.opened, c.received)
				})
			}
		}
	}
}

// Addresses of nobody, and of the endpoint itself, are no peers.
func TestPeersNobody(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	for _, p := range append(nobodies[:len(nobodies):len(nobodies)], []struct {
		name, source, destination string
		layer                     func(source, destination string) Layer
	}{
		{"loopback", "127.0.0.1", "127.0.0.53", v4},
		{"from loopback", source4, "127.0.0.53", v4},
		{"v6 loopback", "::1", "::1", IPv6},
		{"itself", source4, source4, v4},
		{"itself, v6", source6, source6, IPv6},
	}...) {
		for _, layers := range [][]Layer{{UDP(1, 2)}, {TCP(1, 2, SYN)}, {Protocol(47)}} {
			w.sent(t, slices.Insert(layers, 0, p.layer(p.source, p.destination))...)
			w.received(t, slices.Insert(layers, 0, p.layer(p.destination, p.source))...)
		}
		w.want(t, nil, 0, 0)
	}
}

// A message that a packet is too long refuses nothing.
func TestPeersTooLong(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	w.sent(t, families[0].sent(UDP(1, 53))...)
	w.received(t, families[0].refused(4, UDP(1, 53))...)
	w.received(t, families[0].refused(2, UDP(1, 53))...)
	w.want(t, map[string]peerCounts{families[0].key(udpProtocol, 53): {1, 0, 1}}, 1, 0)
}

// What is cut short, at every byte, is counted, and nothing is made of it.
func TestPeersTruncated(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	for _, f := range families {
		for _, c := range []struct {
			upper  []Layer
			needed int // bytes of the upper layer
		}{
			{[]Layer{Segment(40000, 443, SYN, 7, 0)}, 20},
			{[]Layer{UDP(40000, 53), Payload(9)}, 4},
			{[]Layer{SCTP(40000, 53)}, 4},
			{[]Layer{Protocol(udpLiteProtocol, 0, 1, 0, 2, 0, 0, 0, 0)}, 4},
			{[]Layer{Echo(f.icmp, f.request, 77)}, 8},
		} {
			for _, link := range links[1:3] { // without a tag new kernels refuse to make such an skb
				packet := over(link.layers, f.sent(c.upper...))
				needed := len(packet) - len(Build(c.upper...)) + c.needed
				for size := 15; size <= len(packet); size++ {
					w.forget(t)
					run(t, w.Programs[w.send], packet[:size])
					unread, made := w.row(t, bpf.PeersTruncated), w.row(t, bpf.PeersMade)
					if whole := size >= needed; whole && (unread != 0 || made != 1) || !whole && (unread != 1 || made != 0) {
						t.Errorf("%s, %s, protocol with %d bytes, %d of %d: %d unread, %d made", f.name, link.name, c.needed, size, needed, unread, made)
					}
				}
			}
		}
	}
}

// A message about a packet that is cut short, at every byte, refuses what its ports
// tell, and else nothing.
func TestPeersEmbeddedTruncated(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	for _, f := range families {
		attempt := f.sent(Segment(40000, 443, SYN, 7, 0))
		message := ethernet(f.refused(1, Segment(40000, 443, SYN, 7, 0))...)
		start := len(message) - len(Build(attempt...))
		for size := start; size <= len(message); size++ {
			w.sent(t, attempt...)
			run(t, w.Programs[w.receive], message[:size])
			want := peerCounts{1, 0, 0}
			if size >= len(message)-20+8 {
				want.refusals = 1
			}
			w.want(t, map[string]peerCounts{f.key(tcpProtocol, 443): want}, 1, 0)
		}
	}
}

func TestPeersTooDeep(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	run(t, w.Programs["peers_egress"], Build(Ethernet(), VLAN(1), VLAN(2), VLAN(3), ip4(IPv4Header{}), UDP(1, 2)))
	w.sent(t, slices.Concat([]Layer{ip6()}, extensions(9), []Layer{UDP(1, 2)})...)
	if got := w.row(t, bpf.PeersTooDeep); got != 2 {
		t.Errorf("%d are too deep", got)
	}
	w.want(t, nil, 0, 0)
}

// Later fragments are of nobody, the first ones are packets as others.
func TestPeersFragments(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	w.sent(t, ip4(IPv4Header{ID: 7, Offset: 9, Protocol: 17}), Payload(64))
	w.sent(t, ip6(), Fragment(1, 9, false), Protocol(17), Payload(64))
	w.want(t, nil, 0, 0)
	w.sent(t, ip4(IPv4Header{ID: 7, More: true}), UDP(1, 53), Payload(64))
	w.received(t, in6, Fragment(1, 0, true), UDP(1, 53), Payload(64))
	w.want(t, map[string]peerCounts{families[0].key(udpProtocol, 53): {1, 0, 0}}, 1, 1)
}

// Who is scanned contacts nobody, whatever it answers, though more ports are tried
// than are remembered.
func TestPeersScanned(t *testing.T) {
	for _, at := range peersPoints {
		w := at.load(t, nil)
		const ports = 20000
		for port := range uint16(ports) {
			w.received(t, in4, Segment(50000, port, SYN, uint32(port), 0))
			w.sent(t, ip4(IPv4Header{}), Segment(port, 50000, ACK|rst, 0, uint32(port)+1))
			w.received(t, in4, UDP(50000, port))
			w.sent(t, ip4(IPv4Header{}), UDP(port, 50000))
		}
		w.want(t, nil, 0, 2*ports)
	}
}

// A server's many clients are no contacts, and what it asks itself is.
func TestPeersServer(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	for range 3 {
		for client := range byte(100) {
			address := fmt.Sprintf("10.9.0.%d", client)
			w.received(t, v4(address, source4), UDP(40000+uint16(client), 53))
			w.sent(t, ip4(IPv4Header{}), UDP(40000, 53))
			w.received(t, in4, UDP(53, 40000))
			w.sent(t, v4(source4, address), UDP(53, 40000+uint16(client)))
		}
	}
	w.want(t, map[string]peerCounts{families[0].key(udpProtocol, 53): {1, 1, 0}}, 1, 100)
}

// A flow that was silent for long begins anew, and whoever sends first began it.
func TestPeersIdle(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	out, in := []Layer{ip4(IPv4Header{}), UDP(40000, 53)}, []Layer{in4, UDP(53, 40000)}
	dns := families[0].key(udpProtocol, 53)
	for _, c := range []struct {
		name             string
		seconds          uint64
		steps            []bool // sent
		want             map[string]peerCounts
		opened, received uint64
	}{
		{"short", 100, []bool{true, false, true, false}, map[string]peerCounts{dns: {1, 1, 0}}, 1, 0},
		{"long", 121, []bool{true, true}, map[string]peerCounts{dns: {2, 0, 0}}, 2, 0},
		{"the other", 121, []bool{true, false, false}, map[string]peerCounts{dns: {1, 0, 0}}, 1, 2},
		{"the endpoint", 121, []bool{false, true}, map[string]peerCounts{dns: {1, 0, 0}}, 1, 1},
		{"the other, short", 100, []bool{false, true, true, false}, nil, 0, 1},
	} {
		for _, sent := range c.steps {
			w.age(t, c.seconds)
			if sent {
				w.sent(t, out...)
			} else {
				w.received(t, in...)
			}
		}
		t.Run(c.name, func(t *testing.T) { w.want(t, c.want, c.opened, c.received) })
	}
}

// age makes all flows older.
func (w peersWatch) age(t *testing.T, seconds uint64) {
	t.Helper()
	const last, checked = 8, 16 // in struct flow
	for _, name := range []string{"peer_flows", "incoming"} {
		m := w.Maps[name]
		key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
		for entries := m.Iterate(); entries.Next(&key, &value); {
			binary.NativeEndian.PutUint64(value[last:], binary.NativeEndian.Uint64(value[last:])-seconds*1e9)
			binary.NativeEndian.PutUint64(value[checked:], binary.NativeEndian.Uint64(value[checked:])-seconds*100)
			if err := m.Put(key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Connections that find no room are counted, and those who have an entry go on.
func TestPeersNoRoom(t *testing.T) {
	w := peersPoints[0].load(t, func(spec *ebpf.CollectionSpec) { spec.Maps["peer_endpoints"].MaxEntries = 1 })
	w.sent(t, ip4(IPv4Header{}), UDP(1, 53))
	w.sent(t, ip6(), UDP(1, 53))
	w.received(t, in6, UDP(1, 2))
	w.sent(t, ip4(IPv4Header{}), UDP(2, 53))
	if got := w.row(t, bpf.PeersNoRoom); got != 2 {
		t.Errorf("%d found no room", got)
	}
	w.want(t, map[string]peerCounts{families[0].key(udpProtocol, 53): {2, 0, 0}, families[2].key(udpProtocol, 53): {1, 0, 0}}, 2, 0)
}

// TestPeersNonLinear has headers in the part of an skb that isn't linear.
func TestPeersNonLinear(t *testing.T) {
	device := newTap(t)
	w := peersPoints[0].load(t, nil)
	device.attach(t, w.Programs["peers_ingress"])
	for i, p := range nonlinear {
		device.receive(t, p.packet)
		eventually(t, func() bool { return w.row(t, bpf.PeersMade) == uint64(i+1) })
	}
}

// Many CPUs that meet the same packets count each flow once, and each entry that they
// make.
func TestPeersConcurrent(t *testing.T) {
	w := peersPoints[0].load(t, nil)
	const flows = 2000
	want := map[string]peerCounts{families[0].key(udpProtocol, 53): {flows, flows, 0}}
	var together sync.WaitGroup
	for range 8 {
		together.Go(func() {
			for i := range uint16(flows) {
				far := fmt.Sprintf("198.18.%d.%d", i>>8, i&0xff)
				w.sent(t, ip4(IPv4Header{}), UDP(i, 53))
				w.received(t, in4, UDP(53, i))
				w.sent(t, v4(source4, far), Segment(1, 443, SYN, 7, 0))
				w.received(t, v4(far, source4), Segment(443, 1, ACK|rst, 0, 8))
			}
		})
	}
	together.Wait()
	for i := range flows {
		want[fmt.Sprintf("%d 198.18.%d.%d 443", tcpProtocol, i>>8, i&0xff)] = peerCounts{1, 0, 1}
	}
	w.want(t, want, 2*flows, 0)
}
