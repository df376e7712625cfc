package maps

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// Get implements API. For an address without a length an LPM trie answers with
// the longest prefix that it lies in, as for a packet.
func (s *Store) Get(ctx context.Context, ref, keyText string) (Entry, error) {
	h, err := s.open(ref, true)
	if err != nil {
		return Entry{}, err
	}
	defer h.Close()
	if err := h.readable("read"); err != nil {
		return Entry{}, err
	}
	if v, ok := h.variable(keyText); ok {
		return h.getVariable(v)
	}
	key, err := h.parseKey(keyText)
	if err != nil {
		return Entry{}, err
	}
	var value []byte
	if h.isAddress(keyText) {
		key, value, err = h.match(key)
	} else {
		value, err = h.stored(key)
	}
	if err != nil {
		return Entry{}, err
	}
	if value == nil {
		return Entry{}, h.noSuchKey(ctx, keyText)
	}
	doc, sum := h.appendValue(nil, value)
	return Entry{Map: h.about.Ref, MapID: h.about.ID, Key: h.keyJSON(key), Value: doc, Sum: sum, Notes: h.notes}, nil
}

func (h *handle) noSuchKey(ctx context.Context, key string) error {
	if h.kind.indexed {
		return fault.New(fault.ErrNotFound, "find key %s in map %s: no such key", key, h.about.Ref).
			Hint("keys are 0..%d", h.MaxEntries()-1)
	}
	err := fault.New(fault.ErrNotFound, "find key %s in map %s: no such key", key, h.about.Ref)
	if keys := h.someKeys(ctx); len(keys) > 0 {
		return err.Hint("keys: %s", strings.Join(keys, ", "))
	}
	return err.Hint("the map is empty")
}

var errEnough = errors.New("enough")

// someKeys returns the first few keys, to show what they look like.
func (h *handle) someKeys(ctx context.Context) []string {
	const most = 5
	var keys []string
	_ = h.walk(ctx, func(key, _ []byte) error {
		keys = append(keys, string(codec.Text(h.keyJSON(key))))
		if len(keys) == most {
			return errEnough
		}
		return nil
	})
	return keys
}

// Set implements API.
func (s *Store) Set(ctx context.Context, r SetRequest) (Change, error) {
	h, err := s.open(r.Map, false)
	if err != nil {
		return Change{}, err
	}
	defer h.Close()
	if err := h.writable(); err != nil {
		return Change{}, err
	}
	if v, ok := h.variable(r.Key); ok {
		return h.setVariable(r, v)
	}
	key, err := h.parseKey(r.Key)
	if err != nil {
		return Change{}, err
	}
	if h.Type() == ebpf.LPMTrie {
		key = masked(key) // the kernel keeps the bits beyond the length, and ignores them
	}
	value, release, err := s.parseValue(h, r.Value)
	if err != nil {
		return Change{}, err
	}
	defer release()
	previous, err := h.stored(key)
	if err != nil {
		return Change{}, err
	}
	change := h.change(key, previous)
	change.Value = h.valueJSON(value.read)
	change.Notes = append(change.Notes, value.notes...)
	change.Changed = !bytes.Equal(previous, value.read)
	if err := h.allowed(ctx, r, previous, change.Changed); err != nil || !change.Changed || r.DryRun {
		return change, err
	}
	return change, h.update(ctx, r, key, value.write)
}

func (h *handle) change(key, previous []byte) Change {
	return Change{Map: h.about.Ref, MapID: h.about.ID, Key: h.keyJSON(key), Previous: h.valueJSON(previous), Notes: append([]string{}, h.notes...)}
}

// writable refuses maps that can't be changed.
func (h *handle) writable() error {
	if h.about.Frozen {
		return h.explain("change", unix.EPERM)
	}
	return h.readable("change")
}

// newValue is a value as it will be read, and as it has to be written.
type newValue struct {
	read, write []byte
	notes       []string
}

// parseValue turns text into a value. release frees what the value refers to
// once it is written.
func (s *Store) parseValue(h *handle, text string) (v newValue, release func(), err error) {
	release = func() {}
	switch {
	case h.kind.holds != "":
		return s.parseObject(h, text)
	case h.kind.sockets:
		return v, release, fault.New(fault.ErrUnsupported, "change map %s: only the process that has a socket open can put it into %s", h.about.Ref, h.kind.a())
	case h.kind.perCPU:
		var same bool
		v.read, same, err = h.value.ParsePerCPU(text, h.stride, h.cpus)
		if same && h.cpus > 1 {
			v.notes = append(v.notes, fmt.Sprintf("map %s has a value for each of %d CPUs: this one is for all of them", h.about.Ref, h.cpus))
		}
	default:
		v.read, err = h.value.Parse(text)
	}
	if err != nil {
		return v, release, fault.New(fault.ErrUsage, "value of map %s: %w", h.about.Ref, err).
			Hint("a value of %s is written %s", h.about.Ref, h.value.Form())
	}
	v.write = v.read
	if h.endsWithProgram() {
		return s.withProgram(h, v)
	}
	return v, release, nil
}

