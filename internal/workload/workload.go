// Package workload makes traffic of sockets whose bytes are exactly known, process by
// process, for tests of what counts them. Processes are the test binary itself, whose
// TestMain calls Main: guests have nothing else.
package workload

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// Expected is what one process has moved through one socket, with one peer. Processes
// have a row only for what moved something: all others are 0.
type Expected struct {
	PID       int
	StartTime uint64 // of the process, field 22 of /proc/PID/stat: ticks of 10 ms of CLOCK_BOOTTIME
	Cookie    uint64 // of the socket (SO_COOKIE)
	Transport string // "tcp", "mptcp", "udp", "udplite", "icmp" (ping sockets), "raw" (all others)
	Protocol  int    // of IP
	Family    int    // unix.AF_INET or AF_INET6; AF_INET where the peer's address is a mapped one
	Local     netip.AddrPort
	// Peer is what the socket is connected to, or the other end of datagrams, invalid
	// where the call didn't ask for it; of raw and ping sockets the port has no meaning.
	Peer      netip.AddrPort
	Connected bool
	// What calls returned, without what they peeked at, took from the error queue, or
	// took before the test was told to load.
	TransmitBytes, ReceiveBytes uint64
	// Calls that moved more than 0 bytes, each message of sendmmsg and recvmmsg being
	// one; -1 where one call moves them in steps that kernels choose.
	TransmitCalls, ReceiveCalls int64
}

// key returns all but the counters.
func (e Expected) key() Expected {
	e.TransmitBytes, e.ReceiveBytes, e.TransmitCalls, e.ReceiveCalls = 0, 0, 0, 0
	return e
}

func (e *Expected) add(o Expected) {
	e.TransmitBytes += o.TransmitBytes
	e.ReceiveBytes += o.ReceiveBytes
	e.TransmitCalls = calls(e.TransmitCalls, o.TransmitCalls)
	e.ReceiveCalls = calls(e.ReceiveCalls, o.ReceiveCalls)
}

// calls adds numbers of calls: what isn't defined of a part, isn't of the whole.
func calls(a, b int64) int64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

// BySocket sums the peers of sockets that aren't connected: Peer is invalid then.
func BySocket(rows []Expected) []Expected {
	rows = slices.Clone(rows)
	for i := range rows {
		if !rows[i].Connected {
			rows[i].Peer = netip.AddrPort{}
		}
	}
	return sum(rows)
}

// sum makes one row of those with the same key, in the order of pids.
func sum(rows []Expected) []Expected {
	var summed []Expected
	at := map[Expected]int{}
	for _, r := range rows {
		i, found := at[r.key()]
		if found {
			summed[i].add(r)
			continue
		}
		at[r.key()] = len(summed)
		summed = append(summed, r)
	}
	slices.SortStableFunc(summed, func(a, b Expected) int { return cmp.Compare(a.PID, b.PID) })
	return summed
}

func total(rows []Expected) (sent, received int) {
	for _, r := range rows {
		sent += int(r.TransmitBytes)
		received += int(r.ReceiveBytes)
	}
	return sent, received
}

// Side is where processes run: a network namespace and its addresses.
type Side struct {
	NetNS      string // its path
	IPv4, IPv6 netip.Addr
}

// Place is where the two sides of a case are.
type Place struct{ Client, Server Side }

