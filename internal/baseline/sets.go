package baseline

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// How many peers and ports an endpoint has before they are put together.
const (
	mostPeers = 256
	mostPorts = 128
)

// peerSet is a set of prefixes; an address is one of all its bits.
type peerSet map[netip.Prefix]bool

// contains says whether a prefix of the set has the address.
func (s peerSet) contains(address netip.Addr) bool {
	for bits := address.BitLen(); bits >= 0; bits-- {
		if p, err := address.Prefix(bits); err == nil && s[p] {
			return true
		}
	}
	return false
}

// add adds a prefix, if no other has it, and takes out those that it has.
func (s peerSet) add(prefix netip.Prefix) {
	for bits := prefix.Bits(); bits >= 0; bits-- {
		if p, err := prefix.Addr().Prefix(bits); err == nil && s[p] {
			return
		}
	}
	if !prefix.IsSingleIP() {
		maps.DeleteFunc(s, func(p netip.Prefix, _ bool) bool { return prefix.Overlaps(p) })
	}
	s[prefix] = true
}

// The prefixes that peers are put together in, the longest first.
var (
	levels4 = []int{24, 16, 8, 0}
	levels6 = []int{64, 48, 32, 0}
)

// bound puts peers together until there are no more than mostPeers: as long as it can
// it takes the longest prefixes, and of those the ones with the most peers. Those of a
// length have no peers in common.
func (s peerSet) bound() {
	for level := 0; level < len(levels4) && len(s) > mostPeers; level++ {
		inside := s.inside(level)
		fullest := slices.SortedFunc(maps.Keys(inside), func(a, b netip.Prefix) int {
			return cmp.Or(cmp.Compare(len(inside[b]), len(inside[a])), a.Addr().Compare(b.Addr()))
		})
		for _, outer := range fullest {
			if len(s) <= mostPeers || len(inside[outer]) < 2 {
				break
			}
			for _, p := range inside[outer] {
				delete(s, p)
			}
			s[outer] = true
		}
	}
}

// inside are the prefixes of a level, with those of the set that each has.
func (s peerSet) inside(level int) map[netip.Prefix][]netip.Prefix {
	all := map[netip.Prefix][]netip.Prefix{}
	for p := range s {
		levels := levels6
		if p.Addr().Is4() {
			levels = levels4
		}
		if outer, err := p.Addr().Prefix(levels[level]); err == nil && outer.Bits() < p.Bits() {
			all[outer] = append(all[outer], p)
		}
	}
	return all
}

// list writes a set in its order.
func (s peerSet) list() []string {
	sorted := slices.SortedFunc(maps.Keys(s), func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	texts := make([]string, len(sorted))
	for i, p := range sorted {
		texts[i] = p.String()
		if p.IsSingleIP() {
			texts[i] = p.Addr().String()
		}
	}
	return texts
}

// parsePeer reads an address or a prefix.
func parsePeer(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" && !address.Is4In6() {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil || prefix.Addr().Is4In6():
		return prefix, fmt.Errorf("peer %q is neither an address nor a prefix", text)
	case prefix != prefix.Masked():
		return prefix, fmt.Errorf("peer %q has bits behind its length: %s", text, prefix.Masked())
	}
	return prefix, nil
}

// portSet is a set of "443/tcp", and "tcp" for all ports of a transport.
type portSet map[string]bool

func (s portSet) contains(port string) bool {
	_, transport, _ := strings.Cut(port, "/")
	return s[port] || s[transport]
}

// bound makes all of the transports with the most ports, until there are no more than
// mostPorts.
func (s portSet) bound() {
	for len(s) > mostPorts {
		count := map[string]int{}
		for port := range s {
			if _, transport, ok := strings.Cut(port, "/"); ok {
				count[transport]++
			}
		}
		if len(count) == 0 {
			return
		}
		fullest := slices.MaxFunc(slices.Sorted(maps.Keys(count)), func(a, b string) int { return cmp.Compare(count[a], count[b]) })
		s.all(fullest)
	}
}

// all has all ports of a transport in the set.
func (s portSet) all(transport string) {
	maps.DeleteFunc(s, func(port string, _ bool) bool { return strings.HasSuffix(port, "/"+transport) })
	s[transport] = true
}

// list writes a set in its order.
func (s portSet) list() []string {
	return append([]string{}, slices.SortedFunc(maps.Keys(s), comparePorts)...)
}

// comparePorts orders ports by transport and number.
func comparePorts(a, b string) int {
	number, transport := splitPort(a)
	otherNumber, otherTransport := splitPort(b)
	return cmp.Or(cmp.Compare(transport, otherTransport), cmp.Compare(number, otherNumber))
}

// splitPort takes a port apart; -1: it has no number.
func splitPort(text string) (int, string) {
	number, transport, ok := strings.Cut(text, "/")
	if !ok {
		return -1, text
	}
	n, _ := strconv.Atoi(number)
	return n, transport
}

var portForm = regexp.MustCompile(`^(([1-9][0-9]{0,4}|0)/)?[a-z0-9]+$`)

func checkPort(text string) error {
	if n, _ := splitPort(text); !portForm.MatchString(text) || n > 0xffff {
		return fmt.Errorf("port %q isn't like 443/tcp, or tcp for all ports", text)
	}
	return nil
}
