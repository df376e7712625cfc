package flow

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
	"bpfnet/internal/sockets"
	"bpfnet/internal/testkit"
	"bpfnet/internal/workload"
)

// site is a network namespace.
type site struct {
	testing.TB
	path  string
	inode uint64
	port  int // of the listener that comes next
}

// newSite has one with a process in it.
func newSite(t testing.TB) *site {
	t.Helper()
	s := newNamed(t)
	resident := exec.Command("sleep", "60")
	s.in(resident.Start)
	t.Cleanup(func() { _ = resident.Process.Kill(); _ = resident.Wait() })
	return s
}

// newNamed has one with nothing but a name.
func newNamed(t testing.TB) *site {
	t.Helper()
	s := &site{TB: t, path: testkit.NetNS(t), port: 4000}
	var err error
	if s.inode, err = netns.Inode(s.path); err != nil {
		t.Fatal(err)
	}
	return s
}

// in runs fn in the namespace.
func (s *site) in(fn func() error) {
	s.Helper()
	if err := netns.Do(s.path, fn); err != nil {
		s.Fatal(err)
	}
}

// sysctl sets what is below net in /proc/sys.
func (s *site) sysctl(name, value string) {
	s.Helper()
	s.in(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
}

func (s *site) loopbackIs(up bool) {
	s.Helper()
	s.in(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(lo)
		}
		return netlink.LinkSetDown(lo)
	})
}

// peerEnd is a socket of a test.
type peerEnd struct {
	*site
	fd     int
	closed *bool // for all copies
}

// socket makes a socket that doesn't block.
func (s *site) socket(family, kind, protocol int) peerEnd {
	s.Helper()
	e := peerEnd{site: s, closed: new(bool)}
	s.in(func() (err error) {
		e.fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return err
	})
	s.Cleanup(func() { e.close() })
	return e
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (e *peerEnd) close() {
	if !*e.closed {
		_ = unix.Close(e.fd)
	}
	*e.closed, e.fd = true, -1
}

func (e peerEnd) set(level, option, value int) {
	e.Helper()
	e.must(unix.SetsockoptInt(e.fd, level, option, value))
}

func loopback(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
}

// listen makes a listener at a port of its own.
func (s *site) listen() (l peerEnd, at *unix.SockaddrInet4) {
	s.Helper()
	s.port++
	l, at = s.socket(unix.AF_INET, unix.SOCK_STREAM, 0), loopback(s.port)
	l.must(unix.Bind(l.fd, at))
	l.must(unix.Listen(l.fd, 4096))
	return l, at
}

// accept waits for a connection.
func (e peerEnd) accept() peerEnd {
	e.Helper()
	e.ready(unix.POLLIN)
	fd, _, err := unix.Accept4(e.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	e.must(err)
	accepted := peerEnd{e.site, fd, new(bool)}
	e.Cleanup(func() { accepted.close() })
	return accepted
}

func (e peerEnd) connect(to unix.Sockaddr) {
	e.Helper()
	if err := unix.Connect(e.fd, to); err != unix.EINPROGRESS {
		e.must(err)
	}
}

// pair is a connection between two sockets.
func (s *site) pair() (client, server peerEnd) {
	s.Helper()
	l, at := s.listen()
	defer l.close()
	client = s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	client.connect(at)
	server = l.accept()
	client.ready(unix.POLLOUT)
	return client, server
}

func (e peerEnd) ready(events int16) {
	e.Helper()
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: events}}, 5000)
	}
	if n != 1 || err != nil {
		e.Fatal("nothing happened", err)
	}
}

func (e peerEnd) send(bytes int) {
	e.Helper()
	if n, err := unix.Write(e.fd, make([]byte, bytes)); n != bytes {
		e.Fatal(n, err)
	}
}

// fill sends as much as the socket takes.
func (e peerEnd) fill() (bytes uint64) {
	e.Helper()
	for quiet := 0; quiet < 3; { // the kernel takes more when some has arrived
		n, err := unix.Write(e.fd, make([]byte, 10001))
		if err == unix.EAGAIN {
			quiet++
			time.Sleep(50 * time.Millisecond)
			continue
		}
		e.must(err)
		bytes, quiet = bytes+uint64(n), 0
	}
	return bytes
}

