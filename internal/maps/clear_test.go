package maps

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// TestClear empties maps of every kind, dry first.
func TestClear(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	for _, spec := range testedKinds() {
		m := w.make(t, spec)
		fill(t, m, 30, rand.New(rand.NewPCG(5, 6)))
		before := w.rowsOf(spec.Name)
		dry, err := w.Clear(ctx, ClearRequest{Map: "mine/" + spec.Name, DryRun: true})
		if err != nil || !dry.Changed || *dry.Removed == 0 || w.rowsOf(spec.Name) != before {
			t.Errorf("%s: dry run: %+v, %v", spec.Name, dry, err)
		}
		done, err := w.Clear(ctx, ClearRequest{Map: "mine/" + spec.Name})
		if err != nil || !done.Changed || *done.Removed != *dry.Removed {
			t.Errorf("%s: %d removed, %d planned, %v", spec.Name, *done.Removed, *dry.Removed, err)
		}
		if kindOf(spec.Type).fixed {
			if rows := w.rowsOf(spec.Name); strings.Count(rows, "\n") != int(spec.MaxEntries) {
				t.Errorf("%s: %s", spec.Name, rows)
			}
		} else if rows := w.rowsOf(spec.Name); rows != "" {
			t.Errorf("%s: left %s", spec.Name, rows)
		}
		again, err := w.Clear(ctx, ClearRequest{Map: "mine/" + spec.Name})
		if err != nil || again.Changed || *again.Removed != 0 {
			t.Errorf("%s: again: %+v, %v", spec.Name, again, err)
		}
	}
}

func TestClearQueues(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	for _, typ := range []ebpf.MapType{ebpf.Queue, ebpf.Stack} {
		name := TypeName(typ)
		m := w.make(t, &ebpf.MapSpec{Name: name, Type: typ, ValueSize: 4, MaxEntries: 4})
		for n := range uint32(4) {
			if err := m.Put(nil, n); err != nil {
				t.Fatal(err)
			}
		}
		dry, err := w.Clear(ctx, ClearRequest{Map: "mine/" + name, DryRun: true})
		if err != nil || !dry.Changed || dry.Removed != nil {
			t.Errorf("%s: dry run: %+v, %v", name, dry, err)
		}
		if n := w.clear(name); n != 4 {
			t.Errorf("%s: %d removed", name, n)
		}
		for _, dry := range []bool{true, false} {
			again, err := w.Clear(ctx, ClearRequest{Map: "mine/" + name, DryRun: dry})
			if err != nil || again.Changed || *again.Removed != 0 {
				t.Errorf("%s: again: %+v, %v", name, again, err)
			}
		}
	}
}

func TestClearRefuses(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	frozen := w.make(t, &ebpf.MapSpec{Name: "frozen", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err := frozen.Freeze(); err != nil {
		t.Fatal(err)
	}
	w.make(t, &ebpf.MapSpec{Name: "events", Type: ebpf.RingBuf, MaxEntries: 4096})
	for name, kind := range map[string]error{"frozen": fault.ErrConflict, "events": fault.ErrUnsupported, "nothing": fault.ErrNotFound} {
		_, err := w.Clear(ctx, ClearRequest{Map: "mine/" + name})
		fails(t, err, kind, "")
		_, err = w.imports(name, "f", "0 hex:01000000", false)
		fails(t, err, kind, "")
	}
	w.make(t, &ebpf.MapSpec{Name: "hash", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	w.set("hash", "hex:00000000", "hex:00000000")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err := w.Clear(cancelled, ClearRequest{Map: "mine/hash"})
	if !errors.Is(err, context.Canceled) || !slices.Contains(fault.Hints(err), "0 entries were removed") {
		t.Errorf("cancelled: %v %q", err, fault.Hints(err))
	}
}

// TestClearWhileInserting clears while others insert: it has to end, and every
// entry that was there at its start has to be gone.
func TestClearWhileInserting(t *testing.T) {
	w := newWorld(t)
	for _, spec := range []*ebpf.MapSpec{
		{Name: "hash", Type: ebpf.Hash, Key: u32, KeySize: 4, Value: u32, ValueSize: 4, MaxEntries: 20_000},
		{Name: "lru", Type: ebpf.LRUHash, Key: u32, KeySize: 4, Value: u32, ValueSize: 4, MaxEntries: 20_000},
		{Name: "trie", Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, MaxEntries: 20_000, Flags: unix.BPF_F_NO_PREALLOC},
	} {
		m := w.make(t, spec)
		key := func(n uint32) []byte {
			if spec.KeySize == 4 {
				return word(n)
			}
			return append(word(32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		}
		for n := range uint32(5000) {
			if err := m.Put(key(n), uint32(0)); err != nil {
				t.Fatal(err)
			}
		}
		var stop atomic.Bool
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for n := uint32(0); !stop.Load(); n = (n + 1) % 5000 {
				_ = m.Put(key(10_000+n), uint32(0))
			}
		}()
		done, err := w.Clear(context.Background(), ClearRequest{Map: "mine/" + spec.Name})
		stop.Store(true)
		<-stopped
		if err != nil || *done.Removed < 5000 {
			t.Errorf("%s: %+v, %v", spec.Name, done, err)
		}
		var value uint32
		for n := range uint32(5000) {
			if spec.Type != ebpf.LPMTrie && m.Lookup(key(n), &value) == nil {
				t.Fatalf("%s: key %d is still there", spec.Name, n)
			}
		}
		if spec.Type == ebpf.LPMTrie && strings.Contains(w.rowsOf(spec.Name), fmt.Sprintf("%q", "0.0.0.5/32")) {
			t.Errorf("%s: an entry of the beginning is still there", spec.Name)
		}
	}
}
