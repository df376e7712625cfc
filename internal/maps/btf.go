package maps

import (
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/pinned"
)

// typeSource finds the types and the full names of maps.
type typeSource struct {
	store    *Store
	specs    map[uint32]*btf.Spec            // parsed BTF by its id
	objects  map[string]*ebpf.CollectionSpec // by loaded instance; nil: unknown
	pins     func() (map[uint32]pin, error)  // at least those below the root
	programs func() ([]program, error)
}

func (s *Store) types() *typeSource {
	return &typeSource{
		store: s, specs: map[uint32]*btf.Spec{}, objects: map[string]*ebpf.CollectionSpec{},
		pins: sync.OnceValues(s.ownPins), programs: sync.OnceValues(programs),
	}
}

// knownTypes is types for who has read pins and programs already.
func (s *Store) knownTypes(pins map[uint32]pin, all []program) *typeSource {
	t := s.types()
	t.pins = func() (map[uint32]pin, error) { return pins, nil }
	t.programs = func() ([]program, error) { return all, nil }
	return t
}

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

// instead finds the types of a map whose own the kernel doesn't tell: in the
// object that it was loaded from, or in the BTF of a program that uses it.
func (t *typeSource) instead(h *handle) (key, value btf.Type, ok bool) {
	if key, value, ok = t.loadedFrom(h); ok {
		return key, value, true
	}
	found := t.definitions(h)
	if len(found) == 0 || slices.ContainsFunc(found, func(d definition) bool { return d.key != found[0].key || d.value != found[0].value }) {
		return nil, nil, false
	}
	return found[0].key, found[0].value, true
}

// loadedFrom finds the types of a loaded instance's map in its object.
func (t *typeSource) loadedFrom(h *handle) (key, value btf.Type, ok bool) {
	instance, name, ok := t.home(h)
	if !ok {
		return nil, nil, false
	}
	object := t.object(instance)
	if object == nil {
		return nil, nil, false
	}
	m, ok := object.Maps[name]
	if !ok || m.Type != h.Type() || m.KeySize != h.KeySize() || m.ValueSize != h.ValueSize() {
		return nil, nil, false
	}
	return m.Key, m.Value, true
}

// home finds out of which loaded instance a map is, and what it is called there.
func (t *typeSource) home(h *handle) (instance, name string, ok bool) {
	if instance, name, ok = t.store.split(h.about.Ref); ok {
		return instance, name, true
	}
	pins, err := t.pins()
	if err != nil || len(pins[h.about.ID].refs) == 0 {
		return "", "", false
	}
	return t.store.split(pins[h.about.ID].refs[0])
}

// object is what an instance was loaded from, nil when that isn't known.
func (t *typeSource) object(instance string) *ebpf.CollectionSpec {
	object, known := t.objects[instance]
	if !known {
		object = readObject(t.store.root.Spec(instance))
		t.objects[instance] = object
	}
	return object
}

// readObject reads the object that an instance was loaded from, nil when it
// isn't there any more as it was.
func readObject(from pinned.Spec) *ebpf.CollectionSpec {
	if from.Builtin {
		if program, ok := bpf.Lookup(from.Source); ok {
			spec, _ := program.Spec() // without it nothing is known
			return spec
		}
		return nil
	}
	object, err := os.ReadFile(from.Source)
	if err != nil || pinned.Digest(object, from.Parameters) != from.Digest {
		return nil
	}
	spec, _ := bpf.ReadObject(object)
	return spec
}

// definition is what the BTF of an object file says of a map in its section
// ".maps". libbpf loads that BTF as it is, other loaders don't.
type definition struct {
	name       string
	key, value btf.Type // nil: not told
}

// definitions finds those that may have made the map: more than one if their
// names are the same in the kernel, which cuts them, and so are their types.
func (t *typeSource) definitions(h *handle) []definition {
	info, err := infoOf(h.FD())
	if err != nil {
		return nil
	}
	ids := []uint32{info.btfID}
	if info.btfID == 0 {
		all, _ := t.programs() // without them nothing is known
		ids = btfOfUsers(all, info.id)
	}
	for _, id := range ids {
		if spec, err := t.load(id); err == nil {
			if found := definedIn(spec, h, info); len(found) > 0 {
				return found
			}
		}
	}
	return nil
}

// btfOfUsers returns the BTF ids of the programs that use a map.
func btfOfUsers(all []program, id uint32) []uint32 {
	var ids []uint32
	for _, p := range all {
		if p.btfID != 0 && slices.Contains(p.maps, id) && !slices.Contains(ids, p.btfID) {
			ids = append(ids, p.btfID)
		}
	}
	return ids
}

func definedIn(spec *btf.Spec, h *handle, info mapInfo) []definition {
	var found []definition
	for _, v := range mapVariables(spec) {
		if cutName(v.Name) != h.called {
			continue
		}
		d := readDefinition(v)
		if d.fits(h) && (info.keyTypeID == 0 || sameType(spec, d.key, info.keyTypeID) && sameType(spec, d.value, info.valueTypeID)) {
			found = append(found, d)
		}
	}
	return found
}

// mapVariables are the variables of an object file that define its maps.
func mapVariables(spec *btf.Spec) []*btf.Var {
	var section *btf.Datasec
	if err := spec.TypeByName(".maps", &section); err != nil {
		return nil
	}
	var all []*btf.Var
	for _, v := range section.Vars {
		if variable, ok := v.Type.(*btf.Var); ok {
			all = append(all, variable)
		}
	}
	return all
}

// cutName is what the kernel keeps of a map's name.
func cutName(name string) string { return name[:min(len(name), unix.BPF_OBJ_NAME_LEN-1)] }

// readDefinition reads a variable of the section: a struct whose members key
// and value are pointers to the types.
func readDefinition(v *btf.Var) definition {
	d := definition{name: v.Name}
	s, ok := btf.UnderlyingType(v.Type).(*btf.Struct)
	if !ok {
		return d
	}
	for _, m := range s.Members {
		pointer, ok := btf.UnderlyingType(m.Type).(*btf.Pointer)
		switch {
		case ok && m.Name == "key":
			d.key = pointer.Target
		case ok && m.Name == "value":
			d.value = pointer.Target
		}
	}
	return d
}

// fits says whether the sizes are those of the map.
func (d definition) fits(h *handle) bool {
	return sizeFits(d.key, h.KeySize()) && (sizeFits(d.value, h.ValueSize()) || h.kind.holds != "")
}

func sizeFits(t btf.Type, size uint32) bool {
	if t == nil {
		return true
	}
	n, err := btf.Sizeof(t)
	return err == nil && uint32(n) == size
}

func sameType(spec *btf.Spec, t btf.Type, id uint32) bool {
	if t == nil {
		return id == 0
	}
	own, err := spec.TypeID(t)
	return err == nil && uint32(own) == id
}

// fullNames returns the names in the object file that the map may have been
// made from; none when nothing tells.
func (t *typeSource) fullNames(h *handle) []string {
	if len(h.called) < unix.BPF_OBJ_NAME_LEN-1 {
		return nil
	}
	var names []string
	for _, d := range t.definitions(h) {
		names = append(names, d.name)
	}
	return names
}

// typeByID returns nil for a type that isn't there.
func typeByID(spec *btf.Spec, id uint32) btf.Type {
	t, err := spec.TypeByID(btf.TypeID(id))
	if err != nil || id == 0 {
		return nil
	}
	return t
}
