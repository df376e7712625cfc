// Package pinned keeps bpfnet's state in bpffs: where things are, the lock that
// guards them, and creation and replacement that are atomic for readers and
// survive a kill at any moment.
//
// Below the root every loaded instance has a directory:
//
//	NAME/progs/FUNCTION     pinned programs
//	NAME/maps/MAP           pinned maps
//	NAME/links/ATTACHMENT   pinned links
//	NAME/sections/FUNCTION  symbolic link whose text is the ELF section
//	NAME/targets/ATTACHMENT symbolic link whose text describes the target
//	NAME/spec               symbolic link whose text is the Spec as JSON
//
// Maps that several instances share, and that outlive them, are pinned in
// @shared:GROUP.
//
// bpffs stores no files, but it does store the text of symbolic links; that is
// where the little that the kernel doesn't remember is kept. Names that start
// with "@new-", "@old-" or "@gone-" are directories in the making or on their
// way out; whoever holds the exclusive lock may remove those that it didn't make.
package pinned

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// MountPoint is where bpffs is mounted by convention.
const MountPoint = "/sys/fs/bpf"

// DefaultRoot is the directory that holds everything unless told otherwise.
const DefaultRoot = MountPoint + "/bpfnet"

// The directories of an instance.
const (
	Progs    = "progs"
	Maps     = "maps"
	Links    = "links"
	Sections = "sections"
	Targets  = "targets"
)

const (
	specName   = "spec"
	tempPrefix = "@"
	newPrefix  = "@new-"  // an instance being made
	oldPrefix  = "@old-"  // an instance being replaced
	madeName   = "@made"  // says that the root was made by Lock
	gonePrefix = "@gone-" // an instance being removed

	sharedPrefix = "@shared:" // maps of several instances
)

// Encode makes a file name that bpffs accepts (it refuses dots) and that Decode
// turns back into name.
func Encode(name string) string {
	return strings.ReplaceAll(url.PathEscape(name), ".", "%2E")
}

// Decode is the inverse of Encode. Text that Encode can't have made is returned
// as it is.
func Decode(file string) string {
	name, err := url.PathUnescape(file)
	if err != nil {
		return file
	}
	return name
}

// taken is how names can't begin, because other arguments do.
var taken = []string{tempPrefix, "-", "id:", "name:", "tag:"}

// CheckName refuses names that can't name an instance, or that other arguments
// would be taken for: NAME/MAP, id:N, a flag.
func CheckName(name string) error {
	switch {
	case name == "" || len(Encode(name)) > unix.NAME_MAX-len(gonePrefix):
		return fault.New(fault.ErrUsage, "name %q: must be 1 to %d bytes long", name, unix.NAME_MAX-len(gonePrefix))
	case slices.ContainsFunc(taken, func(prefix string) bool { return strings.HasPrefix(name, prefix) }):
		return fault.New(fault.ErrUsage, "name %q: must not begin with %q", name, taken)
	case strings.Contains(name, "/"), !utf8.ValidString(name), strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fault.New(fault.ErrUsage, "name %q: must be printable text without \"/\"", name)
	}
	return nil
}

// Root is bpfnet's directory in bpffs. Its methods that change something need
// the exclusive lock.
type Root string

// Instance returns the directory of the instance of that name.
func (r Root) Instance(name string) string { return filepath.Join(string(r), Encode(name)) }

// Path returns the pin of an object of an instance; kind is Progs, Maps, ….
func (r Root) Path(instance, kind, name string) string {
	return filepath.Join(r.Instance(instance), kind, Encode(name))
}

