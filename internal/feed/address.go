package feed

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"strings"
)

// ParseAddress reads an address, a prefix, whose host bits don't count, or a
// range "first-last", and returns the fewest prefixes that cover just that. They
// are masked, and IPv4 where the text is IPv4-mapped IPv6. Zones and leading
// zeros are refused; errors are of kind fault.ErrUsage.
func ParseAddress(text string) ([]netip.Prefix, error) {
	if first, last, ok := strings.Cut(text, "-"); ok {
		return parseRange(text, strings.TrimRight(first, " \t"), strings.TrimLeft(last, " \t"))
	}
	host, length, ok := strings.Cut(text, "/")
	address, err := parseHost(host)
	if err != nil {
		return nil, err
	}
	size := address.BitLen()
	if ok {
		n, digits := small([]byte(length))
		if digits == 0 || digits < len(length) || int(n) > size {
			return nil, wrong(text, "is not a prefix: no such length")
		}
		size = int(n)
	}
	return []netip.Prefix{unmapped(address, size)}, nil
}

// unmapped is a prefix, and that of IPv4 where it is one of IPv4-mapped IPv6.
func unmapped(address netip.Addr, size int) netip.Prefix {
	const mapped = 96
	if address.Is4In6() && size >= mapped {
		address, size = address.Unmap(), size-mapped
	}
	return netip.PrefixFrom(address, size).Masked()
}

func parseHost(text string) (netip.Addr, error) {
	if strings.Contains(text, "%") {
		return netip.Addr{}, wrong(text, "has a zone, which only this machine knows")
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, wrong(text, notAnAddress(text))
	}
	return address, nil
}

// notAnAddress says why.
func notAnAddress(text string) string {
	for part := range strings.SplitSeq(text, ".") {
		if _, digits := small([]byte(part)); digits == 0 && strings.HasPrefix(part, "0") && !strings.Contains(text, ":") {
			return "is not an address: leading zeros are octal to some programs"
		}
	}
	return "is not an address"
}

func parseRange(text, first, last string) ([]netip.Prefix, error) {
	from, err := parseHost(first)
	if err != nil {
		return nil, err
	}
	to, err := parseHost(last)
	switch {
	case err != nil:
		return nil, err
	case from.Is4() != to.Is4():
		return nil, wrong(text, "is not a range: one end is IPv4, the other is IPv6")
	case to.Less(from):
		return nil, wrong(text, "is not a range: its end is before its beginning")
	}
	return cutRange(numberOf(from), numberOf(to)), nil
}

// number is an address as a number; IPv4 is IPv4-mapped.
type number struct{ high, low uint64 }

func numberOf(a netip.Addr) number {
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (n number) address() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.high)
	binary.BigEndian.PutUint64(b[8:], n.low)
	return netip.AddrFrom16(b)
}

func (n number) plusOne() number {
	low, carry := bits.Add64(n.low, 1, 0)
	return number{n.high + carry, low}
}

func (n number) minus(other number) number {
	low, borrow := bits.Sub64(n.low, other.low, 0)
	high, _ := bits.Sub64(n.high, other.high, borrow)
	return number{high, low}
}

func (n number) trailingZeros() int {
	if n.low == 0 {
		return 64 + bits.TrailingZeros64(n.high)
	}
	return bits.TrailingZeros64(n.low)
}

func (n number) length() int {
	if n.high == 0 {
		return bits.Len64(n.low)
	}
	return 64 + bits.Len64(n.high)
}

// withOnes sets the lowest bits.
func (n number) withOnes(count int) number {
	return number{n.high | (1<<max(0, count-64) - 1), n.low | (1<<min(count, 64) - 1)}
}

// cutRange takes the greatest prefix that begins where the rest of a range does
// and ends within it, again and again.
func cutRange(from, to number) []netip.Prefix {
	const width = 128
	var prefixes []netip.Prefix
	for {
		free := width // all that is left is the whole space
		if left := to.minus(from).plusOne(); left != (number{}) {
			free = min(from.trailingZeros(), left.length()-1)
		}
		prefixes = append(prefixes, unmapped(from.address(), width-free))
		last := from.withOnes(free)
		if last == to {
			return prefixes
		}
		from = last.plusOne()
	}
}

// looksLikeAddress tells what is meant as an address, prefix or range from what
// is meant as a domain.
func looksLikeAddress(text []byte) bool {
	if bytes.IndexByte(text, ':') >= 0 {
		return !bytes.Contains(text, []byte("://"))
	}
	for _, c := range text {
		if (c < '0' || c > '9') && c != '.' && c != '/' && c != '-' && !isBlank(c) {
			return false
		}
	}
	return len(text) > 0
}

// prefix4 reads the address or prefix of IPv4 that text begins with, and returns
// its length, 0 if there is none. It is what lists of millions consist of.
func prefix4(text []byte) (netip.Prefix, int) {
	address, n := octets(text)
	if n == 0 {
		return netip.Prefix{}, 0
	}
	size := uint32(32)
	if n < len(text) && text[n] == '/' {
		length, digits := small(text[n+1:])
		if digits == 0 || length > size {
			return netip.Prefix{}, 0
		}
		size, n = length, n+1+digits
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], address&^uint32(1<<(32-uint64(size))-1))
	return netip.PrefixFrom(netip.AddrFrom4(b), int(size)), n
}

// octets reads four numbers with dots between them.
func octets(text []byte) (address uint32, n int) {
	for part := range 4 {
		if part > 0 {
			if n == len(text) || text[n] != '.' {
				return 0, 0
			}
			n++
		}
		octet, digits := small(text[n:])
		if digits == 0 || octet > 255 {
			return 0, 0
		}
		address, n = address<<8|octet, n+digits
	}
	return address, n
}

// small reads a number of up to three digits, of which the first is 0 only if it
// is the only one.
func small(text []byte) (value uint32, digits int) {
	for digits < len(text) && digits < 3 && text[digits]-'0' < 10 {
		value = value*10 + uint32(text[digits]-'0')
		digits++
	}
	if digits > 1 && text[0] == '0' {
		return 0, 0
	}
	return value, digits
}
