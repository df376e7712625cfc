package bpftool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// This file calls bpf(2) itself: cilium/ebpf doesn't tell all that bpftool
// prints, and reads the code of a program along with its size.

// kind is a kind of BPF object that has ids.
type kind struct {
	bpfsys.Kind
	name    string
	command string // of bpfnet
	target  string // in what a descriptor of it is a link to, in /proc: bpf-link is bpf_link, too
}

var (
	progKind = kind{bpfsys.Programs, "program", "prog", "bpf_prog"}
	linkKind = kind{bpfsys.Links, "link", "link", "bpf_link"}
)

// each calls fn with a descriptor of every object of the kind, in the order of
// their ids. Objects that vanish meanwhile are left out.
func (k kind) each(fn func(fd int) error) error {
	var failed error
	err := k.Each(func(_ uint32, fd int) error {
		failed = fn(fd)
		return failed
	})
	if err != nil && failed == nil {
		return fmt.Errorf("list %ss: %w", k.name, probe.Explain(probe.OpListByID, err))
	}
	return err
}

// with calls fn with a descriptor of the object that ref, "id:N" or the path of
// a pin, means.
func (k kind) with(ref string, fn func(fd int) error) error {
	fd, err := k.openRef(ref)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(fd)
}

func (k kind) openRef(ref string) (int, error) {
	if !strings.HasPrefix(ref, "/") {
		return k.openID(ref)
	}
	fd, err := openPin(ref)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return -1, fault.New(fault.ErrNotFound, "open %s %s: no such pin", k.name, ref)
	case err != nil && !isPin(ref):
		return -1, fault.New(fault.ErrUsage, "open %s %s: it is not a pin on bpffs", k.name, ref)
	case err != nil:
		return -1, fmt.Errorf("open %s %s: %w", k.name, ref, probe.Explain(probe.OpOpenPin, err))
	}
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && !strings.Contains(strings.ReplaceAll(target, "-", "_"), k.target) {
		unix.Close(fd)
		return -1, fault.New(fault.ErrUsage, "open %s %s: it is not a %s", k.name, ref, k.name)
	}
	return fd, nil
}

func (k kind) openID(ref string) (int, error) {
	id, err := parseID(ref)
	if err != nil {
		return -1, err
	}
	fd, err := k.Open(id)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, fault.New(fault.ErrNotFound, "open %s %s: no %s has that id", k.name, ref, k.name).
			Hint("bpfnet -j %s show   shows all of them", k.command)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s %s: %w", k.name, ref, probe.Explain(probe.OpListByID, err))
	}
	return fd, nil
}

// isPin says whether path is a file on bpffs; true when it can't be told.
func isPin(path string) bool {
	info, err := os.Stat(path)
	regular := err != nil || info.Mode().IsRegular()
	return regular && !errors.Is(pinned.Root(path).Check(), pinned.ErrNotBPFFS)
}

type pinAttr struct {
	path      *byte
	fd, flags uint32
}

func openPin(path string) (int, error) {
	text, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	attr := pinAttr{path: text, flags: unix.BPF_F_RDONLY}
	fd, err := bpfsys.Call(unix.BPF_OBJ_GET, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if errors.Is(err, unix.EINVAL) { // links and programs know no read-only descriptors
		attr.flags = 0
		fd, err = bpfsys.Call(unix.BPF_OBJ_GET, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	}
	return fd, err
}

type queryAttr struct {
	target, attachType, flags, attachFlags uint32
	progIDs                                unsafe.Pointer
	count, _                               uint32
	progFlags, linkIDs, linkFlags          unsafe.Pointer
	revision                               uint64
}

// attached is a program on a hook, as BPF_PROG_QUERY tells it.
type attached struct {
	progID, linkID       uint32 // linkID 0: not by a link, or not told
	progFlags, linkFlags uint32
}

// BPF_F_QUERY_EFFECTIVE asks for what runs, inherited programs too, instead of
// what is attached here.
const queryEffective = 1

// query lists the programs of a hook in the order in which they run. target is
// an interface index or a descriptor, by the attach type.
func query(target, attachType, flags uint32) ([]attached, error) {
	list, err := queryFlags(target, attachType, flags, true)
	if errors.Is(err, unix.EINVAL) {
		// Each program's flags can't be asked for before Linux 6.0, nor for what
		// is effective.
		return queryFlags(target, attachType, flags, false)
	}
	return list, err
}

// queryFlags is query with or without the flags of each program. Without them
// those of the hook stand for all.
func queryFlags(target, attachType, flags uint32, each bool) ([]attached, error) {
	const most = 1024
	var ids, progFlags, linkIDs, linkFlags [most]uint32
	attr := queryAttr{target: target, attachType: attachType, flags: flags, progIDs: unsafe.Pointer(&ids), count: most}
	if each {
		attr.progFlags = unsafe.Pointer(&progFlags)
	}
	switch attachType {
	case attachTCXIngress, attachTCXEgress, attachNetkitPrimary, attachNetkitPeer:
		attr.linkIDs, attr.linkFlags = unsafe.Pointer(&linkIDs), unsafe.Pointer(&linkFlags)
	}
	if _, err := bpfsys.Call(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return nil, err
	}
	list := make([]attached, min(attr.count, most))
	for i := range list {
		list[i] = attached{ids[i], linkIDs[i], progFlags[i], linkFlags[i]}
		if list[i].progFlags == 0 {
			list[i].progFlags = attr.attachFlags
		}
	}
	return list, nil
}

// text is what stands in a buffer before the first zero byte.
func text(b []byte) string { return unix.ByteSliceToString(b) }
