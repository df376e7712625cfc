package maps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// Creator is the part of API that makes maps, and makes them unchangeable.
type Creator interface {
	// Create makes a map and pins it. A map of the same shape that is pinned
	// there already is no change. ErrUsage says that the path isn't one for
	// pins or that the kernel takes no map of that shape, ErrConflict that
	// something else is there, ErrNotFound that the directory is missing.
	Create(ctx context.Context, request CreateRequest) (PinChange, error)
	// Freeze keeps all processes from changing a map, for good; programs still
	// can. A map that is frozen is no change. ErrConflict says that a process
	// is writing to it.
	Freeze(ctx context.Context, request FreezeRequest) (Frozen, error)
}

// CreateRequest says what map to make.
type CreateRequest struct {
	Path       string // of the pin, absolute
	Type       string // one of TypeWords
	KeySize    uint32 // bytes
	ValueSize  uint32 // bytes
	MaxEntries uint32 // of a ring buffer bytes
	Flags      uint32 // BPF_F_… of include/uapi/linux/bpf.h
	Name       string // in the kernel, which keeps 15 bytes; "": after the pin
	Inner      string // a map like those that a map of maps is to hold
	DryRun     bool   // make it without a pin, to see that the kernel takes it
}

// FreezeRequest names the map to freeze.
type FreezeRequest struct {
	Map    string
	DryRun bool
}

// Frozen is what Freeze did, or with DryRun would do.
type Frozen struct {
	Changed bool   `json:"changed"`
	Map     string `json:"map"`
	MapID   uint32 `json:"map_id"`
}

// Create implements API.
func (s *Store) Create(_ context.Context, r CreateRequest) (PinChange, error) {
	path := settled(r.Path)
	act := "create map " + path
	if err := s.pinnable(act, path); err != nil {
		return PinChange{}, err
	}
	m, err := s.create(act, r)
	if err != nil {
		return PinChange{}, err
	}
	defer m.Close()
	made, err := infoOf(m.FD())
	if err != nil {
		return PinChange{}, fmt.Errorf("%s: %w", act, err)
	}
	change := PinChange{Changed: true, Map: path, MapID: &made.id, Type: &r.Type, Pinned: &path}
	there, err := sameThere(act, path, made, r.Name != "")
	switch {
	case err != nil:
		return PinChange{}, err
	case there != 0:
		change.Changed, change.MapID = false, &there
		return change, nil
	case r.DryRun:
		change.MapID = nil
		return change, nil
	}
	err = m.Pin(path)
	if errors.Is(err, fs.ErrExist) { // made meanwhile
		if there, err = sameThere(act, path, made, r.Name != ""); err == nil {
			change.Changed, change.MapID = false, &there
		}
		return change, err
	}
	return change, pinError(act, err)
}

// create makes a map without a pin.
func (s *Store) create(act string, r CreateRequest) (*ebpf.Map, error) {
	kind, ok := typeOf(r.Type)
	if !ok {
		return nil, fault.New(fault.ErrUsage, "%s: there is no map type %q", act, r.Type)
	}
	attr := newMapAttr{kind: uint32(kind), keySize: r.KeySize, valueSize: r.ValueSize, maxEntries: r.MaxEntries, flags: r.Flags}
	name, err := newName(act, r)
	if err != nil {
		return nil, err
	}
	copy(attr.name[:], name)
	switch holds := kinds[kind].holds == "map"; {
	case holds && r.Inner == "":
		return nil, fault.New(fault.ErrUsage, "%s: a map of type %s needs another map as the pattern of those that it holds", act, r.Type).
			Hint("--inner MAP, or inner_map MAP in bpftool's words")
	case !holds && r.Inner != "":
		return nil, fault.New(fault.ErrUsage, "%s: a map of type %s holds no maps: it takes no inner one", act, r.Type)
	case holds:
		inner, err := s.openInner(act, r.Inner)
		if err != nil {
			return nil, err
		}
		defer inner.Close()
		attr.innerFD = uint32(inner.FD())
	}
	fd, err := createMap(&attr)
	if err != nil {
		return nil, createError(act, kind, r, err)
	}
	return ebpf.NewMapFromFD(fd)
}

func (s *Store) openInner(act, ref string) (*ebpf.Map, error) {
	ref, err := s.resolve(ref)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", act, err)
	}
	m, err := s.openMap(ref, true)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", act, err)
	}
	return m, nil
}

