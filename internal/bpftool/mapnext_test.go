package bpftool

import (
	"context"
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/internal/fault"
)

// TestMapNextKey goes from key to key as bpftool does.
func TestMapNextKey(t *testing.T) {
	l := newLab(t)
	_, path := l.mustMake(&ebpf.MapSpec{Name: "slots", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 3})
	for _, step := range []struct {
		ours   string
		theirs []string
	}{
		{"", nil},
		{"hex:00000000", []string{"key", "0", "0", "0", "0"}},
		{"1", []string{"key", "1", "0", "0", "0"}},
		{"300", []string{"key", "0x2c", "1", "0", "0"}}, // followed by the first
	} {
		theirs, refused := oracle(t, append([]string{"map", "getnext", "pinned", path}, step.theirs...)...)
		ours, err := l.MapNextKey(context.Background(), path, step.ours)
		if err != nil || refused != nil {
			t.Errorf("after %q: %v, bpftool: %v", step.ours, err, refused)
		}
		equal(t, "after "+step.ours, ours, theirs)
	}
	_, refused := oracle(t, "map", "getnext", "pinned", path, "key", "2", "0", "0", "0")
	if _, err := l.MapNextKey(context.Background(), path, "2"); !errors.Is(err, fault.ErrNotFound) || refused == nil {
		t.Errorf("after the last: %v, bpftool: %v", err, refused)
	}
	_, ring := l.mustMake(&ebpf.MapSpec{Name: "ring", Type: ebpf.RingBuf, MaxEntries: 4096})
	if _, err := l.MapNextKey(context.Background(), ring, ""); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("first key of a ring buffer: %v", err)
	}
}
