package maps

import (
	"context"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/internal/fault"
)

// TestNext goes through a map by its keys, as a dump does.
func TestNext(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "hash", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 20, Key: u32, Value: u32})
	w.make(t, &ebpf.MapSpec{Name: "ring", Type: ebpf.RingBuf, MaxEntries: 4096})
	next := func(key string) (NextKey, error) { return w.Next(context.Background(), "mine/hash", key) }
	_, err := next("")
	fails(t, err, fault.ErrNotFound, "it is empty")
	for i := range 20 {
		w.set("hash", fmt.Sprint(i), "1")
	}
	seen := map[string]bool{}
	found, err := next("")
	if first := string(found.Next); err != nil || found.Key != nil || first == "" {
		t.Errorf("first: %+v, %v", found, err)
	}
	for ; err == nil; found, err = next(string(found.Next)) {
		seen[string(found.Next)] = true
	}
	fails(t, err, fault.ErrNotFound, "that was the last one")
	if len(seen) != 20 {
		t.Errorf("%d keys of 20: %v", len(seen), seen)
	}
	_, err = next("300000000000")
	fails(t, err, fault.ErrUsage, "")
	_, err = w.Next(context.Background(), "mine/ring", "")
	fails(t, err, fault.ErrUnsupported, "map events")
}
