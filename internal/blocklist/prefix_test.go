package blocklist

import (
	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// anyEntries are random entries of both families, many of which are in the same
// bucket or have the same prefix.
func anyEntries(random *rand.Rand, n int) []entry {
	all := make([]entry, n)
	for i := range all {
		four, six := [4]byte{198, byte(random.IntN(3)), byte(random.IntN(256)), byte(random.IntN(4))}, [16]byte{0x20, 1}
		binary.BigEndian.PutUint16(six[4:], uint16(random.IntN(300)))
		p := netip.PrefixFrom(netip.AddrFrom4(four), 8+random.IntN(25))
		if random.IntN(3) == 0 {
			p = netip.PrefixFrom(netip.AddrFrom16(six), 16+random.IntN(40))
		}
		all[i] = entry{prefix: newPrefix(p), note: uint32(i)}
	}
	return all
}

func TestSortEntries(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	all := anyEntries(random, 20_000)
	last := map[prefix]entry{}
	for _, e := range all {
		last[e.prefix] = e
	}
	var want []entry
	for _, e := range last {
		want = append(want, e)
	}
	slices.SortFunc(want, func(a, b entry) int {
		return cmp.Or(a.netip().Addr().Compare(b.netip().Addr()), cmp.Compare(a.length, b.length))
	})
	got := sortEntries(all[:7000], nil, all[7000:])
	if !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d, or another order", len(got), len(want))
	}
	if got := sortEntries(); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
	known := newIndex(got)
	for _, e := range anyEntries(random, 20_000) {
		found, ok := known.find(e.prefix)
		if expected, is := last[e.prefix]; ok != is || found != expected {
			t.Fatalf("%s: %+v, %t, want %+v, %t", e.netip(), found, ok, expected, is)
		}
	}
}

func TestGuardOverlaps(t *testing.T) {
	g := guard{{newPrefix(netip.MustParsePrefix("10.0.0.0/8")), "private"}, own(netip.MustParseAddr("2001:db8::7"), "this machine's address")}
	for text, want := range map[string]string{
		"10.1.2.3/32": "private", "8.0.0.0/5": "private", "0.0.0.0/0": "it covers every address", "11.0.0.0/8": "",
		"2001:db8::/32": "2001:db8::7 is this machine's address", "2001:db8::7/128": "2001:db8::7 is this machine's address", "2001:db8::8/125": "", "a00::/8": "",
	} {
		if got := g.refuses(newPrefix(netip.MustParsePrefix(text))); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
		if got := guard(nil).refuses(newPrefix(netip.MustParsePrefix(text))); got != "" {
			t.Errorf("%s, without a guard: %q", text, got)
		}
	}
}