// receive reads so much, which has to come.
func (e peerEnd) receive(bytes int) {
	e.Helper()
	for bytes > 0 {
		e.ready(unix.POLLIN)
		n, err := unix.Read(e.fd, make([]byte, bytes))
		if n < 1 {
			e.Fatal(n, err)
		}
		bytes -= n
	}
}

// eof reads the end.
func (e peerEnd) eof() {
	e.Helper()
	e.ready(unix.POLLIN)
	if n, err := unix.Read(e.fd, make([]byte, 1)); n != 0 || err != nil {
		e.Fatal(n, err)
	}
}

func (e peerEnd) shutdown() {
	e.Helper()
	e.must(unix.Shutdown(e.fd, unix.SHUT_WR))
}

func (e peerEnd) cookie() uint64 {
	e.Helper()
	cookie, err := unix.GetsockoptUint64(e.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	e.must(err)
	return cookie
}

// sampler takes samples of a site.
type sampler struct {
	*site
	Sampler
	last Sample
}

func (s *site) sampler(f Filter) *sampler {
	s.Helper()
	d, notes, err := OpenDiag(f)
	if err != nil {
		s.Fatal(err)
	}
	for _, n := range notes {
		s.Log(n)
	}
	return &sampler{site: s, Sampler: d}
}

// sample takes a sample, of which it returns the rows of the site's namespace.
func (s *sampler) sample() (rows []Row) {
	s.Helper()
	var err error
	if s.last, err = s.Sample(context.Background()); err != nil {
		s.Fatal(err)
	}
	for _, r := range s.last.Rows {
		if r.NetNS == s.inode {
			rows = append(rows, r)
		}
	}
	return rows
}

// row is the only row of a socket in a new sample.
func (s *sampler) row(cookie uint64) Row {
	s.Helper()
	rows := s.rows(cookie)
	for end := time.Now().Add(3 * time.Second); len(rows) == 0 && time.Now().Before(end); rows = s.rows(cookie) {
		time.Sleep(10 * time.Millisecond) // whose it is isn't known yet
	}
	if len(rows) != 1 {
		s.Fatalf("%d rows: %+v", len(rows), rows)
	}
	return rows[0]
}

func (s *sampler) rows(cookie uint64) (found []Row) {
	s.Helper()
	for _, r := range s.sample() {
		if r.Cookie == cookie {
			found = append(found, r)
		}
	}
	return found
}

// is checks the state and what was moved of a socket, once both have come.
func (s *sampler) is(e peerEnd, state string, transmit, receive uint64) {
	s.Helper()
	cookie := e.cookie()
	r := s.row(cookie)
	for end := time.Now().Add(3 * time.Second); r.TCP.State != state && time.Now().Before(end); r = s.row(cookie) {
		time.Sleep(10 * time.Millisecond)
	}
	if got := r.Counters; r.TCP.State != state || got != (Counters{TransmitBytes: transmit, ReceiveBytes: receive}) || r.Status != Exact {
		s.Errorf("%s %+v %s, want %s %d %d", r.TCP.State, got, r.Status, state, transmit, receive)
	}
	if *r.TCP.Transmitted != transmit || *r.TCP.Received != receive {
		s.Errorf("the kernel's own: %d %d, want %d %d", *r.TCP.Transmitted, *r.TCP.Received, transmit, receive)
	}
	if r.PID != uint32(os.Getpid()) || r.Owners != 1 || r.Command == "" || r.Start == 0 {
		s.Errorf("process: %+v, %d owners", r.Process, r.Owners)
	}
}

// TestDiagClosing checks what is counted in each state of a connection that the side
// that opened it closes first.
func TestDiagClosing(t *testing.T) {
	s := newSite(t)
	d := s.sampler(Filter{})
	client, server := s.pair()
	d.is(client, "established", 0, 0)
	d.is(server, "established", 0, 0)
	client.send(1000)
	d.is(client, "established", 1000, 0)
	d.is(server, "established", 0, 0)
	server.receive(400)
	d.is(server, "established", 0, 400)
	if n, _, err := unix.Recvfrom(server.fd, make([]byte, 100), unix.MSG_PEEK); n != 100 {
		t.Fatal(n, err)
	}
	d.is(server, "established", 0, 400)
	client.shutdown()
	d.is(client, "fin_wait2", 1000, 0)
	d.is(server, "close_wait", 0, 400)
	server.receive(600)
	d.is(server, "close_wait", 0, 1000)
	server.eof()
	d.is(server, "close_wait", 0, 1000)
	server.send(500)
	d.is(server, "close_wait", 500, 1000)
	d.is(client, "fin_wait2", 1000, 0)
	client.receive(500)
	d.is(client, "fin_wait2", 1000, 500)
	if c, s := d.row(client.cookie()), d.row(server.cookie()); c.Inward || !s.Inward || c.Local != s.Peer || c.Peer != s.Local {
		t.Errorf("%+v\n%+v", c, s)
	}
	cookies := []uint64{client.cookie(), server.cookie()}
	server.close()
	time.Sleep(50 * time.Millisecond)
	rows := d.sample()
	slices.SortFunc(rows, func(a, b Row) int { return slices.Index(cookies, a.Cookie) - slices.Index(cookies, b.Cookie) })
	if len(rows) != 2 {
		t.Fatalf("%+v", rows)
	}
	for i, want := range []Counters{{TransmitBytes: 1000, ReceiveBytes: 500}, {TransmitBytes: 500, ReceiveBytes: 1000}} {
		if r := rows[i]; r.Cookie != cookies[i] || r.Counters != want || r.Closed == nil || r.Status != Polled || r.PID != uint32(os.Getpid()) {
			t.Errorf("%+v", r)
		}
	}
	if rows := d.sample(); len(rows) != 0 {
		t.Errorf("%+v", rows)
	}
}

// TestDiagUnsent checks states in which data and the FIN wait, because the peer has no
// room.
func TestDiagUnsent(t *testing.T) {
	s := newSite(t)
	d := s.sampler(Filter{})
	t.Run("fin_wait1, closing", func(*testing.T) {
		a, b := s.pair()
		n := a.fill()
		d.is(a, "established", n, 0)
		d.is(b, "established", 0, 0)
		a.shutdown()
		d.is(a, "fin_wait1", n, 0)
		b.send(300)
		d.is(b, "established", 300, 0)
		b.shutdown()
		d.is(a, "closing", n, 0)
		d.is(b, "fin_wait2", 300, 0)
		a.receive(200)
		d.is(a, "closing", n, 200)
		a.receive(100)
		d.is(a, "closing", n, 300)
		a.eof()
		d.is(a, "closing", n, 300)
		cookie := b.cookie()
		b.receive(int(n))
		b.eof()
		time.Sleep(50 * time.Millisecond)
		if r := d.row(cookie); r.Closed == nil || r.TransmitBytes != 300 { // what it read last isn't known
			t.Errorf("%+v", r)
		}
	})
	t.Run("last_ack", func(*testing.T) {
		a, b := s.pair()
		n := a.fill()
		b.send(7)
		b.shutdown()
		d.is(b, "fin_wait2", 7, 0)
		d.is(a, "close_wait", n, 0)
		a.shutdown()
		d.is(a, "last_ack", n, 0)
		a.receive(7)
		d.is(a, "last_ack", n, 7)
		a.eof()
		d.is(a, "last_ack", n, 7)
		b.receive(1234)
		d.is(b, "fin_wait2", 7, 1234)
	})
	t.Run("corked", func(*testing.T) {
		a, b := s.pair()
		a.set(unix.IPPROTO_TCP, unix.TCP_CORK, 1)
		a.send(99)
		d.is(a, "established", 99, 0)
		d.is(b, "established", 0, 0)
		a.shutdown() // the FIN goes with the data
		b.receive(99)
		d.is(b, "close_wait", 0, 99)
		d.is(a, "fin_wait2", 99, 0)
	})
	t.Run("orphan", func(*testing.T) {
		a, _ := s.pair()
		n, cookie := a.fill(), a.cookie()
		d.row(cookie)
		a.close()
		time.Sleep(50 * time.Millisecond)
		if r := d.row(cookie); r.TCP.State != "fin_wait1" || r.TransmitBytes != n || r.PID != uint32(os.Getpid()) || r.Closed != nil {
			t.Errorf("%+v", r)
		}
	})
}

// TestDiagOpening checks connections that have no answer yet, and data in the SYN.
func TestDiagOpening(t *testing.T) {
	s := newSite(t)
	s.sysctl("ipv4/tcp_fastopen", "519") // both sides, without cookies
	s.in(func() error { return blackhole("198.51.100.0/24") })
	nobody := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{198, 51, 100, 7}}
	d := s.sampler(Filter{})
	t.Run("syn_sent", func(*testing.T) {
		c := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		c.connect(nobody)
		d.is(c, "syn_sent", 0, 0)
		if r := d.row(c.cookie()); r.Inward || r.Peer != netip.MustParseAddrPort("198.51.100.7:9") {
			t.Errorf("%+v", r)
		}
	})
	t.Run("deferred fast open", func(*testing.T) {
		_, at := s.listen()
		c := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		c.set(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
		c.connect(at)
		d.is(c, "syn_sent", 0, 0)
	})
	for name, takes := range map[string]bool{"fast open": true, "refused fast open": false} {
		t.Run(name, func(*testing.T) {
			l, at := s.listen()
			if takes {
				l.set(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5)
			}
			c := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if n, err := unix.SendmsgN(c.fd, make([]byte, 700), nil, at, unix.MSG_FASTOPEN); n != 700 {
				t.Fatal(n, err)
			}
			server := l.accept()
			d.is(c, "established", 700, 0)
			d.is(server, "established", 0, 0)
			server.receive(500)
			d.is(server, "established", 0, 500)
			server.receive(200)
			d.is(server, "established", 0, 700)
			if d.row(c.cookie()).Inward || !d.row(server.cookie()).Inward {
				t.Error("the sides are wrong")
			}
		})
	}
	t.Run("fast open without an answer", func(*testing.T) {
		c := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if n, err := unix.SendmsgN(c.fd, make([]byte, 800), nil, nobody, unix.MSG_FASTOPEN); n != 800 {
			t.Fatal(n, err)
		}
		d.is(c, "syn_sent", 800, 0)
		time.Sleep(1200 * time.Millisecond) // the SYN is sent again
		d.is(c, "syn_sent", 800, 0)
	})
	t.Run("not accepted", func(*testing.T) {
		l, at := s.listen()
		c := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		c.connect(at)
		c.ready(unix.POLLOUT)
		c.send(50)
		d.is(c, "established", 50, 0)
		rows := d.sample()
		n := 0
		for _, r := range rows {
			if r.PID == 0 {
				n++
				if r.Counters != (Counters{}) || !r.Inward {
					t.Errorf("%+v", r)
				}
			}
		}
		if n != 1 {
			t.Errorf("%d without a process", n)
		}
		server := l.accept()
		server.receive(50)
		d.is(server, "established", 0, 50)
	})
}

// TestDiagAgain checks that what is sent again isn't counted again, and what is moved
// when a socket is connected anew is.
func TestDiagAgain(t *testing.T) {
	s := newSite(t)
	d := s.sampler(Filter{})
	t.Run("lost", func(*testing.T) {
		a, b := s.pair()
		a.send(5000)
		s.loopbackIs(false)
		a.send(20000)
		b.send(3)
		d.is(a, "established", 25000, 0)
		d.is(b, "established", 3, 0)
		time.Sleep(time.Second)
		d.is(a, "established", 25000, 0)
		s.loopbackIs(true)
		b.receive(25000)
		a.receive(3)
		d.is(a, "established", 25000, 3)
		d.is(b, "established", 3, 25000)
		if r := d.row(a.cookie()); r.TCP.Retransmits == 0 || r.TCP.SRTT == 0 || r.TCP.MinRTT == 0 {
			t.Errorf("%+v", r.TCP)
		}
	})
	t.Run("connected anew", func(*testing.T) {
		l, at := s.listen()
		c := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		for i, sent := range []int{100, 150, 9000} {
			c.connect(at)
			server := l.accept()
			c.ready(unix.POLLOUT)
			c.send(sent)
			server.send(1)
			c.receive(1)
			d.is(c, "established", []uint64{100, 250, 9250}[i], uint64(i)+1)
			server.receive(sent)
			_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(c.fd), uintptr(unsafe.Pointer(&unix.RawSockaddrAny{})), unix.SizeofSockaddrAny) // AF_UNSPEC
			if errno != 0 {
				t.Fatal(errno)
			}
		}
	})
}

