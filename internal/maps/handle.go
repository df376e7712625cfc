package maps

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
)

// handle is an open map with what is needed to read and write its entries.
type handle struct {
	*ebpf.Map
	about   Map
	called  string // the kernel's name for it, at most 15 characters
	kind    kind
	key     *codec.Codec
	value   *codec.Codec
	section bool // it holds a data section: its value has variables
	cpus    int  // values of an entry; 1 unless they are per CPU
	stride  int  // bytes from one CPU's value to the next
	notes   []string
}

func newHandle(m *ebpf.Map, ref string, types *typeSource) (*handle, error) {
	h, err := newBytes(m)
	if err != nil {
		return nil, err
	}
	if err := h.describe(ref); err != nil {
		return nil, err
	}
	key, value, err := h.types(types)
	if err != nil {
		return nil, err
	}
	h.chooseCodecs(key, value)
	h.about.KeyType, h.about.ValueType = h.key.TypeName(), h.value.TypeName()
	return h, nil
}

// newBytes returns a handle that knows no types and no description: enough to
// walk the map.
func newBytes(m *ebpf.Map) (*handle, error) {
	h := &handle{Map: m, kind: kindOf(m.Type()), cpus: 1, stride: int(m.ValueSize())}
	if h.kind.perCPU {
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return nil, fmt.Errorf("count CPUs: %w", err)
		}
		h.cpus, h.stride = cpus, (h.stride+7)&^7
	}
	return h, nil
}

func (h *handle) describe(ref string) error {
	info, err := h.Map.Info()
	if err != nil {
		return fmt.Errorf("read about map %s: %w", ref, err)
	}
	id, _ := info.ID()
	h.called = info.Name
	h.about = Map{
		ID: uint32(id), Type: h.kind.word, Name: info.Name, Ref: ref, Flags: info.Flags,
		BytesKey: info.KeySize, BytesValue: info.ValueSize, MaxEntries: info.MaxEntries,
		Frozen: info.Frozen(), Pinned: []string{},
	}
	if memlock, ok := info.Memlock(); ok {
		h.about.BytesMemlock = &memlock
	}
	if id, ok := info.BTFID(); ok {
		h.about.BTFID = (*uint32)(&id)
	}
	return nil
}

// types reads the BTF types of key and value; nil where there is none. What
// the program's object says stands in for BTF that the kernel doesn't have (it
// takes none for several types of maps, and for arrays indexed by an enum) or
// doesn't give.
func (h *handle) types(source *typeSource) (key, value btf.Type, err error) {
	info, err := infoOf(h.FD())
	if err != nil {
		return nil, nil, fmt.Errorf("read about map %s: %w", h.about.Ref, err)
	}
	if key, value, ok := h.given(); ok {
		return key, value, nil
	}
	if info.keyTypeID == 0 && info.valueTypeID == 0 {
		key, value, _ = source.instead(h)
		return key, value, nil
	}
	spec, err := source.load(info.btfID)
	switch {
	case err == nil:
		return typeByID(spec, info.keyTypeID), typeByID(spec, info.valueTypeID), nil
	case !errors.Is(err, unix.EPERM):
		return nil, nil, fmt.Errorf("read the types of map %s: %w", h.about.Ref, err)
	}
	key, value, ok := source.instead(h)
	if !ok {
		h.notes = append(h.notes, fmt.Sprintf("map %s: its types can't be read without CAP_SYS_ADMIN: keys and values are bytes", h.about.Ref))
	}
	return key, value, nil
}

func (h *handle) chooseCodecs(key, value btf.Type) {
	size := int(h.KeySize())
	switch {
	case h.kind.indexed && size == 4:
		h.key = codec.NewIndex(key)
	case h.Type() == ebpf.LPMTrie:
		h.key = codec.NewPrefix(key, size)
	default:
		h.key = codec.NewKey(key, size)
	}
	h.value = codec.New(value, int(h.ValueSize()))
	h.section = h.isSection(value)
	if h.kind.sockets && h.ValueSize() == 8 {
		h.value = codec.New(cookie, 8)
	}
	if h.kind.holds != "" {
		h.value = codec.NewIndex(nil) // an id
	}
}

// appendValue adds the JSON of a value as the kernel gave it. sum is the part
// of it that adds up a per-CPU value.
func (h *handle) appendValue(dst, b []byte) (out, sum []byte) {
	if !h.kind.perCPU {
		return h.value.Append(dst, b), nil
	}
	out, at := h.value.AppendPerCPU(dst, b, h.stride)
	return out, out[at : len(out)-1]
}

func (h *handle) keyJSON(key []byte) []byte { return h.key.Append(nil, key) }

func (h *handle) valueJSON(value []byte) []byte {
	if value == nil {
		return nil
	}
	doc, _ := h.appendValue(nil, value)
	return doc
}

func (h *handle) parseKey(text string) ([]byte, error) {
	key, err := h.key.Parse(text)
	if err == nil && h.Type() == ebpf.LPMTrie {
		err = checkPrefix(key)
	}
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "key %q of map %s: %w", text, h.about.Ref, err).
			Hint("a key of %s is written %s%s", h.about.Ref, h.key.Form(), h.variableForm())
	}
	return key, nil
}

// readable refuses maps without entries that could be read.
func (h *handle) readable(verb string) error {
	if h.kind.refuses == "" {
		return nil
	}
	return fault.New(fault.ErrUnsupported, "%s map %s: %s has no entries to read: %s", verb, h.about.Ref, h.kind.a(), h.kind.refuses).
		Hint("%s", h.instead())
}

// instead says what to do with a map that has no entries to read.
func (h *handle) instead() string {
	return strings.NewReplacer("{map}", h.about.Ref, "{id}", strconv.FormatUint(uint64(h.about.ID), 10)).Replace(h.kind.hint)
}

// lookup returns the value of a key as the kernel gives it, nil when there is
// none. In an LPM trie that is the value of the longest prefix that matches.
func (h *handle) lookup(key []byte) ([]byte, error) {
	value := make([]byte, h.stride*h.cpus)
	err := element(unix.BPF_MAP_LOOKUP_ELEM, h.FD(), key, value, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, h.explain("read", err)
	}
	return value, nil
}

// explain says what the kernel means by refusing an operation.
func (h *handle) explain(verb string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM) && h.about.Frozen:
		return fault.New(fault.ErrConflict, "%s map %s: it is frozen: nothing outside of the kernel can change it any more", verb, h.about.Ref)
	case errors.Is(err, unix.EPERM):
		return fault.New(fault.ErrPermission, "%s map %s: %w", verb, h.about.Ref, err).Hint("maps are read and written with CAP_BPF")
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, enotsupp):
		return fault.New(fault.ErrUnsupported, "%s map %s: the kernel doesn't allow that for %s", verb, h.about.Ref, h.kind.a())
	case errors.Is(err, unix.ENOSPC):
		return fault.New(fault.ErrUnsupported, "%s map %s: the kernel shows the values of %s only if they have 8 bytes", verb, h.about.Ref, h.kind.a())
	case errors.Is(err, unix.EINVAL) && h.kind.target == "ifindex":
		return fault.New(fault.ErrUsage, "%s map %s: no interface has that ifindex, or the program isn't an XDP program for devmaps", verb, h.about.Ref)
	case errors.Is(err, unix.EINVAL) && h.kind.holds != "":
		return fault.New(fault.ErrUsage, "%s map %s: the %s isn't of the kind that it holds", verb, h.about.Ref, h.kind.holds)
	}
	return fmt.Errorf("%s map %s: %w", verb, h.about.Ref, err)
}
