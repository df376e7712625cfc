package maps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Store is the kernel's maps.
type Store struct {
	LockTimeout time.Duration // how long Events waits for others that begin to read
	root        pinned.Root
}

var _ API = (*Store)(nil)

// New returns the store whose "NAME/MAP" references are resolved below root, a
// directory in bpffs; empty means pinned.DefaultRoot. It doesn't touch the
// kernel.
func New(root string) *Store {
	if root == "" {
		root = pinned.DefaultRoot
	}
	return &Store{LockTimeout: pinned.DefaultLockTimeout, root: pinned.Root(root)}
}

// open resolves a reference. For reading it asks for no more than that.
func (s *Store) open(ref string, readOnly bool) (*handle, error) {
	ref, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	m, err := s.openMap(ref, readOnly)
	if err != nil {
		return nil, err
	}
	h, err := newHandle(m, ref, s.types())
	if err != nil {
		m.Close()
		return nil, err
	}
	if _, name, ok := s.split(ref); ok {
		h.about.Name = name
	}
	return h, nil
}

// openMap opens what a reference without name: names.
func (s *Store) openMap(ref string, readOnly bool) (*ebpf.Map, error) {
	if number, ok := strings.CutPrefix(ref, idPrefix); ok {
		return s.openID(ref, number, readOnly)
	}
	path, err := s.path(ref)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(ref, "/") {
		if err := s.root.Check(); err != nil {
			return nil, fmt.Errorf("open map %s: %w", ref, err)
		}
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: readOnly})
	if err != nil {
		return nil, s.openError(ref, path, err)
	}
	return m, nil
}

// openID opens a map by its id, without the capability for that by its pin.
func (s *Store) openID(ref, number string, readOnly bool) (*ebpf.Map, error) {
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "open map %q: the id is not a number", ref)
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if errors.Is(err, unix.EPERM) {
		if pins, pinsErr := s.pins(); pinsErr == nil && len(pins[uint32(id)].paths) > 0 {
			return s.openMap(pins[uint32(id)].paths[0], readOnly)
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.ErrNotFound, "open map %s: no map has that id", ref).Hint("bpfnet map list shows all maps")
	case err != nil:
		return nil, fmt.Errorf("open map %s: %w", ref, probe.Explain(probe.OpListByID, err))
	}
	return m, nil
}

// split takes "NAME/MAP" apart.
func (s *Store) split(ref string) (instance, name string, ok bool) {
	instance, name, ok = strings.Cut(ref, "/")
	return instance, name, ok && instance != "" && name != ""
}

func (s *Store) path(ref string) (string, error) {
	if strings.HasPrefix(ref, "/") {
		return filepath.Clean(ref), nil
	}
	instance, name, ok := s.split(ref)
	if !ok {
		err := fault.New(fault.ErrUsage, "map %q: it must be NAME/MAP, id:N, name:NAME or the path of a pin", ref)
		return "", s.suggest(err, "/"+ref)
	}
	return s.root.Path(instance, pinned.Maps, name), nil
}

func (s *Store) openError(ref, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s.suggest(fault.New(fault.ErrNotFound, "open map %s: no such map", ref), ref)
	case errors.Is(pinned.Root(path).Check(), pinned.ErrNotBPFFS):
		return fault.New(fault.ErrUsage, "open map %s: %s is not on bpffs", ref, path)
	case !isFile(path), strings.Contains(err.Error(), "is not a Map"):
		return fault.New(fault.ErrUsage, "open map %s: %s is not a map", ref, path)
	case errors.Is(err, fs.ErrPermission):
		if denied := probe.Explain(probe.OpOpenPin, err); errors.Is(denied, fault.ErrPermission) {
			return fmt.Errorf("open map %s: %w", ref, denied)
		}
		return fault.New(fault.ErrPermission, "open map %s: %w", ref, err).Hint("the file is %s", path)
	}
	return fmt.Errorf("open map %s: %w", ref, err)
}

// isFile says whether path is a file, as pins are; true when it can't be told.
func isFile(path string) bool {
	info, err := os.Stat(path)
	return err != nil || info.Mode().IsRegular()
}

// suggest adds the maps that could have been meant: those of the same name,
// else those of the same instance, else all, the most similar ones first.
func (s *Store) suggest(err *fault.Error, ref string) error {
	refs, listErr := s.Pinned()
	if listErr != nil || len(refs) == 0 {
		return err
	}
	instance, name, _ := strings.Cut(ref, "/")
	refs = nearest.First(name, refs, path.Base)
	for _, near := range []func(string) bool{
		func(r string) bool { return strings.HasSuffix(r, "/"+name) },
		func(r string) bool { return strings.HasPrefix(r, instance+"/") },
		func(string) bool { return true },
	} {
		if found := filter(refs, near); len(found) > 0 {
			return err.Hint("maps: %s", strings.Join(found, ", "))
		}
	}
	return err
}

