package endpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// Owner is who is behind packets, as far as the place where they were seen tells.
type Owner struct {
	Pod       *Pod       // nil: a container in no Pod
	Container *Container // nil where the containers of a Pod can't be told apart
}

// is says whether both are the same Pod and container.
func (o Owner) is(other Owner) bool {
	return (o.Pod == nil) == (other.Pod == nil) && (o.Pod == nil || o.Pod.UID == other.Pod.UID) &&
		(o.Container == nil) == (other.Container == nil) && (o.Container == nil || o.Container.ID == other.Container.ID)
}

// Named says whether all is known of an owner that people call it by.
func (o Owner) Named() bool {
	return (o.Pod == nil || o.Pod.Name != nil) && (o.Container == nil || o.Container.Name != nil)
}

// NetNS is a network namespace, by its inode.
type NetNS uint64

// Owners says who is behind host-side interfaces, cgroups, addresses and network
// namespaces. It remembers whom it found, who keep their names when they are gone.
type Owners struct {
	api        API
	interfaces map[uint32]Owner
	cgroups    map[uint64]Owner
	addresses  map[netip.Addr]Owner
	networks   map[NetNS]Owner
	asked      map[any]time.Time // when places were looked for that weren't known
	looking    chan look         // gets the look that is under way; nil: none is
	until      time.Time         // Find waits for it
}

// look is what was found, and the cgroups that it was for.
type look struct {
	Listing
	cgroups []uint64
	err     error
}

// NewOwners returns Owners that haven't looked yet.
func NewOwners(api API) *Owners {
	return &Owners{api: api, interfaces: map[uint32]Owner{}, cgroups: map[uint64]Owner{}, addresses: map[netip.Addr]Owner{}, networks: map[NetNS]Owner{}, asked: map[any]time.Time{}}
}

// lookAgain is after what time those are looked for once more who weren't found:
// a container may get its process, and a Pod its name, after the first packet.
const lookAgain = 5 * time.Second

// Find looks who is behind interfaces, cgroups and networks, unless that is known
// already, and waits for at most some time: of a look that takes longer, the Find after
// it has the result. Who can't be found isn't an error. What it returns for people are
// the notes of looks.
func (o *Owners) Find(ctx context.Context, wait time.Duration, interfaces []uint32, cgroups []uint64, networks ...NetNS) (notes []string, err error) {
	select {
	case found := <-o.looking:
		notes, err = o.learn(found)
	default:
	}
	if err != nil || o.looking == nil && !o.due(interfaces, cgroups, networks) {
		return notes, err
	}
	if o.looking == nil {
		o.look(ctx, wait, cgroups)
	}
	select {
	case found := <-o.looking:
		more, err := o.learn(found)
		return append(notes, more...), err
	case <-time.After(time.Until(o.until)):
	case <-ctx.Done():
	}
	return notes, nil
}

// due says whether one of some places has to be looked for.
func (o *Owners) due(interfaces []uint32, cgroups []uint64, networks []NetNS) bool {
	var missing []any
	for _, i := range interfaces {
		if owner, ok := o.interfaces[i]; !ok || !owner.Named() {
			missing = append(missing, i)
		}
	}
	for _, id := range cgroups {
		if owner, ok := o.cgroups[id]; !ok || !owner.Named() {
			missing = append(missing, id)
		}
	}
	for _, id := range networks {
		if owner, ok := o.networks[id]; !ok || !owner.Named() {
			missing = append(missing, id)
		}
	}
	now := time.Now()
	maps.DeleteFunc(o.asked, func(_ any, at time.Time) bool { return now.Sub(at) >= lookAgain })
	if !slices.ContainsFunc(missing, func(place any) bool { return o.asked[place].IsZero() }) {
		return false
	}
	for _, place := range missing {
		o.asked[place] = now
	}
	return true
}

func (o *Owners) look(ctx context.Context, wait time.Duration, cgroups []uint64) {
	looking := make(chan look, 1)
	o.looking, o.until = looking, time.Now().Add(wait)
	go func() {
		listing, err := o.api.List(ctx)
		looking <- look{listing, cgroups, err}
	}()
}

// Retain forgets who is behind other interfaces and cgroups than these, and behind
// networks.
func (o *Owners) Retain(interfaces map[uint32]bool, cgroups map[uint64]bool) {
	maps.DeleteFunc(o.interfaces, func(index uint32, _ Owner) bool { return !interfaces[index] })
	maps.DeleteFunc(o.cgroups, func(id uint64, _ Owner) bool { return !cgroups[id] })
	clear(o.networks)
}

// Interface says who is behind a host-side interface, by its index.
func (o *Owners) Interface(index uint32) (Owner, bool) {
	owner, ok := o.interfaces[index]
	return owner, ok
}

// Cgroup says whose a cgroup is, by its id.
func (o *Owners) Cgroup(id uint64) (Owner, bool) {
	owner, ok := o.cgroups[id]
	return owner, ok
}

