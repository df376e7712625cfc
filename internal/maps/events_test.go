package maps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

const sender = "../datapath/testdata/events.o"

// sending is a world with the instance "ev", whose program sends records.
type sending struct {
	*world
	object  []byte
	program *ebpf.Program
}

func newSending(t *testing.T) *sending {
	t.Helper()
	w := newWorld(t)
	object, err := os.ReadFile(sender)
	if err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs(sender)
	if err != nil {
		t.Fatal(err)
	}
	w.load(path, object)
	program, err := ebpf.LoadPinnedProgram(w.root.Path("ev", pinned.Progs, "send_record"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return &sending{world: w, object: object, program: program}
}

// load pins an object's maps and programs as the instance "ev".
func (w *world) load(path string, object []byte) {
	w.t.Helper()
	collection, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		w.t.Fatal(err)
	}
	loaded, err := ebpf.NewCollection(collection)
	if err != nil {
		w.t.Fatal(err)
	}
	defer loaded.Close()
	stage, err := w.root.NewStage("ev", pinned.Spec{Source: path, Digest: pinned.Digest(object, nil)})
	if err != nil {
		w.t.Fatal(err)
	}
	for name, m := range loaded.Maps {
		err = errors.Join(err, m.Pin(stage.Path(pinned.Maps, name)))
	}
	for name, p := range loaded.Programs {
		err = errors.Join(err, p.Pin(stage.Path(pinned.Progs, name)))
	}
	if err := errors.Join(err, stage.Commit()); err != nil {
		w.t.Fatal(err)
	}
}

// send runs the program once for each letter.
func (s *sending) send(how string) {
	s.t.Helper()
	for _, letter := range how {
		s.repeat(letter, 1)
	}
}

func (s *sending) repeat(letter rune, times uint32) {
	s.t.Helper()
	packet := append([]byte{byte(letter)}, make([]byte, 59)...)
	if _, err := s.program.Run(&ebpf.RunOptions{Data: packet, Repeat: times}); err != nil {
		s.t.Fatal(err)
	}
}

// refused returns how many records found no place.
func (s *sending) refused() uint64 {
	s.t.Helper()
	entry, err := s.Get(context.Background(), "ev/.bss", "0")
	if err != nil {
		s.t.Fatal(err)
	}
	var counts struct{ Refused uint64 }
	if err := json.Unmarshal(entry.Value, &counts); err != nil {
		s.t.Fatal(err)
	}
	return counts.Refused
}

func (s *sending) open(r EventsRequest) EventStream {
	s.t.Helper()
	stream, err := s.Events(context.Background(), r)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { stream.Close() })
	return stream
}

// read returns what a reader of its own gets: count records, or those that come
// in a while.
func (s *sending) read(r EventsRequest, count uint64) (events []string, sum EventsRead) {
	s.t.Helper()
	stream := s.open(r)
	defer stream.Close()
	return follow(s.t, stream, count, 150*time.Millisecond)
}

