package metrics

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/engine"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
	"bpfnet/internal/traffic"
)

// compared is a source with interfaces at tc whose counters are given.
func compared() *fake {
	f := newFake("pod-traffic")
	f.passed = datapath.InterfaceBytes{NetNS: 1, Bytes: map[uint32]uint64{}}
	f.kinds, f.sample.Attached = map[uint32]string{4: "veth", 5: "netkit", 9: "device"}, []traffic.Point{traffic.TC}
	f.sample.Rows = map[traffic.Row]traffic.Counters{}
	return f
}

// hang attaches the program to interfaces, in these directions, as link of a number.
func (f *fake) hang(link uint32, directions string, indexes ...uint32) {
	if f.sample.Devices == nil {
		f.sample.Devices = map[uint32]string{}
	}
	for _, index := range indexes {
		for _, direction := range strings.Fields(directions) {
			f.hanging = append(f.hanging, datapath.Attachment{Hook: "tcx_" + direction, IfIndex: &index, NetNS: &f.passed.NetNS, LinkID: &link})
		}
		f.sample.Devices[index] = "veth"
		f.passed.Bytes[index] += 0
	}
}

// pass has bytes pass an interface, of which some are counted as of an address.
func (f *fake) pass(index uint32, address string, counted, passed uint64) {
	f.passed.Bytes[index] += passed
	key := traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr(address), IfIndex: index}
	c := f.sample.Pods[key]
	c.Add(traffic.Counters{TransmitBytes: counted})
	f.sample.Pods[key] = c
}

const both = "ingress egress"

// ratio is what a scrape says, -1 if it says nothing.
func (w *watched) ratio() float64 {
	w.Helper()
	for _, value := range w.values("bpfnet_reconcile_ratio") {
		return value
	}
	return -1
}

