package drops

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/sockets"
)

const (
	host   = 1
	inside = 2
)

var (
	start  = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	closed = Key{
		Reason: 3, Location: 16, EtherType: 0x800, Protocol: 17, Source: netip.MustParseAddrPort("10.77.0.2:4000"), Destination: netip.MustParseAddrPort("10.77.0.1:9"),
		Direction: Ingress, NetNS: host, IfIndex: 4,
	}
	full = Key{
		Reason: 6, Location: 32, EtherType: 0x86dd, Protocol: 17, Source: netip.MustParseAddrPort("[2001:db8::7]:53"), Destination: netip.MustParseAddrPort("[fd77::2]:9000"),
		Direction: Ingress, NetNS: inside, IfIndex: 2, CgroupID: 1 << 60, Socket: 77, SocketNetNS: inside,
	}
	noRoute = Key{Reason: 54, Location: 48, Protocol: 6, Source: netip.MustParseAddrPort("10.77.0.1:5000"), Destination: netip.MustParseAddrPort("192.0.2.1:80"), NetNS: host}
	arp     = Key{Reason: 65537, EtherType: 0x806, Direction: Egress, NetNS: inside, IfIndex: 2}
	silent  = Key{EtherType: 0x88cc}
)

// seconds is a time after start.
func seconds(n float64) time.Time { return start.Add(time.Duration(n * float64(time.Second))) }

func entry(packets uint64, device string, first, last float64) Entry {
	return Entry{Counters{packets, 100 * packets}, device, seconds(first), seconds(last)}
}

// sampleOf is a sample whose reasons have what its entries have, and 10 packets more of
// what is in none.
func sampleOf(at float64, made uint64, entries map[Key]Entry) Sample {
	s := Sample{
		Time: seconds(at), Host: host, Entries: entries, Made: made, Reasons: map[uint32]Counters{3: {10, 1000}},
		Names: map[uint32]string{0: "not_dropped_yet", 3: "no_socket", 6: "socket_rcvbuff", 54: "ip_outnoroutes"}, Locations: map[uint64]string{16: "udp_rcv+0x10"},
	}
	for key, e := range entries {
		s.Reasons[key.Reason] = s.Reasons[key.Reason].plus(e.Counters)
	}
	return s
}

func first() Sample {
	return sampleOf(0, 100, map[Key]Entry{
		closed: entry(5, "veth-a", -60, -1), full: entry(4, "eth0", -50, -2), noRoute: entry(3, "", -40, -3), arp: entry(2, "eth0", -30, -4), silent: entry(1, "", -20, -5),
	})
}

