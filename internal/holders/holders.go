// Package holders finds the processes that have BPF objects open.
//
// The kernel keeps no such list; /proc tells which objects the file descriptors
// of a process are. What holds an object without a file descriptor isn't found:
// a pin, another BPF object, or memory that stays mapped after the descriptor
// was closed.
package holders

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is a kind of BPF object.
type Kind string

// The kinds.
const (
	Map  Kind = "map"
	Prog Kind = "prog"
	Link Kind = "link"
)

// marks says how the descriptors of a kind look in /proc: what the descriptor is
// a link to, with dashes, and the field of its fdinfo that has the id. A link that
// was opened by its pin or id is a bpf-link, one that was made a bpf_link.
func (k Kind) marks() (target, field string) {
	switch k {
	case Map, Prog, Link:
		return "anon_inode:bpf-" + string(k), string(k) + "_id:"
	}
	return "", ""
}

// Process is a process that has an object open.
type Process struct {
	PID     int    `json:"pid"`
	Command string `json:"comm"` // at most 15 bytes, chosen by the process
}

func (p Process) String() string { return fmt.Sprintf("%d (%s)", p.PID, p.Command) }

// ErrIncomplete is the error of a scan that couldn't look into every process.
// What it found is valid.
var ErrIncomplete = errors.New("not every process can be looked into")

// ErrBlind is the ErrIncomplete of a scan that missed most: it couldn't look into
// half of the processes, or /proc doesn't show those of the whole machine.
var ErrBlind error = blind{}

type blind struct{}

func (blind) Error() string { return ErrIncomplete.Error() }
func (blind) Unwrap() error { return ErrIncomplete }

// initPIDNamespace is the inode of the namespace that has all processes
// (PROC_PID_INIT_INO, the same in every kernel).
const initPIDNamespace = 0xEFFFFFFC

// Scan returns the processes that have the objects of those ids open, sorted by
// pid, each once; nil ids stand for all objects of the kind. The calling process
// is left out. With ErrIncomplete the answer holds for the processes that could
// be looked into.
func Scan(kind Kind, ids []uint32) (map[uint32][]Process, error) {
	return scan("/proc", kind, ids)
}

func scan(proc string, kind Kind, ids []uint32) (map[uint32][]Process, error) {
	if target, _ := kind.marks(); target == "" {
		return nil, fmt.Errorf("find holders of a %q: no such kind of object", kind)
	}
	pids, err := processes(proc)
	if err != nil {
		return nil, fmt.Errorf("find holders of %ss: %w", kind, err)
	}
	found := make(map[uint32][]Process)
	hidden, denied := seesAll(proc), 0
	for _, pid := range pids {
		open, err := opened(filepath.Join(proc, strconv.Itoa(pid)), kind)
		by := Process{PID: pid, Command: command(proc, pid)}
		if err != nil && !vanished(err) {
			denied++
			hidden = cmp.Or(hidden, fmt.Errorf("%w: %s: %w", ErrIncomplete, by, bare(err)))
		}
		add(found, open, ids, by)
	}
	if denied > len(pids)/2 && !errors.Is(hidden, ErrBlind) {
		hidden = fmt.Errorf("%w: %d of %d are closed to this user", ErrBlind, denied, len(pids))
	}
	if hidden != nil {
		hidden = fmt.Errorf("find holders of %ss: %w", kind, hidden)
	}
	return found, hidden
}

func add(found map[uint32][]Process, open, ids []uint32, by Process) {
	for _, id := range open {
		if ids == nil || slices.Contains(ids, id) {
			found[id] = append(found[id], by)
		}
	}
}

// processes lists the pids in proc but our own, sorted.
func processes(proc string) ([]int, error) {
	names, err := readNames(proc)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	slices.SortFunc(pids, cmp.Compare)
	return pids, nil
}

// seesAll returns ErrBlind unless proc shows the processes of the whole
// machine.
func seesAll(proc string) error {
	var namespace unix.Stat_t
	err := unix.Stat(filepath.Join(proc, "self/ns/pid"), &namespace)
	if err != nil || namespace.Ino != initPIDNamespace {
		return fmt.Errorf("%w: those of other pid namespaces aren't in /proc", ErrBlind)
	}
	return nil
}

// opened returns the ids of the objects that a process has open, each once. With
// an error those that were found before it.
func opened(process string, kind Kind) ([]uint32, error) {
	mark, field := kind.marks()
	descriptors, err := readNames(filepath.Join(process, "fd"))
	if err != nil {
		return nil, err
	}
	var ids []uint32
	for _, fd := range descriptors {
		target, err := os.Readlink(filepath.Join(process, "fd", fd))
		if err == nil && strings.Replace(target, "bpf_", "bpf-", 1) != mark || vanished(err) {
			continue
		}
		if err != nil {
			return ids, err
		}
		id, ok, err := objectID(filepath.Join(process, "fdinfo", fd), field)
		if err != nil && !vanished(err) {
			return ids, err
		}
		if ok && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// objectID reads the id in a descriptor's fdinfo.
func objectID(fdinfo, field string) (id uint32, ok bool, err error) {
	text, err := os.ReadFile(fdinfo)
	if err != nil {
		return 0, false, err
	}
	return parseID(text, field)
}

func parseID(fdinfo []byte, field string) (id uint32, ok bool, err error) {
	for line := range bytes.Lines(fdinfo) {
		if number, found := bytes.CutPrefix(line, []byte(field)); found {
			id, err := strconv.ParseUint(strings.TrimSpace(string(number)), 10, 32)
			return uint32(id), err == nil, err
		}
	}
	return 0, false, nil
}

// command is the name of a process; empty when it is gone.
func command(proc string, pid int) string {
	name, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "comm"))
	return strings.TrimSuffix(string(name), "\n")
}

// vanished says whether an error means that a process or its descriptor is gone.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// bare is an error without the path, which says nothing about the process.
func bare(err error) error {
	if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
		return inner.Err
	}
	return err
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}
