package blocklist

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// newStore returns a store with pins of its own, in a network namespace that has
// no addresses to guard.
func newStore(t testing.TB) *Store {
	t.Helper()
	s, _ := newStoreIn(t, testkit.Root(t))
	return s
}

func newStoreIn(t testing.TB, root string) (*Store, *datapath.Engine) {
	t.Helper()
	engine, err := datapath.Open(datapath.Options{Root: root, NetNS: testkit.NetNS(t)})
	if err != nil {
		t.Fatal(err)
	}
	return New(engine), engine
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func mustAdd(t testing.TB, s *Store, list string, texts ...string) Change {
	t.Helper()
	change, err := s.Add(context.Background(), AddRequest{List: list, Prefixes: prefixes(texts...), Force: true})
	if err != nil {
		t.Fatal(err)
	}
	return change
}

// contents lists the prefixes of a list.
func contents(t testing.TB, s *Store, list string) (all []string) {
	t.Helper()
	err := s.Entries(context.Background(), list, false, func(e Entry) error {
		all = append(all, e.Prefix.String())
		return nil
	})
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		t.Fatal(err)
	}
	return all
}

func wantContents(t testing.TB, s *Store, list string, want ...string) {
	t.Helper()
	if got := contents(t, s, list); !slices.Equal(got, want) {
		t.Errorf("list %s: %v, want %v", list, got, want)
	}
}

func TestAddRemove(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	change := mustAdd(t, s, DefaultList, "203.0.113.7/32", "198.51.100.0/24", "2001:db8:bad::/48", "203.0.113.7/32")
	if !change.Changed || change.Added != 3 || change.Entries != 3 {
		t.Errorf("add: %+v", change)
	}
	if change = mustAdd(t, s, DefaultList, "203.0.113.7/32"); change.Changed || change.Unchanged != 1 || change.Entries != 3 {
		t.Errorf("add again: %+v", change)
	}
	if change = mustAdd(t, s, DefaultList, "192.0.2.0/25", "2001:db8::7/128"); change.Added != 2 || change.Entries != 5 {
		t.Errorf("add in place: %+v", change)
	}
	wantContents(t, s, DefaultList, "192.0.2.0/25", "198.51.100.0/24", "203.0.113.7/32", "2001:db8::7/128", "2001:db8:bad::/48")
	change, err := s.Remove(ctx, RemoveRequest{List: DefaultList, Prefixes: prefixes("198.51.100.0/24", "198.51.100.9/32"), DryRun: false})
	if err != nil || change.Removed != 1 || change.Unchanged != 1 || change.Entries != 4 {
		t.Errorf("remove: %+v, %v", change, err)
	}
	if _, err := s.Remove(ctx, RemoveRequest{List: "other", Prefixes: prefixes("198.51.100.0/24"), DryRun: false}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("remove from an unknown list: %v", err)
	}
	if change, err = s.Clear(ctx, "", false); err != nil || change.Removed != 4 {
		t.Errorf("clear: %+v, %v", change, err)
	}
	wantContents(t, s, "")
}

func TestDryRunChangesNothing(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	change, err := s.Add(ctx, AddRequest{List: DefaultList, Prefixes: prefixes("192.0.2.1/32"), Reason: "x", DryRun: true})
	if err != nil || !change.Changed || change.Added != 1 || change.Entries != 1 {
		t.Errorf("add: %+v, %v", change, err)
	}
	wantContents(t, s, "")
	mustAdd(t, s, DefaultList, "192.0.2.1/32")
	if change, err = s.Remove(ctx, RemoveRequest{List: DefaultList, Prefixes: prefixes("192.0.2.1/32"), DryRun: true}); err != nil || change.Removed != 1 || change.Entries != 0 {
		t.Errorf("remove: %+v, %v", change, err)
	}
	if change, err = s.Clear(ctx, "", true); err != nil || change.Removed != 1 {
		t.Errorf("clear: %+v, %v", change, err)
	}
	wantContents(t, s, DefaultList, "192.0.2.1/32")
}

