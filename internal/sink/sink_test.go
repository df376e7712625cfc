package sink

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bpfnet/internal/alert"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/detect"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

// now is the time of all tests.
var now = time.Date(2026, 1, 2, 3, 4, 30, 0, time.UTC)

func event(t *testing.T, a alert.Alert) Event {
	t.Helper()
	document, err := output.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return Event{Alert: a, Document: document}
}

// burst is a burst of a Pod, and its end if it is over.
func burst(t *testing.T, over bool, pod string) Event {
	t.Helper()
	rule, err := detect.ParseBurst("10kB/10s,transmit")
	if err != nil {
		t.Fatal(err)
	}
	uid, namespace, device, index := "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f", "shop", "veth-a", uint32(4)
	f := detect.Finding{
		Rule: rule, Episode: detect.Episode{
			Kind: detect.Pod, Point: traffic.TC, Started: now.Add(-25 * time.Second), Amount: 12010, Peak: 12010, Threshold: 10000, Sources: 1,
			Source: traffic.Who{Address: netip.MustParseAddr("10.77.0.4"), PodUID: &uid, DevName: &device, IfIndex: &index},
		},
	}
	if pod != "" {
		f.Source.Namespace, f.Source.Pod = &namespace, &pod
	}
	if over {
		f.Ended, f.EndedBy, f.Amount = now.Add(-5*time.Second), detect.Gone, 0
	}
	return event(t, alert.OfBurst(f))
}

// fanout and scan are of an address, of whom no more is known.
func fanout(t *testing.T) Event {
	t.Helper()
	rule, err := detect.ParseFanout("50/60s")
	if err != nil {
		t.Fatal(err)
	}
	return event(t, alert.OfFanout(detect.FanoutFinding{
		Rule: rule, Episode: ofAddress(5000), Attempted: 5000, Answered: 4000, Estimated: true,
		Peers: []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")},
	}))
}

func scan(t *testing.T) Event {
	t.Helper()
	rule, err := detect.ParseScan("100ports/60s")
	if err != nil {
		t.Fatal(err)
	}
	return event(t, alert.OfScan(detect.ScanFinding{
		Rule: rule, Episode: ofAddress(100), Ports: []detect.PeerPort{{Address: netip.MustParseAddr("198.51.100.7"), Port: 22}},
	}))
}

func ofAddress(amount uint64) detect.Episode {
	index := uint32(4)
	return detect.Episode{
		Kind: detect.Address, Point: traffic.TC, Started: now.Add(-25 * time.Second), Amount: amount, Peak: amount, Threshold: 50, Sources: 1,
		Source: traffic.Who{Address: netip.MustParseAddr("10.77.0.4"), IfIndex: &index},
	}
}

// hit is a packet that met an entry, whose reason somebody else has written.
func hit(t *testing.T, reason string) Event {
	t.Helper()
	device, executable := "veth-a", "/usr/bin/curl"
	process := alert.Process{PID: 812, StartTime: now.Add(-2 * time.Second), Executable: &executable, Command: "curl", Owners: 1}
	return event(t, alert.OfBlocklist(blocklist.Event{
		Time:   now.Add(-time.Second),
		Source: netip.MustParseAddrPort("[2001:db8::4]:40001"), Destination: netip.MustParseAddrPort("[2001:db8::7]:443"),
		Protocol: 6, Matched: blocklist.Destination, Direction: "egress", Hook: "tc", IfIndex: 4, Length: 60, Dropped: true,
		Entry: blocklist.Entry{List: "feed", Prefix: netip.MustParsePrefix("2001:db8::/32"), Action: blocklist.AlertAndDrop, Reason: reason},
	}, &device, &process, 0))
}

// numbered is a hit that can be told from others.
func numbered(t *testing.T, n int) Event { return hit(t, fmt.Sprintf("number %04d", n)) }

// notes collects what a set tells.
type notes struct {
	mu   sync.Mutex
	said []string
}

func (n *notes) note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said = append(n.said, text)
}

func (n *notes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.said)
}

// open opens sinks by what the command line has.
func open(t *testing.T, specs ...string) (*Set, *notes) {
	t.Helper()
	n := &notes{}
	var parsed []Spec
	for _, text := range specs {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, s)
	}
	s, err := Open(parsed, Options{
		Host: "node-1", Getenv: os.Getenv, ReadFile: os.ReadFile, Now: func() time.Time { return now }, Note: n.note,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, n
}

// server answers in the way that a test wants, and keeps what it got.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
	heads  []http.Header
	paths  []string
	times  []time.Time
}

