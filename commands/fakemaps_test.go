package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// fakeMaps is a maps.API without a kernel: keys and values are JSON text.
type fakeMaps struct {
	all   []*fakeMap
	queue fakeQueue
}

type fakeMap struct {
	maps.Map
	entries []maps.Row
}

func newFakeMaps() *fakeMaps {
	key, value, memlock, btf := "__u32", "struct limit", uint64(4096), uint32(7)
	limits := &fakeMap{
		Map: maps.Map{
			ID: 57, Type: "hash", Name: "limits", Ref: "mine/limits", BytesKey: 4, BytesValue: 16, MaxEntries: 100,
			BytesMemlock: &memlock, Pinned: []string{"/sys/fs/bpf/bpfnet/mine/maps/limits"}, BTFID: &btf, KeyType: &key, ValueType: &value,
			ProgIDs: []uint32{839},
		},
		entries: []maps.Row{
			{Key: []byte(`"10.0.0.1"`), Value: []byte(`{"pps":1000,"action":"drop"}`)},
			{Key: []byte(`"10.0.0.2"`), Value: []byte(`{"pps":5,"action":"pass"}`)},
			{Key: []byte(`"10.1.0.1"`), Value: []byte(`{"pps":7,"action":"pass"}`)},
		},
	}
	packets := &fakeMap{
		Map:     maps.Map{ID: 58, Type: "percpu_array", Name: "packets", Ref: "id:58", BytesKey: 4, BytesValue: 8, MaxEntries: 1},
		entries: []maps.Row{{Key: []byte("0"), Value: []byte(`{"per_cpu":[1,2],"sum":3}`), Sum: []byte("3")}},
	}
	events := &fakeMap{Map: maps.Map{ID: 59, Type: "ringbuf", Name: "events", Ref: "mine/events", MaxEntries: 4096}}
	return &fakeMaps{all: []*fakeMap{limits, packets, events}}
}

func (f *fakeMaps) find(ref string) (*fakeMap, error) {
	for _, m := range f.all {
		if m.Ref == ref {
			return m, nil
		}
	}
	return nil, fault.New(fault.ErrNotFound, "open map %s: no such map", ref).Hint("maps: mine/limits")
}

func (m *fakeMap) find(key string) int {
	return slices.IndexFunc(m.entries, func(r maps.Row) bool { return string(codec.Text(r.Key)) == key })
}

func (f *fakeMaps) Pinned() ([]string, error) { return []string{"mine/events", "mine/limits"}, nil }

func (f *fakeMaps) List(context.Context) (maps.Listing, error) {
	listing := maps.Listing{Notes: []string{"a note"}}
	for _, m := range f.all {
		listing.Maps = append(listing.Maps, m.Map)
	}
	return listing, nil
}

func (f *fakeMaps) Show(_ context.Context, ref string) (maps.Map, error) {
	m, err := f.find(ref)
	if err != nil {
		return maps.Map{}, err
	}
	return m.Map, nil
}

func (f *fakeMaps) Get(_ context.Context, ref, key string) (maps.Entry, error) {
	m, err := f.find(ref)
	if err != nil {
		return maps.Entry{}, err
	}
	i := m.find(key)
	if i < 0 {
		return maps.Entry{}, fault.New(fault.ErrNotFound, "find key %s in map %s: no such key", key, ref)
	}
	return maps.Entry{Map: ref, MapID: m.ID, Key: m.entries[i].Key, Value: m.entries[i].Value}, nil
}

func (f *fakeMaps) Set(_ context.Context, r maps.SetRequest) (maps.Change, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return maps.Change{}, err
	}
	key, _ := json.Marshal(r.Key)
	change := maps.Change{Map: r.Map, MapID: m.ID, Key: key, Value: json.RawMessage(r.Value), Changed: true}
	i := m.find(r.Key)
	if i >= 0 {
		change.Previous = m.entries[i].Value
		change.Changed = r.Value != string(m.entries[i].Value)
	}
	switch {
	case r.Condition == maps.IfAbsent && i >= 0 && change.Changed:
		return maps.Change{}, fault.New(fault.ErrConflict, "add key %s to map %s: it is there already", r.Key, r.Map)
	case r.Condition == maps.IfPresent && i < 0:
		return maps.Change{}, fault.New(fault.ErrNotFound, "find key %s in map %s: no such key", r.Key, r.Map)
	case r.DryRun:
	case i >= 0:
		m.entries[i].Value = []byte(r.Value)
	default:
		m.entries = append(m.entries, maps.Row{Key: key, Value: []byte(r.Value)})
	}
	return change, nil
}

func (f *fakeMaps) Delete(_ context.Context, r maps.DeleteRequest) (maps.Change, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return maps.Change{}, err
	}
	key, _ := json.Marshal(r.Key)
	change := maps.Change{Map: r.Map, MapID: m.ID, Key: key}
	i := m.find(r.Key)
	if i < 0 {
		return change, nil
	}
	change.Changed, change.Previous = true, m.entries[i].Value
	if !r.DryRun {
		m.entries = slices.Delete(m.entries, i, i+1)
	}
	return change, nil
}

func (f *fakeMaps) Dump(_ context.Context, r maps.DumpRequest, emit func(maps.Row) error) (maps.Dumped, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return maps.Dumped{}, err
	}
	if m.Type == "ringbuf" {
		return maps.Dumped{}, fault.New(fault.ErrUnsupported, "dump map %s: a ringbuf has no entries to read", r.Map)
	}
	dumped := maps.Dumped{Map: m.Map}
	for _, row := range m.entries {
		if !bytes.HasPrefix(codec.Text(row.Key), []byte(r.Match)) || r.Limit > 0 && dumped.Entries == r.Limit {
			continue
		}
		dumped.Entries++
		if err := emit(row); err != nil {
			return dumped, err
		}
	}
	return dumped, nil
}
