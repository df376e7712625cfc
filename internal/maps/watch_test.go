package maps

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

func (w *world) watch(t *testing.T, r WatchRequest) (sample func() Watched) {
	t.Helper()
	if r.Sort == "" {
		r.Sort = DefaultWatchSort
	}
	if r.Limit == 0 {
		r.Limit = DefaultWatchLimit
	}
	s, err := w.Watch(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return func() Watched {
		t.Helper()
		doc, err := s.Sample(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
}

// brief writes the changes of a document in a line each, without rates.
func brief(doc Watched) []string {
	lines := []string{}
	for _, c := range doc.Changes {
		lines = append(lines, fmt.Sprintf("%s:%s<%s", c.Key, c.Value, c.Previous))
	}
	return lines
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "flows", Type: ebpf.Hash, Key: u32, Value: count, KeySize: 4, ValueSize: 16, MaxEntries: 10})
	for key, value := range map[string]string{"1": `{"packets":1,"bytes":100}`, "2": `{"packets":1,"bytes":100}`, "3": `{"packets":5,"bytes":5}`, "4": `{"packets":0,"bytes":0}`} {
		w.set("flows", key, value)
	}
	sample := w.watch(t, WatchRequest{Map: "mine/flows"})
	if first := sample(); first.IntervalSeconds != nil || first.Entries != 4 || first.Added != 0 || len(first.Changes) != 0 {
		t.Errorf("first: %+v", first)
	}
	w.set("flows", "1", `{"packets":2,"bytes":150}`)
	w.set("flows", "2", `{"packets":3,"bytes":9100}`)
	w.set("flows", "5", `{"packets":1,"bytes":40}`)
	if _, err := w.Delete(context.Background(), DeleteRequest{Map: "mine/flows", Key: "3"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	doc := sample()
	want := []string{
		`2:{"packets":3,"bytes":9100}<{"packets":1,"bytes":100}`, `1:{"packets":2,"bytes":150}<{"packets":1,"bytes":100}`,
		`5:{"packets":1,"bytes":40}<`, `3:<{"packets":5,"bytes":5}`,
	}
	if got := brief(doc); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("changes %q, want %q", got, want)
	}
	if doc.Entries != 4 || doc.Added != 1 || doc.Removed != 1 || doc.Changed != 2 || doc.IntervalSeconds == nil {
		t.Errorf("document %+v", doc)
	}
	rates := regexp.MustCompile(`^\{"packets":(\d+),"bytes":(\d+)\}$`).FindSubmatch(doc.Changes[0].PerSecond)
	if rates == nil {
		t.Fatalf("rates %s", doc.Changes[0].PerSecond)
	}
	packets, _ := strconv.ParseFloat(string(rates[1]), 64)
	grown, _ := strconv.ParseFloat(string(rates[2]), 64)
	if packets <= 2 || packets > 100 || grown/packets < 4000 || grown/packets > 5000 {
		t.Errorf("rates %s", doc.Changes[0].PerSecond)
	}
	if doc.Changes[3].PerSecond != nil {
		t.Errorf("rates of what is gone: %s", doc.Changes[3].PerSecond)
	}
	if third := sample(); len(third.Changes) != 0 {
		t.Errorf("third: %+v", third)
	}
}

func TestWatchOptions(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "hosts", Type: ebpf.PerCPUHash, Key: ip, Value: count, KeySize: 16, ValueSize: 16, MaxEntries: 10})
	byKey := w.watch(t, WatchRequest{Map: "mine/hosts", Sort: "key", Limit: 2})
	byBytes := w.watch(t, WatchRequest{Map: "mine/hosts", Sort: "-bytes", Match: "10."})
	byKey()
	byBytes()
	for address, n := range map[string]int{"10.0.0.1": 1, "10.0.0.2": 9, "10.0.0.3": 5, "192.0.2.1": 7} {
		w.set("hosts", address, fmt.Sprintf(`{"packets":%d,"bytes":%d}`, 100-n, n))
	}
	keys := func(doc Watched) string {
		var b bytes.Buffer
		for _, c := range doc.Changes {
			b.Write(c.Key)
		}
		return b.String()
	}
	if doc := byKey(); keys(doc) != `"10.0.0.1""10.0.0.2"` || doc.Added != 4 {
		t.Errorf("by key: %s, %d", keys(doc), doc.Added)
	}
	doc := byBytes()
	if keys(doc) != `"10.0.0.2""10.0.0.3""10.0.0.1"` || doc.Added != 3 || doc.Entries != 3 {
		t.Errorf("by bytes: %s, %+v", keys(doc), doc)
	}
	if sum := fmt.Sprintf(`{"packets":%d,"bytes":%d}`, 91*ebpf.MustPossibleCPU(), 9*ebpf.MustPossibleCPU()); string(doc.Changes[0].Sum) != sum {
		t.Errorf("sum %s, want %s", doc.Changes[0].Sum, sum)
	}
	for sort, text := range map[string]string{"nothing": "fields are change, key, packets, bytes", "-": "fields are"} {
		_, err := w.Watch(WatchRequest{Map: "mine/hosts", Sort: sort, Limit: 1})
		fails(t, err, fault.ErrUsage, text)
	}
	w.make(t, &ebpf.MapSpec{Name: "ring", Type: ebpf.RingBuf, MaxEntries: 4096})
	_, err := w.Watch(WatchRequest{Map: "mine/ring", Sort: "key", Limit: 1})
	fails(t, err, fault.ErrUnsupported, "bpfnet map events")
}

