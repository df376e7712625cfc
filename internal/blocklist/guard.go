package blocklist

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"bpfnet/internal/fault"
)

// reserved are the addresses that are nobody's on the Internet: listing them is
// mostly a mistake that locks people out. IANA's special-purpose registries:
// RFC 6890 and what it has been updated by.
var reserved = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared by carriers"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/127"), "unspecified and loopback"},
	{netip.MustParsePrefix("fc00::/7"), "private"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// guard knows what must not be listed without --force.
type guard []guarded

type guarded struct {
	prefix
	what string // "10.0.0.0/8 is private"
}

// newGuard reads the machine's addresses and default gateways in the network
// namespace of the thread.
func newGuard() (guard, error) {
	var g guard
	for _, r := range reserved {
		g = append(g, guarded{newPrefix(r.prefix), fmt.Sprintf("%s is %s", r.prefix, r.what)})
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return g, fmt.Errorf("read the machine's addresses: %w", err)
	}
	for _, a := range addresses {
		if address, ok := netip.AddrFromSlice(a.IP); ok {
			g = append(g, own(address, "this machine's address"))
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return g, fmt.Errorf("read the machine's routes: %w", err)
	}
	for _, r := range routes {
		if address, ok := netip.AddrFromSlice(r.Gw); ok && isDefault(r) {
			g = append(g, own(address, "the default gateway"))
		}
	}
	return g, nil
}

func own(address netip.Addr, what string) guarded {
	address = address.Unmap()
	return guarded{newPrefix(netip.PrefixFrom(address, address.BitLen())), fmt.Sprintf("%s is %s", address, what)}
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// refuses says why a prefix must not be listed, "" if it may.
func (g guard) refuses(p prefix) string {
	for _, other := range g {
		switch {
		case !p.overlaps(other.prefix):
		case p.length == 0:
			return "it covers every address"
		default:
			return other.what
		}
	}
	return ""
}

// refuseOwn refuses prefixes by which people lock themselves out.
func refuseOwn(prefixes []netip.Prefix) error {
	g, err := newGuard()
	if err != nil {
		return err
	}
	for _, p := range prefixes {
		if why := g.refuses(newPrefix(p)); why != "" {
			return fault.New(fault.ErrUsage, "%s: %s", p, why).Hint("--force lists it all the same")
		}
	}
	return nil
}