// TestDiagBefore checks that what was moved before counting began isn't counted.
func TestDiagBefore(t *testing.T) {
	s := newSite(t)
	a, b := s.pair()
	a.send(1000)
	b.receive(600)
	b.send(1 << 10)
	first := s.sampler(Filter{})
	a.send(11)
	b.receive(5)
	for range 2 { // nobody resets
		r := first.row(a.cookie())
		if r.TransmitBytes != 11 || r.ReceiveBytes != 0 || *r.TCP.Transmitted != 1011 || !r.Opened.IsZero() {
			t.Errorf("%+v %d", r, *r.TCP.Transmitted)
		}
		r = first.row(b.cookie())
		if r.TransmitBytes != 0 || r.ReceiveBytes != 5 || *r.TCP.Received != 605 || *r.TCP.Transmitted != 1<<10 || !r.Inward {
			t.Errorf("%+v", r)
		}
	}
	second := s.sampler(Filter{})
	a.receive(1 << 10)
	if r := second.row(a.cookie()); r.TransmitBytes != 0 || r.ReceiveBytes != 1<<10 {
		t.Errorf("%+v", r)
	}
	if r := first.row(a.cookie()); r.TransmitBytes != 11 || r.ReceiveBytes != 1<<10 {
		t.Errorf("%+v", r)
	}
	if b := first.last.Backend; b != (Backend{TCPTransmit: "sock_diag", TCPReceive: "sock_diag", Datagrams: "none", Store: "sock_diag"}) || first.last.Since.IsZero() {
		t.Errorf("%+v", b)
	}
	c, _ := s.pair()
	if r := first.row(c.cookie()); r.Opened.Before(first.last.Since) {
		t.Errorf("%+v", r)
	}
}

