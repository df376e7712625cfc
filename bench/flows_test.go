package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	sockets "bpfnet/internal/flow"
	"bpfnet/internal/probe"
	"bpfnet/internal/testkit"
)

// call is one that moves data through a socket.
type call struct {
	name   string
	kind   int // unix.SOCK_STREAM, SOCK_DGRAM
	names  bool
	corked bool // what is sent stays, so that the call is measured and not the network
}

// pairsOfCalls are a call that sends and one that receives.
var pairsOfCalls = [][2]call{
	{{name: "TCP send", kind: unix.SOCK_STREAM, corked: true}, {name: "TCP receive"}},
	{{name: "UDP send", kind: unix.SOCK_DGRAM, corked: true}, {name: "UDP receive"}},
	{{name: "UDP sendto", kind: unix.SOCK_DGRAM, names: true}, {name: "UDP recvfrom", names: true}},
}

func (c call) added() string {
	return "flows, " + c.name + ": added to the call, beside empty programs"
}
func (c call) net() string { return "flows, " + c.name + ": net of empty programs, beside a hash" }
func (c call) others() string {
	return "flows --pid, " + c.name + " of others: added to the call, beside empty programs"
}

// callRecords are the names of what is measured of calls.
func callRecords() (names []string) {
	for _, pair := range pairsOfCalls {
		for _, c := range pair {
			names = append(names, c.added(), c.others())
			if !c.names {
				names = append(names, c.net())
			}
		}
	}
	return names
}

const (
	callRounds = 31
	callBursts = 300
	burst      = 64 // calls, so that a socket's buffer holds all
)

// measureCalls measures what flows, the yardstick and empty programs add to calls, in turn.
func measureCalls(t *testing.T, wanted func(string) bool) (records []record) {
	if !anyOf(callRecords(), wanted) {
		return nil
	}
	variants := []func(testing.TB) func(){
		func(testing.TB) func() { return func() {} },
		func(tb testing.TB) func() { return trace(tb, "empty_") },
		func(tb testing.TB) func() { return trace(tb, "tuples_") },
		func(tb testing.TB) func() { return begin(tb, sockets.Filter{}) },
		func(tb testing.TB) func() { return begin(tb, sockets.Filter{PIDs: []uint32{uint32(os.Getppid())}}) },
	}
	const nothing, empty, hash, flows, others = 0, 1, 2, 3, 4
	loopback(t)
	pinLast(t)
	times := make([][2][5][]float64, len(pairsOfCalls))
	for range callRounds {
		for v, variant := range variants {
			end := variant(t)
			for i, pair := range pairsOfCalls {
				send, receive := pair[0].cost(t)
				times[i][0][v] = append(times[i][0][v], send)
				times[i][1][v] = append(times[i][1][v], receive)
			}
			end()
		}
	}
	for i, pair := range pairsOfCalls {
		for j, c := range pair {
			of := times[i][j]
			records = append(records,
				newRecord(c.added(), "ns", minus(of[flows], of[nothing]), minus(of[empty], of[nothing]), atMost(150)),
				newRecord(c.others(), "ns", minus(of[others], of[nothing]), minus(of[empty], of[nothing]), goal{}))
			if !c.names { // the hash knows nothing of names in calls
				records = append(records, newRecord(c.net(), "ns", minus(of[flows], of[empty]), minus(of[hash], of[empty]), ratioAtMost(0.5)))
			}
		}
	}
	return records
}

func minus(a, b []float64) []float64 {
	differences := make([]float64, len(a))
	for i := range a {
		differences[i] = a[i] - b[i]
	}
	return differences
}

// loopback gives the test's thread a network namespace of its own.
func loopback(tb testing.TB) {
	tb.Helper()
	runtime.LockOSThread()
	must(tb, unix.Unshare(unix.CLONE_NEWNET))
	must(tb, netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}))
}

// begin begins to count flows; what it returns ends that.
func begin(tb testing.TB, filter sockets.Filter) func() {
	tb.Helper()
	sampler := sample(tb, filter)
	return func() { _ = sampler.Close() }
}

func sample(tb testing.TB, filter sockets.Filter) sockets.Sampler {
	tb.Helper()
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(tb)})
	if err != nil {
		tb.Fatal(err)
	}
	sampler, _, err := sockets.Open(context.Background(), engine, sockets.Request{Instance: "none", Filter: filter})
	if err != nil {
		tb.Fatal(err)
	}
	return sampler
}

// trace attaches those yardsticks of flows whose names begin so; what it returns ends that.
func trace(tb testing.TB, prefix string) func() {
	tb.Helper()
	spec, err := loadTuples()
	if err != nil {
		tb.Fatal(err)
	}
	collection := load(tb, spec, nil)
	var links []link.Link
	for name, program := range collection.Programs {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		l, err := attachTrace(spec.Programs[name].AttachType, program)
		if err != nil {
			tb.Fatal(err)
		}
		links = append(links, l)
	}
	return func() {
		for _, l := range links {
			_ = l.Close()
		}
		collection.Close()
	}
}

