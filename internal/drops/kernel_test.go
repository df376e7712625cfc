package drops

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/netns"
	"bpfnet/internal/ports"
	"bpfnet/internal/sockets"
	"bpfnet/internal/testkit"
)

// site is a host and a Pod, joined by a veth pair, the host's a and the Pod's b, and
// program drops, which sees the whole machine: what the tests look at is in the
// namespaces of their own.
type site struct {
	testing.TB
	host, pod string
	a, b      netlink.Link
	engine    *datapath.Engine
	reader    *Reader
}

func newSite(t testing.TB, sizes map[string]uint32) site {
	t.Helper()
	s := site{TB: t}
	s.host, s.pod = testkit.Pair(t)
	s.in(s.host, func() (err error) { s.a, err = netlink.LinkByName("a"); return err })
	s.in(s.pod, func() (err error) { s.b, err = netlink.LinkByName("b"); return err })
	var err error
	if s.engine, err = datapath.Open(datapath.Options{Root: testkit.Root(t), NetNS: s.host}); err != nil {
		t.Fatal(err)
	}
	s.load("drops", sizes, datapath.AttachRequest{Hook: "trace"})
	s.reader = NewReader(s.engine, "drops")
	return s
}

func (s site) load(name string, sizes map[string]uint32, request datapath.AttachRequest) {
	s.Helper()
	ctx := context.Background()
	if _, err := s.engine.Load(ctx, datapath.LoadRequest{Source: name, MaxEntries: sizes}); err != nil {
		s.Fatal(err)
	}
	request.Name = name
	if _, err := s.engine.Attach(ctx, request); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { // a filter stays as long as its device
		if _, err := s.engine.Detach(ctx, datapath.DetachRequest{Name: name}); err != nil {
			s.Error(err)
		}
	})
}

func (s site) in(namespace string, fn func() error) {
	s.Helper()
	if err := netns.Do(namespace, fn); err != nil {
		s.Fatal(err)
	}
}

func (s site) inode(namespace string) (inode uint32) {
	s.Helper()
	s.in(namespace, func() error {
		n, err := netns.Inode("")
		inode = uint32(n)
		return err
	})
	return inode
}

func (s site) sample() Sample {
	s.Helper()
	sample, err := s.reader.Sample(context.Background())
	if err != nil {
		s.Fatal(err)
	}
	return sample
}

// dropped sums up the entries that match, once they have as many packets as wanted.
func (s site) dropped(packets uint64, match func(Key) bool) (sum Counters, keys []Key, last Sample) {
	s.Helper()
	for range 50 {
		last = s.sample()
		sum, keys = Counters{}, nil
		for key, e := range last.Entries {
			if match(key) {
				sum, keys = sum.plus(e.Counters), append(keys, key)
			}
		}
		if sum.Packets >= packets {
			return sum, keys, last
		}
		time.Sleep(20 * time.Millisecond)
	}
	return sum, keys, last
}

// reason is what the running kernel calls a reason, "" if it has none.
func reason(name string) string {
	if !testkit.HasEnumerator("skb_drop_reason", "SKB_DROP_REASON_"+strings.ToUpper(name)) {
		return ""
	}
	return name
}

// datagrams sends datagrams of 100 bytes.
func (s site) datagrams(namespace, to string, n int) {
	s.Helper()
	s.in(namespace, func() error {
		conn, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		address, err := net.ResolveUDPAddr("udp", to)
		for range n {
			_, _ = conn.WriteTo(make([]byte, 100), address) // tc at egress lets nothing through
		}
		return err
	})
}

// connect tries to connect, in vain.
func (s site) connect(to string, n int) {
	s.Helper()
	s.in(s.pod, func() error {
		for range n {
			if conn, err := net.DialTimeout("tcp", to, time.Second); err == nil {
				conn.Close()
				return fmt.Errorf("%s is open", to)
			}
		}
		return nil
	})
}

