package maps

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
)

// recordType is the type of a map's records, nil for bytes, and why.
type recordType struct {
	t     btf.Type
	notes []string
}

// eventType finds the type of the records. Ring buffers and perf event arrays
// carry none in the kernel.
func (s *Store) eventType(h *handle, r EventsRequest) (recordType, error) {
	name, instances, err := s.pinnedAs(h)
	if err != nil {
		return recordType{}, err
	}
	specs, denied, err := s.eventBTF(h, r, instances)
	if err != nil {
		return recordType{}, err
	}
	if r.Type != "" {
		t, err := namedType(specs, r.Type, denied)
		return recordType{t: t}, err
	}
	for _, spec := range specs {
		if t := declaredType(spec, name, h.Type() == ebpf.PerfEventArray); t != nil {
			return recordType{t: t}, nil
		}
	}
	for _, spec := range specs {
		if t := namesakeType(spec, name); t != nil {
			return recordType{t: t}, nil
		}
	}
	return recordType{notes: []string{untyped(h.about.Ref, specs, denied)}}, nil
}

// pinnedAs returns what the map is called and the instances that it is pinned
// in.
func (s *Store) pinnedAs(h *handle) (name string, instances []string, err error) {
	if instance, name, ok := s.split(h.about.Ref); ok {
		return name, []string{instance}, nil
	}
	pins, err := s.pins()
	if err != nil {
		return "", nil, err
	}
	name = h.about.Name
	for _, ref := range pins[h.about.ID].refs {
		var instance string
		instance, name, _ = strings.Cut(ref, "/")
		instances = append(instances, instance)
	}
	return name, instances, nil
}

// eventBTF collects where the type may be: the object that was given, else the
// programs that use the map and the objects that it was loaded from. denied:
// those of programs may not be read.
func (s *Store) eventBTF(h *handle, r EventsRequest, instances []string) (specs []*btf.Spec, denied bool, err error) {
	if r.BTF != nil {
		spec, err := bpf.ReadTypes(r.BTF)
		if err != nil {
			return nil, false, fault.New(fault.ErrUsage, "read types from %q: %w", r.From, err).Hint("compile it with clang -g")
		}
		return []*btf.Spec{spec}, false, nil
	}
	types := s.types()
	specs, denied, err = types.ofUsers(h.about.ID)
	for _, instance := range instances {
		if object := types.object(instance); object != nil && object.Types != nil {
			specs = append(specs, object.Types)
		}
	}
	return specs, denied, err
}

// ofUsers returns the BTF of the programs that use a map. denied: it, or which
// programs those are, may not be read.
func (t *typeSource) ofUsers(mapID uint32) (specs []*btf.Spec, denied bool, err error) {
	all, err := t.programs()
	if err != nil || all == nil {
		return nil, all == nil, err
	}
	for _, id := range btfOfUsers(all, mapID) {
		spec, err := t.load(id)
		switch {
		case err == nil:
			specs = append(specs, spec)
		case errors.Is(err, unix.EPERM):
			denied = true
		case !errors.Is(err, fs.ErrNotExist): // else its program was unloaded meanwhile
			return nil, false, fmt.Errorf("read BTF %d: %w", id, err)
		}
	}
	return specs, denied, nil
}

// slotSize is the size of a value of a perf event array: a descriptor.
const slotSize = 4

// declaredType returns the type that the definition of the map in C says:
// __type(value, struct event). That of a perf event array is mostly the one of
// its slots.
func declaredType(spec *btf.Spec, name string, perf bool) btf.Type {
	for _, v := range mapVariables(spec) {
		if v.Name != name && cutName(v.Name) != name {
			continue
		}
		t := readDefinition(v).value
		if t == nil {
			continue
		}
		if size := sizeOf(t); size > 0 && !(perf && size == slotSize) {
			return t
		}
	}
	return nil
}

// namesakeType returns the structure that is called like the map, if there is
// just one: of the map events that is struct event, events, event_t or events_t.
func namesakeType(spec *btf.Spec, name string) btf.Type {
	stem := func(s string) string { return strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(s), "_t"), "s") }
	var found btf.Type
	for _, t := range structures(spec) {
		if stem(t.TypeName()) != stem(name) {
			continue
		}
		if found != nil {
			return nil
		}
		found = t
	}
	return found
}

// structures are the types that records may have, sorted by name: structs and
// typedefs of structs without a name.
func structures(spec *btf.Spec) []btf.Type {
	var all []btf.Type
	for t, err := range spec.All() {
		if err != nil {
			return all
		}
		switch t := t.(type) {
		case *btf.Struct:
			if t.Name != "" && t.Size > 0 {
				all = append(all, t)
			}
		case *btf.Typedef:
			if s, ok := btf.UnderlyingType(t).(*btf.Struct); ok && s.Name == "" && s.Size > 0 {
				all = append(all, t)
			}
		}
	}
	return all
}

func sizeOf(t btf.Type) int {
	size, err := btf.Sizeof(t)
	if err != nil {
		return 0
	}
	return size
}

// namedType finds a type by its C name, "struct event" or "event".
func namedType(specs []*btf.Spec, name string, denied bool) (btf.Type, error) {
	keyword, bare, ok := strings.Cut(name, " ")
	if !ok {
		keyword, bare = "", name
	}
	for _, spec := range specs {
		types, err := spec.AnyTypesByName(strings.TrimSpace(bare))
		if err != nil {
			continue // it isn't there
		}
		for _, t := range types {
			if sizeOf(t) > 0 && (keyword == "" || strings.HasPrefix(codec.TypeName(t), keyword+" ")) {
				return t, nil
			}
		}
	}
	err := fault.New(fault.ErrUsage, "type %q of the records: no such type", name)
	return nil, err.Hint("%s", typeHint(specs, bare, denied))
}

// untyped says why records are shown as bytes, and what to do about it.
func untyped(ref string, specs []*btf.Spec, denied bool) string {
	return fmt.Sprintf("the type of the records of map %s isn't known, so they are bytes; %s", ref, typeHint(specs, "", denied))
}

// typeHint lists the types that --type takes, those first that look like the
// one that was meant.
func typeHint(specs []*btf.Spec, meant string, denied bool) string {
	var names []string
	for _, spec := range specs {
		for _, t := range structures(spec) {
			names = append(names, codec.TypeName(t))
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if near := filter(names, func(n string) bool { return looksLike(n, meant) }); meant != "" && len(near) > 0 {
		names = near
	}
	switch {
	case len(names) > 0:
		return "--type takes one of: " + strings.Join(filter(names, func(string) bool { return true }), ", ")
	case denied:
		return "the types of programs can't be read without CAP_SYS_ADMIN; --btf FILE.o --type NAME takes them from an object file"
	}
	return "--btf FILE.o --type NAME takes it from an object file"
}

// looksLike compares the beginnings of two names.
func looksLike(name, meant string) bool {
	_, bare, ok := strings.Cut(name, " ")
	if !ok {
		bare = name
	}
	beginning := meant[:min(2, len(meant))]
	return strings.Contains(bare, meant) || strings.HasPrefix(bare, beginning)
}