// What was counted is compared with what has passed since the exporter started.
func TestReconcile(t *testing.T) {
	f := compared()
	f.hang(1, both, 4, 5)
	f.pass(4, "10.77.0.4", 5, 5000) // before it was attached
	f.atTC("10.77.0.9", 8, sent(9)) // of an interface that has gone
	w := watch(t, f, 10)
	check := func(when string, want float64) {
		t.Helper()
		if got := w.ratio(); got != want {
			t.Errorf("%s: %v, not %v", when, got, want)
		}
	}
	check("at first", -1)
	check("nothing passed", -1)
	f.pass(4, "10.77.0.4", 600, 600)
	f.pass(5, "10.77.0.5", 300, 400)
	row := traffic.Row{Point: traffic.TC, Name: "non_ip"}
	f.sample.Rows[row] = traffic.Counters{ReceiveBytes: 100}
	f.sample.Rows[traffic.Row{Point: traffic.Cgroup, Name: "truncated"}] = traffic.Counters{ReceiveBytes: 1e6}
	f.atCgroup("10.77.0.4", 77, sent(1e6))
	check("all", 1)
	f.pass(4, "10.77.0.4", 500, 1000)
	check("half of it", 0.75)

	f.hang(2, both, 6) // which has passed much before
	f.kinds[6] = "veth"
	f.pass(6, "10.77.0.6", 1, 1e6)
	check("another one", 0.75)
	f.pass(6, "10.77.0.6", 2000, 2000)
	check("since then", 0.875)
	f.hanging[5].LinkID = new(uint32) // attached anew
	f.pass(6, "10.77.0.6", 0, 1e6)
	check("detached meanwhile", 0.875)
	delete(f.sample.Pods, traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.5"), IfIndex: 5})
	f.pass(4, "10.77.0.4", 1, 1)
	check("an entry was removed", 0.875)
}

// Where it can't be said there is no series.
func TestNotReconciled(t *testing.T) {
	for name, change := range map[string]func(*fake){
		"one direction":         func(f *fake) { f.hang(2, "ingress", 9); f.kinds[9] = "veth" },
		"another namespace":     func(f *fake) { f.hanging[0].NetNS = new(uint64) },
		"no namespace":          func(f *fake) { f.hanging[0].NetNS = nil },
		"hardware":              func(f *fake) { f.hang(2, both, 9) },
		"a kind nobody knows":   func(f *fake) { f.hang(2, both, 10) },
		"prefixes":              func(f *fake) { f.set = map[string]string{"match_prefixes": "1"} },
		"attached meanwhile":    func(f *fake) { f.sample.Devices[9] = "eth0" },
		"replaced meanwhile":    func(f *fake) { delete(f.sample.Devices, 4); f.sample.Devices[5] = "veth-b" },
		"gone meanwhile":        func(f *fake) { delete(f.passed.Bytes, 4) },
		"detached":              func(f *fake) { f.hanging, f.sample.Devices = nil, nil },
		"defunct":               func(f *fake) { f.hanging[0].Defunct, f.hanging[1].Defunct = true, true },
		"bytes that can't be":   func(f *fake) { f.errors["bytes"] = errors.New("not now") },
		"kinds that can't be":   func(f *fake) { f.hang(2, both, 5); f.errors["kinds"] = errors.New("not now") },
		"an instance not there": func(f *fake) { f.loaded = nil },
	} {
		f := compared()
		f.hang(1, both, 4)
		w := watch(t, f, 10)
		w.ratio()
		f.pass(4, "10.77.0.4", 100, 100)
		if got := w.ratio(); got != 1 {
			t.Fatalf("before: %v", got)
		}
		change(f)
		if got := w.ratio(); got != -1 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Interfaces of all kinds that are compared count what tc sees, with a real kernel.
func TestPairsAreExact(t *testing.T) {
	netkit := func(mode netlink.NetkitMode) func(netlink.NsFd) netlink.Link {
		return func(ns netlink.NsFd) netlink.Link {
			nk := &netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: "host"}, Mode: mode}
			nk.SetPeerAttrs(&netlink.LinkAttrs{Name: "eth0", Namespace: ns})
			return nk
		}
	}
	for name, pair := range map[string]func(netlink.NsFd) netlink.Link{
		"veth": func(ns netlink.NsFd) netlink.Link {
			return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host"}, PeerName: "eth0", PeerNamespace: ns}
		},
		"netkit in L2 mode": netkit(netlink.NETKIT_MODE_L2), "netkit in L3 mode": netkit(netlink.NETKIT_MODE_L3),
	} {
		t.Run(name, func(t *testing.T) {
			host, pod := testkit.NetNS(t), testkit.NetNS(t)
			peer, err := os.Open(pod)
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			err = netns.Do(host, func() error { return netlink.LinkAdd(pair(netlink.NsFd(peer.Fd()))) })
			testkit.Needs(t, strings.Fields(name)[0], err, unix.EOPNOTSUPP)
			up(t, host, "host", "10.78.2.1/24")
			up(t, pod, "eth0", "10.78.2.2/24")
			e, err := datapath.Open(datapath.Options{Root: testkit.Root(t), NetNS: host})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := e.Load(t.Context(), datapath.LoadRequest{Source: "pod-traffic"}); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Attach(t.Context(), datapath.AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "host", Direction: datapath.Both}); err != nil {
				t.Fatal(err)
			}
			w := watch(t, kernel{e, endpoint.New(host, engine.Sockets{})}, 10)
			w.Now = time.Now
			w.ratio()
			const bytes = 20 << 20
			exchange(t, host, pod, "10.78.2.1:0", bytes)
			exchange(t, pod, host, "10.78.2.2:0", bytes)
			if got := w.ratio(); got < 0.999 || got > 1.001 || w.compared["pod-traffic"].sum.passed < 2*bytes {
				t.Errorf("ratio %v, %+v", got, w.compared["pod-traffic"].sum)
			}
		})
	}
}

func up(t *testing.T, ns, device, address string) {
	t.Helper()
	err := netns.Do(ns, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// exchange sends bytes by TCP from one namespace to an address of another.
func exchange(t *testing.T, to, from, address string, bytes int64) {
	t.Helper()
	var l net.Listener
	var c net.Conn
	err := netns.Do(to, func() (err error) { l, err = net.Listen("tcp4", address); return err })
	if err == nil {
		defer l.Close()
		err = netns.Do(from, func() (err error) { c, err = net.Dial("tcp4", l.Addr().String()); return err })
	}
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan int64, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			received <- -1
			return
		}
		defer conn.Close()
		n, _ := io.Copy(io.Discard, conn)
		received <- n
	}()
	if _, err := c.Write(make([]byte, bytes)); err != nil {
		t.Error(err)
	}
	c.Close()
	if n := <-received; n != bytes {
		t.Errorf("%d of %d bytes arrived", n, bytes)
	}
	time.Sleep(100 * time.Millisecond) // the last packets of the connection
}
