package blocklist

import (
	"context"
	"fmt"
	"slices"

	"bpfnet/internal/fault"
)

// mostRefusals is how many refused entries a Change tells one by one.
const mostRefusals = 100

// Import implements API.
func (s *Store) Import(ctx context.Context, r ImportRequest) (change Change, err error) {
	if err := checkName(r.List); err != nil {
		return Change{}, err
	}
	err = s.write(ctx, r.DryRun, func(st *state) error {
		change, err = st.load(ctx, r)
		return err
	})
	return change, err
}

func (s *state) load(ctx context.Context, r ImportRequest) (Change, error) {
	change := Change{List: r.List}
	if err := s.purge(ctx, &change, r.DryRun); err != nil {
		return Change{}, err
	}
	wanted, err := s.collect(ctx, r, &change)
	if err != nil {
		return Change{}, err
	}
	if r.Strict && change.RefusedN > 0 {
		return Change{}, strictly(change)
	}
	var old []entry
	if number, ok := s.find(r.List); ok {
		if old, err = s.entries(ctx, number); err != nil {
			return Change{}, err
		}
		old = sortEntries(old)
	}
	if !r.Replace {
		wanted = append(slices.Clone(old), wanted...)
	}
	wanted = sortEntries(wanted)
	if r.Aggregate {
		before := len(wanted)
		wanted = aggregate(wanted)
		change.Covered = uint64(before - len(wanted))
	}
	count(old, wanted, &change)
	if change.Added+change.Updated+change.Removed > 0 && !r.DryRun {
		if err := s.rewrite(ctx, r.List, wanted); err != nil {
			return Change{}, err
		}
	}
	change = s.finish(change, r.List, 0)
	change.Entries = uint64(len(wanted))
	return change, nil
}

func strictly(change Change) error {
	first := change.Refused[0]
	return fault.New(fault.ErrUsage, "%s: %s", first.Where, first.Reason).
		Hint("%d entries are refused, so nothing was changed; without --strict the others go in", change.RefusedN)
}

// collect reads the files of an import.
func (s *state) collect(ctx context.Context, r ImportRequest, change *Change) ([]entry, error) {
	var g guard
	if !r.Force && r.List != AllowList {
		var err error
		if g, err = newGuard(); err != nil {
			return nil, err
		}
	}
	notes := map[string]uint32{}
	lifetime := s.lifetime(r.Lifetime)
	refuse := func(refusal Refusal) error {
		change.RefusedN++
		if len(change.Refused) < mostRefusals {
			change.Refused = append(change.Refused, refusal)
		}
		return nil
	}
	var all []entry
	err := r.Read(func(item Item) error {
		if len(all)%(1<<16) == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !r.Force && r.List != AllowList {
			if why := g.refuses(item.Prefix); why != "" {
				return refuse(Refusal{item.where(), why})
			}
		}
		note, known := notes[item.Reason]
		if !known {
			var err error
			if note, err = s.note(ctx, item.Reason, r.DryRun); err != nil {
				return err
			}
			notes[item.Reason] = note
		}
		e := entry{prefix: newPrefix(item.Prefix), expires: lifetime, note: note}
		if !item.Expires.IsZero() {
			e.expires = s.ends(item.Expires)
		}
		if !s.isOver(e) {
			all = append(all, e)
		}
		return nil
	}, func(refusal Refusal) { _ = refuse(refusal) })
	return all, err
}

func (i Item) where() string {
	return fmt.Sprintf("%s:%d:%d: %s", i.Source, i.Line, i.Column, i.Prefix)
}

// count compares two sorted lists.
func count(old, wanted []entry, change *Change) {
	for len(old) > 0 || len(wanted) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(wanted) == 0:
			order = -1
		default:
			order = old[0].compare(wanted[0].prefix)
		}
		switch {
		case order < 0:
			change.Removed++
			old = old[1:]
		case order > 0:
			change.Added++
			wanted = wanted[1:]
		default:
			if old[0] == wanted[0] {
				change.Unchanged++
			} else {
				change.Updated++
			}
			old, wanted = old[1:], wanted[1:]
		}
	}
}
