package blocklist

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/dns"
)

// follower implements Follower.
type follower struct {
	store *Store
	names *ebpf.Map // block_domains; nil: no list has domains
	lists []followed
	guard guard
	read  time.Time // when they were
}

type followed struct {
	name     string
	identity uint32
}

// Sighting is a domain of a list that was seen with addresses.
type Sighting struct {
	List, Domain string
	Addresses    []netip.Addr // that weren't blocked for a domain of the list before
	Refused      []Refusal    // the others that are not
}

// lookAgain is how long a follower relies on the lists that it knows.
const lookAgain = time.Second

// Follow implements API.
func (s *Store) Follow() Follower { return &follower{store: s} }

// Close implements Follower.
func (f *follower) Close() {
	if f.names != nil {
		f.names.Close()
	}
	f.names = nil
}

// Observe implements Follower: any of the names that led to the addresses may be on
// a list.
func (f *follower) Observe(ctx context.Context, a dns.Answer) (seen []Sighting, err error) {
	if len(a.Addresses) == 0 {
		return nil, nil
	}
	if err := f.look(ctx); err != nil || f.names == nil {
		return nil, err
	}
	lessons, err := f.match(a)
	if err != nil || len(lessons) == 0 {
		return nil, err
	}
	err = f.store.write(ctx, false, func(st *state) error {
		st.guard = &f.guard
		for _, l := range lessons {
			one, err := st.learnSeen(ctx, l)
			if err != nil {
				return err
			}
			seen = append(seen, one)
		}
		return nil
	})
	return seen, err
}

// look opens the names on the lists again, from time to time: there may be others.
func (f *follower) look(ctx context.Context) error {
	if time.Since(f.read) < lookAgain {
		return nil
	}
	f.Close()
	f.lists = nil
	err := f.store.read(ctx, func(st *state) (err error) {
		for _, name := range st.names() {
			number, _ := st.find(name)
			if _, has := st.find(addressesOf(name)); has {
				f.lists = append(f.lists, followed{name, uint32(st.lists[number].Identity)})
			}
		}
		if len(f.lists) == 0 {
			return nil
		}
		if f.guard, err = newGuard(); err != nil {
			return err
		}
		f.names, err = st.Map("block_domains").Clone()
		return err
	})
	if err == nil {
		f.read = time.Now()
	}
	return err
}

// match returns what an answer means for each domain that is on a list.
func (f *follower) match(a dns.Answer) (all []lesson, err error) {
	found := dns.Resolution{Addresses: a.Addresses, Chain: a.Chain}
	known := map[question]bool{}
	for _, name := range a.Chain {
		for _, candidate := range candidates(name) {
			for _, list := range f.lists {
				var value bpf.BlockDomain
				err := f.names.Lookup(domain{identity: list.identity, name: candidate}.key(), &value)
				if errors.Is(err, ebpf.ErrKeyNotExist) || known[question{list: list.name, domain: candidate}] {
					continue
				}
				if err != nil {
					return nil, fmt.Errorf("read map block_domains: %w", err)
				}
				known[question{list: list.name, domain: candidate}] = true
				all = append(all, lesson{list: list.name, domain: candidate, Resolution: found, seen: true})
			}
		}
	}
	return all, nil
}

// candidates are the domains that a name belongs to: itself, and wildcards of all
// that is above it.
func candidates(name string) []string {
	if len(name) >= bpf.DomainSize-len("*.") {
		return nil
	}
	all := []string{name}
	for {
		_, parent, more := strings.Cut(name, ".")
		if !more {
			return all
		}
		all = append(all, "*."+parent)
		name = parent
	}
}

// learnSeen is learn for one answer that was seen. It reads no more than it needs,
// because packets to the addresses are on their way.
func (s *state) learnSeen(ctx context.Context, l lesson) (seen Sighting, err error) {
	seen = Sighting{List: l.list, Domain: l.domain}
	number, exists := s.find(l.list)
	addresses, has := s.find(addressesOf(l.list))
	if !exists || !has {
		return seen, nil
	}
	d := domain{identity: uint32(s.lists[number].Identity), name: l.domain}
	err = s.Map("block_domains").Lookup(d.key(), &d.BlockDomain)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && s.isOver(entry{expires: d.Expires}) {
		return seen, nil
	}
	if err != nil {
		return seen, fmt.Errorf("read map block_domains: %w", err)
	}
	taken, refused, err := s.answersOf(ctx, d, l)
	if err != nil {
		return seen, err
	}
	seen.Refused = refused
	var fresh []entry
	for _, one := range taken {
		if err := s.putLonger(one); err != nil {
			return seen, err
		}
		fresh = append(fresh, entry{prefix: one.prefix(), expires: one.Expires, note: one.Note})
	}
	seen.Addresses, err = s.putAddresses(ctx, l.list, addresses, sortEntries(fresh))
	return seen, err
}

// putLonger writes an answer, unless the same one is there for longer.
func (s *state) putLonger(one answer) error {
	m, old := s.Map("block_answers"), one
	err := m.Lookup(one.key(), &old.BlockAnswer)
	if err == nil && !one.outlasts(old) {
		return nil
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read map block_answers: %w", err)
	}
	return putAnswer(m, one)
}

// putAddresses makes addresses entries of a list of addresses, those left out that
// are there for longer, and returns those that are new.
func (s *state) putAddresses(ctx context.Context, list string, number uint32, fresh []entry) (added []netip.Addr, err error) {
	var longer []entry
	for _, e := range fresh {
		old, found, err := s.lookup(number, e.prefix)
		if err != nil {
			return nil, err
		}
		if found && (old.expires == 0 || e.expires != 0 && old.expires >= e.expires) {
			continue
		}
		if !found || s.isOver(old) {
			added = append(added, e.netip().Addr())
		}
		longer = append(longer, e)
	}
	if len(longer) == 0 {
		return nil, nil
	}
	return added, s.put(ctx, addressesOf(list), longer)
}
