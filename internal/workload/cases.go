package workload

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/testkit"
)

// Case is traffic with known bytes.
type Case struct {
	Name     string // "tcp4/peek"
	Existing bool   // some of its sockets are there, and were used, when the test loads
	// begin does what comes before the test loads, and returns the rest.
	begin func(*world) func()
}

var (
	streams   = []string{"tcp4", "tcp6", "tcp46"}
	datagrams = []string{"udp4", "udp6", "udp46"}
	both      = append(append([]string{}, streams...), datagrams...)
)

// cases are what is done by each of some networks.
var cases = []struct {
	name     string
	networks []string
	run      func(w *world, network string)
}{
	{"plain", append([]string{"mptcp4", "lite4", "lite6"}, both...), plain},
	{"short-reads", streams, shortReads},
	{"peek", both, peek},
	{"waitall", streams, waitAll},
	{"trunc", streams, discard},
	{"trunc", datagrams, truncate},
	{"partial", streams, partial},
	{"unsent", streams, unsent},
	{"unsent-fin", streams, unsentFin},
	{"eagain", both, eagain},
	{"sendfile", streams, func(w *world, n string) { files(w, n, "sendfile", "", 300000, 300000) }},
	{"sendfile", datagrams, func(w *world, n string) { files(w, n, "sendfile", "", 1000, 3000) }},
	{"splice", streams, func(w *world, n string) { files(w, n, "splice", "splice", 60000, 300000) }},
	{"splice", datagrams, func(w *world, n string) { files(w, n, "splice", "splice", 1000, 3000) }},
	{"vmsplice", streams, func(w *world, n string) { files(w, n, "vmsplice", "splice", 60000, 300000) }},
	{"vmsplice", datagrams, func(w *world, n string) { files(w, n, "vmsplice", "splice", 1000, 3000) }},
	{"mmsg", both, mmsg},
	{"io_uring", both, func(w *world, n string) { uring(w, n, 0, false) }},
	{"io_uring-async", both, func(w *world, n string) { uring(w, n, 0, true) }},
	{"io_uring-polled", both, func(w *world, n string) { uring(w, n, setupPolled, false) }},
	{"io_uring-large", streams, uringLarge},
	{"io_uring-zerocopy", both, uringZerocopy},
	{"fork", both, func(w *world, n string) { forked(w, n)() }},
	{"crowd", both, crowd},
	{"forked-listener", streams, forkedListener},
	{"passed", both, passed},
	{"killed", both, killed},
	{"reconnected", both, reconnected},
	{"self", both, self},
	{"other-family", []string{"tcp46", "udp46"}, otherFamily},
	{"half-closed", streams, func(w *world, n string) { halfClosed(w, n)() }},
	{"reset", streams, reset},
	{"aborted", streams, aborted},
	{"short-lived", streams, shortLived},
	{"short-lived", datagrams, shortLivedDatagrams},
	{"fast-open", streams, fastOpen},
	{"zerocopy", streams, zerocopy},
	{"zerocopy-receive", streams, zerocopyReceived},
	{"oob", streams, urgent},
	{"oob-unread", streams, urgentUnread},
	{"oob-inline", streams, urgentInline},
	{"reuseport", streams, reusePort},
	{"reuseport", datagrams, reusePortDatagrams},
	{"threads", both, threads},
	{"10MB", streams, large},
	{"unconnected", append([]string{"lite4"}, datagrams...), unconnected},
	{"nameless", datagrams, nameless},
	{"elsewhere", datagrams, elsewhere},
	{"zero-length", datagrams, zeroLength},
	{"cork", datagrams, cork},
	{"segments", datagrams, segments},
	{"error-queue", []string{"udp4", "udp6"}, errorQueue},
	{"dual-stack", []string{"udp46"}, dualStack},
	{"echo", []string{"ping4", "ping6"}, ping},
	{"echo", []string{"icmp4", "icmp6"}, rawPing},
	{"raw", []string{"raw4", "raw6"}, raw},
	{"header", []string{"packet"}, header},
}

// existing are cases with sockets that are older than what counts them.
var existing = []struct {
	name     string
	networks []string
	begin    func(w *world, network string) func()
}{
	{"existing", both, existingUsed},
	{"existing-listener", streams, existingListener},
	{"existing-queue", streams, existingQueue},
	{"existing-fin", streams, existingFin},
	{"existing-closed", streams, halfClosed},
	{"existing-fork", both, forked},
}

