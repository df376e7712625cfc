package commands

import (
	"context"
	"errors"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// Events has two records for mine/events and for mine/samples, as a ring buffer
// and a perf event array would; other maps have none.
func (f *fakeMaps) Events(_ context.Context, r maps.EventsRequest) (maps.EventStream, error) {
	stream := &fakeEvents{source: maps.EventSource{Map: r.Map, MapID: 59}}
	at := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	switch {
	case r.Map == "mine/taken" && !r.Steal:
		return nil, fault.New(fault.ErrConflict, "read events of map mine/taken: process 812 (agent) has it open").Hint("--steal reads it all the same")
	case r.Map == "mine/samples":
		stream.source.PerCPU = true
		stream.read.Lost = []maps.CPULost{{CPU: 1, Count: 3}, {CPU: 2, Count: 4}}
		stream.events = []maps.Event{
			{Time: at, CPU: 0, Bytes: 12, Data: []byte(`"hex:0102"`)},
			{Time: at, CPU: 1, Lost: 3, Bytes: 12, Data: []byte(`{"pid":7}`), Trailing: []byte(`"hex:ff"`)},
		}
	case r.Map != "mine/events" && r.Map != "mine/taken":
		return nil, fault.New(fault.ErrUnsupported, "read events of map %s: a hash holds no records", r.Map)
	case r.Type == "struct evnt":
		return nil, fault.New(fault.ErrUsage, "type %q of the records: no such type", r.Type)
	default:
		stream.source.Notes = []string{"a note"}
		if r.BTF != nil {
			stream.source.Notes = []string{"types from " + string(r.BTF)}
		}
		stream.events = []maps.Event{
			{Time: at, Bytes: 12, Data: []byte(`{"pid":7,"comm":"curl"}`)},
			{Time: at.Add(time.Second), Bytes: 12, Data: []byte(`{"pid":8,"comm":"\u001b[31m"}`)},
		}
	}
	return stream, nil
}

type fakeEvents struct {
	source maps.EventSource
	events []maps.Event
	read   maps.EventsRead
	closed bool
}

func (f *fakeEvents) Source() maps.EventSource { return f.source }

// Read emits a record at a time. When there are no more it waits for the end.
func (f *fakeEvents) Read(ctx context.Context, count uint64, emit func([]maps.Event) error) (maps.EventsRead, error) {
	if f.closed {
		return f.read, errors.New("read after close")
	}
	for i := range f.events {
		if count > 0 && f.read.Events == count {
			return f.read, nil
		}
		if err := emit(f.events[i : i+1]); err != nil {
			return f.read, err
		}
		f.read.Events++
	}
	if count == 0 || f.read.Events < count {
		<-ctx.Done()
	}
	return f.read, nil
}

func (f *fakeEvents) Close() error {
	f.closed = true
	return nil
}