// Loopback makes a network namespace in which both sides are, on lo.
func Loopback(t testing.TB) Place {
	t.Helper()
	ns := testkit.NetNS(t)
	a := Side{ns, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("fd77::1")}
	b := Side{ns, netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("fd77::2")}
	err := netns.Do(ns, func() error {
		for _, s := range []Side{a, b} {
			mask := &net.IPNet{IP: s.IPv6.AsSlice(), Mask: net.CIDRMask(128, 128)}
			if err := netlink.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}, &netlink.Addr{IPNet: mask, Flags: unix.IFA_F_NODAD}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return Place{a, b}
}

// Veth makes two network namespaces, joined by a veth pair.
func Veth(t testing.TB) Place {
	t.Helper()
	a, b := testkit.Pair(t)
	return Place{
		Side{a, netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")},
		Side{b, netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")},
	}
}

// Hooks are when a test is asked to do something. Each may be nil.
type Hooks struct {
	// Load begins to count. The sockets of a Case that is Existing are there; those of
	// others aren't, nor are their processes.
	Load func()
	// Open may look at the counters while all sockets are open that aren't short-lived;
	// nothing moves meanwhile.
	Open func([]Expected)
}

// Run runs a case, ends its processes, and returns what they have moved since Load.
// The test is skipped where the kernel lacks what the case needs.
func Run(t testing.TB, c Case, place Place, hooks Hooks) []Expected {
	t.Helper()
	w := &world{TB: t, place: place}
	var open func()
	if hooks.Open != nil {
		open = func() { hooks.Open(w.expected()) }
	}
	return w.run(c, hooks.Load, open)
}

func (w *world) run(c Case, load, open func()) []Expected {
	w.Helper()
	w.Cleanup(w.kill)
	then := c.begin(w)
	if c.Existing {
		sent, received := total(w.expected())
		w.queued, w.discarded = sent-received-w.discarded, 0
		w.each(request{Op: "reset"})
	}
	if load != nil {
		load()
	}
	then()
	if open != nil {
		open()
	}
	w.each(request{Op: "close", FD: all})
	rows := w.expected()
	for _, p := range slices.Backward(w.procs) { // who was forked before who waits for it
		p.end()
	}
	return rows
}

// world is the processes of a case.
type world struct {
	testing.TB
	place     Place
	procs     []*process
	discarded int        // bytes that were sent and that nobody has read
	gone      []Expected // of processes that were killed
	queued    int        // bytes that were sent before the test loaded, and weren't read then
}

func (w *world) each(r request) {
	for _, p := range w.procs {
		p.do(r)
	}
}

func (w *world) expected() []Expected {
	rows := slices.Clone(w.gone)
	for _, p := range w.procs {
		rows = append(rows, p.do(request{Op: "report"}).Rows...)
	}
	return sum(rows)
}

func (w *world) kill() {
	for _, p := range slices.Backward(w.procs) {
		p.kill()
	}
}

// patience is how long a process may take for one request.
const patience = 2 * time.Minute

// process is one that does what it is told.
type process struct {
	w        *world
	side     Side
	pid      int
	kill     func()
	requests *os.File
	replies  *os.File
	reader   *json.Decoder
}

func (w *world) client() *process { return w.start(w.place.Client) }
func (w *world) server() *process { return w.start(w.place.Server) }

// start starts a process that is in a network namespace with all its threads.
func (w *world) start(side Side) *process {
	w.Helper()
	p := &process{w: w, side: side}
	child := p.pipes()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = environment(), child[:], os.Stderr
	if err := netns.Do(side.NetNS, cmd.Start); err != nil {
		w.Fatal(err)
	}
	child[0].Close()
	child[1].Close()
	p.kill = sync.OnceFunc(func() { p.close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return p.hello()
}

func environment() []string {
	// Signals that preempt goroutines would cut calls short.
	return append(os.Environ(), variable+"=1", "GODEBUG=asyncpreemptoff=1", "GOMAXPROCS=2")
}

// pipes makes the two pipes to a process, and returns its ends.
func (p *process) pipes() [2]*os.File {
	p.w.Helper()
	in, requests, err := os.Pipe()
	if err != nil {
		p.w.Fatal(err)
	}
	replies, out, err := os.Pipe()
	if err != nil {
		p.w.Fatal(err)
	}
	p.requests, p.replies, p.reader = requests, replies, json.NewDecoder(replies)
	return [2]*os.File{in, out}
}

func (p *process) hello() *process {
	p.w.Helper()
	p.w.procs = append(p.w.procs, p)
	p.pid = p.await().N
	return p
}

// fork makes a process start another one, that inherits sockets, and knows them under
// the same numbers.
func (p *process) fork(sockets ...socket) *process {
	w := p.w
	w.Helper()
	child := &process{w: w, side: p.side}
	ends := child.pipes()
	r := request{Op: "fork", Name: fmt.Sprintf("/proc/%d/fd/", os.Getpid())}
	r.FDs = []int{int(ends[0].Fd()), int(ends[1].Fd())}
	for _, s := range sockets {
		r.FDs = append(r.FDs, s.fd)
	}
	p.do(r)
	ends[0].Close()
	ends[1].Close()
	child.kill = child.close
	return child.hello()
}

func (p *process) close() { p.requests.Close(); p.replies.Close() }

// end makes a process close what it has, and end.
func (p *process) end() {
	p.w.Helper()
	p.do(request{Op: "end"})
	p.kill()
}

// shoot kills a process that has sockets open, and keeps what it has moved.
func (p *process) shoot() {
	p.w.Helper()
	p.w.gone = append(p.w.gone, p.do(request{Op: "report"}).Rows...)
	p.w.procs = slices.DeleteFunc(p.w.procs, func(o *process) bool { return o == p })
	p.kill()
}

// begin tells a process to do something, and await waits until that is done.
func (p *process) begin(r request) {
	p.w.Helper()
	if err := json.NewEncoder(p.requests).Encode(r); err != nil {
		p.w.Fatalf("%s: %v", r.Op, err)
	}
}

func (p *process) await() reply {
	p.w.Helper()
	_ = p.replies.SetReadDeadline(time.Now().Add(patience))
	var got reply
	if err := p.reader.Decode(&got); err != nil {
		p.w.Fatalf("process %d: %v", p.pid, err)
	}
	return got
}

// try returns what a call returned, and its error.
func (p *process) try(r request) (reply, error) {
	p.w.Helper()
	p.begin(r)
	got := p.await()
	if got.Errno != 0 {
		return got, got.Errno
	}
	if got.Error != "" {
		return got, errors.New(got.Error)
	}
	return got, nil
}

func (p *process) do(r request) reply {
	p.w.Helper()
	got, err := p.try(r)
	if err != nil {
		p.w.Fatalf("%s in process %d: %v (%+v)", r.Op, p.pid, err, r)
	}
	return got
}

// socket is one of a process.
type socket struct {
	*process
	fd int
}

// open makes a socket, bound to an address of the process's side if it may.
func (p *process) open(network string, bound bool) socket {
	p.w.Helper()
	r := request{Op: "socket", Name: network}
	if bound {
		r.Addr = netip.AddrPortFrom(p.address(network), 0)
	}
	got, err := p.try(r)
	testkit.Needs(p.w, networks[network].what, err, unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT)
	return socket{p, got.FD}
}

// address returns the address of the process's side that a network uses.
func (p *process) address(network string) netip.Addr {
	n := networks[network]
	switch {
	case n.domain == unix.AF_INET:
		return p.side.IPv4
	case n.mapped:
		return netip.AddrFrom16(p.side.IPv4.As16())
	}
	return p.side.IPv6
}

func (s socket) name() netip.AddrPort {
	s.w.Helper()
	return s.do(request{Op: "name", FD: s.fd}).Addr
}

func (s socket) option(level, option, value int) {
	s.w.Helper()
	s.do(request{Op: "option", FD: s.fd, Level: level, Option: option, N: value})
}

func (s socket) connect(to netip.AddrPort) {
	s.w.Helper()
	s.do(request{Op: "connect", FD: s.fd, Addr: to})
}

func (s socket) close()    { s.w.Helper(); s.do(request{Op: "close", FD: s.fd}) }
func (s socket) shutdown() { s.w.Helper(); s.do(request{Op: "shutdown", FD: s.fd}) }

// send sends size bytes in one call, all of which have to be taken.
func (s socket) send(size, flags int) {
	s.w.Helper()
	s.transmit(request{Size: size, Flags: flags})
}

func (s socket) sendTo(to netip.AddrPort, size int) {
	s.w.Helper()
	s.transmit(request{Size: size, Addr: to})
}

// transmit makes a call that has to take all.
func (s socket) transmit(r request) {
	s.w.Helper()
	r.Op, r.FD = "send", s.fd
	if got := s.do(r).N; got != max(r.N, r.Size) {
		s.w.Fatalf("sent %d of %+v", got, r)
	}
}

// receive makes one call, or as many as N bytes need, that have to give want bytes.
func (s socket) receive(r request, want int) {
	s.w.Helper()
	r.Op, r.FD = "receive", s.fd
	if got := s.do(r).N; got != want {
		s.w.Fatalf("received %d, not %d: %+v", got, want, r)
	}
}

// drain receives n bytes in calls with large buffers.
func (s socket) drain(n int) { s.w.Helper(); s.receive(request{N: n, Size: 65536}, n) }

// refused makes a call that has to fail.
func (s socket) refused(r request, want unix.Errno) {
	s.w.Helper()
	r.FD = s.fd
	if got, err := s.try(r); !errors.Is(err, want) {
		s.w.Fatalf("%+v gives %d, %v, not %v", r, got.N, err, want)
	}
}