// Cases returns all cases.
func Cases() []Case {
	var list []Case
	for _, c := range cases {
		for _, n := range c.networks {
			list = append(list, Case{n + "/" + c.name, false, func(w *world) func() { return func() { c.run(w, n) } }})
		}
	}
	for _, c := range existing {
		for _, n := range c.networks {
			list = append(list, Case{n + "/" + c.name, true, func(w *world) func() { return c.begin(w, n) }})
		}
	}
	return list
}

func stream(network string) bool { return networks[network].typ == unix.SOCK_STREAM }

// pair makes two processes with a socket each, connected to each other.
func (w *world) pair(network string) (a, b socket) {
	w.Helper()
	if stream(network) {
		listener := w.listen(network)
		a := w.client().open(network, true)
		a.connect(listener.name())
		return a, listener.accept()
	}
	a, b = w.client().open(network, true), w.server().open(network, true)
	a.connect(b.name())
	b.connect(a.name())
	return a, b
}

// listen makes a process with a bound socket, which listens if it is one for streams.
func (w *world) listen(network string) socket {
	w.Helper()
	s := w.server().open(network, true)
	if stream(network) {
		s.do(request{Op: "listen", FD: s.fd, N: 512})
	}
	return s
}

func (s socket) accept() socket {
	s.w.Helper()
	return socket{s.process, s.do(request{Op: "accept", FD: s.fd}).FD}
}

func (s socket) state(state int) {
	s.w.Helper()
	s.do(request{Op: "state", FD: s.fd, N: state})
}

// exchange sends n bytes while they are received.
func exchange(from, to socket, send, receive request, n int) {
	from.w.Helper()
	receive.Op, receive.FD = "receive", to.fd
	to.begin(receive)
	from.transmit(send)
	if got := to.await(); got.N != n || got.Errno != 0 || got.Error != "" {
		from.w.Fatalf("received %+v, not %d: %+v", got, n, receive)
	}
}

func plain(w *world, network string) {
	a, b := w.pair(network)
	for i, calls := range [][2]string{{"", ""}, {"write", "read"}, {"writev", "readv"}, {"sendmsg", "recvmsg"}} {
		n := 1000 + i
		exchange(a, b, request{Name: calls[0], Size: n}, request{Name: calls[1], Size: n}, n)
		exchange(b, a, request{Name: calls[0], Size: 1}, request{Name: calls[1], Size: 65536}, 1)
		exchange(b, a, request{Name: calls[0], Size: 9000}, request{Name: calls[1], Size: 9000, N: 9000}, 9000)
	}
}

func shortReads(w *world, network string) {
	a, b := w.pair(network)
	for range 5 {
		exchange(a, b, request{Size: 100}, request{Size: 1 << 20}, 100)
	}
	a.send(1000, 0)
	b.receive(request{Size: 7, N: 1000}, 1000)
}

func peek(w *world, network string) {
	a, b := w.pair(network)
	a.send(1000, 0)
	for range 3 {
		b.receive(request{Size: 400, Flags: unix.MSG_PEEK}, 400)
	}
	if !stream(network) {
		b.receive(request{Size: 10, Flags: unix.MSG_PEEK | unix.MSG_TRUNC}, 1000)
		b.receive(request{Name: "recvmsg", Size: 2000, Flags: unix.MSG_PEEK}, 1000)
		b.receive(request{Size: 2000}, 1000)
		return
	}
	b.receive(request{Size: 1000, Flags: unix.MSG_PEEK | unix.MSG_WAITALL}, 1000)
	b.receive(request{Size: 500, Flags: unix.MSG_PEEK | unix.MSG_TRUNC}, 500)
	b.receive(request{Size: 300}, 300)
	b.receive(request{Name: "recvmsg", Size: 2000, Flags: unix.MSG_PEEK}, 700)
	b.drain(700)
	b.refused(request{Op: "receive", Size: 10, Flags: unix.MSG_PEEK | unix.MSG_DONTWAIT}, unix.EAGAIN)
	b.begin(request{Op: "receive", FD: b.fd, Size: 4000, Flags: unix.MSG_PEEK | unix.MSG_WAITALL})
	for range 4 {
		a.send(1000, 0)
	}
	if got := b.await(); got.N != 4000 {
		w.Fatalf("peeked at %+v", got)
	}
	b.receive(request{Size: 4000, Flags: unix.MSG_WAITALL}, 4000)
}

