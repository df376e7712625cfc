package endpoint

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/probe"
)

// InitPIDNamespace is the inode of the namespace that has all processes.
const InitPIDNamespace = 0xEFFFFFFC

// List implements API.
func (k *Kernel) List(ctx context.Context) (Listing, error) {
	s, err := newScan(ctx, &k.sockets)
	if err != nil {
		return Listing{}, err
	}
	s.groups = slices.DeleteFunc(s.groups, func(g *group) bool { return !g.inContainer() })
	if err := s.readNetworks(k.netns, s.groups, false); err != nil {
		return Listing{}, err
	}
	return s.listing(s.groups), nil
}

// Behind returns the containers and Pods that have one of some host-side interfaces,
// by their indexes. It is fast: it asks no engine, so that only ids are known, and
// enters no network namespace, so that addresses aren't.
func (k *Kernel) Behind(ctx context.Context, indexes []uint32) (Listing, error) {
	s, err := newScan(ctx, nil)
	if err != nil {
		return Listing{}, err
	}
	s.outside = true
	s.groups = slices.DeleteFunc(s.groups, func(g *group) bool { return !g.inContainer() })
	if err := s.readNetworks(k.netns, s.groups, false); err != nil {
		return Listing{}, err
	}
	l := s.listing(s.groups)
	l.Endpoints = slices.DeleteFunc(l.Endpoints, func(e Endpoint) bool {
		return !slices.ContainsFunc(e.HostSides(), func(i Interface) bool { return slices.Contains(indexes, uint32(*i.IfIndex)) })
	})
	return l, nil
}

// Show implements API.
func (k *Kernel) Show(ctx context.Context, ref Ref) (Listing, error) {
	s, err := newScan(ctx, &k.sockets)
	if err != nil {
		return Listing{}, err
	}
	var found []*group
	switch ref.form {
	case "pod":
		found, err = s.byPod(ref.value)
	case "pid":
		found, err = s.byPID(int(ref.number))
	case "container":
		found, err = s.byContainer(ref.value)
	case "cgroup":
		found, err = s.byCgroup(ref)
	default:
		return k.showByNetwork(s, ref)
	}
	if err != nil {
		return Listing{}, err
	}
	if err := s.readNetworks(k.netns, found, false); err != nil {
		return Listing{}, err
	}
	return s.answer(ref, found)
}

// answer describes what was found.
func (s *scan) answer(ref Ref, found []*group) (Listing, error) {
	l := s.listing(found)
	if len(l.Endpoints) == 0 {
		return l, fault.New(fault.ErrNotFound, "find %s: no process is behind it", ref).Hint("bpfnet endpoint list")
	}
	return l, nil
}

// showByNetwork finds what only the network namespaces of all processes tell.
func (k *Kernel) showByNetwork(s *scan, ref Ref) (Listing, error) {
	if ref.form == "netns" && ref.number == 0 {
		path, err := netns.Resolve(ref.value)
		if err != nil {
			return Listing{}, err
		}
		if ref.number, err = netns.Inode(path); err != nil {
			return Listing{}, err
		}
	}
	if err := s.readNetworks(k.netns, s.groups, true); err != nil {
		return Listing{}, err
	}
	found := s.byNetwork(func(n *namespace) bool { return n.is(ref) })
	if len(found) == 0 {
		if err := s.nobody(ref); err != nil {
			return Listing{}, err
		}
	}
	return s.answer(ref, found)
}

// nobody is the error for what isn't found, where more is known of it.
func (s *scan) nobody(ref Ref) error {
	if closed, why := s.closed(ref), lacking(); closed > 0 && why != "" {
		return fault.New(fault.ErrPermission, "find %s: network namespaces that can't be looked into: %d (%s)", ref, closed, why)
	}
	switch ref.form {
	case "dev":
		if !slices.Contains(s.host.names, ref.value) {
			return fault.New(fault.ErrNotFound, "find %s: no such interface", ref).Hint("ip link")
		}
	case "":
		for _, a := range s.host.all {
			if a.IP.Equal(ref.address.AsSlice()) {
				return fault.New(fault.ErrNotFound, "find %s: it is an address of this host, which its processes share", ref)
			}
		}
	}
	return nil
}

// is says whether a namespace is what ref names.
func (n *namespace) is(ref Ref) bool {
	if ref.form == "netns" {
		return n.inode == ref.number
	}
	return slices.ContainsFunc(n.interfaces, func(i Interface) bool {
		if ref.form == "dev" {
			return i.DevName != nil && *i.DevName == ref.value
		}
		return slices.Contains(i.Addresses, ref.address)
	})
}

