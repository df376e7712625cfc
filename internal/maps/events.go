package maps

import (
	"context"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/internal/fault"
)

// Eventer is the part of API that reads the records which programs send
// through ring buffers and perf event arrays.
type Eventer interface {
	// Events opens the records of a map. A map has one reader: ErrConflict says
	// which process has it open, unless the request steals. ErrLocked says which
	// process kept others from opening theirs for too long. ErrUsage is for a
	// type that isn't there, ErrUnsupported for a map that has no records.
	Events(ctx context.Context, request EventsRequest) (EventStream, error)
}

// EventsRequest says which records to read.
type EventsRequest struct {
	Map   string
	Type  string // of the records, in C: "struct event"; "": what the BTF says
	BTF   []byte // an ELF object that has the type, nil: BTF of the map's programs and its instance
	From  string // the file that BTF was read from
	Steal bool   // read even if another process has the map open
}

// EventStream is the open records of one map.
type EventStream interface {
	Source() EventSource
	// Read calls emit with the records as they come, as many as are there at
	// once, until it has read count (0: all that come) or ctx ends, which is no
	// error. Records are taken out of the map when emit returned nil, and not
	// before; the slice is overwritten by the next call.
	Read(ctx context.Context, count uint64, emit func([]Event) error) (EventsRead, error)
	Close() error
}

// EventSource describes what a stream reads.
type EventSource struct {
	Map    string
	MapID  uint32
	Type   *string // of the records; nil: they are bytes
	PerCPU bool    // Event.CPU and Event.Lost are known: it is a perf event array
	Notes  []string
}

// Event is one record.
type Event struct {
	Time     time.Time // when the program sent it (perf event array) or it was read (ring buffer)
	CPU      int
	Lost     uint64 // records of this CPU that found no space since the event before
	Bytes    int    // of the record; a perf event array pads to 8n+4
	Data     []byte // JSON by the type, or "hex:…"
	Trailing []byte // JSON of the bytes beyond the type; nil when there are none, or only zeros
}

// EventsRead sums up what Read did.
type EventsRead struct {
	Events uint64
	Lost   []CPULost // in the order of the CPUs; nil when none were, or it isn't known
	Notes  []string
}

// CPULost is how many records of a CPU found no space.
type CPULost struct {
	CPU   int
	Count uint64
}

// record is one record as it lies in the memory that the kernel shares.
type record struct {
	data []byte // valid until the next record is taken
	time time.Time
	cpu  int
	lost uint64
}

// recordSource hands out the records of a map.
type recordSource interface {
	// next returns the next record that is complete.
	next() (r record, ok bool, err error)
	// release gives the memory of what next returned back to the kernel.
	release()
	// wait returns when there may be more, w is woken, or after a while.
	wait(w *waker) error
	// leave stops new records. Those that nobody else can read any more still
	// come from next, and rest says that there may be such.
	leave() (rest bool, err error)
	// lost returns how many records found no space so far, by CPU.
	lost() []CPULost
	close() error
}

// The most that is read before it is printed.
const (
	batchRecords = 1024
	batchJSON    = 256 << 10
)

// eventStream implements EventStream.
type eventStream struct {
	about   EventSource
	source  recordSource
	decoder decoder
	events  []Event
	text    []byte // the JSON of events
}

// Events implements API.
func (s *Store) Events(ctx context.Context, r EventsRequest) (EventStream, error) {
	unlock, err := lockClaims(ctx, s.LockTimeout)
	if err != nil {
		return nil, fmt.Errorf("read events of map %s: %w", r.Map, err)
	}
	defer unlock()
	h, err := s.open(r.Map, false)
	if err != nil {
		return nil, err
	}
	stream, err := s.openEvents(ctx, h, r)
	if err != nil {
		h.Close()
		return nil, err
	}
	return stream, nil
}

