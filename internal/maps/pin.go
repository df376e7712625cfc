package maps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Pinner is the part of API that keeps maps alive in bpffs.
type Pinner interface {
	// Pin pins a map at a path. Doing so again is no change; ErrUsage says that
	// the path isn't one for pins, ErrNotFound that its directory is missing,
	// ErrConflict that something else is there.
	Pin(ctx context.Context, request PinRequest) (PinChange, error)
	// Unpin removes a pin; one that isn't there is no change. ErrConflict says
	// that the pin is of a loaded instance, ErrUsage that it is of no map, or
	// that a map has several.
	Unpin(ctx context.Context, request UnpinRequest) (PinChange, error)
}

// PinRequest says what to pin where.
type PinRequest struct {
	Map, Path string // Path is absolute
	DryRun    bool
}

// UnpinRequest names the pin to remove: its path, or the map that has it.
type UnpinRequest struct {
	Map    string
	DryRun bool
}

// PinChange is what a writer of pins did, or with DryRun would do.
type PinChange struct {
	Changed bool    `json:"changed"`
	Map     string  `json:"map"`
	MapID   *uint32 `json:"map_id"` // nil: there is no such map
	Type    *string `json:"type"`
	Pinned  *string `json:"pinned"` // nil: there is no pin
}

func (h *handle) pinChange(path string) PinChange {
	return PinChange{Map: h.about.Ref, MapID: &h.about.ID, Type: &h.about.Type, Pinned: &path}
}

// Pin implements API.
func (s *Store) Pin(_ context.Context, r PinRequest) (PinChange, error) {
	h, err := s.open(r.Map, false)
	if err != nil {
		return PinChange{}, err
	}
	defer h.Close()
	path := settled(r.Path)
	change := h.pinChange(path)
	if err := s.pinnable(h.pinning(path), path); err != nil {
		return change, err
	}
	there, err := h.isPinnedAt(path)
	if err != nil || there {
		return change, err
	}
	change.Changed = true
	if r.DryRun {
		return change, nil
	}
	return change, h.pinAt(path)
}

// nameBytes is how long the name of a file can be.
const nameBytes = 255

// settled returns a path without symbolic links to its directory, by which a
// pin would seem to be in another one.
func settled(path string) string {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, filepath.Base(path))
}

// pinning is what errors of Pin begin with.
func (h *handle) pinning(path string) string {
	return fmt.Sprintf("pin map %s at %s", h.about.Ref, path)
}

// pinnable refuses paths that no pin of the user's can be made at. act is what
// the errors begin with.
func (s *Store) pinnable(act, path string) error {
	refuse := func(format string, args ...any) *fault.Error {
		return fault.New(fault.ErrUsage, "%s: %s", act, fmt.Sprintf(format, args...))
	}
	there, missing := existing(path)
	dir := filepath.Dir(path)
	switch {
	case strings.Contains(missing, ".") && !errors.Is(pinned.Root(there).Check(), pinned.ErrNotBPFFS):
		return refuse("bpffs takes no dots in names").Hint("for example %s", filepath.Join(there, strings.ReplaceAll(missing, ".", "_")))
	case errors.Is(pinned.Root(dir).Check(), pinned.ErrNotBPFFS) && pinned.Root(path).Check() == nil:
		return refuse("it is a directory").Hint("name the pin: %s/NAME", path)
	case errors.Is(pinned.Root(dir).Check(), pinned.ErrNotBPFFS):
		return refuse("%s is not on bpffs", dir).Hint("choose a path below %s", pinned.MountPoint)
	case len(filepath.Base(path)) > nameBytes:
		return refuse("a name has at most %d bytes", nameBytes)
	case s.owns(path):
		return refuse("what is below %s belongs to bpfnet", s.root).Hint("choose another directory below %s", pinned.MountPoint)
	}
	return writableDir(act, path)
}

// existing splits a path after what is there of it. Of a name with a dot bpffs
// says that looking it up is forbidden.
func existing(path string) (there, missing string) {
	for there = path; there != "/"; there = filepath.Dir(there) {
		if _, err := os.Lstat(there); err == nil {
			break
		}
	}
	return there, strings.TrimPrefix(path, there)
}

// owns says whether a path is below the root, or of an instance of another root.
func (s *Store) owns(path string) bool {
	instance, _ := owner(path)
	return instance != "" || path == filepath.Clean(string(s.root)) || strings.HasPrefix(path, filepath.Clean(string(s.root))+"/")
}

