package blocklist

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"bpfnet/bpf"
)

// prefix is a netip.Prefix in the form that is sorted and stored: 24 bytes. An
// IPv4 address is the first 32 bits of high.
type prefix struct {
	high, low uint64
	length    uint8
	six       bool
}

func newPrefix(p netip.Prefix) prefix {
	p = p.Masked()
	if a := p.Addr(); a.Is4() {
		four := a.As4()
		return prefix{high: uint64(binary.BigEndian.Uint32(four[:])) << 32, length: uint8(p.Bits())}
	}
	sixteen := p.Addr().As16()
	return prefix{binary.BigEndian.Uint64(sixteen[:8]), binary.BigEndian.Uint64(sixteen[8:]), uint8(p.Bits()), true}
}

// netip returns the prefix as others know it.
func (p prefix) netip() netip.Prefix {
	var sixteen [16]byte
	binary.BigEndian.PutUint64(sixteen[:8], p.high)
	binary.BigEndian.PutUint64(sixteen[8:], p.low)
	if p.six {
		return netip.PrefixFrom(netip.AddrFrom16(sixteen), int(p.length))
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(sixteen[:4])), int(p.length))
}

// compare sorts IPv4 in front of IPv6, then by address, and prefixes in front of
// what they cover.
func (p prefix) compare(q prefix) int {
	if p.six != q.six {
		if p.six {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(p.high, q.high), cmp.Compare(p.low, q.low), cmp.Compare(p.length, q.length))
}

// covers says whether every address of q is one of p's.
func (p prefix) covers(q prefix) bool {
	if p.six != q.six || p.length > q.length {
		return false
	}
	high, low := masks(p.length)
	return (p.high^q.high)&high == 0 && (p.low^q.low)&low == 0
}

// overlaps says whether p and q have an address in common.
func (p prefix) overlaps(q prefix) bool {
	if p.length > q.length {
		return q.covers(p)
	}
	return p.covers(q)
}

func masks(length uint8) (high, low uint64) {
	if length > 64 {
		return ^uint64(0), ^uint64(0) << (128 - length)
	}
	return ^uint64(0) << (64 - length), 0
}

// entry is an entry of one list.
type entry struct {
	prefix
	expires uint32 // seconds of CLOCK_BOOTTIME; 0: never
	note    uint32 // key of block_notes; 0: none
}

// Keys and values of the inner maps of lists4 and lists6, as the kernel takes
// them in batches.
type (
	rawKey4  [8]byte
	rawKey6  [24]byte
	rawEntry [8]byte
)

func (p prefix) key4() (key rawKey4) {
	binary.NativeEndian.PutUint32(key[:], uint32(p.length))
	binary.NativeEndian.PutUint32(key[4:], uint32(p.high>>32))
	return key
}

func (p prefix) key6() (key rawKey6) {
	binary.NativeEndian.PutUint32(key[:], uint32(p.length))
	binary.NativeEndian.PutUint64(key[8:], p.high)
	binary.NativeEndian.PutUint64(key[16:], p.low)
	return key
}

func (e entry) value() (value rawEntry) {
	binary.NativeEndian.PutUint32(value[:], e.expires)
	binary.NativeEndian.PutUint32(value[4:], e.note)
	return value
}

// readEntry is the inverse of key4 or key6, and value.
func readEntry(key, value []byte) entry {
	e := entry{expires: binary.NativeEndian.Uint32(value), note: binary.NativeEndian.Uint32(value[4:])}
	e.length = uint8(binary.NativeEndian.Uint32(key))
	if len(key) == len(rawKey4{}) {
		e.high = uint64(binary.NativeEndian.Uint32(key[4:])) << 32
		return e
	}
	e.six = true
	e.high, e.low = binary.NativeEndian.Uint64(key[8:]), binary.NativeEndian.Uint64(key[16:])
	return e
}

// hitKey is the key of what the programs count for an entry of a list.
func (p prefix) hitKey(list uint32) bpf.HitKey {
	key := bpf.HitKey{List: uint8(list), Prefixlen: p.length}
	if !p.six {
		key.Ipv4 = 1
	}
	key.Address.In6U.U6Addr8 = p.netip().Addr().As16()
	return key
}

// unhit is the inverse of hitKey.
func unhit(key bpf.HitKey) (list uint32, p prefix) {
	address := netip.AddrFrom16(key.Address.In6U.U6Addr8)
	if key.Ipv4 != 0 {
		address = address.Unmap()
	}
	return uint32(key.List), newPrefix(netip.PrefixFrom(address, int(key.Prefixlen)))
}

// buckets are how entries are told apart at first: by family and the first 16
// bits.
const buckets = 2 << 16

func (p prefix) bucket() int { return family(p.six)<<16 | int(p.high>>48) }

// fewEntries are sorted faster without buckets.
const fewEntries = 4096

// sortEntries sorts entries and drops all but the last one of each prefix.
func sortEntries(parts ...[]entry) []entry {
	n := 0
	for _, part := range parts {
		n += len(part)
	}
	if n < fewEntries {
		return appendSorted(nil, slices.Concat(parts...))
	}
	next := make([]uint32, buckets) // where the next entry of a bucket goes
	for _, part := range parts {
		for _, e := range part {
			next[e.bucket()]++
		}
	}
	total := uint32(0)
	for i, n := range next {
		next[i] = total
		total += n
	}
	sorted := make([]entry, total)
	for _, part := range parts {
		for _, e := range part {
			at := &next[e.bucket()]
			sorted[*at] = e
			*at++
		}
	}
	kept, from := sorted[:0], uint32(0)
	for _, end := range next {
		kept = appendSorted(kept, sorted[from:end])
		from = end
	}
	return kept
}

// appendSorted sorts entries and appends the last one of each prefix.
func appendSorted(kept, entries []entry) []entry {
	slices.SortStableFunc(entries, func(a, b entry) int { return a.compare(b.prefix) })
	for i, e := range entries {
		if i+1 == len(entries) || entries[i+1].prefix != e.prefix {
			kept = append(kept, e)
		}
	}
	return kept
}

// index finds entries among sorted ones.
type index struct {
	entries []entry
	ends    []uint32 // where a bucket ends
}

func newIndex(entries []entry) index {
	x := index{entries, make([]uint32, buckets)}
	for _, e := range entries {
		x.ends[e.bucket()]++
	}
	for i := range buckets - 1 {
		x.ends[i+1] += x.ends[i]
	}
	return x
}

func (x index) find(p prefix) (entry, bool) {
	from, bucket := uint32(0), p.bucket()
	if bucket > 0 {
		from = x.ends[bucket-1]
	}
	within := x.entries[from:x.ends[bucket]]
	at, found := slices.BinarySearchFunc(within, p, func(e entry, p prefix) int { return e.compare(p) })
	if !found {
		return entry{}, false
	}
	return within[at], true
}

// aggregate drops what another entry covers, of sorted entries.
func aggregate(entries []entry) []entry {
	kept := entries[:0]
	for _, e := range entries {
		if n := len(kept); n > 0 && kept[n-1].covers(e.prefix) && outlives(kept[n-1], e) {
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// outlives says whether a stays as long as b.
func outlives(a, b entry) bool { return a.expires == 0 || b.expires != 0 && a.expires >= b.expires }