func (s *Store) openEvents(ctx context.Context, h *handle, r EventsRequest) (*eventStream, error) {
	if err := h.hasEvents(); err != nil {
		return nil, err
	}
	found, err := s.eventType(h, r)
	if err != nil {
		return nil, err
	}
	notes, err := h.claim(ctx, r.Steal)
	if err != nil {
		return nil, err
	}
	perf := h.Type() == ebpf.PerfEventArray
	stream := &eventStream{
		about:   EventSource{Map: r.Map, MapID: h.about.ID, PerCPU: perf, Notes: append(notes, found.notes...)},
		decoder: newDecoder(found.t, perf),
	}
	stream.about.Type = stream.decoder.name
	if perf {
		stream.source, err = openPerf(h, perfPages)
	} else {
		stream.source, err = openRing(h)
	}
	return stream, err
}

// hasEvents refuses maps that no records can be read from.
func (h *handle) hasEvents() error {
	why := fmt.Sprintf("it is of type %s: only a ringbuf and a perf_event_array hold records for processes", h.kind.word)
	hint := "bpfnet map dump " + h.about.Ref + " reads its entries"
	switch {
	case h.Type() == ebpf.RingBuf && h.about.Flags&ringOverwrite != 0:
		why, hint = "it is a ringbuf that overwrites what wasn't read, which bpfnet can't read", "its program's own reader has to be used"
	case h.Type() == ebpf.RingBuf, h.Type() == ebpf.PerfEventArray:
		return nil
	case h.kind.refuses != "":
		hint = h.instead()
	}
	return fault.New(fault.ErrUnsupported, "read events of map %s: %s", h.about.Ref, why).Hint("%s", hint)
}

// Source implements EventStream.
func (s *eventStream) Source() EventSource { return s.about }

// Close implements EventStream.
func (s *eventStream) Close() error { return s.source.close() }

// Read implements EventStream.
func (s *eventStream) Read(ctx context.Context, count uint64, emit func([]Event) error) (EventsRead, error) {
	w, err := newWaker(ctx)
	if err != nil {
		return EventsRead{}, err
	}
	defer w.close()
	read, err := s.follow(ctx, w, count, emit)
	rest, leaveErr := s.source.leave()
	if err == nil {
		err = leaveErr
	}
	for rest && err == nil && (count == 0 || read < count) {
		var n int
		n, err = s.batch(left(count, read), emit)
		read, rest = read+uint64(n), n > 0
	}
	return EventsRead{Events: read, Lost: s.source.lost(), Notes: s.decoder.notes()}, s.explain(err)
}

// follow reads until it has enough or ctx ends.
func (s *eventStream) follow(ctx context.Context, w *waker, count uint64, emit func([]Event) error) (read uint64, err error) {
	for ctx.Err() == nil && (count == 0 || read < count) {
		n, err := s.batch(left(count, read), emit)
		read += uint64(n)
		if err != nil {
			return read, err
		}
		if n == 0 {
			err = s.source.wait(w)
		}
		if err != nil {
			return read, err
		}
	}
	return read, nil
}

// left is how many records the next batch may have.
func left(count, read uint64) int {
	if count == 0 {
		return batchRecords
	}
	return int(min(count-read, batchRecords))
}

// batch emits what is there, at most so many records, and takes it out of the
// map.
func (s *eventStream) batch(most int, emit func([]Event) error) (int, error) {
	s.events, s.text = s.events[:0], s.text[:0]
	for len(s.events) < most && len(s.text) < batchJSON {
		r, ok, err := s.source.next()
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		s.add(r)
	}
	if len(s.events) > 0 {
		if err := emit(s.events); err != nil {
			return 0, err
		}
	}
	s.source.release()
	return len(s.events), nil
}

func (s *eventStream) add(r record) {
	e := Event{Time: r.time, CPU: r.cpu, Lost: r.lost, Bytes: len(r.data)}
	from := len(s.text)
	data, trailing := s.decoder.split(r.data)
	s.text = s.decoder.append(s.text, data)
	e.Data = s.text[from:len(s.text):len(s.text)]
	if trailing != nil {
		from = len(s.text)
		s.text = appendBytes(s.text, trailing)
		e.Trailing = s.text[from:len(s.text):len(s.text)]
	}
	s.events = append(s.events, e)
}

func (s *eventStream) explain(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read events of map %s: %w", s.about.Map, err)
}