// Address says who has an address, the one that is the oldest where several have.
func (o *Owners) Address(address netip.Addr) (Owner, bool) {
	owner, ok := o.addresses[address]
	return owner, ok
}

// Network says whose a network namespace is, but the host's.
func (o *Owners) Network(id NetNS) (Owner, bool) {
	owner, ok := o.networks[id]
	return owner, ok
}

// learn takes over what a look has found. Containers that share a network are there
// by the name of the one that has been in it the longest, whose it was first.
func (o *Owners) learn(found look) (notes []string, err error) {
	o.looking = nil
	if found.err != nil {
		return nil, found.err
	}
	had := o.addresses
	o.addresses = map[netip.Addr]Owner{} // those of who is gone are free
	endpoints := slices.Clone(found.Endpoints)
	slices.SortStableFunc(endpoints, func(a, b Endpoint) int { return b.Process.Start.Compare(a.Process.Start) })
	for _, e := range endpoints {
		whole := Owner{Pod: e.Pod}
		if e.Pod == nil && len(e.Containers) > 0 {
			whole.Container = &e.Containers[0]
		}
		for _, i := range e.Interfaces {
			if i.IfIndex != nil {
				put(o.interfaces, uint32(*i.IfIndex), whole)
			}
			for _, address := range i.Addresses {
				if before, ok := had[address]; ok {
					put(o.addresses, address, before)
				}
				put(o.addresses, address, whole)
			}
		}
		if e.NetNS != nil && e.HostNetwork != nil && !*e.HostNetwork {
			put(o.networks, NetNS(*e.NetNS), whole)
		}
		if e.Cgroup.ID != nil {
			put(o.cgroups, *e.Cgroup.ID, whole)
		}
		for _, c := range e.Containers {
			if c.Cgroup.ID != nil {
				put(o.cgroups, *c.Cgroup.ID, Owner{Pod: e.Pod, Container: &c})
			}
		}
	}
	o.learnBelow(found.cgroups, endpoints)
	return found.Notes, nil
}

// put keeps a name that no engine tells any more.
func put[K comparable](owners map[K]Owner, place K, owner Owner) {
	if had, ok := owners[place]; !ok || owner.Named() || !had.Named() || !had.is(owner) {
		owners[place] = owner
	}
}

// learnBelow finds the containers around cgroups that aren't containers' own.
func (o *Owners) learnBelow(ids []uint64, found []Endpoint) {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id uint64) bool { _, ok := o.cgroups[id]; return ok })
	if len(ids) == 0 {
		return
	}
	// Who can't open cgroups doesn't find them.
	_ = withCgroup2(func(top int) error {
		for _, id := range ids {
			if dir, err := cgroupDir(top, id); err == nil {
				o.learnIn(id, dir, found)
			}
		}
		return nil
	})
}

func (o *Owners) learnIn(id uint64, dir string, found []Endpoint) {
	for _, e := range found {
		for _, c := range e.Containers {
			if c.Cgroup.Dir != nil && strings.HasPrefix(dir, *c.Cgroup.Dir+"/") {
				o.cgroups[id] = Owner{Pod: e.Pod, Container: &c}
			}
		}
	}
}

// kernfsHandle is the type of the handles that kernfs has, which are ids
// (FILEID_KERNFS).
const kernfsHandle = 0xfe

// cgroupDir is the directory of the cgroup2 that has an id: an error where it is gone,
// and without CAP_DAC_READ_SEARCH.
func cgroupDir(top int, id uint64) (string, error) {
	fd, err := openCgroup(top, id)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// GoneCgroups implements API.
func (k *Kernel) GoneCgroups(ids []uint64) (map[uint64]bool, error) {
	gone := map[uint64]bool{}
	err := withCgroup2(func(top int) error {
		for _, id := range ids {
			fd, err := openCgroup(top, id)
			switch {
			case err == nil:
				unix.Close(fd)
			case errors.Is(err, unix.ESTALE):
				gone[id] = true
			case errors.Is(err, unix.EPERM):
				return fault.New(fault.ErrPermission, "open cgroup %d: %w", id, err).Hint("it takes CAP_DAC_READ_SEARCH")
			default:
				return fmt.Errorf("open cgroup %d: %w", id, err)
			}
		}
		return nil
	})
	return gone, err
}

// withCgroup2 opens the directory of cgroup2 for fn.
func withCgroup2(fn func(top int) error) error {
	mount, err := probe.Cgroup2Mount()
	if err != nil {
		return err
	}
	top, err := unix.Open(mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", mount, err)
	}
	defer unix.Close(top)
	return fn(top)
}

// openCgroup opens the cgroup that has an id: ESTALE where it is gone.
func openCgroup(top int, id uint64) (int, error) {
	return unix.OpenByHandleAt(top, unix.NewFileHandle(kernfsHandle, binary.NativeEndian.AppendUint64(nil, id)), unix.O_PATH|unix.O_CLOEXEC)
}
