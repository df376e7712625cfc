package peers

import (
	"context"
	"fmt"
	"maps"
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

	"github.com/vishvananda/netlink"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
	"bpfnet/internal/traffic"
)

// pod4 and pod6 are the addresses behind the device a, which the Pod has.
var pod4, pod6 = netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("fd77::2")

// watched is program peers on a hook.
type watched struct {
	*Reader
	attached datapath.Attachment
}

// observe loads program peers, with maps of other sizes, and attaches it in a
// namespace.
func observe(t testing.TB, namespace string, request datapath.AttachRequest, sizes map[string]uint32) watched {
	t.Helper()
	ctx := context.Background()
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t), NetNS: namespace})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Load(ctx, datapath.LoadRequest{Source: "peers", MaxEntries: sizes}); err != nil {
		t.Fatal(err)
	}
	request.Name = "peers"
	attached, err := engine.Attach(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // a filter stays as long as its device
		if _, err := engine.Detach(ctx, datapath.DetachRequest{Name: "peers"}); err != nil {
			t.Error(err)
		}
	})
	return watched{NewReader(engine, "peers"), attached.Attachments[0]}
}

// all is a first sample, which has all peers.
func (w watched) all(t testing.TB) Sample {
	t.Helper()
	return sampleBy(t, NewReader(w.api, w.instance))
}

