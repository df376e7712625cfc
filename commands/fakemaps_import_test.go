package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// Import of the fake reads rows of JSON, and refuses the key "10.9.9.9".
func (f *fakeMaps) Import(_ context.Context, r maps.ImportRequest) (maps.Imported, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return maps.Imported{}, err
	}
	done := maps.Imported{Map: r.Map, MapID: m.ID, Source: r.Source, Errors: []maps.RefusedEntry{}}
	rows := json.NewDecoder(r.Input)
	for line := uint32(1); ; line++ {
		var row struct{ Key, Value json.RawMessage }
		if err := rows.Decode(&row); err == io.EOF {
			break
		} else if err != nil {
			return maps.Imported{}, fault.New(fault.ErrUsage, "import into map %s: nothing was changed: %s:%d:1: %w", r.Map, r.Source, line, err)
		}
		done.Entries++
		m.take(&done, maps.Row{Key: row.Key, Value: row.Value}, line, r.DryRun)
	}
	done.Changed = done.Added+done.Updated > 0
	if done.Refused > 0 {
		return done, fault.New(fault.ErrPartial, "import into map %s: the kernel refused %d of %d changes: the map is full", r.Map, done.Refused, done.Entries)
	}
	return done, nil
}

func (m *fakeMap) take(done *maps.Imported, row maps.Row, line uint32, dry bool) {
	i, column := m.find(string(codec.Text(row.Key))), uint32(8)
	switch {
	case string(row.Key) == `"10.9.9.9"`:
		done.Refused++
		done.Errors = append(done.Errors, maps.RefusedEntry{Line: &line, Column: &column, Key: row.Key, Message: "the map is full"})
		return
	case i < 0:
		done.Added++
	case bytes.Equal(m.entries[i].Value, row.Value):
		done.Unchanged++
	default:
		done.Updated++
	}
	if !dry && i < 0 {
		m.entries = append(m.entries, row)
	} else if !dry {
		m.entries[i] = row
	}
}

func (f *fakeMaps) Clear(_ context.Context, r maps.ClearRequest) (maps.Cleared, error) {
	m, err := f.find(r.Map)
	if err != nil {
		return maps.Cleared{}, err
	}
	if m.Type == "ringbuf" {
		return maps.Cleared{}, fault.New(fault.ErrUnsupported, "change map %s: a ringbuf has no entries to read", r.Map)
	}
	removed := uint64(len(m.entries))
	done := maps.Cleared{Changed: removed > 0, Map: r.Map, MapID: m.ID, Removed: &removed, Notes: []string{fmt.Sprintf("map %s: a note", r.Map)}}
	if !r.DryRun {
		m.entries = slices.Clip(m.entries[:0])
	}
	return done, nil
}
