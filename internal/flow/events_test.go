package flow

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// tail reads what happens to connections of a site.
type tail struct {
	*site
	*Events
}

func (s *site) tail() *tail { return s.longTail(nil) }

// longTail has rings of other sizes.
func (s *site) longTail(entries map[string]uint32) *tail {
	s.Helper()
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(s)})
	s.must(err)
	objects, err := engine.Start(context.Background(), datapath.LoadRequest{Source: Program, MaxEntries: entries}) // by any mechanism
	testkit.Needs(s, "flows", err, fault.ErrUnsupported, fault.ErrRejected)
	reader, err := newReader(objects)
	s.must(err)
	s.Cleanup(func() { s.must(reader.Close()) })
	e, err := newEvents(reader, true)
	s.must(err)
	return &tail{s, e}
}

// read returns what has happened since the last time, with nothing lost.
func (t *tail) read() (events []Event) {
	t.Helper()
	all, loss, err := t.Read(true)
	t.must(err)
	if loss != (EventLoss{}) {
		t.Fatalf("lost: %+v", loss)
	}
	return slices.DeleteFunc(all, func(e Event) bool { return e.Rows[0].NetNS != t.inode })
}

// wants waits for events, each with its direction, whose doing and why, errno and bytes.
// Nothing else may happen.
func (t *tail) wants(want ...string) (events []Event) {
	t.Helper()
	var got []string
	for end := time.Now().Add(10 * time.Second); len(got) < len(want) && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, e := range t.read() {
			events = append(events, e)
			got = append(got, words(e))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	return events
}

func words(e Event) string {
	d := NewTeller(View{}, false).Document(&e, EventLoss{})
	text := d.Event
	for _, word := range []*string{d.Direction, d.ClosedBy, d.Reason, d.TCP.Error} {
		if word != nil {
			text += " " + *word
		}
	}
	if d.IO != nil {
		text += fmt.Sprintf(" %d/%d", d.IO.TransmitBytes, d.IO.ReceiveBytes)
	}
	return text
}

func (e peerEnd) abort() {
	e.Helper()
	e.must(unix.SetsockoptLinger(e.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	_ = unix.Close(e.fd)
}

// fails reads the error of a connection.
func (e peerEnd) fails(want error) {
	e.Helper()
	e.ready(unix.POLLIN)
	if _, err := unix.Read(e.fd, make([]byte, 1)); err != want {
		e.Fatalf("%v, want %v", err, want)
	}
}

// TestEvents opens and closes connections in all ways.
func TestEvents(t *testing.T) {
	s := newSite(t)
	events := s.tail()
	for name, c := range map[string]struct {
		do   func(client, server *peerEnd)
		want []string // besides that they were opened
	}{
		"client closes": {func(client, server *peerEnd) {
			client.send(1000)
			server.receive(1000)
			client.close()
			server.eof()
			server.close()
		}, []string{"closed outward local fin 1000/0", "closed inward peer fin 0/1000"}},
		"server closes": {func(client, server *peerEnd) {
			server.send(70000)
			server.close()
			client.receive(70000)
			client.eof()
			client.close()
		}, []string{"closed outward peer fin 0/70000", "closed inward local fin 70000/0"}},
		"half": {func(client, server *peerEnd) {
			client.shutdown()
			server.eof()
			server.send(5)
			server.close()
			client.receive(5)
			client.eof()
			client.close()
		}, []string{"closed outward local fin 0/5", "closed inward peer fin 5/0"}},
		"reset": {func(client, server *peerEnd) {
			client.abort()
			server.fails(unix.ECONNRESET)
			server.close()
		}, []string{"closed outward local reset 0/0", "closed inward peer reset ECONNRESET 0/0"}},
		"unread": {func(client, server *peerEnd) {
			client.send(9)
			server.ready(unix.POLLIN)
			server.close()
			client.fails(unix.ECONNRESET)
			client.close()
		}, []string{"closed outward peer reset ECONNRESET 9/0", "closed inward local reset 0/0"}},
		"unread after a FIN": {func(client, server *peerEnd) {
			client.send(9)
			client.shutdown()
			server.ready(unix.POLLRDHUP)
			server.close()
			client.fails(unix.ECONNRESET)
			client.close()
		}, []string{"closed outward peer reset ECONNRESET 9/0", "closed inward local reset 0/0"}},
		"reset after a FIN": {func(client, server *peerEnd) {
			client.shutdown()
			server.eof()
			client.abort()
			server.ready(unix.POLLERR)
			server.close()
		}, []string{"closed outward local fin 0/0", "closed inward peer reset EPIPE 0/0"}},
	} {
		t.Run(name, func(t *testing.T) {
			s.TB = t
			client, server := s.pair()
			c.do(&client, &server)
			for _, e := range events.wants(append(c.want, "opened outward", "opened inward")...) {
				row := e.Rows[0]
				if took := e.Time.Sub(row.Opened); took < 0 || took > 5*time.Second || e.Time.After(time.Now()) {
					t.Errorf("%s at %v, which took %v", e.Kind, e.Time, took)
				}
				if row.PID != uint32(os.Getpid()) || len(e.Rows) != 1 || row.Peer.Port() == 0 || row.Local.Port() == 0 || row.Peer.Port() == row.Local.Port() {
					t.Errorf("%s: %+v", e.Kind, e.Rows)
				}
			}
		})
	}
}

// TestFailures has connections that don't open.
func TestFailures(t *testing.T) {
	s := newSite(t)
	s.in(func() error { return blackhole("198.51.100.0/24") })
	events := s.tail()
	begin := func(to unix.Sockaddr, repeats int) (client peerEnd) {
		client = s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		client.set(unix.IPPROTO_TCP, unix.TCP_SYNCNT, repeats)
		client.connect(to)
		return client
	}
	far := func(a, b, c, d byte) unix.Sockaddr {
		return &unix.SockaddrInet4{Port: 443, Addr: [4]byte{a, b, c, d}}
	}
	began := time.Now()
	slow := []peerEnd{begin(far(198, 51, 100, 1), 1), begin(far(203, 0, 113, 77), 4)}

	// It is told when it fails, and not once more when it is closed.
	client := begin(loopback(3999), 1)
	e := events.wants("failed outward peer refused ECONNREFUSED")[0]
	if row := e.Rows[0]; row.TCP.State != "syn_sent" || row.Peer.String() != "127.0.0.1:3999" || row.PID != uint32(os.Getpid()) || row.Local.Port() == 0 {
		t.Errorf("%+v, %+v", row, row.TCP)
	}
	// The same socket may try again.
	time.Sleep(20 * time.Millisecond)
	_ = unix.Connect(client.fd, loopback(3999)) // has the error of the one before
	client.connect(loopback(3999))
	e = events.wants("failed outward peer refused ECONNREFUSED")[0]
	if took := e.Time.Sub(e.Rows[0].Opened); took < 0 || took > 10*time.Millisecond {
		t.Errorf("the second attempt took %v", took)
	}
	_ = unix.Connect(client.fd, loopback(3999)) // has the error of the one before
	l, at := s.listen()
	client.connect(at)
	server := l.accept()
	client.close()
	server.eof()
	server.close()
	events.wants("opened outward", "opened inward", "closed outward local fin 0/0", "closed inward peer fin 0/0")

	// Nobody answers, and it isn't waited for.
	client = begin(far(198, 51, 100, 2), 1)
	client.close()
	events.wants("failed outward local abandoned")

	// No port is free.
	s.sysctl("ipv4/ip_local_port_range", "3500 3500")
	client = begin(at, 1)
	server = l.accept()
	other := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err := unix.Connect(other.fd, at); err != unix.EADDRNOTAVAIL {
		t.Fatal(err)
	}
	other.close()
	// No network is there: nothing begins.
	if err := unix.Connect(s.socket(unix.AF_INET, unix.SOCK_STREAM, 0).fd, far(192, 0, 2, 1)); err != unix.ENETUNREACH {
		t.Fatal(err)
	}
	// What is disconnected has ended; nobody knows the socket's next peer.
	raw := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(client.fd), uintptr(unsafe.Pointer(&raw)), unsafe.Sizeof(raw)); errno != 0 {
		t.Fatal(errno)
	}
	server.fails(unix.ECONNRESET)
	server.close()
	client.close()
	l.close()
	events.wants("opened outward", "opened inward", "failed outward", "closed outward local reset 0/0", "closed inward peer reset ECONNRESET 0/0")

	for _, client := range slow {
		client.ready(unix.POLLERR)
	}
	for _, e := range events.wants("failed outward timeout ETIMEDOUT", "failed outward unreachable EHOSTUNREACH") {
		if took := e.Time.Sub(e.Rows[0].Opened); took < time.Second || took > time.Since(began) {
			t.Errorf("%+v took %v", e.Rows[0], took)
		}
	}
}

// TestEventProcesses has connections that threads, forks and processes of cgroups use.
func TestEventProcesses(t *testing.T) {
	s := newSite(t)
	l, at := s.listen()
	old := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	old.connect(at)
	oldServer := l.accept()
	var unseen net.Listener // by its socket, where it is MPTCP's
	s.in(func() (err error) {
		unseen, err = net.Listen("tcp", "127.0.0.1:4700")
		return err
	})
	defer unseen.Close()
	events := s.tail()

	// One that was there before has no beginning.
	old.close()
	oldServer.eof()
	oldServer.close()
	for _, e := range events.wants("closed local fin 0/0", "closed peer fin 0/0") {
		if d := NewTeller(View{}, false).Document(&e, EventLoss{}); d.DurationSeconds != nil || d.OpenedAt != nil {
			t.Errorf("%+v", d)
		}
	}

	// Nobody has used this one.
	visitor := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	visitor.connect(loopback(4700))
	host, err := unseen.Accept()
	s.must(err)
	host.Close()
	visitor.eof()
	visitor.close()
	events.wants("opened outward", "opened inward", "closed outward peer fin 0/0", "closed inward local fin 0/0")

	// A thread's name is the process's.
	client := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends
		name := append([]byte("a-thread"), 0)
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
		done <- netns.Do(s.path, func() error { client.connect(at); return nil })
	}()
	s.must(<-done)
	server := l.accept()
	// A child writes, too.
	writer := exec.Command("sh", "-c", "printf hello >&3")
	file := os.NewFile(uintptr(client.fd), "socket")
	defer file.Close()
	writer.ExtraFiles = []*os.File{file}
	s.must(writer.Run())
	client.send(1000)
	server.receive(1005)
	file.Close()
	server.eof()
	server.close()
	leader, err := os.ReadFile("/proc/self/comm")
	s.must(err)
	for _, e := range events.wants("opened outward", "opened inward", "closed outward local fin 1005/0", "closed inward peer fin 0/1005") {
		first := e.Rows[0].Process
		if first.Command+"\n" != string(leader) || first.PID != uint32(os.Getpid()) {
			t.Errorf("%s: %+v", e.Kind, first)
		}
		d := NewTeller(View{}, false).Document(&e, EventLoss{})
		if e.Kind == "closed" && !e.Rows[0].Inward && (len(d.Processes) != 2 || *d.Processes[1].Command != "sh" || *d.Processes[1].PID != uint32(writer.Process.Pid)) {
			t.Errorf("processes %+v", d.Processes)
		}
		if fit := NewTeller(View{Filter: Filter{PIDs: []uint32{uint32(writer.Process.Pid)}}}, false).Fit([]Event{e}); len(fit) > 1 || len(fit) == 1 && (len(fit[0].Rows) != 1 || fit[0].Rows[0].TransmitBytes != 5) {
			t.Errorf("the child's: %+v", fit)
		}
	}

	// IPv6, in a cgroup.
	cgroup := testkit.Cgroup(t)
	var stat unix.Stat_t
	s.must(unix.Stat(cgroup, &stat))
	pid := s.dialer(cgroup, "/[::1]:4800", "[::1]:4800")
	opened := events.wants("opened outward", "opened inward")
	for _, e := range opened {
		if row := e.Rows[0]; row.Family != unix.AF_INET6 || row.PID != uint32(pid) || row.Cgroup != stat.Ino || !row.Local.Addr().Is6() {
			t.Errorf("%+v", row)
		}
	}
}

// serve reads what comes on the connections of a listener, one after another.
func (s *site) serve(l peerEnd) {
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, 10)
			if fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC); err == nil {
				_, _ = unix.Read(fd, make([]byte, 1))
				unix.Close(fd)
			}
		}
	}()
	s.Cleanup(func() { close(stop); <-stopped })
}