func waitAll(w *world, network string) {
	a, b := w.pair(network)
	b.begin(request{Op: "receive", FD: b.fd, Size: 10000, Flags: unix.MSG_WAITALL})
	for range 10 {
		a.send(1000, 0)
	}
	if got := b.await(); got.N != 10000 {
		w.Fatalf("received %+v", got)
	}
	a.send(300, 0)
	b.receive(request{Size: 300, Flags: unix.MSG_WAITALL | unix.MSG_PEEK}, 300)
	b.option(unix.SOL_SOCKET, unix.SO_RCVTIMEO, 1000)
	b.receive(request{Size: 10000, Flags: unix.MSG_WAITALL}, 300)
	b.option(unix.SOL_SOCKET, unix.SO_RCVTIMEO, 0)
	a.send(500, 0)
	a.shutdown()
	b.receive(request{Size: 10000, Flags: unix.MSG_WAITALL}, 500)
}

// discard: TCP drops what MSG_TRUNC reads, and it has been received.
func discard(w *world, network string) {
	a, b := w.pair(network)
	a.send(5000, 0)
	b.receive(request{Size: 3000, Flags: unix.MSG_TRUNC | unix.MSG_WAITALL}, 3000)
	b.drain(2000)
}

// truncate: the length of a datagram, or of what there was room for.
func truncate(w *world, network string) {
	a, b := w.pair(network)
	a.send(5000, 0)
	b.receive(request{Size: 100, Flags: unix.MSG_TRUNC}, 5000)
	a.send(3000, 0)
	b.receive(request{Size: 1000}, 1000)
	w.discarded += 2000
}

// partial fills buffers by calls that take less than they are given.
func partial(w *world, network string) {
	a, b := w.pair(network)
	a.option(unix.SOL_SOCKET, unix.SO_SNDBUF, 50000)
	b.drain(a.fill(request{Flags: unix.MSG_DONTWAIT}))
	b.drain(a.fill(request{Flags: unix.MSG_DONTWAIT, Name: "sendmsg"}))
	a.option(unix.SOL_SOCKET, unix.SO_SNDTIMEO, 50000)
	for _, name := range []string{"", "sendfile"} {
		b.drain(a.fill(request{Name: name}))
	}
}

// fill sends until there is no more room, and returns how much there was.
func (s socket) fill(r request) int {
	s.w.Helper()
	r.Op, r.FD, r.N, r.Size = "send", s.fd, 64<<20, 400000
	sent := 0
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		got, err := s.try(r)
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(end) {
			s.w.Fatalf("sent %d: %v", got.N, err)
		}
		sent += got.N
		if got.N%r.Size > 0 { // the room was for a part of a call, and isn't still to come
			return sent
		}
	}
}

// unsent: a part of what a call took is never sent.
func unsent(w *world, network string) {
	a, b := w.pair(network)
	sent := a.fill(request{Flags: unix.MSG_DONTWAIT})
	a.option(unix.SOL_SOCKET, unix.SO_LINGER, 0)
	a.close()
	b.state(unix.BPF_TCP_CLOSE)
	got, err := b.try(request{Op: "receive", FD: b.fd, N: sent, Size: 65536})
	if !errors.Is(err, unix.ECONNRESET) {
		w.Fatalf("received %d: %v", got.N, err)
	}
	w.discarded += sent - got.N
}

// unsentFin: so is the FIN behind it.
func unsentFin(w *world, network string) {
	a, b := w.pair(network)
	w.discarded += a.fill(request{Flags: unix.MSG_DONTWAIT})
	a.close()
	b.close()
}

func eagain(w *world, network string) {
	a, b := w.pair(network)
	for range 3 {
		b.refused(request{Op: "receive", Size: 100, Flags: unix.MSG_DONTWAIT}, unix.EAGAIN)
		exchange(a, b, request{Size: 10}, request{Size: 100}, 10)
	}
	b.option(unix.SOL_SOCKET, unix.SO_RCVTIMEO, 1000)
	b.refused(request{Op: "receive", Size: 100}, unix.EAGAIN)
}

// files moves n bytes without a copy in the process.
func files(w *world, network, send, receive string, size, n int) {
	a, b := w.pair(network)
	exchange(a, b, request{Name: send, Size: size, N: n}, request{Name: receive, Size: 65536, N: n}, n)
	exchange(b, a, request{Name: send, Size: 1000}, request{Name: receive, Size: 1000}, 1000)
}

