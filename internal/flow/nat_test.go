package flow

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// network is a client and a server, with a router between them that does NAT: of 10.96.0.1
// and fd96::1 to port 8080 of the server, of 10.96.0.2 to the server.
type network struct {
	client, router, server *site
	t                      *testing.T
	engine                 *datapath.Engine
	sampler                Sampler
}

func newNetwork(t *testing.T, backend string, masquerade bool) *network {
	n := &network{client: newSite(t), router: newSite(t), server: newSite(t), t: t}
	for i, s := range []*site{n.client, n.server} {
		n.join(s, i+1)
	}
	n.router.sysctl("ipv4/ip_forward", "1")
	n.router.sysctl("ipv6/conf/all/forwarding", "1")
	n.client.sysctl("ipv4/ping_group_range", "0 2147483647")
	v4, v6 := &rules{family: unix.AF_INET}, &rules{family: unix.AF_INET6}
	v4.dnat(prerouting, netip.MustParseAddr("10.96.0.1"), ap("10.78.2.2:8080"))
	v4.dnat(prerouting, netip.MustParseAddr("10.96.0.2"), ap("10.78.2.2:0"))
	v6.dnat(prerouting, netip.MustParseAddr("fd96::1"), ap("[fd78:2::2]:8080"))
	if masquerade {
		v4.masquerade()
		v6.masquerade()
	}
	v4.apply(t, n.router)
	v6.apply(t, n.router)
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t), NetNS: n.router.path})
	if err != nil {
		t.Fatal(err)
	}
	sampler, notes, err := Open(context.Background(), engine, Request{Instance: "absent", Backend: backend})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(notes)
	n.engine, n.sampler = engine, sampler
	t.Cleanup(func() { _ = sampler.Close() })
	return n
}

// join makes the router's device to a site, which has the addresses that end with 2.
func (n *network) join(s *site, subnet int) {
	to, err := os.Open(s.path)
	s.must(err)
	defer to.Close()
	dev := fmt.Sprint("to", subnet)
	n.router.in(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: "up", PeerNamespace: netlink.NsFd(int(to.Fd()))})
	})
	set := func(dev string, host int) error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		for _, form := range []string{"10.78.%d.%d/24", "fd78:%d::%d/64"} {
			a, err := netlink.ParseAddr(fmt.Sprintf(form, subnet, host))
			if err != nil {
				return err
			}
			a.Flags |= unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	n.router.in(func() error { return set(dev, 1) })
	s.in(func() error { return set("up", 2) })
	for _, form := range []string{"10.78.%d.1", "fd78:%d::1"} {
		s.in(func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(fmt.Sprintf(form, subnet))}) })
	}
}

// flow waits for the row of a site with these addresses, and checks whom its peer was
// translated to.
func (n *network) flow(s *site, transport, local, peer, want string) {
	n.t.Helper()
	found := "nothing"
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, r := range take(n.t, n.sampler).Rows {
			if r.NetNS != s.inode || r.Transport != transport || !strings.HasPrefix(r.Local.String(), local) || r.Peer.String() != peer {
				continue
			}
			if found = r.NAT.String(); !r.NAT.IsValid() {
				found = ""
			}
			if found == want {
				return
			}
		}
	}
	n.t.Errorf("%s %s to %s is %q, want %q", transport, local, peer, found, want)
}

// Flows through a router tell whom its NAT has them talk to, at both ends.
func TestNAT(t *testing.T) {
	for _, backend := range []string{"", Polling} {
		for _, masquerade := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s masquerade=%v", backend, masquerade), func(t *testing.T) {
				n := newNetwork(t, backend, masquerade)
				polling := take(t, n.sampler).Backend.Store == Polling
				for _, family := range []struct{ service, server string }{{"10.96.0.1:80", "10.78.2.2:8080"}, {"[fd96::1]:80", "[fd78:2::2]:8080"}} {
					n.tcp(family.service, family.server, masquerade)
					n.udp(family.service, family.server, masquerade, polling)
				}
				if !polling {
					n.gone()
					n.ping()
				}
				n.inside(polling)
			})
		}
	}
}

// original is whom a peer was, "" if it is itself.
func original(client, seen net.Addr) string {
	if client.String() == seen.String() {
		return ""
	}
	return client.String()
}