func follow(t *testing.T, stream EventStream, count uint64, atMost time.Duration) (events []string, sum EventsRead) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), atMost)
	defer cancel()
	sum, err := stream.Read(ctx, count, func(batch []Event) error {
		for _, e := range batch {
			text := string(e.Data)
			if e.Trailing != nil {
				text += " " + string(e.Trailing)
			}
			events = append(events, text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if sum.Events != uint64(len(events)) {
		t.Errorf("%d events came, %d were counted", len(events), sum.Events)
	}
	return events, sum
}

func event(number int) string {
	return fmt.Sprintf(`{"number":%d,"source_ip":"10.0.0.1","verdict":"DROP","comm":"curl"}`, number)
}

func sample(number int) string { return fmt.Sprintf(`{"number":%d,"length":60,"mark":7}`, number) }

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// TestRingRecords sends records of every form: in order, discarded, longer and
// shorter than the type, without waking the reader.
func TestRingRecords(t *testing.T) {
	s := newSending(t)
	request := EventsRequest{Map: "ev/events"}
	s.send("rdldsr")
	got, sum := s.read(request, 0)
	same(t, got, event(0), event(2)+` "hex:cafe0000000000000000000000000000"`, `"hex:0400000000"`, event(5))
	if len(sum.Notes) != 1 || !strings.Contains(sum.Notes[0], "shorter than struct event, 24 bytes") || sum.Lost != nil {
		t.Errorf("summary %+v", sum)
	}
	stream := s.open(request)
	defer stream.Close()
	time.AfterFunc(50*time.Millisecond, func() { s.send("qd") })
	got, _ = follow(t, stream, 1, 5*time.Second)
	same(t, got, event(6))
	got, _ = follow(t, stream, 0, 20*time.Millisecond) // takes the discarded one
	same(t, got)
	for range 3 { // around the end of the buffer several times
		s.repeat('r', 1500)
		if got, _ := follow(t, stream, 1500, 5*time.Second); len(got) != 1500 || got[1499] != event(int(s.sent())-1) {
			t.Errorf("%d records, the last is %s", len(got), got[len(got)-1])
		}
	}
}

func (s *sending) sent() uint64 {
	entry, err := s.Get(context.Background(), "ev/.bss", "0")
	var counts struct{ Sent uint64 }
	if err := errors.Join(err, json.Unmarshal(entry.Value, &counts)); err != nil {
		s.t.Fatal(err)
	}
	return counts.Sent
}

// TestRingLeavesTheRest checks that a reader takes out what it was asked for
// and what was printed, and nothing else.
func TestRingLeavesTheRest(t *testing.T) {
	s := newSending(t)
	request := EventsRequest{Map: "ev/events"}
	s.send("rrrrr")
	got, _ := s.read(request, 3)
	same(t, got, event(0), event(1), event(2))
	stream := s.open(request)
	broken := errors.New("broken")
	if _, err := stream.Read(t.Context(), 0, func([]Event) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	stream.Close()
	got, _ = s.read(request, 0)
	same(t, got, event(3), event(4))
}

// TestRingFull checks that a full buffer is read to the end and goes on.
func TestRingFull(t *testing.T) {
	s := newSending(t)
	s.repeat('r', 5000)
	fits := 5000 - int(s.refused())
	got, sum := s.read(EventsRequest{Map: "ev/events"}, 0)
	if fits == 5000 || len(got) != fits || got[fits-1] != event(fits-1) || sum.Lost != nil {
		t.Errorf("%d of %d records, lost %v", len(got), fits, sum.Lost)
	}
}

// TestRingBusy reads a ring of our own making: a record that isn't complete is
// waited for, one that contradicts the positions is refused.
func TestRingBusy(t *testing.T) {
	page := func() []byte { return make([]byte, 4096) }
	r := &ring{consumer: page(), producer: page(), data: page(), size: 2048, fresh: true}
	put := func(at int, header uint32, data string) {
		copy(r.data[at+ringHeader:], data)
		atomic.StoreUint32((*uint32)(unsafe.Pointer(&r.data[at])), header)
	}
	take := func(want string, wantBusy bool) {
		t.Helper()
		got, ok, err := r.next()
		if err != nil || ok != (want != "") || string(got.data) != want || r.busy != wantBusy {
			t.Errorf("next: %q %v %v, busy %v; want %q", got.data, ok, err, r.busy, want)
		}
	}
	take("", false)
	put(0, 5, "first")
	put(16, 6|ringBusy, "")
	put(32, 5, "third")
	atomic.StoreUintptr(position(r.producer), 48)
	take("first", false)
	take("", true)
	r.release()
	if at := atomic.LoadUintptr(position(r.consumer)); at != 16 {
		t.Errorf("released up to %d", at)
	}
	take("", true)
	put(16, 6|ringDiscard, "")
	take("third", false)
	take("", false)
	r.release()
	if at := atomic.LoadUintptr(position(r.consumer)); at != 48 {
		t.Errorf("released up to %d", at)
	}
	put(48, 100, "")
	atomic.StoreUintptr(position(r.producer), 64)
	if _, _, err := r.next(); err == nil {
		t.Error("a record longer than what was written is no error")
	}
	atomic.StoreUintptr(position(r.producer), 52)
	if _, _, err := r.next(); err == nil {
		t.Error("a position within what precedes a record is no error")
	}
	atomic.StoreUintptr(position(r.producer), 16)
	if _, _, err := r.next(); err == nil {
		t.Error("a reader ahead of the writer is no error")
	}
}

// TestPerfRecords checks content, CPU and time of the records of a perf event
// array, and that its slots are free afterwards.
func TestPerfRecords(t *testing.T) {
	s := newSending(t)
	s.send("p")
	if s.refused() != 1 {
		t.Fatal("the slots are taken before")
	}
	stream := s.open(EventsRequest{Map: "ev/samples"})
	if source := stream.Source(); !source.PerCPU || source.Type == nil || *source.Type != "struct sample" {
		t.Errorf("source %+v", source)
	}
	before := time.Now()
	s.send("pP")
	var events []Event
	sum, err := stream.Read(t.Context(), 2, func(batch []Event) error {
		for _, e := range batch {
			e.Data, e.Trailing = bytes.Clone(e.Data), bytes.Clone(e.Trailing)
			events = append(events, e)
		}
		return nil
	})
	if err != nil || sum.Lost != nil || len(events) != 2 {
		t.Fatalf("%d events, %+v, %v", len(events), sum, err)
	}
	slices.SortFunc(events, func(a, b Event) int { return a.Time.Compare(b.Time) }) // the CPUs' order is open
	if e := events[0]; string(e.Data) != sample(1) || e.Trailing != nil || e.Bytes != 20 || e.CPU >= ebpf.MustPossibleCPU() {
		t.Errorf("event %+v %s", e, e.Data)
	}
	if e := events[1]; !strings.HasPrefix(string(e.Trailing), `"hex:6375726c00000000cafe`) || e.Bytes != 44 {
		t.Errorf("event %+v %s", e, e.Trailing)
	}
	if at := events[0].Time; at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("it is %v, the event is of %v", before, at)
	}
	s.send("p")
	if s.refused() != 2 {
		t.Error("the slots are still taken")
	}
}

// TestPerfRest checks that records that are there when the reader ends are read.
func TestPerfRest(t *testing.T) {
	s := newSending(t)
	stream := s.open(EventsRequest{Map: "ev/samples"})
	s.send("p")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var got []string
	if _, err := stream.Read(ended, 0, func(batch []Event) error { got = append(got, string(batch[0].Data)); return nil }); err != nil {
		t.Fatal(err)
	}
	same(t, got, sample(0))
}

// TestPerfPreserved checks that slots of a map that keeps them are given back.
func TestPerfPreserved(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "kept", Type: ebpf.PerfEventArray, Flags: preserveElements})
	stream, err := w.Events(t.Context(), EventsRequest{Map: "mine/kept"})
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Delete(uint32(0)); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("slot 0 is still taken: %v", err)
	}
}