func mmsg(w *world, network string) {
	a, b := w.pair(network)
	exchange(a, b, request{Name: "sendmmsg", Size: 100, Count: 10, N: 1000}, request{Name: "recvmmsg", Size: 100, Count: 10}, 1000)
	exchange(b, a, request{Name: "sendmmsg", Size: 100, Count: 3, N: 300}, request{Size: 100, N: 300}, 300)
}

// rings gives processes an io_uring each.
func (w *world) rings(flags int, sockets ...socket) {
	w.Helper()
	for _, s := range sockets {
		_, err := s.try(request{Op: "ring", Flags: flags})
		testkit.Needs(w, "io_uring", err, unix.ENOSYS, unix.EPERM)
	}
}

func uring(w *world, network string, setup int, async bool) {
	a, b := w.pair(network)
	w.rings(setup, a, b)
	for i, codes := range [][2]uint8{{opSend, opRecv}, {opSendmsg, opRecvmsg}, {opWrite, opRead}, {opWritev, opReadv}, {opSplice, opSplice}} {
		n := 1000 + i
		exchange(a, b, request{Name: "io_uring", Opcode: codes[0], Async: async, Size: n}, request{Name: "io_uring", Opcode: codes[1], Async: async, Size: 4000}, n)
		exchange(b, a, request{Name: "io_uring", Opcode: codes[0], Async: async, Size: 10}, request{Size: 4000}, 10)
	}
	a.send(100, 0)
	b.receive(request{Name: "io_uring", Opcode: opRecv, Async: async, Size: 50, Flags: unix.MSG_PEEK}, 50)
	b.receive(request{Name: "io_uring", Opcode: opRecvmsg, Async: async, Size: 4000}, 100)
}

// uringLarge: one call that waits for room, and for bytes.
func uringLarge(w *world, network string) {
	const n = 600000
	a, b := w.pair(network)
	a.option(unix.SOL_SOCKET, unix.SO_SNDBUF, 50000)
	w.rings(0, a, b)
	exchange(a, b, request{Name: "io_uring", Opcode: opSend, Size: n, N: n}, request{Size: 65536, N: n}, n)
	exchange(a, b, request{Name: "io_uring", Opcode: opSend, Size: n, N: n, Async: true}, request{Name: "io_uring", Opcode: opRecv, Size: n, N: n, Flags: unix.MSG_WAITALL}, n)
}

func uringZerocopy(w *world, network string) {
	a, b := w.pair(network)
	w.rings(0, a)
	a.begin(request{Op: "send", FD: a.fd, Name: "io_uring", Opcode: opSendZC, Size: 9000})
	got := a.await()
	if got.Errno == unix.EINVAL {
		w.Skip("this kernel has no io_uring without copies")
	}
	b.drain(got.N)
}

// forked: two processes send and receive by one socket.
func forked(w *world, network string) func() {
	a, b := w.pair(network)
	shared := socket{a.fork(a), a.fd}
	use := func() {
		exchange(a, b, request{Size: 100}, request{Size: 1000}, 100)
		exchange(shared, b, request{Size: 200}, request{Size: 1000}, 200)
		exchange(b, a, request{Size: 30}, request{Size: 30}, 30)
		exchange(b, shared, request{Size: 4}, request{Size: 4}, 4)
	}
	use()
	return func() {
		use()
		a.close()
		exchange(shared, b, request{Size: 5000}, request{Size: 5000, N: 5000}, 5000)
	}
}

// passed: a socket goes to a process that hasn't made it.
func passed(w *world, network string) {
	a, b := w.pair(network)
	exchange(a, b, request{Size: 100}, request{Size: 1000}, 100)
	other := w.client()
	other.begin(request{Op: "take"})
	a.do(request{Op: "pass", FD: a.fd, N: other.pid})
	taken := socket{other, other.await().FD}
	exchange(taken, b, request{Size: 70}, request{Size: 1000}, 70)
	exchange(a, b, request{Size: 8}, request{Size: 1000}, 8)
	a.close()
	exchange(taken, b, request{Size: 900}, request{Size: 1000}, 900)
	exchange(b, taken, request{Size: 60}, request{Size: 1000}, 60)
}

// crowd: a socket of many processes.
func crowd(w *world, network string) {
	a, b := w.pair(network)
	for i := range 7 {
		shared := socket{a.fork(a), a.fd}
		exchange(shared, b, request{Size: 100 + i}, request{Size: 1000}, 100+i)
		exchange(b, shared, request{Size: 10 + i}, request{Size: 1000}, 10+i)
	}
	exchange(a, b, request{Size: 5}, request{Size: 1000}, 5)
}

