package commands

import (
	"context"
	"encoding/json"

	"bpfnet/internal/bpftool"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

func (f *fakeMaps) Create(_ context.Context, r maps.CreateRequest) (maps.PinChange, error) {
	change := maps.PinChange{Map: r.Path, Type: &r.Type, Pinned: &r.Path}
	if m, err := f.find(r.Path); err == nil {
		if m.Type != r.Type || m.BytesKey != r.KeySize || m.BytesValue != r.ValueSize || m.MaxEntries != r.MaxEntries || m.Flags != r.Flags {
			return maps.PinChange{}, fault.New(fault.ErrConflict, "create map %s: another map is there already", r.Path)
		}
		change.MapID = &m.ID
		return change, nil
	}
	if change.Changed = true; r.DryRun {
		return change, nil
	}
	m := &fakeMap{Map: maps.Map{
		ID: 70, Type: r.Type, Name: r.Name, Ref: r.Path, BytesKey: r.KeySize, BytesValue: r.ValueSize, MaxEntries: r.MaxEntries, Flags: r.Flags,
	}}
	f.all = append(f.all, m)
	change.MapID = &m.ID
	return change, nil
}

func (f *fakeMaps) Freeze(_ context.Context, r maps.FreezeRequest) (maps.Frozen, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return maps.Frozen{}, err
	}
	done := maps.Frozen{Changed: !m.Frozen, Map: r.Map, MapID: m.ID}
	m.Frozen = m.Frozen || !r.DryRun
	return done, nil
}

func (f *fakeMaps) Next(_ context.Context, ref, key string) (maps.NextKey, error) {
	m, err := f.find(ref)
	if err != nil {
		return maps.NextKey{}, err
	}
	next := maps.NextKey{Map: ref, MapID: m.ID}
	at := m.find(key)
	if at >= 0 {
		next.Key = m.entries[at].Key
	}
	if at+1 == len(m.entries) {
		return next, fault.New(fault.ErrNotFound, "find the next key of map %s: that was the last one", ref)
	}
	next.Next = m.entries[at+1].Key
	return next, nil
}

func (f fakeBpftool) MapNextKey(ctx context.Context, ref, key string) (json.RawMessage, error) {
	if _, err := f.MapShow(ctx, ref, false); err != nil {
		return nil, err
	}
	switch key {
	case "":
		return json.RawMessage(`{"key":null,"next_key":["0x01"]}`), nil
	case "hex:01":
		return json.RawMessage(`{"key":["0x01"],"next_key":["0x02"]}`), nil
	}
	return nil, fault.New(fault.ErrNotFound, "find the next key of map %s: that was the last one", ref)
}

var _ bpftool.API = fakeBpftool{}
