package datapath

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// Shared are the open maps of a group. The maps that its maps of maps hold are
// pinned beside them, so that they can be opened without CAP_SYS_ADMIN.
type Shared struct {
	dir  string
	maps map[string]*ebpf.Map

	// inner has what was found in maps of maps, by its pin: to look into one, old
	// kernels wait for all programs that run (5.10).
	inner map[string]*ebpf.Map
}

// Close closes the maps.
func (s *Shared) Close() {
	if s != nil {
		closeMaps(s.maps)
	}
}

// Map returns a map of the group; it stays open until Close. Ring buffers aren't
// among them: who has one open is taken for its reader.
func (s *Shared) Map(name string) *ebpf.Map { return s.maps[name] }

// Open opens what is pinned as a map of the group now, for the caller to close.
// fs.ErrNotExist says that it is gone.
func (s *Shared) Open(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(s.dir, name), nil)
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", name, probe.Explain(probe.OpOpenPin, err))
	}
	return m, nil
}

// closeRecords closes the ring buffers.
func (s *Shared) closeRecords() {
	for name, m := range s.maps {
		if m.Type() == ebpf.RingBuf {
			m.Close()
			delete(s.maps, name)
		}
	}
}

// Inner returns the map that is in an entry of a map of maps, nil if there is
// none; it stays open until Close.
func (s *Shared) Inner(outer string, index uint32) (*ebpf.Map, error) {
	if m, known := s.inner[innerPin(outer, index)]; known {
		return m, nil
	}
	m, err := s.findInner(outer, index)
	if err == nil {
		s.know(outer, index, m)
	}
	return m, err
}

// HasPin says whether a map is pinned that is, or was, in an entry of a map of maps:
// whoever puts one there pins it before.
func (s *Shared) HasPin(outer string, index uint32) bool {
	return s.maps[innerPin(outer, index)] != nil || s.maps[nextPin(outer, index)] != nil
}

// know remembers what is in an entry of a map of maps, nil for nothing.
func (s *Shared) know(outer string, index uint32, m *ebpf.Map) {
	if s.inner == nil {
		s.inner = map[string]*ebpf.Map{}
	}
	s.inner[innerPin(outer, index)] = m
}

func (s *Shared) findInner(outer string, index uint32) (*ebpf.Map, error) {
	var id uint32
	err := s.maps[outer].Lookup(index, &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read map %s: %w", outer, err)
	}
	for _, pin := range []string{innerPin(outer, index), nextPin(outer, index)} {
		if m := s.maps[pin]; m != nil && hasID(m, id) {
			return m, nil
		}
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return nil, fmt.Errorf("open map %d of %s: %w", id, outer, probe.Explain(probe.OpListByID, err))
	}
	s.maps[fmt.Sprintf("id:%d", id)] = m
	return m, nil
}

// SetInner puts a map into an entry of a map of maps, in one step for programs:
// once it returns, none uses the map that was there. The Shared closes m.
func (s *Shared) SetInner(outer string, index uint32, m *ebpf.Map) error {
	pin, next := innerPin(outer, index), nextPin(outer, index)
	if err := removePin(filepath.Join(s.dir, next)); err != nil {
		return err
	}
	if err := pinCopy(m, filepath.Join(s.dir, next)); err != nil {
		return fmt.Errorf("pin the next map of %s: %w", outer, err)
	}
	if err := s.maps[outer].Put(index, m); err != nil {
		return fault.Join(fmt.Errorf("replace entry %d of map %s: %w", index, outer, err), removePin(filepath.Join(s.dir, next)))
	}
	s.maps[pin].Close()
	s.maps[pin] = m
	s.know(outer, index, m)
	if err := os.Rename(filepath.Join(s.dir, next), filepath.Join(s.dir, pin)); err != nil {
		return fmt.Errorf("pin map %s: %w", pin, err)
	}
	return nil
}

// DropInner empties an entry of a map of maps.
func (s *Shared) DropInner(outer string, index uint32) error {
	if err := s.maps[outer].Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty entry %d of map %s: %w", index, outer, err)
	}
	s.know(outer, index, nil)
	return fault.Join(removePin(filepath.Join(s.dir, innerPin(outer, index))), removePin(filepath.Join(s.dir, nextPin(outer, index))))
}