// forkedListener: who accepts hasn't made the listener.
func forkedListener(w *world, network string) {
	listener := w.listen(network)
	to := listener.name()
	worker := socket{listener.fork(listener), listener.fd}
	for i, l := range []socket{worker, listener, worker} {
		a := w.client().open(network, true)
		a.connect(to)
		b := l.accept()
		exchange(a, b, request{Size: 100 + i}, request{Size: 1000}, 100+i)
		exchange(b, a, request{Size: 10 + i}, request{Size: 1000}, 10+i)
	}
}

// killed: a process ends without closing.
func killed(w *world, network string) {
	a, b := w.pair(network)
	exchange(b, a, request{Size: 700}, request{Size: 1000}, 700)
	a.send(300, 0)
	a.shoot()
	b.receive(request{Size: 1000}, 300)
}

// reconnected: a socket has one peer after the other.
func reconnected(w *world, network string) {
	a, b := w.pair(network)
	exchange(a, b, request{Size: 500}, request{Size: 1000}, 500)
	exchange(b, a, request{Size: 40}, request{Size: 1000}, 40)
	a.do(request{Op: "disconnect", FD: a.fd})
	peer := w.listen(network)
	a.connect(peer.name())
	if stream(network) {
		peer = peer.accept()
	} else {
		peer.connect(a.name())
	}
	exchange(a, peer, request{Size: 70}, request{Size: 1000}, 70)
	exchange(peer, a, request{Size: 6}, request{Size: 1000}, 6)
}

// self: a socket that is its own peer.
func self(w *world, network string) {
	a := w.client().open(network, true)
	a.connect(a.name())
	a.send(100, 0)
	a.receive(request{Size: 1000, Flags: unix.MSG_PEEK}, 100)
	a.receive(request{Size: 1000}, 100)
}

// otherFamily: an IPv6 socket becomes one of IPv4.
func otherFamily(w *world, network string) {
	a, b := w.pair(network)
	exchange(a, b, request{Size: 100}, request{Size: 1000}, 100)
	a.option(unix.IPPROTO_IPV6, unix.IPV6_ADDRFORM, unix.AF_INET)
	exchange(a, b, request{Size: 20}, request{Size: 1000}, 20)
	exchange(b, a, request{Size: 3}, request{Size: 1000}, 3)
}

// halfClosed: what a socket has in its queue is read when it is closed already.
func halfClosed(w *world, network string) func() {
	a, b := w.pair(network)
	exchange(a, b, request{Size: 10}, request{Size: 100}, 10)
	b.send(5000, 0)
	a.shutdown()
	b.receive(request{Size: 100}, 0)
	b.close()
	a.state(unix.BPF_TCP_CLOSE)
	return func() {
		a.receive(request{Size: 2000}, 2000)
		a.drain(3000)
		a.receive(request{Size: 100}, 0)
	}
}

// reset: the peer closes without having read all.
func reset(w *world, network string) {
	a, b := w.pair(network)
	a.send(1500, 0)
	b.receive(request{Size: 500}, 500)
	b.send(5000, 0)
	a.receive(request{Size: 2000, Flags: unix.MSG_WAITALL}, 2000)
	b.close()
	w.discarded += 1000
	a.state(unix.BPF_TCP_CLOSE)
	a.drain(3000)
	a.refused(request{Op: "receive", Size: 100}, unix.ECONNRESET)
	a.refused(request{Op: "send", Size: 100, Flags: unix.MSG_NOSIGNAL}, unix.EPIPE)
}

// aborted: the sender itself resets.
func aborted(w *world, network string) {
	a, b := w.pair(network)
	a.send(3000, 0)
	b.receive(request{Size: 1000, Flags: unix.MSG_WAITALL}, 1000)
	a.option(unix.SOL_SOCKET, unix.SO_LINGER, 0)
	a.close()
	b.state(unix.BPF_TCP_CLOSE)
	b.drain(2000)
}

// bursts has processes make Count connections each.
func (w *world) bursts(processes int, r request) {
	w.Helper()
	var list []*process
	for range processes {
		list = append(list, w.client())
	}
	for _, p := range list {
		p.begin(r)
	}
	for _, p := range list {
		if got := p.await(); got.Errno != 0 || got.Error != "" {
			w.Fatalf("%+v: %+v", r, got)
		}
	}
}

