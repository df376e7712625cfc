package maps

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// busy is a map whose even keys stay while writers put and delete odd ones.
type busy struct {
	*handle
	stays int
}

// newBusy begins to change a new map; the end of the test ends it.
func newBusy(t *testing.T, w *world, spec *ebpf.MapSpec) *busy {
	const stays, writers = 20_000, 4
	m := w.make(t, spec)
	value := make([]byte, 4*ebpf.MustPossibleCPU()*2)
	h, err := w.open("mine/"+spec.Name, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	put := func(n int) error { return element(unix.BPF_MAP_UPDATE_ELEM, m.FD(), busyKey(h, n), value, 0) }
	for n := range stays {
		if err := put(2 * n); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for writer := range writers {
		wait.Go(func() {
			for n := 2*writer + 1; ; n = (n + 2*writers) % (2 * stays) {
				select {
				case <-stop:
					return
				default:
				}
				_ = put(n)
				_ = element(unix.BPF_MAP_DELETE_ELEM, m.FD(), busyKey(h, (n+2*stays-2*writers*50)%(2*stays)), nil, 0)
			}
		})
	}
	t.Cleanup(wait.Wait)
	t.Cleanup(func() { close(stop) })
	return &busy{h, stays}
}

func busyKey(h *handle, n int) []byte {
	data := binary.BigEndian.AppendUint32(nil, uint32(n))
	if h.Type() == ebpf.LPMTrie {
		return append(word(32), data...)
	}
	return data
}

// check runs a walk: no key may come twice, and those that stay have to come.
// Of an LPM trie the kernel doesn't promise the latter: trie_get_next_key
// compares a node with its parent's child after it went down there, and leaves
// out the other branch if somebody has put a node in between.
func (b *busy) check(t *testing.T, how string, walk func(context.Context, visitor) error) {
	t.Helper()
	seen := map[uint32]bool{}
	stayed := 0
	err := walk(context.Background(), func(key, _ []byte) error {
		n := binary.BigEndian.Uint32(key[len(key)-4:])
		if seen[n] {
			return fmt.Errorf("%d came twice", n)
		}
		seen[n] = true
		if n%2 == 0 {
			stayed++
		}
		return nil
	})
	if err != nil || stayed != b.stays && b.Type() != ebpf.LPMTrie {
		t.Errorf("%s: %d of %d entries came that were there all the time; %v", how, stayed, b.stays, err)
	}
}

// TestDumpWhileChanging dumps maps whose entries others replace all the time.
func TestDumpWhileChanging(t *testing.T) {
	const room = 200_000
	for _, spec := range []*ebpf.MapSpec{
		{Name: "hash", Type: ebpf.Hash, KeySize: 4, ValueSize: 4},
		{Name: "allocated", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC},
		{Name: "percpu", Type: ebpf.PerCPUHash, KeySize: 4, ValueSize: 4},
		{Name: "lru", Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4},
		{Name: "trie", Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC},
	} {
		t.Run(spec.Name, func(t *testing.T) {
			w := newWorld(t)
			spec.MaxEntries = room
			b := newBusy(t, w, spec)
			for range 5 {
				b.check(t, "walk", b.walk)
			}
			if b.kind.hashed {
				b.check(t, "batches of one", func(ctx context.Context, visit visitor) error {
					return b.walkBatches(ctx, b.newBatch(1), visit)
				})
			}
		})
	}
}

// TestFullBuckets reads a hash whose buckets have more entries than a batch
// begins with.
func TestFullBuckets(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "full", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 4096})
	for n := range uint32(4096) {
		if err := m.Put(n, n); err != nil {
			t.Fatal(err)
		}
	}
	h, err := w.open("mine/full", true)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	seen := map[string]bool{}
	err = h.walkBatches(context.Background(), h.newBatch(1), func(key, value []byte) error {
		if seen[string(key)] || string(key) != string(value) {
			return fmt.Errorf("entry %x=%x is wrong or comes twice", key, value)
		}
		seen[string(key)] = true
		return nil
	})
	if err != nil || len(seen) != 4096 {
		t.Errorf("%d entries came of 4096: %v", len(seen), err)
	}
}

// TestFirstBatch checks how much is read at first: all of a small map with room
// to spare, so that one call does, and little memory's worth of large values.
func TestFirstBatch(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		spec ebpf.MapSpec
		want int
	}{
		{ebpf.MapSpec{Name: "small", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 10}, 11},
		{ebpf.MapSpec{Name: "array", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}, 2},
		{ebpf.MapSpec{Name: "large", Type: ebpf.Hash, KeySize: 16, ValueSize: 16, MaxEntries: 1_000_000}, batchEntries},
		{ebpf.MapSpec{Name: "wide", Type: ebpf.Hash, KeySize: 4, ValueSize: 1020, MaxEntries: 10_000}, 512},
		{ebpf.MapSpec{Name: "huge", Type: ebpf.Array, KeySize: 4, ValueSize: 1 << 20, MaxEntries: 8}, leastEntries},
	} {
		w.make(t, &test.spec)
		h, err := w.open("mine/"+test.spec.Name, true)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.firstBatch().count; got != test.want {
			t.Errorf("%s: a batch has %d entries, want %d", test.spec.Name, got, test.want)
		}
		h.Close()
	}
}