// TestDiagOwners checks whose sockets are that processes share and hand on.
func TestDiagOwners(t *testing.T) {
	s := newSite(t)
	d := s.sampler(Filter{})
	me := uint32(os.Getpid())
	a, b := s.pair()
	a.send(100)
	d.is(a, "established", 100, 0)
	child, end := testkit.Hold(t, a.fd)
	a.send(10)
	if r := d.row(a.cookie()); r.Status != Sum || r.Owners != 2 || r.TransmitBytes != 110 || r.PID != min(me, uint32(child)) && r.PID != me {
		t.Errorf("%+v", r)
	}
	only := s.sampler(Filter{PIDs: []uint32{uint32(child)}})
	if rows := only.sample(); len(rows) != 1 || rows[0].Cookie != a.cookie() || rows[0].PID != uint32(child) {
		t.Errorf("%+v", rows)
	}
	cookie := a.cookie()
	a.close() // the child has it alone
	b.send(9)
	var rows []Row
	for deadline := time.Now().Add(2 * relook); len(rows) < 2 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		rows = d.rows(cookie)
	}
	if len(rows) != 2 {
		t.Fatalf("%+v", rows)
	}
	for _, r := range rows {
		want, owners := uint64(0), 1
		if r.PID == me {
			want, owners = 110, 2
		} else if r.PID != uint32(child) || r.Command != "sleep" {
			t.Errorf("%+v", r)
		}
		if r.TransmitBytes != want || r.Owners != owners || r.Closed != nil {
			t.Errorf("%+v", r)
		}
	}
	end()
	time.Sleep(50 * time.Millisecond)
	rows = d.rows(cookie)
	if len(rows) != 2 || rows[0].Closed == nil || rows[1].Closed == nil {
		t.Errorf("%+v", rows)
	}
}

