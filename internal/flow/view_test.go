package flow

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/sample"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }

func ap(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// row is of a TCP connection of process 10, unless it is changed.
func row(cookie uint64, local, peer string, sent, received uint64) Row {
	return Row{
		Cookie: cookie, NetNS: 1, Transport: "tcp", Family: unix.AF_INET, Local: ap(local), Peer: ap(peer),
		Process: Process{PID: 10, Start: 1e9, Command: "web"}, Owners: 1, TCP: &TCP{State: "established"}, Status: Exact,
		Counters: Counters{TransmitBytes: sent, ReceiveBytes: received, TransmitCalls: min(1, sent), ReceiveCalls: min(1, received)},
	}
}

func (r Row) with(change func(*Row)) Row {
	change(&r)
	return r
}

func udp(r *Row)    { r.Transport, r.TCP = "udp", nil }
func closed(r *Row) { r.Closed = &start }
func by(pid uint32, command string) func(*Row) {
	return func(r *Row) { r.PID, r.Command = pid, command }
}

func sampleAt(seconds float64, rows ...Row) Sample {
	return Sample{Time: at(seconds), Since: start.Add(-time.Minute), Rows: rows}
}

// shown is what a document shows, a line each: who, with whom, what it has moved, and
// what of that is new.
func shown(d Document) string {
	var lines []string
	for _, f := range d.Flows {
		line := strings.TrimSpace(fmt.Sprintf("%s %s %s", sample.Value(f.Process.Command), shownAddress(f.Network.Peer.Address), sample.Value(f.TCP.State)))
		if f.Src != nil {
			line = fmt.Sprintf("%s>%s", shownEnd(f.Src), shownEnd(f.Dst))
		}
		line += fmt.Sprintf(" %d", *f.IO.TransmitBytes)
		if f.IO.ReceiveBytes != nil {
			line += fmt.Sprintf("/%d", *f.IO.ReceiveBytes)
		}
		if f.IO.NewTransmitBytes != nil {
			line += fmt.Sprintf(" +%d", *f.IO.NewTransmitBytes)
			if f.IO.NewReceiveBytes != nil {
				line += fmt.Sprintf("/%d", *f.IO.NewReceiveBytes)
			}
		}
		lines = append(lines, fmt.Sprintf("%s x%d", line, f.Flows))
	}
	return strings.Join(lines, "\n")
}

func shownAddress(a Address) string {
	text := ""
	if a.Address != nil {
		text = a.Address.String()
	}
	if a.Port != nil {
		text += ":" + strconv.Itoa(int(*a.Port))
	}
	return text
}

func shownEnd(e *End) string {
	return sample.Value(e.K8s.Pod) + sample.Value(e.Process.Command) + shownAddress(e.Address)
}

func expect(t *testing.T, w *Watch, want ...string) {
	t.Helper()
	if got := shown(w.Document()); got != strings.Join(want, "\n") {
		t.Errorf("shows\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// expectTotal checks transmitted and received bytes, and what of them is new.
func expectTotal(t *testing.T, w *Watch, sent, received, newSent, newReceived uint64) {
	t.Helper()
	io := w.Document().Total.IO
	got := [4]uint64{*io.TransmitBytes, *io.ReceiveBytes, sample.Value(io.NewTransmitBytes), sample.Value(io.NewReceiveBytes)}
	if want := [4]uint64{sent, received, newSent, newReceived}; got != want {
		t.Errorf("total %v, want %v", got, want)
	}
}

func TestWatch(t *testing.T) {
	w := NewWatch(View{})
	idle := row(1, "10.0.0.1:1", "10.0.0.2:80", 5, 6)
	busy := row(2, "10.0.0.1:2", "10.0.0.2:80", 100, 0)
	w.Take(sampleAt(0, idle, busy))
	expect(t, w, "web 10.0.0.2:80 established 100/0 x1", "web 10.0.0.2:80 established 5/6 x1")
	expectTotal(t, w, 105, 6, 0, 0)
	if d := w.Document(); d.IntervalSeconds != nil || d.Flows[0].IO.TransmitBytesPerSecond != nil {
		t.Errorf("%+v", d)
	}

	// Only what there is news of; one comes and goes in between.
	busy.TransmitBytes = 300
	short := row(3, "10.0.0.1:3", "10.0.0.2:80", 7, 8).with(closed)
	w.Take(sampleAt(0.5, idle, busy, short))
	expect(t, w, "web 10.0.0.2:80 established 300/0 +200/0 x1", "web 10.0.0.2:80 established 7/8 +7/8 x1")
	expectTotal(t, w, 312, 14, 207, 8)
	if rate := *w.Document().Flows[0].IO.TransmitBytesPerSecond; rate != 400 {
		t.Errorf("%d B/s", rate)
	}

	// A state changes, one is closed, and its socket connects anew.
	idle.TCP = &TCP{State: "close_wait"}
	again := row(2, "10.0.0.1:4", "10.0.0.3:80", 1, 0)
	busy.TransmitBytes = 301
	w.Take(sampleAt(1, idle, again, busy.with(closed)))
	expect(t, w, "web 10.0.0.2:80 established 301/0 +1/0 x1", "web 10.0.0.3:80 established 1/0 +1/0 x1", "web 10.0.0.2:80 close_wait 5/6 +0/0 x1")
	expectTotal(t, w, 314, 14, 2, 0)

	// One is missing, once, and is there twice.
	w.Take(sampleAt(1.1, again))
	idle.TransmitBytes++
	w.Take(sampleAt(1.2, again, idle, again.with(moved(2, 0)), idle))
	expect(t, w, "web 10.0.0.2:80 close_wait 6/6 +1/0 x1")
	if d := w.Document(); d.Total.Flows != 2 {
		t.Errorf("%d flows", d.Total.Flows)
	}
	again.TransmitBytes = 2
	w.Take(sampleAt(1.3, again.with(moved(0, 0))))
	w.Take(sampleAt(1.4, again))
	expect(t, w, "web 10.0.0.3:80 established 2/0 +1/0 x1")

	// One is gone, and nobody has said so. One listens.
	w.Take(sampleAt(2, again, Row{Cookie: 9, Transport: "tcp", Local: ap("0.0.0.0:80"), TCP: &TCP{State: "close"}, Closed: &start}))
	expect(t, w)
	expectTotal(t, w, 316, 14, 0, 0)
	if len(w.index) != 1 {
		t.Errorf("%d are remembered", len(w.index))
	}
}

func TestWatchGroups(t *testing.T) {
	w := NewWatch(View{By: []string{"process", "peer"}})
	a := row(1, "10.0.0.1:1", "10.0.0.2:80", 5, 6)
	b := row(2, "10.0.0.1:2", "10.0.0.2:81", 10, 0)
	c := row(3, "10.0.0.1:3", "10.0.0.2:80", 1, 0).with(by(11, "curl"))
	w.Take(sampleAt(0, a, b, c))
	expect(t, w, "web 10.0.0.2 15/6 x2", "curl 10.0.0.2 1/0 x1")

	// What closed flows moved stays.
	w.Take(sampleAt(1, a, b.with(closed), c))
	expect(t, w, "web 10.0.0.2 15/6 +0/0 x2")
	w.Take(sampleAt(2, a, c.with(func(r *Row) { r.TransmitBytes = 2 })))
	expect(t, w, "curl 10.0.0.2 2/0 +1/0 x1")
	a.ReceiveBytes = 7
	w.Take(sampleAt(3, a.with(by(10, "renamed"))))
	expect(t, w, "renamed 10.0.0.2 15/7 +0/1 x1")

	// The state that a flow has left has one less.
	w = NewWatch(View{By: []string{"state", "transport"}})
	w.Take(sampleAt(0, a, b))
	b.TCP, b.TransmitBytes = &TCP{State: "close_wait"}, 11
	w.Take(sampleAt(1, a, b))
	expect(t, w, "close_wait 1/0 +1/0 x1", "established 15/7 +0/0 x1")
}

// pods are known by their addresses, and by cgroups of the same number.
func pods(names map[string]string) (func(uint64) (endpoint.Owner, bool), func(netip.Addr) (endpoint.Owner, bool)) {
	at := func(address netip.Addr) (endpoint.Owner, bool) {
		name, ok := names[address.String()]
		return endpoint.Owner{Pod: &endpoint.Pod{UID: "uid-" + name, Name: &name}}, ok
	}
	return func(cgroup uint64) (endpoint.Owner, bool) {
		return at(netip.AddrFrom4([4]byte{10, 0, 0, byte(cgroup)}))
	}, at
}

func TestWatchDirections(t *testing.T) {
	owner, ownerAt := pods(map[string]string{"10.0.0.1": "a", "10.0.0.2": "b"})
	in := func(cgroup uint64) func(*Row) { return func(r *Row) { r.Cgroup = cgroup } }
	namespace := func(inode uint64) func(*Row) { return func(r *Row) { r.NetNS = inode } }
	service := func(r *Row) { r.NAT, r.Peer = r.Peer, ap("10.96.0.1:443") }
	for _, test := range []struct {
		name string
		rows []Row
		want []string
	}{
		{"one end", []Row{row(1, "10.0.0.1:1", "192.0.2.1:80", 5, 6).with(in(1))}, []string{"192.0.2.1>a 6 x1", "a>192.0.2.1 5 x1"}},
		{"a Pod whose flow isn't seen", []Row{row(1, "10.0.0.1:1", "10.0.0.2:80", 5, 0).with(in(1))}, []string{"a>b 5 x1"}},
		{"both ends", []Row{
			row(1, "10.0.0.1:1", "10.0.0.2:80", 50, 60).with(in(1)), row(2, "10.0.0.2:80", "10.0.0.1:1", 65, 49).with(in(2)),
		}, []string{"b>a 65 x1", "a>b 50 x1"}},
		{"both ends, of a service", []Row{
			row(1, "10.0.0.1:1", "10.0.0.2:80", 50, 60).with(in(1)).with(service), row(2, "10.0.0.2:80", "10.0.0.1:1", 65, 49).with(in(2)),
		}, []string{"b>a 65 x1", "a>b 50 x1"}},
		{"a service elsewhere", []Row{row(1, "10.0.0.1:1", "192.0.2.1:80", 5, 0).with(in(1)).with(service)}, []string{"a>192.0.2.1 5 x1"}},
		{"datagrams of sockets that aren't bound", []Row{
			row(1, "0.0.0.0:1", "10.0.0.2:53", 50, 60).with(udp).with(in(1)), row(2, "0.0.0.0:53", "10.0.0.1:1", 65, 49).with(udp).with(in(2)),
		}, []string{"b>a 65 x1", "a>b 50 x1"}},
		{"the same ports by chance", []Row{
			row(1, "0.0.0.0:1", "192.0.2.9:53", 50, 60).with(udp).with(in(1)), row(2, "0.0.0.0:53", "10.0.0.1:1", 65, 49).with(udp).with(in(2)),
		}, []string{"b>a 65 x1", "192.0.2.9>a 60 x1", "a>192.0.2.9 50 x1", "a>b 49 x1"}},
		{"loopback", []Row{
			row(1, "127.0.0.1:1", "127.0.0.1:80", 50, 60).with(in(1)), row(2, "127.0.0.1:80", "127.0.0.1:1", 65, 49).with(in(1)),
		}, []string{"a>a 115 x2"}},
		{"loopback of two namespaces", []Row{
			row(1, "127.0.0.1:1", "127.0.0.1:80", 50, 0).with(in(1)), row(2, "127.0.0.1:80", "127.0.0.1:1", 0, 49).with(in(2)).with(namespace(2)),
		}, []string{"a>127.0.0.1 50 x1", "127.0.0.1>b 49 x1"}},
		{"itself", []Row{row(1, "10.0.0.1:5", "10.0.0.1:5", 50, 50).with(udp).with(in(1))}, []string{"a>a 50 x1"}},
		{"no ports", []Row{
			row(1, "10.0.0.1:0", "10.0.0.2:0", 50, 0).with(udp).with(in(1)), row(2, "10.0.0.2:0", "10.0.0.1:0", 0, 50).with(udp).with(in(2)),
		}, []string{"a>b 100 x2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			// An end that is no Pod is known by its address.
			w := NewWatch(View{By: []string{"src.pod", "dst.pod"}, Owner: owner, OwnerAt: ownerAt})
			w.Take(sampleAt(0, test.rows...))
			d := w.Document()
			addresses := NewWatch(View{By: []string{"src.pod", "dst.pod", "src.address", "dst.address"}, Owner: owner, OwnerAt: ownerAt})
			addresses.Take(sampleAt(0, test.rows...))
			far := addresses.Document()
			for i := range d.Flows {
				nameEnds(&d.Flows[i], far)
			}
			if got := shown(d); got != strings.Join(test.want, "\n") {
				t.Errorf("shows\n%s\nwant\n%s", got, strings.Join(test.want, "\n"))
			}
		})
	}
}

// nameEnds gives the ends of a flow that are no Pods the addresses that they have in
// another document.
func nameEnds(f *Flow, far Document) {
	for _, other := range far.Flows {
		if *other.IO.TransmitBytes != *f.IO.TransmitBytes {
			continue
		}
		if f.Src.K8s.Pod == nil {
			f.Src.Address.Address = other.Src.Address.Address
		}
		if f.Dst.K8s.Pod == nil {
			f.Dst.Address.Address = other.Dst.Address.Address
		}
	}
}

// TestWatchOneEnd has a filter that leaves the other end out, which is known all the same.
func TestWatchOneEnd(t *testing.T) {
	w := NewWatch(View{By: []string{"src.process", "dst.process"}, Filter: Filter{PIDs: []uint32{11}}})
	client := row(1, "10.0.0.1:1", "10.0.0.2:80", 50, 60).with(by(11, "curl"))
	server := row(2, "10.0.0.2:80", "10.0.0.1:1", 65, 49).with(by(12, "nginx"))
	w.Take(sampleAt(0, client, server))
	expect(t, w, "nginx>curl 60 x1", "curl>nginx 50 x1")
	w.Take(sampleAt(1, client.with(moved(50, 65)).with(closed), server.with(closed)))
	expect(t, w, "nginx>curl 65 +5 x1")
}

// TestWatchLateEnds has the end that transmits gone before the other one has received.
func TestWatchLateEnds(t *testing.T) {
	w := NewWatch(View{By: []string{"src.process", "dst.process"}})
	client := row(1, "10.0.0.1:1", "10.0.0.2:80", 50, 0).with(by(11, "curl"))
	server := row(2, "10.0.0.2:80", "10.0.0.1:1", 0, 20)
	w.Take(sampleAt(0, client.with(closed)))
	expect(t, w, "curl> 50 x1")
	w.Take(sampleAt(1, server))
	expect(t, w)
	server.ReceiveBytes, server.TransmitBytes = 50, 3
	w.Take(sampleAt(2, server))
	expect(t, w, "web>curl 3 +3 x1")
	flood := sampleAt(3, server)
	for i := range uint64(2 * mostClosed) {
		flood.Rows = append(flood.Rows, row(100+i, "10.0.0.1:2", "192.0.2.1:80", 1, 0).with(closed))
	}
	w.Take(flood)
	if len(w.ends.closed) != mostClosed {
		t.Errorf("%d are remembered", len(w.ends.closed))
	}
	server.ReceiveBytes = 60
	w.Take(sampleAt(4, server))
	expect(t, w)
}

func TestRatio(t *testing.T) {
	kernel := func(sent, received uint64) func(*Row) {
		return func(r *Row) { r.TCP = &TCP{State: "established", Transmitted: &sent, Received: &received} }
	}
	opened := func(r *Row) { r.Opened = start }
	old := row(1, "10.0.0.1:1", "10.0.0.2:80", 0, 0) // there before counting began
	forked := row(2, "10.0.0.1:2", "10.0.0.2:80", 0, 0).with(opened)
	w := NewWatch(View{Filter: Filter{PIDs: []uint32{77}}})
	for i, step := range []struct {
		rows []Row
		want float64 // 0: null
	}{
		{nil, 0},
		{[]Row{row(3, "10.0.0.1:3", "10.0.0.2:80", 10, 10)}, 0},                                                                        // the kernel says nothing
		{[]Row{old.with(kernel(1e6, 1e6))}, 0},                                                                                         // before counting began
		{[]Row{old.with(kernel(1e6, 1e6))}, 0},                                                                                         // nothing moves
		{[]Row{old.with(moved(50, 50)).with(kernel(1e6+50, 1e6+50))}, 1},                                                               // from now on
		{[]Row{old.with(moved(100, 50)).with(kernel(1e6+150, 1e6+50))}, 0.5},                                                           // some isn't counted
		{[]Row{forked.with(moved(30, 0)).with(kernel(30, 0))}, 1},                                                                      // new
		{[]Row{forked.with(moved(40, 0)).with(kernel(60, 5)), forked.with(by(11, "child")).with(moved(20, 5)).with(kernel(60, 5))}, 1}, // of two
		{nil, 0}, // missed
		{[]Row{forked.with(moved(41, 0)).with(kernel(61, 5)).with(closed)}, 1},
		{nil, 0},
		{nil, 0},
	} {
		w.Take(sampleAt(float64(i), step.rows...))
		if got := sample.Value(w.Document().ReconcileRatio); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
	if len(w.kernel.sockets) != 0 {
		t.Errorf("%d are remembered", len(w.kernel.sockets))
	}
}

func moved(sent, received uint64) func(*Row) {
	return func(r *Row) { r.TransmitBytes, r.ReceiveBytes = sent, received }
}

// TestWatchDocument has a document's fields that come from elsewhere than counters.
func TestWatchDocument(t *testing.T) {
	asked := 0
	uid, name := "0b6a", "nginx"
	w := NewWatch(View{
		Sort: "process.pid", Users: map[uint32]string{33: "www"}, Boot: start.Add(-time.Hour),
		Executable: func(pid uint32, _ uint64) string { asked++; return map[uint32]string{10: "/web"}[pid] },
		Owner: func(cgroup uint64) (endpoint.Owner, bool) {
			return endpoint.Owner{Pod: &endpoint.Pod{UID: uid}, Container: &endpoint.Container{ID: "c1", Name: &name}}, cgroup == 5
		},
	})
	full := row(1<<63-1, "10.0.0.1:1", "10.96.0.1:80", 1, 2).with(func(r *Row) {
		r.UID, r.Cgroup, r.Start, r.Inward, r.NAT, r.Opened = 33, 5, 1234567890, true, ap("10.0.0.2:8080"), start.Add(-time.Minute)
		r.TCP = &TCP{State: "close", SRTT: 3, MinRTT: 2, Retransmits: 1, Error: uint32(unix.ECONNRESET)}
	}).with(closed)
	bare := Row{Cookie: noCookie | 2, Transport: "icmp", Family: unix.AF_INET6, Local: ap("[::]:0"), Status: Sum, Counters: Counters{ReceiveBytes: 1}}
	w.Take(sampleAt(0, full, bare, bare.with(func(r *Row) { r.Cookie, r.PID = 3, 11 })))
	d := w.Document()
	for i, want := range []string{
		`{"network":{"transport":"icmp","type":"ipv6","netns":null,"local":{"address":"::","port":null},"peer":{"address":null,"port":null,"name":null},"nat":null},` +
			`"process":{"pid":null,"start_time":null,"executable":null,"command":null,"owners":null},"user":{"uid":null,"name":null},"container":{"id":null,"name":null},"k8s":{"namespace":null,"pod":null,"pod_uid":null},"io":`,
		`"process":{"pid":10,"start_time":"2026-01-02T02:04:06.23Z","executable":"/web","command":"web","owners":1},"user":{"uid":33,"name":"www"},"container":{"id":"c1","name":"nginx"},"k8s":{"namespace":null,"pod":null,"pod_uid":"0b6a"},"io":`,
	} {
		if got, _ := json.Marshal(d.Flows[i]); !strings.Contains(string(got), want) {
			t.Errorf("%s", got)
		}
	}
	if d.Flows[0].Cookie != nil {
		t.Errorf("a socket without one has the cookie %s", *d.Flows[0].Cookie)
	}
	got, _ := json.Marshal(d.Flows[1])
	for _, want := range []string{
		`"nat":{"address":"10.0.0.2","port":8080}`, `"tcp":{"state":"close","opened_by":"peer","srtt_us":3,"min_rtt_us":2,"retransmits":1,"error":"ECONNRESET"}`,
		`"cookie":"9223372036854775807","opened_at":"2026-01-02T03:03:05Z","closed_at":"2026-01-02T03:04:05Z"`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s lacks %s", got, want)
		}
	}
	// Executables are asked for once.
	w.Take(sampleAt(1, full))
	if asked != 2 || *w.Document().Flows[0].Process.Executable != "/web" {
		t.Errorf("asked %d times: %s", asked, shown(w.Document()))
	}
}

func TestStatusOfGroups(t *testing.T) {
	w := NewWatch(View{By: []string{"transport"}})
	is := func(s Status) func(*Row) { return func(r *Row) { r.Status = s } }
	w.Take(sampleAt(0, row(1, "10.0.0.1:1", "10.0.0.2:80", 1, 1), row(2, "10.0.0.1:2", "10.0.0.2:80", 1, 1).with(is(Polled)), row(3, "10.0.0.1:3", "10.0.0.2:80", 1, 1).with(is(Shared))))
	if got := w.Document().Flows[0].Attribution.Status; got != Polled {
		t.Error(got)
	}
}

func TestSorts(t *testing.T) {
	small, large := row(1, "10.0.0.1:1", "10.0.0.2:80", 1, 9), row(2, "10.0.0.3:2", "10.0.0.4:81", 5, 2).with(by(11, "zz"))
	for _, field := range SortFields() {
		for _, order := range []string{field, "-" + field} {
			w := NewWatch(View{Sort: order, Limit: 1})
			w.Take(sampleAt(0, small, large))
			d := w.Document()
			if len(d.Flows) != 1 || d.Others.Flows != 1 || *d.Flows[0].IO.TransmitBytes+*d.Others.IO.TransmitBytes != 6 {
				t.Errorf("%s: %s and %+v", order, shown(d), d.Others)
			}
		}
	}
	for order, want := range map[string]uint64{"": 1, "io.bytes": 5, "-io.transmit_bytes": 5, "io.transmit_bytes": 1, "-process.command": 5, "network.peer.port": 1} {
		w := NewWatch(View{Sort: order, Limit: 1})
		w.Take(sampleAt(0, small, large))
		if got := *w.Document().Flows[0].IO.TransmitBytes; got != want {
			t.Errorf("%s: first is %d", order, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, v := range []View{
		{By: []string{"colour"}}, {By: []string{""}}, {By: []string{"src.pod", "peer"}}, {Sort: "colour"}, {Limit: -1},
	} {
		if err := v.Check(); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%+v: %v", v, err)
		}
	}
	for _, word := range Dimensions() {
		if err := (View{By: []string{word, "transport"}}).Check(); err != nil {
			t.Error(err)
		}
	}
}

// TestWatchModel compares sums with what random flows have moved.
func TestWatchModel(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	views := []*Watch{NewWatch(View{}), NewWatch(View{Limit: 3}), NewWatch(View{By: []string{"process"}, Limit: 2}), NewWatch(View{By: []string{"peer", "state"}})}
	var open []Row
	var all Counters
	byPID := map[uint32]uint64{}
	for step := range 300 {
		var grown Counters
		for i := range open {
			r := &open[i]
			if random.IntN(3) == 0 {
				more := Counters{TransmitBytes: random.Uint64N(1000), ReceiveBytes: random.Uint64N(1000), TransmitCalls: 1, ReceiveCalls: 1}
				r.add(more)
				grown.add(more)
				byPID[r.PID] += more.bytes()
			}
		}
		for range random.IntN(5) {
			r := row(uint64(step*10+len(open)), "10.0.0.1:1", fmt.Sprintf("10.0.0.%d:80", random.IntN(9)), random.Uint64N(50), 1).with(by(1+random.Uint32N(6), "p"))
			if random.IntN(2) == 0 {
				r.TCP = &TCP{State: "syn_sent"}
			}
			grown.add(r.Counters)
			byPID[r.PID] += r.bytes()
			open = append(open, r)
		}
		all.add(grown)
		s := sampleAt(float64(step))
		var left []Row
		for _, r := range open {
			if random.IntN(6) == 0 {
				s.Rows = append(s.Rows, r.with(closed))
				continue
			}
			left = append(left, r)
			s.Rows = append(s.Rows, r)
		}
		open = left
		for i, w := range views {
			w.Take(s)
			d := w.Document()
			if got := (Counters{*d.Total.IO.TransmitBytes, *d.Total.IO.ReceiveBytes, *d.Total.IO.TransmitCalls, *d.Total.IO.ReceiveCalls}); got != all {
				t.Fatalf("step %d, view %d: total %+v, want %+v", step, i, got, all)
			}
			if step == 0 {
				continue
			}
			moved := *d.Others.IO.NewTransmitBytes
			for _, f := range d.Flows {
				moved += *f.IO.NewTransmitBytes
				if pid := f.Process.PID; i == 2 && *f.IO.TransmitBytes+*f.IO.ReceiveBytes != byPID[*pid] {
					t.Fatalf("step %d: process %d has %d", step, *pid, *f.IO.TransmitBytes+*f.IO.ReceiveBytes)
				}
			}
			if moved != grown.TransmitBytes || *d.Total.IO.NewTransmitBytes != moved {
				t.Fatalf("step %d, view %d: %d are new, want %d", step, i, moved, grown.TransmitBytes)
			}
		}
	}
	for i, w := range views {
		if len(w.index) != len(open) || len(w.states) > 100 {
			t.Errorf("view %d: remembers %d of %d flows, room for %d", i, len(w.index), len(open), len(w.states))
		}
	}
}

// TestWatchMemory has more groups and processes than are remembered.
func TestWatchMemory(t *testing.T) {
	w := NewWatch(View{By: []string{"process"}})
	const each = mostGroups / 4
	for step := range 8 {
		s := sampleAt(float64(step), row(1, "10.0.0.1:1", "10.0.0.2:80", 5, 6))
		for i := range each {
			s.Rows = append(s.Rows, row(uint64(2+step*each+i), "10.0.0.1:1", "10.0.0.2:80", 1, 0).with(by(uint32(100+step*each+i), "x")).with(closed))
		}
		w.Take(s)
	}
	if len(w.groups) > mostGroups+each || len(w.processes) > mostProcesses+each || len(w.index) != 1 {
		t.Errorf("%d groups, %d processes, %d flows", len(w.groups), len(w.processes), len(w.index))
	}
	expectTotal(t, w, 5+8*each, 6, each, 0)
}

// BenchmarkWatch takes and shows 20,000 flows, of which some or all move.
func BenchmarkWatch(b *testing.B) {
	for _, moving := range []int{2000, 20000} {
		for name, v := range map[string]View{
			"flows": {}, "limit": {Limit: 20}, "process,peer": {By: []string{"process", "peer"}}, "src.pod,dst.pod": {By: []string{"src.pod", "dst.pod"}},
		} {
			b.Run(fmt.Sprintf("%d/%s", moving, name), func(b *testing.B) {
				w := NewWatch(v)
				s := sampleAt(0)
				for i := range 20000 {
					n := uint64(i)
					r := row(n, fmt.Sprintf("10.1.%d.%d:%d", i>>8&255, i&255, 1024+i), "10.0.0.2:443", n, n).with(by(uint32(1+i%500), "process"))
					r.TCP.Transmitted, r.TCP.Received = &n, &n
					s.Rows = append(s.Rows, r)
				}
				w.Take(s)
				b.ReportAllocs()
				for b.Loop() {
					s.Time = s.Time.Add(time.Second)
					for i := range moving {
						s.Rows[i].TransmitBytes++
					}
					w.Take(s)
					w.Document()
				}
			})
		}
	}
}

// TestWatchNames: a flow is called what its peer was when it began, or counting did, for
// good, and a group by peer what all its flows are.
func TestWatchNames(t *testing.T) {
	known := map[string]string{}
	names := func(local, peer netip.Addr, ago time.Duration) string {
		return known[fmt.Sprintf("%s %s %g", local, peer, ago.Seconds())]
	}
	opened := func(seconds float64) func(*Row) { return func(r *Row) { r.Opened = at(seconds) } }
	old := row(1, "10.0.0.1:4000", "192.0.2.1:443", 1, 1)
	young := row(2, "10.0.0.1:4001", "192.0.2.1:443", 1, 1).with(opened(-2))
	other := row(3, "10.0.0.2:4000", "192.0.2.2:443", 1, 1).with(opened(-1))
	flows, peers := NewWatch(View{Name: names}), NewWatch(View{Name: names, By: []string{"peer"}})
	called := func(w *Watch, s Sample) string {
		w.Take(s)
		var lines []string
		for _, f := range w.Document().Flows {
			lines = append(lines, fmt.Sprintf("%s=%s", f.Network.Peer.Address.Address, sample.Value(f.Network.Peer.Name)))
		}
		slices.Sort(lines)
		return strings.Join(lines, " ")
	}
	expect := func(s Sample, wantFlows, wantPeers string) {
		t.Helper()
		if got := called(flows, s); got != wantFlows {
			t.Errorf("flows: %s, want %s", got, wantFlows)
		}
		if got := called(peers, s); got != wantPeers {
			t.Errorf("peers: %s, want %s", got, wantPeers)
		}
	}
	known["10.0.0.1 192.0.2.1 2"] = "a.example"
	expect(sampleAt(0, old, young, other), "192.0.2.1= 192.0.2.1=a.example 192.0.2.2=", "192.0.2.1= 192.0.2.2=")
	known = map[string]string{"10.0.0.1 192.0.2.1 61": "a.example", "10.0.0.1 192.0.2.1 3": "b.example", "10.0.0.2 192.0.2.2 2": "c.example"}
	old.TransmitBytes, young.TransmitBytes, other.TransmitBytes = 2, 2, 2
	expect(sampleAt(1, old, young, other), "192.0.2.1=a.example 192.0.2.1=a.example 192.0.2.2=c.example", "192.0.2.1=a.example 192.0.2.2=c.example")
	known = nil
	third := row(4, "10.0.0.3:4000", "192.0.2.1:443", 1, 1)
	expect(sampleAt(2, old.with(closed), young, other, third), "192.0.2.1= 192.0.2.1=a.example", "192.0.2.1=")
	expect(sampleAt(3, young, other, third.with(closed)), "192.0.2.1=", "192.0.2.1=")
	young.TransmitBytes = 3
	expect(sampleAt(4, young, other), "192.0.2.1=a.example", "192.0.2.1=a.example")
}
