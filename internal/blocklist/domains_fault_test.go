package blocklist

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/dns"
	"bpfnet/internal/fault"
)

// readItems reads names, and prefixes, which have a slash.
func readItems(texts ...string) func(func(Item) error, func(Refusal)) error {
	return func(add func(Item) error, _ func(Refusal)) error {
		for _, text := range texts {
			item := Item{Domain: text, Reason: "feed", Source: "feed", Line: 1, Column: 1}
			if strings.Contains(text, "/") {
				item.Domain, item.Prefix = "", netip.MustParsePrefix(text)
			}
			if err := add(item); err != nil {
				return err
			}
		}
		return nil
	}
}

func numbered(n int, format string) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf(format, i*7919%n))
	}
	return names
}

// What many domains cost grows with their number, not with its square.
func TestManyDomains(t *testing.T) {
	n := 5_000
	if testing.Short() {
		n = 1_000
	}
	few, many := costOfDomains(t, n), costOfDomains(t, 4*n)
	t.Logf("%d: %v, %d: %v", n, few, 4*n, many)
	if many > 8*few {
		t.Error("it grows faster than the number")
	}
}

// costOfDomains is the processor's time for asking for some domains again, and for
// replacing all but a few of them.
func costOfDomains(t *testing.T, n int) time.Duration {
	t.Helper()
	ctx, z := context.Background(), zone{}
	names := numbered(n, "d%d.example")
	for i, name := range names {
		z[name] = fmt.Sprintf("20.%d.%d.1 2001:db8:%x::1", i>>8, i&255, i)
	}
	s := newZone(t, z)
	change, err := s.Import(ctx, ImportRequest{List: "feed", Read: readItems(names...)})
	if err != nil || change.Resolved != uint64(n) || change.AddressesAdded != uint64(2*n) {
		t.Fatalf("%+v, %v", change, err)
	}
	makeDue(t, s)
	before := processorTime(t)
	if change, err = s.Sync(ctx, false); err != nil || change.Resolved != uint64(n) {
		t.Errorf("%+v, %v", change, err)
	}
	change, err = s.Import(ctx, ImportRequest{List: "feed", Read: readItems(names[:100]...), Replace: true})
	if err != nil || change.Removed != uint64(n-100) || change.AddressesRemoved != uint64(2*n-200) {
		t.Errorf("%+v, %v", change, err)
	}
	return processorTime(t) - before
}

func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// Who finds no room for a list of domains changes nothing.
func TestNoRoomForLists(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{})
	for _, name := range numbered(mostLists-1, "list%d") {
		mustAdd(t, s, name, "192.0.2.1/32")
	}
	add := AddRequest{List: "another", Prefixes: prefixes("198.51.100.1/32"), Domains: []string{"evil.example"}}
	read := ImportRequest{List: "another", Read: readItems("198.51.100.2/32", "evil.example")}
	for _, list := range []string{"another", "list0"} { // that isn't there, that is
		add.List, read.List = list, list
		if change, err := s.Add(ctx, add); !errors.Is(err, fault.ErrConflict) || change.Changed {
			t.Errorf("%+v, %v", change, err)
		}
		if change, err := s.Import(ctx, read); !errors.Is(err, fault.ErrConflict) || change.Changed {
			t.Errorf("%+v, %v", change, err)
		}
		wantVerdicts(t, s, "198.51.100.1 pass", "198.51.100.2 pass")
		if list == "another" {
			mustAdd(t, s, "last", "192.0.2.1/32")
		}
	}
	if o, err := s.Overview(ctx); err != nil || len(o.Lists) != mostLists {
		t.Errorf("%+v, %v", o.Lists, err)
	}
}