// raw sends packets from the Pod to the host, as they are.
func (s site) raw(packet []byte, n int) {
	s.Helper()
	s.in(s.pod, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: s.b.Attrs().Index, Halen: 6}
		copy(to.Addr[:], s.a.Attrs().HardwareAddr)
		for range n {
			if err := unix.Sendto(fd, packet, 0, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// udp4 is a packet from the Pod to a port of the host, with a wrong checksum.
func udp4(port uint16, data int) []byte {
	p := make([]byte, 28+data)
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], []byte{10, 77, 0, 2, 10, 77, 0, 1})
	binary.BigEndian.PutUint16(p[20:], 4000)
	binary.BigEndian.PutUint16(p[22:], port)
	binary.BigEndian.PutUint16(p[24:], uint16(8+data))
	binary.BigEndian.PutUint16(p[26:], 0xdead)
	return sumIPv4(p)
}

// sumIPv4 puts the right checksum into an IPv4 header of 20 bytes.
func sumIPv4(p []byte) []byte {
	sum := uint32(0)
	p[10], p[11] = 0, 0
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	return p
}

// segments has the kernel make datagrams of 100 bytes of a bigger one (UDP_SEGMENT).
func (s site) segments(to string, n int) {
	s.Helper()
	s.in(s.pod, func() error {
		conn, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 100) }); err != nil || failed != nil {
			return failed
		}
		_, err = conn.Write(make([]byte, 100*n))
		return err
	})
}

// counter reads a counter of the kernel's for a namespace: "Udp NoPorts", or of IPv6
// "Udp6NoPorts".
func (s site) counter(namespace, name string) (value uint64) {
	s.Helper()
	s.in(namespace, func() error {
		protocol, field, four := strings.Cut(name, " ")
		file := "/proc/thread-self/net/snmp6"
		if four {
			file = "/proc/thread-self/net/snmp"
		}
		text, err := os.ReadFile(file)
		var header []string
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			switch {
			case !four && words[0] == name:
				value, err = strconv.ParseUint(words[1], 10, 64)
				return err
			case four && words[0] == protocol+":" && header == nil:
				header = words
			case four && words[0] == protocol+":":
				value, err = strconv.ParseUint(words[slices.Index(header, field)], 10, 64)
				return err
			}
		}
		return fmt.Errorf("no counter %s: %w", name, err)
	})
	return value
}

// TestExact has packets dropped in known numbers, and compares with what the kernel has
// counted itself.
func TestExact(t *testing.T) {
	s := newSite(t, nil)
	host, inPod := s.inode(s.host), s.inode(s.pod)
	from := func(protocol uint8, port uint16) func(Key) bool {
		return func(k Key) bool { return k.NetNS == host && k.Protocol == protocol && k.Destination.Port() == port }
	}
	short := udp4(905, 20)
	binary.BigEndian.PutUint16(short[24:], 900) // longer than the packet
	header := udp4(906, 20)
	header[0] = 0x44 // a header of 16 bytes
	sumIPv4(header)
	padded := append(udp4(907, 4), make([]byte, 14)...) // as Ethernet needs it
	for _, c := range []struct {
		name           string
		act            func()
		match          func(Key) bool
		reason         string
		packets, bytes uint64
		counter        string // of the host
		direction      Direction
	}{
		{"udp", func() { s.datagrams(s.pod, "10.77.0.1:901", 50) }, from(17, 901), "no_socket", 50, 50 * 128, "Udp NoPorts", Ingress},
		{"udp6", func() { s.datagrams(s.pod, "[fd77::1]:902", 50) }, from(17, 902), "no_socket", 50, 50 * 148, "Udp6NoPorts", Ingress},
		{"tcp", func() { s.connect("10.77.0.1:903", 5) }, from(6, 903), "no_socket", 5, 5 * 60, "Tcp OutRsts", Ingress},
		{"tcp6", func() { s.connect("[fd77::1]:903", 5) }, func(k Key) bool { return from(6, 903)(k) && k.Source.Addr().Is6() }, "no_socket", 5, 5 * 80, "Tcp OutRsts", Ingress},
		{"checksum", func() { s.raw(udp4(904, 20), 7) }, from(17, 904), "udp_csum", 7, 7 * 48, "Udp InCsumErrors", Ingress},
		{"length", func() { s.raw(short, 6) }, from(17, 905), "pkt_too_small", 6, 6 * 48, "Udp InErrors", Ingress},
		{"padding", func() { s.raw(padded, 3) }, from(17, 907), "udp_csum", 3, 3 * 32, "Udp InCsumErrors", Ingress},
		{"header", func() { s.raw(header, 4) }, func(k Key) bool {
			return k.NetNS == host && k.Protocol == 17 && k.Destination.Port() == 0 && k.Destination.Addr() == netip.MustParseAddr("10.77.0.1")
		}, "ip_inhdr", 4, 4 * 48, "Ip InHdrErrors", Ingress},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := s.counter(s.host, c.counter)
			c.act()
			got, keys, sample := s.dropped(c.packets, c.match)
			if got != (Counters{c.packets, c.bytes}) {
				t.Errorf("dropped %+v, want %d packets, %d bytes: %v", got, c.packets, c.bytes, keys)
			}
			if n := s.counter(s.host, c.counter) - before; n != c.packets {
				t.Errorf("the kernel has counted %d as %s", n, c.counter)
			}
			for _, key := range keys {
				s.check(t, sample, key, c.reason, c.direction)
				if e := sample.Entries[key]; int(key.IfIndex) != s.a.Attrs().Index || e.DevName != "a" || e.LastSeen.Before(e.FirstSeen) || time.Since(e.FirstSeen) > time.Minute {
					t.Errorf("%+v is %+v", key, e)
				}
			}
		})
	}
	t.Run("segments", func(t *testing.T) {
		s.segments("10.77.0.1:908", 10)
		if got, keys, _ := s.dropped(10, from(17, 908)); got.Packets != 10 || got.Bytes != 28+1000 && got.Bytes != 10*128 {
			t.Errorf("dropped %+v: %v", got, keys)
		}
	})
	t.Run("nothing else", func(t *testing.T) {
		sample := s.sample()
		for key, e := range sample.Entries {
			if name := sample.Names[key.Reason]; key.NetNS == inPod && key.Protocol == 17 || name == "consumed" || name == "not_dropped_yet" {
				t.Errorf("%s: %+v %+v", name, key, e)
			}
		}
	})
}

