package maps

import (
	"strings"

	"github.com/cilium/ebpf/btf"

	"bpfnet/bpf"
	"bpfnet/pinned"
)

// typeSource finds the types of maps.
type typeSource struct {
	root  pinned.Root
	specs map[uint32]*btf.Spec // parsed BTF by its id
}

func (s *Store) types() *typeSource { return &typeSource{s.root, map[uint32]*btf.Spec{}} }

// load reads BTF from the kernel, which takes CAP_SYS_ADMIN.
func (t *typeSource) load(id uint32) (*btf.Spec, error) {
	if spec, ok := t.specs[id]; ok {
		return spec, nil
	}
	handle, err := btf.NewHandleFromID(btf.ID(id))
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err == nil {
		t.specs[id] = spec
	}
	return spec, err
}

// builtin finds the types of a built-in program's map in its object.
func (t *typeSource) builtin(h *handle) (key, value btf.Type, ok bool) {
	instance, name, ok := strings.Cut(h.about.Ref, "/")
	if !ok || instance == "" {
		return nil, nil, false
	}
	made := t.root.Spec(instance)
	program, ok := bpf.Lookup(made.Source)
	if !ok || !made.Builtin {
		return nil, nil, false
	}
	spec, err := program.Spec()
	if err != nil {
		return nil, nil, false
	}
	m, ok := spec.Maps[name]
	if !ok || m.Type != h.Type() || m.KeySize != h.KeySize() || m.ValueSize != h.ValueSize() {
		return nil, nil, false
	}
	return m.Key, m.Value, true
}

// typeByID returns nil for a type that isn't there.
func typeByID(spec *btf.Spec, id uint32) btf.Type {
	t, err := spec.TypeByID(btf.TypeID(id))
	if err != nil || id == 0 {
		return nil
	}
	return t
}
