package bench

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/datapath"
	"bpfnet/internal/testkit"
)

// turns is how many addresses the programs take turns with (ADDRESSES).
const turns = 65536

// blocklistCases are blocklist with lists of some sizes, all of one shape.
func blocklistCases() []benchCase {
	var all []benchCase
	for _, c := range []struct {
		name     string
		entries  int
		six, hit bool
		goal     float64
	}{
		{"v4-miss, empty", 0, false, false, 12},
		{"v4-miss, 1", 1, false, false, 12},
		{"v4-miss, 10k", 10_000, false, false, 12},
		{"v4-miss, 200k", 200_000, false, false, 40},
		{"v4-miss, 1M", 1_000_000, false, false, 40},
		{"v6-miss, 1", 1, true, false, 120},
		{"v6-miss, 10k", 10_000, true, false, 120},
		{"v6-miss, 200k", 200_000, true, false, 120},
		{"v6-miss, 1M", 1_000_000, true, false, 120},
		{"v4-hit, 1", 1, false, true, 0},
		{"v4-hit, 10k", 10_000, false, true, 0},
		{"v4-hit, 200k", 200_000, false, true, 0},
		{"v4-hit, 1M", 1_000_000, false, true, 400},
		{"v6-hit, 1M", 1_000_000, true, true, 0},
	} {
		b := benchCase{
			name: "blocklist/" + c.name, program: "blocklist_vary4", object: loadListed, empty: "empty_vary4", packet: tcp4, goal: c.goal,
			maps: func(tb testing.TB) map[string]*ebpf.Map { return listMaps(tb, c.entries, c.six, c.hit) },
		}
		if c.six {
			b.program, b.empty, b.packet = "blocklist_vary6", "empty_vary6", tcp6
		}
		all = append(all, b)
	}
	return append(all, trieCase("miss, 200k", 200_000, false), trieCase("miss, 1M", 1_000_000, false), trieCase("hit, 1M", 1_000_000, true))
}

// trieCase is an LPM trie with the entries of a list, and only its lookup.
func trieCase(name string, entries int, hit bool) benchCase {
	prefixes := sync.OnceValue(func() []netip.Prefix { return likeFeeds(entries, false) })
	return benchCase{
		name: "yardstick/LPM-v4-" + name, program: "lpm_vary4", object: loadListed, empty: "empty_vary4", packet: tcp4,
		adjust: func(spec *ebpf.CollectionSpec) error {
			spec.Maps["prefixes"].MaxEntries = uint32(entries)
			return nil
		},
		prepare: func(c *ebpf.Collection) error { return fillTrie(c.Maps["prefixes"], prefixes()) },
		maps: func(tb testing.TB) map[string]*ebpf.Map {
			return map[string]*ebpf.Map{"sources": newSources(tb, prefixes(), false, hit)}
		},
	}
}

func fillTrie(m *ebpf.Map, prefixes []netip.Prefix) error {
	keys, values := make([]uint64, len(prefixes)), make([]uint64, len(prefixes))
	for i, p := range prefixes {
		address := p.Addr().As4()
		var key [8]byte
		binary.NativeEndian.PutUint32(key[:], uint32(p.Bits()))
		copy(key[4:], address[:])
		keys[i] = binary.NativeEndian.Uint64(key[:])
	}
	_, err := m.BatchUpdate(keys, values, nil)
	return err
}

// listMaps makes a list that drops, and returns the maps that blocklist reads.
func listMaps(tb testing.TB, entries int, six, hit bool) map[string]*ebpf.Map {
	tb.Helper()
	root := testkit.Root(tb)
	engine, err := datapath.Open(datapath.Options{Root: root})
	if err != nil {
		tb.Fatal(err)
	}
	ctx := context.Background()
	if _, err := engine.Load(ctx, datapath.LoadRequest{Source: "blocklist"}); err != nil {
		tb.Fatal(err)
	}
	store := blocklist.New(engine)
	prefixes := likeFeeds(entries, six)
	read := func(add func(blocklist.Item) error, _ func(blocklist.Refusal)) error {
		for _, p := range prefixes {
			if err := add(blocklist.Item{Prefix: p}); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := store.Import(ctx, blocklist.ImportRequest{List: "bench", Read: read, Force: true}); err != nil {
		tb.Fatal(err)
	}
	if entries > 0 {
		if _, err := store.Set(ctx, blocklist.SetRequest{List: "bench", Action: blocklist.Drop}); err != nil {
			tb.Fatal(err)
		}
	}
	program, _ := bpf.Lookup("blocklist")
	maps := map[string]*ebpf.Map{}
	for _, m := range program.Maps {
		opened, err := ebpf.LoadPinnedMap(filepath.Join(root, "blocklist", "maps", m.Name), nil)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { opened.Close() })
		maps[m.Name] = opened
	}
	maps["sources"] = newSources(tb, prefixes, six, hit)
	return maps
}

// likeFeeds makes prefixes of the shape of published lists.
func likeFeeds(n int, six bool) []netip.Prefix {
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]netip.Prefix, n)
	for i := range all {
		all[i] = likeFeed(random, six)
	}
	return all
}

// likeFeed makes one: nearly all are single addresses, the others mostly /24, up
// to /16, or /64 up to /32.
func likeFeed(random *rand.Rand, six bool) netip.Prefix {
	lengths, bits := []int{24, 24, 24, 24, 24, 24, 24, 24, 23, 22, 21, 20, 19, 18, 17, 16}, 32
	if six {
		lengths, bits = []int{64, 64, 64, 64, 56, 48, 48, 32}, 128
	}
	if random.IntN(20) == 0 {
		bits = lengths[random.IntN(len(lengths))]
	}
	return netip.PrefixFrom(anyAddress(random, six), bits).Masked()
}

func anyAddress(random *rand.Rand, six bool) netip.Addr {
	var address [16]byte
	binary.BigEndian.PutUint64(address[:], random.Uint64())
	binary.BigEndian.PutUint64(address[8:], random.Uint64())
	if !six {
		return netip.AddrFrom4([4]byte(address[:4]))
	}
	address[0] = 0x20 | address[0]&0x1f
	return netip.AddrFrom16(address)
}

// newSources makes the map of addresses to take turns with, all of which are on
// the list, or none.
func newSources(tb testing.TB, prefixes []netip.Prefix, six, hit bool) *ebpf.Map {
	tb.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "sources", Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: turns})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	listed := map[netip.Prefix]bool{}
	if !hit {
		for _, p := range prefixes {
			listed[p] = true
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	for i := range uint32(turns) {
		var address netip.Addr
		if hit {
			address = prefixes[int(i)%len(prefixes)].Addr()
		} else {
			for address = anyAddress(random, six); covered(listed, address); {
				address = anyAddress(random, six)
			}
		}
		if err := m.Put(i, address.As16()); err != nil {
			tb.Fatal(err)
		}
	}
	return m
}

func covered(listed map[netip.Prefix]bool, address netip.Addr) bool {
	for bits := range address.BitLen() + 1 {
		if p, _ := address.Prefix(bits); listed[p] {
			return true
		}
	}
	return false
}
