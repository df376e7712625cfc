package commands

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/dns"
	"bpfnet/internal/fault"
)

// fakeBlocklist keeps lists in memory, sorted by name. It guards 10.0.0.0/8; the
// entry of 198.51.100.7 was hit. evil.example has that address, silent.example no
// answer, and other domains aren't there.
type fakeBlocklist struct{ lists []fakeList }

type fakeList struct {
	blocklist.List
	entries []blocklist.Entry
	domains []blocklist.Entry
}

var fakeNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func (f *fakeBlocklist) find(name string) (*fakeList, error) {
	var names []string
	for i := range f.lists {
		if f.lists[i].Name == name {
			return &f.lists[i], nil
		}
		names = append(names, f.lists[i].Name)
	}
	return nil, fault.New(fault.ErrNotFound, "no list %q", name).Hint("lists: %s", strings.Join(names, ", "))
}

func (f *fakeBlocklist) make(name string) *fakeList {
	if l, err := f.find(name); err == nil {
		return l
	}
	l := blocklist.List{Name: name, Action: blocklist.AlertAndDrop, Match: blocklist.Both, ChangedAt: fakeNow}
	if name == blocklist.AllowList {
		l.Action = blocklist.Allow
	}
	f.lists = append(f.lists, fakeList{List: l})
	slices.SortFunc(f.lists, func(a, b fakeList) int { return strings.Compare(a.Name, b.Name) })
	made, _ := f.find(name)
	return made
}

// guarded says why a prefix is refused.
func guarded(p netip.Prefix, force bool) string {
	if private := netip.MustParsePrefix("10.0.0.0/8"); !force && private.Overlaps(p) {
		return "10.0.0.0/8 is private"
	}
	return ""
}