// TestDiagDatagrams checks that sockets of datagrams are there, and their ends.
func TestDiagDatagrams(t *testing.T) {
	s := newSite(t)
	s.sysctl("ipv4/ping_group_range", "0 0")
	d := s.sampler(Filter{})
	for _, c := range []struct {
		name                   string
		family, kind, protocol int
		bind, connect          unix.Sockaddr
		transport, local, peer string
	}{
		{"udp", unix.AF_INET, unix.SOCK_DGRAM, 0, loopback(5001), nil, "udp", "127.0.0.1:5001", ""},
		{"connected udp", unix.AF_INET, unix.SOCK_DGRAM, 0, loopback(5002), loopback(53), "udp", "127.0.0.1:5002", "127.0.0.1:53"},
		{"udp of IPv6", unix.AF_INET6, unix.SOCK_DGRAM, 0, &unix.SockaddrInet6{Port: 5003}, nil, "udp", "[::]:5003", ""},
		{"mapped udp", unix.AF_INET6, unix.SOCK_DGRAM, 0, mapped(5004), mapped(53), "udp", "127.0.0.1:5004", "127.0.0.1:53"},
		{"udplite", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, loopback(5005), nil, "udplite", "127.0.0.1:5005", ""},
		{"ping", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, loopback(77), nil, "icmp", "127.0.0.1:77", ""},
		{"ping of IPv6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, &unix.SockaddrInet6{Port: 78, Addr: [16]byte{15: 1}}, nil, "icmp", "[::1]:78", ""},
		{"raw of ICMP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, nil, loopback(0), "icmp", "127.0.0.1:0", "127.0.0.1:0"},
		{"raw", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, nil, nil, "raw", "0.0.0.0:0", ""},
		{"raw of SCTP", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_SCTP, nil, nil, "raw", "[::]:0", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.protocol == unix.IPPROTO_UDPLITE {
				fd, err := unix.Socket(c.family, c.kind|unix.SOCK_CLOEXEC, c.protocol)
				testkit.Needs(t, "UDP-Lite", err, unix.EPROTONOSUPPORT)
				unix.Close(fd)
			}
			e := s.socket(c.family, c.kind, c.protocol)
			if c.bind != nil {
				e.must(unix.Bind(e.fd, c.bind))
			}
			if c.connect != nil {
				e.must(unix.Connect(e.fd, c.connect))
			}
			var rows []Row
			for end := time.Now().Add(3 * time.Second); len(rows) == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				rows = d.sample()
			}
			if len(rows) != 1 {
				t.Fatalf("%+v", rows)
			}
			r := rows[0]
			family := unix.AF_INET
			if r.Local.Addr().Is6() {
				family = unix.AF_INET6
			}
			peer := ""
			if r.Peer.IsValid() {
				peer = r.Peer.String()
			}
			if r.Transport != c.transport || r.Local.String() != c.local || peer != c.peer || r.Family != family || r.Status != Polled || r.TCP != nil || r.PID != uint32(os.Getpid()) {
				t.Errorf("%+v", r)
			}
			if want := e.cookie(); r.Cookie != want && c.kind != unix.SOCK_RAW && r.Transport != "icmp" {
				t.Errorf("cookie %d, not %d", r.Cookie, want)
			}
			e.close()
			if rows := d.sample(); len(rows) != 1 || rows[0].Closed == nil {
				t.Errorf("%+v", rows)
			}
		})
	}
}

