package maps

import (
	"context"
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Queues is the part of API for maps without keys: queues, stacks and Bloom
// filters. The Key of what it returns is nil.
type Queues interface {
	// Push adds a value. ErrConflict says that the map is full.
	Push(ctx context.Context, request PushRequest) (Change, error)
	// Pop takes the next value out of a queue or stack and returns it.
	// ErrNotFound says that there is none.
	Pop(ctx context.Context, request PopRequest) (Change, error)
	// Peek returns the next value of a queue or stack, and leaves it there. Of a
	// Bloom filter it returns value if that may be in it, else ErrNotFound.
	Peek(ctx context.Context, ref, value string) (Entry, error)
}

// PushRequest says what to add.
type PushRequest struct {
	Map, Value string
	DryRun     bool
}

// PopRequest names the map to take from.
type PopRequest struct {
	Map    string
	DryRun bool // look, but leave it there
}

func (h *handle) isFilter() bool { return h.Type() == ebpf.BloomFilter }

// openQueue opens a map without keys.
func (s *Store) openQueue(verb, ref string, readOnly bool) (*handle, error) {
	h, err := s.open(ref, readOnly)
	if err != nil {
		return nil, err
	}
	switch h.Type() {
	case ebpf.Queue, ebpf.Stack, ebpf.BloomFilter:
		return h, nil
	}
	defer h.Close()
	if err := h.readable(verb); err != nil {
		return nil, err
	}
	return nil, fault.New(fault.ErrUnsupported, "%s map %s: %s has keys", verb, h.about.Ref, h.kind.a()).
		Hint("bpfnet map get, set and delete read and write its entries")
}

func (h *handle) queueChange(value []byte, changed bool) Change {
	return Change{Changed: changed, Map: h.about.Ref, MapID: h.about.ID, Value: h.valueJSON(value), Notes: append([]string{}, h.notes...)}
}

// Push implements API.
func (s *Store) Push(_ context.Context, r PushRequest) (Change, error) {
	h, err := s.openQueue("push to", r.Map, false)
	if err != nil {
		return Change{}, err
	}
	defer h.Close()
	value, release, err := s.parseValue(h, r.Value)
	if err != nil {
		return Change{}, err
	}
	defer release()
	if h.isFilter() {
		there, err := h.mayHold(value.read)
		if err != nil || there {
			return h.queueChange(value.read, false), err
		}
	}
	change := h.queueChange(value.read, true)
	if r.DryRun {
		return change, nil
	}
	err = element(unix.BPF_MAP_UPDATE_ELEM, h.FD(), nil, value.write, 0)
	if errors.Is(err, unix.E2BIG) {
		return change, fault.New(fault.ErrConflict, "push to map %s: it is full: %d elements", h.about.Ref, h.MaxEntries()).
			Hint("bpfnet map pop %s takes one out", h.about.Ref)
	}
	if err != nil {
		return change, h.explain("push to", err)
	}
	return change, nil
}

// mayHold asks a Bloom filter for a value.
func (h *handle) mayHold(value []byte) (bool, error) {
	err := element(unix.BPF_MAP_LOOKUP_ELEM, h.FD(), nil, value, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, h.explain("peek into", err)
	}
	return true, nil
}

// Pop implements API.
func (s *Store) Pop(_ context.Context, r PopRequest) (Change, error) {
	h, err := s.openQueue("pop from", r.Map, false)
	if err != nil {
		return Change{}, err
	}
	defer h.Close()
	if h.isFilter() {
		return Change{}, fault.New(fault.ErrUnsupported, "pop from map %s: nothing can be taken out of %s", h.about.Ref, h.kind.a())
	}
	command := unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM
	if r.DryRun {
		command = unix.BPF_MAP_LOOKUP_ELEM
	}
	value, err := h.next("pop from", command)
	if err != nil {
		return Change{}, err
	}
	return h.queueChange(value, true), nil
}

// next reads the next value of a queue or stack.
func (h *handle) next(verb string, command int) ([]byte, error) {
	value := make([]byte, h.ValueSize())
	err := element(command, h.FD(), nil, value, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, fault.New(fault.ErrNotFound, "%s map %s: it is empty", verb, h.about.Ref)
	}
	if err != nil {
		return nil, h.explain(verb, err)
	}
	return value, nil
}

// Peek implements API.
func (s *Store) Peek(_ context.Context, ref, text string) (Entry, error) {
	h, err := s.openQueue("peek into", ref, true)
	if err != nil {
		return Entry{}, err
	}
	defer h.Close()
	value, err := h.peek(s, text)
	if err != nil {
		return Entry{}, err
	}
	return Entry{Map: h.about.Ref, MapID: h.about.ID, Value: h.valueJSON(value), Notes: h.notes}, nil
}

func (h *handle) peek(s *Store, text string) ([]byte, error) {
	switch {
	case h.isFilter() && text == "":
		return nil, fault.New(fault.ErrUsage, "peek into map %s: %s only answers for a value", h.about.Ref, h.kind.a()).
			Hint("bpfnet map peek %s VALUE", h.about.Ref)
	case !h.isFilter() && text != "":
		return nil, fault.New(fault.ErrUsage, "peek into map %s: %s can't be asked for a value", h.about.Ref, h.kind.a())
	case !h.isFilter():
		return h.next("peek into", unix.BPF_MAP_LOOKUP_ELEM)
	}
	value, release, err := s.parseValue(h, text)
	if err != nil {
		return nil, err
	}
	defer release()
	there, err := h.mayHold(value.read)
	if err == nil && !there {
		err = fault.New(fault.ErrNotFound, "find value %s in map %s: it isn't in there", text, h.about.Ref)
	}
	return value.read, err
}