// TestManyProcesses has each connection of a process of its own, which lives as short.
func TestManyProcesses(t *testing.T) {
	count := 5000
	if testing.Short() {
		count = 300
	}
	bash, err := exec.LookPath("bash")
	testkit.Needs(t, "bash", err, exec.ErrNotFound)
	s := newSite(t)
	l, at := s.listen()
	s.serve(l)
	events := s.tail()
	cmd := exec.Command(bash, "-c", fmt.Sprintf("for ((i = 0; i < %d; i++)); do (exec 3<>/dev/tcp/127.0.0.1/%d && printf x >&3); done", count, at.Port))
	cmd.Stderr = os.Stderr
	s.in(cmd.Start)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	kinds, pids := map[string]int{}, map[uint32]bool{}
	var late <-chan time.Time // the server may close its ends after the clients have ended
	for over := false; !over; {
		select {
		case err := <-ended:
			s.must(err)
			late = time.After(5 * time.Second)
		case <-late:
			over = true
		case <-time.After(50 * time.Millisecond):
		}
		for _, e := range events.read() {
			row := e.Rows[0]
			kind := fmt.Sprint(e.Kind, row.Inward)
			kinds[kind]++
			if kind == "closedfalse" && row.Command == "bash" && row.TransmitBytes == 1 && row.Cgroup != 0 {
				pids[row.PID] = true
			}
		}
		over = over || late != nil && kinds["closedtrue"] >= count && kinds["closedfalse"] >= count
	}
	for _, kind := range []string{"openedfalse", "openedtrue", "closedfalse", "closedtrue"} {
		if kinds[kind] != count {
			t.Errorf("%d %s, want %d", kinds[kind], kind, count)
		}
	}
	if len(pids) != count {
		t.Errorf("%d processes, want %d", len(pids), count)
	}
}

