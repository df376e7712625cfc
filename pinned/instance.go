package pinned

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Spec is what a loaded instance was made from: enough to know whether loading
// it again would change anything.
type Spec struct {
	Source     string            `json:"source"`  // built-in name or path
	Builtin    bool              `json:"builtin"` // Source is a built-in program
	Digest     string            `json:"digest"`  // of the object, the chosen programs and the parameters
	Parameters map[string]string `json:"parameters,omitempty"`
}

// Digest identifies an object and everything that shapes what becomes of it.
func Digest(object []byte, parameters map[string]string) string {
	if parameters == nil {
		parameters = map[string]string{} // as a Spec without any was before it was written
	}
	h := sha256.New()
	h.Write(object)
	_ = json.NewEncoder(h).Encode(parameters) // texts are encoded, in key order
	return hex.EncodeToString(h.Sum(nil))
}

// Spec reads what an instance was made from. An instance that something else
// made has the zero Spec.
func (r Root) Spec(instance string) Spec {
	text, err := os.Readlink(filepath.Join(r.Instance(instance), specName))
	if err != nil {
		return Spec{}
	}
	return parseSpec(text)
}

func parseSpec(text string) Spec {
	var spec Spec
	if json.Unmarshal([]byte(text), &spec) != nil {
		return Spec{}
	}
	return spec
}

// Stage is an instance in the making, invisible to readers until Commit.
type Stage struct {
	root Root
	name string
	dir  string
}

// NewStage starts an instance beside the one of that name, if there is one.
func (r Root) NewStage(name string, spec Spec) (*Stage, error) {
	s := &Stage{root: r, name: name, dir: filepath.Join(string(r), newPrefix+Encode(name))}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode what %q is made from: %w", name, err)
	}
	if len(text) >= unix.PathMax {
		return nil, fault.New(fault.ErrUsage, "load %q: its parameters take %d bytes, more than the %d that can be remembered", name, len(text), unix.PathMax-1)
	}
	for _, kind := range []string{Progs, Maps, Links, Sections, Targets} {
		if err := os.MkdirAll(filepath.Join(s.dir, kind), 0o700); err != nil {
			return nil, permission("make", s.dir, err)
		}
	}
	return s, setNote(filepath.Join(s.dir, specName), string(text))
}

// Path returns where to pin an object of the stage.
func (s *Stage) Path(kind, name string) string { return filepath.Join(s.dir, kind, Encode(name)) }

// SetNote stores a text beside an object of the stage.
func (s *Stage) SetNote(kind, name, text string) error { return setNote(s.Path(kind, name), text) }

// Commit makes the stage the instance of its name in one step. What was there
// before is kept aside until Finish or Rollback.
func (s *Stage) Commit() error {
	target := s.root.Instance(s.name)
	if !s.root.Exists(s.name) {
		return s.rename(s.dir, target)
	}
	old := s.oldDir()
	if err := unix.Renameat2(unix.AT_FDCWD, s.dir, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE); err == nil {
		return s.rename(s.dir, old)
	} else if !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("replace %s: %w", target, err)
	}
	// Before Linux 5.16 bpffs can't exchange. recover puts old back if we die
	// in between.
	if err := s.rename(target, old); err != nil {
		return err
	}
	return s.rename(s.dir, target)
}

// Rollback puts back what Commit replaced.
func (s *Stage) Rollback() error {
	target, old := s.root.Instance(s.name), s.oldDir()
	if err := s.rename(target, s.dir); err != nil {
		return err
	}
	if _, err := os.Lstat(old); err == nil {
		if err := s.rename(old, target); err != nil {
			return err
		}
	}
	return removeTree(s.dir)
}

// Finish drops what Commit replaced.
func (s *Stage) Finish() error { return removeTree(s.oldDir()) }

// Abort drops a stage that wasn't committed.
func (s *Stage) Abort() error { return removeTree(s.dir) }

func (s *Stage) oldDir() string { return filepath.Join(string(s.root), oldPrefix+Encode(s.name)) }

func (s *Stage) rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("move %s: %w", from, err)
	}
	return nil
}

// Remove takes an instance away: it disappears for readers in one step. Links
// that are still pinned in it are released.
func (r Root) Remove(instance string) error {
	gone := filepath.Join(string(r), gonePrefix+Encode(instance))
	if err := os.Rename(r.Instance(instance), gone); err != nil {
		return permission("remove", r.Instance(instance), err)
	}
	return removeTree(gone)
}

// recover finishes or undoes what a killed writer left: it puts an instance
// back that was moved aside for a replacement that never came, and removes
// everything else that is temporary, and the targets of links that are gone.
func (r Root) recover() error {
	entries, err := os.ReadDir(string(r))
	if err != nil {
		return fmt.Errorf("list %s: %w", r, err)
	}
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), oldPrefix); ok {
			if err := r.restore(e.Name(), name); err != nil {
				return err
			}
		}
		if isTemporary(e.Name()) {
			if err := removeTree(filepath.Join(string(r), e.Name())); err != nil {
				return err
			}
		}
	}
	return r.dropTargets()
}

// dropTargets removes what is remembered of the targets of links that aren't
// pinned: the link's pin comes after it and goes before it.
func (r Root) dropTargets() error {
	names, err := r.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if r.Spec(name).Digest == "" {
			continue // of somebody else
		}
		targets, err := r.List(name, Targets)
		if err != nil {
			return err
		}
		for _, target := range targets {
			if _, err := os.Lstat(r.Path(name, Links, target)); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := removeTree(r.Path(name, Targets, target)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r Root) restore(old, encoded string) error {
	from, to := filepath.Join(string(r), old), filepath.Join(string(r), encoded)
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("put back %s: %w", to, err)
	}
	return nil
}

func isTemporary(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && name != madeName && !strings.HasPrefix(name, sharedPrefix)
}

func removeTree(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return permission("remove", dir, err)
	}
	return nil
}