func filter(refs []string, keep func(string) bool) []string {
	const most = 10
	var found []string
	for _, ref := range refs {
		if len(found) < most && keep(ref) {
			found = append(found, ref)
		}
	}
	return found
}

// Pinned implements API.
func (s *Store) Pinned() ([]string, error) {
	names, err := s.root.Names()
	if err != nil {
		return nil, err
	}
	var refs []string
	for _, instance := range names {
		maps, err := s.root.List(instance, pinned.Maps)
		if err != nil {
			return nil, err
		}
		for _, name := range maps {
			refs = append(refs, instance+"/"+name)
		}
	}
	return refs, nil
}

// Show implements API.
func (s *Store) Show(_ context.Context, ref string) (Map, error) {
	h, err := s.open(ref, true)
	if err != nil {
		return Map{}, err
	}
	defer h.Close()
	pins, err := s.pins()
	if err != nil {
		return Map{}, err
	}
	all, err := programs()
	if err != nil {
		return Map{}, err
	}
	types := s.knownTypes(pins, all)
	h.complete(pins[h.about.ID], types, all)
	if path := filepath.Clean(ref); strings.HasPrefix(ref, "/") && !slices.Contains(h.about.Pinned, path) {
		h.about.Pinned = append(h.about.Pinned, path)
	}
	return h.about, nil
}

// complete adds what the map itself doesn't tell: where it is pinned, what it is
// called in full, and which programs use it.
func (h *handle) complete(p pin, types *typeSource, all []program) {
	p.name(h, types)
	if h.kind.fixed {
		h.about.Fill, _ = h.count(context.Background())
	}
	if all == nil {
		return
	}
	h.about.ProgIDs = []uint32{}
	for _, program := range all {
		if slices.Contains(program.maps, h.about.ID) {
			h.about.ProgIDs = append(h.about.ProgIDs, program.id)
		}
	}
}

// List implements API.
func (s *Store) List(ctx context.Context) (Listing, error) {
	pins, err := s.pins()
	if err != nil {
		return Listing{}, err
	}
	open, notes, err := s.listed(pins)
	if err != nil {
		return Listing{}, err
	}
	all, err := programs()
	if err != nil {
		return Listing{}, err
	}
	list := Listing{Maps: []Map{}, Notes: notes}
	types := s.knownTypes(pins, all)
	for _, o := range open {
		if err := ctx.Err(); err != nil {
			return Listing{}, err
		}
		m, err := o.describe(pins, types, all)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fault.ErrNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return Listing{}, err
		}
		list.Maps = append(list.Maps, m)
	}
	sort.Slice(list.Maps, func(i, j int) bool { return list.Maps[i].ID < list.Maps[j].ID })
	return list, nil
}

// listedMap is a map that List describes.
type listedMap struct {
	ref  string
	open func() (*ebpf.Map, error)
}

// listed returns every map: those of the kernel, or without the capability to
// walk them those that are pinned.
func (s *Store) listed(pins map[uint32]pin) (all []listedMap, notes []string, err error) {
	for id := ebpf.MapID(0); ; {
		id, err = ebpf.MapGetNextID(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return all, nil, nil
		case errors.Is(err, unix.EPERM):
			return s.listedPins(pins), []string{"only pinned maps are listed: listing all of them takes CAP_SYS_ADMIN"}, nil
		case err != nil:
			return nil, nil, fmt.Errorf("list maps: %w", err)
		}
		m := listedMap{reference(uint32(id)), func() (*ebpf.Map, error) { return ebpf.NewMapFromID(id) }}
		if p, ok := pins[uint32(id)]; ok {
			m.ref = p.refs[0]
		}
		all = append(all, m)
	}
}

func (s *Store) listedPins(pins map[uint32]pin) (all []listedMap) {
	for _, p := range pins {
		ref := p.refs[0]
		all = append(all, listedMap{ref, func() (*ebpf.Map, error) { return s.openMap(ref, true) }})
	}
	return all
}

func (l listedMap) describe(pins map[uint32]pin, types *typeSource, all []program) (Map, error) {
	m, err := l.open()
	if err != nil {
		return Map{}, fmt.Errorf("list map %s: %w", l.ref, err)
	}
	defer m.Close()
	h, err := newHandle(m, l.ref, types)
	if err != nil {
		return Map{}, err
	}
	h.complete(pins[h.about.ID], types, all)
	return h.about, nil
}
