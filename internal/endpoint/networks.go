package endpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// Networks says which network namespace is at the other end of an interface.
type Networks struct {
	Host   uint64           // inode of the host's, whose interfaces these are
	Behind map[uint32]Inner // by the index of the host side
	Own    map[uint32]bool  // interfaces that lead to no other namespace
}

// Inner is the end of a host-side interface that is in another namespace.
type Inner struct {
	NetNS   uint64 // inode
	IfIndex uint32 // inside
}

// ReadNetworks looks behind the interfaces in the network namespace at path, "" for
// the caller's, and enters no other one. Those whose other end is in a namespace
// without a process are in neither map.
func ReadNetworks(path string) (Networks, error) {
	h, err := openHost(path)
	if err != nil {
		return Networks{}, err
	}
	defer h.close()
	h.outside = true
	found := Networks{Host: h.inode, Behind: map[uint32]Inner{}, Own: map[uint32]bool{}}
	for _, index := range h.own {
		found.Own[uint32(index)] = true
	}
	pids, err := PIDs()
	if err != nil {
		return Networks{}, err
	}
	namespaces := map[uint64]*namespace{}
	for _, pid := range pids {
		p := &process{pid: pid}
		if p.netns, err = NetNSOf(pid); err != nil || p.netns == 0 {
			continue // it has ended, or may not be looked into
		}
		if namespaces[p.netns] == nil {
			namespaces[p.netns] = &namespace{inode: p.netns}
		}
		n := namespaces[p.netns]
		n.members = append(n.members, p)
	}
	for _, n := range namespaces {
		if err := h.read(n); err != nil {
			return Networks{}, err
		}
		for _, i := range n.interfaces {
			found.Behind[uint32(*i.IfIndex)] = Inner{n.inode, uint32(i.InnerIfIndex)}
		}
	}
	return found, nil
}

// NetNSOf is the inode of the network namespace of a process, 0 if it has ended.
// ErrPermission if this user may not look into it.
func NetNSOf(pid int) (uint64, error) {
	target := make([]byte, 64)
	n, err := unix.Readlink((&process{pid: pid}).netnsPath(), target)
	if err == nil && n == 0 { // so Linux 5.10 refuses
		err = unix.EACCES
	}
	if isDenied(err) {
		return 0, fault.New(fault.ErrPermission, "look at process %d: %w", pid, err)
	}
	if err != nil {
		return 0, unlessGone(err)
	}
	return strconv.ParseUint(strings.Trim(string(target[:n]), "net:[]"), 10, 64)
}

// OpenNetNS opens the network namespace that has an inode, through a process that is
// in it. It is nil when none of them is any more, or may be looked into.
func OpenNetNS(inode uint64, pids []int) (*os.File, error) {
	n := namespace{inode: inode}
	for _, pid := range pids {
		n.members = append(n.members, &process{pid: pid})
	}
	return n.open()
}

// PIDs lists the processes in the order of their numbers.
func PIDs() ([]int, error) {
	pids, err := listPIDs()
	if err != nil {
		return nil, fmt.Errorf("read processes: %w", err)
	}
	return pids, nil
}

// InCgroup lists the processes in the cgroup that has an id, but not those in
// cgroups below it. An error where it is gone, and without CAP_DAC_READ_SEARCH.
func InCgroup(id uint64) (pids []int, err error) {
	err = withCgroup2(func(top int) error {
		dir, err := cgroupDir(top, id)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for line := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 0 { // 0: in another pid namespace
				pids = append(pids, pid)
			}
		}
		return err
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// Descriptors calls fn with the number of each open file of the process, and what it
// is, such as "socket:[1234]".
func (d ProcessDir) Descriptors(fn func(number, target string)) error {
	fd, err := unix.Openat(int(d), "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlessGone(err)
	}
	defer unix.Close(fd)
	entries, target := make([]byte, 8192), make([]byte, 64)
	for {
		n, err := unix.ReadDirent(fd, entries)
		if err != nil || n == 0 {
			return unlessGone(err)
		}
		_, _, names := unix.ParseDirent(entries[:n], -1, nil)
		for _, name := range names {
			n, err := unix.Readlinkat(fd, name, target)
			if unlessGone(err) != nil {
				return err
			}
			if err == nil {
				fn(name, string(target[:n]))
			}
		}
	}
}

// Process is what there is to know of the process, whose number is pid; false if it
// has ended. boot is the time of the boot.
func (d ProcessDir) Process(pid int, boot time.Time) (p Process, alive bool) {
	stat, err := d.read("stat")
	if err != nil {
		return p, false
	}
	read, alive := parseStat(stat)
	read.executable, _ = d.Link("exe") // a thread of the kernel has none
	return Process{PID: pid, Start: startedAt(boot, read.start), Executable: known(read.executable), Command: read.command}, alive
}

// UID is the real user of the process, false if it has ended.
func (d ProcessDir) UID() (uint32, bool) {
	status, err := d.read("status")
	for line := range strings.Lines(status) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok && err == nil {
			uid, err := strconv.ParseUint(strings.Fields(ids)[0], 10, 32)
			return uint32(uid), err == nil
		}
	}
	return 0, false
}

// CgroupDir is the directory of the cgroup2 that has an id: an error where it is gone,
// and without CAP_DAC_READ_SEARCH.
func CgroupDir(id uint64) (dir string, err error) {
	err = withCgroup2(func(top int) (err error) {
		dir, err = cgroupDir(top, id)
		return err
	})
	return dir, err
}
