package testkit

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	bpfnetns "bpfnet/internal/netns"
)

// object is a BPF object. The kernel doesn't use an id again.
type object struct {
	kind string // "map", "prog" or "link"
	id   uint32
}

func (o object) String() string { return fmt.Sprintf("%s %d", o.kind, o.id) }

func (o object) compare(other object) int {
	return cmp.Or(cmp.Compare(o.kind, other.kind), cmp.Compare(o.id, other.id))
}

var kinds = map[string]bpfsys.Kind{"map": bpfsys.Maps, "prog": bpfsys.Programs, "link": bpfsys.Links}

// exists doesn't open the object: a program array that is opened and closed while
// the kernel clears it, after its last user is gone, stays forever.
func (o object) exists() bool {
	next, err := kinds[o.kind].Next(o.id - 1)
	return err == nil && next == o.id
}

// describe returns the objects that a descriptor of this process is, or holds:
// a link has a program.
func describe(fd string) []object {
	var objects []object
	text, _ := os.ReadFile("/proc/self/fdinfo/" + fd)
	for line := range bytes.Lines(text) {
		field, value, _ := bytes.Cut(line, []byte(":"))
		kind, isID := bytes.CutSuffix(field, []byte("_id"))
		id, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 32)
		if _, known := kinds[string(kind)]; known && isID && err == nil && id != 0 {
			objects = append(objects, object{string(kind), uint32(id)})
		}
	}
	return objects
}

// pin returns the objects that a pin holds.
func pin(path string) []object {
	text, err := unix.BytePtrFromString(path)
	if err != nil {
		return nil
	}
	attr := struct {
		path      *byte
		fd, flags uint32
	}{path: text}
	fd, err := bpfsys.Call(unix.BPF_OBJ_GET, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return describe(strconv.Itoa(fd))
}

// hooks returns the programs on the devices of a network namespace, "" for ours.
func hooks(namespace string) []object {
	var programs []object
	_ = bpfnetns.Do(namespace, func() error {
		devices, err := netlink.LinkList()
		for _, d := range devices {
			if xdp := d.Attrs().Xdp; xdp != nil && xdp.ProgId != 0 {
				programs = append(programs, object{"prog", xdp.ProgId})
			}
			programs = append(programs, filters(d)...)
			for _, attachType := range []uint32{unix.BPF_TCX_INGRESS, unix.BPF_TCX_EGRESS} {
				programs = append(programs, queried(d.Attrs().Index, attachType)...)
			}
		}
		return err
	})
	return programs
}

// filters returns the programs that a device has in a clsact qdisc.
func filters(device netlink.Link) []object {
	var programs []object
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		list, _ := netlink.FilterList(device, parent)
		for _, f := range list {
			if b, ok := f.(*netlink.BpfFilter); ok && b.Id > 0 {
				programs = append(programs, object{"prog", uint32(b.Id)})
			}
		}
	}
	return programs
}

// queried returns the programs on a hook, by BPF_PROG_QUERY; none where the
// kernel doesn't have the hook. target is a device, or a descriptor of a cgroup.
func queried(target int, attachType uint32) []object {
	var ids [64]uint32
	attr := struct {
		target, attachType, flags, attachFlags uint32
		ids                                    *[64]uint32
		count, _                               uint32
	}{target: uint32(target), attachType: attachType, ids: &ids, count: uint32(len(ids))}
	if _, err := bpfsys.Call(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return nil
	}
	var programs []object
	for _, id := range ids[:min(int(attr.count), len(ids))] {
		programs = append(programs, object{"prog", id})
	}
	return programs
}

// cgroupHooks returns the programs that a cgroup has.
func cgroupHooks(dir string) []object {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var programs []object
	for attachType := range uint32(unix.BPF_TCX_INGRESS) {
		programs = append(programs, queried(fd, attachType)...)
	}
	return programs
}

// qdiscs describes the clsact qdiscs of a network namespace, "" for ours.
func qdiscs(namespace string) []string {
	var found []string
	_ = bpfnetns.Do(namespace, func() error {
		devices, err := netlink.LinkList()
		for _, d := range devices {
			list, _ := netlink.QdiscList(d)
			for _, q := range list {
				if q.Type() == "clsact" {
					found = append(found, "a clsact qdisc on "+d.Attrs().Name)
				}
			}
		}
		return err
	})
	return found
}

// hooked describes the programs on the devices of a network namespace, "" for
// ours, and the qdiscs that only programs need.
func hooked(namespace string) []string {
	found := qdiscs(namespace)
	for _, o := range hooks(namespace) {
		found = append(found, o.String()+" on a device")
	}
	return found
}

// Unhooked fails the test if a network namespace, given by its path, has or
// keeps a program on a device, or a clsact qdisc.
func Unhooked(t testing.TB, namespace string) {
	t.Helper()
	if left := settle(func() []string { return hooked(namespace) }); len(left) > 0 {
		t.Errorf("%s still has:\n%s", namespace, strings.Join(left, "\n"))
	}
}
