package blocklist

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bpfnet/bpf"
	"bpfnet/internal/dns"
)

// zone answers from a table, "192.0.2.1 2001:db8::1" by name; "!" is no answer.
// The names of CNAMEs stand in front: "www.example > cdn.example 192.0.2.1".
type zone map[string]string

func (z zone) ResolveAll(ctx context.Context, names []string, done func(int, dns.Resolution, error)) {
	for i, name := range names {
		if ctx.Err() != nil {
			return
		}
		found, err := z.resolve(name)
		done(i, found, err)
	}
}

func (z zone) resolve(name string) (dns.Resolution, error) {
	text, known := z[name]
	found := dns.Resolution{Chain: []string{name}, TTL: time.Hour}
	switch {
	case !known:
		return found, dns.ErrNoName
	case text == "!":
		time.Sleep(5 * time.Millisecond)
		return dns.Resolution{}, errors.New("resolve " + name + ": no answer from 192.0.2.53 within 5s")
	}
	for _, word := range strings.Fields(text) {
		if address, err := netip.ParseAddr(word); err == nil {
			found.Addresses = append(found.Addresses, dns.Address{Addr: address, TTL: time.Hour})
		} else if word != ">" && word != name {
			found.Chain = append(found.Chain, word)
		}
	}
	return found, nil
}

func newZone(t testing.TB, z zone) *Store {
	t.Helper()
	return newStore(t).ResolveWith(func() (Resolver, error) { return z, nil })
}

func addDomains(t testing.TB, s *Store, list string, names ...string) Change {
	t.Helper()
	change, err := s.Add(context.Background(), AddRequest{List: list, Domains: names})
	if err != nil {
		t.Fatal(err)
	}
	return change
}