// attachTrace attaches a program where flows attaches one of its kind.
func attachTrace(attach ebpf.AttachType, program *ebpf.Program) (link.Link, error) {
	if program.Type() == ebpf.Tracing {
		return link.AttachTracing(link.TracingOptions{Program: program})
	}
	root, err := probe.Cgroup2Mount()
	if err != nil {
		return nil, err
	}
	return link.AttachCgroup(link.CgroupOptions{Path: root, Attach: attach, Program: program})
}

// cost returns the CPU time of a call that sends and of one that receives, in ns.
func (c call) cost(tb testing.TB) (send, receive float64) {
	tb.Helper()
	a, b, to := c.sockets(tb)
	defer unix.Close(a)
	defer unix.Close(b)
	var sends, receives []float64
	data, into := make([]byte, 50), make([]byte, 50)
	for range callBursts {
		c.cork(tb, a, 1)
		sends = append(sends, perCall(tb, func() { c.send(a, data, to) }))
		c.cork(tb, a, 0)
		if c.corked && c.kind == unix.SOCK_DGRAM { // it has become one datagram
			c.receive(b, into)
			for range burst {
				c.send(a, data, to)
			}
		}
		receives = append(receives, perCall(tb, func() { c.receive(b, into) }))
	}
	return quartile(sends), quartile(receives)
}

// quartile is what a quarter is below of: what disturbs only adds.
func quartile(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/4]
}

func (c call) cork(tb testing.TB, fd, on int) {
	if !c.corked {
		return
	}
	level, option := unix.IPPROTO_TCP, unix.TCP_CORK
	if c.kind == unix.SOCK_DGRAM {
		level, option = unix.IPPROTO_UDP, unix.UDP_CORK
	}
	must(tb, unix.SetsockoptInt(fd, level, option, on))
}

func perCall(tb testing.TB, do func()) float64 {
	start := threadTime(tb)
	for range burst {
		do()
	}
	return float64(threadTime(tb)-start) / burst
}

func (c call) send(fd int, data []byte, to unix.Sockaddr) {
	if c.names {
		_ = unix.Sendto(fd, data, 0, to)
	} else {
		_, _ = unix.Write(fd, data)
	}
}

func (c call) receive(fd int, into []byte) {
	if c.names {
		_, _, _ = unix.Recvfrom(fd, into, 0)
	} else {
		_, _ = unix.Read(fd, into)
	}
}

// sockets makes two that talk over loopback.
func (c call) sockets(tb testing.TB) (a, b int, to unix.Sockaddr) {
	tb.Helper()
	if c.kind == unix.SOCK_STREAM {
		listener, at := bound(tb, c.kind)
		defer unix.Close(listener)
		a, b = connected(tb, listener, at)
		return a, b, at
	}
	a, from := bound(tb, c.kind)
	b, to = bound(tb, c.kind)
	if !c.names {
		must(tb, unix.Connect(a, to))
		must(tb, unix.Connect(b, from))
	}
	return a, b, to
}

func must(tb testing.TB, err error) {
	if err != nil {
		tb.Helper()
		tb.Fatal(err)
	}
}

// bound makes a socket on a port of its own, which listens if it is TCP's.
func bound(tb testing.TB, kind int) (fd int, at unix.Sockaddr) {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, kind, 0)
	must(tb, err)
	must(tb, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	if kind == unix.SOCK_STREAM {
		must(tb, unix.Listen(fd, 16))
	}
	at, err = unix.Getsockname(fd)
	must(tb, err)
	return fd, at
}

// connected opens a connection.
func connected(tb testing.TB, listener int, at unix.Sockaddr) (a, b int) {
	tb.Helper()
	a, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	must(tb, err)
	must(tb, unix.Connect(a, at))
	b, _, err = unix.Accept(listener)
	must(tb, err)
	return a, b
}

const connectionAdded = "flows, connection opened and closed: CPU"

func connectionRecords() []string { return []string{connectionAdded} }

// measureConnections measures both ends of connections that move nothing.
func measureConnections(t *testing.T, wanted func(string) bool) []record {
	if !wanted(connectionAdded) {
		return nil
	}
	loopback(t)
	pinLast(t)
	listener, at := bound(t, unix.SOCK_STREAM)
	defer unix.Close(listener)
	var with, without []float64
	once := func() {
		a, b := connected(t, listener, at)
		must(t, unix.SetsockoptLinger(a, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})) // no port is kept
		must(t, unix.Close(a))
		must(t, unix.Close(b))
	}
	round := func() float64 {
		var bursts []float64
		for range 50 {
			bursts = append(bursts, perCall(t, once)/1000)
		}
		return median(bursts)
	}
	for range callRounds {
		without = append(without, round())
		end := begin(t, sockets.Filter{})
		with = append(with, round())
		end()
	}
	return []record{newRecord(connectionAdded, "µs", with, without, goal{})}
}

