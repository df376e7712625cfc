package metrics

import (
	"net/netip"
	"testing"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// meet has an endpoint contact peers, an age ago.
func (f *fake) meet(at traffic.Key, age time.Duration, addresses ...string) {
	for _, address := range addresses {
		for _, port := range []uint16{80, 443} {
			key := peers.Key{Endpoint: at, Protocol: 6, Address: netip.MustParseAddr(address), Port: port}
			f.contacts.Peers[key] = peers.Entry{LastSeen: f.contacts.Time.Add(-age)}
		}
	}
}

// Whom a Pod has contacted is a number, what it has begun a counter; both go with it.
func TestPeers(t *testing.T) {
	f := newFake("peers", "pod-traffic")
	f.found.endpoints = []endpoint.Endpoint{pod("shop", "web", "u1", 4, 1), pod("shop", "db", "u2", 5, 2)}
	f.contacts = peers.Sample{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Peers: map[peers.Key]peers.Entry{}, NoRoom: 3,
		Devices: map[uint32]string{4: "veth-a", 5: "veth-b"}, Attached: []traffic.Point{traffic.TC},
	}
	f.sample.Devices, f.sample.Attached = f.contacts.Devices, f.contacts.Attached
	f.atTC("10.77.0.4", 4, sent(1))
	web4, web6 := traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.4"), IfIndex: 4}, traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("fd77::4"), IfIndex: 4}
	db := traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.5"), IfIndex: 5}
	f.contacts.Endpoints = map[traffic.Key]peers.Connections{web4: {Opened: 7, Received: 1}, web6: {Opened: 2}, db: {Received: 9}}
	f.meet(web4, time.Minute, "198.51.100.1", "198.51.100.2")
	f.meet(web4, 6*time.Minute, "198.51.100.3")
	f.meet(web6, 0, "2001:db8::1")

	w := watch(t, f, 10)
	peersOf := func() map[string]float64 { return w.values("bpfnet_pod_distinct_peers") }
	connections := func() map[string]float64 { return w.values("bpfnet_pod_connections_total") }
	w.want("peers", peersOf(), map[string]float64{" shop db u2 veth-b tc peers": 0, " shop web u1 veth-a tc peers": 3})
	first := map[string]float64{
		" shop db u2 veth-b receive tc peers": 9, " shop db u2 veth-b transmit tc peers": 0,
		" shop web u1 veth-a receive tc peers": 1, " shop web u1 veth-a transmit tc peers": 9,
	}
	w.want("connections", connections(), first)
	if traffic := w.values(podsSent); len(traffic) != 2 { // whose names are still known
		t.Errorf("traffic of %v", traffic)
	}

	delete(f.contacts.Devices, 5)
	f.found.endpoints = f.found.endpoints[:1]
	w.want("gone", connections(), first)
	delete(first, " shop db u2 veth-b receive tc peers")
	delete(first, " shop db u2 veth-b transmit tc peers")
	w.want("after", connections(), first)
	w.want("peers of who is left", peersOf(), map[string]float64{" shop web u1 veth-a tc peers": 3})
}
