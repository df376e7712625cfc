package sockets

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// site is a host and a container, joined by a veth pair: the host's a, the
// container's b.
type site struct {
	testing.TB
	host, box string // paths of the network namespaces
	a, b      uint32
}

// The addresses of testkit.Pair, and one that nobody has, whose packets get lost.
const (
	hostAddress, boxAddress, nobody    = "10.77.0.1", "10.77.0.2", "10.77.0.9"
	hostAddress6, boxAddress6, nobody6 = "fd77::1", "fd77::2", "fd77::9"
)

func newSite(t testing.TB) site {
	t.Helper()
	s := site{TB: t}
	s.host, s.box = testkit.Pair(t)
	s.a, s.b = index(t, s.host, "a"), index(t, s.box, "b")
	err := netns.Do(s.box, func() error {
		for _, address := range []string{nobody, nobody6} {
			far := &netlink.Neigh{LinkIndex: int(s.b), State: netlink.NUD_PERMANENT, IP: net.ParseIP(address), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
			if err := netlink.NeighSet(far); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func index(t testing.TB, ns, dev string) (index uint32) {
	t.Helper()
	err := netns.Do(ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err == nil {
			index = uint32(l.Attrs().Index)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return index
}

// packet is one from the container at the host's a, as of now.
func (s site) packet(protocol uint8, from, to string) Packet {
	return Packet{
		Time: time.Now(), Protocol: protocol, Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort(to),
		Ingress: true, IfIndex: s.a,
	}
}

// back is one to the container.
func (s site) back(protocol uint8, from, to string) Packet {
	p := s.packet(protocol, from, to)
	p.Ingress = false
	return p
}

// patient is never in a hurry.
func patient() bool { return false }

// find asks for one packet.
func (s site) find(p Packet) *Process {
	s.Helper()
	f, err := NewFinder(s.host)
	if err != nil {
		s.Fatal(err)
	}
	f.longest = time.Minute // whatever else the machine does
	a, err := f.Find([]Packet{p}, patient)
	if err != nil || a.Missed > 0 {
		s.Fatalf("missed %d, %v", a.Missed, err)
	}
	return a.Processes[0]
}

// is checks that a packet's process is an actor, which has the socket alone.
func (s site) is(a *actor, p Packet) {
	s.Helper()
	got := s.find(p)
	executable, err := os.Readlink("/proc/self/exe")
	if err != nil {
		s.Fatal(err)
	}
	if got == nil || got.PID != a.pid || got.Owners != 1 || got.Executable == nil || *got.Executable != executable ||
		got.Command != command(s, a.pid) || time.Since(got.Start) > time.Minute ||
		got.Port != p.Source.Port() && got.Port != p.Destination.Port() {
		s.Errorf("%s -> %s: %+v, want process %d", p.Source, p.Destination, got, a.pid)
	}
}

func command(t testing.TB, pid int) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// unknown checks that no process is named.
func (s site) unknown(why string, p Packet) {
	s.Helper()
	if got := s.find(p); got != nil {
		s.Errorf("%s: %s -> %s: %+v", why, p.Source, p.Destination, got)
	}
}

const (
	tcp = unix.IPPROTO_TCP
	udp = unix.IPPROTO_UDP
)

// What a container sends, of connections that get no answer, too.
func TestSent(t *testing.T) {
	s := newSite(t)
	dial := start(t, s.box, "", "dial tcp %s:4001 %s:80", boxAddress, nobody)
	time.Sleep(20 * time.Millisecond)
	s.is(dial, s.packet(tcp, boxAddress+":4001", nobody+":80"))
	s.unknown("another port", s.packet(tcp, boxAddress+":4001", nobody+":81"))
	s.unknown("what it doesn't get", s.back(tcp, boxAddress+":4001", nobody+":80"))
	dial6 := start(t, s.box, "", "dial tcp [%s]:4001 [%s]:80", boxAddress6, nobody6)
	time.Sleep(20 * time.Millisecond)
	s.is(dial6, s.packet(tcp, "["+boxAddress6+"]:4001", "["+nobody6+"]:80"))

	s.is(start(t, s.box, "", "send udp4 :4002 %s:53", nobody), s.packet(udp, boxAddress+":4002", nobody+":53"))
	s.is(start(t, s.box, "", "send udp6 [::]:4003 [%s]:53", nobody6), s.packet(udp, "["+boxAddress6+"]:4003", "["+nobody6+"]:53"))
	mapped := start(t, s.box, "", "send udp [::]:4004 %s:53", nobody)
	s.is(mapped, s.packet(udp, boxAddress+":4004", nobody+":53"))
	s.is(mapped, s.packet(udp, "["+boxAddress6+"]:4004", "["+nobody6+"]:53"))
	s.is(mapped, s.back(udp, nobody+":53", boxAddress+":4004"))
	start(t, s.box, "", "send udp [::]:4004 %s:53", nobody)
	s.unknown("two sockets with the port", s.packet(udp, boxAddress+":4004", nobody+":53"))
	s.unknown("no transport", s.packet(1, boxAddress+":0", nobody+":0"))
}

// What a container gets: a listener, or who has accepted.
func TestReceived(t *testing.T) {
	s := newSite(t)
	listener := start(t, s.box, "", "listen tcp4 0.0.0.0:80")
	s.is(listener, s.back(tcp, hostAddress+":5001", boxAddress+":80"))
	s.unknown("forwarded", s.back(tcp, hostAddress+":5001", nobody+":80"))
	s.unknown("sent by no connection", s.packet(tcp, boxAddress+":80", hostAddress+":5001"))
	s.unknown("IPv4 alone", s.back(tcp, "["+hostAddress6+"]:5001", "["+boxAddress6+"]:80"))
	both := start(t, s.box, "", "listen tcp [::]:81")
	s.is(both, s.back(tcp, hostAddress+":5001", boxAddress+":81"))
	s.is(both, s.back(tcp, "["+hostAddress6+"]:5001", "["+boxAddress6+"]:81"))
	from := s.connect(boxAddress + ":81") // which it doesn't accept
	s.is(both, s.back(tcp, from, boxAddress+":81"))
	s.is(both, s.packet(tcp, boxAddress+":81", from))

	accepting := start(t, s.box, "", "accept tcp [::]:82")
	for _, far := range []string{boxAddress + ":82", "[" + boxAddress6 + "]:82"} {
		from := s.connect(far)
		accepting.line()
		s.is(accepting, s.back(tcp, from, far))
		s.is(accepting, s.packet(tcp, far, from))
		old := s.back(tcp, from, far)
		old.Time = old.Time.Add(-time.Hour)
		s.unknown("before it began", old)
	}
	udpListener := start(t, s.box, "", "send udp4 %s:53", boxAddress)
	p := s.back(udp, hostAddress+":5001", boxAddress+":53")
	s.is(udpListener, p)
	p.Time = p.Time.Add(-fresh)
	s.unknown("too old for a port alone", p)
}

// connect opens a connection from the host, and returns its local end.
func (s site) connect(to string) string {
	s.Helper()
	var conn net.Conn
	err := netns.Do(s.host, func() (err error) {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), to)
		defer file.Close()
		far := netip.MustParseAddrPort(to)
		if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: far.Addr().As16(), Port: int(far.Port())}); err != nil {
			return err
		}
		conn, err = net.FileConn(file)
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { conn.Close() })
	return conn.LocalAddr().String()
}

// Of listeners with one port it is the one that the kernel chooses.
func TestReusedPort(t *testing.T) {
	s := newSite(t)
	actors := []*actor{start(t, s.box, "", "accept tcp4 :80"), start(t, s.box, "", "accept tcp4 :80")}
	chosen := map[int]bool{}
	for port := 5001; port < 5021; port++ {
		got := s.find(s.back(tcp, fmt.Sprint(hostAddress, ":", port), boxAddress+":80"))
		if got == nil {
			t.Fatal("none of both")
		}
		chosen[got.PID] = true
		err := netns.Do(s.host, func() error {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}}
			conn, err := dialer.Dial("tcp4", boxAddress+":80")
			if err == nil {
				t.Cleanup(func() { conn.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range actors {
			if a.pid == got.PID {
				if line := a.line(); line != fmt.Sprint(hostAddress, ":", port) {
					t.Errorf("%s", line)
				}
			}
		}
	}
	if len(chosen) != 2 {
		t.Errorf("one got all of 20 connections")
	}
}

// A socket that two processes have, and one whose process has ended.
func TestOwners(t *testing.T) {
	s := newSite(t)
	two := start(t, s.box, "", "twice send udp4 :4001 %s:53", nobody)
	p := s.packet(udp, boxAddress+":4001", nobody+":53")
	if got := s.find(p); got == nil || got.Owners != 2 || got.PID != two.pid {
		t.Errorf("%+v", got)
	}
	one := start(t, s.box, "", "send udp4 :4002 %s:53", nobody)
	gone := s.packet(udp, boxAddress+":4002", nobody+":53")
	one.end()
	s.unknown("it has ended", gone)
}

// Sockets that are bound to a device, and addresses that need one.
func TestDevices(t *testing.T) {
	s := newSite(t)
	t.Setenv("BPFNET_TEST_DEVICE", "b")
	s.is(start(t, s.box, "", "listen tcp4 :80"), s.back(tcp, hostAddress+":5001", boxAddress+":80"))
	s.is(start(t, s.box, "", "send udp4 :4001 %s:53", nobody), s.packet(udp, boxAddress+":4001", nobody+":53"))
	os.Unsetenv("BPFNET_TEST_DEVICE")
	local := s.linkLocal()
	s.is(start(t, s.box, "", "send udp6 [::]:4002"), s.packet(udp, "["+local+"]:4002", "[fe80::9]:53"))
	s.is(start(t, s.box, "", "listen tcp6 [%s%%b]:80", local), s.back(tcp, "[fe80::9]:5001", "["+local+"]:80"))
}

// linkLocal is the link-local address of the container's b, once it may be used.
func (s site) linkLocal() (address string) {
	s.Helper()
	for end := time.Now().Add(5 * time.Second); address == "" && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		err := netns.Do(s.box, func() error {
			list, err := netlink.AddrList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: int(s.b), Name: "b"}}, unix.AF_INET6)
			for _, a := range list {
				if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
					address = a.IP.String()
				}
			}
			return err
		})
		if err != nil {
			s.Fatal(err)
		}
	}
	return address
}

// Where a packet was seen: at an interface of the host's, of a namespace that a
// blocklist is attached in, at a cgroup.
func TestPlaces(t *testing.T) {
	s, cgroup := newSite(t), testkit.Cgroup(t)
	inside := start(t, s.box, cgroup, "send udp4 :4001 %s:53", nobody)
	p := s.packet(udp, boxAddress+":4001", nobody+":53")
	p.Ingress, p.IfIndex, p.NetNS = false, s.b, inode(t, s.box)
	s.is(inside, p)
	p.NetNS, p.IfIndex, p.AtCgroup, p.CgroupID = 0, s.b, true, inode(t, cgroup)
	s.is(inside, p)
	p.CgroupID = inode(t, filepath.Dir(cgroup))
	s.unknown("another cgroup", p)
	p.CgroupID = 1 << 40
	s.unknown("a cgroup that is gone", p)
	p = s.packet(udp, boxAddress+":4001", nobody+":53")
	p.CgroupID = inode(t, cgroup)
	s.is(inside, p)
	p.CgroupID++
	s.unknown("a socket of another cgroup", p)
	p.IfIndex, p.CgroupID = 999, 0
	f, err := NewFinder(s.host)
	if err != nil {
		t.Fatal(err)
	}
	f.longest = time.Minute
	time.Sleep(relook)
	if a, err := f.Find([]Packet{p}, patient); err != nil || a.Processes[0] != nil {
		t.Errorf("an interface that isn't there: %+v, %v", a, err)
	}

	host := start(t, s.host, "", "listen tcp [::]:80")
	p = s.packet(tcp, "127.0.0.1:5001", "127.0.0.1:80")
	p.IfIndex = 1
	s.is(host, p)
	p.Source, p.Destination, p.Ingress = p.Destination, p.Source, false
	s.unknown("an answer without a connection", p)
}

// What is known of a socket isn't asked for: its namespace, or itself.
func TestKnownSocket(t *testing.T) {
	s := newSite(t)
	host := start(t, s.host, "", "listen tcp [::]:80")
	p := s.packet(tcp, boxAddress+":5001", hostAddress+":80")
	p.Socket.NetNS = inode(t, s.host)
	s.is(host, p)
	dir, err := endpoint.OpenProcess(host.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var number uint32
	if err := dir.Descriptors(func(_, target string) { _, _ = fmt.Sscanf(target, "socket:[%d]", &number) }); err != nil || number == 0 {
		t.Fatalf("socket %d, %v", number, err)
	}
	known := Packet{Time: time.Now(), Socket: Known{inode(t, s.host), number}}
	s.is(host, known)
	host.end()
	f, err := NewFinder(s.host)
	if err != nil {
		t.Fatal(err)
	}
	// An error may say that not all processes can be looked into.
	if a, _ := f.Find([]Packet{known}, nil); a.Processes[0] != nil || a.Missed != 0 {
		t.Errorf("a socket that is closed: %+v", a)
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// An interface that comes later is looked behind, and looks that are asked for too
// often aren't made, and counted.
func TestOften(t *testing.T) {
	s := newSite(t)
	f, err := NewFinder(s.host)
	if err != nil {
		t.Fatal(err)
	}
	sender := start(t, s.box, "", "send udp4 :4001 %s:53", nobody) // the namespace had no process
	time.Sleep(relook)
	known, missed := 0, 0
	for began := time.Now(); time.Since(began) < time.Second; {
		p := s.packet(udp, boxAddress+":4001", nobody+":53")
		a, err := f.Find([]Packet{p, p}, patient)
		if err != nil {
			t.Fatal(err)
		}
		missed += a.Missed
		for _, got := range a.Processes {
			if got != nil && got.PID != sender.pid {
				t.Fatalf("%+v", got)
			}
			if got != nil {
				known++
			}
		}
	}
	t.Logf("known %d, missed %d", known, missed)
	if known == 0 || missed < known {
		t.Errorf("known %d, missed %d", known, missed)
	}
}