func (n *network) listen(at string) net.Listener {
	var l net.Listener
	n.server.in(func() (err error) { l, err = net.Listen("tcp", at); return err })
	return l
}

func (n *network) dial(transport, to string) net.Conn {
	var c net.Conn
	n.client.in(func() (err error) { c, err = net.Dial(transport, to); return err })
	return c
}

func (n *network) tcp(service, server string, masquerade bool) {
	n.t.Helper()
	l := n.listen(server)
	defer l.Close()
	for to, nat := range map[string]string{service: server, server: ""} {
		client := n.dial("tcp", to)
		defer client.Close()
		accepted, err := l.Accept()
		n.client.must(err)
		defer accepted.Close()
		if (original(client.LocalAddr(), accepted.RemoteAddr()) != "") != masquerade {
			n.t.Errorf("%s is %s at the server", client.LocalAddr(), accepted.RemoteAddr())
		}
		n.flow(n.client, "tcp", client.LocalAddr().String(), to, nat)
		n.flow(n.server, "tcp", server, accepted.RemoteAddr().String(), original(client.LocalAddr(), accepted.RemoteAddr()))
	}
}

func (n *network) udp(service, server string, masquerade, polling bool) {
	n.t.Helper()
	var l net.PacketConn
	n.server.in(func() (err error) { l, err = net.ListenPacket("udp", server); return err })
	defer l.Close()
	for to, nat := range map[string]string{service: server, server: ""} {
		client := n.dial("udp", to)
		defer client.Close()
		_, err := client.Write([]byte("question"))
		n.client.must(err)
		_, from, err := l.ReadFrom(make([]byte, 9))
		n.client.must(err)
		if (original(client.LocalAddr(), from) != "") != masquerade {
			n.t.Errorf("%s is %s at the server", client.LocalAddr(), from)
		}
		n.flow(n.client, "udp", client.LocalAddr().String(), to, nat)
		if !polling {
			n.flow(n.server, "udp", server, from.String(), original(client.LocalAddr(), from))
		}
	}
}

// gone is a connection that has ended before anybody looks.
func (n *network) gone() {
	n.t.Helper()
	l := n.listen("10.78.2.2:8080")
	defer l.Close()
	client := n.dial("tcp", "10.96.0.1:80")
	accepted, err := l.Accept()
	n.client.must(err)
	n.client.must(client.Close())
	n.client.must(accepted.Close())
	n.flow(n.client, "tcp", client.LocalAddr().String(), "10.96.0.1:80", "10.78.2.2:8080")
}

func (n *network) ping() {
	n.t.Helper()
	e := n.client.socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	e.connect(&unix.SockaddrInet4{Addr: [4]byte{10, 96, 0, 2}})
	e.must(unix.Sendto(e.fd, []byte{8, 0, 0, 0, 0, 0, 0, 1}, 0, nil))
	e.ready(unix.POLLIN)
	n.flow(n.client, "icmp", "10.78.1.2:", "10.96.0.2:0", "10.78.2.2:0")
}

// inside are flows of a process in the client's namespace, where there is NAT, too.
func (n *network) inside(polling bool) {
	n.t.Helper()
	l := n.listen("10.78.2.2:8080")
	defer l.Close()
	own := &rules{family: unix.AF_INET}
	own.dnat(output, netip.MustParseAddr("10.99.0.1"), ap("10.96.0.1:80"))
	own.dnat(output, netip.MustParseAddr("10.99.0.2"), ap("127.0.0.1:5000"))
	own.apply(n.t, n.client)
	n.client.dialer("", "/127.0.0.1:5000", "10.99.0.1:7", "10.99.0.2:7", "~10.96.0.1:80")
	n.flow(n.client, "tcp", "10.78.1.2:", "10.99.0.1:7", "10.78.2.2:8080")
	n.flow(n.client, "tcp", "10.78.1.2:", "10.99.0.2:7", "127.0.0.1:5000")
	if !polling {
		n.flow(n.client, "udp", "0.0.0.0:", "10.96.0.1:80", "10.78.2.2:8080")
	}
}

// fixed is a Sampler with the same flows each time, in the namespace of a site.
type fixed struct {
	*site
	rows []Row
}