// finish completes or undoes what a SetInner or DropInner that was killed left: the
// pin of a map that is in its place already takes the place of the one before; pins
// of maps that are in no place go.
func (s *Shared) finish() error {
	for _, pin := range keys(s.maps) { // that in place in front of the next one
		outer, number, ok := strings.Cut(pin, ":")
		if !ok {
			continue
		}
		number, isNext := strings.CutSuffix(number, nextSuffix)
		inPlace, err := s.holds(outer, number, s.maps[pin])
		switch {
		case err != nil:
		case !inPlace:
			err = removePin(filepath.Join(s.dir, pin))
		case isNext:
			err = os.Rename(filepath.Join(s.dir, pin), filepath.Join(s.dir, outer+":"+number))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// holds says whether a map is in an entry of a map of maps.
func (s *Shared) holds(outer, number string, m *ebpf.Map) (bool, error) {
	index, err := strconv.ParseUint(number, 10, 32)
	if err != nil || s.maps[outer] == nil {
		return false, nil
	}
	var id uint32
	err = s.maps[outer].Lookup(uint32(index), &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read map %s: %w", outer, err)
	}
	return hasID(m, id), nil
}

const nextSuffix = ":next"

func innerPin(outer string, index uint32) string { return fmt.Sprintf("%s:%d", outer, index) }
func nextPin(outer string, index uint32) string  { return innerPin(outer, index) + nextSuffix }

func removePin(path string) error {
	if err := os.Remove(path); err != nil && !isNotExist(err) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

func hasID(m *ebpf.Map, id uint32) bool {
	info, err := m.Info()
	if err != nil {
		return false
	}
	found, ok := info.ID()
	return ok && uint32(found) == id
}

// WithShared runs fn with the maps of a group, which it holds the exclusive lock
// for; they are made if they aren't there.
func (e *Engine) WithShared(ctx context.Context, group string, fn func(*Shared) error) error {
	return e.write(ctx, func() error {
		shared, err := e.makeShared(group)
		if err != nil {
			return err
		}
		defer shared.Close()
		shared.closeRecords()
		if err := shared.finish(); err != nil {
			return err
		}
		return fn(shared)
	})
}

// ReadShared runs fn with the maps of a group, which it holds the shared lock
// for; with nil if nobody has made them yet.
func (e *Engine) ReadShared(ctx context.Context, group string, fn func(*Shared) error) error {
	if err := e.root.Check(); err != nil {
		return err
	}
	return e.read(ctx, func() error {
		shared, err := e.openShared(group)
		if errors.Is(err, fault.ErrNotFound) {
			return fn(nil)
		}
		if err != nil {
			return err
		}
		defer shared.Close()
		if err := shared.check(group); err != nil {
			return err
		}
		shared.closeRecords()
		return fn(shared)
	})
}

// ClaimShared takes work on the maps of a group for the caller, which one process at a
// time should do; it neither needs nor is the lock. free says whether nobody else has it.
func (e *Engine) ClaimShared(group string) (release func(), free bool, err error) {
	return e.root.ClaimShared(group)
}

// mostPeeks is how often PeekShared tries.
const mostPeeks = 10

// PeekShared opens the maps of a group without the lock, for the caller to close:
// a writer may be at work on them. fault.ErrNotFound says that nobody has made
// them yet.
func (e *Engine) PeekShared(group string) (*Shared, error) {
	if err := e.root.Check(); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		shared, err := e.openShared(group)
		if err == nil {
			err = shared.check(group)
			shared.closeRecords()
			if err != nil {
				shared.Close()
				return nil, err
			}
			return shared, nil
		}
		if try == mostPeeks || !isNotExist(err) { // else a writer has removed or renamed a pin meanwhile
			return nil, err
		}
	}
}

// dropUnusedShared takes the pins of groups away that no instance uses and that
// hold nothing: no map of maps has an entry.
func (e *Engine) dropUnusedShared() error {
	for _, program := range bpf.Catalogue() {
		if program.Shared != program.Name || e.usesShared(program.Name) {
			continue
		}
		shared, err := e.openShared(program.Name)
		if errors.Is(err, fault.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		empty := shared.isEmpty()
		shared.Close()
		if !empty {
			continue
		}
		if err := e.root.RemoveShared(program.Name); err != nil {
			return err
		}
	}
	return nil
}

// usesShared says whether an instance is loaded that has the maps of a group;
// where that can't be told, one is.
func (e *Engine) usesShared(group string) bool {
	names, err := e.root.Names()
	return err != nil || slices.ContainsFunc(names, func(name string) bool {
		program, ok := lookupBuiltin(e.root.Spec(name).Source)
		return ok && program.Shared == group
	})
}

func (s *Shared) isEmpty() bool {
	for _, m := range s.maps {
		var first uint32
		if t := m.Type(); t != ebpf.ArrayOfMaps && t != ebpf.HashOfMaps {
			continue
		}
		entries := m.Iterate()
		var key uint32
		if entries.Next(&key, &first) || entries.Err() != nil {
			return false
		}
	}
	return true
}

// groupMaps returns maps of a group as its program declares them.
func groupMaps(group string, names []string) (map[string]*ebpf.MapSpec, error) {
	program, _ := bpf.Lookup(group)
	spec, err := program.Spec()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return !slices.Contains(names, name) })
	return spec.Maps, nil
}

// lacks returns the maps of a group that aren't there: the bpfnet that made the
// group didn't know them.
func (s *Shared) lacks(group string) ([]string, error) {
	program, ok := bpf.Lookup(group)
	if !ok || program.Shared != group {
		return nil, fmt.Errorf("no program has maps of a group %q", group)
	}
	var missing []string
	for _, m := range program.Maps {
		if s.maps[m.Name] == nil {
			missing = append(missing, m.Name)
		}
	}
	return missing, nil
}

// check says what a group lacks that has been made. Reading alone can't add it.
func (s *Shared) check(group string) error {
	if s == nil {
		return nil
	}
	missing, err := s.lacks(group)
	if err != nil || len(missing) == 0 {
		return err
	}
	return fault.New(fault.ErrConflict, "the maps of %s were made by another bpfnet: there is no map %s", group, join(missing)).
		Hint("loading %s adds what is missing", group)
}

func (e *Engine) openShared(group string) (*Shared, error) {
	dir := e.root.Shared(group)
	entries, err := os.ReadDir(dir)
	if isNotExist(err) {
		return nil, fault.New(fault.ErrNotFound, "there are no maps of %s yet", group)
	}
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	shared := &Shared{dir: dir, maps: map[string]*ebpf.Map{}}
	for _, entry := range entries {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, entry.Name()), nil)
		if err != nil {
			shared.Close()
			return nil, fmt.Errorf("open map %s of %s: %w", entry.Name(), group, probe.Explain(probe.OpOpenPin, err))
		}
		shared.maps[entry.Name()] = m
	}
	return shared, nil
}

