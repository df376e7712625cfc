package bypass

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpftool"
	"bpfnet/internal/datapath"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
	"bpfnet/internal/traffic"
)

var ctx = context.Background()

// node routes between a Pod and a machine far away: its "nic" leads to that, its
// "lxc" is the host side of the Pod. pod-traffic is loaded.
type node struct {
	root, ns, pod, far string
	lxc, nic           uint32 // indexes
	engine             *datapath.Engine
}

const (
	podAddress = "10.78.2.2"
	farAddress = "10.78.1.2"
)

// pairs make two devices that are connected, "eth0" of them in another namespace.
var pairs = map[string]func(name string, ns netlink.NsFd) netlink.Link{
	"veth": func(name string, ns netlink.NsFd) netlink.Link {
		return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: ns}
	},
	"netkit in L2 mode": func(name string, ns netlink.NsFd) netlink.Link { return netkit(name, ns, netlink.NETKIT_MODE_L2) },
	"netkit in L3 mode": func(name string, ns netlink.NsFd) netlink.Link { return netkit(name, ns, netlink.NETKIT_MODE_L3) },
}

func netkit(name string, ns netlink.NsFd, mode netlink.NetkitMode) netlink.Link {
	nk := &netlink.Netkit{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: mode}
	nk.SetPeerAttrs(&netlink.LinkAttrs{Name: "eth0", Namespace: ns})
	return nk
}

func newNode(t *testing.T, hostSide string) *node {
	t.Helper()
	n := &node{root: testkit.Root(t), ns: testkit.NetNS(t), pod: testkit.NetNS(t), far: testkit.NetNS(t)}
	n.nic = n.join(t, "veth", "nic", "10.78.1.1", n.far, farAddress)
	n.lxc = n.join(t, hostSide, "lxc", "10.78.2.1", n.pod, podAddress)
	in(t, n.ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	var err error
	if n.engine, err = datapath.Open(datapath.Options{Root: n.root, NetNS: n.ns}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.engine.Load(ctx, datapath.LoadRequest{Source: "pod-traffic"}); err != nil {
		t.Fatal(err)
	}
	return n
}

// join connects the node with another namespace, whose default route it is.
func (n *node) join(t *testing.T, kind, name, address, ns, peerAddress string) (index uint32) {
	t.Helper()
	file, err := os.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = netns.Do(n.ns, func() error { return netlink.LinkAdd(pairs[kind](name, netlink.NsFd(file.Fd()))) })
	testkit.Needs(t, strings.Fields(kind)[0], err, unix.EOPNOTSUPP)
	run(t, n.ns, "ip addr add "+address+"/24 dev "+name)
	run(t, n.ns, "ip link set "+name+" up")
	run(t, ns, "ip addr add "+peerAddress+"/24 dev eth0")
	run(t, ns, "ip link set eth0 up")
	run(t, ns, "ip route add default via "+address)
	in(t, n.ns, func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			index = uint32(l.Attrs().Index)
		}
		return err
	})
	return index
}

func in(t *testing.T, ns string, fn func() error) {
	t.Helper()
	if err := netns.Do(ns, fn); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, ns, line string) {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + ns}, strings.Fields(line)...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, out)
	}
}

// count attaches pod-traffic to the host side.
func (n *node) count(t *testing.T, first bool) []datapath.Attachment {
	t.Helper()
	_, err := n.engine.Attach(ctx, datapath.AttachRequest{
		Hook: "tc", Name: "pod-traffic", Device: "lxc", Direction: datapath.Both, Position: datapath.Position{First: first},
	})
	if err != nil {
		t.Fatal(err)
	}
	attachments, err := n.engine.Attachments(ctx, "pod-traffic")
	if err != nil || len(attachments) != 2 {
		t.Fatal(attachments, err)
	}
	t.Cleanup(func() {
		if _, err := n.engine.Detach(ctx, datapath.DetachRequest{Hook: "tc", Name: "pod-traffic"}); err != nil {
			t.Error(err)
		}
	})
	return attachments
}

const packets = 5

// ping sends packets to the Pod, which answers, and returns how many of each
// pod-traffic counted.
func (n *node) ping(t *testing.T) (transmit, receive uint64) {
	t.Helper()
	run(t, n.far, "ping -q -c1 -W5 "+podAddress) // all know their neighbours then
	before := n.counted(t)
	run(t, n.far, fmt.Sprintf("ping -q -i0.01 -W5 -c%d %s", packets, podAddress))
	now := n.counted(t)
	return now.TransmitPackets - before.TransmitPackets, now.ReceivePackets - before.ReceivePackets
}

