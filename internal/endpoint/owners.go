package endpoint

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/probe"
)

// Owner is who is behind packets, as far as the place where they were seen tells.
type Owner struct {
	Pod       *Pod       // nil: a container in no Pod
	Container *Container // nil where the containers of a Pod can't be told apart
}

// named says whether all is known of an owner that people call it by.
func (o Owner) named() bool {
	return (o.Pod == nil || o.Pod.Name != nil) && (o.Container == nil || o.Container.Name != nil)
}

// Owners says who is behind host-side interfaces and cgroups. It remembers whom it
// found, who keep their names when they are gone.
type Owners struct {
	api        API
	interfaces map[uint32]Owner
	cgroups    map[uint64]Owner
	asked      map[any]time.Time // when places were looked for that weren't known
}

// NewOwners returns Owners that haven't looked yet.
func NewOwners(api API) *Owners {
	return &Owners{api: api, interfaces: map[uint32]Owner{}, cgroups: map[uint64]Owner{}, asked: map[any]time.Time{}}
}

// lookAgain is after what time those are looked for once more who weren't found:
// a container may get its process, and a Pod its name, after the first packet.
const lookAgain = 5 * time.Second

// Find looks who is behind interfaces and cgroups, unless that is known already. Who
// can't be found isn't an error. What it returns for people are the notes of a look.
func (o *Owners) Find(ctx context.Context, interfaces []uint32, cgroups []uint64) (notes []string, err error) {
	var missing []any
	for _, i := range interfaces {
		if owner, ok := o.interfaces[i]; !ok || !owner.named() {
			missing = append(missing, i)
		}
	}
	for _, id := range cgroups {
		if owner, ok := o.cgroups[id]; !ok || !owner.named() {
			missing = append(missing, id)
		}
	}
	now := time.Now()
	maps.DeleteFunc(o.asked, func(_ any, at time.Time) bool { return now.Sub(at) >= lookAgain })
	if !slices.ContainsFunc(missing, func(place any) bool { return o.asked[place].IsZero() }) {
		return nil, nil
	}
	for _, place := range missing {
		o.asked[place] = now
	}
	listing, err := o.api.List(ctx)
	if err != nil {
		return nil, err
	}
	o.learn(listing.Endpoints)
	for _, id := range cgroups {
		o.learnBelow(id, listing.Endpoints)
	}
	return listing.Notes, nil
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

// learn takes over what a look has found. Containers that share a network are there
// by the name of the one that has been in it the longest, whose it was first.
func (o *Owners) learn(found []Endpoint) {
	found = slices.Clone(found)
	slices.SortStableFunc(found, func(a, b Endpoint) int { return b.Process.Start.Compare(a.Process.Start) })
	for _, e := range found {
		whole := Owner{Pod: e.Pod}
		if e.Pod == nil && len(e.Containers) > 0 {
			whole.Container = &e.Containers[0]
		}
		for _, i := range e.Interfaces {
			if i.IfIndex != nil {
				o.interfaces[uint32(*i.IfIndex)] = whole
			}
		}
		if e.Cgroup.ID != nil {
			o.cgroups[*e.Cgroup.ID] = whole
		}
		for _, c := range e.Containers {
			if c.Cgroup.ID != nil {
				o.cgroups[*c.Cgroup.ID] = Owner{Pod: e.Pod, Container: &c}
			}
		}
	}
}

// learnBelow finds the container around a cgroup that isn't a container's own.
func (o *Owners) learnBelow(id uint64, found []Endpoint) {
	if _, ok := o.cgroups[id]; ok {
		return
	}
	dir, ok := cgroupDir(id)
	if !ok {
		return
	}
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

// cgroupDir is the directory of the cgroup2 that has an id. It is false where it is
// gone, and without CAP_DAC_READ_SEARCH.
func cgroupDir(id uint64) (string, bool) {
	mount, err := probe.Cgroup2Mount()
	if err != nil {
		return "", false
	}
	top, err := unix.Open(mount, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(top)
	fd, err := unix.OpenByHandleAt(top, unix.NewFileHandle(kernfsHandle, binary.NativeEndian.AppendUint64(nil, id)), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return dir, err == nil
}
