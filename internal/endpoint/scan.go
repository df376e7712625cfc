package endpoint

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/engine"
	"bpfnet/internal/probe"
)

// Kernel is the API on this machine's kernel.
type Kernel struct {
	netns   string
	sockets engine.Sockets
}

// New returns an API that looks for host-side interfaces in the network namespace
// at a path, "" for the caller's, and asks the engines at some sockets for names.
func New(netns string, sockets engine.Sockets) *Kernel { return &Kernel{netns, sockets} }

// scan is one look at all processes.
type scan struct {
	boot       time.Time
	mount      string // of cgroup2; "" if it isn't mounted
	mountRoot  string // path of the cgroup that is mounted there
	hidden     int    // processes that this user doesn't see
	groups     []*group
	namespaces map[namespaceKey]*namespace
	host       *host
	told       map[string]engine.Container // by the path of its cgroup
	unasked    []string                    // engines that couldn't be asked, and why
	outside    bool                        // network namespaces aren't entered
}

// namespaceKey is the inode of a network namespace, or where that may not be read, a
// process in it.
type namespaceKey struct {
	inode uint64
	pid   int
}

func (p *process) namespaceKey() namespaceKey {
	if p.netns == 0 {
		return namespaceKey{pid: p.pid}
	}
	return namespaceKey{inode: p.netns}
}

// group is the processes of an endpoint, the oldest first.
type group struct {
	path    string // of the cgroup
	members []*process
}

// groupKey tells endpoints apart. Those in no container are apart, too, where they
// have another network namespace.
type groupKey struct {
	path string
	namespaceKey
}

func (p *process) groupKey() groupKey {
	c, ok := p.container()
	switch {
	case ok && c.pod.uid != "":
		return groupKey{path: c.pod.path}
	case ok:
		return groupKey{path: c.path}
	case p.unit != "":
		return groupKey{p.unitPath, p.namespaceKey()}
	}
	return groupKey{p.path, p.namespaceKey()}
}

// container is the innermost container that the process is in.
func (p *process) container() (level, bool) {
	if len(p.containers) == 0 {
		return level{}, false
	}
	return p.containers[len(p.containers)-1], true
}

// inContainer says whether the group is a container or a Pod.
func (g *group) inContainer() bool { return len(g.members[0].containers) > 0 }

func compareAge(a, b *process) int {
	return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.pid, b.pid))
}

// newScan reads all processes, and puts them into groups, sorted by their cgroup.
// Meanwhile engines are asked, unless sockets is nil.
func newScan(ctx context.Context, sockets *engine.Sockets) (*scan, error) {
	s := &scan{namespaces: map[namespaceKey]*namespace{}, told: map[string]engine.Container{}}
	answer := make(chan engine.Answer, 1)
	if sockets == nil {
		answer <- engine.Answer{}
	} else {
		go func() { answer <- engine.Ask(ctx, *sockets) }()
	}
	var err error
	if s.boot, err = BootTime(); err != nil {
		return nil, err
	}
	s.mount, s.mountRoot, _ = probe.Cgroup2() // without it there are paths, and no directories
	processes, hidden, err := readProcesses()
	if err != nil {
		return nil, err
	}
	s.hidden = hidden
	s.match(processes, <-answer)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	known := map[groupKey]*group{}
	for _, p := range processes {
		key := p.groupKey()
		if known[key] == nil {
			known[key] = &group{path: key.path}
			s.groups = append(s.groups, known[key])
		}
		known[key].members = append(known[key].members, p)
	}
	slices.SortStableFunc(s.groups, func(a, b *group) int {
		return cmp.Or(cmp.Compare(a.path, b.path), compareAge(a.members[0], b.members[0]))
	})
	return s, nil
}

