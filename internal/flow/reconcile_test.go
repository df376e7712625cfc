package flow

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
	"bpfnet/internal/sockets"
	"bpfnet/internal/workload"
)

// Sizes of headers, with the time stamps that all segments have; a SYN has more options.
const (
	ethernetHeader = 14
	tcpHeader      = 32
	synOptions     = 8
)

var ipHeaders = map[string]uint64{"tcp4/10MB": 20, "tcp6/10MB": 40}

// What applications moved over a veth, what its interfaces count, and TCP's segments fit
// together to the byte, with packets of one segment and of many.
func TestInterfacesAgree(t *testing.T) {
	for _, c := range workload.Cases() {
		header, ok := ipHeaders[c.Name]
		if !ok {
			continue
		}
		header += ethernetHeader + tcpHeader
		for name, single := range map[string]bool{"segments": true, "offload": false} {
			t.Run(c.Name+"/"+name, func(t *testing.T) {
				t.Parallel()
				for range 5 { // what is sent again may have been lost on the way
					if !agree(t, c, header, single) {
						return
					}
				}
				t.Skip("the machine is too busy: segments are sent again and again")
			})
		}
	}
}

// agree runs a case once. It says whether it has to be tried again.
func agree(t *testing.T, c workload.Case, header uint64, single bool) (again bool) {
	place := workload.Veth(t)
	w := wire{t, place, map[string]string{place.Client.NetNS: "a", place.Server.NetNS: "b"}}
	w.quieten(single)
	var reader *Reader
	var before [2]netlink.LinkStatistics
	workload.Run(t, c, place, workload.Hooks{
		Load: func() {
			before = w.settled(2 * time.Second) // both have told of their addresses

			reader = startIn(t, newEngine(t), "")
		},
		Open: func(want []workload.Expected) {
			after := w.settled(200 * time.Millisecond) // acknowledgements don't wait longer
			client, server := w.info(place.Client), w.info(place.Server)
			if again = client.Total_retrans+server.Total_retrans > 0; again {
				return
			}
			sent := want[0].TransmitBytes + want[1].TransmitBytes
			var counted Counters
			in := namespaces(t, place)
			for _, row := range take(t, reader).Rows {
				if in[row.NetNS] {
					counted.add(row.Counters)
				}
			}
			check := func(what string, got, want uint64) {
				t.Helper()
				if got != want {
					t.Errorf("%s: %d, want %d", what, got, want)
				}
			}
			up, down := after[0].TxPackets-before[0].TxPackets, after[1].TxPackets-before[1].TxPackets
			t.Logf("%d bytes, %d segments in %d packets, %d back in %d", sent, client.Segs_out, up, server.Segs_out, down)
			check("flows: sent", counted.TransmitBytes, sent)
			check("flows: received", counted.ReceiveBytes, sent)
			check("TCP: sent", client.Bytes_sent, sent)
			check("interface: sent", after[0].TxBytes-before[0].TxBytes, counted.TransmitBytes+header*up+synOptions)
			check("peer's interface: received", after[1].RxBytes-before[1].RxBytes, counted.ReceiveBytes+header*up+synOptions)
			check("interface: received", after[0].RxBytes-before[0].RxBytes, header*down+synOptions)
			check("peer's interface: sent", after[1].TxBytes-before[1].TxBytes, header*down+synOptions)
			check("TCP: segments back", uint64(server.Segs_out)+1, down) // the answer to the SYN isn't the socket's
			if single {
				check("TCP: segments", uint64(client.Segs_out), up)
			} else if uint64(client.Segs_out) <= up {
				t.Errorf("no packet of %d has several segments", up)
			}
		},
	})
	return again
}

// wire is a veth between two namespaces.
type wire struct {
	testing.TB
	place workload.Place
	names map[string]string // of interfaces, by namespace
}

func (w wire) in(side workload.Side, do func(link netlink.Link) error) {
	w.Helper()
	err := netns.Do(side.NetNS, func() error {
		l, err := netlink.LinkByName(w.names[side.NetNS])
		if err != nil {
			return err
		}
		return do(l)
	})
	if err != nil {
		w.Fatal(err)
	}
}

// quieten has nothing but TCP on the wire: neighbours are known, and routers aren't
// looked for.
func (w wire) quieten(single bool) {
	w.Helper()
	sides := []workload.Side{w.place.Client, w.place.Server}
	var hardware []net.HardwareAddr
	for _, side := range sides {
		w.in(side, func(l netlink.Link) error { hardware = append(hardware, l.Attrs().HardwareAddr); return nil })
	}
	for i, side := range sides {
		peer := sides[1-i]
		w.in(side, func(l netlink.Link) error {
			for _, ip := range []net.IP{peer.IPv4.AsSlice(), peer.IPv6.AsSlice()} {
				if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: hardware[1-i]}); err != nil {
					return err
				}
			}
			if single {
				if err := netlink.LinkSetGSOMaxSegs(l, 1); err != nil {
					return err
				}
			}
			for name, value := range map[string]string{
				"ipv4/tcp_rmem": "4096 65536 131072", // more is too much for the queue
				"ipv4/tcp_sack": "0",                 // acknowledgements would have more options at times
				"ipv6/conf/" + l.Attrs().Name + "/router_solicitations": "0",
			} {
				if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// settled are the counters of both ends, when they stay what they are for a time.
func (w wire) settled(quiet time.Duration) (now [2]netlink.LinkStatistics) {
	w.Helper()
	look := func() (now [2]netlink.LinkStatistics) {
		for i, side := range []workload.Side{w.place.Client, w.place.Server} {
			w.in(side, func(l netlink.Link) error { now[i] = *l.Attrs().Statistics; return nil })
		}
		return now
	}
	for range 100 {
		before := look()
		time.Sleep(quiet)
		if now = look(); now == before {
			return now
		}
	}
	w.Fatal("packets pass all the time")
	return now
}

// info is what TCP knows of the connection of a side.
func (w wire) info(side workload.Side) (info unix.TCPInfo) {
	w.Helper()
	w.in(side, func(netlink.Link) error {
		_, err := sockets.Each(unix.IPPROTO_TCP, sockets.AllStates&^(1<<sockets.Listen), func(s sockets.Socket) { info = readInfo(s.Info) })
		return err
	})
	return info
}
