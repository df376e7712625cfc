package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
)

// What the flags of TCP are that packettest doesn't name.
const fin, rst = 0x01, 0x04

// told is a record of dns_events.
type told struct {
	bpf.DNSEvent
	payload []byte
}

// dnsWatch reads what program dns tells.
type dnsWatch struct {
	*ebpf.Collection
	reader *ringbuf.Reader
}

func loadDNS(t *testing.T) dnsWatch {
	t.Helper()
	c := load(t, "dns", nil)
	reader, err := ringbuf.NewReader(c.Maps["dns_events"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	return dnsWatch{c, reader}
}

// records returns what has been told since the last time.
func (w dnsWatch) records(t *testing.T) (all []told) {
	t.Helper()
	w.reader.SetDeadline(time.Unix(1, 0))
	for {
		record, err := w.reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var one told
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &one.DNSEvent); err != nil {
			t.Fatal(err)
		}
		one.payload = record.RawSample[binary.Size(one.DNSEvent):][:one.Captured]
		all = append(all, one)
	}
}

// rows checks dns_rows and sets them to zero.
func (w dnsWatch) rows(t *testing.T, want map[bpf.DNSRow]bpf.Counter) {
	t.Helper()
	for row := range bpf.DNSRows {
		if got := sum(t, w.Maps["dns_rows"], row, addCounter); got != want[row] {
			t.Errorf("row %d has %v, want %v", row, got, want[row])
		}
		clearEntry[bpf.Counter](t, w.Maps["dns_rows"], uint32(row))
	}
}

type dnsRows = map[bpf.DNSRow]bpf.Counter

// response is a DNS message of a size, which the programs know by its flags.
func response(size int) []byte {
	message := make([]byte, size)
	for i := range message {
		message[i] = byte(i)
	}
	message[2] = 0x81
	return message
}

func addrOf(raw [16]byte) string { return netip.AddrFrom16(raw).Unmap().String() }

// dnsSamples are packets that are told as they are.
var dnsSamples = []struct {
	name   string
	layers []Layer // in front of the payload
}{
	{"udp4", []Layer{ip4(IPv4Header{}), UDP(53, 40000)}},
	{"udp4 with options", []Layer{ip4(IPv4Header{Options: 10}), UDP(53, 40000)}},
	{"udp6", []Layer{ip6(), UDP(53, 40000)}},
	{"udp6 with extensions", []Layer{ip6(), Extension(HopByHop, 1), Extension(DestinationOptions, 255), Fragment(1, 0, false), UDP(53, 40000)}},
	{"tcp4", []Layer{ip4(IPv4Header{}), TCP(53, 40000, ACK)}},
	{"tcp6", []Layer{ip6(), TCP(53, 40000, ACK)}},
	{"tcp6 with extensions", []Layer{ip6(), Extension(Routing, 4), Extension(Authentication, 3), TCP(53, 40000, ACK)}},
}

func TestDNSPackets(t *testing.T) {
	w := loadDNS(t)
	points := []struct {
		program   string
		link      []Layer
		direction bpf.DNSDirection
		hook      bpf.DNSHook
	}{
		{"dns_ingress", links[0].layers, bpf.DNSIngress, bpf.DNSTC},
		{"dns_egress", links[1].layers, bpf.DNSEgress, bpf.DNSTC},
		{"dns_ingress", links[2].layers, bpf.DNSIngress, bpf.DNSTC},
		{"dns_egress", links[3].layers, bpf.DNSEgress, bpf.DNSTC},
		{"dns_ingress_l3", nil, bpf.DNSIngress, bpf.DNSTC},
		{"dns_egress_l3", nil, bpf.DNSEgress, bpf.DNSTC},
		{"dns_cgroup_ingress", links[0].layers, bpf.DNSIngress, bpf.DNSCgroup},
		{"dns_cgroup_egress", links[0].layers, bpf.DNSEgress, bpf.DNSCgroup},
	}
	for _, at := range points {
		for _, s := range dnsSamples {
			for _, size := range []int{12, 511, 512, 513, 1400} {
				payload := response(size)
				packet := over(at.link, append(slices.Clone(s.layers), Data(payload)))
				padded := append(slices.Clone(packet), 1, 2, 3) // as short frames are
				wanted := uint32(tcNext)
				if at.hook == bpf.DNSCgroup {
					wanted = cgroupYes
				}
				before := boottime(t)
				if verdict := run(t, w.Programs[at.program], padded); verdict != wanted {
					t.Errorf("%s, %s: verdict %d", at.program, s.name, verdict)
				}
				all := w.records(t)
				if len(all) != 1 {
					t.Errorf("%s, %s of %d: told %d times", at.program, s.name, size, len(all))
					continue
				}
				got := all[0]
				source, destination := ends(sample{layers: s.layers})
				if !bytes.Equal(got.payload, payload) || got.Length != uint32(size) || got.Offset != 0 {
					t.Errorf("%s, %s: %d of %d bytes from %d are %x", at.program, s.name, got.Captured, got.Length, got.Offset, got.payload)
				}
				if addrOf(got.Source.In6U.U6Addr8) != source || addrOf(got.Destination.In6U.U6Addr8) != destination || got.SourcePort != 53 || got.DestinationPort != 40000 {
					t.Errorf("%s, %s: from and to %+v", at.program, s.name, got.DNSEvent)
				}
				if got.Direction != at.direction || got.Hook != at.hook || got.Ifindex != loopback || got.Time < before || got.Time > boottime(t) {
					t.Errorf("%s, %s: %+v", at.program, s.name, got.DNSEvent)
				}
			}
		}
	}
	w.rows(t, nil)
}

func boottime(t *testing.T) uint64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	return uint64(now.Nano())
}

