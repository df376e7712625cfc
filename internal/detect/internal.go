package detect

import (
	"net/netip"
	"slices"

	"bpfnet/internal/peers"
)

// Internal says which addresses aren't external peers.
type Internal struct {
	Prefixes  []netip.Prefix
	Endpoints bool // those of the endpoints in the samples
}

// local are the prefixes that are never external: nothing leaves the machine or its
// links to reach them.
var local = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// Local lists the prefixes that are never external: loopback, link-local, multicast
// and what isn't an address of anybody.
func Local() []netip.Prefix { return slices.Clone(local) }

// border tells external addresses from others.
type border struct {
	single    map[netip.Addr]bool
	prefixes  []netip.Prefix
	endpoints map[netip.Addr]place // of the last sample: where, nowhere if at several; nil: they may be external
}

func newBorder(in Internal) border {
	b := border{single: map[netip.Addr]bool{}, prefixes: Local()}
	for _, p := range in.Prefixes {
		if p.IsSingleIP() {
			b.single[p.Addr()] = true
		} else {
			b.prefixes = append(b.prefixes, p)
		}
	}
	if in.Endpoints {
		b.endpoints = map[netip.Addr]place{}
	}
	return b
}

// meet takes the endpoints of a sample.
func (b border) meet(all []peers.Endpoint) {
	if b.endpoints == nil {
		return
	}
	clear(b.endpoints)
	for i := range all {
		at := whereabouts(placeOf(&all[i].Who))
		if other, known := b.endpoints[all[i].Address]; known && other != at {
			at = place{}
		}
		b.endpoints[all[i].Address] = at
	}
}

// whereabouts is a place without the address.
func whereabouts(at place) place {
	at.address = netip.Addr{}
	return at
}

// external says whether an address is one that counts for an endpoint at a place. That
// it sends from that address itself makes no difference: it may forge it.
func (b border) external(a netip.Addr, by place) bool {
	at, known := b.endpoints[a]
	return (!known || at == whereabouts(by)) && !b.single[a] &&
		!slices.ContainsFunc(b.prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