// Who finds no room for domains changes nothing, and those that go make room.
func TestNoRoomForDomains(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"evil.example": "192.0.2.1"})
	addDomains(t, s, "feed", "evil.example")
	fill := func(st *state) error {
		number, _ := st.find("feed")
		known, err := st.readDomains(ctx)
		if err != nil {
			return err
		}
		var all []domain
		for _, name := range numbered(int(known.m.MaxEntries())-1, "d%d.example") {
			d := domain{identity: uint32(st.lists[number].Identity), name: name}
			d.Due = st.boot + 3600
			all = append(all, d)
		}
		return known.put(all...)
	}
	if err := s.write(ctx, false, fill); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		request := ImportRequest{List: "feed", Read: readItems("198.51.100.0/24", "another.example"), DryRun: dry}
		if change, err := s.Import(ctx, request); !errors.Is(err, fault.ErrConflict) || change.Changed {
			t.Errorf("%+v, %v", change, err)
		}
		add := AddRequest{List: "other", Prefixes: prefixes("198.51.100.0/24"), Domains: []string{"another.example"}, DryRun: dry}
		if change, err := s.Add(ctx, add); !errors.Is(err, fault.ErrConflict) || change.Changed {
			t.Errorf("%+v, %v", change, err)
		}
	}
	wantVerdicts(t, s, "198.51.100.1 pass", "192.0.2.1 alert+drop")
	change, err := s.Import(ctx, ImportRequest{List: "feed", Read: readItems(append(numbered(1000, "new%d.example"), "evil.example")...), Replace: true})
	if err != nil || change.Added != 1000 || change.Removed != 65_535 || change.Unanswered != 0 {
		t.Errorf("%+v, %v", change, err)
	}
	wantVerdicts(t, s, "192.0.2.1 alert+drop")
}

// An address that finds no room is told as refused.
func TestNoRoomForAddresses(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"evil.example": "192.0.2.1", "other.example": "192.0.2.2"})
	addDomains(t, s, DefaultList, "evil.example")
	err := s.write(ctx, false, func(st *state) error {
		d, _, err := st.lookupDomain(ctx, DefaultList, "evil.example")
		if err != nil {
			return err
		}
		m := st.Map("block_answers")
		for i := range m.MaxEntries() {
			one := answer{identity: d.identity, domain: d.Number, address: netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)})}
			if err := putAnswer(m, one); err != nil && !errors.Is(err, fault.ErrConflict) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	change := addDomains(t, s, DefaultList, "other.example")
	if change.RefusedN != 1 || change.FailedN != 0 || change.Refused[0].Where != "other.example: 192.0.2.2" {
		t.Errorf("%+v", change)
	}
}