// serve answers request n, from 0 on, with answer.
func serve(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, n int)) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(s.handler(answer))
	t.Cleanup(s.Close)
	return s
}

func (s *server) handler(answer func(w http.ResponseWriter, r *http.Request, n int)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		n := len(s.bodies)
		s.bodies, s.heads, s.paths, s.times = append(s.bodies, string(body)), append(s.heads, r.Header.Clone()), append(s.paths, r.Method+" "+r.URL.String()), append(s.times, time.Now())
		s.mu.Unlock()
		if answer != nil {
			answer(w, r, n)
		}
	})
}

func (s *server) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bodies)
}

// closed closes a set, which must have delivered all.
func closed(t *testing.T, s *Set) {
	t.Helper()
	if missing := s.Close(); missing != nil {
		t.Errorf("not delivered: %+v", missing)
	}
}

// eventually waits for something.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// golden compares with testdata/NAME, which UPDATE_SCRIPTS=1 writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s: %v, now\n%s", name, err, got)
	}
}

// TestAllSinks checks that each sink gets each alert, in order.
func TestAllSinks(t *testing.T) {
	t.Parallel()
	web, dir := serve(t, nil), t.TempDir()
	s, said := open(t, "webhook="+web.URL, "file="+dir+"/a", "file="+dir+"/b")
	want := ""
	for n := range 300 {
		e := numbered(t, n)
		want += string(e.Document) + "\n"
		s.Send(e)
	}
	closed(t, s)
	for _, name := range []string{"a", "b"} {
		if got, err := os.ReadFile(dir + "/" + name); err != nil || string(got) != want {
			t.Errorf("%s: %v, %d bytes instead of %d", name, err, len(got), len(want))
		}
	}
	if got := strings.Join(web.got(), "\n") + "\n"; got != want {
		t.Errorf("webhook: %d bytes instead of %d", len(got), len(want))
	}
	if said.all() != nil {
		t.Error(said.all())
	}
	var none *Set
	none.Send(numbered(t, 1))
	closed(t, none)
}

// TestSlow checks that a server which never answers holds up neither who sends nor
// other sinks, and that what it didn't get is counted.
func TestSlow(t *testing.T) {
	t.Parallel()
	hangs := make(chan struct{})
	slow := serve(t, func(_ http.ResponseWriter, r *http.Request, _ int) {
		select {
		case <-hangs:
		case <-r.Context().Done():
		}
	})
	defer close(hangs)
	dir := t.TempDir()
	s, said := open(t, "webhook="+slow.URL, "file="+dir+"/a")
	for n := range 3 * queueLength {
		e := numbered(t, n)
		start := time.Now()
		s.Send(e)
		if took := time.Since(start); took > time.Second {
			t.Errorf("sending took %v", took)
		}
		for n%queueLength == queueLength/2 && lines(dir+"/a") <= n { // the file has a queue, too
			time.Sleep(time.Millisecond)
		}
	}
	eventually(t, "the file is written", func() bool { return lines(dir+"/a") == 3*queueLength })
	start := time.Now()
	missing := s.Close()
	if took := time.Since(start); took < flushTime || took > flushTime+endTime {
		t.Errorf("closing took %v", took)
	}
	if len(missing) != 1 || missing[0].Sum() != 3*queueLength || missing[0].Left != queueLength+1 || missing[0].Sink != "webhook="+slow.URL {
		t.Errorf("not delivered: %+v", missing)
	}
	if said.all() != nil {
		t.Error(said.all())
	}
}