// newName is the name of a new map in the kernel: the one that was asked for, or
// the pin's as far as the kernel takes it.
func newName(act string, r CreateRequest) (string, error) {
	allowed := func(c rune) rune {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c == '.':
			return c
		}
		return '_'
	}
	if r.Name == "" {
		return cutName(strings.Map(allowed, filepath.Base(r.Path))), nil
	}
	if strings.Map(allowed, r.Name) != r.Name {
		return "", fault.New(fault.ErrUsage, "%s: name %q: the kernel takes letters, digits, dots and underscores", act, r.Name)
	}
	return cutName(r.Name), nil
}

// createError says what the kernel means by refusing a map.
func createError(act string, kind ebpf.MapType, r CreateRequest, err error) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.E2BIG), errors.Is(err, enotsupp):
		return fault.New(fault.ErrUsage, "%s: the kernel takes no %s with keys of %d bytes, values of %d bytes, %d entries and flags 0x%x",
			act, r.Type, r.KeySize, r.ValueSize, r.MaxEntries, r.Flags).Hint("%s", shape(kind))
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w", act, probe.Explain(probe.OpCreateMap, err))
	}
	return fmt.Errorf("%s: %w", act, err)
}

// shape says what sizes the kernel asks for (map_alloc_check of each type).
func shape(t ebpf.MapType) string {
	switch k := kinds[t]; {
	case t == ebpf.LPMTrie:
		return "keys have 5 to 260 bytes, the first 4 of them for the length; flags are 1 (BPF_F_NO_PREALLOC)"
	case t == ebpf.RingBuf, t == ebpf.UserRingbuf:
		return "keys and values have 0 bytes; entries are the bytes of the buffer, a power of 2 and whole pages"
	case k.refusal == isQueue, k.refusal == isFilter:
		return "keys have 0 bytes"
	case k.refusal == isStorage, k.refusal == ofSockets, t == ebpf.StructOpsMap:
		return "it needs BTF, which the object of a program brings: bpfnet load"
	case k.indexed && k.holds != "", t == ebpf.PerfEventArray, t == ebpf.CGroupArray, t == ebpf.XSKMap:
		return "keys and values have 4 bytes"
	case k.indexed:
		return "keys have 4 bytes"
	}
	return "keys and values have at least 1 byte, and there is room for at least 1 entry; bpfnet doctor shows the map types of this kernel"
}

// sameThere returns the id of the map that is pinned at path if it is of the
// same shape as want, and 0 if nothing is there. Anything else is a conflict.
func sameThere(act, path string, want mapInfo, named bool) (uint32, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	conflict := func(what string) error {
		return fault.New(fault.ErrConflict, "%s: %s", act, what).Hint("bpfnet map unpin %s   removes the pin of a map", path)
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, conflict("something that is no map is there already")
	}
	defer m.Close()
	got, err := infoOf(m.FD())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", act, err)
	}
	if differs := want.difference(got, named); differs != "" {
		return 0, conflict(fmt.Sprintf("map %s is there already, and %s", reference(got.id), differs))
	}
	return got.id, nil
}

// difference says in what the shape of another map isn't that of this one; ""
// for the same.
func (want mapInfo) difference(got mapInfo, named bool) string {
	name := func(i mapInfo) string { return unix.ByteSliceToString(i.name[:]) }
	for _, d := range []struct {
		what      string
		want, got any
		compared  bool
	}{
		{"type", TypeName(ebpf.MapType(want.kind)), TypeName(ebpf.MapType(got.kind)), true},
		{"key size", want.keySize, got.keySize, true},
		{"value size", want.valueSize, got.valueSize, true},
		{"max entries", want.maxEntries, got.maxEntries, true},
		{"flags", fmt.Sprintf("0x%x", want.flags), fmt.Sprintf("0x%x", got.flags), true},
		{"name", name(want), name(got), named},
	} {
		if d.compared && d.want != d.got {
			return fmt.Sprintf("its %s is %v, not %v", d.what, d.got, d.want)
		}
	}
	return ""
}

// Freeze implements API.
func (s *Store) Freeze(_ context.Context, r FreezeRequest) (Frozen, error) {
	h, err := s.open(r.Map, false)
	if err != nil {
		return Frozen{}, err
	}
	defer h.Close()
	done := Frozen{Changed: !h.about.Frozen, Map: h.about.Ref, MapID: h.about.ID}
	if !done.Changed || r.DryRun {
		return done, nil
	}
	err = freezeMap(h.FD())
	if errors.Is(err, unix.EBUSY) {
		return done, fault.New(fault.ErrConflict, "freeze map %s: a process is writing to it, or has its memory mapped to write", h.about.Ref)
	}
	if err != nil {
		return done, h.explain("freeze", err)
	}
	return done, nil
}
