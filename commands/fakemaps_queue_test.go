package commands

import (
	"context"
	"encoding/json"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// fakeQueue is the map mine/jobs, a queue of two.
type fakeQueue struct{ values []string }

const jobs = "mine/jobs"

func (q *fakeQueue) change(value string) maps.Change {
	return maps.Change{Changed: true, Map: jobs, MapID: 60, Value: json.RawMessage(value)}
}

func (f *fakeMaps) Push(_ context.Context, r maps.PushRequest) (maps.Change, error) {
	switch {
	case r.Map != jobs:
		return maps.Change{}, fault.New(fault.ErrUnsupported, "push to map %s: it has keys", r.Map)
	case len(f.queue.values) == 2:
		return maps.Change{}, fault.New(fault.ErrConflict, "push to map %s: it is full", r.Map)
	case !r.DryRun:
		f.queue.values = append(f.queue.values, r.Value)
	}
	return f.queue.change(r.Value), nil
}

func (f *fakeMaps) Pop(_ context.Context, r maps.PopRequest) (maps.Change, error) {
	if len(f.queue.values) == 0 {
		return maps.Change{}, fault.New(fault.ErrNotFound, "pop from map %s: it is empty", r.Map)
	}
	change := f.queue.change(f.queue.values[0])
	if !r.DryRun {
		f.queue.values = f.queue.values[1:]
	}
	return change, nil
}

func (f *fakeMaps) Peek(_ context.Context, ref, _ string) (maps.Entry, error) {
	if len(f.queue.values) == 0 {
		return maps.Entry{}, fault.New(fault.ErrNotFound, "peek into map %s: it is empty", ref)
	}
	return maps.Entry{Map: ref, MapID: 60, Value: json.RawMessage(f.queue.values[0])}, nil
}
