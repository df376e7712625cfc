package commands

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
)

// The flags that say what a command works on, and allPods, for all Pods.
func podFlag(what string) *cli.StringFlag {
	return &cli.StringFlag{Name: "pod", Usage: what + " of the Pod `NAMESPACE/NAME|UID`"}
}

func containerFlag(what string) *cli.StringFlag {
	return &cli.StringFlag{Name: "container", Usage: what + " of the container `ID|NAME`"}
}

func allPodsFlag(what string) *cli.BoolFlag {
	return &cli.BoolFlag{Name: allPods, Usage: what + " of all Pods that there are now"}
}

const allPods = "all-pods"

// What the flags stand for where interfaces are attached to, and where cgroups are.
const (
	hostSide  = "the host-side interfaces"
	theCgroup = "the cgroup"
)

// devFlags and cgroupFlags name a target, each in another way.
func devFlags() []cli.Flag {
	return []cli.Flag{devFlag(), podFlag(hostSide), containerFlag(hostSide)}
}

func cgroupFlags() []cli.Flag {
	return []cli.Flag{cgroupFlag(), podFlag(theCgroup), containerFlag(theCgroup)}
}

// selection is which one of several flags was given, and what it names.
type selection struct {
	flag  string // "" if none was
	value string
	ref   endpoint.Ref // of an endpoint
}

// isEndpoint says whether the selection names an endpoint.
func (s selection) isEndpoint() bool {
	return s.flag == "pod" || s.flag == "container" || s.flag == "pid"
}

// selectOne reads flags that exclude each other, those of them that the command
// has.
func selectOne(c *cli.Context, flags ...string) (selection, error) {
	var s selection
	var given []string
	for _, name := range flags {
		if c.IsSet(name) && (name != allPods || c.Bool(name)) {
			s.flag = name
			given = append(given, dashed(name))
		}
	}
	switch len(given) {
	case 0:
		return s, nil
	case 1:
		return newSelection(s.flag, fmt.Sprint(c.Value(s.flag)))
	}
	return s, usage(c, "%s exclude each other", strings.Join(given, " and "))
}

func newSelection(flag, value string) (s selection, err error) {
	s = selection{flag: flag, value: value}
	if s.isEndpoint() {
		s.ref, err = endpoint.ParseRef(flag + ":" + value)
	}
	return s, err
}

// targetFlags are those that select a target on the hook of a command.
func targetFlags(c *cli.Context) []string {
	var names []string
	for _, name := range []string{"dev", "cgroup", "pod", "container", allPods} {
		for _, f := range c.Command.Flags {
			if f.Names()[0] == name {
				names = append(names, name)
			}
		}
	}
	return names
}

// selectTarget reads what to attach to.
func selectTarget(c *cli.Context) (selection, error) {
	flags := targetFlags(c)
	s, err := selectOne(c, flags...)
	if err != nil || s.flag != "" || len(flags) == 0 {
		return s, err
	}
	for i := range flags {
		flags[i] = dashed(flags[i])
	}
	return s, usage(c, "one of %s is missing", strings.Join(flags, ", "))
}

// targets are interfaces or cgroups.
type targets struct {
	devices []endpoint.Interface // with their host sides' names; index nil: whichever has the name
	cgroups []string
	mayGo   bool                // one that goes away is no error
	without []endpoint.Endpoint // Pods that have no such target
}

// targets finds what a selection means on a hook, and notes what users should know.
func (e *Env) targets(c *cli.Context, b Backend, hook string, s selection) (targets, error) {
	onDevice := hook == "tc" || hook == "xdp"
	switch {
	case s.flag == "dev":
		return targets{devices: []endpoint.Interface{{DevName: &s.value}}}, nil
	case s.flag == "cgroup":
		return targets{cgroups: []string{s.value}}, nil
	case s.flag == allPods && onDevice:
		return e.podDevices(c, b)
	case s.flag == allPods:
		roots, err := b.Endpoints().PodRoots(c.Context)
		return targets{cgroups: roots}, err
	}
	one, err := e.oneEndpoint(c, b, s)
	if err != nil {
		return targets{}, err
	}
	if onDevice {
		devices, err := hostSides(one)
		e.notes(c, leftOut(one))
		return targets{devices: devices}, err
	}
	cgroup, _, err := b.Endpoints().CgroupOf(one, s.ref)
	if err == nil && cgroup.Dir == nil {
		err = noCgroup(one, cgroup)
	}
	if err != nil {
		return targets{}, err
	}
	return targets{cgroups: []string{*cgroup.Dir}}, nil
}