// TestPerfLost overflows a buffer of one page: every record is read or counted.
func TestPerfLost(t *testing.T) {
	s := newSending(t)
	opened, err := s.Store.open("ev/samples", false)
	if err != nil {
		t.Fatal(err)
	}
	source, err := openPerf(opened, 1)
	if err != nil {
		t.Fatal(err)
	}
	stream := &eventStream{source: source}
	defer stream.Close()
	s.repeat('p', 1000)
	first, _ := follow(t, stream, 1, time.Second)
	if len(first) != 1 {
		t.Fatalf("%q", first)
	}
	lost := stream.source.lost()
	if len(lost) != 1 || lost[0].Count < 500 || lost[0].Count >= 1000 {
		t.Fatalf("lost %v of 1000 that don't fit into a page", lost)
	}
}

// TestPerfLostReported checks that a record tells of those that were lost
// before it.
func TestPerfLostReported(t *testing.T) {
	s := newSending(t)
	opened, err := s.Store.open("ev/samples", false)
	if err != nil {
		t.Fatal(err)
	}
	source, err := openPerf(opened, 1)
	if err != nil {
		t.Fatal(err)
	}
	stream := &eventStream{source: source}
	defer stream.Close()
	var events, lost uint64
	gather := func(batch []Event) error {
		for _, e := range batch {
			events, lost = events+1, lost+e.Lost
		}
		return nil
	}
	for range 50 { // until a CPU that lost records sends again
		s.repeat('p', 300)
		for {
			if n, err := stream.batch(batchRecords, gather); err != nil {
				t.Fatal(err)
			} else if n == 0 {
				break
			}
		}
		if lost > 0 {
			break
		}
	}
	var all uint64
	for _, cpu := range source.lost() {
		all += cpu.Count
	}
	if sent := s.sent(); lost == 0 || lost > all || events+all != sent {
		t.Errorf("%d sent, %d read, %d told lost, %d lost", sent, events, lost, all)
	}
}