func shortLived(w *world, network string) {
	listener := w.listen(network)
	to := listener.name()
	listener.begin(request{Op: "serve", FD: listener.fd, Count: 100})
	w.bursts(5, request{Op: "burst", Name: network, Addr: to, Count: 20, Size: 55})
	if got := listener.await(); got.N != 100 {
		w.Fatalf("served %+v", got)
	}
}

func shortLivedDatagrams(w *world, network string) {
	b := w.server().open(network, true)
	w.bursts(5, request{Op: "burst", Name: network, Addr: b.name(), Count: 20, Size: 55})
	b.receive(request{Size: 1000, N: 100 * 55}, 100*55)
}

// synData is TCPI_OPT_SYN_DATA.
const synData = 1 << 5

// fastOpen: bytes in the SYN.
func fastOpen(w *world, network string) {
	listener := w.listen(network)
	client := w.client()
	for _, p := range []*process{listener.process, client} {
		p.do(request{Op: "sysctl", Name: "ipv4/tcp_fastopen=519"}) // both sides, without cookies
	}
	listener.option(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16)
	talk := func(a socket) {
		b := listener.accept()
		if options := b.do(request{Op: "state", FD: b.fd, N: unix.BPF_TCP_ESTABLISHED}).N; options&synData == 0 {
			w.Fatalf("the SYN had no data: options %#x", options)
		}
		b.drain(300)
		exchange(b, a, request{Size: 20}, request{Size: 100}, 20)
		exchange(a, b, request{Size: 1000}, request{Size: 1000}, 1000)
	}
	a := client.open(network, true)
	a.transmit(request{Addr: listener.name(), Size: 300, Flags: unix.MSG_FASTOPEN})
	talk(a)
	a = client.open(network, true)
	a.option(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
	a.connect(listener.name())
	a.send(300, 0)
	talk(a)
}

func zerocopy(w *world, network string) {
	a, b := w.pair(network)
	a.option(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
	exchange(a, b, request{Size: 50000, N: 200000, Flags: unix.MSG_ZEROCOPY}, request{Size: 65536, N: 200000}, 200000)
	a.errors(0)
}

// errors reads one message of the error queue, of n bytes.
func (s socket) errors(n int) {
	s.w.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		got, err := s.try(request{Op: "receive", Name: "recvmsg", FD: s.fd, Size: 1000, Flags: unix.MSG_ERRQUEUE})
		if err == nil && got.N == n {
			return
		}
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(end) {
			s.w.Fatalf("the error queue gives %d, %v, not %d", got.N, err, n)
		}
	}
}

// zerocopyReceived: bytes that no call for receiving returns.
func zerocopyReceived(w *world, network string) {
	a, b := w.pair(network)
	exchange(a, b, request{Size: 900}, request{Name: "getsockopt", Size: 1000, N: 900}, 900)
	a.option(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
	exchange(a, b, request{Size: 4096, N: 1 << 18, Flags: unix.MSG_ZEROCOPY | unix.MSG_EOR}, request{Name: "getsockopt", Size: 100, N: 1 << 18}, 1<<18) // of whole pages, which can be mapped
}

func urgent(w *world, network string) {
	a, b := w.pair(network)
	a.send(10, unix.MSG_OOB)
	b.receive(request{Size: 100, Flags: unix.MSG_WAITALL}, 9)
	b.receive(request{Size: 100, Flags: unix.MSG_OOB}, 1)
	exchange(a, b, request{Size: 5}, request{Size: 100}, 5)
}

// urgentUnread: the urgent byte is never read.
func urgentUnread(w *world, network string) {
	a, b := w.pair(network)
	a.send(10, unix.MSG_OOB)
	a.send(5, 0)
	b.drain(14)
	w.discarded++
}

func urgentInline(w *world, network string) {
	a, b := w.pair(network)
	b.option(unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	a.send(10, unix.MSG_OOB)
	a.send(5, 0)
	b.drain(15)
}

// share makes another process bind the address of a socket.
func (w *world) share(network string, s socket) socket {
	w.Helper()
	p := w.server()
	return socket{process: p, fd: p.do(request{Op: "socket", Name: network, Addr: s.name()}).FD}
}

func reusePort(w *world, network string) {
	first := w.listen(network)
	second := w.share(network, first)
	second.do(request{Op: "listen", FD: second.fd, N: 512})
	w.bursts(2, request{Op: "burst", Name: network, Addr: first.name(), Count: 20, Size: 55})
	for served := 0; served < 40; {
		for _, s := range []socket{first, second} {
			served += s.do(request{Op: "serve", FD: s.fd}).N
		}
	}
}

func reusePortDatagrams(w *world, network string) {
	first := w.server().open(network, true)
	second := w.share(network, first)
	w.bursts(2, request{Op: "burst", Name: network, Addr: first.name(), Count: 20, Size: 55})
	for received := 0; received < 40*55; {
		for _, s := range []socket{first, second} {
			got, err := s.try(request{Op: "receive", FD: s.fd, Size: 1000, N: 40 * 55, Flags: unix.MSG_DONTWAIT})
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				w.Fatal(err)
			}
			received += got.N
		}
	}
}

// threads: several send at the same time, and have names of their own.
func threads(w *world, network string) {
	a, b := w.pair(network)
	b.begin(request{Op: "receive", FD: b.fd, Size: 65536, N: 4 * 20 * 1000})
	if got := a.do(request{Op: "threads", FD: a.fd, Count: 4, Size: 1000, N: 20 * 1000}).N; got != 4*20*1000 {
		w.Fatalf("sent %d", got)
	}
	if got := b.await(); got.N != 4*20*1000 {
		w.Fatalf("received %+v", got)
	}
}

func large(w *world, network string) {
	const n = 10 << 20
	a, b := w.pair(network)
	exchange(a, b, request{Size: 65536, N: n}, request{Size: 1 << 20, N: n}, n)
}

// unconnected: each of two clients with each of two servers.
func unconnected(w *world, network string) {
	clients := []socket{w.client().open(network, true), w.client().open(network, false)}
	servers := []socket{w.server().open(network, true), w.server().open(network, true)}
	for i, c := range clients {
		for j, s := range servers {
			n := 100 + 10*i + j
			c.sendTo(s.name(), n)
			s.receive(request{Name: "recvmmsg", Count: 1, Size: 1000}, n)
			if i == 0 {
				s.sendTo(c.name(), 2*n)
				c.receive(request{Size: 1000}, 2*n)
			}
		}
	}
}

// nameless: calls don't ask who has sent what they receive.
func nameless(w *world, network string) {
	b := w.server().open(network, true)
	for i := range 2 {
		a := w.client().open(network, true)
		a.sendTo(b.name(), 100+i)
		b.receive(request{Name: "read", Size: 1000}, 100+i)
		a.sendTo(b.name(), 10+i)
		b.receive(request{Size: 1000}, 10+i)
	}
}

// elsewhere: sendto names another peer than the socket is connected to.
func elsewhere(w *world, network string) {
	a, b := w.pair(network)
	other := w.server().open(network, true)
	exchange(a, b, request{Size: 100}, request{Size: 1000}, 100)
	exchange(a, other, request{Size: 70, Addr: other.name()}, request{Size: 1000}, 70)
}

func zeroLength(w *world, network string) {
	a, b := w.pair(network)
	for _, n := range []int{0, 0, 5, 0} {
		a.send(n, 0)
		b.receive(request{Size: 100}, n)
	}
}

// cork: several calls make one datagram.
func cork(w *world, network string) {
	a, b := w.pair(network)
	a.send(100, unix.MSG_MORE)
	a.send(200, 0)
	b.receive(request{Size: 1000}, 300)
	a.option(unix.IPPROTO_UDP, unix.UDP_CORK, 1)
	a.send(30, 0)
	a.send(4, 0)
	a.option(unix.IPPROTO_UDP, unix.UDP_CORK, 0)
	b.receive(request{Size: 1000}, 34)
}

// segments: one call makes several datagrams, which may be received at once.
func segments(w *world, network string) {
	a, b := w.pair(network)
	a.option(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000)
	exchange(a, b, request{Size: 4500}, request{Size: 65536, N: 4500}, 4500)
	b.option(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	exchange(a, b, request{Size: 4500}, request{Name: "recvmsg", Size: 65536, N: 4500}, 4500)
}

// errorQueue: what was sent comes back, and isn't received.
func errorQueue(w *world, network string) {
	a, b := w.pair(network)
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	if network == "udp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	a.option(level, option, 1)
	exchange(a, b, request{Size: 50}, request{Size: 100}, 50)
	b.close()
	a.send(200, 0)
	w.discarded += 200
	a.errors(200)
}

// dualStack: a socket of any address has peers of both families.
func dualStack(w *world, network string) {
	p := w.server()
	wide := socket{process: p, fd: p.do(request{Op: "socket", Name: network, Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), 0)}).FD}
	port := wide.name().Port()
	for i, n := range []string{"udp4", "udp6"} {
		c := w.client().open(n, true)
		c.sendTo(netip.AddrPortFrom(p.address(n), port), 100+i)
		wide.receive(request{Size: 1000}, 100+i)
		to := c.name()
		wide.sendTo(netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port()), 10+i)
		c.receive(request{Size: 1000}, 10+i)
	}
}

