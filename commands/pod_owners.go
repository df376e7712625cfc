package commands

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/traffic"
)

// podOwners says whose the entries of pod-traffic are.
type podOwners struct {
	*endpoint.Owners
	told map[string]bool // notes that were told
	wait time.Duration   // for the next look
}

// Engines have a second to answer. The first look waits for them, later ones don't:
// what is shown each second is to come each second.
const (
	firstLook  = 5 * time.Second
	laterLooks = 100 * time.Millisecond
)

func newPodOwners(api endpoint.API) *podOwners {
	return &podOwners{endpoint.NewOwners(api), map[string]bool{}, firstLook}
}

// find looks for the owners of a sample, and returns what people should know, once.
// Traffic whose owner can't be found is shown without.
func (o *podOwners) find(ctx context.Context, s traffic.Sample) []string {
	interfaces, cgroups := map[uint32]bool{}, map[uint64]bool{}
	for key := range s.Pods {
		if key.Point == traffic.Cgroup {
			cgroups[key.CgroupID] = true
		} else {
			interfaces[key.IfIndex] = true
		}
	}
	notes, err := o.Find(ctx, o.wait, slices.Collect(maps.Keys(interfaces)), slices.Collect(maps.Keys(cgroups)))
	o.wait = laterLooks
	if err != nil && ctx.Err() == nil {
		notes = append(notes, fmt.Sprintf("whose traffic it is isn't known: %v", err))
	}
	return slices.DeleteFunc(notes, func(note string) bool {
		told := o.told[note]
		o.told[note] = true
		return told
	})
}

// of is whose an entry is.
func (o *podOwners) of(key traffic.Key) (endpoint.Owner, bool) {
	if key.Point == traffic.Cgroup {
		return o.Cgroup(key.CgroupID)
	}
	return o.Interface(key.IfIndex)
}

// podName is NAMESPACE/NAME of a Pod, or its uid where no engine told its name.
func podName(namespace, name, uid *string) string {
	if name == nil {
		return optional(uid)
	}
	return optional(namespace) + "/" + *name
}

// podContainer is the name of a container, or the beginning of its id.
func podContainer(p traffic.Who) string {
	if p.Container == nil && p.ContainerID != nil {
		return shortened(*p.ContainerID)
	}
	return optional(p.Container)
}