const (
	shortConnections = 5000
	shortLost        = "flows, 5,000 connections of 1 ms by 5,000 processes: lost"
)

func shortRecords() []string { return []string{shortLost} }

// measureShort measures how many of the processes that connect and end at once aren't told,
// with their cgroup.
func measureShort(t *testing.T, wanted func(string) bool) []record {
	if !wanted(shortLost) {
		return nil
	}
	loopback(t)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	sampler := sample(t, sockets.Filter{})
	defer sampler.Close()
	_, err = sampler.Sample(t.Context())
	must(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	script := fmt.Sprintf("for ((i = 0; i < %d; i++)); do (exec 3<>/dev/tcp/127.0.0.1/%d); done", shortConnections, port)
	if out, err := exec.Command("bash", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	told := map[[2]uint64]bool{}
	for end := time.Now().Add(5 * time.Second); len(told) < shortConnections && time.Now().Before(end); time.Sleep(time.Second / 10) {
		s, err := sampler.Sample(t.Context())
		must(t, err)
		for _, row := range s.Rows {
			if row.Closed != nil && int(row.Peer.Port()) == port && row.Command == "bash" && row.Cgroup != 0 {
				told[[2]uint64{uint64(row.PID), row.Start}] = true
			}
		}
	}
	lost := float64(shortConnections - len(told))
	return []record{newRecord(shortLost, "processes", []float64{lost}, nil, goal{"value", 0})}
}

const (
	idle = 20_000 // sockets, half of them of each of two processes
	busy = 2_000
)

// flowWatches are the mechanisms of watches that are measured.
var flowWatches = []string{"tp_btf", "sock_diag"}

func flowWatchCPU(backend string) string {
	return "watch flows --backend " + backend + ", 20,000 idle and 2,000 busy sockets, every 1 s: CPU"
}

func flowWatchMemory(backend string) string {
	return "watch flows --backend " + backend + ", 20,000 idle and 2,000 busy sockets: peak RSS"
}

func flowWatchRecords() (names []string) {
	for _, backend := range flowWatches {
		names = append(names, flowWatchCPU(backend), flowWatchMemory(backend))
	}
	return names
}

// measureFlowWatch measures what part of a CPU a watch of flows uses that takes a sample each
// second.
func measureFlowWatch(t *testing.T, wanted func(string) bool) (records []record) {
	if !anyOf(flowWatchRecords(), wanted) {
		return nil
	}
	bpfnet, _ := programs(t)
	loopback(t)
	openMany(t)
	for _, backend := range flowWatches {
		watch := exec.Command(bpfnet, "watch", "flows", "--limit", "20", "--interval", "1s", "-o", "ndjson", "--backend", backend)
		watch.Env = append(os.Environ(), "BPFNET_BPFFS="+testkit.Root(t))
		stdout, err := watch.StdoutPipe()
		must(t, err)
		must(t, watch.Start())
		documents := bufio.NewReaderSize(stdout, 1<<20)
		next := func() {
			_, err := documents.ReadString('\n')
			must(t, err)
		}
		next()
		next()
		var parts []float64
		for range 15 {
			before, start := cpuOf(t, watch.Process.Pid), time.Now()
			next()
			parts = append(parts, 100*(cpuOf(t, watch.Process.Pid)-before)/time.Since(start).Seconds())
		}
		records = append(records,
			newRecord(flowWatchCPU(backend), "%", parts, nil, atMost(3)),
			newRecord(flowWatchMemory(backend), "MB", []float64{peakOf(t, watch.Process.Pid)}, nil, atMost(60)))
		_ = watch.Process.Kill()
		_ = watch.Wait()
	}
	return records
}

// dials has the test binary open connections to an address, answer what comes on the busy
// ones, and wait until its input ends.
const dials = "BPFNET_BENCH_DIALS"

func init() {
	address := os.Getenv(dials)
	if address == "" {
		return
	}
	for i := range (idle + busy) / 2 {
		conn, err := net.Dial("tcp4", address)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if i < busy/2 {
			go func() { _, _ = io.Copy(conn, conn) }()
		}
		defer conn.Close()
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// openMany opens connections to another process and keeps some of them busy, as long as the
// test runs.
func openMany(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), dials+"="+listener.Addr().String())
	child.Stderr = os.Stderr
	stdin, err := child.StdinPipe()
	must(t, err)
	must(t, child.Start())
	var conns []net.Conn
	for range (idle + busy) / 2 {
		conn, err := listener.Accept()
		must(t, err)
		conns = append(conns, conn)
	}
	done := make(chan bool)
	t.Cleanup(func() {
		close(done)
		_ = stdin.Close()
		_ = child.Wait()
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
	go func() {
		for tick := time.NewTicker(time.Second / 2); ; {
			select {
			case <-done:
				return
			case <-tick.C:
				for _, conn := range conns[:busy/2] {
					_, _ = conn.Write(make([]byte, 50))
				}
			}
		}
	}()
}
