package bpf_test

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
)

// tap is a device in a network namespace of its own that receives what is
// written to it.
type tap struct {
	*os.File
	index int
}

// newTap makes a tap device. The thread isn't unlocked: it ends with the test,
// and the namespace with it.
func newTap(t *testing.T) tap {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("a network namespace needs CAP_SYS_ADMIN: %v", err)
	}
	device := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "tap0"},
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
		Queues:    1,
	}
	if err := netlink.LinkAdd(device); err != nil {
		t.Skipf("a tap device needs /dev/net/tun: %v", err)
	}
	file := device.Fds[0]
	t.Cleanup(func() { _ = file.Close() })
	if err := netlink.LinkSetUp(device); err != nil {
		t.Fatal(err)
	}
	return tap{file, device.Index}
}

// receive makes the device receive a packet of which only the Ethernet header is
// in the linear part of the skb. It works for packets larger than a page.
func (d tap) receive(t *testing.T, packet []byte) {
	t.Helper()
	virtio := make([]byte, 10)
	virtio[2] = 14 // length of the headers
	if _, err := d.Write(append(virtio, packet...)); err != nil {
		t.Fatal(err)
	}
}

func (d tap) attach(t *testing.T, program *ebpf.Program) {
	t.Helper()
	tcx, err := link.AttachTCX(link.TCXOptions{Interface: d.index, Program: program, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		d.filter(t, program)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tcx.Close() })
}

// filter attaches on kernels without TCX: by a filter, which goes with the device.
func (d tap) filter(t *testing.T, program *ebpf.Program) {
	t.Helper()
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: d.index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		t.Fatal(err)
	}
	if err := netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: d.index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:           program.FD(),
		Name:         "nonlinear",
		DirectAction: true,
	}); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition that a packet on its way makes true.
func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for range 200 {
		if condition() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the packet wasn't counted as expected")
}

var nonlinear = []struct {
	name   string
	source string
	packet []byte
}{
	{"v4", source4, ethernet(ip4(IPv4Header{Options: 2}), UDP(1, 53), Payload(5000))},
	{"v6", source6, ethernet(ip6(), Extension(HopByHop, 0), Fragment(1, 0, true), UDP(1, 53), Payload(5000))},
}

func TestPodTrafficNonLinear(t *testing.T) {
	device := newTap(t)
	c := load(t, "pod-traffic", nil)
	device.attach(t, c.Programs["pod_traffic_ingress"])
	for _, p := range nonlinear {
		device.receive(t, p.packet)
		key := podKey(p.source)
		key.Ifindex = uint32(device.index)
		eventually(t, func() bool {
			var each []bpf.PodCounters
			if c.Maps["pods"].Lookup(key, &each) != nil {
				return false
			}
			return sum(t, c.Maps["pods"], key, addPod) == transmit(len(p.packet), 1)
		})
	}
}

func TestPortFilterNonLinear(t *testing.T) {
	device := newTap(t)
	c := load(t, "port-filter", nil)
	testPolicy{rules: []rule{{bpf.SideDestination, bpf.PortUDP, 53, 53, true}}}.install(t, c)
	device.attach(t, c.Programs["port_filter_ingress"])
	for i, p := range nonlinear {
		device.receive(t, p.packet)
		eventually(t, func() bool {
			return sum(t, c.Maps["counters"], number(1), addCounter).Packets == uint64(i+1)
		})
	}
}