// TestEventTypes checks where the type of records is found.
func TestEventTypes(t *testing.T) {
	s := newSending(t)
	info, err := ebpf.LoadPinnedMap(s.root.Path("ev", pinned.Maps, "events"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer info.Close()
	about, err := info.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := about.ID()
	for _, test := range []struct {
		request EventsRequest
		want    string // "": bytes
	}{
		{EventsRequest{Map: "ev/events"}, "struct event"},
		{EventsRequest{Map: fmt.Sprintf("id:%d", id)}, "struct event"},
		{EventsRequest{Map: s.root.Path("ev", pinned.Maps, "events")}, "struct event"},
		{EventsRequest{Map: "ev/samples"}, "struct sample"},
		{EventsRequest{Map: "ev/blobs"}, ""},
		{EventsRequest{Map: "ev/blobs", Type: "struct sample"}, "struct sample"},
		{EventsRequest{Map: "ev/blobs", Type: "sample"}, "struct sample"},
		{EventsRequest{Map: "ev/blobs", Type: "enum verdict"}, "enum verdict"},
		{EventsRequest{Map: "ev/blobs", Type: "__u32", BTF: s.object}, "__u32"},
	} {
		stream := s.open(test.request)
		source := stream.Source()
		stream.Close()
		switch {
		case test.want == "" && (source.Type != nil || !strings.Contains(strings.Join(source.Notes, "\n"), "struct event, struct sample")):
			t.Errorf("%+v: %v %q", test.request, source.Type, source.Notes)
		case test.want != "" && (source.Type == nil || *source.Type != test.want):
			t.Errorf("%+v: %v %q", test.request, source.Type, source.Notes)
		}
	}
	testkit.NeedsMap(t, ebpf.UserRingbuf)
	s.make(t, &ebpf.MapSpec{Name: "inputs", Type: ebpf.UserRingbuf, MaxEntries: 4096})
	s.make(t, &ebpf.MapSpec{Name: "tasks", Type: ebpf.Queue, ValueSize: 4, MaxEntries: 1})
	for _, test := range []struct {
		request EventsRequest
		kind    error
		text    string
	}{
		{EventsRequest{Map: "ev/events", Type: "struct evnt"}, fault.ErrUsage, "--type takes one of: struct event"},
		{EventsRequest{Map: "ev/events", Type: "union event"}, fault.ErrUsage, "struct event"},
		{EventsRequest{Map: "ev/events", Type: "xyz"}, fault.ErrUsage, "struct sample"},
		{EventsRequest{Map: "ev/events", Type: "event", BTF: []byte("x"), From: "x.o"}, fault.ErrUsage, `read types from "x.o"`},
		{EventsRequest{Map: "ev/.bss"}, fault.ErrUnsupported, "map dump ev/.bss"},
		{EventsRequest{Map: "mine/inputs"}, fault.ErrUnsupported, "it is of type user_ringbuf"},
		{EventsRequest{Map: "mine/tasks"}, fault.ErrUnsupported, "map pop mine/tasks"},
		{EventsRequest{Map: "ev/none"}, fault.ErrNotFound, "ev/events"},
	} {
		_, err := s.Events(t.Context(), test.request)
		fails(t, err, test.kind, test.text)
	}
}

// TestEventTypesOfOthers checks maps that bpfnet has no object of: another
// object under the same name, and programs that libbpf loaded with their BTF.
func TestEventTypesOfOthers(t *testing.T) {
	s := newSending(t)
	note := filepath.Join(s.root.Instance("ev"), "spec")
	if err := errors.Join(os.Remove(note), os.Symlink(`{"source":"`+sender+`","digest":"0"}`, note)); err != nil {
		t.Fatal(err)
	}
	stream := s.open(EventsRequest{Map: "ev/events"})
	stream.Close()
	if source := stream.Source(); source.Type != nil {
		t.Errorf("the type %s is from an object that changed", *source.Type)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(s.object))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		perf bool
		want string
	}{
		{"events", false, ""}, {"samples", true, ""}, {"samples", false, "__u32"}, {"none", false, ""},
	} {
		got := ""
		if found := declaredType(spec, test.name, test.perf); found != nil {
			got = found.TypeName()
		}
		if got != test.want {
			t.Errorf("the definition of %s says %q, want %q", test.name, got, test.want)
		}
	}
}

// TestEventTypeDeclared checks a type that the map's definition names.
func TestEventTypeDeclared(t *testing.T) {
	w := newWorld(t)
	path, err := filepath.Abs("../datapath/testdata/typed.o")
	if err != nil {
		t.Fatal(err)
	}
	object, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w.load(path, object)
	stream, err := w.Events(t.Context(), EventsRequest{Map: "ev/thermometer"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if source := stream.Source(); source.Type == nil || *source.Type != "struct reading" {
		t.Errorf("source %+v", source)
	}
}

// TestEventTypesOfPrograms checks that the BTF of programs is found, with
// those that libbpf loaded: it gives the kernel the types of the whole object.
func TestEventTypesOfPrograms(t *testing.T) {
	w := newWorld(t)
	program, pins := string(w.root)+"/mine/program", string(w.root)+"/mine/libbpf"
	if out, err := exec.Command("bpftool", "prog", "load", sender, program, "type", "xdp", "pinmaps", pins).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, want := range map[string]string{"events": "struct event", "samples": "struct sample"} {
		stream, err := w.Events(t.Context(), EventsRequest{Map: pins + "/" + name})
		if err != nil {
			t.Fatal(err)
		}
		stream.Close()
		if source := stream.Source(); source.Type == nil || *source.Type != want {
			t.Errorf("%s: %+v", name, source)
		}
	}
}

// TestNamesake checks the rule by names, and that it doesn't guess.
func TestNamesake(t *testing.T) {
	name := func(n string) btf.Type { return &btf.Struct{Name: n, Size: 4} }
	for _, test := range []struct {
		types []btf.Type
		want  string
	}{
		{[]btf.Type{name("event"), name("other")}, "event"},
		{[]btf.Type{name("event_t")}, "event_t"},
		{[]btf.Type{&btf.Typedef{Name: "event_t", Type: &btf.Struct{Size: 4}}}, "event_t"},
		{[]btf.Type{name("event"), name("events")}, ""},
		{[]btf.Type{name("event_type")}, ""},
		{[]btf.Type{&btf.Struct{Name: "event"}}, ""},
	} {
		b, err := btf.NewBuilder(test.types, nil)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := b.Spec()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if found := namesakeType(spec, "events"); found != nil {
			got = found.TypeName()
		}
		if got != test.want {
			t.Errorf("%v: %q, want %q", test.types, got, test.want)
		}
	}
}

// TestDecoder checks what becomes of records of all lengths.
func TestDecoder(t *testing.T) {
	bytes := func(n int, last byte) []byte { return append(make([]byte, n-1), last) }
	for _, test := range []struct {
		typ            btf.Type
		perf           bool
		record         []byte
		data, trailing string
	}{
		{nil, false, []byte{1, 2}, `"hex:0102"`, ""},
		{nil, true, bytes(4, 9), `"hex:00000009"`, ""},
		{u32, false, []byte{1, 0, 0, 0}, "1", ""},
		{u32, false, []byte{1, 0, 0}, `"hex:010000"`, ""},
		{u32, false, nil, `"hex:"`, ""},
		{u32, false, []byte{1, 0, 0, 0, 0, 0}, "1", ""},
		{u32, false, []byte{1, 0, 0, 0, 0, 5}, "1", `"hex:0005"`},
		{u64, true, bytes(12, 9), "0", ""},                               // padding, whatever it holds
		{u64, true, bytes(20, 9), "0", `"hex:000000000000000000000009"`}, // more than that
		{u64, false, bytes(12, 9), "0", `"hex:00000009"`},
	} {
		d := newDecoder(test.typ, test.perf)
		data, trailing := d.split(test.record)
		rest := ""
		if trailing != nil {
			rest = string(appendBytes(nil, trailing))
		}
		if got := string(d.append(nil, data)); got != test.data || rest != test.trailing {
			t.Errorf("%x as %v: %s %s, want %s %s", test.record, test.typ, got, rest, test.data, test.trailing)
		}
	}
	if d := newDecoder(&btf.Struct{Name: "empty"}, false); d.name != nil {
		t.Error("a type without a size is used")
	}
}

// TestOneReader checks that a map that another process has open is refused,
// unless it is stolen.
func TestOneReader(t *testing.T) {
	s := newSending(t)
	for _, name := range []string{"events", "samples"} {
		m, err := ebpf.LoadPinnedMap(s.root.Path("ev", pinned.Maps, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		pid, end := testkit.Hold(t, m.FD())
		request := EventsRequest{Map: "ev/" + name}
		_, err = s.Events(t.Context(), request)
		fails(t, err, fault.ErrConflict, fmt.Sprintf("process %d (sleep)", pid))
		fails(t, err, fault.ErrConflict, "--steal")
		request.Steal = true
		stream := s.open(request)
		stream.Close()
		if notes := stream.Source().Notes; len(notes) != 1 || !strings.Contains(notes[0], "(sleep)") {
			t.Errorf("notes %q", notes)
		}
		end()
		request.Steal = false
		s.open(request).Close()
	}
}

// TestFirstReader starts two readers at once, as processes of their own: one of
// them reads, the other is refused.
func TestFirstReader(t *testing.T) {
	if root := os.Getenv("BPFNET_TEST_READER"); root != "" {
		stream, err := New(root).Events(context.Background(), EventsRequest{Map: "ev/events"})
		if err != nil {
			fmt.Println("refused:", errors.Is(err, fault.ErrConflict), err)
			return
		}
		fmt.Println("reads")
		_, _ = os.Stdin.Read(make([]byte, 1))
		stream.Close()
		return
	}
	s := newSending(t)
	for range 3 {
		first, second := s.reader(), s.reader()
		answers := []string{first.answer(t), second.answer(t)}
		slices.Sort(answers)
		if answers[0] != "reads\n" || !strings.HasPrefix(answers[1], "refused: true") {
			t.Errorf("answers %q", answers)
		}
		first.end(t)
		second.end(t)
	}
}

// reader is this test as a process that opens the records.
type reader struct {
	*exec.Cmd
	in, out *os.File
}

func (s *sending) reader() *reader {
	s.t.Helper()
	child := exec.Command(os.Args[0], "-test.run", "^TestFirstReader$")
	child.Env = append(os.Environ(), "BPFNET_TEST_READER="+string(s.root))
	stdin, in, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	child.Stdin, child.Stdout = stdin, stdout
	if err := child.Start(); err != nil {
		s.t.Fatal(err)
	}
	stdin.Close()
	stdout.Close()
	return &reader{child, in, out}
}

// answer is the first line that the reader prints.
func (r *reader) answer(t *testing.T) string {
	t.Helper()
	b := make([]byte, 4096)
	n, err := r.out.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := bytes.Cut(b[:n], []byte("\n"))
	return string(line) + "\n"
}

func (r *reader) end(t *testing.T) {
	t.Helper()
	r.in.Close()
	r.out.Close()
	_ = r.Wait() // its output has no reader any more
}

// TestEventsEnd checks that a silent stream ends with its context.
func TestEventsEnd(t *testing.T) {
	s := newSending(t)
	for _, name := range []string{"ev/events", "ev/samples"} {
		stream := s.open(EventsRequest{Map: name})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(30*time.Millisecond, cancel)
		began := time.Now()
		sum, err := stream.Read(ctx, 0, func([]Event) error { return nil })
		if took := time.Since(began); err != nil || sum.Events != 0 || took > 5*time.Second {
			t.Errorf("%s: %+v, %v after %v", name, sum, err, took)
		}
		stream.Close()
	}
}
