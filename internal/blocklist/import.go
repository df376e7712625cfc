package blocklist

import (
	"context"
	"fmt"

	"bpfnet/internal/fault"
)

// mostRefusals is how many refused entries a Change tells one by one.
const mostRefusals = 100

// Import implements API.
func (s *Store) Import(ctx context.Context, r ImportRequest) (change Change, err error) {
	if err := checkName(r.List); err != nil {
		return Change{}, err
	}
	in, err := s.collect(ctx, r)
	if err != nil {
		return Change{}, err
	}
	if r.Strict && in.refusedN > 0 {
		return Change{}, in.strictly()
	}
	err = s.write(ctx, r.DryRun, func(st *state) error {
		change, err = st.load(ctx, r, in)
		return err
	})
	if err != nil || r.DryRun {
		return change, err
	}
	return change, s.refresh(ctx, func(st *state, list string, d domain) bool {
		return list == r.List && dueNow(st, list, d)
	}, &change)
}

func (s *state) load(ctx context.Context, r ImportRequest, in *collected) (Change, error) {
	change := Change{List: r.List, Refused: in.refused, RefusedN: in.refusedN}
	if err := s.purge(ctx, &change, r.DryRun); err != nil {
		return Change{}, err
	}
	if err := s.complete(ctx, r, in); err != nil {
		return Change{}, err
	}
	var old []entry
	if number, ok := s.find(r.List); ok {
		var err error
		if old, err = s.entries(ctx, number); err != nil {
			return Change{}, err
		}
	}
	if !r.Replace {
		in.parts = append([][]entry{old}, in.parts...)
	}
	wanted := sortEntries(in.parts...)
	in.parts = nil
	if r.Aggregate {
		before := len(wanted)
		wanted = aggregate(wanted)
		change.Covered = uint64(before - len(wanted))
	}
	count(old, wanted, &change)
	rewrites := change.Added+change.Updated+change.Removed > 0
	fresh, err := s.compareDomains(ctx, r.List, in.domains, &change)
	if err != nil {
		return Change{}, err
	}
	gone, err := s.without(ctx, r, in.domains)
	if err == nil {
		err = s.hasRoomFor(ctx, r.List, fresh, gone)
	}
	if err != nil {
		return Change{}, err
	}
	change.Removed += uint64(len(gone))
	if r.DryRun {
		return s.finish(ctx, change, r.List, true), nil
	}
	if rewrites {
		if err := s.rewrite(ctx, r.List, wanted); err != nil {
			return Change{}, err
		}
	}
	if err := s.removeDomains(ctx, r.List, gone); err != nil { // they make room
		return Change{}, err
	}
	if err := s.putDomains(ctx, r.List, fresh); err != nil {
		return Change{}, err
	}
	change.count(s)
	return s.finish(ctx, change, r.List, false), nil
}

// without returns the domains of a list that a replacement doesn't have.
func (s *state) without(ctx context.Context, r ImportRequest, wanted []wantedDomain) (gone []domain, err error) {
	number, exists := s.find(r.List)
	if !exists || !r.Replace {
		return nil, nil
	}
	known, err := s.readDomains(ctx)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, w := range wanted {
		names[w.name] = true
	}
	for _, d := range known.of(uint32(s.lists[number].Identity)) {
		if !names[d.name] {
			gone = append(gone, d)
		}
	}
	return gone, nil
}

// collected is what an import has read, before it knows what is pinned. A note
// is a place in reasons; entries that don't say when they end have no end yet.
type collected struct {
	parts    [][]entry
	domains  []wantedDomain
	reasons  []string
	refused  []Refusal
	refusedN uint64

	places map[string]uint32 // in reasons
}

// partEntries is how many entries a part has room for: growing copies nothing.
const partEntries = 1 << 14

// place is where a reason stands.
func (in *collected) place(reason string) uint32 {
	place, known := in.places[reason]
	if !known {
		place = uint32(len(in.reasons))
		in.places[reason] = place
		in.reasons = append(in.reasons, reason)
	}
	return place
}

func (in *collected) add(e entry, reason string) {
	e.note = in.place(reason)
	last := len(in.parts) - 1
	if last < 0 || len(in.parts[last]) == partEntries {
		in.parts = append(in.parts, make([]entry, 0, partEntries))
		last++
	}
	in.parts[last] = append(in.parts[last], e)
}

func (in *collected) refuse(refusal Refusal) {
	in.refusedN++
	if len(in.refused) < mostRefusals {
		in.refused = append(in.refused, refusal)
	}
}

func (in *collected) strictly() error {
	first := in.refused[0]
	return fault.New(fault.ErrUsage, "%s: %s", first.Where, first.Reason).
		Hint("%d entries are refused, so nothing was changed; without --strict the others go in", in.refusedN)
}

// collect reads the files of an import.
func (s *Store) collect(ctx context.Context, r ImportRequest) (*collected, error) {
	var g guard
	if !r.Force && r.List != AllowList {
		err := s.engine.InNetNS(func() (err error) {
			g, err = newGuard()
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	clock, err := readClock()
	if err != nil {
		return nil, err
	}
	in := &collected{places: map[string]uint32{}}
	n := 0
	err = r.Read(func(item Item) error {
		if n++; n%partEntries == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		ends := clock.ends(item.Expires)
		if item.Domain != "" {
			in.domains = append(in.domains, wantedDomain{name: item.Domain, note: in.place(item.Reason), expires: ends, forced: r.Force})
			return nil
		}
		e := entry{prefix: newPrefix(item.Prefix), expires: ends}
		if why := g.refuses(e.prefix); why != "" {
			in.refuse(Refusal{item.where(), why})
			return nil
		}
		in.add(e, item.Reason)
		return nil
	}, in.refuse)
	return in, err
}

func (i Item) where() string {
	return fmt.Sprintf("%s:%d:%d: %s", i.Source, i.Line, i.Column, i.Prefix)
}

// complete numbers the reasons of what was collected, sets ends where none is
// given, and drops what is over.
func (s *state) complete(ctx context.Context, r ImportRequest, in *collected) error {
	notes := make([]uint32, len(in.reasons))
	for i, reason := range in.reasons {
		var err error
		if notes[i], err = s.note(ctx, reason, r.DryRun); err != nil {
			return err
		}
	}
	lifetime := s.lifetime(r.Lifetime)
	for i, part := range in.parts {
		kept := part[:0]
		for _, e := range part {
			e.note = notes[e.note]
			if e.expires == 0 {
				e.expires = lifetime
			}
			if !s.isOver(e) {
				kept = append(kept, e)
			}
		}
		in.parts[i] = kept
	}
	kept := in.domains[:0]
	for _, d := range in.domains {
		d.note = notes[d.note]
		if d.expires == 0 {
			d.expires = lifetime
		}
		if !s.isOver(entry{expires: d.expires}) {
			kept = append(kept, d)
		}
	}
	in.domains = kept
	return nil
}

// count compares a list with sorted entries that are to take its place.
func count(old, wanted []entry, change *Change) {
	next := newIndex(wanted)
	for _, e := range old {
		switch now, found := next.find(e.prefix); {
		case !found:
			change.Removed++
		case now == e:
			change.Unchanged++
		default:
			change.Updated++
		}
	}
	change.Added = uint64(len(wanted)) - change.Unchanged - change.Updated
}