// listed describes the entries of a list: domains with their status, addresses with
// who found them.
func listed(t testing.TB, s *Store, list string) (all []string) {
	t.Helper()
	err := s.Entries(context.Background(), list, true, func(e Entry) error {
		switch {
		case e.Domain == "":
			all = append(all, e.Prefix.String())
		case e.FoundBy == "":
			all = append(all, fmt.Sprintf("%s %s", e.Domain, e.Status))
		default:
			all = append(all, fmt.Sprintf("%s %s %s", e.Domain, e.Prefix.Addr(), e.FoundBy))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func wantListed(t testing.TB, s *Store, list string, want ...string) {
	t.Helper()
	if got := listed(t, s, list); !slices.Equal(got, want) {
		t.Errorf("list %s:\n%s\nwant:\n%s", list, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// wantVerdicts tests addresses: "192.0.2.1 drop".
func wantVerdicts(t testing.TB, s *Store, want ...string) {
	t.Helper()
	for _, line := range want {
		address, action, _ := strings.Cut(line, " ")
		v, err := s.Test(context.Background(), netip.MustParseAddr(address))
		if err != nil || v.Action != action {
			t.Errorf("%s: %s, %v, want %s", address, v.Action, err, action)
		}
	}
}

// letEnd has all domains, and addresses of domains, that have an end reach it. Tests
// don't wait for ends of their own: a busy machine may be late.
func letEnd(t testing.TB, s *Store) {
	t.Helper()
	ctx := context.Background()
	err := s.write(ctx, false, func(st *state) error {
		known, err := st.readDomains(ctx)
		if err != nil {
			return err
		}
		soon := st.boot + 1
		for _, d := range slices.Clone(known.all) {
			if d.Expires = min(d.Expires, soon); err == nil {
				err = known.put(d)
			}
		}
		found, readErr := st.readAnswers(ctx)
		for _, those := range found.all {
			for _, one := range those {
				if one.Expires = min(one.Expires, soon); err == nil {
					err = found.put(one)
				}
			}
		}
		if err == nil {
			err = st.mend(ctx, &Change{})
		}
		return errors.Join(err, readErr)
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond)
}

// makeDue has all domains be asked for again.
func makeDue(t testing.TB, s *Store) {
	t.Helper()
	changeDomains(t, s, func(d *bpf.BlockDomain) { d.Due = 0 })
}

func changeDomains(t testing.TB, s *Store, change func(*bpf.BlockDomain)) {
	t.Helper()
	err := s.write(context.Background(), false, func(st *state) error {
		known, err := st.readDomains(context.Background())
		if err != nil {
			return err
		}
		all := slices.Clone(known.all)
		for i := range all {
			change(&all[i].BlockDomain)
		}
		return known.put(all...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDomains(t *testing.T) {
	ctx := context.Background()
	z := zone{"evil.example": "192.0.2.1 2001:db8::1", "other.example": "other.example > cdn.example 192.0.2.1 192.0.2.9", "silent.example": "!"}
	s := newZone(t, z)
	mustAdd(t, s, DefaultList, "192.0.2.1/32", "198.51.100.0/24")
	change := addDomains(t, s, DefaultList, "evil.example", "other.example", "silent.example", "gone.example", "*.bad.example")
	if change.Added != 5 || change.Resolved != 4 || change.Unanswered != 1 || change.FailedN != 2 || change.AddressesAdded != 3 {
		t.Errorf("add: %+v", change)
	}
	want := []Refusal{{"gone.example", "no such name"}, {"silent.example", "no answer from 192.0.2.53 within 5s"}}
	for i, w := range want {
		if i >= len(change.Failed) || change.Failed[i].Where != w.Where || !strings.HasPrefix(change.Failed[i].Reason, w.Reason) {
			t.Errorf("failed: %+v", change.Failed)
		}
	}
	all := []string{
		"192.0.2.1/32", "198.51.100.0/24", "*.bad.example wildcard",
		"evil.example resolved", "evil.example 192.0.2.1 resolver", "evil.example 2001:db8::1 resolver", "gone.example no_name",
		"other.example resolved", "other.example 192.0.2.9 resolver", "silent.example failed",
	}
	wantListed(t, s, DefaultList, all...)
	wantVerdicts(t, s, "192.0.2.9 alert+drop", "2001:db8::1 alert+drop", "192.0.2.2 pass")

	v, err := s.Test(ctx, netip.MustParseAddr("192.0.2.9"))
	if err != nil || len(v.Found) != 1 || v.Found[0].Domain != "other.example" || v.Found[0].Reason != "other.example > cdn.example" || v.Found[0].FoundBy != ByResolver {
		t.Errorf("test: %+v, %v", v, err)
	}
	if change = addDomains(t, s, DefaultList, "evil.example"); change.Changed || change.Unchanged != 1 || change.Resolved != 1 {
		t.Errorf("add again: %+v", change)
	}

	// An address that two domains have stays for the second; the entry beside it stays, too.
	change, err = s.Remove(ctx, RemoveRequest{List: DefaultList, Domains: []string{"evil.example", "nothing.example"}})
	if err != nil || change.Removed != 1 || change.Unchanged != 1 || change.AddressesRemoved != 1 {
		t.Errorf("remove: %+v, %v", change, err)
	}
	wantListed(t, s, DefaultList, "192.0.2.1/32", "198.51.100.0/24", "*.bad.example wildcard", "gone.example no_name",
		"other.example resolved", "other.example 192.0.2.1 resolver", "other.example 192.0.2.9 resolver", "silent.example failed")
	wantVerdicts(t, s, "2001:db8::1 pass")
	if change, err = s.Remove(ctx, RemoveRequest{List: DefaultList, Prefixes: prefixes("192.0.2.1/32")}); err != nil || change.Removed != 1 {
		t.Errorf("remove: %+v, %v", change, err)
	}
	wantVerdicts(t, s, "192.0.2.1 alert+drop")

	// What the list does, its domains do.
	if _, err := s.Set(ctx, SetRequest{List: DefaultList, Action: Alert}); err != nil {
		t.Fatal(err)
	}
	wantVerdicts(t, s, "192.0.2.9 alert", "198.51.100.1 alert")
	if change, err = s.Clear(ctx, "", false); err != nil || change.Removed != 5 {
		t.Errorf("clear: %+v, %v", change, err)
	}
	wantListed(t, s, "")
	wantVerdicts(t, s, "192.0.2.9 pass")
	mustAdd(t, s, DefaultList, "192.0.2.1/32")
	wantListed(t, s, DefaultList, "192.0.2.1/32")
}

// An address that left the answer of its domain stays for the grace; one whose
// domain has no answer stays.
func TestGrace(t *testing.T) {
	ctx := context.Background()
	z := zone{"evil.example": "192.0.2.1 192.0.2.2"}
	s := newZone(t, z)
	addDomains(t, s, DefaultList, "evil.example")
	z["evil.example"] = "!"
	makeDue(t, s)
	change, err := s.Sync(ctx, false)
	if err != nil || change.Unanswered != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	wantListed(t, s, DefaultList, "evil.example failed", "evil.example 192.0.2.1 resolver", "evil.example 192.0.2.2 resolver")

	z["evil.example"] = "192.0.2.2 192.0.2.3"
	makeDue(t, s)
	change, next, err := s.Refresh(ctx)
	if err != nil || change.Resolved != 1 || change.AddressesAdded != 1 || next < shortestWait {
		t.Errorf("%+v, next in %v, %v", change, next, err)
	}
	wantListed(t, s, DefaultList, "evil.example resolved", "evil.example 192.0.2.1 resolver", "evil.example 192.0.2.2 resolver", "evil.example 192.0.2.3 resolver")
	letEnd(t, s)
	wantVerdicts(t, s, "192.0.2.1 pass", "192.0.2.2 alert+drop")
	change, next, err = s.Refresh(ctx)
	if err != nil || change.AddressesRemoved != 1 || next > mostIdle {
		t.Errorf("%+v, next in %v, %v", change, next, err)
	}
	wantListed(t, s, DefaultList, "evil.example resolved", "evil.example 192.0.2.2 resolver", "evil.example 192.0.2.3 resolver")
	if change, _, err = s.Refresh(ctx); err != nil || change.Changed || change.Resolved != 0 {
		t.Errorf("nothing is due: %+v, %v", change, err)
	}
}

// Who owns a domain chooses its addresses: those that lock people out are refused.
func TestGuardedAnswers(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"evil.example": "10.0.0.1 192.0.2.1 127.0.0.1 ::1"})
	change := addDomains(t, s, DefaultList, "evil.example")
	if change.RefusedN != 3 || change.AddressesAdded != 1 || change.Refused[0].Where != "evil.example: 10.0.0.1" {
		t.Errorf("%+v", change)
	}
	change, err := s.Add(ctx, AddRequest{List: DefaultList, Domains: []string{"evil.example"}, Force: true})
	if err != nil || change.RefusedN != 0 || change.AddressesAdded != 3 {
		t.Errorf("%+v, %v", change, err)
	}
	wantVerdicts(t, s, "10.0.0.1 alert+drop")
	if change = addDomains(t, s, AllowList, "evil.example"); change.RefusedN != 0 || change.AddressesAdded != 4 {
		t.Errorf("%+v", change)
	}
	wantVerdicts(t, s, "10.0.0.1 allow", "192.0.2.1 allow")
}

func TestDomainsExpire(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"evil.example": "192.0.2.1", "other.example": "192.0.2.2"})
	addDomains(t, s, DefaultList, "other.example")
	request := AddRequest{List: DefaultList, Domains: []string{"evil.example"}, Lifetime: time.Hour}
	if _, err := s.Add(ctx, request); err != nil {
		t.Fatal(err)
	}
	wantVerdicts(t, s, "192.0.2.1 alert+drop")
	letEnd(t, s)
	wantVerdicts(t, s, "192.0.2.1 pass", "192.0.2.2 alert+drop")
	change, err := s.Sync(ctx, false)
	if err != nil || change.Expired != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	wantListed(t, s, DefaultList, "other.example resolved", "other.example 192.0.2.2 resolver")

	// Another end moves that of the addresses.
	for range 2 {
		if _, err := s.Add(ctx, request); err != nil {
			t.Fatal(err)
		}
		err = s.Entries(ctx, DefaultList, false, func(e Entry) error {
			if left := time.Until(e.Expires); e.Domain == "evil.example" && (left < request.Lifetime-5*time.Second || left > request.Lifetime+2*time.Second) {
				t.Errorf("%+v", e)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		request.Lifetime *= 2
	}
}

func TestImportDomains(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"a.example": "192.0.2.1", "b.example": "192.0.2.2", "c.example": "192.0.2.3"})
	change, err := s.Import(ctx, ImportRequest{List: "feed", Read: readItems("a.example", "b.example", "198.51.100.0/24", "a.example")})
	if err != nil || change.Added != 3 || change.Resolved != 2 || change.Entries != 3 {
		t.Errorf("%+v, %v", change, err)
	}
	change, err = s.Import(ctx, ImportRequest{List: "feed", Read: readItems("b.example", "c.example"), Replace: true, DryRun: true})
	if err != nil || change.Added != 1 || change.Removed != 2 || change.Unchanged != 1 || change.Entries != 2 {
		t.Errorf("dry run: %+v, %v", change, err)
	}
	change, err = s.Import(ctx, ImportRequest{List: "feed", Read: readItems("b.example", "c.example"), Replace: true})
	if err != nil || change.Added != 1 || change.Removed != 2 || change.Unchanged != 1 || change.Entries != 2 || change.Resolved != 1 {
		t.Errorf("replace: %+v, %v", change, err)
	}
	wantListed(t, s, "feed", "b.example resolved", "b.example 192.0.2.2 resolver", "c.example resolved", "c.example 192.0.2.3 resolver")
	err = s.Entries(ctx, "feed", false, func(e Entry) error {
		if e.Reason != "feed" {
			t.Errorf("%+v", e)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Addresses of names below a wildcard are in force once an answer was seen, and end
// with their time to live and the grace.
func TestObserve(t *testing.T) {
	ctx := context.Background()
	s := newZone(t, zone{"evil.example": "192.0.2.1"})
	f := s.Follow()
	defer f.Close()
	answer := dns.Answer{Name: "x.y.bad.example", Chain: []string{"x.y.bad.example", "cdn.example"}, Addresses: []dns.Address{
		{Addr: netip.MustParseAddr("192.0.2.7"), TTL: time.Second}, {Addr: netip.MustParseAddr("10.0.0.1"), TTL: time.Second},
	}}
	if seen, err := f.Observe(ctx, answer); err != nil || len(seen) != 0 {
		t.Errorf("without lists: %+v, %v", seen, err)
	}
	addDomains(t, s, DefaultList, "evil.example", "*.bad.example")
	time.Sleep(lookAgain)
	seen, err := f.Observe(ctx, answer)
	if err != nil || len(seen) != 1 || seen[0].Domain != "*.bad.example" || len(seen[0].Addresses) != 1 || len(seen[0].Refused) != 1 {
		t.Fatalf("%+v, %v", seen, err)
	}
	wantVerdicts(t, s, "192.0.2.7 alert+drop")
	wantListed(t, s, DefaultList, "*.bad.example wildcard", "*.bad.example 192.0.2.7 answer", "evil.example resolved", "evil.example 192.0.2.1 resolver")
	if seen, err = f.Observe(ctx, answer); err != nil || len(seen) != 1 || len(seen[0].Addresses) != 0 {
		t.Errorf("again: %+v, %v", seen, err)
	}
	// What the resolver found isn't ended by an answer, nor does the answer say less.
	answer.Chain, answer.Addresses = []string{"evil.example"}, []dns.Address{{Addr: netip.MustParseAddr("192.0.2.1"), TTL: time.Second}}
	if seen, err = f.Observe(ctx, answer); err != nil || len(seen) != 1 || len(seen[0].Addresses) != 0 {
		t.Errorf("known: %+v, %v", seen, err)
	}
	answer.Chain = []string{"bad.example"} // not below the wildcard
	if seen, err = f.Observe(ctx, answer); err != nil || len(seen) != 0 {
		t.Errorf("the domain itself: %+v, %v", seen, err)
	}
	letEnd(t, s)
	wantVerdicts(t, s, "192.0.2.7 pass", "192.0.2.1 alert+drop")
	if change, err := s.Sync(ctx, false); err != nil || change.AddressesRemoved != 1 {
		t.Errorf("%+v, %v", change, err)
	}
	wantListed(t, s, DefaultList, "*.bad.example wildcard", "evil.example resolved", "evil.example 192.0.2.1 resolver")
	v, err := s.TestDomain(ctx, "a.bad.example")
	if err != nil || v.Action != "alert+drop" || len(v.Found) != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

// A resolver that has no answers isn't asked for ever.
func TestSilentResolver(t *testing.T) {
	z, names := zone{}, []string(nil)
	for i := range 3 * hopeless {
		names = append(names, fmt.Sprintf("d%d.example", i))
		z[names[i]] = "!"
	}
	change := addDomains(t, newZone(t, z), DefaultList, names...)
	if change.Added != uint64(len(names)) || change.Unanswered != change.Resolved || change.Resolved < hopeless || change.Resolved == change.Added || len(change.Notes) != 1 {
		t.Errorf("%+v", change)
	}
}

// held is a resolver that answers when it may, and counts what it is asked for.
type held struct {
	zone
	began, may chan struct{}
	asked      atomic.Int64
}

func (h *held) ResolveAll(ctx context.Context, names []string, done func(int, dns.Resolution, error)) {
	if h.asked.Add(int64(len(names))); h.may != nil {
		h.began <- struct{}{}
		<-h.may
	}
	h.zone.ResolveAll(ctx, names, done)
}

// While somebody asks for what is due nobody else does; when that one is gone others do.
func TestRefreshOneAtATime(t *testing.T) {
	ctx := context.Background()
	z := &held{zone: zone{"evil.example": "192.0.2.1", "other.example": "192.0.2.2"}}
	s := newStore(t).ResolveWith(func() (Resolver, error) { return z, nil })
	if _, next, err := s.Refresh(ctx); err != nil || next != mostIdle {
		t.Errorf("without lists: %v, %v", next, err)
	}
	addDomains(t, s, DefaultList, "evil.example", "other.example")
	makeDue(t, s)
	z.asked.Store(0)
	z.began, z.may = make(chan struct{}), make(chan struct{})
	stopped, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { _, _, err := s.Refresh(stopped); ended <- err }()
	<-z.began
	if change, next, err := s.Refresh(ctx); err != nil || change.Resolved != 0 || next != takenWait {
		t.Errorf("meanwhile: %+v, next in %v, %v", change, next, err)
	}
	stop()
	close(z.may)
	if err := <-ended; err == nil {
		t.Error("it was stopped, and says nothing")
	}
	z.may = nil
	change, next, err := s.Refresh(ctx)
	if err != nil || change.Resolved != 2 || next < shortestWait || z.asked.Load() != 4 {
		t.Errorf("afterwards: %+v, next in %v, %v, asked for %d", change, next, err, z.asked.Load())
	}
}