// check checks what there is to know of every drop.
func (s site) check(t *testing.T, sample Sample, key Key, want string, direction Direction) {
	t.Helper()
	if name := sample.Names[key.Reason]; name != reason(want) {
		t.Errorf("the reason is %q (%d), want %q", name, key.Reason, reason(want))
	}
	if key.Direction != direction {
		t.Errorf("%s, want %s: %+v", key.Direction, direction, key)
	}
	if at := sample.Locations[key.Location]; !strings.Contains(at, "+0x") {
		t.Errorf("location %x is %q", key.Location, at)
	}
}

// TestFiltered has a filter drop packets at both sides of a device, and compares with
// what that has counted.
func TestFiltered(t *testing.T) {
	s := newSite(t, nil)
	s.load("port-filter", nil, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Both})
	filter := ports.NewFilter(s.engine, "port-filter")
	denied := ports.Range{First: 911, Last: 911, Protocol: ports.UDP}
	if _, err := filter.Deny(context.Background(), []ports.Range{denied}, false); err != nil {
		t.Fatal(err)
	}
	s.datagrams(s.pod, "10.77.0.1:911", 30)
	s.datagrams(s.host, "10.77.0.2:911", 20)
	for _, c := range []struct {
		source, reason string
		packets        uint64
		direction      Direction
		sender         string
	}{{"10.77.0.2", "tc_ingress", 30, Ingress, s.pod}, {"10.77.0.1", "tc_egress", 20, Egress, s.host}} {
		host := s.inode(s.host)
		got, keys, sample := s.dropped(c.packets, func(k Key) bool {
			return k.NetNS == host && k.Destination.Port() == 911 && k.Source.Addr().String() == c.source
		})
		if got != (Counters{c.packets, c.packets * 128}) || len(keys) != 1 {
			t.Fatalf("dropped %+v, want %d packets: %v", got, c.packets, keys)
		}
		s.check(t, sample, keys[0], c.reason, c.direction)
		if keys[0].SocketNetNS != s.inode(c.sender) || keys[0].Socket == 0 { // the sender's, which the packet still has
			t.Errorf("socket %d in %d", keys[0].Socket, keys[0].SocketNetNS)
		}
	}
	listing, err := filter.List(context.Background())
	if err != nil || len(listing.Rules) != 1 || listing.Rules[0].Packets != 50 {
		t.Errorf("port-filter has counted %+v, %v", listing, err)
	}
}