// closed counts the namespaces in which ref could be, for all that this user can
// see. The host's side of an interface is seen from the host.
func (s *scan) closed(ref Ref) int {
	count := 0
	for _, n := range s.namespaces {
		if n.closed && ref.form != "dev" {
			count++
		}
	}
	return count
}

// byNetwork returns the groups of which a process is in a namespace that fits. The
// host's own is everybody's: there only containers count.
func (s *scan) byNetwork(fits func(*namespace) bool) []*group {
	var found []*group
	for _, g := range s.groups {
		if slices.ContainsFunc(g.members, func(p *process) bool {
			n := s.namespaces[p.namespaceKey()]
			return fits(n) && (g.inContainer() || n.inode != s.host.inode)
		}) {
			found = append(found, g)
		}
	}
	return found
}

// byPID returns the group of a process. One that is in no container and no unit
// stands for itself.
func (s *scan) byPID(pid int) ([]*group, error) {
	pid, err := Leader(pid)
	if err != nil {
		return nil, err
	}
	for _, g := range s.groups {
		for _, p := range g.members {
			if p.pid != pid {
				continue
			}
			if !g.inContainer() && p.unit == "" {
				g = &group{path: p.path, members: []*process{p}}
			}
			return []*group{g}, nil
		}
	}
	return nil, fault.New(fault.ErrNotFound, "no process %d", pid)
}

// byCgroup returns the group that a cgroup belongs to, or else those that are below
// it.
func (s *scan) byCgroup(ref Ref) ([]*group, error) {
	cgroup := s.cgroupPath(ref.value)
	dir, _ := s.dir(cgroup)
	_, err := os.Stat(dir)
	var in, below, others []*group
	for _, g := range s.groups {
		switch {
		case within(cgroup, g.path) && (err == nil || g.reaches(cgroup)) && (g.inContainer() || g.members[0].unit != ""):
			in = append(in, g)
		case within(g.path, cgroup) && g.inContainer():
			below = append(below, g)
		case within(g.path, cgroup):
			others = append(others, g)
		}
	}
	for _, found := range [][]*group{innermost(in), below, others} {
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, fault.New(fault.ErrNotFound, "find %s: no process is in it", ref).
		Hint("give the directory below the cgroup2 mount, or the path as in /proc/PID/cgroup")
}

// reaches says whether a process of the group is in the cgroup or below it.
func (g *group) reaches(cgroup string) bool {
	return slices.ContainsFunc(g.members, func(p *process) bool { return within(p.path, cgroup) })
}

// innermost returns the groups with the longest path: the others are around it.
func innermost(groups []*group) []*group {
	longest := 0
	for _, g := range groups {
		longest = max(longest, len(g.path))
	}
	return slices.DeleteFunc(groups, func(g *group) bool { return len(g.path) < longest })
}

// within says whether a cgroup is another one or below it.
func within(cgroup, top string) bool {
	return strings.HasPrefix(cgroup+"/", strings.TrimSuffix(top, "/")+"/")
}

// lacking says what this user can't look into the processes and network namespaces of
// others without; "" if it isn't that.
func lacking() string { return probe.Lacking(probe.CapSysPtrace, probe.CapSysAdmin) }

// listing describes groups, but those that have ended meanwhile.
func (s *scan) listing(groups []*group) Listing {
	l := Listing{Endpoints: []Endpoint{}, Notes: s.unasked}
	closed := 0
	for _, g := range groups {
		first := g.members[0]
		n := s.namespaces[first.namespaceKey()]
		if n.gone {
			continue
		}
		l.Endpoints = append(l.Endpoints, s.endpoint(g, n))
		if first.closed || n.closed {
			closed++
		}
	}
	if closed > 0 {
		note := fmt.Sprintf("%d of %d endpoints can't be looked into, and what isn't known of them is null", closed, len(l.Endpoints))
		if why := lacking(); why != "" {
			note += ": " + why
		}
		l.Notes = append(l.Notes, note)
	}
	if s.hidden > 0 {
		l.Notes = append(l.Notes, fmt.Sprintf("processes that are hidden from this user: %d", s.hidden))
	}
	var stat unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &stat); err != nil || stat.Ino != InitPIDNamespace {
		l.Notes = append(l.Notes, "processes of other pid namespaces aren't in /proc, so theirs are missing")
	}
	return l
}
