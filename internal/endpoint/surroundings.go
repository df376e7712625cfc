package endpoint

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"bpfnet/internal/netns"
)

// Surroundings are what is near host-side interfaces, in their network namespace.
type Surroundings struct {
	Addresses []netip.Addr   // of all interfaces
	Networks  []netip.Prefix // behind the host sides and the bridges that these are ports of, without a gateway
}

// Surroundings implements API.
func (k *Kernel) Surroundings(hostSides []uint32) (s Surroundings, err error) {
	err = netns.Do(k.netns, func() error {
		list, err := links()
		if err != nil {
			return err
		}
		near := nearby(list, hostSides)
		all, err := addresses()
		if err != nil {
			return err
		}
		for _, a := range all {
			address, known := prefixOf(a.IPNet)
			if !known {
				continue
			}
			s.Addresses = append(s.Addresses, address.Addr())
			if near[a.LinkIndex] {
				s.Networks = append(s.Networks, address.Masked())
			}
		}
		routes, _, err := netns.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return err
		}
		for _, r := range routes {
			if to, known := prefixOf(r.Dst); known && near[r.LinkIndex] && r.Gw == nil && r.Via == nil && to.Bits() > 0 {
				s.Networks = append(s.Networks, to.Masked())
			}
		}
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("read addresses and routes: %w", err)
	}
	return s, nil
}

// nearby are the indexes of host sides and of the bridges that these are ports of.
func nearby(list []netlink.Link, hostSides []uint32) map[int]bool {
	near := map[int]bool{}
	for _, index := range hostSides {
		near[int(index)] = true
	}
	for _, l := range list {
		if a := l.Attrs(); near[a.Index] && a.MasterIndex > 0 {
			near[a.MasterIndex] = true
		}
	}
	return near
}

// prefixOf is an address or a network of the kernel.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(address.Unmap(), bits), ok
}
