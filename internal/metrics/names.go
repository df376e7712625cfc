package metrics

import (
	"context"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/traffic"
)

// A look for owners takes as long as all else, and some places have none: looks for
// the same become rare.
const (
	firstWait = 5 * time.Second
	mostWait  = 5 * time.Minute
)

// lookTime is how long a scrape waits for a look, in which engines have a second, if
// its client has time for that.
const lookTime = 2 * time.Second

// timeFor is how long a scrape can wait for a look and have time left to answer.
func timeFor(ctx context.Context) time.Duration {
	until, ok := ctx.Deadline()
	if !ok {
		return lookTime
	}
	return min(lookTime, time.Until(until)/2)
}

// names says whose places are.
type names struct {
	owners *endpoint.Owners
	asked  map[any]bool // interfaces and cgroups that had no name in the look before
	wait   time.Duration
	next   time.Time // when they are looked for again
}

func newNames(api endpoint.API) *names { return &names{owners: endpoint.NewOwners(api)} }

// find looks for the owners of places, unless they are known, and forgets those of
// others if these are all. It returns the notes of the look.
func (n *names) find(ctx context.Context, now time.Time, places map[place]reading, all bool) ([]string, error) {
	interfaces, cgroups := map[uint32]bool{}, map[uint64]bool{}
	for p, r := range places {
		switch {
		case !r.live:
		case p.point == traffic.TC:
			interfaces[p.ifindex] = true
		default:
			cgroups[p.cgroup] = true
		}
	}
	if all {
		n.owners.Retain(interfaces, cgroups)
	}
	indexes, ids, fresh := n.nameless(interfaces, cgroups)
	if !fresh && (len(indexes)+len(ids) == 0 || now.Before(n.next)) {
		return nil, nil
	}
	n.wait = min(2*n.wait, mostWait)
	if fresh {
		n.wait = firstWait
	}
	n.next, n.asked = now.Add(n.wait), map[any]bool{}
	for _, index := range indexes {
		n.asked[index] = true
	}
	for _, id := range ids {
		n.asked[id] = true
	}
	return n.owners.Find(context.WithoutCancel(ctx), timeFor(ctx), indexes, ids) // a look may outlast its scrape
}

// nameless returns the places without an owner that has a name, and whether any of
// them wasn't looked for yet.
func (n *names) nameless(interfaces map[uint32]bool, cgroups map[uint64]bool) (indexes []uint32, ids []uint64, fresh bool) {
	for index := range interfaces {
		if owner, ok := n.owners.Interface(index); !ok || !owner.Named() {
			indexes, fresh = append(indexes, index), fresh || !n.asked[index]
		}
	}
	for id := range cgroups {
		if owner, ok := n.owners.Cgroup(id); !ok || !owner.Named() {
			ids, fresh = append(ids, id), fresh || !n.asked[id]
		}
	}
	return indexes, ids, fresh
}

// of is whose a place is.
func (n *names) of(p place) (endpoint.Owner, bool) {
	if p.point == traffic.Cgroup {
		return n.owners.Cgroup(p.cgroup)
	}
	return n.owners.Interface(p.ifindex)
}
