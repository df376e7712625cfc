package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/testkit"
)

// The types of the maps, as clang describes them.
var (
	u8    = &btf.Int{Name: "unsigned char", Size: 1}
	u16   = &btf.Int{Name: "unsigned short", Size: 2}
	u32   = &btf.Int{Name: "unsigned int", Size: 4}
	u64   = &btf.Int{Name: "unsigned long long", Size: 8}
	be16  = &btf.Typedef{Name: "__be16", Type: &btf.Typedef{Name: "__u16", Type: u16}}
	be32  = &btf.Typedef{Name: "__be32", Type: &btf.Typedef{Name: "__u32", Type: u32}}
	in6   = &btf.Struct{Name: "in6_addr", Size: 16, Members: []btf.Member{{Name: "s6_addr", Type: bytesOf(16)}}}
	ip    = &btf.Typedef{Name: "ip_addr_t", Type: in6}
	flow  = structOf("flow", 16, member("saddr", be32, 0), member("daddr", be32, 4), member("sport", be16, 8), member("dport", be16, 10), member("protocol", u8, 12), member("pad", bytesOf(3), 13))
	count = structOf("counter", 16, member("packets", u64, 0), member("bytes", u64, 8))
	keyV4 = structOf("prefix4", 8, member("prefixlen", u32, 0), member("address", be32, 4))
	keyIP = structOf("prefix", 20, member("prefixlen", u32, 0), member("address", ip, 4))
)

func bytesOf(n uint32) *btf.Array { return &btf.Array{Index: u32, Type: u8, Nelems: n} }

func member(name string, t btf.Type, offset btf.Bits) btf.Member {
	return btf.Member{Name: name, Type: t, Offset: 8 * offset}
}

func structOf(name string, size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: name, Size: size, Members: members}
}

// pinnedMaps are the maps that the commands work on: paths in bpffs, and files
// with updates.
type pinnedMaps struct {
	million, small, prefixes4, prefixes string
	imports, batches, feeds             [2]string // two of each, with other values: every round changes something
}

// updates is how many entries the maps for single keys have, and how many a file
// of updates writes.
const updates = 10_000

// makeMaps makes the maps, the large ones 1/shrink of their size.
func makeMaps(tb testing.TB, shrink int) pinnedMaps {
	tb.Helper()
	root := testkit.Root(tb)
	if err := os.Mkdir(root, 0o700); err != nil {
		tb.Fatal(err)
	}
	spec := func(name string, t ebpf.MapType, key, value btf.Type, entries int) *ebpf.MapSpec {
		s := &ebpf.MapSpec{Name: name, Type: t, Key: key, Value: value, MaxEntries: uint32(entries)}
		k, _ := btf.Sizeof(key)
		v, _ := btf.Sizeof(value)
		s.KeySize, s.ValueSize = uint32(k), uint32(v)
		if t == ebpf.LPMTrie {
			s.Flags = unix.BPF_F_NO_PREALLOC
		}
		return s
	}
	maps := pinnedMaps{
		million:   fill(tb, root, spec("million", ebpf.Hash, flow, count, 1_000_000/shrink), flowKey),
		small:     fill(tb, root, spec("small", ebpf.Hash, flow, count, updates), flowKey),
		prefixes4: fill(tb, root, spec("prefixes4", ebpf.LPMTrie, keyV4, u32, 200_000/shrink), prefix4Key),
		prefixes:  fill(tb, root, spec("prefixes", ebpf.LPMTrie, keyIP, u32, 200_000/shrink), prefixKey),
	}
	maps.writeUpdates(tb)
	maps.writeFeeds(tb, 1_000_000/shrink)
	return maps
}

// fill pins a new map with as many different keys as it takes, in small batches:
// the memory of this process is the least that the kernel reports for a child.
func fill(tb testing.TB, root string, spec *ebpf.MapSpec, key func(i int, b []byte)) string {
	tb.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	k, v := make([]byte, spec.KeySize), make([]byte, spec.ValueSize)
	for i := range int(spec.MaxEntries) {
		key(i, k)
		binary.NativeEndian.PutUint32(v, uint32(i))
		if err := m.Put(k, v); err != nil {
			tb.Fatal(err)
		}
	}
	path := filepath.Join(root, spec.Name)
	if err := m.Pin(path); err != nil {
		tb.Fatal(err)
	}
	return path
}

