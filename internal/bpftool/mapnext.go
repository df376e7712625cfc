package bpftool

import (
	"context"
	"encoding/json"
)

// MapWalker is the part of API that goes from key to key.
type MapWalker interface {
	// MapNextKey returns the JSON of a key and the one that follows it; "" is
	// followed by the first. fault.ErrNotFound says that there is none.
	MapNextKey(ctx context.Context, ref, key string) (json.RawMessage, error)
}

// MapNextKey implements MapWalker.
func (k *Kernel) MapNextKey(_ context.Context, ref, text string) (json.RawMessage, error) {
	r, err := k.maps().OpenRaw(ref)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	doc, key := []byte(`{"key":null`), []byte(nil)
	if text != "" {
		if key, err = r.ParseKey(text); err != nil {
			return nil, err
		}
		doc = appendBytes([]byte(`{"key":`), key)
	}
	next, err := r.NextKey(key)
	if err != nil {
		return nil, err
	}
	return append(appendBytes(append(doc, `,"next_key":`...), next), '}'), nil
}
