package commands

import (
	"context"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// fakeWatch is a Sampler that sees one entry of each kind of change.
type fakeWatch struct {
	m       *fakeMap
	limit   int
	samples int
}

func (f *fakeMaps) Watch(r maps.WatchRequest) (maps.Sampler, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return nil, err
	}
	if r.Sort != maps.DefaultWatchSort && r.Sort != "pps" {
		return nil, fault.New(fault.ErrUsage, "sort by %q: no such field", r.Sort)
	}
	return &fakeWatch{m: m, limit: r.Limit}, nil
}

func (w *fakeWatch) Sample(context.Context) (maps.Watched, error) {
	w.samples++
	doc := maps.Watched{
		Schema: maps.WatchSchema, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Map: w.m.Ref, MapID: w.m.ID,
		Entries: uint64(len(w.m.entries)), Changes: []maps.EntryChange{}, Notes: []string{"a note"},
	}
	if w.samples == 1 {
		return doc, nil
	}
	interval := 1.0
	doc.IntervalSeconds, doc.Added, doc.Removed, doc.Changed = &interval, 1, 1, 1
	changes := []maps.EntryChange{
		{Key: []byte(`"10.0.0.1"`), Value: []byte(`{"pps":1000}`), Previous: []byte(`{"pps":900}`), PerSecond: []byte(`{"pps":100}`)},
		{Key: []byte(`"10.0.0.2"`), Value: []byte(`{"per_cpu":[1,4],"sum":5}`), PerSecond: []byte(`5`), Sum: []byte("5")},
		{Key: []byte(`"10.0.0.3"`), Previous: []byte(`{"pps":7}`)},
	}
	doc.Changes = append(doc.Changes, changes[:min(w.limit, len(changes))]...)
	return doc, nil
}

func (w *fakeWatch) Close() error { return nil }