// flood opens and closes connections as fast as it can until stop is called.
func (s *site) flood(port int) (stop func()) {
	done, running := make(chan bool), sync.WaitGroup{}
	for range 2 {
		running.Go(func() {
			to := loopback(port) // Connect writes into it
			_ = netns.Do(s.path, func() error {
				for {
					select {
					case <-done:
						return nil
					default:
					}
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
					if err != nil {
						return err
					}
					_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
					_ = unix.Connect(fd, to)
					unix.Close(fd)
				}
			})
		})
	}
	return func() { close(done); running.Wait() }
}

// TestEventsInBetween has timers end connections while the processors are busy with what
// others do: the kernel runs no program where it has interrupted the same one.
func TestEventsInBetween(t *testing.T) {
	s := newSite(t)
	s.in(func() error { return blackhole("198.51.100.0/24") })
	l, at := s.listen()
	s.serve(l)
	events := s.longTail(map[string]uint32{"opened_flows": 1 << 18}) // more than the flood is in the time
	const attempts = 200
	var clients []peerEnd
	var polled []unix.PollFd
	for i := range attempts {
		client := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		client.set(unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1)
		clients = append(clients, client)
		polled = append(polled, unix.PollFd{Fd: int32(client.fd), Events: unix.POLLIN})
		client.connect(&unix.SockaddrInet4{Port: 443, Addr: [4]byte{198, 51, 100, byte(i + 1)}})
		time.Sleep(5 * time.Millisecond) // not all at one time
	}
	stop := s.flood(at.Port)
	failed := 0
	count := func() {
		all, loss, err := events.Read(true)
		s.must(err)
		if loss.Missed > 0 {
			t.Fatalf("%+v", loss)
		}
		for _, e := range all {
			if row := e.Rows[0]; row.NetNS == s.inode && row.Peer.Port() == 443 {
				if got := words(e); got != "failed outward timeout ETIMEDOUT" {
					t.Error(got)
				}
				failed++
			}
		}
	}
	over := 0
	for end := time.Now().Add(10 * time.Second); over < attempts && time.Now().Before(end); time.Sleep(time.Millisecond) {
		count()
		over, _ = unix.Poll(polled, 0)
	}
	stop()
	count()
	// A virtual machine's kernel was seen to run no program at a tracepoint, typed or raw, where a
	// softirq had interrupted a thread of its first process: of 29 such ends none was seen, and no
	// program counted a miss. Of 8,971 others all that weren't seen were counted, also where it had
	// interrupted the first process of a PID namespace.
	if over < attempts || failed < attempts-attempts/20 {
		t.Errorf("of %d that are over %d have failed: %+v", over, failed, events.loss)
	}
	// Those are told when they are closed.
	for _, client := range clients {
		client.close()
	}
	count()
	if failed != attempts {
		t.Errorf("%d of %d have failed", failed, attempts)
	}
}