// queries is what the programs know by its flags as a query.
func queries(size int) []byte {
	message := response(size)
	message[2] = 1
	return message
}

// Queries are told while somebody wants them, and what else goes to port 53 is counted
// then.
func TestDNSQueries(t *testing.T) {
	w := loadDNS(t)
	for _, wanted := range []uint32{1, 0, 1} {
		if err := w.Maps["dns_queries"].Put(uint32(0), wanted); err != nil {
			t.Fatal(err)
		}
		rows := dnsRows{}
		for _, c := range []struct {
			layers []Layer
			told   uint32
			other  [2]uint64 // packets that are counted, by wanted
		}{
			{[]Layer{ip4(IPv4Header{}), UDP(40000, 53), Data(queries(40))}, 1, [2]uint64{}},
			{[]Layer{ip6(), Extension(HopByHop, 1), UDP(40000, 53), Data(queries(600))}, 1, [2]uint64{}},
			{[]Layer{ip6(), TCP(40000, 53, ACK), Data(queries(40))}, 1, [2]uint64{}},
			{[]Layer{ip4(IPv4Header{}), TCP(40000, 53, SYN)}, 1, [2]uint64{}},
			{[]Layer{ip4(IPv4Header{}), TCP(40000, 53, ACK)}, 0, [2]uint64{}},
			{[]Layer{ip4(IPv4Header{}), UDP(53, 53), Data(queries(40))}, 1, [2]uint64{1, 0}},
			{[]Layer{ip4(IPv4Header{}), UDP(40000, 53), Data(response(40))}, 0, [2]uint64{0, 1}},
			{[]Layer{ip4(IPv4Header{}), UDP(40000, 53), Data(queries(11))}, 0, [2]uint64{0, 1}},
			{[]Layer{ip4(IPv4Header{}), UDP(40000, 54), Data(queries(40))}, 0, [2]uint64{}},
		} {
			packet := ethernet(c.layers...)
			run(t, w.Programs["dns_egress"], packet)
			got := w.records(t)
			if len(got) != int(c.told*wanted) || len(got) > 0 && got[0].DestinationPort != 53 {
				t.Errorf("wanted %d, % x: told %+v", wanted, packet, got)
			}
			row := rows[bpf.DNSOther]
			rows[bpf.DNSOther] = bpf.Counter{Packets: row.Packets + c.other[wanted], Bytes: row.Bytes + c.other[wanted]*uint64(len(packet))}
		}
		w.rows(t, rows)
	}
}

