package flow

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// site is a network namespace with a process in it.
type site struct {
	*testing.T
	path  string
	inode uint64
	port  int // of the listener that comes next
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{T: t, path: testkit.NetNS(t), port: 4000}
	var err error
	if s.inode, err = netns.Inode(s.path); err != nil {
		t.Fatal(err)
	}
	resident := exec.Command("sleep", "60")
	s.in(resident.Start)
	t.Cleanup(func() { _ = resident.Process.Kill(); _ = resident.Wait() })
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

// peerEnd is a socket of a test.
type peerEnd struct {
	*site
	fd int
}

// socket makes a socket that doesn't block.
func (s *site) socket(family, kind, protocol int) peerEnd {
	s.Helper()
	e := peerEnd{site: s}
	s.in(func() (err error) {
		e.fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		return err
	})
	s.Cleanup(func() { e.close() })
	return e
}

func (e peerEnd) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

func (e *peerEnd) close() {
	if e.fd >= 0 {
		_ = unix.Close(e.fd)
	}
	e.fd = -1
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
	l.must(unix.Listen(l.fd, 16))
	return l, at
}

// accept waits for a connection.
func (e peerEnd) accept() peerEnd {
	e.Helper()
	e.ready(unix.POLLIN)
	fd, _, err := unix.Accept4(e.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	e.must(err)
	accepted := peerEnd{e.site, fd}
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
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: events}}, 5000); n != 1 || err != nil {
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
