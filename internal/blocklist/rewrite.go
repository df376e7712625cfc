package blocklist

import (
	"context"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// batch is how many entries are written in one call.
const batch = 1 << 15

// spare is how many entries beyond those that it begins with a list has room
// for.
func spare(n int) int { return n/8 + 1024 }

// rewrite makes entries, sorted, the whole content of a list, in one step for
// packets: the new list is laid out under a number of its own, and then takes the
// place of the old one in the settings.
func (s *state) rewrite(ctx context.Context, name string, entries []entry) error {
	if _, exists := s.find(name); !exists {
		if err := s.dropOrphans(ctx); err != nil { // it may get the identity of a list that was
			return err
		}
	}
	before := *s
	number, err := s.free(name)
	if err != nil {
		return err
	}
	if err := s.layOut(number, entries); err != nil {
		return fault.Join(err, s.discard(number))
	}
	old, exists := s.find(name)
	if exists {
		s.move(old, number)
	} else {
		s.define(number, name)
	}
	list := &s.lists[number]
	list.Entries4, list.Entries6, list.Stale, list.Expires = 0, 0, 0, 0
	for _, e := range entries {
		s.grow(number, e.six, 1)
	}
	s.noteExpiry(number, entries)
	s.addLengths(entries)
	err = s.noteDomainExpiry(ctx, number)
	if err == nil {
		err = s.touch(number)
	}
	if err == nil {
		err = s.enforce(number, entries)
	}
	if err != nil {
		s.config, s.lists = before.config, before.lists
		return fault.Join(err, s.discard(number))
	}
	if exists {
		if err := s.discard(old); err != nil {
			return err
		}
	}
	return s.settle(ctx, number, entries)
}

// layOut writes entries into maps that packets don't meet yet.
func (s *state) layOut(number uint32, entries []entry) error {
	split, _ := slices.BinarySearchFunc(entries, true, func(e entry, six bool) int { return family(e.six) - family(six) })
	four, err := fill("lists4", entries[:split], func(e entry) rawKey4 { return e.key4() })
	if err != nil {
		return err
	}
	if err := s.SetInner("lists4", number, four); err != nil {
		return err
	}
	six, err := fill("lists6", entries[split:], func(e entry) rawKey6 { return e.key6() })
	if err != nil {
		return err
	}
	return s.SetInner("lists6", number, six)
}

// fill makes a map with entries.
func fill[K rawKey4 | rawKey6](outer string, entries []entry, key func(entry) K) (*ebpf.Map, error) {
	m, err := newInner(outer, len(entries)+spare(len(entries)))
	if err != nil {
		return nil, err
	}
	keys, values := make([]K, 0, min(batch, len(entries))), make([]rawEntry, 0, min(batch, len(entries)))
	for chunk := range slices.Chunk(entries, batch) {
		keys, values = keys[:0], values[:0]
		for _, e := range chunk {
			keys, values = append(keys, key(e)), append(values, e.value())
		}
		if _, err := m.BatchUpdate(keys, values, nil); err != nil {
			m.Close()
			return nil, fmt.Errorf("write %d entries: %w", len(entries), err)
		}
	}
	return m, nil
}

// enforce sets the bits that lead to a list's entries, and then puts the settings
// in force.
func (s *state) enforce(number uint32, entries []entry) error {
	live, err := openFilters(s.Shared)
	if err != nil {
		return err
	}
	defer live.Close()
	for _, e := range entries {
		live.add(e.prefix, s.allows(number))
	}
	return s.saveConfig()
}

// settle takes away what a list that was rewritten no longer needs: bits, counted
// hits and reasons.
func (s *state) settle(ctx context.Context, number uint32, entries []entry) error {
	kept := func(p prefix) bool {
		_, found := slices.BinarySearchFunc(entries, p, func(e entry, p prefix) int { return e.compare(p) })
		return found
	}
	if err := s.forgetHits(ctx, uint32(s.lists[number].Identity), kept); err != nil {
		return err
	}
	return s.tidyWith(ctx, number, entries)
}

// tidy computes filters and lengths from the entries that there are, and drops
// reasons that none has.
func (s *state) tidy(ctx context.Context) error { return s.tidyWith(ctx, 0, nil) }

// tidyWith is tidy where the entries of one list are known, unless they are nil.
func (s *state) tidyWith(ctx context.Context, known uint32, entries []entry) error {
	exact, used := NewFilters(), map[uint32]bool{}
	var lengths [2][129]bool
	for number := range s.lists {
		if nameOf(s.lists[number]) == "" {
			continue
		}
		listed, err := entries, error(nil)
		if entries == nil || uint32(number) != known {
			listed, err = s.entries(ctx, uint32(number))
		}
		if err != nil {
			return err
		}
		for _, e := range listed {
			exact.add(e.prefix, s.allows(uint32(number)))
			lengths[family(e.six)][e.length] = true
			used[e.note] = true
		}
		s.lists[number].Stale = 0
		if err := s.saveList(uint32(number)); err != nil {
			return err
		}
	}
	s.setLengths(func(six bool, length int) bool { return lengths[family(six)][length] })
	if err := s.saveConfig(); err != nil {
		return err
	}
	live, err := openFilters(s.Shared)
	if err != nil {
		return err
	}
	defer live.Close()
	live.Set(exact)
	return s.dropNotes(ctx, used)
}

// dropNotes drops the reasons that nothing has.
func (s *state) dropNotes(ctx context.Context, used map[uint32]bool) error {
	domains, err := s.readDomains(ctx)
	if err != nil {
		return err
	}
	for _, d := range domains.all {
		used[d.Note] = true
	}
	answers, err := s.readAnswers(ctx)
	if err != nil {
		return err
	}
	for _, those := range answers.all {
		for _, a := range those {
			used[a.Note] = true
		}
	}
	notes, err := s.readNotes(ctx)
	if err != nil {
		return err
	}
	notes.keep(used)
	return nil
}

func (s *state) eachHit(ctx context.Context, visit func(bpf.HitKey, bpf.HitCounters) error) error {
	err := maps.Walk(ctx, s.Map("hits"), func(key, value []byte) error {
		return visit(readHit(key, value))
	})
	if err != nil {
		return fmt.Errorf("read map hits: %w", err)
	}
	return nil
}