// oneEndpoint finds the endpoint that a selection names.
func (e *Env) oneEndpoint(c *cli.Context, b Backend, s selection) (endpoint.Endpoint, error) {
	found, err := b.Endpoints().Show(c.Context, s.ref)
	if err != nil {
		return endpoint.Endpoint{}, err
	}
	e.notes(c, found.Notes)
	if n := len(found.Endpoints); n != 1 {
		return endpoint.Endpoint{}, fault.New(fault.ErrUsage, "%s means %d endpoints: %s", s.ref, n, several(found.Endpoints, endpointName)).
			Hint("bpfnet endpoint show %s", s.ref)
	}
	return found.Endpoints[0], nil
}

func noCgroup(e endpoint.Endpoint, cgroup endpoint.Cgroup) error {
	flag, value := selector(e)
	return fault.New(fault.ErrUnsupported, "the cgroup %s of %s is not below a cgroup2 mount", cgroup.Path, endpointName(e)).
		Hint("bpfnet attach tc NAME --%s %s needs none", flag, value)
}

// hostSides are the interfaces of an endpoint that have an end on the host, or the
// reason why it has none.
func hostSides(e endpoint.Endpoint) ([]endpoint.Interface, error) {
	if sides := e.HostSides(); len(sides) > 0 {
		return sides, nil
	}
	flag, value := selector(e)
	inCgroup := fmt.Sprintf("bpfnet attach cgroup NAME --%s %s", flag, value)
	switch {
	case pointed(e.HostNetwork):
		return nil, fault.New(fault.ErrNotFound, "%s has no interface: it shares the host's network", endpointName(e)).Hint("%s", inCgroup)
	case e.HostNetwork == nil:
		return nil, closedNetwork(e).Hint("%s", inCgroup)
	}
	inside := fmt.Sprint(e.Process.PID)
	if flag != "cgroup" {
		inside = flag + ":" + value
	}
	return nil, fault.New(fault.ErrNotFound, "%s has no interface with an end on the host", endpointName(e)).
		Hint("%s", inCgroup).Hint("in its network namespace: --netns %s --dev eth0", inside)
}

func closedNetwork(e endpoint.Endpoint) *fault.Error {
	return fault.New(fault.ErrPermission, "the network of %s can't be looked into", endpointName(e)).
		Hint("the processes of others take CAP_SYS_PTRACE")
}

// leftOut names the interfaces of an endpoint with host sides that have none.
func leftOut(e endpoint.Endpoint) []string {
	var notes []string
	for _, i := range e.Interfaces {
		if i.DevName == nil && len(e.HostSides()) > 0 {
			notes = append(notes, fmt.Sprintf("%s (%s) of %s has no end on the host and is left out", optional(i.InnerDevName), i.Kind, endpointName(e)))
		}
	}
	return notes
}

// podDevices finds the host sides of all Pods that have one.
func (e *Env) podDevices(c *cli.Context, b Backend) (targets, error) {
	found, err := b.Endpoints().List(c.Context)
	if err != nil {
		return targets{}, err
	}
	e.notes(c, found.Notes)
	pods := slices.DeleteFunc(found.Endpoints, func(one endpoint.Endpoint) bool { return one.Kind != endpoint.KindPod })
	t := targets{mayGo: true}
	for _, pod := range pods {
		sides, err := hostSides(pod)
		if err != nil {
			t.without = append(t.without, pod)
		}
		t.devices = append(t.devices, sides...)
		e.notes(c, leftOut(pod))
	}
	switch len(pods) {
	case 0:
		return t, fault.New(fault.ErrNotFound, "there are no Pods").Hint("bpfnet endpoint list")
	case len(t.without):
		return t, fault.New(fault.ErrNotFound, "no Pod has an interface with an end on the host: %s", several(pods, endpointName)).Hint("%s", allInCgroup(c))
	}
	return t, nil
}

// allInCgroup is the command that attaches to all Pods, whatever their network is.
func allInCgroup(c *cli.Context) string {
	return fmt.Sprintf("bpfnet attach cgroup %s --%s", c.Args().First(), allPods)
}

// mostNamed is how many things of one kind a message names.
const mostNamed = 5