func (n *node) counted(t *testing.T) (pod traffic.Counters) {
	t.Helper()
	s, err := traffic.NewReader(n.engine, "pod-traffic").Sample(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for key, counters := range s.Pods {
		if key.Address == netip.MustParseAddr(podAddress) {
			pod = counters
		}
	}
	return pod
}

// attach puts a program on a hook of a device.
func (n *node) attach(t *testing.T, p *ebpf.Program, index uint32, hook ebpf.AttachType) {
	t.Helper()
	attach := func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Program: p, Interface: int(index), Attach: hook})
	}
	if hook == ebpf.AttachNetkitPeer || hook == ebpf.AttachNetkitPrimary {
		attach = func() (link.Link, error) {
			return link.AttachNetkit(link.NetkitOptions{Program: p, Interface: int(index), Attach: hook})
		}
	}
	in(t, n.ns, func() error {
		l, err := attach()
		if errors.Is(err, link.ErrNotSupported) {
			return n.attachClsact(t, p, int(index))
		}
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// attachClsact is for kernels without TCX.
func (n *node) attachClsact(t *testing.T, p *ebpf.Program, index int) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return err
	}
	t.Cleanup(func() { in(t, n.ns, func() error { return netlink.QdiscDel(qdisc) }) })
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 2},
		Fd:          p.FD(), Name: "anything", DirectAction: true,
	})
}

// other is a program of somebody else.
type other struct {
	device string
	hook   ebpf.AttachType
	helper asm.BuiltinFunc // that it calls for packets; 0: it lets all pass, and no program behind it runs
}

func (n *node) run(t *testing.T, o other) {
	t.Helper()
	from, to := n.nic, n.lxc
	if o.device == "lxc" {
		from, to = to, from
	}
	code := asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}
	if o.helper != 0 {
		code = testkit.Redirecting(o.helper, to)
	}
	n.attach(t, testkit.Classifier(t, "anything", code), from, o.hook)
}

// cases are what docs/endpoints.md has a table of: how much of what a Pod sends
// and receives pod-traffic counts at its host side.
var cases = []struct {
	name              string
	others            []other
	first             bool // pod-traffic is in front
	transmit, receive uint64
	reported          bool
}{
	{"no program", nil, false, packets, packets, false},
	{"into the Pod", []other{{"nic", ebpf.AttachTCXIngress, asm.FnRedirectPeer}}, true, packets, 0, true},
	{"to the host side", []other{{"nic", ebpf.AttachTCXIngress, asm.FnRedirectNeigh}}, false, packets, packets, false},
	{"from the host side", []other{{"lxc", ebpf.AttachTCXIngress, asm.FnRedirectNeigh}}, false, 0, packets, true},
	{"from the host side, later", []other{{"lxc", ebpf.AttachTCXIngress, asm.FnRedirectNeigh}}, true, packets, packets, false},
	{"a verdict", []other{{"lxc", ebpf.AttachTCXIngress, 0}}, false, 0, packets, false}, // can't be known
	{"netkit's hooks", []other{{"lxc", ebpf.AttachNetkitPrimary, 0}, {"lxc", ebpf.AttachNetkitPeer, 0}}, false, packets, packets, false},
	{"from netkit", []other{{"lxc", ebpf.AttachNetkitPeer, asm.FnRedirectNeigh}}, true, 0, packets, true},
	{
		"from netkit, into the Pod",
		[]other{{"nic", ebpf.AttachTCXIngress, asm.FnRedirectPeer}, {"lxc", ebpf.AttachNetkitPeer, asm.FnRedirectNeigh}},
		true, 0, 0, true,
	},
}

// TestHostSides counts at host sides while other programs redirect what passes
// there, and compares with what is found out of these programs.
func TestHostSides(t *testing.T) {
	for kind := range pairs {
		t.Run(kind, func(t *testing.T) {
			n := newNode(t, kind)
			for _, c := range cases {
				if kind == "veth" && strings.Contains(c.name, "netkit") {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					for _, o := range c.others {
						n.run(t, o)
					}
					attachments := n.count(t, c.first)
					report := Find(ctx, bpftool.New(n.root, n.ns))
					if report.Detail != nil {
						t.Fatal(*report.Detail)
					}
					transmit, receive := n.ping(t)
					past := report.Past(attachments)
					if transmit != c.transmit || receive != c.receive || (len(past) > 0) != c.reported {
						t.Errorf("the Pod's packets are %d and %d, want %d and %d; past it take %v", transmit, receive, c.transmit, c.receive, past)
					}
					n.compare(t, past, transmit, receive)
				})
			}
		})
	}
}

