package commands

import (
	"context"
	"net/netip"
	"time"

	"bpfnet/internal/drops"
)

type fakeDrops struct {
	*fake
	name    string
	samples uint64
}

// Sample has what was dropped at veth-a, at a socket of the Pod's, in the network
// namespace of the container, and on its way out of the host; later ones have more of the
// first, and one that nobody has read.
func (f *fakeDrops) Sample(context.Context) (drops.Sample, error) {
	in, err := f.instance(f.name)
	if err != nil {
		return drops.Sample{}, err
	}
	n := f.samples
	f.samples++
	at := func(seconds int64) time.Time { return sampleStart.Add(time.Duration(seconds) * time.Second) }
	end := netip.MustParseAddrPort
	const host, inside = 4026531840, 4026532301
	return drops.Sample{
		Time: at(int64(n)), Host: host, Made: 10 + n, Attached: len(in.Attachments) > 0,
		Entries: map[drops.Key]drops.Entry{
			{
				Reason: 3, Location: 16, EtherType: 0x800, Protocol: 17, Source: end("198.51.100.7:4000"), Destination: end("10.77.0.4:901"),
				Direction: drops.Ingress, NetNS: host, IfIndex: 4,
			}: {Counters: drops.Counters{Packets: 10 + 5*n, Bytes: 1000 + 500*n}, DevName: "veth-a", FirstSeen: at(-60), LastSeen: at(int64(n) - 1)},
			{
				Reason: 6, Location: 32, EtherType: 0x86dd, Protocol: 17, Source: end("[2001:db8::1]:53"), Destination: end("[fd77::5]:9000"),
				Direction: drops.Ingress, NetNS: 4026532400, IfIndex: 2, CgroupID: 4022, Socket: 77, SocketNetNS: 4026532400,
			}: {Counters: drops.Counters{Packets: 4, Bytes: 400}, DevName: "eth0", FirstSeen: at(-30), LastSeen: at(-20)},
			{Reason: 65537, EtherType: 0x806, Direction: drops.Egress, NetNS: inside, IfIndex: 2}: {
				Counters: drops.Counters{Packets: 1, Bytes: 28}, DevName: "eth0", FirstSeen: at(-40), LastSeen: at(-40),
			},
			{Reason: 54, Location: 16, Protocol: 6, Source: end("10.77.0.1:5000"), Destination: end("192.0.2.1:80"), NetNS: host, CgroupID: 1}: {
				Counters: drops.Counters{Packets: 2, Bytes: 120}, FirstSeen: at(-50), LastSeen: at(-50),
			},
		},
		Reasons:   map[uint32]drops.Counters{3: {Packets: 110 + 5*n, Bytes: 9000 + 500*n}, 6: {Packets: 4, Bytes: 400}, 65537: {Packets: 1, Bytes: 28}, 54: {Packets: 2, Bytes: 120}},
		Names:     map[uint32]string{0: "not_dropped_yet", 3: "no_socket", 6: "socket_rcvbuff", 54: "ip_outnoroutes"},
		Locations: map[uint64]string{16: "udp_rcv+0x10", 32: "udp_queue_rcv_one_skb+0x2ba"},
	}, nil
}
