package maps

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Clearer empties maps.
type Clearer interface {
	// Clear removes all entries; those of arrays, which are always there, are
	// set to zero. With an error of context.Canceled the answer says how many it
	// removed.
	Clear(ctx context.Context, request ClearRequest) (Cleared, error)
}

// ClearRequest names the map to empty.
type ClearRequest struct {
	Map    string
	DryRun bool
}

// Cleared is what Clear did, or with DryRun would do.
type Cleared struct {
	Changed bool     `json:"changed"`
	Map     string   `json:"map"`
	MapID   uint32   `json:"map_id"`
	Removed *uint64  `json:"removed"` // of arrays those that weren't zero; nil: a dry run can't tell
	Notes   []string `json:"notes"`
}

// clearPasses bounds how often Clear begins again for entries that came
// meanwhile.
const clearPasses = 8

// Clear implements Clearer.
func (s *Store) Clear(ctx context.Context, r ClearRequest) (Cleared, error) {
	h, err := s.open(r.Map, false)
	if err != nil {
		return Cleared{}, err
	}
	defer h.Close()
	var removed uint64
	done := Cleared{Map: h.about.Ref, MapID: h.about.ID, Removed: &removed, Notes: []string{}}
	if h.Type() == ebpf.Queue || h.Type() == ebpf.Stack {
		err = h.clearQueue(ctx, r, &done)
	} else if err = h.writable(); err == nil {
		err = h.clearEntries(ctx, r, &done)
	}
	done.Changed = done.Changed || removed > 0
	if errors.Is(err, context.Canceled) {
		err = fault.New(context.Canceled, "clear map %s: %w", h.about.Ref, err).Hint("%d entries were removed", removed)
	}
	return done, err
}

// clearEntries removes the entries that are there, and once more what others
// added meanwhile.
func (h *handle) clearEntries(ctx context.Context, r ClearRequest, done *Cleared) error {
	for range clearPasses {
		keys, err := h.removableKeys(ctx)
		if err != nil || len(keys) == 0 {
			return err
		}
		if r.DryRun {
			*done.Removed = uint64(len(keys)) / uint64(h.KeySize())
			return nil
		}
		if err := h.removeSeen(ctx, keys, done); err != nil {
			return err
		}
	}
	done.Notes = append(done.Notes, fmt.Sprintf("map %s: entries come as fast as they are removed: what came last may be there", h.about.Ref))
	return nil
}

func (h *handle) removableKeys(ctx context.Context) ([]byte, error) {
	var keys []byte
	err := h.walk(ctx, func(key, value []byte) error {
		if h.removable(value) {
			keys = append(keys, key...)
		}
		return nil
	})
	return keys, err
}

// removeSeen removes entries; it fails with the first refusal after it has tried
// them all.
func (h *handle) removeSeen(ctx context.Context, keys []byte, done *Cleared) error {
	var refused error
	err := h.removeKeys(ctx, keys, func(_ int, err error) {
		if err == nil {
			*done.Removed++
		} else if refused == nil {
			refused = h.explain("clear", err)
		}
	})
	if err != nil {
		return err
	}
	return refused
}

// clearQueue takes out what is in a queue or stack, at most as many elements as
// it holds.
func (h *handle) clearQueue(ctx context.Context, r ClearRequest, done *Cleared) error {
	if h.about.Frozen {
		return h.explain("clear", unix.EPERM)
	}
	value := make([]byte, h.ValueSize())
	if r.DryRun {
		err := element(unix.BPF_MAP_LOOKUP_ELEM, h.FD(), nil, value, 0)
		if err == nil {
			done.Changed, done.Removed = true, nil
			return nil
		}
		return h.emptied(err)
	}
	for range h.MaxEntries() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := element(unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM, h.FD(), nil, value, 0); err != nil {
			return h.emptied(err)
		}
		*done.Removed++
	}
	return nil
}

// emptied is the error of taking an element out: none when there is none.
func (h *handle) emptied(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return h.explain("clear", err)
}
