package commands

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/traffic"
)

// podOwners says whose the entries of programs are that know endpoints.
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

// find looks for the owners of entries, as look does.
func (o *podOwners) find(ctx context.Context, keys iter.Seq[traffic.Key]) []string {
	interfaces, cgroups := map[uint32]bool{}, map[uint64]bool{}
	for key := range keys {
		if key.Point == traffic.Cgroup {
			cgroups[key.CgroupID] = true
		} else {
			interfaces[key.IfIndex] = true
		}
	}
	return o.look(ctx, interfaces, cgroups, nil)
}

// look looks for owners, and returns what people should know, once. Traffic whose owner
// can't be found is shown without.
func (o *podOwners) look(ctx context.Context, interfaces map[uint32]bool, cgroups map[uint64]bool, networks map[endpoint.NetNS]bool) []string {
	notes, err := o.Find(ctx, o.wait, slices.Collect(maps.Keys(interfaces)), slices.Collect(maps.Keys(cgroups)), slices.Collect(maps.Keys(networks))...)
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

// sampleNotes is what people should know of the samples of a loaded instance.
type sampleNotes struct {
	env      *Env
	c        *cli.Context
	backend  Backend
	instance string
	point    traffic.Point // that was asked for
	owners   *podOwners
	attached attachedNews
	told     bool // what the samples leave out
	bypassed bool // packets are known to bypass tc; known once it is told
}

func (e *Env) sampleNotes(c *cli.Context, b Backend, instance string, point traffic.Point) *sampleNotes {
	return &sampleNotes{env: e, c: c, backend: b, instance: instance, point: point, owners: newPodOwners(b.Endpoints()), attached: attachedNews{instance: instance}}
}

// of looks for the owners of a sample's entries, and returns what people should know.
// The first time it tells them itself, and also what the samples leave out.
func (n *sampleNotes) of(ctx context.Context, keys iter.Seq[traffic.Key], attached []traffic.Point) []string {
	notes := n.owners.find(ctx, keys)
	if !n.told {
		n.told = true
		n.env.notes(n.c, notes)
		n.bypassed = n.noteBypass(attached)
		n.notePoint(attached)
		notes = nil
	}
	return append(notes, n.attached.of(len(attached) > 0)...)
}

// notePoint says what the choice of the observation point leaves out.
func (n *sampleNotes) notePoint(attached []traffic.Point) {
	point, several := traffic.DefaultPoint(attached, n.bypassed)
	other := traffic.Cgroup
	if point == traffic.Cgroup {
		other = traffic.TC
	}
	if several && n.point == "" {
		n.env.note(n.c, "note: %s counts at tc and at cgroups; this is %s, --observe %s shows the other", n.instance, point, other)
	}
}

// noteBypass says what tc doesn't see, if that is what may be shown, and returns
// whether there is such.
func (n *sampleNotes) noteBypass(attached []traffic.Point) bool {
	if n.point == traffic.Cgroup || !slices.Contains(attached, traffic.TC) {
		return false
	}
	attachments, err := n.backend.Attachments(n.c.Context, n.instance)
	if err != nil {
		return false // detached meanwhile
	}
	report := n.backend.Bypass(n.c.Context)
	past := report.Past(attachments)
	switch {
	case len(past) > 0 && slices.Contains(attached, traffic.Cgroup):
		n.env.note(n.c, "note: %s: what is redirected doesn't pass tc", bypassText(past))
	case len(past) > 0:
		n.env.note(n.c, "note: %s: what is redirected doesn't pass tc; %s counts it", bypassText(past), insteadOfTC(n.instance))
	case report.Detail != nil:
		n.env.note(n.c, "note: whether packets pass by tc is not known: %s", *report.Detail)
	}
	return len(past) > 0
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
