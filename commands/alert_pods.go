package commands

import (
	"context"
	"time"

	"bpfnet/internal/alert"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/endpoint"
)

// alertPods says which Pods alerts are about. Alerts don't wait for engines that are
// slow: they are without Pods then.
type alertPods struct {
	owners *endpoint.Owners
}

// podsLongest is how long an alert waits for a look.
const podsLongest = 20 * time.Millisecond

// newAlertPods looks for the Pods behind the interfaces that alerts may be of.
func newAlertPods(ctx context.Context, api endpoint.API, devices *deviceNames) alertPods {
	a := alertPods{endpoint.NewOwners(api)}
	var interfaces []uint32
	for index := range devices.names {
		interfaces = append(interfaces, index)
	}
	_, _ = a.owners.Find(ctx, firstLook, interfaces, nil)
	return a
}

// of returns the Pod of an event, which its interface tells, or else its socket's
// cgroup.
func (a alertPods) of(ctx context.Context, e blocklist.Event) alert.K8s {
	pod := a.known(e)
	if pod == nil || pod.Name == nil {
		a.look(ctx, e)
		pod = a.known(e)
	}
	if pod == nil {
		return alert.K8s{}
	}
	return alert.K8s{Namespace: pod.Namespace, Pod: pod.Name}
}

func (a alertPods) look(ctx context.Context, e blocklist.Event) {
	var interfaces []uint32
	var cgroups []uint64
	if e.Hook != "cgroup" {
		interfaces = []uint32{e.IfIndex}
	}
	if e.CgroupID > 1 { // 1 is the root's
		cgroups = []uint64{e.CgroupID}
	}
	_, _ = a.owners.Find(ctx, podsLongest, interfaces, cgroups)
}

// known is the Pod of an event, nil if it isn't known.
func (a alertPods) known(e blocklist.Event) *endpoint.Pod {
	owner, ok := a.owners.Interface(e.IfIndex)
	if e.Hook == "cgroup" || !ok {
		owner, _ = a.owners.Cgroup(e.CgroupID)
	}
	return owner.Pod
}