// readNetworks reads the network namespaces that groups are shown with, or all in
// which they have a process.
func (s *scan) readNetworks(path string, groups []*group, all bool) (err error) {
	if s.host, err = openHost(path); err != nil {
		return err
	}
	defer s.host.close()
	s.host.outside = s.outside
	var list []*namespace
	for _, g := range groups {
		for _, p := range g.members {
			key := p.namespaceKey()
			n := s.namespaces[key]
			if n == nil && !all && key != g.members[0].namespaceKey() {
				continue
			}
			if n == nil {
				n = &namespace{inode: p.netns}
				s.namespaces[key], list = n, append(list, n)
			}
			n.members = append(n.members, p)
		}
	}
	// One after the other: entered side by side they wait for the kernel's lock of
	// networks, which takes longer.
	for _, n := range list {
		if err := s.host.read(n); err != nil {
			return err
		}
	}
	return nil
}

// endpoint describes a group and the network namespace of its oldest process.
func (s *scan) endpoint(g *group, n *namespace) Endpoint {
	first := g.members[0]
	e := Endpoint{
		Kind: KindProcess, Process: s.process(first), Cgroup: s.cgroup(first, g.path),
		Unit: known(first.unit), Slice: known(first.slice), Containers: s.containers(g), Outer: outer(first),
		NetNSCookie: n.cookie, HostNetwork: s.host.isHost(n), Interfaces: n.interfaces,
	}
	if n.inode != 0 {
		e.NetNS = &n.inode
	}
	c, inContainer := first.container()
	switch {
	case inContainer && c.pod.uid != "":
		e.Kind, e.Pod = KindPod, s.pod(g, c.pod)
	case inContainer:
		e.Kind, e.Pod = KindContainer, s.pod(g, c.pod)
	case first.unit != "":
		e.Kind = KindUnit
	}
	return e
}

// containers lists the containers of a group, the oldest first.
func (s *scan) containers(g *group) []Container {
	var list []Container
	seen := map[string]bool{}
	for _, p := range g.members {
		c, ok := p.container()
		if !ok || seen[c.path] {
			continue
		}
		seen[c.path] = true
		one := Container{
			Engine: c.engine, ID: c.id, Name: known(c.name), Source: SourceCgroup, Process: s.process(p), Cgroup: s.cgroup(p, c.path),
		}
		if told, ok := s.told[c.path]; ok {
			one.Name, one.Labels, one.Source = known(told.Name), told.Labels, Source(told.Source)
		}
		list = append(list, one)
	}
	return list
}

// outer lists the containers around the innermost one.
func outer(p *process) []Outer {
	var list []Outer
	for _, c := range p.containers[:max(0, len(p.containers)-1)] {
		list = append(list, Outer{Engine: c.engine, ID: c.id, PodUID: known(c.pod.uid)})
	}
	return list
}

func (s *scan) process(p *process) Process {
	return Process{PID: p.pid, Start: startedAt(s.boot, p.start), Executable: known(p.executable), Command: p.command}
}

// cgroup describes the cgroup of that path, which is p's or above it.
func (s *scan) cgroup(p *process, path string) Cgroup {
	c := Cgroup{Path: path}
	dir, ok := s.dir(path)
	if !ok || p.path != p.unified {
		return c
	}
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err == nil {
		c.Dir, c.ID = &dir, &stat.Ino
	}
	return c
}

// dir is the directory of a cgroup on cgroup2. It is false for what isn't below
// the cgroup that is mounted.
func (s *scan) dir(cgroup string) (string, bool) {
	below, ok := strings.CutPrefix(cgroup, strings.TrimSuffix(s.mountRoot, "/"))
	if s.mount == "" || !ok || below != "" && below[0] != '/' || strings.HasPrefix(below+"/", "/../") {
		return "", false
	}
	return filepath.Join(s.mount, below), true
}

// cgroupPath is the path of a cgroup that is given as that, or as its directory.
func (s *scan) cgroupPath(ref string) string {
	below, ok := strings.CutPrefix(ref, s.mount)
	if s.mount == "" || !ok || below != "" && below[0] != '/' {
		return ref
	}
	return cmp.Or(strings.TrimSuffix(s.mountRoot, "/")+below, "/")
}

// known is nil for an empty text.
func known(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}