// compare compares what is said to be missed with what is.
func (n *node) compare(t *testing.T, past []Program, transmit, receive uint64) {
	t.Helper()
	said := map[Part]bool{}
	for _, p := range past {
		for _, part := range p.Misses {
			said[part] = said[part] || part == Receive || p.IfIndex == n.lxc
		}
	}
	if len(past) > 0 && (said[Transmit] != (transmit == 0) || said[Receive] != (receive == 0)) {
		t.Errorf("%d sent and %d received packets are counted, and said to be missed: %+v", transmit, receive, past)
	}
}

// TestCalls finds helpers wherever a program goes on.
func TestCalls(t *testing.T) {
	peer := testkit.Classifier(t, "peer", testkit.Redirecting(asm.FnRedirectPeer, 1))
	jumps := func(programs ...*ebpf.Program) *ebpf.Program {
		array, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 100})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { array.Close() })
		for i, p := range programs {
			if err := array.Put(uint32(90+i), p); err != nil {
				t.Fatal(err)
			}
		}
		return testkit.Classifier(t, "jumps", asm.Instructions{
			asm.LoadMapPtr(asm.R2, array.FD()), asm.Mov.Imm(asm.R3, 90), asm.FnTailCall.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return(),
		})
	}
	neigh := testkit.Classifier(t, "neigh", testkit.Redirecting(asm.FnRedirectNeigh, 1))
	clone := testkit.Classifier(t, "clone", asm.Instructions{
		asm.Mov.Imm(asm.R2, 1), asm.Mov.Imm(asm.R3, 0), asm.FnCloneRedirect.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return(),
	})
	r := newReader()
	for want, p := range map[string]*ebpf.Program{
		"[bpf_redirect_peer]":                    peer,
		"[bpf_redirect]":                         testkit.Classifier(t, "plain", testkit.Redirecting(asm.FnRedirect, 1)),
		"[bpf_redirect_neigh bpf_redirect_peer]": jumps(jumps(peer), neigh, clone),
		"[]":                                     jumps(clone),
	} {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		calls, err := r.calls(ctx, uint32(id))
		if err != nil || fmt.Sprint(calls) != want {
			t.Errorf("%s calls %v, %v; want %s", info.Name, calls, err, want)
		}
	}
	if calls, err := r.calls(ctx, 1<<31); err != nil || len(calls) > 0 {
		t.Errorf("a program that is gone calls %v, %v", calls, err)
	}
}

// TestHiddenCalls tells code that may not be read, or whose calls the kernel
// hides, from one without calls.
func TestHiddenCalls(t *testing.T) {
	const end = "\x95\x00\x00\x00\x00\x00\x00\x00"
	for code, want := range map[string]error{
		"": errHidden, "\x85\x00\x00\x00\x00\x00\x00\x00" + end: errHidden,
		"\x85\x10\x00\x00\x00\x00\x00\x00" + end: nil, // a function of the program itself
		end:                                      nil,
	} {
		if list, err := targets([]byte(code)); err != want || len(list) > 0 {
			t.Errorf("%x: %v, %v", code, list, err)
		}
	}
}

// TestPast finds programs that take packets past attachments of one namespace.
func TestPast(t *testing.T) {
	index, ns := uint32(7), uint64(1)
	r := Report{NetNS: ns, HostSides: []uint32{7, 8}, Programs: []Program{
		{ProgID: 1, IfIndex: 8, Misses: []Part{Transmit, Receive}},
		{ProgID: 2, IfIndex: 7, Misses: []Part{Transmit}, Before: []uint32{30}},
	}}
	for _, c := range []struct {
		a    datapath.Attachment
		want []uint32
	}{
		{datapath.Attachment{Hook: "tcx_ingress", ProgID: 40}, []uint32{2}},
		{datapath.Attachment{Hook: "tcx_ingress", ProgID: 30}, nil},
		{datapath.Attachment{Hook: "clsact_egress"}, []uint32{1}},
		{datapath.Attachment{Hook: "tcx_ingress", Defunct: true}, nil},
	} {
		c.a.IfIndex, c.a.NetNS = &index, &ns
		var got []uint32
		for _, p := range r.Past([]datapath.Attachment{c.a}) {
			got = append(got, p.ProgID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %d, want %d", c.a, got, c.want)
		}
	}
	elsewhere, nic := ns+1, uint32(2)
	for _, a := range []datapath.Attachment{
		{Hook: "tcx_egress", IfIndex: &index, NetNS: &elsewhere}, {Hook: "tcx_egress", IfIndex: &nic, NetNS: &ns}, {Hook: "cgroup_inet_egress"},
	} {
		if past := r.Past([]datapath.Attachment{a}); len(past) > 0 {
			t.Errorf("%+v: %v", a, past)
		}
	}
}