// TestComesBack checks that a sink that can't be reached is told once, and so is that
// it can be reached again; and that it gets all that there was room for.
func TestComesBack(t *testing.T) {
	t.Parallel()
	up := serve(t, nil)
	address := up.Listener.Addr().String()
	up.Server.Close()
	s, said := open(t, "webhook=http://"+address+"/path?key=hidden")
	for n := range queueLength + 50 {
		s.Send(numbered(t, n))
		if n == 0 {
			eventually(t, "a note", func() bool { return len(said.all()) == 1 })
		}
	}
	time.Sleep(2 * firstPause)
	again := httptest.NewUnstartedServer(up.handler(nil))
	again.Listener.Close()
	again.Listener = listen(t, "tcp", address)
	again.Start()
	defer again.Close()
	eventually(t, "it has got all", func() bool { return len(up.got()) == queueLength+1 })
	missing := s.Close()
	if len(missing) != 1 || missing[0].Dropped != 49 || missing[0].Sum() != 49 {
		t.Errorf("not delivered: %+v", missing)
	}
	for n, body := range up.got() {
		if !strings.Contains(body, fmt.Sprintf("number %04d", n)) {
			t.Fatalf("%d: %s", n, body)
		}
	}
	want := []string{
		"sink webhook=http://" + address + ": dial tcp " + address + ": connect: connection refused",
		"sink webhook=http://" + address + " takes alerts again; not delivered meanwhile: 49",
	}
	if got := said.all(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestUnreachable checks the end of a watch while sinks can't be reached: all of them
// have the same few seconds.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	strange := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	strange.Config.ErrorLog = log.New(io.Discard, "", 0)
	strange.StartTLS()
	defer strange.Close()
	socket := t.TempDir() + "/none"
	reasons := []string{
		"webhook=http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused",
		"alertmanager=http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused",
		"elasticsearch=http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused",
		"syslog=" + socket + ": connect: no such file or directory",
		"file=/dev/full: write: no space left on device",
		"webhook=" + strange.URL + ": tls: failed to verify certificate: x509: certificate signed by unknown authority",
	}
	s, said := open(t, "webhook=http://127.0.0.1:1", "alertmanager=http://127.0.0.1:1", "elasticsearch=http://127.0.0.1:1/a", "syslog="+socket, "file=/dev/full", "webhook="+strange.URL)
	for n := range 3 {
		s.Send(numbered(t, n))
	}
	eventually(t, "a note of each", func() bool { return len(said.all()) == len(reasons) })
	start := time.Now()
	missing := s.Close()
	if took := time.Since(start); took > flushTime+endTime {
		t.Errorf("closing took %v", took)
	}
	if len(missing) != len(reasons) {
		t.Fatalf("not delivered: %+v", missing)
	}
	for n, reason := range reasons {
		if m := missing[n]; m.Left != 3 || m.Sum() != 3 || !strings.HasPrefix(reason, m.Sink+": ") {
			t.Errorf("not delivered: %+v", m)
		}
		if !slices.Contains(said.all(), "sink "+reason) {
			t.Errorf("%q isn't in %q", reason, said.all())
		}
	}
	if len(said.all()) != len(reasons) {
		t.Errorf("%q", said.all())
	}
}

// TestClosedWhilePaused checks that what waits for the next attempt is tried once more
// in the end, however long the server has asked for.
func TestClosedWhilePaused(t *testing.T) {
	t.Parallel()
	web := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		if n == 0 {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	s, _ := open(t, "webhook="+web.URL)
	s.Send(numbered(t, 0))
	s.Send(numbered(t, 1))
	eventually(t, "a request", func() bool { return len(web.got()) == 1 })
	time.Sleep(20 * time.Millisecond)
	closed(t, s)
	if got := web.got(); len(got) != 3 {
		t.Errorf("%d requests", len(got))
	}
}

// TestJitter checks the range of pauses.
func TestJitter(t *testing.T) {
	for range 1000 {
		if d := jitter(firstPause); d < firstPause/2 || d > firstPause {
			t.Fatal(d)
		}
	}
	o := &outlet{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if o.pause(ctx, time.Hour) {
		t.Error("a pause that was cancelled goes on")
	}
}

// TestStatus checks what is told of sinks while alerts are on their way.
func TestStatus(t *testing.T) {
	t.Parallel()
	begin := make(chan struct{})
	web := serve(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		switch n {
		case 0:
			<-begin
			w.WriteHeader(http.StatusServiceUnavailable)
		case 1:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	s, _ := open(t, "webhook="+web.URL+"/secret", "exec=true")
	want := func(when string, of Status) {
		t.Helper()
		of.Sink = "webhook=" + web.URL
		eventually(t, when, func() bool { return s.Status()[0] == of })
	}
	want("nothing", Status{})
	for n := range queueLength + 3 {
		s.Send(numbered(t, n))
		if n == 0 {
			eventually(t, "a request", func() bool { return len(web.got()) == 1 })
		}
	}
	want("a full queue", Status{Waiting: queueLength + 1, Dropped: 2})
	close(begin)
	eventually(t, "it fails", func() bool { return s.Status()[0].Failing })
	want("the rest", Status{Dropped: 2, Retries: 1, Refused: 1, Delivered: queueLength})
	if got := s.Status()[1]; got.Sink != "exec=true" || got.Delivered+got.Waiting+got.Dropped != queueLength+3 {
		t.Errorf("%+v", got)
	}
	var none *Set
	if got := none.Status(); got != nil {
		t.Errorf("%+v", got)
	}
}