// Check says whether the root is, or would be, on bpffs.
func (r Root) Check() error {
	dir := filepath.Clean(string(r))
	if !filepath.IsAbs(dir) {
		return fault.New(fault.ErrUsage, "bpffs directory %q: must be an absolute path", dir)
	}
	for {
		var stat unix.Statfs_t
		err := unix.Statfs(dir, &stat)
		switch {
		case err == nil && uint64(stat.Type) == unix.BPF_FS_MAGIC:
			return nil
		case err == nil:
			return notBPFFS(string(r))
		case !errors.Is(err, unix.ENOENT) || dir == "/":
			return fmt.Errorf("read the file system of %q: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}

// ErrNotBPFFS says that a directory is on another kind of file system.
var ErrNotBPFFS = errors.New("not on bpffs")

func notBPFFS(dir string) error {
	err := &fault.Error{Kind: ErrNotBPFFS, Message: fmt.Sprintf("%s is not on a mounted bpffs", dir)}
	if !strings.HasPrefix(dir, MountPoint+"/") {
		return err.Hint("choose a directory below %s", MountPoint)
	}
	return err.Hint("mount -t bpf bpf %s   (or add --mount to the command)", MountPoint)
}

// Mount mounts bpffs on MountPoint unless it is mounted there already. It
// refuses to hide the content of a directory that isn't empty.
func Mount() error {
	if Root(MountPoint).Check() == nil {
		return nil
	}
	entries, err := os.ReadDir(MountPoint)
	if err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	if len(entries) > 0 {
		return fault.New(fault.ErrConflict, "mount bpffs: %s is not empty", MountPoint)
	}
	if err := unix.Mount("bpf", MountPoint, "bpf", 0, "mode=0700"); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fault.New(fault.ErrPermission, "mount bpffs on %s: %w", MountPoint, err).Hint("mounting needs CAP_SYS_ADMIN")
		}
		return fmt.Errorf("mount bpffs on %s: %w", MountPoint, err)
	}
	return nil
}

// Names lists the instances, sorted: the directories, not what somebody pinned
// beside them. A root that doesn't exist has none.
func (r Root) Names() ([]string, error) {
	objects, err := list(string(r))
	objects = slices.DeleteFunc(objects, func(o Object) bool { return !o.dir || strings.HasPrefix(o.Name, tempPrefix) })
	return namesOf(objects), err
}

// Exists says whether an instance of that name is loaded.
func (r Root) Exists(name string) bool {
	info, err := os.Lstat(r.Instance(name))
	return err == nil && info.IsDir()
}

// List names the objects of one kind that an instance has, sorted.
func (r Root) List(instance, kind string) ([]string, error) {
	objects, err := r.Objects(instance, kind)
	return namesOf(objects), err
}

// Object is what is pinned under a name.
type Object struct {
	Name  string
	Inode uint64 // of the pin; what takes its place has another one
	dir   bool
}

// Objects lists the objects of one kind that an instance has, sorted by name.
func (r Root) Objects(instance, kind string) ([]Object, error) {
	return list(filepath.Join(r.Instance(instance), kind))
}

func namesOf(objects []Object) []string {
	names := make([]string, len(objects))
	for i, o := range objects {
		names[i] = o.Name
	}
	return names
}

// list lists a directory, with inodes, which os.ReadDir keeps to itself. One that
// doesn't exist is empty.
func list(dir string) ([]Object, error) {
	f, err := os.Open(dir)
	if err == nil {
		defer f.Close()
	}
	var objects []Object
	for buffer, n := make([]byte, 1<<15), 1; err == nil && n > 0; {
		if n, err = unix.ReadDirent(int(f.Fd()), buffer); errors.Is(err, unix.EINTR) {
			n, err = 1, nil
		} else if err == nil {
			objects = appendObjects(objects, buffer[:n])
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, permission("list", dir, err)
	}
	slices.SortFunc(objects, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	return objects, nil
}

// appendObjects appends what getdents64(2) returned.
func appendObjects(objects []Object, entries []byte) []Object {
	const lengthAt, typeAt, nameAt = 16, 18, 19 // in struct linux_dirent64
	for len(entries) > nameAt {
		length := int(binary.NativeEndian.Uint16(entries[lengthAt:]))
		name, _, _ := bytes.Cut(entries[nameAt:length], []byte{0})
		if file := string(name); file != "." && file != ".." {
			objects = append(objects, Object{Decode(file), binary.NativeEndian.Uint64(entries), entries[typeAt] == unix.DT_DIR})
		}
		entries = entries[length:]
	}
	return objects
}

// Note returns the text that SetNote stored, "" when there is none.
func (r Root) Note(instance, kind, name string) string {
	text, err := os.Readlink(r.Path(instance, kind, name))
	if err != nil {
		return ""
	}
	return text
}

// SetNote stores a text beside an object: kind is Sections or Targets, the text
// at most 4,095 bytes and not empty.
func (r Root) SetNote(instance, kind, name, text string) error {
	return setNote(r.Path(instance, kind, name), text)
}

func setNote(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	err := os.Symlink(text, path)
	if errors.Is(err, fs.ErrExist) {
		if err = os.Remove(path); err == nil {
			err = os.Symlink(text, path)
		}
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	return nil
}