// ping: sockets for ICMP echo requests.
func ping(w *world, network string) {
	p := w.client()
	p.do(request{Op: "sysctl", Name: "ipv4/ping_group_range=0 0"})
	to := netip.AddrPortFrom(w.server().address(network), 0)
	a := p.open(network, true)
	a.sendTo(to, 64)
	a.receive(request{Size: 1000}, 64)
	a = p.open(network, true)
	a.connect(to)
	a.send(100, 0)
	a.receive(request{Name: "recvmsg", Size: 1000}, 100)
}

// rawPing: raw sockets with ICMP; the IPv4 header is received, too.
func rawPing(w *world, network string) {
	p := w.client()
	to := netip.AddrPortFrom(w.server().address(network), 0)
	a := p.open(network, true)
	more := 20
	if network == "icmp6" {
		more = 0
		a.option(unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, 129)
	} else {
		a.option(unix.SOL_RAW, 1, ^1) // ICMP_FILTER: all but answers
	}
	a.sendTo(to, 64)
	a.receive(request{Size: 1000}, 64+more)
	a.connect(to)
	a.send(100, 0)
	a.receive(request{Size: 1000}, 100+more)
}

func raw(w *world, network string) {
	a, b := w.client().open(network, true), w.server().open(network, true)
	more := 20
	if network == "raw6" {
		more = 0
	}
	a.connect(b.name())
	a.send(100, 0)
	b.receive(request{Size: 1000}, 100+more)
	b.sendTo(netip.AddrPortFrom(a.name().Addr(), 0), 300)
	a.receive(request{Size: 1000}, 300+more)
}