// TestWatchFollows goes on with the map that takes another's place.
func TestWatchFollows(t *testing.T) {
	w := newWorld(t)
	spec := &ebpf.MapSpec{Name: "hosts", Type: ebpf.Hash, Key: u32, Value: u32, KeySize: 4, ValueSize: 4, MaxEntries: 10}
	w.make(t, spec)
	sample := w.watch(t, WatchRequest{Map: "mine/hosts"})
	before := sample()
	if err := os.Remove(w.root.Path("mine", pinned.Maps, "hosts")); err != nil {
		t.Fatal(err)
	}
	w.make(t, spec)
	w.set("hosts", "1", "1")
	if after := sample(); after.MapID == before.MapID || after.Entries != 1 || after.IntervalSeconds != nil {
		t.Errorf("after: %+v", after)
	}
}

// TestSnapshot compares passes of random entries with a Go map.
func TestSnapshot(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	s := NewSnapshot(4, 2)
	old := map[uint32]uint16{}
	for pass := range 300 { // the pass's number wraps around
		now := map[uint32]uint16{}
		for range random.IntN(3000) {
			now[random.Uint32N(4000)] = uint16(random.IntN(3))
		}
		for key, value := range now {
			was, there := old[key]
			var seen []byte
			called := false
			s.See(word(key), binary.NativeEndian.AppendUint16(nil, value), func(before []byte) { called, seen = true, bytes.Clone(before) })
			if called != (!there || was != value) || there && called && binary.NativeEndian.Uint16(seen) != was || !there && seen != nil {
				t.Fatalf("pass %d: key %d is %d, was %d (%v): %v %x", pass, key, value, was, there, called, seen)
			}
		}
		gone := 0
		s.Sweep(func(key, value []byte) {
			gone++
			k := binary.NativeEndian.Uint32(key)
			if _, there := now[k]; there || old[k] != binary.NativeEndian.Uint16(value) {
				t.Fatalf("pass %d: key %d is said to be gone", pass, k)
			}
		})
		for key := range now {
			delete(old, key)
		}
		if gone != len(old) || s.count != len(now) {
			t.Fatalf("pass %d: %d gone of %d, %d kept of %d", pass, gone, len(old), s.count, len(now))
		}
		old = now
	}
}

// TestWatchMemory watches a million entries that all change.
func TestWatchMemory(t *testing.T) {
	w := newWorld(t)
	const entries = 1_000_000
	m := w.make(t, &ebpf.MapSpec{Name: "million", Type: ebpf.Hash, Key: ip, KeySize: 16, Value: count, ValueSize: 16, MaxEntries: entries})
	keys, values := make([]byte, 16*entries), make([]byte, 16*entries)
	fill := func(value uint32) {
		for i := range entries {
			copy(keys[16*i+12:], word(uint32(i)))
			copy(values[16*i:], word(value))
		}
		if _, err := m.BatchUpdate(sliceOf(keys), sliceOf(values), nil); err != nil {
			t.Fatal(err)
		}
	}
	fill(1)
	sample := w.watch(t, WatchRequest{Map: "mine/million"})
	before := heap()
	sample()
	fill(3)
	start := time.Now()
	doc := sample()
	took := time.Since(start)
	if doc.Changed != entries || len(doc.Changes) != DefaultWatchLimit {
		t.Errorf("%d changed, %d shown", doc.Changed, len(doc.Changes))
	}
	used := heap() - before
	runtime.KeepAlive(keys)
	runtime.KeepAlive(values)
	t.Logf("%d MB for keys and values of %d MB; a pass took %v", used>>20, 32*entries>>20, took)
	if used > 60<<20 {
		t.Errorf("%d MB are kept", used>>20)
	}
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestTop keeps the first changes, with any limit that there may be.
func TestTop(t *testing.T) {
	compare := func(a, b *change) int { return bytes.Compare(a.key, b.key) }
	for limit, want := range map[int]string{1: "a", 2: "ab", 3: "abc", 9: "abcdef", math.MaxInt: "abcdef"} {
		best := top{limit: limit, compare: compare}
		for _, key := range []byte("ebcafd") {
			best.add(&change{key: []byte{key}})
		}
		var got []byte
		for _, c := range best.sorted() {
			got = append(got, c.key...)
		}
		if string(got) != want {
			t.Errorf("the first %d: %q, want %q", limit, got, want)
		}
	}
}
