package maps

import (
	"context"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
)

// BenchmarkList lists maps of which each has BTF of its own.
func BenchmarkList(b *testing.B) {
	w := newWorld(b)
	for i := range 70 {
		w.make(b, &ebpf.MapSpec{Name: fmt.Sprintf("listed%d", i), Type: ebpf.Hash, Key: keyIP, Value: count, KeySize: 20, ValueSize: 16, MaxEntries: 10})
	}
	for b.Loop() {
		if _, err := w.List(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