func sampleBy(t testing.TB, r Sampler) Sample {
	t.Helper()
	s, err := r.Sample(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// contacted is what a sample has, by transport, address and port.
func contacted(s Sample, pod netip.Addr) map[string]Counters {
	found := map[string]Counters{}
	for key, e := range s.Peers {
		if key.Endpoint.Address == pod {
			found[traffic.Transport(key.Protocol)+"/"+netip.AddrPortFrom(key.Address, key.Port).String()] = e.Counters
		}
	}
	return found
}

// checkPeers waits until the peers of an address are as wanted.
func (w watched) checkPeers(t *testing.T, pod netip.Addr, want map[string]Counters) Sample {
	t.Helper()
	for attempt := 0; ; attempt++ {
		s := w.all(t)
		if got := contacted(s, pod); maps.Equal(got, want) {
			return s
		} else if attempt == 50 {
			t.Fatalf("%s has contacted %v, want %v", pod, got, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// serve has addresses of a device, and answers at a port of each by TCP and UDP.
func serve(t *testing.T, namespace, device string, addresses ...string) {
	t.Helper()
	err := netns.Do(namespace, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		for _, text := range addresses {
			host, port, err := net.SplitHostPort(text)
			if err != nil {
				return err
			}
			ip := net.ParseIP(host)
			one := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(128, 128)}, Flags: 2 /* no detection of duplicates */}
			if ip.To4() != nil {
				one.IPNet.Mask = net.CIDRMask(32, 32)
			}
			if err := netlink.AddrAdd(l, one); err != nil && !os.IsExist(err) {
				return err
			}
			listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = listener.Close() })
			packets, err := net.ListenPacket("udp", net.JoinHostPort(host, port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = packets.Close() })
			go answer(packets)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func answer(packets net.PacketConn) {
	data := make([]byte, 64)
	for {
		n, from, err := packets.ReadFrom(data)
		if err != nil {
			return
		}
		_, _ = packets.WriteTo(data[:n], from)
	}
}

// from runs a process in a namespace and a cgroup that contacts others, and returns
// whom it reached.
func from(t *testing.T, namespace, cgroup string, words ...string) []string {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var reached []byte
	err = netns.Do(namespace, func() (err error) {
		command := exec.Command(os.Args[0])
		command.Env = append(os.Environ(), contacts+"="+strings.Join(words, " "))
		command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		reached, err = command.Output()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(reached))
}

// lead routes everything that the Pod sends to the host, which forwards nothing, and
// has no way to a prefix of each family, which it says.
func lead(t *testing.T, host, pod string) {
	t.Helper()
	route := func(namespace, to, via string) {
		t.Helper()
		err := netns.Do(namespace, func() error {
			_, prefix, err := net.ParseCIDR(to)
			if err != nil {
				return err
			}
			r := &netlink.Route{Dst: prefix, Gw: net.ParseIP(via)}
			if via == "" {
				r.Type, r.Family = syscall.RTN_UNREACHABLE, netlink.FAMILY_V4
				if prefix.IP.To4() == nil {
					r.Family, r.LinkIndex = netlink.FAMILY_V6, 1
				}
			}
			return netlink.RouteAdd(r)
		})
		if err != nil {
			t.Fatalf("route to %s: %v", to, err)
		}
	}
	route(pod, "0.0.0.0/0", "10.77.0.1")
	route(pod, "::/0", "fd77::1")
	route(host, "192.0.2.0/24", "")
	route(host, "2001:db8:2::/64", "")
	err := netns.Do(host, func() error {
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fifty are addresses of a family, with a port.
func fifty(format string) (all []string) {
	for i := range 50 {
		all = append(all, net.JoinHostPort(fmt.Sprintf(format, 100+i), "80"))
	}
	return all
}

// TestContacts has a Pod contact others through a veth, and watches it at both
// points: many addresses, closed ports, those who don't answer and those whom nobody
// reaches.
func TestContacts(t *testing.T) {
	host, pod := testkit.Pair(t)
	cgroup := testkit.Cgroup(t)
	lead(t, host, pod)
	four, six := fifty("10.77.0.%d"), fifty("fd77::%d")
	serve(t, host, "a", slices.Concat(four, six)...)
	blackhole(t, host, "198.51.100.1/32", "2001:db8:3::1/128")
	for _, at := range []datapath.AttachRequest{
		{Hook: "tc", Device: "a", Direction: datapath.Both},
		{Hook: "cgroup", Cgroup: cgroup, Direction: datapath.Both},
	} {
		t.Run(at.Hook, func(t *testing.T) {
			onTC := uint64(1)
			if at.Hook == "cgroup" {
				onTC = 0 // messages of ICMP don't get to the hook
			}
			w := observe(t, host, at, nil)
			for _, c := range []struct {
				pod         netip.Addr
				served      []string
				unreachable string
				silent      string
			}{
				{pod4, four, "192.0.2.7", "198.51.100.1"},
				{pod6, six, "2001:db8:2::7", "2001:db8:3::1"},
			} {
				want := map[string]Counters{}
				var words, reached []string
				for _, address := range c.served {
					for _, transport := range []string{"tcp", "udp"} {
						words = append(words, transport+"/"+address)
						want[transport+"/"+address] = Counters{Attempts: 1, Answers: 1}
					}
				}
				reached = words
				closed := strings.TrimSuffix(c.served[0], ":80") + ":81"
				unreachable, silent := net.JoinHostPort(c.unreachable, "80"), net.JoinHostPort(c.silent, "80")
				words = append(slices.Clone(words), "tcp/"+closed, "tcp/"+closed, "udp/"+closed, "tcp/"+unreachable, "udp/"+unreachable, "tcp/"+silent, "udp/"+silent)
				want["tcp/"+closed] = Counters{Attempts: 2, Refusals: 2}
				want["udp/"+closed] = Counters{Attempts: 1, Refusals: onTC}
				want["tcp/"+unreachable] = Counters{Attempts: 1, Refusals: onTC}
				want["udp/"+unreachable] = Counters{Attempts: 1, Refusals: onTC}
				want["tcp/"+silent] = Counters{Attempts: 1}
				want["udp/"+silent] = Counters{Attempts: 1}
				if got := from(t, pod, cgroup, words...); !slices.Equal(got, reached) {
					t.Errorf("reached %v", got)
				}
				s := w.checkPeers(t, c.pod, want)
				w.checkPlace(t, s, c.pod, Connections{Opened: 107})
			}
		})
	}
}

// blackhole has the host drop what is for some addresses.
func blackhole(t *testing.T, host string, prefixes ...string) {
	t.Helper()
	err := netns.Do(host, func() error {
		for _, text := range prefixes {
			_, prefix, err := net.ParseCIDR(text)
			if err != nil {
				return err
			}
			r := &netlink.Route{Dst: prefix, Type: syscall.RTN_BLACKHOLE, Family: netlink.FAMILY_V4}
			if prefix.IP.To4() == nil {
				r.Family, r.LinkIndex = netlink.FAMILY_V6, 1
			}
			if err := netlink.RouteAdd(r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkPlace checks where an address was seen, and its connections.
func (w watched) checkPlace(t *testing.T, s Sample, pod netip.Addr, want Connections) {
	t.Helper()
	for key, connections := range s.Endpoints {
		if key.Address != pod {
			continue
		}
		tc := w.attached.IfIndex != nil && key.Point == traffic.TC && key.IfIndex == *w.attached.IfIndex && s.Devices[key.IfIndex] == "a"
		cgroup := w.attached.CgroupID != nil && key.Point == traffic.Cgroup && strconv.FormatUint(key.CgroupID, 10) == *w.attached.CgroupID
		if !tc && !cgroup || connections != want {
			t.Errorf("%+v has %+v, want %+v", key, connections, want)
		}
		return
	}
	t.Errorf("%s is none of %v", pod, s.Endpoints)
}

// TestScanned: who answers others, or refuses them, has contacted nobody.
func TestScanned(t *testing.T) {
	host, pod := testkit.Pair(t)
	cgroup := testkit.Cgroup(t)
	w := observe(t, host, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Both}, nil)
	serve(t, pod, "b", "10.77.0.2:80", "[fd77::2]:80")
	var words []string
	for _, address := range []string{"10.77.0.2", "fd77::2"} {
		for port := range 20 {
			target := net.JoinHostPort(address, strconv.Itoa(80+port))
			words = append(words, "tcp/"+target, "udp/"+target)
		}
	}
	if got := from(t, host, cgroup, words...); len(got) != 4 {
		t.Errorf("reached %v", got)
	}
	for _, address := range []netip.Addr{pod4, pod6} {
		s := w.checkPeers(t, address, map[string]Counters{})
		w.checkPlace(t, s, address, Connections{Received: 40})
	}
}

// TestOverflow has more peers than are remembered between two samples: what was made
// and isn't seen is lost, to the entry, whatever the map does to make room.
func TestOverflow(t *testing.T) {
	host, pod := testkit.Pair(t)
	lead(t, host, pod)
	w := observe(t, host, datapath.AttachRequest{Hook: "tc", Device: "a", Direction: datapath.Both}, map[string]uint32{"peer_entries": 200})
	var sender net.PacketConn
	err := netns.Do(pod, func() (err error) {
		sender, err = net.ListenPacket("udp4", "10.77.0.2:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sender.Close() })
	next := 0
	send := func(n int) {
		t.Helper()
		for range n {
			to := &net.UDPAddr{IP: net.IPv4(203, 0, byte(next>>8), byte(next)), Port: 9}
			if _, err := sender.WriteTo([]byte("x"), to); err != nil {
				t.Fatal(err)
			}
			next++
		}
		for range 100 {
			if w.all(t).Made == uint64(next) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%d of %d were made", w.all(t).Made, next)
	}
	send(500)
	var watch Watch
	seen := map[netip.Addr]bool{}
	take := func() (fresh int) {
		t.Helper()
		s := sampleBy(t, w)
		watch.Take(s)
		for key := range s.Peers {
			if !seen[key.Address] {
				fresh++
			}
			seen[key.Address] = true
		}
		if n := len(w.all(t).Peers); n > 200 {
			t.Errorf("%d entries", n)
		}
		return fresh
	}
	if n := take(); n == 0 || watch.Document().Loss.Peers != 0 {
		t.Errorf("%d at first, lost %d", n, watch.Document().Loss.Peers)
	}
	lost := 0
	for _, n := range []int{1, 10, 150, 1000, 0, 3000} {
		send(n)
		lost += n - take()
		d := watch.Document()
		if d.Loss.Peers != uint64(lost) {
			t.Errorf("after %d more: lost %d, want %d", n, d.Loss.Peers, lost)
		}
	}
	if lost < 3500 {
		t.Errorf("lost only %d", lost)
	}
}

// BenchmarkSample reads full maps.
func BenchmarkSample(b *testing.B) {
	w := observe(b, testkit.NetNS(b), datapath.AttachRequest{Hook: "tc", Device: "lo", Direction: datapath.Both}, nil)
	m, err := w.api.OpenMap("peers", "peer_entries", false)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	var key bpf.PeerKey
	key.Endpoint.In6U.U6Addr8 = pod4.As16()
	for i := range m.MaxEntries() {
		key.Peer.In6U.U6Addr8 = netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}).As16()
		if err := m.Put(key, bpf.PeerEntry{Attempts: 1, First: uint64(i), Last: uint64(i)}); err != nil {
			b.Fatal(err)
		}
	}
	entries := 0
	for b.Loop() {
		entries += len(sampleBy(b, w).Peers)
	}
	b.ReportMetric(float64(entries), "entries")
}