func flowKey(i int, b []byte) {
	binary.BigEndian.PutUint32(b, 10<<24|uint32(i))
	copy(b[4:], []byte{198, 51, 100, 7, 156, 64, 1, 187, 6, 0, 0, 0})
}

func flowText(i int) string {
	return fmt.Sprintf(`{"saddr":"10.%d.%d.%d","daddr":"198.51.100.7","sport":40000,"dport":443,"protocol":6,"pad":[0,0,0]}`, i>>16, i>>8&255, i&255)
}

// prefix4Key is the i-th of a set of prefixes like that of a router: half are
// /24, the others longer and shorter. The golden ratio spreads them: no two of a
// million have the same 22 bits.
func prefix4Key(i int, b []byte) {
	lengths := [...]uint32{24, 24, 24, 24, 22, 23, 28, 32}
	length := lengths[i%len(lengths)]
	binary.NativeEndian.PutUint32(b, length)
	binary.BigEndian.PutUint32(b[4:], uint32(i)*0x9e3779b1>>(32-length)<<(32-length))
}

// prefixKey is the i-th of a set of which half are IPv4 prefixes and half IPv6.
func prefixKey(i int, b []byte) {
	random := rand.New(rand.NewPCG(uint64(i), 1))
	address := netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: byte(i >> 17), 13: byte(i >> 9), 14: byte(i >> 1), 15: byte(random.Uint32())}).As16()
	length := uint32(96 + 32)
	if i%2 == 1 {
		address = [16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 4: byte(i >> 17), 5: byte(i >> 9), 6: byte(i >> 1), 7: byte(random.Uint32())}
		length = 64
	}
	binary.NativeEndian.PutUint32(b, length)
	copy(b[4:], address[:])
}

// writeFeeds writes lists that have next to nothing in common.
func (m *pinnedMaps) writeFeeds(tb testing.TB, entries int) {
	tb.Helper()
	dir := tb.TempDir()
	for n := range m.feeds {
		m.feeds[n] = filepath.Join(dir, fmt.Sprintf("feed%d.txt", n))
		file, err := os.Create(m.feeds[n])
		if err != nil {
			tb.Fatal(err)
		}
		text := bufio.NewWriter(file)
		random := rand.New(rand.NewPCG(5, uint64(n)))
		for written := 0; written < entries; {
			prefix := likeFeed(random, false)
			if isReserved(prefix.Addr()) {
				continue
			}
			written++
			if prefix.IsSingleIP() {
				fmt.Fprintln(text, prefix.Addr())
			} else {
				fmt.Fprintln(text, prefix)
			}
		}
		if err := errors.Join(text.Flush(), file.Close()); err != nil {
			tb.Fatal(err)
		}
	}
}

// isReserved is true of what blocklist import refuses, and of some more.
func isReserved(a netip.Addr) bool {
	switch first := a.As4()[0]; first {
	case 0, 10, 100, 127, 169, 172, 192:
		return true
	default:
		return first >= 224
	}
}

// writeUpdates writes the same updates for both programs.
func (m *pinnedMaps) writeUpdates(tb testing.TB) {
	tb.Helper()
	dir := tb.TempDir()
	for n := range m.imports {
		m.imports[n] = filepath.Join(dir, fmt.Sprintf("import%d", n))
		m.batches[n] = filepath.Join(dir, fmt.Sprintf("batch%d", n))
		var ours, theirs []byte
		for i := range updates {
			key := make([]byte, 16)
			flowKey(i, key)
			ours = fmt.Appendf(ours, `{"key":%s,"value":{"packets":%d,"bytes":7}}`+"\n", flowText(i), n)
			theirs = fmt.Appendf(theirs, "map update pinned %s key hex % x value hex %02x 00 00 00 00 00 00 00 07 00 00 00 00 00 00 00\n", m.small, key, n)
		}
		for path, text := range map[string][]byte{m.imports[n]: ours, m.batches[n]: theirs} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				tb.Fatal(err)
			}
		}
	}
}