func (f *fixed) Close() error { return nil }
func (f *fixed) Sample(context.Context) (Sample, error) {
	s := Sample{Time: time.Now(), Rows: append([]Row(nil), f.rows...)}
	for i := range s.Rows {
		s.Rows[i].NetNS = f.inode
	}
	return s, nil
}

// weak is a Kernel whose user may do nothing in the namespace of a site.
type weak struct {
	Kernel
	*site
}

func (w weak) InNetNS(fn func() error) error {
	return netns.Do(w.path, func() error {
		header, none := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		return fn()
	})
}

// A user who may not ask is told once.
func TestNATUnprivileged(t *testing.T) {
	f := &fixed{site: newSite(t)}
	sampler, notes := translate(f, weak{site: f.site})
	if len(notes) > 0 || sampler == f {
		t.Errorf("where nothing is tracked: %q", notes)
	}
	f.in(func() error { return f.track(0) })
	take(t, sampler)
	sampler, notes = translate(f, weak{site: f.site})
	if len(notes) != 1 || !strings.Contains(notes[0], "peers behind NAT have one address: ask for tracked connections: ") || sampler != f {
		t.Errorf("notes: %q", notes)
	}
}

// A sample asks for a bounded number of flows, each of them once.
func TestNATOfMany(t *testing.T) {
	s := newSite(t)
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t), NetNS: s.path})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixed{site: s}
	sampler, notes := translate(f, engine)
	if len(notes) > 0 {
		t.Error(notes)
	}
	const all = 10_000
	s.in(func() error {
		for i := range all {
			if err := f.track(i); err != nil {
				return err
			}
		}
		return nil
	})
	for want := mostQuestions; want <= all+mostQuestions; want += mostQuestions {
		began := time.Now()
		rows, got := take(t, sampler).Rows, 0
		for i, r := range rows {
			if r.NAT.IsValid() {
				got++
			}
			if r.NAT.IsValid() && r.NAT != netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(i)) {
				t.Fatalf("%s is %s", r.Peer, r.NAT)
			}
		}
		t.Logf("%d known after %v", got, time.Since(began))
		if got != min(want, all) {
			t.Errorf("%d are known, want %d", got, min(want, all))
		}
	}
}

// Of a flow that isn't tracked yet a few samples ask, and no more until it is a new one.
func TestNATLater(t *testing.T) {
	s := newSite(t)
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t), NetNS: s.path})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixed{site: s}
	f.in(func() error { return f.track(0) })
	sampler, _ := translate(f, engine)
	known := func(want ...bool) {
		t.Helper()
		for i, r := range take(t, sampler).Rows {
			if r.NAT.IsValid() != want[i] {
				t.Errorf("flow %d is %s", i, r.NAT)
			}
		}
	}
	known(true)
	f.add(1)
	f.add(2)
	for range mostAttempts - 1 {
		known(true, false, false)
	}
	f.in(func() error { return f.connect(1) })
	known(true, true, false)
	f.in(func() error { return f.connect(2) })
	known(true, true, false)
	all := f.rows
	f.rows = nil
	known()
	f.rows = all
	known(true, true, true)
}

// track adds a flow, and its connection to those that the kernel tracks.
func (f *fixed) track(i int) error {
	f.add(i)
	return f.connect(i)
}

func (f *fixed) add(i int) {
	peer := netip.AddrPortFrom(netip.MustParseAddr("10.96.0.1"), uint16(i))
	f.rows = append(f.rows, Row{Cookie: uint64(i), Transport: "udp", Local: ap("10.0.0.1:1000"), Peer: peer})
}

func (f *fixed) connect(i int) error {
	local, peer := f.rows[i].Local, f.rows[i].Peer
	ip := func(a netip.AddrPort) net.IP { return net.IP(a.Addr().AsSlice()) }
	return netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
		FamilyType: unix.AF_INET, TimeOut: 100,
		Forward: netlink.IPTuple{SrcIP: ip(local), SrcPort: local.Port(), DstIP: ip(peer), DstPort: peer.Port(), Protocol: unix.IPPROTO_UDP},
		Reverse: netlink.IPTuple{SrcIP: net.IPv4(10, 0, 0, 2).To4(), SrcPort: peer.Port(), DstIP: ip(local), DstPort: local.Port(), Protocol: unix.IPPROTO_UDP},
	})
}
