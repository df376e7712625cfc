package datapath

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// A tun device carries packets without an Ethernet header: the programs made for
// those are chosen, and count them right.
func TestDeviceWithoutEthernetHeader(t *testing.T) {
	e, nsA, _ := setup(t)
	err := netns.Do(nsA, func() error {
		tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
		if err := netlink.LinkAdd(tun); err != nil {
			return err
		}
		t.Cleanup(func() {
			for _, f := range tun.Fds {
				f.Close()
			}
		})
		l, err := netlink.LinkByName("tun0")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 99, 0, 1), Mask: net.CIDRMask(24, 32)}}); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	testkit.Needs(t, "tun devices", err, unix.ENOENT, unix.ENODEV)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	load(t, e, LoadRequest{Source: "xdp-counter"})
	load(t, e, object(t, "legacy.o"))
	got := attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "tun0", Direction: Both})
	for i, want := range []string{"pod_traffic_ingress_l3", "pod_traffic_egress_l3"} {
		if got.Attachments[i].Program != want {
			t.Errorf("program %s, want %s", got.Attachments[i].Program, want)
		}
	}
	x := attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "tun0"})
	if x.Attachments[0].Program != "xdp_counter_l3" {
		t.Errorf("program %s", x.Attachments[0].Program)
	}
	// A user's own program has no such variant: it is attached, with a word.
	own := attach(t, e, AttachRequest{Hook: "tc", Name: "legacy", Device: "tun0", Direction: Ingress})
	if len(own.Attachments[0].Notes) != 1 {
		t.Errorf("notes %q", own.Attachments[0].Notes)
	}
	// Nobody reads the device, so the queue takes these few.
	send(t, nsA, "10.99.0.2:9", 5, 100)
	if n := received(t, e, "pod-traffic", net.IPv4(10, 99, 0, 2)); n != 5 {
		t.Errorf("counted %d of 5 packets", n)
	}
}

// received is how many packets the pods map counts for an address.
func received(t *testing.T, e *Engine, name string, address net.IP) uint64 {
	t.Helper()
	m, err := e.OpenMap(name, "pods", true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var sum uint64
	var key [20]byte
	var perCPU [][4]uint64
	for it := m.Iterate(); it.Next(&key, &perCPU); {
		if !net.IP(key[:16]).Equal(address) {
			continue
		}
		for _, v := range perCPU {
			sum += v[3]
		}
	}
	return sum
}