// What isn't from a DNS server goes on untold.
func TestDNSOthers(t *testing.T) {
	w := loadDNS(t)
	rows := dnsRows{}
	query := response(40)
	query[2] = 1
	for _, s := range append(samples(),
		sample{"query", []Layer{ip4(IPv4Header{}), UDP(40000, 53), Data(response(40))}, "", false},
		sample{"query by tcp", []Layer{ip6(), TCP(40000, 53, ACK), Data(response(40))}, "", false},
		sample{"sctp", []Layer{ip4(IPv4Header{}), SCTP(53, 53), Data(response(40))}, "", false},
		sample{"acknowledgement", []Layer{ip4(IPv4Header{}), TCP(53, 40000, ACK)}, "", false},
		sample{"query from port 53", []Layer{ip4(IPv4Header{}), UDP(53, 53), Data(query)}, "other", false},
		sample{"11 bytes", []Layer{ip6(), UDP(53, 53), Data(response(11))}, "other", false},
		sample{"later fragment", []Layer{ip6(), Fragment(1, 9, false), Protocol(6), Payload(64)}, "", false},
	) {
		packet := ethernet(s.layers...)
		for _, program := range []string{"dns_ingress", "dns_egress"} {
			run(t, w.Programs[program], packet)
		}
		one := bpf.Counter{Packets: 2, Bytes: uint64(2 * len(packet))}
		total := func(row bpf.DNSRow) {
			rows[row] = bpf.Counter{Packets: rows[row].Packets + one.Packets, Bytes: rows[row].Bytes + one.Bytes}
		}
		switch s.name {
		case "later fragment", "later fragment6", "last fragment of a byte":
			total(bpf.DNSFragment)
		case "9 extensions":
			total(bpf.DNSTooDeep)
		}
		if s.class == "other" {
			total(bpf.DNSOther)
		}
		if got := w.records(t); len(got) != 0 {
			t.Errorf("%s: told %+v", s.name, got)
		}
	}
	w.rows(t, rows)
}

func TestDNSTruncated(t *testing.T) {
	w := loadDNS(t)
	for _, s := range dnsSamples {
		packet := over(links[1].layers, append(slices.Clone(s.layers), Data(response(600))))
		headers := len(packet) - 600
		for _, size := range []int{headers + 3, headers + 12, headers + 599} {
			run(t, w.Programs["dns_ingress"], packet[:size])
			got := w.records(t)
			if len(got) != 1 || got[0].Captured != uint32(size-headers) {
				t.Errorf("%s, %d bytes behind the headers: told %v", s.name, size-headers, got)
			}
		}
		w.rows(t, nil)
		for size := 15; size < headers; size++ {
			run(t, w.Programs["dns_ingress"], packet[:size])
			if got := w.records(t); len(got) != 0 {
				t.Errorf("%s, %d of %d bytes of headers: told %v", s.name, size, headers, got)
			}
		}
		lost := sum(t, w.Maps["dns_rows"], bpf.DNSTruncated, addCounter)
		if lost.Packets != uint64(headers-15) {
			t.Errorf("%s: %d are truncated, want %d", s.name, lost.Packets, headers-15)
		}
		w.rows(t, dnsRows{bpf.DNSTruncated: lost})
	}
	short := ethernet(ip4(IPv4Header{}), TCP(53, 40000, ACK), Data(response(40)))
	short[14+20+12] = 4 << 4 // a header of 16 bytes
	run(t, w.Programs["dns_ingress"], short)
	short = ethernet(ip4(IPv4Header{}), UDP(53, 40000), Data(response(40)))
	short[14+20+5] = 7 // a length of 7 bytes
	run(t, w.Programs["dns_ingress"], short)
	if got := w.records(t); len(got) != 0 {
		t.Errorf("told %v", got)
	}
	if got := sum(t, w.Maps["dns_rows"], bpf.DNSTruncated, addCounter); got.Packets != 2 {
		t.Errorf("%d are truncated, want 2", got.Packets)
	}
}

func TestDNSFirstFragment(t *testing.T) {
	w := loadDNS(t)
	for _, layers := range [][]Layer{
		{ip4(IPv4Header{ID: 7, More: true}), UDP(53, 40000), Data(response(1000))},
		{ip6(), Fragment(1, 0, true), UDP(53, 40000), Data(response(1000))},
	} {
		packet := ethernet(layers...)
		binary.BigEndian.PutUint16(packet[len(packet)-1000-4:], 3000+8) // the length of the datagram
		run(t, w.Programs["dns_ingress"], packet)
		if got := w.records(t); len(got) != 1 || got[0].Captured != 1000 || got[0].Length != 3000 {
			t.Errorf("told %v", got)
		}
	}
	w.rows(t, nil)
}

