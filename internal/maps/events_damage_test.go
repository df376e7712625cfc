package maps

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// TestPerfDamaged reads buffers whose records don't hold what they say.
func TestPerfDamaged(t *testing.T) {
	u32, u64 := binary.NativeEndian.AppendUint32, binary.NativeEndian.AppendUint64
	sample := func(size uint32, data string) []byte { return append(u32(u64(nil, 5), size), data...) }
	for name, test := range map[string]struct {
		kind   uint32
		length int // that the header says; 0: the right one
		body   []byte
		data   string // "" for a damaged buffer
	}{
		"whole":            {kind: unix.PERF_RECORD_SAMPLE, body: sample(4, "abcd"), data: "abcd"},
		"padded":           {kind: unix.PERF_RECORD_SAMPLE, body: sample(3, "abcd"), data: "abc"},
		"size beyond":      {kind: unix.PERF_RECORD_SAMPLE, body: sample(5, "abcd")},
		"size far beyond":  {kind: unix.PERF_RECORD_SAMPLE, body: sample(1<<32-1, "abcd")},
		"no size":          {kind: unix.PERF_RECORD_SAMPLE, body: u64(nil, 5)},
		"nothing":          {kind: unix.PERF_RECORD_SAMPLE},
		"no count of lost": {kind: unix.PERF_RECORD_LOST, body: u64(nil, 5)},
		"no header":        {kind: unix.PERF_RECORD_SAMPLE, length: 4, body: sample(4, "abcd")},
		"beyond the end":   {kind: unix.PERF_RECORD_SAMPLE, length: 64, body: sample(4, "abcd")},
	} {
		b := perfBuffer{memory: make([]byte, os.Getpagesize()), data: make([]byte, 0, 128)}
		length := perfHeader + len(test.body)
		b.data = u32(b.data, test.kind)
		b.data = binary.NativeEndian.AppendUint16(b.data, 0)
		b.data = binary.NativeEndian.AppendUint16(b.data, uint16(cmp.Or(test.length, length)))
		b.data = append(b.data, test.body...)[:128]
		(*unix.PerfEventMmapPage)(unsafe.Pointer(unsafe.SliceData(b.memory))).Data_head = uint64(length)
		r, ok, err := b.next()
		if ok != (test.data != "") || string(r.data) != test.data || (err == nil) != ok {
			t.Errorf("%s: %q, %t, %v", name, r.data, ok, err)
		}
	}
}

// TestEventsLocked waits for another one that begins to read no longer than it
// may, and says who that is.
func TestEventsLocked(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "ring", Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())})
	unlock, err := pinned.LockMount(context.Background(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	w.LockTimeout = 20 * time.Millisecond
	began := time.Now()
	_, err = w.Events(context.Background(), EventsRequest{Map: "mine/ring"})
	fails(t, err, fault.ErrLocked, fmt.Sprintf("process %d", os.Getpid()))
	if waited := time.Since(began); waited > 10*time.Second {
		t.Errorf("it took %v", waited)
	}
	unlock()
	w.LockTimeout = time.Minute
	stream, err := w.Events(context.Background(), EventsRequest{Map: "mine/ring"})
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
}
