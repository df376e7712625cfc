package flow

import (
	"net"

	"github.com/vishvananda/netlink"
)

// blackhole gives packets to a prefix to a device that has nobody behind it.
func blackhole(prefix string) error {
	dummy := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
	if err := netlink.LinkAdd(dummy); err != nil {
		return err
	}
	for _, name := range []string{"v0", "v1"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	l, err := netlink.LinkByName("v0")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr("203.0.113.1/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, address); err != nil {
		return err
	}
	gateway := net.IPv4(203, 0, 113, 2)
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}); err != nil {
		return err
	}
	_, to, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: to, Gw: gateway})
}
