package maps

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// The beginnings of references that aren't paths.
const (
	idPrefix   = "id:"
	namePrefix = "name:"
)

// reference is how to name a map that isn't pinned.
func reference(id uint32) string { return idPrefix + strconv.FormatUint(uint64(id), 10) }

// pin is where a map is pinned.
type pin struct {
	refs  []string // to name it by: those below the root are NAME/MAP, others paths
	paths []string
}

// name fills in what a map is called after its pins, or else after its BTF.
func (p pin) name(h *handle, types *typeSource) {
	m := &h.about
	m.Pinned = append(m.Pinned, p.paths...)
	if len(p.refs) > 0 {
		if strings.HasPrefix(m.Ref, idPrefix) {
			m.Ref = p.refs[0]
		}
		if instance, name, _ := strings.Cut(p.refs[0], "/"); instance != "" {
			m.Name = name
			return
		}
	}
	names := types.fullNames(h)
	for _, path := range p.paths {
		if base := filepath.Base(path); len(names) == 0 && h.isCutFrom(base) {
			names = append(names, base)
		}
	}
	if len(names) == 1 {
		m.Name = names[0]
	}
}

// isCutFrom says whether the kernel's name for the map is what it keeps of a
// longer one.
func (h *handle) isCutFrom(name string) bool {
	return len(name) >= unix.BPF_OBJ_NAME_LEN && cutName(name) == h.called
}

// ownPins finds the maps that are pinned below the root, by id.
func (s *Store) ownPins() (map[uint32]pin, error) {
	refs, err := s.Pinned()
	if err != nil {
		return nil, err
	}
	pins := make(map[uint32]pin, len(refs))
	for _, ref := range refs {
		path, _ := s.path(ref)
		id, err := pinnedID(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, s.openError(ref, path, err)
		}
		p := pins[id]
		pins[id] = pin{append(p.refs, ref), append(p.paths, path)}
	}
	return pins, nil
}

// pins finds the maps that are pinned, by id: below the root, and as far as they
// can be opened everywhere in the bpffs that is mounted where it always is.
func (s *Store) pins() (map[uint32]pin, error) {
	pins, err := s.ownPins()
	if err != nil {
		return nil, err
	}
	_ = filepath.WalkDir(pinned.MountPoint, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // what may not be read has no pins for us
		case entry.IsDir() && path == filepath.Clean(string(s.root)):
			return filepath.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		if id, err := pinnedID(path); err == nil {
			p := pins[id]
			pins[id] = pin{append(p.refs, path), append(p.paths, path)}
		}
		return nil
	})
	return pins, nil
}

// pinnedID returns the id of the map that is pinned at path.
func pinnedID(path string) (uint32, error) {
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer m.Close()
	info, err := infoOf(m.FD())
	return info.id, err
}

// resolve turns name:NAME, and a bare word as well, into the reference of the
// one map that is called that. Other references are returned as they are.
func (s *Store) resolve(ref string) (string, error) {
	name, named := strings.CutPrefix(ref, namePrefix)
	if ref == "" || !named && (strings.Contains(ref, "/") || strings.HasPrefix(ref, idPrefix)) {
		return ref, nil
	}
	if name == "" {
		return "", fault.New(fault.ErrUsage, "open map %q: the name is missing", ref)
	}
	found, err := s.called(name)
	if err != nil {
		return "", fmt.Errorf("open map %s: %w", ref, err)
	}
	switch len(found) {
	case 0:
		return "", s.notCalled(ref, name)
	case 1:
		return found[0].ref, nil
	}
	return "", fault.New(fault.ErrUsage, "open map %s: %d maps are called that", ref, len(found)).
		Hint("name one of them: %s", candidates(found))
}

func (s *Store) notCalled(ref, name string) error {
	err := fault.New(fault.ErrNotFound, "open map %s: no map is called that", ref)
	if id, numberErr := strconv.ParseUint(name, 10, 32); numberErr == nil {
		return err.Hint("the map with that id is %s", reference(uint32(id)))
	}
	return s.suggest(err, "/"+name)
}

// candidate is a map that a name may mean.
type candidate struct {
	id   uint32
	ref  string
	kind string // the map's type
}

func candidates(found []candidate) string {
	words := make([]string, len(found))
	for i, c := range found {
		what := c.ref
		if strings.HasPrefix(c.ref, idPrefix) {
			what = c.kind
		}
		words[i] = fmt.Sprintf("%s (%s)", reference(c.id), what)
	}
	return strings.Join(words, ", ")
}

// called finds the maps of that name, sorted by id: the name in the kernel, of a
// pin, or in the object file. Without the capability to list all maps it finds
// pinned ones.
func (s *Store) called(name string) ([]candidate, error) {
	pins, err := s.pins()
	if err != nil {
		return nil, err
	}
	var found []candidate
	types := s.types()
	err = bpfsys.Maps.Each(func(id uint32, fd int) error {
		c, ok, err := types.candidate(name, pins[id], fd)
		if ok {
			found = append(found, c)
		}
		return err
	})
	if errors.Is(err, unix.EPERM) {
		return types.pinnedAs(name, pins)
	}
	return found, err
}

// pinnedAs finds those of the pinned maps.
func (t *typeSource) pinnedAs(name string, pins map[uint32]pin) ([]candidate, error) {
	var found []candidate
	for _, p := range pins {
		m, err := ebpf.LoadPinnedMap(p.paths[0], &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			continue // removed meanwhile
		}
		c, ok, err := t.candidate(name, p, m.FD())
		m.Close()
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, c)
		}
	}
	slices.SortFunc(found, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
	return found, nil
}

// candidate says whether a name may mean the map that is open as fd.
func (t *typeSource) candidate(name string, p pin, fd int) (candidate, bool, error) {
	info, err := infoOf(fd)
	if err != nil {
		return candidate{}, false, err
	}
	c := candidate{info.id, reference(info.id), TypeName(ebpf.MapType(info.kind))}
	if len(p.refs) > 0 {
		c.ref = p.refs[0]
	}
	kernel := unix.ByteSliceToString(info.name[:])
	pinName := func(path string) bool { return pinned.Decode(filepath.Base(path)) == name }
	if kernel == name || slices.ContainsFunc(p.paths, pinName) {
		return c, true, nil
	}
	if len(name) < unix.BPF_OBJ_NAME_LEN || kernel != cutName(name) {
		return c, false, nil
	}
	return c, t.mayBeCalled(name, info, p), nil
}

// mayBeCalled says whether a map that has the beginning of a name in the kernel
// may have it in full: its BTF or its pins say so, or nothing tells.
func (t *typeSource) mayBeCalled(name string, info mapInfo, p pin) bool {
	m, err := ebpf.NewMapFromID(ebpf.MapID(info.id))
	if err != nil {
		return true
	}
	defer m.Close()
	h, err := newBytes(m)
	if err != nil {
		return true
	}
	h.called = cutName(name)
	names := t.fullNames(h)
	if len(names) > 0 {
		return slices.Contains(names, name)
	}
	for _, path := range p.paths {
		if h.isCutFrom(pinned.Decode(filepath.Base(path))) {
			return false // it is called that
		}
	}
	return true
}