// makeShared opens the maps of a group, and makes those that aren't there.
func (e *Engine) makeShared(group string) (*Shared, error) {
	shared, err := e.openShared(group)
	isNew := errors.Is(err, fault.ErrNotFound)
	switch {
	case isNew:
		shared = &Shared{dir: e.root.Shared(group), maps: map[string]*ebpf.Map{}}
	case err != nil:
		return nil, err
	}
	added, err := shared.complete(group)
	switch {
	case err != nil:
	case isNew:
		err = e.root.MakeShared(group, added.pin)
	default:
		err = added.pin(shared.dir)
	}
	if err != nil {
		shared.Close()
		return nil, err
	}
	return shared, nil
}

// complete makes the maps that a group lacks, in the kernel alone, and returns
// those.
func (s *Shared) complete(group string) (*Shared, error) {
	missing, err := s.lacks(group)
	if err != nil || len(missing) == 0 {
		return &Shared{}, err
	}
	specs, err := groupMaps(group, missing)
	if err != nil {
		return nil, err
	}
	liftMemlock()
	spec := &ebpf.CollectionSpec{Maps: specs}
	collection, err := ebpf.NewCollection(spec)
	if few := fewFiles(spec, err); few != nil {
		err = few
	}
	if err != nil {
		return nil, fmt.Errorf("make the maps of %s: %w", group, probe.Explain(probe.OpCreateMap, err))
	}
	maps.Copy(s.maps, collection.Maps)
	return &Shared{maps: collection.Maps}, nil
}

func (s *Shared) pin(dir string) error {
	for name, m := range s.maps {
		if err := pinCopy(m, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// pinCopy pins a map without moving a pin that it has.
func pinCopy(m *ebpf.Map, path string) error {
	clone, err := m.Clone()
	if err != nil {
		return err
	}
	defer clone.Close()
	if err := clone.Pin(path); err != nil {
		return probe.Explain(probe.OpPin, err)
	}
	return nil
}

// sharedFor returns the maps that a load must take over, by name: those of the
// group that the program belongs to. For a dry run only what is there already.
func (e *Engine) sharedFor(p *loadPlan, dryRun bool) (map[string]*ebpf.Map, error) {
	program, ok := lookupBuiltin(p.from.Source)
	if !ok || !p.from.Builtin || program.Shared == "" {
		return nil, nil
	}
	open := e.makeShared
	if dryRun {
		open = e.openShared
	}
	shared, err := open(program.Shared)
	if dryRun && errors.Is(err, fault.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	taken := map[string]*ebpf.Map{}
	for name, m := range shared.maps {
		if p.spec.Maps[name] == nil {
			m.Close() // inside a map of maps
			continue
		}
		taken[name] = m
	}
	return taken, nil
}