// parseObject opens the map or program that a value names: its id as Get shows
// it, id:N, name:S, the path of its pin, NAME/MAP or NAME/FUNCTION; of a program
// also tag:HEX.
func (s *Store) parseObject(h *handle, text string) (newValue, func(), error) {
	if _, err := strconv.ParseUint(text, 10, 32); err == nil {
		text = idPrefix + text
	}
	object, id, err := s.openObject(h.kind.holds, text)
	if err != nil {
		return newValue{}, func() {}, fmt.Errorf("value of map %s: %w", h.about.Ref, err)
	}
	v := newValue{read: word(id), write: word(uint32(object.FD()))}
	return v, func() { object.Close() }, nil
}

type object interface {
	FD() int
	Close() error
}

func (s *Store) openObject(holds, text string) (object, uint32, error) {
	if holds == "program" {
		return s.openProgram(text)
	}
	ref, err := s.resolve(text)
	if err != nil {
		return nil, 0, err
	}
	m, err := s.openMap(ref, false)
	if err != nil {
		return nil, 0, err
	}
	info, err := m.Info()
	if err != nil {
		m.Close()
		return nil, 0, err
	}
	id, _ := info.ID()
	return m, uint32(id), nil
}

func word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// allowed checks the condition of a SetRequest.
func (h *handle) allowed(ctx context.Context, r SetRequest, previous []byte, changed bool) error {
	switch {
	case r.Condition == IfPresent && previous == nil:
		return h.noSuchKey(ctx, r.Key)
	case r.Condition == IfAbsent && previous != nil && changed:
		return h.keyExists(r, r.Key)
	case h.kind.indexed && h.beyond(r.Key):
		return h.noSuchKey(ctx, r.Key)
	}
	return nil
}

func (h *handle) keyExists(r SetRequest, key string) error {
	return fault.New(fault.ErrConflict, "add key %s to map %s: it is there already, with another value", key, h.about.Ref).
		Hint("without %s the value is replaced", cmp.Or(r.ConditionWord, "that condition"))
}

// beyond says whether an index is beyond the end of an array.
func (h *handle) beyond(text string) bool {
	key, err := h.key.Parse(text)
	return err == nil && len(key) == 4 && binary.NativeEndian.Uint32(key) >= h.MaxEntries()
}

func (h *handle) update(ctx context.Context, r SetRequest, key, value []byte) error {
	flags := map[Condition]uint64{Always: unix.BPF_ANY, IfAbsent: unix.BPF_NOEXIST, IfPresent: unix.BPF_EXIST}[r.Condition]
	err := h.put(key, value, flags)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return h.keyExists(r, r.Key)
	case errors.Is(err, unix.ENOENT):
		return h.noSuchKey(ctx, r.Key)
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSPC):
		return fault.New(fault.ErrConflict, "change map %s: it is full: %d entries", h.about.Ref, h.MaxEntries()).
			Hint("delete entries, or %s", h.makeRoom())
	}
	return h.explain("change", err)
}

// makeRoom says how a map gets room for more. One that is named by its id may have
// come from anywhere, one that is pinned elsewhere wasn't loaded by bpfnet.
func (h *handle) makeRoom() string {
	switch {
	case strings.HasPrefix(h.about.Ref, "/") && filepath.Base(filepath.Dir(h.about.Ref)) != pinned.Maps:
		return "make the map again with more entries: bpfnet map create --max-entries"
	case strings.HasPrefix(h.about.Ref, idPrefix):
		return "make the map again with a greater --max-entries of bpfnet load or bpfnet map create"
	}
	return "load the program with a greater --max-entries"
}

// put writes one entry. The kernel refills its reserve of memory in the
// background, so that a moment later there may be some again.
func (h *handle) put(key, value []byte, flags uint64) error {
	err := element(unix.BPF_MAP_UPDATE_ELEM, h.FD(), key, value, flags)
	for tries := 0; errors.Is(err, unix.ENOMEM) && tries < 3; tries++ {
		time.Sleep(time.Millisecond)
		err = element(unix.BPF_MAP_UPDATE_ELEM, h.FD(), key, value, flags)
	}
	return err
}

// Delete implements API. A key that isn't there is no error.
func (s *Store) Delete(_ context.Context, r DeleteRequest) (Change, error) {
	h, err := s.open(r.Map, false)
	if err != nil {
		return Change{}, err
	}
	defer h.Close()
	if err := h.deletable(); err != nil {
		return Change{}, err
	}
	key, err := h.parseKey(r.Key)
	if err != nil {
		return Change{}, err
	}
	previous, err := h.stored(key)
	if err != nil {
		return Change{}, err
	}
	change := h.change(key, previous)
	change.Changed = previous != nil
	if !change.Changed || r.DryRun {
		return change, nil
	}
	err = element(unix.BPF_MAP_DELETE_ELEM, h.FD(), key, nil, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return change, h.explain("change", err)
	}
	return change, nil
}

func (h *handle) deletable() error {
	if err := h.writable(); err != nil {
		return err
	}
	if h.kind.fixed {
		return fault.New(fault.ErrUnsupported, "delete from map %s: its entries are always there (%s)", h.about.Ref, h.kind.word).
			Hint("bpfnet map set writes a zero value")
	}
	return nil
}