func TestDocument(t *testing.T) {
	name := "web"
	w := Watch{View: View{
		Owner: func(k Key) (endpoint.Owner, bool) {
			return endpoint.Owner{Container: &endpoint.Container{ID: "c1", Name: &name}}, k == closed
		},
		Processes: func(shown []Shown) []*Process {
			found := make([]*Process, len(shown))
			for i, s := range shown {
				if s.News {
					found[i] = &Process{PID: 812, StartTime: start, Command: "web", Owners: 1}
				}
			}
			return found
		},
		Reasons: []string{"no_socket", "65537"},
	}}
	w.Take(first())
	next := first().Entries
	next[closed] = entry(9, "veth-a", -60, 1)
	w.Take(sampleOf(2, 103, next))
	got, err := json.Marshal(w.Document())
	if err != nil {
		t.Fatal(err)
	}
	nobody := `"namespace":null,"pod":null,"pod_uid":null,`
	want := `{"schema":"bpfnet.drops/v1","time":"2026-01-02T03:04:07Z","interval_seconds":2,"backend":"tp_btf","loss":{"drops":3,"missed":0,"reasons":0},"drops":[` +
		`{"reason":"no_socket","location":"udp_rcv+0x10","packets":9,"bytes":900,"packets_per_second":2,"bytes_per_second":200,"direction":"ingress",` +
		`"network":{"transport":"udp","type":"ipv4","source":{"address":"10.77.0.2","port":4000},"destination":{"address":"10.77.0.1","port":9}},` +
		nobody + `"container":"web","container_id":"c1","devname":"veth-a","ifindex":4,"netns":1,"cgroup_id":null,` +
		`"process":{"pid":812,"start_time":"2026-01-02T03:04:05.0000006Z","executable":null,"command":"web","owners":1},` +
		`"first_seen":"2026-01-02T03:03:05.0000006Z","last_seen":"2026-01-02T03:04:06.0000006Z"},` +
		`{"reason":"65537","location":null,"packets":2,"bytes":200,"packets_per_second":0,"bytes_per_second":0,"direction":"egress",` +
		`"network":{"transport":null,"type":"arp","source":null,"destination":null},` +
		nobody + `"container":null,"container_id":null,"devname":"eth0","ifindex":2,"netns":2,"cgroup_id":null,"process":null,` +
		`"first_seen":"2026-01-02T03:03:35.0000006Z","last_seen":"2026-01-02T03:04:01.0000006Z"}],` +
		`"others":{"drops":3,"packets":18,"bytes":1800,"packets_per_second":0,"bytes_per_second":0},"reasons":[` +
		`{"reason":"no_socket","packets":19,"bytes":1900,"packets_per_second":2,"bytes_per_second":200},` +
		`{"reason":"socket_rcvbuff","packets":4,"bytes":400,"packets_per_second":0,"bytes_per_second":0},` +
		`{"reason":"ip_outnoroutes","packets":3,"bytes":300,"packets_per_second":0,"bytes_per_second":0},` +
		`{"reason":"65537","packets":2,"bytes":200,"packets_per_second":0,"bytes_per_second":0},` +
		`{"reason":null,"packets":1,"bytes":100,"packets_per_second":0,"bytes_per_second":0}],` +
		`"total":{"packets":29,"bytes":2900,"packets_per_second":2,"bytes_per_second":200}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDocumentFirst(t *testing.T) {
	var w Watch
	w.Take(Sample{})
	empty, err := json.Marshal(w.Document())
	if err != nil || !strings.Contains(string(empty), `"drops":[],"others":{"drops":0,"packets":0,"bytes":0,"packets_per_second":null,`) ||
		!strings.Contains(string(empty), `"interval_seconds":null`) || !strings.Contains(string(empty), `"reasons":[]`) {
		t.Errorf("nothing is %s, %v", empty, err)
	}
}

func TestDocumentChoice(t *testing.T) {
	names := map[Key]string{closed: "closed", full: "full", noRoute: "noRoute", arp: "arp", silent: "silent"}
	for _, c := range []struct {
		view   View
		want   string
		others int
	}{
		{View{}, "closed full noRoute arp silent", 0},
		{View{Sort: "packets"}, "silent arp noRoute full closed", 0},
		{View{Sort: "first_seen", Limit: 2}, "closed full", 3},
		{View{Sort: "reason"}, "silent arp noRoute closed full", 0},
		{View{Sort: "-source", Limit: 1}, "full", 4},
		{View{Sort: "destination", Reasons: []string{"no_socket", "socket_rcvbuff"}}, "closed full", 3},
		{View{Device: "veth-a"}, "closed", 4},
		{View{Device: "eth0"}, "", 5}, // of another namespace
		{View{Inside: true}, "closed noRoute", 3},
		{View{Match: func(k Key) bool { return k.Socket != 0 }}, "full", 4},
	} {
		w := Watch{View: c.view}
		var got []string
		w.Processes = func(shown []Shown) []*Process {
			for _, s := range shown {
				got = append(got, names[s.Key])
			}
			return make([]*Process, len(shown))
		}
		w.Take(first())
		d := w.Document()
		sum := d.Others.Counters
		for _, drop := range d.Drops {
			sum = sum.plus(drop.Counters)
		}
		if strings.Join(got, " ") != c.want || d.Others.Drops != c.others || sum != d.Total.Counters || sum.Packets != 25 {
			t.Errorf("%+v shows %v, others %+v, want %s", c.view, got, d.Others, c.want)
		}
	}
	w := Watch{}
	w.Take(first())
	d := w.Document()
	if full := d.Drops[1]; *full.CgroupID != "1152921504606846976" || full.Network.Type != "ipv6" {
		t.Errorf("a full buffer: %+v", full)
	}
	if unrouted := d.Drops[2]; unrouted.Direction != nil || unrouted.DevName != nil || unrouted.IfIndex != nil || unrouted.Network.Type != "ipv4" || *unrouted.Network.Transport != "tcp" {
		t.Errorf("without a route: %+v", unrouted)
	}
	if silent := d.Drops[4]; silent.Reason != nil || silent.NetNS != nil || silent.Network.Type != "0x88cc" {
		t.Errorf("without a reason: %+v", silent)
	}
}

func TestCheck(t *testing.T) {
	for _, bad := range []View{{Sort: "colour"}, {Sort: "--packets"}, {Limit: -1}} {
		if err := bad.Check(); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, field := range SortFields() {
		view := View{Sort: "-" + field}
		if err := view.Check(); err != nil {
			t.Error(err)
		}
		w := Watch{View: view}
		w.Take(first())
		w.Document()
	}
}

// TestLoss checks what is counted as lost, and how much entries have grown that began
// anew in between.
func TestLoss(t *testing.T) {
	var w Watch
	step := func(at float64, made uint64, lost uint64, e Entry) Drop {
		t.Helper()
		w.Take(sampleOf(at, made, map[Key]Entry{closed: e}))
		d := w.Document()
		if d.Loss.Drops != lost {
			t.Errorf("lost %d after %g s, want %d", d.Loss.Drops, at, lost)
		}
		return d.Drops[0]
	}
	step(0, 100, 0, entry(5, "", -60, -1))
	step(1, 101, 1, entry(5, "", -60, -1))
	if d := step(2, 102, 1, entry(3, "", 1.5, 1.5)); *d.PacketsPerSecond != 3 {
		t.Errorf("%d packets in the second of an entry that is new", *d.PacketsPerSecond)
	}
	step(3, 112, 11, entry(4, "", 1.5, 2.5))
	step(4, 1, 11, entry(1, "", 3.5, 3.5)) // another instance
}

// finder knows the process of the socket 77, and counts what it is asked.
type finder struct {
	asked  []sockets.Packet
	missed int
}

func (f *finder) Find(packets []sockets.Packet, _ func() bool) (sockets.Answer, error) {
	f.asked = append(f.asked, packets...)
	answer := sockets.Answer{Processes: make([]*sockets.Process, len(packets)), Missed: f.missed}
	for i, p := range packets {
		if p.Socket.Inode == 77 {
			answer.Processes[i] = &sockets.Process{Process: endpoint.Process{PID: 812, Command: "web"}, Owners: 2}
		}
	}
	return answer, nil
}

func TestProcesses(t *testing.T) {
	f := &finder{}
	p := NewProcesses(f)
	step := func(news bool, asked int, keys ...Key) []*Process {
		t.Helper()
		f.asked = nil
		var shown []Shown
		for _, key := range keys {
			shown = append(shown, Shown{Key: key, News: news})
		}
		found, err := p.Of(shown)
		if err != nil || len(found) != len(keys) || len(f.asked) != asked {
			t.Errorf("asked for %+v, want %d; %v", f.asked, asked, err)
		}
		return found
	}
	if found := step(false, 2, closed, full, silent); found[0] != nil || found[1] == nil || found[1].PID != 812 || found[1].Owners != 2 || found[2] != nil {
		t.Errorf("found %+v", found)
	}
	if a := f.asked; a[0].Socket != (sockets.Known{NetNS: host}) || !a[0].Ingress || a[0].Destination != closed.Destination || a[1].Socket != (sockets.Known{NetNS: inside, Inode: 77}) {
		t.Errorf("asked for %+v", a)
	}
	if found := step(false, 0, full, closed); found[0] == nil {
		t.Error("what was found is forgotten")
	}
	step(true, 1, closed, full) // another one may have the port
	step(false, 1, full, arp)
	f.missed = 1
	step(false, 1, closed)
	step(false, 1, closed) // there was no time
	many := make([]Key, 30)
	for i := range many {
		many[i] = closed
		many[i].Location = uint64(i)
	}
	step(false, mostAsked, many...)
}