// TestUnseenEnds has connections whose end no program has seen, and which their processes
// close: those are told then.
func TestUnseenEnds(t *testing.T) {
	s := newSite(t)
	s.in(func() error { return blackhole("198.51.100.0/24") })
	events := s.tail()
	sockets, err := events.reader.objects.Map("flow_sockets")
	s.must(err)
	if sockets.Type() != ebpf.SkStorage {
		t.Skip("this kernel has no memory of sockets for what traces")
	}
	unsee := func(client peerEnd, end func(), told ...string) {
		before, err := sockets.LookupBytes(int32(client.fd))
		s.must(err)
		end()
		client.ready(unix.POLLERR)
		events.wants(told...)
		s.must(sockets.Put(int32(client.fd), before))
	}
	client := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	client.set(unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1)
	client.connect(&unix.SockaddrInet4{Port: 443, Addr: [4]byte{198, 51, 100, 1}})
	unsee(client, func() {}, "failed outward timeout ETIMEDOUT")
	client.close()
	events.wants("failed outward timeout ETIMEDOUT")

	client, server := s.pair()
	events.wants("opened outward", "opened inward")
	unsee(client, server.abort, "closed inward local reset 0/0")
	client.close()
	events.wants("closed outward peer reset ECONNRESET 0/0")
}

