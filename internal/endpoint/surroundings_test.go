package endpoint

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"bpfnet/internal/testkit"
)

// TestSurroundings has a Pod behind a bridge, one behind a route of its own, as some
// network plug-ins make them, and an uplink, what is behind which isn't near.
func TestSurroundings(t *testing.T) {
	s := newSite(t)
	first, second, router := testkit.NetNS(t), testkit.NetNS(t), testkit.NetNS(t)
	s.connect(first, "vetha", "10.201.1.2/24")
	s.connect(second, "vethb", "10.201.2.2/32")
	s.connect(router, "up0", "192.0.2.254/24")
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}}
	var devices []uint32
	s.in(s.host, func() {
		if err := netlink.LinkAdd(bridge); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"vetha", "vethb"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				t.Error(err)
				return
			}
			devices = append(devices, uint32(l.Attrs().Index))
			if err := netlink.LinkSetUp(l); err != nil {
				t.Error(err)
			}
			if name == "vetha" {
				err = netlink.LinkSetMaster(l, bridge)
			} else {
				err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: network("10.201.2.2/32")})
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	s.address(s.host, "cni0", "10.201.1.1/24", "fd77:1::1/64")
	s.address(s.host, "up0", "192.0.2.1/24")
	s.in(s.host, func() {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: indexOf("up0"), Gw: net.IPv4(192, 0, 2, 254)}); err != nil {
			t.Error(err)
		}
	})
	got, err := s.Surroundings(devices)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.201.1.0/24", "10.201.2.2/32", "fd77:1::/64"} {
		if !slices.Contains(got.Networks, netip.MustParsePrefix(want)) {
			t.Errorf("%s isn't near: %s", want, got.Networks)
		}
	}
	for _, want := range []string{"10.201.1.1", "fd77:1::1", "192.0.2.1"} {
		if !slices.Contains(got.Addresses, netip.MustParseAddr(want)) {
			t.Errorf("%s is missing: %s", want, got.Addresses)
		}
	}
	for _, far := range []string{"192.0.2.7", "198.51.100.7", "10.201.2.3", "2001:db8::1"} {
		if slices.ContainsFunc(got.Networks, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(far)) }) {
			t.Errorf("%s is near: %s", far, got.Networks)
		}
	}
}

func network(text string) *net.IPNet {
	_, n, err := net.ParseCIDR(text)
	if err != nil {
		panic(err)
	}
	return n
}
