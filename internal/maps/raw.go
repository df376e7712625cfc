package maps

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Raw is an open map whose bytes and types are as the kernel has them, for
// packages that print them in a form of their own.
type Raw struct {
	Info RawInfo
	h    *handle
	s    *Store
}

// RawInfo is what the kernel tells about a map.
type RawInfo struct {
	ID                      uint32
	Type                    ebpf.MapType
	Name                    string // at most 15 bytes; "" when it has none
	Flags                   uint32
	KeySize, ValueSize      uint32 // bytes
	MaxEntries              uint32
	BTF, KeyType, ValueType uint32 // ids; 0: none
	KernelValueType         uint32 // id in the kernel's own BTF; 0: none
	PerCPU                  bool
	CPUs, Stride            int  // values of an entry, and bytes from one to the next
	HoldsObjects            bool // values are ids of maps or programs
}

// OpenRaw opens a map for reading; close it when done.
func (s *Store) OpenRaw(ref string) (*Raw, error) {
	ref, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	m, err := s.openMap(ref, true)
	if err != nil {
		return nil, err
	}
	r, err := s.raw(m, ref)
	if err != nil {
		m.Close()
		return nil, err
	}
	return r, nil
}

// OpenRawQueue opens a queue or stack, for Next to read its elements or to take
// them out; close it when done.
func (s *Store) OpenRawQueue(ref string, take bool) (*Raw, error) {
	h, err := s.openQueue("read", ref, !take)
	if err != nil {
		return nil, err
	}
	if h.isFilter() {
		h.Close()
		return nil, fault.New(fault.ErrUnsupported, "read map %s: %s has no next element", ref, h.kind.a()).
			Hint("bpfnet map peek %s VALUE asks whether a value may be in it", ref)
	}
	r, err := s.raw(h.Map, ref)
	if err != nil {
		h.Close()
		return nil, err
	}
	return r, nil
}

// Next returns the next element of a queue or stack; with take it takes it out.
// fault.ErrNotFound says that there is none.
func (r *Raw) Next(take bool) ([]byte, error) {
	if take {
		return r.h.next("pop from", unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM)
	}
	return r.h.next("peek into", unix.BPF_MAP_LOOKUP_ELEM)
}

func (s *Store) raw(m *ebpf.Map, ref string) (*Raw, error) {
	h, err := newBytes(m)
	if err != nil {
		return nil, err
	}
	i, err := infoOf(m.FD())
	if err != nil {
		return nil, fmt.Errorf("read about map %s: %w", ref, err)
	}
	h.called = unix.ByteSliceToString(i.name[:])
	h.about.Ref, h.about.ID = ref, i.id
	return &Raw{h: h, s: s, Info: RawInfo{
		ID: i.id, Type: ebpf.MapType(i.kind), Name: h.called, Flags: i.flags,
		KeySize: i.keySize, ValueSize: i.valueSize, MaxEntries: i.maxEntries,
		BTF: i.btfID, KeyType: i.keyTypeID, ValueType: i.valueTypeID, KernelValueType: i.kernelTypeID,
		PerCPU: h.kind.perCPU, CPUs: h.cpus, Stride: h.stride, HoldsObjects: h.kind.holds != "",
	}}, nil
}

// Close closes the map.
func (r *Raw) Close() error { return r.h.Close() }

// FD returns the descriptor of the map.
func (r *Raw) FD() int { return r.h.FD() }

// Types returns the BTF types of keys and values, nil where the map has none.
// Reading them takes CAP_SYS_ADMIN.
func (r *Raw) Types() (key, value btf.Type, err error) {
	if id := r.Info.KernelValueType; id != 0 {
		spec, err := btf.LoadKernelSpec()
		if err != nil {
			return nil, nil, fmt.Errorf("read the kernel's types: %w", err)
		}
		return nil, typeByID(spec, id), nil
	}
	if r.Info.BTF == 0 {
		return nil, nil, nil
	}
	spec, err := r.s.types().load(r.Info.BTF)
	if errors.Is(err, unix.EPERM) {
		return nil, nil, fault.New(fault.ErrPermission, "read the types of map %s: %w", r.h.about.Ref, err).Hint("reading BTF takes CAP_SYS_ADMIN")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the types of map %s: %w", r.h.about.Ref, err)
	}
	return typeByID(spec, r.Info.KeyType), typeByID(spec, r.Info.ValueType), nil
}