func TestGuard(t *testing.T) {
	s := newStore(t)
	for _, text := range []string{"10.0.0.1/32", "127.0.0.1/32", "0.0.0.0/0", "::/0", "8.0.0.0/5", "fe80::1/128", "224.0.0.5/32"} {
		_, err := s.Add(context.Background(), AddRequest{List: DefaultList, Prefixes: prefixes("192.0.2.1/32", text)})
		if !errors.Is(err, fault.ErrUsage) || len(fault.Hints(err)) == 0 {
			t.Errorf("%s: %v", text, err)
		}
	}
	wantContents(t, s, "")
	if _, err := s.Add(context.Background(), AddRequest{List: AllowList, Prefixes: prefixes("10.0.0.0/8")}); err != nil {
		t.Error(err)
	}
}

func TestLongReason(t *testing.T) {
	s := newStore(t)
	_, err := s.Add(context.Background(), AddRequest{List: DefaultList, Prefixes: prefixes("192.0.2.1/32"), Reason: strings.Repeat("x", 128)})
	if !errors.Is(err, fault.ErrUsage) {
		t.Error(err)
	}
	wantContents(t, s, "")
}

func TestReasonsAndExpiry(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	request := AddRequest{List: DefaultList, Prefixes: prefixes("192.0.2.1/32"), Reason: "abuse #4711", Lifetime: 24 * time.Hour}
	if _, err := s.Add(ctx, request); err != nil {
		t.Fatal(err)
	}
	err := s.Entries(ctx, DefaultList, true, func(e Entry) error {
		if left := time.Until(e.Expires); e.Reason != "abuse #4711" || left < 24*time.Hour-5*time.Second || left > 24*time.Hour+2*time.Second || e.Hits == nil {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	request.Prefixes, request.Lifetime = prefixes("192.0.2.2/32"), time.Nanosecond
	if _, err := s.Add(ctx, request); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // ends are whole seconds
	wantContents(t, s, DefaultList, "192.0.2.1/32")
	change, err := s.Sync(ctx, false)
	if err != nil || change.Expired != 1 || !change.Changed {
		t.Errorf("sync: %+v, %v", change, err)
	}
}

// items returns what an import reads.
func items(texts ...string) func(func(Item) error, func(Refusal)) error {
	return func(add func(Item) error, _ func(Refusal)) error {
		for i, text := range texts {
			if err := add(Item{Prefix: netip.MustParsePrefix(text), Source: "feed", Line: i + 1, Column: 1}); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestImport(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	change, err := s.Import(ctx, ImportRequest{List: "feed", Read: items("192.0.2.0/24", "192.0.2.7/32", "10.1.2.3/32", "2001:db8::/32")})
	if err != nil || change.Added != 3 || change.RefusedN != 1 || change.Refused[0].Where != "feed:3:1: 10.1.2.3/32" {
		t.Errorf("import: %+v, %v", change, err)
	}
	change, err = s.Import(ctx, ImportRequest{List: "feed", Read: items("192.0.2.0/24", "198.51.100.1/32"), Replace: true})
	if err != nil || change.Added != 1 || change.Removed != 2 || change.Unchanged != 1 || change.Entries != 2 {
		t.Errorf("replace: %+v, %v", change, err)
	}
	wantContents(t, s, "feed", "192.0.2.0/24", "198.51.100.1/32")
	change, err = s.Import(ctx, ImportRequest{List: "feed", Read: items("198.51.100.1/32", "192.0.2.0/24"), Replace: true})
	if err != nil || change.Changed {
		t.Errorf("replace by the same: %+v, %v", change, err)
	}
	change, err = s.Import(ctx, ImportRequest{List: "feed", Read: items("192.0.2.5/32", "198.51.100.0/24"), Aggregate: true})
	if err != nil || change.Covered != 2 || change.Entries != 2 {
		t.Errorf("aggregate: %+v, %v", change, err)
	}
	if _, err = s.Import(ctx, ImportRequest{List: "feed", Read: items("203.0.113.1/32", "10.0.0.1/32"), Strict: true}); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("strict: %v", err)
	}
	wantContents(t, s, "feed", "192.0.2.0/24", "198.51.100.0/24")
}

// Nobody waits for what an import reads.
func TestImportReadsBeforeItLocks(t *testing.T) {
	s := newStore(t)
	read := items("192.0.2.1/32")
	change, err := s.Import(context.Background(), ImportRequest{List: "feed", Read: func(add func(Item) error, refuse func(Refusal)) error {
		mustAdd(t, s, "feed", "198.51.100.1/32")
		return read(add, refuse)
	}})
	if err != nil || change.Added != 1 || change.Unchanged != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	wantContents(t, s, "feed", "192.0.2.1/32", "198.51.100.1/32")
}

func TestVerdicts(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	mustAdd(t, s, "drops", "198.51.100.0/24", "2001:db8:bad::/48")
	mustAdd(t, s, "alerts", "198.51.0.0/16", "203.0.113.9/32")
	mustAdd(t, s, AllowList, "198.51.100.7/32")
	for list, action := range map[string]Action{"drops": Drop, "alerts": Alert} {
		if _, err := s.Set(ctx, SetRequest{List: list, Action: action}); err != nil {
			t.Fatal(err)
		}
	}
	for address, want := range map[string]string{
		"198.51.100.9": "alert+drop", "198.51.99.9": "alert", "198.51.100.7": "allow", "203.0.113.9": "alert",
		"203.0.113.8": "pass", "2001:db8:bad::1": "drop", "2001:db8:bae::1": "pass", "::ffff:198.51.100.9": "alert+drop",
	} {
		v, err := s.Test(ctx, netip.MustParseAddr(address))
		if err != nil || v.Action != want {
			t.Errorf("%s: %+v, %v, want %s", address, v, err, want)
		}
	}
}

// A list that outgrows its maps gets larger ones.
func TestGrows(t *testing.T) {
	s := newStore(t)
	mustAdd(t, s, DefaultList, "192.0.2.1/32")
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprintf("198.18.%d.%d/32", i/256, i%256))
	}
	if change := mustAdd(t, s, DefaultList, many...); change.Entries != 3001 {
		t.Errorf("%+v", change)
	}
	if got := len(contents(t, s, DefaultList)); got != 3001 {
		t.Errorf("%d entries", got)
	}
}

// mostEmpty is more than lists take without entries, where the kernel tells that
// exactly (since 6.4): hashes of which nothing is allocated in advance count as full
// before.
const mostEmpty = 50e6

// A million IPv4 entries may take 150 MB, with all that lists have in common.
func TestMemory(t *testing.T) {
	const entries = 200_000
	s := newStore(t)
	mustAdd(t, s, DefaultList, "192.0.2.1/32")
	first, err := s.Overview(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Import(context.Background(), ImportRequest{List: DefaultList, Replace: true, Force: true, Read: func(add func(Item) error, _ func(Refusal)) error {
		for i := range uint32(entries) {
			address := [4]byte{}
			binary.BigEndian.PutUint32(address[:], i*20_000)
			if err := add(Item{Prefix: netip.PrefixFrom(netip.AddrFrom4(address), 32)}); err != nil {
				return err
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	full, err := s.Overview(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if first.MemoryBytes > mostEmpty {
		t.Skip("this kernel has no exact memory of maps")
	}
	grown := full.MemoryBytes - first.MemoryBytes
	million := first.MemoryBytes + grown*1_000_000/entries
	if full.Lists[0].Entries != entries || grown < entries*8 || million > 150e6 {
		t.Errorf("%d entries: %d bytes, after %d without them; a million would take %d", full.Lists[0].Entries, full.MemoryBytes, first.MemoryBytes, million)
	}
	t.Logf("a million would take %d MB", million/1e6)
}

// There is always a number free for a list that takes the place of another.
func TestMostLists(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	for i := range mostLists {
		mustAdd(t, s, fmt.Sprintf("list%d", i), "192.0.2.1/32")
	}
	if _, err := s.Add(ctx, AddRequest{List: "more", Prefixes: prefixes("192.0.2.1/32"), Force: true}); !errors.Is(err, fault.ErrConflict) {
		t.Errorf("one more: %v", err)
	}
	if change, err := s.Import(ctx, ImportRequest{List: "list3", Read: items("192.0.2.2/32"), Replace: true}); err != nil || !change.Changed {
		t.Errorf("replace: %+v, %v", change, err)
	}
	wantContents(t, s, "list3", "192.0.2.2/32")
	if change, err := s.Clear(ctx, "more", false); err != nil || change.Changed {
		t.Errorf("clear what isn't there: %+v, %v", change, err)
	}
}
