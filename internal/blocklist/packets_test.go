package blocklist

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
	"bpfnet/internal/datapath"
	"bpfnet/internal/testkit"
)

// programs are the loaded programs and their lists.
type programs struct {
	*Store
	root     string
	instance string
}

func loadPrograms(t testing.TB) programs {
	t.Helper()
	root := testkit.Root(t)
	s, engine := newStoreIn(t, root)
	if _, err := engine.Load(context.Background(), datapath.LoadRequest{Source: "blocklist"}); err != nil {
		t.Fatal(err)
	}
	return programs{s, root, "blocklist"}
}

func (p programs) program(t testing.TB, name string) *ebpf.Program {
	t.Helper()
	program, err := ebpf.LoadPinnedProgram(filepath.Join(p.root, p.instance, "progs", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

func (p programs) openMap(t testing.TB, name string) *ebpf.Map {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.root, p.instance, "maps", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// run runs a program on a packet once.
func run(t testing.TB, program *ebpf.Program, packet []byte) uint32 {
	t.Helper()
	verdict, err := program.Run(&ebpf.RunOptions{Data: packet, Repeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

// Each hook's function, and its verdicts.
var hooks = []struct {
	function   string
	layer3     bool
	pass, drop uint32
}{
	{"blocklist_ingress", false, 0xffffffff, 2},
	{"blocklist_egress", false, 0xffffffff, 2},
	{"blocklist_xdp", false, 2, 1},
	{"blocklist_ingress_l3", true, 0xffffffff, 2},
	{"blocklist_egress_l3", true, 0xffffffff, 2},
	{"blocklist_xdp_l3", true, 2, 1},
	{"blocklist_cgroup_ingress", true, 1, 0},
	{"blocklist_cgroup_egress", true, 1, 0},
}

func v4(source, destination string) Layer { return IPv4(source, destination, IPv4Header{}) }

// fate is the row that a packet is counted in; -1 for none.
type fate int

const (
	unlisted fate = -1
	dropped       = fate(bpf.BlockDropped)
)

type packetCase struct {
	name   string
	layers []Layer // behind the Ethernet header
	only2  bool    // needs an Ethernet header
	fate   fate
}

func (c packetCase) build(layer3 bool) []byte {
	layers := c.layers
	if !layer3 {
		layers = append([]Layer{Ethernet()}, layers...)
	}
	return Build(append(layers, Payload(30))...)
}

var packets = []packetCase{
	{"source of an address", []Layer{v4("203.0.113.7", "10.0.0.1"), TCP(1, 2, SYN)}, false, fate(bpf.BlockDropped)},
	{"its neighbour", []Layer{v4("203.0.113.6", "10.0.0.1"), TCP(1, 2, SYN)}, false, unlisted},
	{"destination", []Layer{v4("10.0.0.1", "203.0.113.7"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"first of a /24", []Layer{v4("198.51.100.0", "10.0.0.1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"last of a /24", []Layer{v4("198.51.100.255", "10.0.0.1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"behind a /24", []Layer{v4("198.51.101.0", "10.0.0.1"), UDP(1, 2)}, false, unlisted},
	{"allowed in a /24", []Layer{v4("198.51.100.9", "10.0.0.1"), UDP(1, 2)}, false, fate(bpf.BlockAllowed)},
	{"allowed, and a listed destination", []Layer{v4("198.51.100.9", "203.0.113.7"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"in a /9", []Layer{v4("11.127.0.1", "10.0.0.1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"behind a /9", []Layer{v4("11.128.0.1", "10.0.0.1"), UDP(1, 2)}, false, unlisted},
	{"alert only", []Layer{v4("192.0.2.130", "10.0.0.1"), UDP(1, 2)}, false, fate(bpf.BlockAlerted)},
	{"alert in a drop", []Layer{v4("192.0.2.1", "203.0.113.7"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"listed as a source only", []Layer{v4("10.0.0.1", "12.0.0.1"), UDP(1, 2)}, false, unlisted},
	{"the same as source", []Layer{v4("12.0.0.1", "10.0.0.1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"options", []Layer{IPv4("203.0.113.7", "10.0.0.1", IPv4Header{Options: 2}), TCP(1, 2, SYN)}, false, fate(bpf.BlockDropped)},
	{"first fragment", []Layer{IPv4("203.0.113.7", "10.0.0.1", IPv4Header{More: true}), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"later fragment", []Layer{IPv4("203.0.113.7", "10.0.0.1", IPv4Header{Offset: 100}), Payload(20)}, false, fate(bpf.BlockDropped)},
	{"VLAN", []Layer{VLAN(5), v4("203.0.113.7", "10.0.0.1"), TCP(1, 2, SYN)}, true, fate(bpf.BlockDropped)},
	{"QinQ", []Layer{ServiceVLAN(5), VLAN(6), v4("203.0.113.7", "10.0.0.1"), TCP(1, 2, SYN)}, true, fate(bpf.BlockDropped)},
	{"three tags", []Layer{ServiceVLAN(5), VLAN(6), VLAN(7), v4("203.0.113.7", "10.0.0.1")}, true, fate(bpf.BlockTooDeep)},
	{"ARP", []Layer{ARP()}, true, fate(bpf.BlockNonIP)},
	{"IPv6 of a /128", []Layer{IPv6("2001:db8::7", "fd00::1"), TCP(1, 2, SYN)}, false, fate(bpf.BlockDropped)},
	{"its neighbour, IPv6", []Layer{IPv6("2001:db8::8", "fd00::1"), TCP(1, 2, SYN)}, false, unlisted},
	{"in a /48", []Layer{IPv6("fd00::1", "2001:db8:bad:ffff::1"), TCP(1, 2, SYN)}, false, fate(bpf.BlockDropped)},
	{"in a /56", []Layer{IPv6("2001:db8:1:12ff::1", "fd00::1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"behind a /56", []Layer{IPv6("2001:db8:1:1300::1", "fd00::1"), UDP(1, 2)}, false, unlisted},
	{"in a /33", []Layer{IPv6("2a00:1:8001::1", "fd00::1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"in front of a /33", []Layer{IPv6("2a00:1:7fff::1", "fd00::1"), UDP(1, 2)}, false, unlisted},
	{"in a /12", []Layer{IPv6("2c0f::1", "fd00::1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"behind a /12", []Layer{IPv6("2c10::1", "fd00::1"), UDP(1, 2)}, false, unlisted},
	{"in a /72", []Layer{IPv6("2001:db8:2:0:12ff::1", "fd00::1"), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"behind a /72", []Layer{IPv6("2001:db8:2:0:1300::1", "fd00::1"), UDP(1, 2)}, false, unlisted},
	{"VLAN, IPv6", []Layer{VLAN(5), IPv6("2001:db8::7", "fd00::1"), TCP(1, 2, SYN)}, true, fate(bpf.BlockDropped)},
	{"QinQ, IPv6", []Layer{ServiceVLAN(5), VLAN(6), IPv6("2001:db8::7", "fd00::1"), TCP(1, 2, SYN)}, true, fate(bpf.BlockDropped)},
	{"QinQ, unlisted", []Layer{ServiceVLAN(5), VLAN(6), v4("203.0.113.6", "10.0.0.1"), TCP(1, 2, SYN)}, true, unlisted},
	{"first fragment, IPv6", []Layer{IPv6("2001:db8::7", "fd00::1"), Fragment(7, 0, true), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"later fragment, IPv6", []Layer{IPv6("2001:db8::7", "fd00::1"), Fragment(7, 100, false), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
	{"later fragment, unlisted", []Layer{IPv6("2001:db8::8", "fd00::1"), Fragment(7, 100, false), UDP(1, 2)}, false, unlisted},
	{"extension headers", []Layer{IPv6("2001:db8::7", "fd00::1"), Extension(HopByHop, 0), Extension(Routing, 3), Extension(Authentication, 1), Extension(DestinationOptions, 0), TCP(1, 2, SYN)}, false, fate(bpf.BlockDropped)},
	{"extension header", []Layer{IPv6("2001:db8::7", "fd00::1"), Extension(HopByHop, 0), UDP(1, 2)}, false, fate(bpf.BlockDropped)},
}

// fillLists makes the lists that packets are judged by.
func fillLists(t testing.TB, s *Store) {
	t.Helper()
	mustAdd(t, s, "drops", "203.0.113.7/32", "198.51.100.0/24", "11.0.0.0/9", "2001:db8::7/128", "2001:db8:bad::/48",
		"2001:db8:1:1200::/56", "2a00:1:8000::/33", "2c00::/12", "2001:db8:2:0:1200::/72")
	mustAdd(t, s, "alerts", "192.0.2.0/24")
	mustAdd(t, s, "sources", "12.0.0.0/24")
	mustAdd(t, s, AllowList, "198.51.100.9/32")
	for _, r := range []SetRequest{{List: "drops", Action: Drop}, {List: "alerts", Action: Alert}, {List: "sources", Action: Drop, Match: Source}} {
		if _, err := s.Set(context.Background(), r); err != nil {
			t.Fatal(err)
		}
	}
}

// counted is what became of packets so far.
func counted(t testing.TB, s *Store) map[string]Counter {
	t.Helper()
	o, err := s.Overview(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return o.Packets
}

func (f fate) word() string {
	for _, r := range rows {
		if fate(r.row) == f {
			return r.name
		}
	}
	return ""
}

func TestPackets(t *testing.T) {
	p := loadPrograms(t)
	fillLists(t, p.Store)
	before := counted(t, p.Store)
	for _, hook := range hooks {
		program := p.program(t, hook.function)
		for _, c := range packets {
			if c.only2 && hook.layer3 {
				continue
			}
			want := hook.pass
			if c.fate == fate(bpf.BlockDropped) {
				want = hook.drop
			}
			isCgroup := strings.HasPrefix(hook.function, "blocklist_cgroup") // whose test run takes the header off again
			if got := run(t, program, c.build(hook.layer3 && !isCgroup)); got != want {
				t.Errorf("%s, %s: verdict %d, want %d", hook.function, c.name, got, want)
			}
			before = grew(t, p.Store, hook.function+", "+c.name, before, c.fate)
		}
	}
}

// grew checks that a packet is in the row of its fate and in no other, and returns
// the rows.
func grew(t testing.TB, s *Store, name string, before map[string]Counter, fate fate) map[string]Counter {
	t.Helper()
	after := counted(t, s)
	for row := range after {
		grown := after[row].Packets - before[row].Packets
		if row == fate.word() && grown != 1 || row != fate.word() && grown != 0 && row != "events_suppressed" {
			t.Errorf("%s: %s grew by %d", name, row, grown)
		}
	}
	return after
}

// Headers that are cut short are nobody's: they pass, and are counted. What is cut
// behind the IP header is judged. A test run needs 14 bytes.
func TestTruncated(t *testing.T) {
	p := loadPrograms(t)
	fillLists(t, p.Store)
	for _, hook := range hooks {
		program := p.program(t, hook.function)
		for _, c := range []struct {
			name    string
			headers []Layer
			size    int // of all headers
		}{
			{"v4", []Layer{v4("203.0.113.7", "10.0.0.1")}, 20},
			{"v4 with options", []Layer{IPv4("203.0.113.7", "10.0.0.1", IPv4Header{Options: 2})}, 20},
			{"v6", []Layer{IPv6("2001:db8::7", "fd00::1")}, 40},
			{"VLAN", []Layer{VLAN(5), v4("203.0.113.7", "10.0.0.1")}, 24},
			{"QinQ, v6", []Layer{ServiceVLAN(5), VLAN(6), IPv6("2001:db8::7", "fd00::1")}, 48},
		} {
			layer3 := hook.layer3 && !strings.HasPrefix(hook.function, "blocklist_cgroup")
			if hook.layer3 && len(c.headers) > 1 {
				continue
			}
			whole, headers := packetCase{layers: append(c.headers, TCP(1, 2, SYN))}.build(layer3), c.size
			if !layer3 {
				headers += 14
			}
			before := counted(t, p.Store)
			for size := 14; size <= headers+20; size++ {
				want, fate := hook.pass, fate(bpf.BlockTruncated)
				if size >= headers {
					want, fate = hook.drop, dropped
				}
				verdict, err := program.Run(&ebpf.RunOptions{Data: whole[:size], Repeat: 1})
				if errors.Is(err, unix.EINVAL) && size < headers && !strings.Contains(hook.function, "xdp") {
					continue // behind an Ethernet header a test run wants a whole IP header
				}
				if err != nil || verdict != want {
					t.Errorf("%s, %s, %d bytes: verdict %d, want %d, %v", hook.function, c.name, size, verdict, want, err)
				}
				before = grew(t, p.Store, fmt.Sprintf("%s, %s, %d bytes", hook.function, c.name, size), before, fate)
			}
		}
	}
}

func TestHits(t *testing.T) {
	ctx := context.Background()
	p := loadPrograms(t)
	fillLists(t, p.Store)
	program := p.program(t, "blocklist_ingress")
	packet := Build(Ethernet(), v4("198.51.100.3", "10.0.0.1"), UDP(1, 2), Payload(30))
	for range 5 {
		run(t, program, packet)
	}
	check := func(when string) {
		t.Helper()
		v, err := p.Test(ctx, netip.MustParseAddr("198.51.100.3"))
		if err != nil || len(v.Found) != 1 {
			t.Fatalf("%s: %+v, %v", when, v, err)
		}
		if h := v.Found[0].Hits; h.Packets != 5 || h.Bytes != uint64(5*len(packet)) || h.LastSeen.IsZero() {
			t.Errorf("%s: %+v", when, *h)
		}
		var all []ListHits
		if err := p.Hits(ctx, func(h ListHits) { all = append(all, h) }); err != nil || len(all) != 1 {
			t.Fatalf("%s: all hits are %+v, %v", when, all, err)
		}
		if h := all[0]; h.List != "drops" || h.Action != Drop || h.Packets != 5 || h.Bytes != uint64(5*len(packet)) {
			t.Errorf("%s: %+v", when, h)
		}
	}
	check("hit")
	// A list that is replaced keeps what was counted for the entries that stay.
	if _, err := p.Import(ctx, ImportRequest{List: "drops", Read: items("198.51.100.0/24", "203.0.113.200/32"), Replace: true}); err != nil {
		t.Fatal(err)
	}
	check("replaced")
	if _, err := p.Remove(ctx, RemoveRequest{List: "drops", Prefixes: prefixes("198.51.100.0/24"), DryRun: false}); err != nil {
		t.Fatal(err)
	}
	if got := run(t, program, packet); got != 0xffffffff {
		t.Errorf("removed: verdict %d", got)
	}
	mustAdd(t, p.Store, "drops", "198.51.100.0/24")
	if v, err := p.Test(ctx, netip.MustParseAddr("198.51.100.3")); err != nil || v.Found[0].Hits.Packets != 0 {
		t.Errorf("removed and added again: %+v, %v", v, err)
	}
}

// An entry and an address make one event in an episode; the others are counted.
func TestEvents(t *testing.T) {
	p := loadPrograms(t)
	mustAdd(t, p.Store, DefaultList, "203.0.113.0/24")
	events, err := ringbuf.NewReader(p.openMap(t, "block_events"))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	program := p.program(t, "blocklist_xdp")
	for _, source := range []string{"203.0.113.7", "203.0.113.7", "203.0.113.8"} {
		for _, destination := range []string{"10.0.0.1", "10.0.0.2"} {
			run(t, program, Build(Ethernet(), v4(source, destination), TCP(7, 443, SYN), Payload(6)))
		}
	}
	for _, destination := range []string{"10.0.0.1", "10.0.0.2"} {
		record, err := events.Read()
		if err != nil {
			t.Fatal(err)
		}
		var e bpf.BlockEvent
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &e); err != nil {
			t.Fatal(err)
		}
		if netip.AddrFrom16(e.Destination.In6U.U6Addr8).Unmap().String() != destination || e.SourcePort != 7 || e.DestinationPort != 443 ||
			e.Protocol != 6 || e.Dropped != 1 || e.Entry.Prefixlen != 24 || e.MatchedDestination != 0 {
			t.Errorf("%+v", e)
		}
	}
	if got := counted(t, p.Store)["events_suppressed"].Packets; got != 4 {
		t.Errorf("%d suppressed", got)
	}
}

// What an event says of the packet, whatever is in front of its ports.
func TestEventsOfHeaders(t *testing.T) {
	p := loadPrograms(t)
	mustAdd(t, p.Store, DefaultList, "203.0.113.0/24", "2001:db8::/64")
	events, err := ringbuf.NewReader(p.openMap(t, "block_events"))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	eight := []Layer{}
	for range 8 {
		eight = append(eight, Extension(DestinationOptions, 1))
	}
	six := func(layers ...Layer) []Layer { return append([]Layer{IPv6("2001:db8::7", "fd00::1")}, layers...) }
	for _, c := range []struct {
		name      string
		layers    []Layer
		protocol  uint8
		withPorts bool
	}{
		{"TCP", []Layer{v4("203.0.113.7", "10.0.0.1"), TCP(7, 443, SYN)}, 6, true},
		{"options", []Layer{IPv4("203.0.113.7", "10.0.0.1", IPv4Header{Options: 10}), UDP(7, 443)}, 17, true},
		{"first fragment", []Layer{IPv4("203.0.113.7", "10.0.0.1", IPv4Header{More: true}), UDP(7, 443)}, 17, true},
		{"later fragment", []Layer{IPv4("203.0.113.7", "10.0.0.1", IPv4Header{Offset: 9}), UDP(7, 443)}, 17, false},
		{"TCP, IPv6", six(TCP(7, 443, SYN)), 6, true},
		{"extensions", six(Extension(HopByHop, 0), Extension(Routing, 3), Extension(Authentication, 1), Extension(DestinationOptions, 2), SCTP(7, 443)), 132, true},
		{"8 extensions", six(append(eight, UDP(7, 443))...), 17, true},
		{"9 extensions", six(append(eight, Extension(DestinationOptions, 0), UDP(7, 443))...), 0, false},
		{"first fragment, IPv6", six(Fragment(1, 0, true), UDP(7, 443)), 17, true},
		{"later fragment, IPv6", six(Fragment(1, 9, false), UDP(7, 443)), 17, false},
		{"atomic fragment", six(Fragment(1, 0, false), UDP(7, 443)), 17, true},
	} {
		for _, hook := range hooks {
			if hook.layer3 {
				continue
			}
			endEpisodes(t, p)
			run(t, p.program(t, hook.function), packetCase{layers: c.layers}.build(false))
			record, err := events.Read()
			if err != nil {
				t.Fatal(err)
			}
			var e bpf.BlockEvent
			if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &e); err != nil {
				t.Fatal(err)
			}
			want := [2]uint16{}
			if c.withPorts {
				want = [2]uint16{7, 443}
			}
			if e.Protocol != c.protocol || [2]uint16{e.SourcePort, e.DestinationPort} != want {
				t.Errorf("%s, %s: protocol %d, ports %d and %d", hook.function, c.name, e.Protocol, e.SourcePort, e.DestinationPort)
			}
		}
	}
}

// A list that is replaced lets no packet through that is on both lists.
func TestReplaceUnderTraffic(t *testing.T) {
	p := loadPrograms(t)
	both := "203.0.113.7/32"
	lists := [][]string{{both, "198.51.100.0/24", "2001:db8::/32"}, {"11.0.0.0/8", both}}
	ctx := context.Background()
	if _, err := p.Import(ctx, ImportRequest{List: "feed", Read: items(lists[0]...)}); err != nil {
		t.Fatal(err)
	}
	program := p.program(t, "blocklist_xdp")
	packet := Build(Ethernet(), v4("203.0.113.7", "10.0.0.1"), UDP(1, 2), Payload(30))
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		sent := uint64(0)
		for {
			select {
			case <-stop:
				done <- sent
				return
			default:
			}
			if got := run(t, program, packet); got != 1 {
				t.Errorf("packet %d: verdict %d", sent, got)
			}
			sent++
		}
	}()
	replacements := 40
	if testing.Short() {
		replacements = 5
	}
	for i := range replacements {
		if _, err := p.Import(ctx, ImportRequest{List: "feed", Read: items(lists[(i+1)%2]...), Replace: true}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	sent := <-done
	if got := counted(t, p.Store)["dropped"].Packets; got != sent || sent == 0 {
		t.Errorf("%d of %d packets dropped", got, sent)
	}
}
