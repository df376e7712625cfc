// Package endpoint says who is behind a process, a cgroup, a network namespace, an
// interface or an address: which container, which Pod, which unit of systemd. The
// kernel knows it: engines put the ids of containers and Pods into the paths of
// cgroups. Names and labels are what engines say of these ids.
package endpoint

import (
	"context"
	"net/netip"
	"time"
)

// API finds endpoints.
type API interface {
	// List returns the containers and Pods that have a process, sorted by their
	// cgroup.
	List(ctx context.Context) (Listing, error)
	// Show returns the endpoints that are behind ref: several where containers
	// share what it names. ErrNotFound if there is nobody, ErrUsage if the
	// beginning of an id or a name fits several, ErrPermission if this user can't
	// tell.
	Show(ctx context.Context, ref Ref) (Listing, error)
	// CgroupOf returns the cgroup of e that ref means, by which e was found: of a
	// container, or of a process in one, that of the container, also in a Pod. ids
	// are those of the cgroup and of the cgroups below it, in which its processes
	// may be, too; none where it isn't on cgroup2.
	CgroupOf(e Endpoint, ref Ref) (c Cgroup, ids map[uint64]bool, err error)
	// PodRoots returns the directories on cgroup2 below which all Pods are, one
	// for each kubelet; that of a kubelet without Pods if there are none.
	// ErrNotFound without either, ErrUnsupported if they aren't on cgroup2.
	PodRoots(ctx context.Context) ([]string, error)
	// GoneCgroups says which of the cgroups with these ids aren't there any more.
	// ErrPermission if this user can't tell.
	GoneCgroups(ids []uint64) (map[uint64]bool, error)
	// Surroundings returns what is near host-side interfaces, by their indexes.
	Surroundings(hostSides []uint32) (Surroundings, error)
}

// Listing is what was found.
type Listing struct {
	Endpoints []Endpoint
	Notes     []string // what couldn't be read, who couldn't be asked, and why
}

// Kind is what an endpoint is.
type Kind string

// The kinds.
const (
	KindPod       Kind = "pod"       // all containers of a Pod
	KindContainer Kind = "container" // one that has no Pod's cgroup around it
	KindUnit      Kind = "unit"      // of systemd, in no container
	KindProcess   Kind = "process"   // in no container and no unit
)

// Source is where a name comes from: SourceCgroup, or one of package engine's.
type Source string

// SourceCgroup is the path of the cgroup.
const SourceCgroup Source = "cgroup"

// Endpoint is what has one network namespace, and one identity there. Pointers are
// nil where something isn't known.
type Endpoint struct {
	Kind       Kind
	Pod        *Pod        // nil: it is in none
	Containers []Container // none of a unit and a process
	Outer      []Outer     // containers that this one is in, the outermost first
	Unit       *string     // "nginx.service"
	Slice      *string     // of the unit or process
	Process    Process     // the oldest
	Cgroup     Cgroup      // of a Pod the one that its containers' are in

	NetNS       *uint64 // inode
	NetNSCookie *uint64
	HostNetwork *bool       // it is in the host's network namespace
	Interfaces  []Interface // of a namespace of its own, without loopback
}

// Pod is a Pod of Kubernetes.
type Pod struct {
	UID             string  // of a static Pod 32 digits, else with dashes
	QoS             *string // "guaranteed", "burstable", "besteffort"; nil if it has no cgroup
	Namespace, Name *string
	Labels          map[string]string // nil: not known
	Source          Source
}

// Container is a container with a process.
type Container struct {
	Engine  Engine
	ID      string
	Name    *string           // nil: not known, or it is a Pod's sandbox
	Labels  map[string]string // nil: not known
	Source  Source
	Process Process // the oldest
	Cgroup  Cgroup
}

// Outer is a container that another one is in.
type Outer struct {
	Engine Engine
	ID     string
	PodUID *string
}

// Process is a process. It is told from one that has its number later by its start.
type Process struct {
	PID        int
	Start      time.Time
	Executable *string // path in its own mount namespace
	Command    string  // at most 15 bytes, chosen by the process
}

// Cgroup is a cgroup.
type Cgroup struct {
	Path string  // as /proc/PID/cgroup has it
	Dir  *string // on cgroup2; nil: it isn't there, or can't be reached
	ID   *uint64 // that BPF programs see
}

// Interface is an interface inside a network namespace, and its host side.
type Interface struct {
	DevName      *string // of the host side; nil: it has none in the host's namespace
	IfIndex      *int    // of the host side
	Kind         string  // "veth", "netkit", "macvlan", …
	InnerDevName *string
	InnerIfIndex int
	Addresses    []netip.Addr // nil: not known
}
