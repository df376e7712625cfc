package codec

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// chars is an array of char: text that ends with a NUL or with the array.
type chars int

func (n chars) size() int { return int(n) }

func (n chars) append(dst, b []byte) []byte {
	text := b
	if end := bytes.IndexByte(b, 0); end >= 0 {
		text = b[:end]
	}
	rest := bytes.Trim(b[len(text):], "\x00")
	if len(rest) > 0 || !utf8.Valid(text) || bytes.HasPrefix(text, []byte(hexPrefix)) {
		return raw(n).append(dst, b)
	}
	return appendString(dst, text)
}

func (n chars) parse(b []byte, v any, path string) error {
	text, ok := scalar(v)
	if !ok {
		return wrong(path, "%s is not text", show(v))
	}
	if len(text) > len(b) {
		return wrong(path, "%s is longer than %s", quote(text), plural(len(b), "byte"))
	}
	if strings.IndexByte(text, 0) >= 0 {
		return wrong(path, "%s holds a NUL", quote(text))
	}
	clear(b[copy(b, text):])
	return nil
}

func (n chars) form() string { return "TEXT (at most " + plural(int(n), "byte") + ")" }

// address is an IP address in network order.
type address struct {
	bytes  int  // 4 or 16
	mapped bool // IPv4 stands as ::ffff:a.b.c.d and is written a.b.c.d
}

func (n address) size() int { return n.bytes }

func (n address) load(b []byte) netip.Addr {
	ip, _ := netip.AddrFromSlice(b)
	if n.mapped {
		return ip.Unmap()
	}
	return ip
}

func (n address) append(dst, b []byte) []byte {
	dst = append(dst, '"')
	dst = n.load(b).AppendTo(dst)
	return append(dst, '"')
}

func (n address) parse(b []byte, v any, path string) error {
	text, ok := v.(string)
	if !ok {
		return wrong(path, "%s is not an address: %s", show(v), n.form())
	}
	ip, err := netip.ParseAddr(strings.TrimSpace(text))
	if err != nil || ip.Zone() != "" {
		return wrong(path, "%s is not an address: %s", quote(text), n.form())
	}
	return n.store(b, ip, path)
}

func (n address) store(b []byte, ip netip.Addr, path string) error {
	switch {
	case n.bytes == 4 && ip.Is4():
		v4 := ip.As4()
		copy(b, v4[:])
	case n.bytes == 16 && (ip.Is6() || n.mapped):
		v6 := ip.As16()
		copy(b, v6[:])
	case n.bytes == 4:
		return wrong(path, "%s is not an IPv4 address", ip)
	default:
		return wrong(path, "%s is not an IPv6 address; mapped it is ::ffff:%s", ip, ip)
	}
	return nil
}

func (n address) form() string {
	switch {
	case n.mapped:
		return "ADDRESS"
	case n.bytes == 4:
		return "10.0.0.1"
	}
	return "2001:db8::1"
}

// mac is an Ethernet address.
type mac struct{}

func (mac) size() int { return 6 }

func (mac) append(dst, b []byte) []byte {
	const digits = "0123456789abcdef"
	for i, v := range b {
		dst = append(dst, "\":::::"[i], digits[v>>4], digits[v&15])
	}
	return append(dst, '"')
}

func (n mac) parse(b []byte, v any, path string) error {
	text, ok := v.(string)
	if !ok {
		return wrong(path, "%s is not a MAC address: %s", show(v), n.form())
	}
	hardware, err := net.ParseMAC(strings.TrimSpace(text))
	if err != nil || len(hardware) != len(b) {
		return wrong(path, "%s is not a MAC address: %s", quote(text), n.form())
	}
	copy(b, hardware)
	return nil
}

func (mac) form() string { return "aa:bb:cc:dd:ee:ff" }

// prefix is the key of an LPM trie over addresses.
type prefix struct {
	address
	object node // the same as a struct; nil without BTF
}

// mappedBits is how many bits the IPv4-mapped range leaves to the address.
const mappedBits = 96

func (n *prefix) size() int { return 4 + n.bytes }

func (n *prefix) append(dst, b []byte) []byte {
	length := binary.NativeEndian.Uint32(b)
	if length > uint32(n.bytes*8) {
		return raw(n.size()).append(dst, b)
	}
	ip, _ := netip.AddrFromSlice(b[4:])
	if n.mapped && ip.Is4In6() && length >= mappedBits {
		ip, length = ip.Unmap(), length-mappedBits
	}
	dst = append(dst, '"')
	dst = ip.AppendTo(dst)
	dst = append(dst, '/')
	dst = strconv.AppendUint(dst, uint64(length), 10)
	return append(dst, '"')
}

func (n *prefix) parse(b []byte, v any, path string) error {
	text, ok := v.(string)
	if !ok {
		if _, isObject := v.(object); isObject && n.object != nil {
			return n.object.parse(b, v, path)
		}
		return wrong(path, "%s is not a prefix: %s", show(v), n.form())
	}
	host, digits, hasLength := strings.Cut(strings.TrimSpace(text), "/")
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Zone() != "" {
		return wrong(path, "%s is not a prefix: %s", quote(text), n.form())
	}
	length := uint64(ip.BitLen())
	if hasLength {
		length, err = strconv.ParseUint(digits, 10, 8)
		if err != nil || length > uint64(ip.BitLen()) {
			return wrong(path, "%s: the length must be 0..%d", quote(text), ip.BitLen())
		}
	}
	if ip.Is4() && n.bytes == 16 {
		length += mappedBits
	}
	binary.NativeEndian.PutUint32(b, uint32(length))
	return n.store(b[4:], ip, path)
}

func (n *prefix) form() string {
	switch {
	case n.mapped:
		return "10.0.0.0/8 or 2001:db8::/32"
	case n.bytes == 4:
		return "10.0.0.0/8"
	}
	return "2001:db8::/32"
}

// dotted is a __be32 that may be an address; numbers are taken too.
type dotted struct {
	address
	number integer
}

func (n dotted) parse(b []byte, v any, path string) error {
	if text, ok := scalar(v); ok && startsNumber(text) && !strings.ContainsAny(text, ".:") {
		return n.number.parse(b, v, path)
	}
	return n.address.parse(b, v, path)
}

func startsNumber(text string) bool {
	text = strings.TrimPrefix(strings.TrimSpace(text), "-")
	return text != "" && text[0] >= '0' && text[0] <= '9'
}
