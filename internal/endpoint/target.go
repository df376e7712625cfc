package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// HostSides lists the interfaces of e that have an end in the host's network
// namespace.
func (e Endpoint) HostSides() []Interface {
	return slices.DeleteFunc(slices.Clone(e.Interfaces), func(i Interface) bool { return i.DevName == nil || i.IfIndex == nil })
}

// Container returns the container of e that has an id or a name, which may have that
// of its Pod in front, or an id that begins like that.
func (e Endpoint) Container(ref string) (Container, bool) {
	for _, is := range []func(Container) bool{
		func(c Container) bool { return c.ID == ref },
		func(c Container) bool { return c.Name != nil && (*c.Name == ref || e.podName()+*c.Name == ref) },
		func(c Container) bool { return strings.HasPrefix(c.ID, ref) },
	} {
		if i := slices.IndexFunc(e.Containers, is); i >= 0 {
			return e.Containers[i], true
		}
	}
	return Container{}, false
}

// podName is "NAMESPACE/NAME/", "" where that isn't known.
func (e Endpoint) podName() string {
	if e.Pod == nil || e.Pod.Namespace == nil || e.Pod.Name == nil {
		return ""
	}
	return *e.Pod.Namespace + "/" + *e.Pod.Name + "/"
}

// CgroupOf implements API.
func (k *Kernel) CgroupOf(e Endpoint, ref Ref) (Cgroup, map[uint64]bool, error) {
	c := e.Cgroup
	switch ref.form {
	case "container":
		one, ok := e.Container(ref.value)
		if !ok {
			return c, nil, fault.New(fault.ErrNotFound, "find %s: the endpoint that it is in has no container of that name", ref)
		}
		c = one.Cgroup
	case "pid":
		if one, ok := e.containerOf(int(ref.number)); ok {
			c = one.Cgroup
		}
	}
	return c, c.IDs(), nil
}

// containerOf returns the container of e that a process or a thread is in.
func (e Endpoint) containerOf(pid int) (Container, bool) {
	pid, err := Leader(pid)
	if err != nil {
		return Container{}, false
	}
	p, _, err := readProcess(pid)
	in, ok := p.container()
	i := slices.IndexFunc(e.Containers, func(c Container) bool { return c.Cgroup.Path == in.path })
	if err != nil || !ok || i < 0 {
		return Container{}, false
	}
	return e.Containers[i], true
}

// OpenCgroup returns the cgroup that has a directory: ErrNotFound if there is none,
// ErrUsage if it isn't on cgroup2.
func OpenCgroup(dir string) (Cgroup, error) {
	var stat syscall.Stat_t
	var fsys syscall.Statfs_t
	if err := syscall.Stat(dir, &stat); errors.Is(err, fs.ErrNotExist) {
		return Cgroup{}, fault.New(fault.ErrNotFound, "no cgroup %q", dir).Hint("give the directory below the cgroup2 mount, such as /sys/fs/cgroup/system.slice")
	} else if err != nil {
		return Cgroup{}, fmt.Errorf("look at cgroup %q: %w", dir, err)
	}
	if err := syscall.Statfs(dir, &fsys); err != nil || fsys.Type != unix.CGROUP2_SUPER_MAGIC {
		return Cgroup{}, fault.New(fault.ErrUsage, "%q isn't a directory of a cgroup2 file system", dir).Hint("mount -t cgroup2 shows where cgroup2 is")
	}
	return Cgroup{Dir: &dir, ID: &stat.Ino}, nil
}

// IDs returns the id of the cgroup and those of the cgroups below it; none where it
// isn't on cgroup2.
func (c Cgroup) IDs() map[uint64]bool {
	ids := map[uint64]bool{}
	if c.Dir == nil {
		return ids
	}
	_ = filepath.WalkDir(*c.Dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil { // it went away meanwhile
			return nil
		}
		if info, err := entry.Info(); err == nil && entry.IsDir() {
			ids[info.Sys().(*syscall.Stat_t).Ino] = true
		}
		return nil
	})
	return ids
}

// root is the cgroup that a kubelet makes for all its Pods: one around those of
// the classes of their quality of service, of which guaranteed Pods have none.
func (p podLevel) root() string {
	if p.qos == "guaranteed" {
		return path.Dir(p.path)
	}
	return path.Dir(path.Dir(p.path))
}

// PodRoots implements API.
func (k *Kernel) PodRoots(ctx context.Context) ([]string, error) {
	s, err := newScan(ctx, nil)
	if err != nil {
		return nil, err
	}
	var roots []string
	elsewhere := 0
	for _, g := range s.groups {
		p := g.members[0]
		c, _ := p.container()
		if c.pod.uid == "" {
			continue
		}
		if root, ok := s.dir(c.pod.root()); ok && p.path == p.unified {
			roots = append(roots, root)
		} else {
			elsewhere++
		}
	}
	if len(roots)+elsewhere == 0 {
		roots = s.unused()
	}
	if elsewhere > 0 && len(roots) == 0 {
		return nil, fault.New(fault.ErrUnsupported, "the cgroups of %d Pods are not below a cgroup2 mount", elsewhere).
			Hint("mount -t cgroup2 shows where cgroup2 is; programs can't be attached to version 1 hierarchies")
	}
	if len(roots) == 0 {
		return nil, fault.New(fault.ErrNotFound, "there are no Pods, and no cgroup for them").Hint("bpfnet endpoint list")
	}
	return outermost(roots), nil
}

// unused returns the cgroups that a kubelet makes before it has Pods.
func (s *scan) unused() []string {
	var roots []string
	for _, name := range []string{"kubepods", "kubepods.slice"} {
		if info, err := os.Stat(filepath.Join(s.mount, name)); s.mount != "" && err == nil && info.IsDir() {
			roots = append(roots, filepath.Join(s.mount, name))
		}
	}
	return roots
}

// outermost leaves out directories that are in another one: a program that is
// attached to both would see a packet twice.
func outermost(dirs []string) []string {
	slices.Sort(dirs)
	var list []string
	for _, dir := range dirs {
		if !slices.ContainsFunc(list, func(top string) bool { return within(dir, top) }) {
			list = append(list, dir)
		}
	}
	return list
}