func TestDNSThreeTags(t *testing.T) {
	w := loadDNS(t)
	packet := Build(Ethernet(), VLAN(1), VLAN(2), VLAN(3), ip4(IPv4Header{}), UDP(53, 2), Data(response(20)))
	run(t, w.Programs["dns_egress"], packet)
	w.rows(t, dnsRows{bpf.DNSTooDeep: {Packets: 1, Bytes: uint64(len(packet))}})
}

// What begins and ends a connection is told without payload, and where the
// payload of a segment is in the stream.
func TestDNSConnection(t *testing.T) {
	w := loadDNS(t)
	segment := func(flags uint8, payload int) []byte {
		packet := ethernet(ip4(IPv4Header{}), TCP(53, 40000, flags), Data(response(payload+8)))
		binary.BigEndian.PutUint32(packet[14+20+4:], 0xffffffff)
		packet[14+20+12] = 7 << 4 // 8 bytes of options
		return packet
	}
	for _, c := range []struct {
		flags    uint8
		payload  int
		sequence uint32
	}{{SYN | ACK, 0, 0}, {SYN, 100, 0}, {ACK, 100, 0xffffffff}, {fin | ACK, 0, 0xffffffff}, {rst, 0, 0xffffffff}, {fin | ACK, 100, 0xffffffff}} {
		run(t, w.Programs["dns_ingress"], segment(c.flags, c.payload))
		got := w.records(t)
		if len(got) != 1 || got[0].TcpFlags != c.flags || int(got[0].Captured) != c.payload || got[0].Sequence != c.sequence ||
			!bytes.Equal(got[0].payload, response(c.payload + 8)[8:]) {
			t.Errorf("%+v: told %+v", c, got)
		}
	}
	w.rows(t, nil)
}

// What finds no room is counted.
func TestDNSLost(t *testing.T) {
	w := loadDNS(t)
	packet := ethernet(ip4(IPv4Header{}), UDP(53, 40000), Data(response(2000)))
	const sent = 2000
	for range sent {
		run(t, w.Programs["dns_ingress"], packet)
	}
	all := len(w.records(t))
	if all < 400 || all > 600 {
		t.Errorf("%d fit into 1 MiB", all)
	}
	w.rows(t, dnsRows{bpf.DNSLost: {Packets: uint64(sent - all), Bytes: uint64((sent - all) * 2000)}})
}

// TestDNSNonLinear has payloads in the part of an skb that isn't linear, longer
// than a record.
func TestDNSNonLinear(t *testing.T) {
	device := newTap(t)
	w := loadDNS(t)
	device.attach(t, w.Programs["dns_ingress"])
	for _, c := range []struct {
		name   string
		layers []Layer
		size   int
		rows   dnsRows
	}{
		{"udp4", []Layer{ip4(IPv4Header{Options: 2}), UDP(53, 1)}, 4096, nil},
		{"udp6", []Layer{ip6(), Extension(HopByHop, 0), UDP(53, 1)}, 5000, dnsRows{bpf.DNSTooLong: {Packets: 1, Bytes: 904}}},
		{"tcp4", []Layer{ip4(IPv4Header{}), TCP(53, 1, ACK)}, 20000, nil},
		{"tcp6", []Layer{ip6(), Extension(HopByHop, 0), TCP(53, 1, ACK)}, 65000, nil},
	} {
		payload := response(c.size)
		device.receive(t, ethernet(append(slices.Clone(c.layers), Data(payload))...))
		var got []byte
		most := min(c.size, 65536)
		if c.rows != nil {
			most = 4096
		}
		eventually(t, func() bool {
			for _, one := range w.records(t) {
				if int(one.Offset) != len(got) || int(one.Sequence) != len(got) && c.name[0] == 't' || int(one.Length) != c.size {
					t.Errorf("%s: told %+v after %d bytes", c.name, one.DNSEvent, len(got))
				}
				got = append(got, one.payload...)
			}
			return len(got) == most
		})
		if !bytes.Equal(got, payload[:len(got)]) {
			t.Errorf("%s: other bytes than sent", c.name)
		}
		w.rows(t, c.rows)
	}
}