// mapped is an address of IPv4 on loopback, as sockets of IPv6 have it.
func mapped(port int) *unix.SockaddrInet6 {
	return &unix.SockaddrInet6{Port: port, Addr: [16]byte{10: 255, 11: 255, 12: 127, 15: 1}}
}

// TestDiagFilter checks what filters leave in.
func TestDiagFilter(t *testing.T) {
	s := newSite(t)
	l, at := s.listen()
	six := s.socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	six.connect(mapped(at.Port))
	server := l.accept()
	datagrams := s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	datagrams.must(unix.Bind(datagrams.fd, loopback(4444)))
	cgroup := testkit.Cgroup(t)
	var stat unix.Stat_t
	s.must(unix.Stat(cgroup, &stat))
	for name, c := range map[string]struct {
		filter Filter
		want   []peerEnd
	}{
		"nothing":        {Filter{}, []peerEnd{six, server, datagrams}},
		"tcp":            {Filter{Transports: []string{"tcp"}}, []peerEnd{six, server}},
		"udp, icmp":      {Filter{Transports: []string{"udp", "icmp"}}, []peerEnd{datagrams}},
		"peer's port":    {Filter{Ports: []uint16{uint16(at.Port)}}, []peerEnd{six, server}},
		"local port":     {Filter{Ports: []uint16{4444}}, []peerEnd{datagrams}},
		"pid":            {Filter{PIDs: []uint32{uint32(os.Getpid())}}, []peerEnd{six, server, datagrams}},
		"pid of another": {Filter{PIDs: []uint32{1}}, nil},
		"another cgroup": {Filter{Cgroups: []uint64{stat.Ino}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			want := map[uint64]bool{}
			for _, e := range c.want {
				want[e.cookie()] = true
			}
			rows := s.sampler(c.filter).sample()
			for _, r := range rows {
				if !want[r.Cookie] || r.Cookie == six.cookie() && (r.Family != unix.AF_INET || r.Local.Addr().Is6()) {
					t.Errorf("%+v", r)
				}
			}
			if len(rows) != len(want) {
				t.Errorf("%d rows, want %d", len(rows), len(want))
			}
		})
	}
}

