package maps

import (
	"context"
	"encoding/json"
	"errors"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Walker is the part of API that goes from key to key.
type Walker interface {
	// Next returns the key that follows another one in the kernel's order, or
	// for "" the first one. A key that isn't in the map is followed by the first.
	// ErrNotFound says that there is none.
	Next(ctx context.Context, ref, key string) (NextKey, error)
}

// NextKey is a key, and the one that follows it.
type NextKey struct {
	Map   string          `json:"map"`
	MapID uint32          `json:"map_id"`
	Key   json.RawMessage `json:"key"` // null: the first one was asked for
	Next  json.RawMessage `json:"next_key"`
	Notes []string        `json:"-"`
}

// Next implements API.
func (s *Store) Next(_ context.Context, ref, text string) (NextKey, error) {
	h, err := s.open(ref, true)
	if err != nil {
		return NextKey{}, err
	}
	defer h.Close()
	found := NextKey{Map: h.about.Ref, MapID: h.about.ID, Notes: h.notes}
	var key []byte
	if text != "" {
		if key, err = h.parseKey(text); err != nil {
			return found, err
		}
		found.Key = h.keyJSON(key)
	}
	next, err := h.nextKey(key)
	if err == nil {
		found.Next = h.keyJSON(next)
	}
	return found, err
}

// nextKey returns the key after another one, nil for the first.
func (h *handle) nextKey(key []byte) ([]byte, error) {
	if err := h.readable("walk"); err != nil {
		return nil, err
	}
	next := make([]byte, h.KeySize())
	err := element(unix.BPF_MAP_GET_NEXT_KEY, h.FD(), key, next, 0)
	switch {
	case errors.Is(err, unix.ENOENT) && key == nil:
		return nil, fault.New(fault.ErrNotFound, "find the first key of map %s: it is empty", h.about.Ref)
	case errors.Is(err, unix.ENOENT):
		return nil, fault.New(fault.ErrNotFound, "find the next key of map %s: that was the last one", h.about.Ref)
	case err != nil:
		return nil, h.explain("walk", err)
	}
	return next, nil
}

// NextKey returns the key after another one, nil for the first.
// fault.ErrNotFound says that there is none.
func (r *Raw) NextKey(key []byte) ([]byte, error) { return r.h.nextKey(key) }