// lose takes addresses out of force as if a writer had been killed before it put
// them there.
func lose(t *testing.T, s *Store, list string, addresses ...string) {
	t.Helper()
	err := s.write(context.Background(), false, func(st *state) error {
		number, _ := st.find(addressesOf(list))
		var gone []entry
		for _, p := range prefixes(addresses...) {
			gone = append(gone, entry{prefix: newPrefix(p)})
		}
		if err := st.delete(number, gone); err != nil {
			return err
		}
		return st.touch(number)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What a writer that was killed didn't put in force, the next one does.
func TestKilledWriters(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"evil.example": "192.0.2.1"})
	addDomains(t, s, DefaultList, "evil.example", "*.bad.example")
	f := s.Follow()
	defer f.Close()
	answer := dns.Answer{Name: "www.bad.example", Chain: []string{"www.bad.example"}, Addresses: []dns.Address{
		{Addr: netip.MustParseAddr("192.0.2.7"), TTL: time.Hour},
	}}
	observe := func() {
		t.Helper()
		if seen, err := f.Observe(ctx, answer); err != nil || len(seen) != 1 || len(seen[0].Addresses) != 1 {
			t.Errorf("%+v, %v", seen, err)
		}
	}
	observe()
	lose(t, s, DefaultList, "192.0.2.1/32", "192.0.2.7/32")
	wantVerdicts(t, s, "192.0.2.1 pass", "192.0.2.7 pass")
	answer.Addresses[0].TTL = time.Minute // the answer of a cache
	observe()
	lose(t, s, DefaultList, "192.0.2.7/32")
	addDomains(t, s, DefaultList, "evil.example")
	wantVerdicts(t, s, "192.0.2.1 alert+drop", "192.0.2.7 alert+drop")

	addDomains(t, s, "other", "evil.example")
	changeDomains(t, s, func(d *bpf.BlockDomain) { d.Due = 1 << 31 })
	lose(t, s, "other", "192.0.2.1/32")
	lose(t, s, DefaultList, "192.0.2.7/32")
	if _, _, err := s.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	wantVerdicts(t, s, "192.0.2.7 pass") // nothing is due
	addDomains(t, s, "third", "*.third.example", "third.example")
	err := s.write(ctx, false, func(st *state) error {
		d, _, err := st.lookupDomain(ctx, "third", "third.example")
		if d.Due = 0; err == nil {
			err = st.domains.put(d)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if change, _, err := s.Refresh(ctx); err != nil || change.AddressesAdded != 2 {
		t.Errorf("%+v, %v", change, err)
	}
	wantVerdicts(t, s, "192.0.2.7 alert+drop")

	err = s.write(ctx, false, func(st *state) error { // a removal that gets no further than its answers
		d, _, err := st.lookupDomain(ctx, DefaultList, "evil.example")
		if err != nil {
			return err
		}
		if _, err := st.readAnswers(ctx); err != nil {
			return err
		}
		killed, kill := context.WithCancel(ctx)
		kill()
		if err := st.removeDomains(killed, DefaultList, []domain{d}); !errors.Is(err, context.Canceled) {
			t.Errorf("the removal: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if change, err := s.Sync(ctx, false); err != nil || change.Resolved != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	wantVerdicts(t, s, "192.0.2.1 alert+drop")
	wantListed(t, s, DefaultList, "*.bad.example wildcard", "*.bad.example 192.0.2.7 answer", "evil.example resolved", "evil.example 192.0.2.1 resolver")
}

// Domains of a list that a killed writer took away keep nobody busy.
func TestKilledClear(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"evil.example": "192.0.2.1", "other.example": "192.0.2.2"})
	addDomains(t, s, DefaultList, "evil.example")
	addDomains(t, s, "other", "other.example")
	makeDue(t, s)
	if err := s.write(ctx, false, func(st *state) error { return st.drop(ctx, DefaultList) }); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		change, next, err := s.Refresh(ctx)
		if err != nil || change.Resolved != uint64(1-i) || next < shortestWait/2 {
			t.Errorf("%+v, next in %v, %v", change, next, err)
		}
	}
}

// An address that was seen ends with its time to live and the grace, a day at most,
// whatever becomes of the end of its domain.
func TestSeenAddressesEnd(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{})
	request := AddRequest{List: DefaultList, Domains: []string{"*.bad.example"}, Grace: time.Second, Lifetime: time.Minute}
	f := s.Follow()
	defer f.Close()
	ends := func() (ends time.Time) {
		t.Helper()
		if _, err := s.Add(ctx, request); err != nil {
			t.Fatal(err)
		}
		_, err := f.Observe(ctx, dns.Answer{Chain: []string{"www.bad.example"}, Addresses: []dns.Address{
			{Addr: netip.MustParseAddr("192.0.2.7"), TTL: request.Lifetime * 2},
		}})
		if err != nil {
			t.Fatal(err)
		}
		request.Lifetime = 0
		if _, err = s.Add(ctx, request); err != nil {
			t.Fatal(err)
		}
		err = s.Entries(ctx, DefaultList, false, func(e Entry) error {
			if e.FoundBy == ByAnswer {
				ends = e.Expires
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return ends
	}
	if left := time.Until(ends()); left < 50*time.Second || left > 70*time.Second {
		t.Errorf("it ends in %v", left)
	}
	_, err := f.Observe(ctx, dns.Answer{Chain: []string{"www.bad.example"}, Addresses: []dns.Address{
		{Addr: netip.MustParseAddr("192.0.2.8"), TTL: (1<<31 - 1) * time.Second},
	}})
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Test(ctx, netip.MustParseAddr("192.0.2.8"))
	if err != nil || len(v.Found) != 1 || time.Until(v.Found[0].Expires) > longestWait+5*time.Second {
		t.Errorf("%+v, %v", v, err)
	}
}

// Without a resolver no domain is asked for again at once.
func TestNoResolver(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	change := addDomains(t, s, DefaultList, "evil.example")
	if change.Unanswered != 1 || change.FailedN != 1 {
		t.Errorf("%+v", change)
	}
	wantListed(t, s, DefaultList, "evil.example failed")
	if change, next, err := s.Refresh(ctx); err != nil || change.Resolved != 0 || next < failedWait/2 {
		t.Errorf("%+v, next in %v, %v", change, next, err)
	}
}

// A resolver that ceases to answer isn't asked for ever; those that it wasn't asked
// for come first the next time.
func TestResolverCeases(t *testing.T) {
	ctx := context.Background()
	const silent = 6 * hopeless
	z := zone{"a.example": "192.0.2.1", "z.example": "192.0.2.2"}
	names := append(numbered(silent, "d%d.example"), "a.example", "z.example")
	for _, name := range names[:silent] {
		z[name] = "!"
	}
	s := newZone(t, z)
	change := addDomains(t, s, DefaultList, names...)
	if change.Resolved == uint64(len(names)) || change.Unanswered != change.Resolved-1 || len(change.Notes) != 1 {
		t.Errorf("%+v", change)
	}
	makeLater(t, s)
	for range silent / hopeless {
		if _, err := s.Sync(ctx, false); err != nil {
			t.Fatal(err)
		}
		makeLater(t, s)
	}
	wantVerdicts(t, s, "192.0.2.1 alert+drop", "192.0.2.2 alert+drop")
}

// makeLater has a minute pass for all domains that were asked for.
func makeLater(t testing.TB, s *Store) {
	t.Helper()
	changeDomains(t, s, func(d *bpf.BlockDomain) {
		if d.Due > 0 { // what nobody has asked for stays in front, soon after the machine has started, too
			d.Due -= min(d.Due-1, uint32(failedWait/time.Second))
		}
	})
}

// A look at the lists that fails is repeated for the next answer.
func TestFollowAgain(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{})
	addDomains(t, s, DefaultList, "*.bad.example")
	f := s.Follow()
	defer f.Close()
	answer := dns.Answer{Chain: []string{"www.bad.example"}, Addresses: []dns.Address{{Addr: netip.MustParseAddr("192.0.2.7"), TTL: time.Hour}}}
	err := s.write(ctx, false, func(*state) error { // nobody else gets the lock
		short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
		defer stop()
		if _, err := f.Observe(short, answer); err == nil {
			t.Error("no error")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen, err := f.Observe(ctx, answer); err != nil || len(seen) != 1 {
		t.Errorf("%+v, %v", seen, err)
	}
}

func TestHalfAnAnswer(t *testing.T) {
	var change Change
	found := dns.Resolution{Addresses: []dns.Address{{Addr: netip.MustParseAddr("192.0.2.7")}}, Failed6: errors.New("192.0.2.53 failed (SERVFAIL)")}
	change.conclude(lesson{domain: "evil.example", Resolution: found})
	if change.Unanswered != 1 || change.FailedN != 1 || change.Failed[0].Reason != "IPv6: 192.0.2.53 failed (SERVFAIL)" {
		t.Errorf("%+v", change)
	}
}

// What a list has is counted anew after a writer that was killed while it changed it.
func TestKilledInPlace(t *testing.T) {
	ctx := context.Background()
	s := newStore(t)
	texts := []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8::/48"}
	mustAdd(t, s, DefaultList, texts...)
	var all []entry
	for _, p := range prefixes(texts...) {
		all = append(all, entry{prefix: newPrefix(p)})
	}
	killed := func(change func(st *state, number uint32) error) {
		t.Helper()
		err := s.write(ctx, false, func(st *state) error {
			number, _ := st.find(DefaultList)
			return change(st, number)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	counted := func(four, six uint64) {
		t.Helper()
		if o, err := s.Overview(ctx); err != nil || o.Lists[0].IPv4 != four || o.Lists[0].IPv6 != six {
			t.Errorf("%+v, %v", o.Lists, err)
		}
	}
	killed(func(st *state, number uint32) error { return st.delete(number, all) })
	mustAdd(t, s, DefaultList, "192.0.2.3/32")
	counted(1, 0)
	killed(func(st *state, number uint32) error {
		if err := st.begin(number); err != nil {
			return err
		}
		for _, e := range all {
			if err := st.putEntry(number, e); err != nil {
				return err
			}
		}
		return nil
	})
	if _, err := s.Remove(ctx, RemoveRequest{List: DefaultList, Prefixes: prefixes(texts...)}); err != nil {
		t.Fatal(err)
	}
	counted(1, 0)
	wantListed(t, s, DefaultList, "192.0.2.3/32")
}