// TestEventFlood opens and closes connections as fast as it can, while somebody reads
// much too slowly: each record was read or is lost.
func TestEventFlood(t *testing.T) {
	s := newSite(t)
	l, at := s.listen()
	s.serve(l)
	events := s.tail()
	stop := s.flood(at.Port)
	var read uint64
	began := time.Now()
	for range 4 {
		time.Sleep(500 * time.Millisecond)
		records, lost, err := events.opened.since(head(t, events.opened))
		s.must(err)
		for i, r := range records {
			if i > 0 && r.Sequence <= records[i-1].Sequence || r.Time < r.Opened || r.PeerPort == 0 {
				t.Fatalf("%+v", r)
			}
		}
		events.loss.Events += lost
		read += uint64(len(records))
	}
	stop()
	if lost := events.loss.Events; read == 0 || read+lost != events.opened.next {
		t.Errorf("%d were read and %d are lost, of %d", read, lost, events.opened.next)
	}
	t.Logf("%.0f connections/s, %d records lost", float64(head(t, events.opened))/2/time.Since(began).Seconds(), events.loss.Events)
}

func head(t testing.TB, r ring) uint64 {
	t.Helper()
	n, err := r.head()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRing reads a ring that somebody writes, slot by slot.
func TestRing(t *testing.T) {
	testkit.NeedsKernel(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(recordSize), MaxEntries: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	var begun uint64
	r := ring{m: m, head: func() (uint64, error) { return begun, nil }}
	write := func(numbers ...uint64) {
		for _, n := range numbers {
			if err := m.Put(uint32(n%4), &bpf.FlowRecord{Sequence: n + 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	expect := func(end uint64, lost uint64, want ...uint64) {
		t.Helper()
		records, gone, err := r.since(end)
		var got []uint64
		for _, record := range records {
			got = append(got, record.Sequence-1)
		}
		if err != nil || gone != lost || !slices.Equal(got, want) {
			t.Errorf("up to %d: %d, lost %d, want %d, %d: %v", end, got, gone, want, lost, err)
		}
	}
	expect(0, 0)
	write(0, 1)
	begun = 2
	expect(2, 0, 0, 1)
	expect(2, 0)

	// The third one is being written, also when the fourth is there.
	write(3)
	begun = 4
	expect(4, 0)
	write(2)
	expect(4, 0, 2, 3)

	// Somebody who comes too late finds those of the last round.
	write(4, 5, 6, 7, 8, 9)
	begun = 10
	expect(10, 2, 6, 7, 8, 9)

	// Some were written over after it was seen where the end is, and one is being.
	write(10, 11, 12, 13, 14)
	begun = 16
	expect(14, 2, 12, 13)
	if err := m.Put(uint32(15%4), &bpf.FlowRecord{}); err != nil {
		t.Fatal(err)
	}
	expect(16, 0, 14)
	write(15)
	expect(16, 0, 15)

	// One is being written over: it won't come any more.
	write(16, 17, 18, 19)
	begun = 21
	if err := m.Put(uint32(0), &bpf.FlowRecord{}); err != nil {
		t.Fatal(err)
	}
	expect(20, 1, 17, 18, 19)
}