func several[T any](items []T, name func(T) string) string {
	var names []string
	for _, item := range items[:min(len(items), mostNamed)] {
		names = append(names, name(item))
	}
	text := strings.Join(names, ", ")
	if more := len(items) - mostNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// endpointName is what people call an endpoint, with what it is.
func endpointName(e endpoint.Endpoint) string {
	switch e.Kind {
	case endpoint.KindPod:
		return "Pod " + podName(e.Pod.Namespace, e.Pod.Name, &e.Pod.UID)
	case endpoint.KindContainer:
		return "container " + containerName(e.Containers[0])
	case endpoint.KindUnit:
		return "unit " + optional(e.Unit)
	}
	return fmt.Sprintf("process %d", e.Process.PID)
}

func containerName(one endpoint.Container) string {
	if one.Name == nil {
		return shortened(one.ID)
	}
	return *one.Name
}

// selector is the flag that selects an endpoint where cgroups are attached to.
func selector(e endpoint.Endpoint) (flag, value string) {
	switch e.Kind {
	case endpoint.KindPod:
		return "pod", podName(e.Pod.Namespace, e.Pod.Name, &e.Pod.UID)
	case endpoint.KindContainer:
		return "container", containerName(e.Containers[0])
	}
	return "cgroup", cmp.Or(optional(e.Cgroup.Dir), "DIR")
}

// attachRequests makes a request for each target.
func (t targets) attachRequests(r datapath.AttachRequest) []datapath.AttachRequest {
	var all []datapath.AttachRequest
	for _, d := range t.devices {
		one := r
		one.Device, one.IfIndex, one.MayBeGone = *d.DevName, indexOf(d), t.mayGo
		all = append(all, one)
	}
	for _, cgroup := range t.cgroups {
		one := r
		one.Cgroup = cgroup
		all = append(all, one)
	}
	return all
}

// detachRequests makes a request for each target.
func (t targets) detachRequests(r datapath.DetachRequest) []datapath.DetachRequest {
	var all []datapath.DetachRequest
	for _, d := range t.devices {
		one := r
		one.Device, one.IfIndex = *d.DevName, indexOf(d)
		all = append(all, one)
	}
	for _, cgroup := range t.cgroups {
		one := r
		one.Cgroup = cgroup
		all = append(all, one)
	}
	return all
}

// indexOf is the index of an interface's host side; 0 if it isn't known.
func indexOf(i endpoint.Interface) uint32 {
	if i.IfIndex == nil {
		return 0
	}
	return uint32(*i.IfIndex)
}

// finder finds what attach commands select, and tells what they should know.
func (e *Env) finder(c *cli.Context, b Backend) finder {
	return func(r datapath.AttachRequest, s selection) ([]datapath.AttachRequest, error) {
		if r.Hook == "trace" {
			return []datapath.AttachRequest{r}, nil
		}
		t, err := e.targets(c, b, r.Hook, s)
		if err != nil {
			return nil, fmt.Errorf("attach %s %q: %w", r.Hook, r.Name, err)
		}
		if n := len(t.without); n > 0 {
			e.note(c, "note: %s without an interface that has an end on the host, left out: %s; %s has all", counted(n, "Pod"), several(t.without, endpointName), allInCgroup(c))
		}
		return t.attachRequests(r), nil
	}
}

// detachFrom makes the requests of a detach command: none, and a note, if there is
// nobody whose targets could be detached from.
func (e *Env) detachFrom(c *cli.Context, b Backend, r datapath.DetachRequest, s selection) ([]datapath.DetachRequest, error) {
	if s.flag == "" {
		return []datapath.DetachRequest{r}, nil
	}
	t, err := e.targets(c, b, r.Hook, s)
	if errors.Is(err, fault.ErrNotFound) {
		e.note(c, "note: %v", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("detach %s %q: %w", r.Hook, r.Name, err)
	}
	return t.detachRequests(r), nil
}

// onHost are the indexes of the host sides of interfaces.
func onHost(interfaces []endpoint.Interface) map[uint32]bool {
	indexes := map[uint32]bool{}
	for _, i := range interfaces {
		if i.IfIndex != nil {
			indexes[indexOf(i)] = true
		}
	}
	return indexes
}

// podsOf says which of the rows of pod-traffic are those of an endpoint, whatever
// their addresses.
func (e *Env) podsOf(c *cli.Context, b Backend, point traffic.Point, s selection) (func(traffic.Key) bool, error) {
	one, err := e.oneEndpoint(c, b, s)
	if err != nil {
		return nil, err
	}
	cgroup, cgroups, err := b.Endpoints().CgroupOf(one, s.ref)
	if err != nil {
		return nil, err
	}
	devices := onHost(one.Interfaces)
	_, reason := hostSides(one)
	switch {
	case reason != nil && (point == traffic.TC || len(cgroups) == 0):
		return nil, reason
	case reason != nil && point == "":
		e.note(c, "note: %v, so it is only seen at cgroups (--observe cgroup)", reason)
	case point == traffic.Cgroup && len(cgroups) == 0:
		return nil, noCgroup(one, cgroup)
	}
	return func(k traffic.Key) bool {
		if k.Point == traffic.Cgroup {
			return cgroups[k.CgroupID]
		}
		return devices[k.IfIndex]
	}, nil
}