// ParseKey turns the text of a key, as package codec describes it, into bytes.
func (r *Raw) ParseKey(text string) ([]byte, error) {
	if err := r.loadCodecs(); err != nil {
		return nil, err
	}
	return r.h.parseKey(text)
}

func (r *Raw) loadCodecs() error {
	if r.h.key != nil {
		return nil
	}
	key, value, err := r.h.types(r.s.types())
	if err != nil {
		return err
	}
	r.h.chooseCodecs(key, value)
	return nil
}

// Lookup returns the value of a key as the kernel gives it, nil when there is
// none. In an LPM trie that is the value of the longest prefix that matches.
func (r *Raw) Lookup(key []byte) ([]byte, error) { return r.h.lookup(key) }

// Walk visits the entries that request asks for, like the function Walk, but
// also the keys whose value the kernel doesn't give, with the reason and a nil
// value.
func (r *Raw) Walk(ctx context.Context, request DumpRequest, visit func(key, value []byte, refused error) error) error {
	if request.Match != "" || request.Limit > 0 {
		chosen, err := r.chosen(request, visit)
		if err != nil {
			return err
		}
		if err := r.walk(ctx, chosen); !errors.Is(err, errEnough) {
			return err
		}
		return nil
	}
	return r.walk(ctx, visit)
}

// chosen leaves out the entries that request doesn't ask for, and ends with
// errEnough.
func (r *Raw) chosen(request DumpRequest, visit rawVisitor) (rawVisitor, error) {
	match, err := matcher(request.Match)
	if err != nil {
		return nil, err
	}
	if err := r.loadCodecs(); err != nil {
		return nil, err
	}
	var text []byte
	var count uint64
	return func(key, value []byte, refused error) error {
		text = r.h.key.Append(text[:0], key)
		if !match(key, text) {
			return nil
		}
		if err := visit(key, value, refused); err != nil {
			return err
		}
		if count++; count == request.Limit {
			return errEnough
		}
		return nil
	}, nil
}

func (r *Raw) walk(ctx context.Context, visit rawVisitor) error {
	if r.h.kind.batch {
		return r.h.walk(ctx, func(key, value []byte) error { return visit(key, value, nil) })
	}
	if r.h.kind.hashed {
		visit = onlyOnceRaw(visit)
	}
	return r.walkKeys(ctx, visit)
}

type rawVisitor func(key, value []byte, refused error) error

func onlyOnceRaw(visit rawVisitor) rawVisitor {
	seen := make(map[string]struct{})
	return func(key, value []byte, refused error) error {
		if _, again := seen[string(key)]; again {
			return nil
		}
		seen[string(key)] = struct{}{}
		return visit(key, value, refused)
	}
}

func (r *Raw) walkKeys(ctx context.Context, visit rawVisitor) error {
	var key []byte
	next := make([]byte, r.Info.KeySize)
	value := make([]byte, r.Info.Stride*r.Info.CPUs)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := element(unix.BPF_MAP_GET_NEXT_KEY, r.h.FD(), key, next, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return r.cannotWalk(err)
		}
		key = append(key[:0], next...)
		if err := r.visitKey(key, value, visit); err != nil {
			return err
		}
	}
}

func (r *Raw) visitKey(key, value []byte, visit rawVisitor) error {
	if err := element(unix.BPF_MAP_LOOKUP_ELEM, r.h.FD(), key, value, 0); err != nil {
		return visit(key, nil, err)
	}
	return visit(key, value, nil)
}

// cannotWalk says why a map has no keys to walk.
func (r *Raw) cannotWalk(err error) error {
	if refused := r.h.readable("dump"); refused != nil {
		return refused
	}
	return r.h.explain("dump", err)
}

// TypeWord is bpftool's word for a map type; ok is false when it has none.
func TypeWord(t ebpf.MapType) (word string, ok bool) {
	k, ok := kinds[t]
	return k.word, ok
}