// header: the process makes the IPv4 header itself.
func header(w *world, network string) {
	b := w.server().open("raw4", true)
	a := w.client().open(network, false)
	a.sendTo(netip.AddrPortFrom(b.name().Addr(), 0), 100)
	b.receive(request{Size: 1000}, 100)
}

// existingUsed: a part of what was sent has been received.
func existingUsed(w *world, network string) func() {
	a, b := w.pair(network)
	for range 3 {
		a.send(1000, 0)
		b.send(100, 0)
	}
	b.receive(request{Size: 1000}, 1000)
	a.receive(request{Size: 100}, 100)
	return func() {
		a.receive(request{Size: 100, N: 200}, 200)
		b.receive(request{Size: 1000, N: 2000}, 2000)
		exchange(a, b, request{Size: 700}, request{Size: 1000}, 700)
		exchange(b, a, request{Size: 70}, request{Size: 1000}, 70)
	}
}

// existingListener: only the listener is there.
func existingListener(w *world, network string) func() {
	listener := w.listen(network)
	return func() {
		a := w.client().open(network, true)
		a.connect(listener.name())
		b := listener.accept()
		exchange(a, b, request{Size: 700}, request{Size: 1000}, 700)
		exchange(b, a, request{Size: 70}, request{Size: 1000}, 70)
	}
}

// existingQueue: the connection is there, and has data, but wasn't accepted.
func existingQueue(w *world, network string) func() {
	listener := w.listen(network)
	a := w.client().open(network, true)
	a.connect(listener.name())
	a.send(500, 0)
	return func() {
		b := listener.accept()
		b.drain(500)
		exchange(a, b, request{Size: 700}, request{Size: 1000}, 700)
		exchange(b, a, request{Size: 70}, request{Size: 1000}, 70)
	}
}

// existingFin: the peer has closed, and what it sent before wasn't read.
func existingFin(w *world, network string) func() {
	a, b := w.pair(network)
	a.send(500, 0)
	a.shutdown()
	b.state(unix.BPF_TCP_CLOSE_WAIT)
	return func() {
		b.receive(request{Size: 200}, 200)
		b.drain(300)
		b.receive(request{Size: 100}, 0)
		exchange(b, a, request{Size: 70}, request{Size: 1000}, 70)
	}
}
