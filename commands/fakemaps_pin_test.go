package commands

import (
	"context"
	"errors"
	"slices"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

func (f *fakeMaps) Pin(_ context.Context, r maps.PinRequest) (maps.PinChange, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return maps.PinChange{}, err
	}
	change := maps.PinChange{Map: r.Map, MapID: &m.ID, Type: &m.Type, Pinned: &r.Path}
	if change.Changed = !slices.Contains(m.Pinned, r.Path); change.Changed && !r.DryRun {
		m.Pinned = append(m.Pinned, r.Path)
	}
	return change, nil
}

func (f *fakeMaps) Unpin(_ context.Context, r maps.UnpinRequest) (maps.PinChange, error) {
	m, err := f.find(r.Map)
	if errors.Is(err, fault.ErrNotFound) {
		return maps.PinChange{Map: r.Map}, nil
	}
	return maps.PinChange{}, fault.New(fault.ErrConflict, "unpin map %s: it belongs to the loaded instance %q", m.Ref, "mine")
}
