package maps

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
)

// BenchmarkImport reads a million rows of NDJSON into a hash.
func BenchmarkImport(b *testing.B) {
	w := newWorld(b)
	const entries = 1_000_000
	w.make(b, &ebpf.MapSpec{Name: "million", Type: ebpf.Hash, Key: u32, KeySize: 4, Value: count, ValueSize: 16, MaxEntries: entries})
	var rows bytes.Buffer
	for i := range entries {
		fmt.Fprintf(&rows, "{\"key\":%d,\"value\":{\"packets\":%d,\"bytes\":%d}}\n", i, i, 64*i)
	}
	for b.Loop() {
		b.StopTimer()
		if _, err := w.Clear(context.Background(), ClearRequest{Map: "mine/million"}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		done, err := w.Import(context.Background(), ImportRequest{Map: "mine/million", Source: "rows", Input: bytes.NewReader(rows.Bytes())})
		if err != nil || done.Added != entries {
			b.Fatal(done, err)
		}
	}
	b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