// TestDiagCgroups checks that a cgroup stands for those below it, too.
func TestDiagCgroups(t *testing.T) {
	s := newSite(t)
	_, at := s.listen()
	cgroup := testkit.Cgroup(t)
	below := filepath.Join(cgroup, "below")
	s.must(os.Mkdir(below, 0o755))
	id := func(dir string) uint64 {
		var stat unix.Stat_t
		s.must(unix.Stat(dir, &stat))
		return stat.Ino
	}
	above, inner := s.sampler(Filter{Cgroups: []uint64{id(cgroup)}}), s.sampler(Filter{Cgroups: []uint64{id(below)}})
	address := fmt.Sprintf("127.0.0.1:%d", at.Port)
	outerPID, innerPID := s.dialer(cgroup, address), s.dialer(below, address, address)
	for d, want := range map[*sampler]map[int]int{above: {outerPID: 1, innerPID: 2}, inner: {innerPID: 2}} {
		got := map[int]int{}
		for _, r := range d.sample() {
			got[int(r.PID)]++
			if r.Cgroup != id(map[int]string{outerPID: cgroup, innerPID: below}[int(r.PID)]) {
				t.Errorf("%+v", r)
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

// TestDiagExact checks what TCP sockets that are open have moved in all cases of the
// workload: of those that processes share, all together.
func TestDiagExact(t *testing.T) {
	gone := []string{"reconnected", "half-closed", "reset", "aborted", "short-lived", "reuseport", "existing-closed", "unsent", "unsent-fin", "killed"} // before they are looked at
	for _, c := range cases() {
		name := c.Name[strings.LastIndexByte(c.Name, '/')+1:]
		if !strings.HasPrefix(c.Name, "tcp") || slices.Contains(gone, name) {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			place := workload.Loopback(t)
			s := &site{TB: t, path: place.Client.NetNS}
			var err error
			s.inode, err = netns.Inode(s.path)
			s.must(err)
			var d *sampler
			workload.Run(t, c, place, workload.Hooks{
				Load: func() { d = s.sampler(Filter{Transports: []string{"tcp"}}) },
				Open: func(rows []workload.Expected) {
					want, got := map[uint64]Counters{}, map[uint64]Counters{}
					for _, r := range urgent(c, rows) {
						if r.Transport == "tcp" {
							sum := want[r.Cookie]
							sum.add(Counters{TransmitBytes: r.TransmitBytes, ReceiveBytes: r.ReceiveBytes})
							want[r.Cookie] = sum
						}
					}
					for end := time.Now().Add(3 * time.Second); !maps.Equal(want, got) && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
						clear(got)
						for _, r := range d.sample() {
							if sum := got[r.Cookie]; r.Counters != (Counters{}) {
								sum.add(r.Counters)
								got[r.Cookie] = sum
							}
						}
					}
					if !maps.Equal(want, got) {
						t.Errorf("%v, want %v", got, want)
					}
				},
			})
		})
	}
}

// TestExists asks for sockets one by one, as for those that a list lacks.
func TestExists(t *testing.T) {
	s := newSite(t)
	l := s.socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	l.must(unix.Bind(l.fd, &unix.SockaddrInet6{Port: 4000}))
	l.must(unix.Listen(l.fd, 5))
	var open []peerEnd
	for _, to := range []unix.Sockaddr{&unix.SockaddrInet6{Port: 4000, Addr: [16]byte{15: 1}}, mapped(4000), loopback(4000)} {
		family := unix.AF_INET6
		if _, isIPv4 := to.(*unix.SockaddrInet4); isIPv4 {
			family = unix.AF_INET
		}
		c := s.socket(family, unix.SOCK_STREAM, 0)
		c.connect(to)
		open = append(open, c, l.accept())
	}
	var found []sockets.Socket
	s.in(func() error {
		_, err := sockets.Each(unix.IPPROTO_TCP, moving, func(one sockets.Socket) { found = append(found, one) })
		return err
	})
	if len(found) != len(open) {
		t.Fatalf("%d sockets", len(found))
	}
	for _, want := range []bool{true, false} {
		for _, one := range found {
			s.in(func() error {
				there, err := sockets.Exists(one)
				if there != want {
					t.Errorf("%v, want %v: %+v", there, want, one)
				}
				return err
			})
		}
		for i := range open {
			open[i].close()
		}
		time.Sleep(50 * time.Millisecond)
	}
}