// replace makes entries the content of a list, and counts what that changes.
func (f *fakeBlocklist) replace(name string, next []blocklist.Entry, dryRun bool) blocklist.Change {
	slices.SortFunc(next, func(a, b blocklist.Entry) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	change := blocklist.Change{List: name, Entries: uint64(len(next))}
	var before []blocklist.Entry
	if l, err := f.find(name); err == nil {
		before = l.entries
	}
	for _, e := range next {
		switch old := at(before, e.Prefix); {
		case old < 0:
			change.Added++
		case before[old].Reason == e.Reason && before[old].Expires.Equal(e.Expires):
			change.Unchanged++
		default:
			change.Updated++
		}
	}
	change.Removed = uint64(len(before)) - change.Updated - change.Unchanged
	change.Changed = change.Added+change.Updated+change.Removed > 0
	if change.Changed && !dryRun {
		l := f.make(name)
		l.entries, l.Entries, l.IPv4, l.MemoryBytes = next, uint64(len(next)), 0, uint64(len(next))*64
		for _, e := range next {
			if e.Prefix.Addr().Is4() {
				l.IPv4++
			}
		}
		l.IPv6 = l.Entries - l.IPv4
	}
	return change
}

func at(entries []blocklist.Entry, p netip.Prefix) int {
	return slices.IndexFunc(entries, func(e blocklist.Entry) bool { return e.Prefix == p })
}

// with returns entries and more, of which the last one of a prefix counts.
func with(entries []blocklist.Entry, more ...blocklist.Entry) []blocklist.Entry {
	next := slices.Clone(entries)
	for _, e := range more {
		if i := at(next, e.Prefix); i >= 0 {
			next[i] = e
		} else {
			next = append(next, e)
		}
	}
	return next
}

func (f *fakeBlocklist) Add(_ context.Context, r blocklist.AddRequest) (blocklist.Change, error) {
	if strings.Contains(r.List, " ") {
		return blocklist.Change{}, fault.New(fault.ErrUsage, "list %q: a name has no space", r.List)
	}
	var more, before []blocklist.Entry
	for _, p := range r.Prefixes {
		if why := guarded(p, r.Force); why != "" {
			return blocklist.Change{}, fault.New(fault.ErrUsage, "%s: %s", p, why).Hint("--force lists it all the same")
		}
		e := blocklist.Entry{Prefix: p, Reason: r.Reason}
		if r.Lifetime > 0 {
			e.Expires = fakeNow.Add(r.Lifetime)
		}
		more = append(more, e)
	}
	if l, err := f.find(r.List); err == nil {
		before = l.entries
	}
	change := f.count(f.replace(r.List, with(before, more...), r.DryRun), len(before))
	return f.addDomains(change, r), nil
}

func (f *fakeBlocklist) addDomains(change blocklist.Change, r blocklist.AddRequest) blocklist.Change {
	for _, name := range r.Domains {
		change.Changed, change.Added, change.Entries = true, change.Added+1, change.Entries+1
		if r.DryRun {
			continue
		}
		l := f.make(r.List)
		e := blocklist.Entry{Domain: name, Reason: r.Reason, Status: blocklist.NoName, Checked: fakeNow}
		switch {
		case strings.HasPrefix(name, "*."):
			e.Status, e.Checked = blocklist.Wildcard, time.Time{}
		case name == "evil.example":
			e.Status, change.AddressesAdded = blocklist.Resolved, 1
		case name == "silent.example":
			e.Status = blocklist.Failed
			change.Unanswered, change.FailedN = 1, 1
			change.Failed = []blocklist.Refusal{{Where: name, Reason: "no answer from 192.0.2.53 within 5s"}}
		default:
			change.FailedN = 1
			change.Failed = []blocklist.Refusal{{Where: name, Reason: "no such name (NXDOMAIN)"}}
		}
		if e.Checked != (time.Time{}) {
			change.Resolved++
		}
		l.domains = append(l.domains, e)
		l.Domains++
		if e.Status == blocklist.Resolved {
			l.domains = append(l.domains, blocklist.Entry{Prefix: netip.MustParsePrefix("198.51.100.7/32"), Domain: name, FoundBy: blocklist.ByResolver, Reason: r.Reason})
		}
	}
	return change
}

// count leaves out of a change what nobody asked for.
func (f *fakeBlocklist) count(change blocklist.Change, before int) blocklist.Change {
	change.Unchanged -= min(change.Unchanged, uint64(before))
	return change
}

func (f *fakeBlocklist) Remove(_ context.Context, r blocklist.RemoveRequest) (blocklist.Change, error) {
	l, err := f.find(r.List)
	if err != nil {
		return blocklist.Change{}, err
	}
	next := slices.DeleteFunc(slices.Clone(l.entries), func(e blocklist.Entry) bool { return slices.Contains(r.Prefixes, e.Prefix) })
	change := f.replace(r.List, next, r.DryRun)
	domains := slices.DeleteFunc(slices.Clone(l.domains), func(e blocklist.Entry) bool { return slices.Contains(r.Domains, e.Domain) })
	if removed := uint64(len(l.domains) - len(domains)); removed > 0 {
		change.Changed, change.Removed = true, change.Removed+uint64(len(r.Domains))
		change.AddressesRemoved = removed - uint64(len(r.Domains))
	}
	if !r.DryRun {
		l.domains = domains
	}
	change.Unchanged = uint64(len(r.Prefixes)+len(r.Domains)) - change.Removed
	return change, nil
}

func (f *fakeBlocklist) Import(_ context.Context, r blocklist.ImportRequest) (blocklist.Change, error) {
	var wanted []blocklist.Entry
	var refused []blocklist.Refusal
	var domains []string
	refuse := func(r blocklist.Refusal) { refused = append(refused, r) }
	err := r.Read(func(item blocklist.Item) error {
		if item.Domain != "" {
			domains = append(domains, item.Domain)
			return nil
		}
		if why := guarded(item.Prefix, r.Force); why != "" {
			refuse(blocklist.Refusal{Where: fmt.Sprintf("%s:%d:%d: %s", item.Source, item.Line, item.Column, item.Prefix), Reason: why})
			return nil
		}
		wanted = with(wanted, blocklist.Entry{Prefix: item.Prefix, Reason: item.Reason, Expires: item.Expires})
		return nil
	}, refuse)
	if err == nil && r.Strict && len(refused) > 0 {
		err = fault.New(fault.ErrUsage, "%s: %s", refused[0].Where, refused[0].Reason).Hint("%d entries are refused, so nothing was changed", len(refused))
	}
	if err != nil {
		return blocklist.Change{}, err
	}
	if l, err := f.find(r.List); err == nil && !r.Replace {
		wanted = with(l.entries, wanted...)
	}
	change := f.replace(r.List, wanted, r.DryRun)
	change.Refused, change.RefusedN = refused, uint64(len(refused))
	return f.addDomains(change, blocklist.AddRequest{List: r.List, Domains: domains, DryRun: r.DryRun}), nil
}

func (f *fakeBlocklist) Clear(_ context.Context, list string, dryRun bool) (blocklist.Change, error) {
	change := blocklist.Change{List: list}
	kept := slices.DeleteFunc(slices.Clone(f.lists), func(l fakeList) bool { return list == "" || l.Name == list })
	for _, l := range f.lists {
		if list == "" || l.Name == list {
			change.Changed, change.Removed = true, change.Removed+l.Entries
		}
	}
	if !dryRun {
		f.lists = kept
	}
	return change, nil
}

func (f *fakeBlocklist) Set(_ context.Context, r blocklist.SetRequest) (blocklist.Change, error) {
	l, err := f.find(r.List)
	if err != nil {
		return blocklist.Change{}, err
	}
	next := l.List
	if r.Action != "" {
		next.Action = r.Action
	}
	if r.Match != "" {
		next.Match = r.Match
	}
	change := blocklist.Change{List: r.List, Changed: next != l.List, Entries: l.Entries}
	if !r.DryRun {
		l.List = next
	}
	return change, nil
}

// Sync finds that what ends within a second is over.
func (f *fakeBlocklist) Sync(_ context.Context, dryRun bool) (change blocklist.Change, _ error) {
	for _, l := range f.lists {
		next := slices.DeleteFunc(slices.Clone(l.entries), func(e blocklist.Entry) bool {
			return !e.Expires.IsZero() && e.Expires.Before(fakeNow.Add(time.Second))
		})
		one := f.replace(l.Name, next, dryRun)
		change.Changed, change.Expired = change.Changed || one.Changed, change.Expired+one.Removed
	}
	return change, nil
}

func (f *fakeBlocklist) Overview(context.Context) (blocklist.Overview, error) {
	o := blocklist.Overview{Lists: []blocklist.List{}, Packets: map[string]blocklist.Counter{"dropped": {Packets: 3, Bytes: 180}}}
	for _, l := range f.lists {
		o.Lists, o.MemoryBytes = append(o.Lists, l.List), o.MemoryBytes+l.MemoryBytes
	}
	return o, nil
}

func (f *fakeBlocklist) Entries(_ context.Context, list string, hits bool, visit func(blocklist.Entry) error) error {
	if list != "" {
		if _, err := f.find(list); err != nil {
			return err
		}
	}
	for _, l := range f.lists {
		for _, e := range slices.Concat(l.entries, l.domains) {
			if list != "" && list != l.Name {
				continue
			}
			if err := visit(l.entry(e, hits)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l fakeList) entry(e blocklist.Entry, hits bool) blocklist.Entry {
	e.List, e.Action = l.Name, l.Action
	if hits {
		e.Hits = &blocklist.Hits{}
	}
	if hits && e.Prefix.IsValid() && e.Prefix.Contains(netip.MustParseAddr("198.51.100.7")) {
		e.Hits = &blocklist.Hits{Packets: 3, Bytes: 180, LastSeen: fakeNow}
	}
	return e
}

func (f *fakeBlocklist) Hits(_ context.Context, visit func(blocklist.ListHits)) error {
	for _, l := range f.lists {
		for _, e := range slices.Concat(l.entries, l.domains) {
			if hits := l.entry(e, true).Hits; hits != nil && hits.Packets > 0 {
				visit(blocklist.ListHits{List: l.Name, Action: l.Action, Packets: hits.Packets, Bytes: hits.Bytes})
			}
		}
	}
	return nil
}

// Test lets the first entry that covers the address decide.
func (f *fakeBlocklist) Test(_ context.Context, address netip.Addr) (blocklist.Verdict, error) {
	v := blocklist.Verdict{Address: address, Action: "pass", Found: []blocklist.Found{}}
	for _, l := range f.lists {
		for _, e := range l.entries {
			if !e.Prefix.Contains(address) {
				continue
			}
			v.Found = append(v.Found, blocklist.Found{Entry: l.entry(e, true), Decides: len(v.Found) == 0})
			v.Action = string(v.Found[0].Action)
		}
	}
	return v, nil
}

func (f *fakeBlocklist) TestDomain(_ context.Context, name string) (blocklist.Verdict, error) {
	v := blocklist.Verdict{Domain: name, Action: "pass", Found: []blocklist.Found{}}
	for _, l := range f.lists {
		for _, e := range l.domains {
			if e.Domain == name && e.FoundBy == "" {
				v.Found, v.Action = append(v.Found, blocklist.Found{Entry: l.entry(e, true), Decides: true}), string(l.Action)
			}
		}
	}
	return v, nil
}

func (f *fakeBlocklist) Refresh(context.Context) (blocklist.Change, time.Duration, error) {
	return blocklist.Change{}, time.Minute, nil
}

func (f *fakeBlocklist) Follow() blocklist.Follower { return fakeFollower{} }

// fakeFollower has *.bad.example on a list; two of the addresses are refused.
type fakeFollower struct{}

func (fakeFollower) Observe(_ context.Context, a dns.Answer) ([]blocklist.Sighting, error) {
	if !strings.HasSuffix(a.Name, ".bad.example") {
		return nil, fault.New(fault.ErrLocked, "another bpfnet holds the lock")
	}
	return []blocklist.Sighting{{
		List: "names", Domain: "*.bad.example", Addresses: []netip.Addr{a.Addresses[0].Addr},
		Refused: []blocklist.Refusal{{Where: "*.bad.example: 10.0.0.1", Reason: "10.0.0.0/8 is private"}},
	}}, nil
}

func (fakeFollower) Close() {}

// fakeAnswers are those that an instance of dns sees: the same one twice, one that
// can't be taken, and names of peers of fakeFlows.
type fakeAnswers struct{ told atomic.Bool }

func (*fakeAnswers) Notes() []string {
	return []string{"map dns/dns_events is open in process 812 (bpfnet)"}
}

func (f *fakeAnswers) Read(ctx context.Context, emit func([]dns.Answer) error) error {
	a := dns.Answer{Name: "www.bad.example", Addresses: []dns.Address{{Addr: netip.MustParseAddr("203.0.113.80")}}}
	if err := emit(append([]dns.Answer{a, a, {Name: "busy.example"}}, peerAnswers()...)); err != nil {
		return err
	}
	f.told.Store(true)
	<-ctx.Done()
	return nil
}

func (*fakeAnswers) Lost() (uint64, error) { return 0, nil }
func (f *fakeAnswers) Drained() bool       { return f.told.Load() }
func (*fakeAnswers) Close() error          { return nil }