// owner returns the loaded instance that a pin is of, and its root; "" when it
// is of none.
func owner(path string) (instance string, root pinned.Root) {
	maps := filepath.Dir(path)
	dir := filepath.Dir(maps)
	root = pinned.Root(filepath.Dir(dir))
	instance = pinned.Decode(filepath.Base(dir))
	if filepath.Base(maps) != pinned.Maps || root.Spec(instance).Source == "" {
		return "", ""
	}
	return instance, root
}

// isPinnedAt says whether a path is a pin of the map. Anything else there is a
// conflict.
func (h *handle) isPinnedAt(path string) (bool, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	id, err := pinnedID(path)
	if err == nil && id == h.about.ID {
		return true, nil
	}
	what := "something that is no map"
	if err == nil {
		what = "map " + reference(id)
	}
	return false, fault.New(fault.ErrConflict, "%s: %s is there already", h.pinning(path), what)
}

// writableDir checks that there is a directory for the pin.
func writableDir(act, path string) error {
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.ErrNotFound, "%s: there is no directory %s", act, dir).Hint("mkdir -p %s", dir)
	case err == nil && !info.IsDir():
		return fault.New(fault.ErrUsage, "%s: %s is no directory", act, dir)
	case err == nil:
		err = unix.Access(dir, unix.W_OK|unix.X_OK)
	}
	return pinError(act, err)
}

func pinError(act string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrPermission) {
		err = probe.Explain(probe.OpPin, err)
	}
	return fmt.Errorf("%s: %w", act, err)
}

// pinAt adds a pin; a map that the library knows a pin of it would move.
func (h *handle) pinAt(path string) error {
	m, err := h.Clone()
	if err != nil {
		return err
	}
	defer m.Close()
	err = m.Pin(path)
	if errors.Is(err, fs.ErrExist) {
		if there, conflict := h.isPinnedAt(path); there || conflict != nil {
			return conflict
		}
	}
	return pinError(h.pinning(path), err)
}

// Unpin implements API.
func (s *Store) Unpin(_ context.Context, r UnpinRequest) (PinChange, error) {
	path, err := s.pinOf(r.Map)
	if err == nil && path != "" {
		change, err := s.unpin(path, r.DryRun)
		if !errors.Is(err, fault.ErrNotFound) {
			return change, err
		}
	}
	if errors.Is(err, fault.ErrNotFound) {
		err = nil
	}
	return PinChange{Map: r.Map}, err
}

func (s *Store) unpin(path string, dryRun bool) (PinChange, error) {
	if instance, root := owner(path); instance != "" || s.owns(path) {
		return PinChange{}, ownedError(path, instance, root)
	}
	h, err := s.open(path, true)
	if err != nil {
		return PinChange{}, err
	}
	defer h.Close()
	if errors.Is(pinned.Root(filepath.Dir(path)).Check(), pinned.ErrNotBPFFS) {
		return PinChange{}, fault.New(fault.ErrUsage, "unpin map %s: it is a symbolic link, not the pin", path)
	}
	change := h.pinChange(path)
	change.Changed = true
	if dryRun {
		return change, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return change, fmt.Errorf("unpin map %s: %w", path, err)
	}
	return change, nil
}

// pinOf returns the path of the one pin that a reference means; "" when the map
// has none.
func (s *Store) pinOf(ref string) (string, error) {
	if strings.HasPrefix(ref, "/") {
		return settled(ref), nil
	}
	h, err := s.open(ref, true)
	if err != nil {
		return "", err
	}
	defer h.Close()
	if strings.HasPrefix(h.about.Ref, "/") || !strings.HasPrefix(h.about.Ref, idPrefix) && ref == h.about.Ref {
		return s.path(h.about.Ref)
	}
	pins, err := s.pins()
	if err != nil {
		return "", err
	}
	paths := pins[h.about.ID].paths
	switch len(paths) {
	case 0:
		return "", nil
	case 1:
		return paths[0], nil
	}
	return "", fault.New(fault.ErrUsage, "unpin map %s: it has %d pins", ref, len(paths)).
		Hint("name one of them: %s", strings.Join(paths, ", "))
}

// ownedError refuses to remove a pin that bpfnet needs.
func ownedError(path, instance string, root pinned.Root) error {
	if instance == "" {
		return fault.New(fault.ErrConflict, "unpin map %s: it is below bpfnet's directory", path).
			Hint("bpfnet unload removes what bpfnet loaded")
	}
	flag := ""
	if root != pinned.DefaultRoot {
		flag = "--bpffs " + string(root) + " "
	}
	return fault.New(fault.ErrConflict, "unpin map %s: it belongs to the loaded instance %q", path, instance).
		Hint("bpfnet %sunload %s removes all of it", flag, instance)
}