// TestFullBuffer has the buffer of a socket run over, whose process is told.
func TestFullBuffer(t *testing.T) {
	s := newSite(t, nil)
	cgroup := testkit.Cgroup(t)
	pid := s.receiver(cgroup, "10.77.0.1:921")
	s.datagrams(s.pod, "10.77.0.1:921", 200)
	full := s.counter(s.host, "Udp RcvbufErrors")
	if full == 0 || full == 200 {
		t.Fatalf("%d datagrams found no room", full)
	}
	host := s.inode(s.host)
	got, keys, sample := s.dropped(full, func(k Key) bool { return k.NetNS == host && k.Destination.Port() == 921 })
	if got != (Counters{full, full * 128}) || len(keys) != 1 {
		t.Fatalf("dropped %+v, want %d packets: %v", got, full, keys)
	}
	s.check(t, sample, keys[0], "socket_rcvbuff", Ingress)
	if tellsReceiver(t) {
		var stat unix.Stat_t
		if err := unix.Stat(cgroup, &stat); err != nil || keys[0].CgroupID != stat.Ino || keys[0].Socket == 0 || keys[0].SocketNetNS != host {
			t.Errorf("cgroup %d, want %d, %v: %+v", keys[0].CgroupID, stat.Ino, err, keys[0])
		}
	}
	finder, err := sockets.NewFinder(s.host)
	if err != nil {
		t.Fatal(err)
	}
	processes := NewProcesses(finder)
	for range 20 {
		s.datagrams(s.pod, "10.77.0.1:921", 1) // a port alone tells for a second
		if p := s.processOf(processes, s.latest(921)); p != nil {
			if p.PID != pid || p.Owners != 1 || p.Executable == nil || p.StartTime.IsZero() {
				t.Errorf("the process is %+v, want %d", p, pid)
			}
			return
		}
	}
	t.Error("no process was found")
}

// latest is what was dropped last that was for a port.
func (s site) latest(port uint16) (last Shown) {
	s.Helper()
	for key, e := range s.sample().Entries {
		if key.Destination.Port() == port && e.LastSeen.After(last.LastSeen) {
			last = Shown{key, e, true}
		}
	}
	return last
}

func (s site) processOf(p *Processes, drop Shown) *Process {
	s.Helper()
	found, err := p.Of([]Shown{drop})
	if err != nil {
		s.Fatal(err)
	}
	return found[0]
}

// tellsReceiver says whether the kernel tells the socket that would have got a packet
// (Linux 6.11).
func tellsReceiver(t *testing.T) bool {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var traced *btf.Typedef
	if err := kernel.TypeByName("btf_trace_kfree_skb", &traced); err != nil {
		t.Fatal(err)
	}
	return len(traced.Type.(*btf.Pointer).Target.(*btf.FuncProto).Params) > 4
}

// receiver starts a process on the host that receives nothing.
func (s site) receiver(cgroup, address string) (pid int) {
	s.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		s.Fatal(err)
	}
	defer dir.Close()
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), receiver+"="+address)
	command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	s.in(s.host, command.Start)
	s.Cleanup(func() {
		input.Close()
		_ = command.Wait()
	})
	if line, err := bufio.NewReader(output).ReadString('\n'); err != nil || line != "ready\n" {
		s.Fatalf("the receiver says %q, %v", line, err)
	}
	return command.Process.Pid
}

// TestOverflow has more drops than are remembered between two samples: what was made and
// isn't seen is lost, and its packets are still counted.
func TestOverflow(t *testing.T) {
	s := newSite(t, map[string]uint32{"drop_entries": 200})
	var watch Watch
	watch.Take(s.sample())
	before := watch.Document()
	const sent = 3000
	s.in(s.pod, func() error {
		conn, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		for i := range sent {
			if _, err := conn.WriteTo(nil, &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 1000 + i}); err != nil {
				return err
			}
		}
		return nil
	})
	for range 100 {
		watch.Take(s.sample())
		if watch.Document().Total.Packets-before.Total.Packets >= sent {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	d := watch.Document()
	if d.Loss.Drops < sent-1000 || d.Loss.Reasons != 0 {
		t.Errorf("lost %+v", d.Loss)
	}
	if len(d.Drops) > 200 || d.Total.Packets-before.Total.Packets < sent {
		t.Errorf("%d drops, %+v in total after %+v", len(d.Drops), d.Total, before.Total)
	}
	sum := d.Others.Counters
	for _, drop := range d.Drops {
		sum = sum.plus(drop.Counters)
	}
	if sum != d.Total.Counters {
		t.Errorf("drops and others are %+v, the total %+v", sum, d.Total.Counters)
	}
}
