package commands

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
)

// fakePods are endpoints with names, by what they are found by.
type fakePods map[string][]endpoint.Endpoint

func (fakePods) CgroupOf(e endpoint.Endpoint, ref endpoint.Ref) (endpoint.Cgroup, map[uint64]bool, error) {
	return fakeEndpoints{}.CgroupOf(e, ref)
}

func (p fakePods) List(context.Context) (endpoint.Listing, error) {
	l := endpoint.Listing{Notes: []string{"listed"}}
	for _, ref := range slices.Sorted(keysOf(p)) {
		if strings.HasPrefix(ref, "pod:") {
			l.Endpoints = append(l.Endpoints, p[ref]...)
		}
	}
	return l, nil
}

func keysOf(p fakePods) func(func(string) bool) {
	return func(yield func(string) bool) {
		for ref := range p {
			if !yield(ref) {
				return
			}
		}
	}
}

func (p fakePods) Show(_ context.Context, ref endpoint.Ref) (endpoint.Listing, error) {
	if found := p[ref.String()]; found != nil {
		return endpoint.Listing{Endpoints: found}, nil
	}
	return endpoint.Listing{}, fault.New(fault.ErrNotFound, "find %s: no process is behind it", ref)
}

func (fakePods) GoneCgroups([]uint64) (map[uint64]bool, error) { return map[uint64]bool{}, nil }

func (fakePods) Surroundings([]uint32) (endpoint.Surroundings, error) {
	return endpoint.Surroundings{}, nil
}

func (p fakePods) PodRoots(context.Context) ([]string, error) {
	return []string{"/sys/fs/cgroup/kubepods", "/sys/fs/cgroup/node/kubepods"}, nil
}

// named makes a Pod with interfaces, "veth-a" or, without a host side, "-".
func named(name string, devices ...string) endpoint.Endpoint {
	e := fakePod()
	e.Pod.Namespace, e.Pod.Name, e.Interfaces = pointer("shop"), &name, []endpoint.Interface{}
	for i, device := range devices {
		side := endpoint.Interface{DevName: &device, IfIndex: pointer(4 + i), Kind: "veth", InnerDevName: pointer(fmt.Sprint("eth", i)), InnerIfIndex: 2 + i}
		if device == "-" {
			side.DevName, side.IfIndex, side.Kind = nil, nil, "macvlan"
		}
		e.Interfaces = append(e.Interfaces, side)
	}
	e.Containers[1].Name, e.Containers[1].Cgroup.ID = pointer("app"), pointer(uint64(77))
	return e
}

func newFakePods() fakePods {
	host := named("agent")
	host.HostNetwork = pointer(true)
	closed := named("closed")
	closed.Interfaces, closed.HostNetwork = nil, nil
	v1 := named("old", "veth-a")
	v1.Cgroup.Dir, v1.Containers[0].Cgroup.Dir = nil, nil
	p := fakePods{
		"pod:shop/web": {named("web", "veth-a", "eth0", "-")}, "pod:shop/agent": {host}, "pod:shop/alone": {named("alone", "-")},
		"pod:shop/closed": {closed}, "pod:shop/old": {v1}, "pod:twice": {named("a", "lo"), named("b", "eth9")},
		"container:web": {fakeContainer()}, "container:bbb": {named("web", "veth-a")}, "container:app": {named("web", "veth-a")},
		"container:lost": {named("web", "veth-a")}, "pid:811": {named("web", "veth-a")}, "pid:900": {named("web", "veth-a")}, "pid:1": {fakeUnit()},
	}
	return p
}

// on runs a line on the fake and returns what it printed.
func (f *fake) on(line string) (exit int, stdout, stderr string) {
	var out, notes bytes.Buffer
	exit = Run(context.Background(), f.env(&out, &notes), strings.Fields(line))
	return exit, out.String(), notes.String()
}

func TestTargets(t *testing.T) {
	app := "/sys/fs/cgroup/kubepods/burstable/pod0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f"
	for _, test := range []struct {
		line string
		exit int
		want string // of all attachments the hooks and targets, or the first line of the error
		says string // on stderr
	}{
		{"tc x --direction ingress --pod shop/web", 0, "tcx_ingress veth-a, tcx_ingress eth0", "note: eth2 (macvlan) of Pod shop/web has no end on the host and is left out"},
		{"xdp x --container web", 0, "xdp veth-a", ""},
		{"xdp x --container app", 0, "xdp veth-a", ""},
		{"cgroup x --pod shop/web", 0, "cgroup " + app, ""},
		{"sockops x --container app", 0, "sockops " + app + "/" + strings.Repeat("b", 64), ""},
		{"cgroup x --container bbb", 0, "cgroup " + app + "/" + strings.Repeat("b", 64), ""},
		{"cgroup x --pod shop/agent", 0, "cgroup " + app, ""},
		{"cgroup x --all-pods", 0, "cgroup /sys/fs/cgroup/kubepods, cgroup /sys/fs/cgroup/node/kubepods", ""},

		{"xdp x --pod shop/agent", 3, `bpfnet: attach xdp "x": Pod shop/agent has no interface: it shares the host's network`, "hint: bpfnet attach cgroup NAME --pod shop/agent\n"},
		{"xdp x --pod shop/alone", 3, `bpfnet: attach xdp "x": Pod shop/alone has no interface with an end on the host`, "--netns pod:shop/alone --dev eth0\n"},
		{"xdp x --pod shop/closed", 5, `bpfnet: attach xdp "x": the network of Pod shop/closed can't be looked into`, "attach cgroup"},
		{"xdp x --pod twice", 2, `bpfnet: attach xdp "x": pod:twice means 2 endpoints: Pod shop/a, Pod shop/b`, "hint: bpfnet endpoint show pod:twice\n"},
		{"xdp x --pod nobody/here", 3, `bpfnet: attach xdp "x": find pod:nobody/here: no process is behind it`, ""},
		{"cgroup x --container lost", 3, `bpfnet: attach cgroup "x": find container:lost: the endpoint that it is in has no container of that name`, ""},
		{"cgroup x --pod shop/old", 6, `bpfnet: attach cgroup "x": the cgroup /kubepods/burstable/pod0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f of Pod shop/old is not below a cgroup2 mount`, "hint: bpfnet attach tc NAME --pod shop/old needs none\n"},
		{"xdp x --pod shop/web --dev eth0", 2, "bpfnet: --dev and --pod exclude each other", ""},
		{"tc x --direction both --all-pods --container web", 2, "bpfnet: --container and --all-pods exclude each other", ""},
		{"tc x --direction both --all-pods=false", 2, "bpfnet: one of --dev, --pod, --container, --all-pods is missing", ""},
		{"xdp x --all-pods", 2, "bpfnet: unknown flag --all-pods", ""},
		{"cgroup x", 2, "bpfnet: one of --cgroup, --pod, --container, --all-pods is missing", ""},
		{"cgroup x --pod=", 2, "bpfnet: flag --pod is empty", ""},
	} {
		f := newFake()
		f.endpoints = newFakePods()
		f.on("load pod-traffic --name x")
		exit, _, stderr := f.on("attach " + test.line)
		got := f.where("x")
		if exit != 0 {
			got = cmp.Or(got, strings.SplitN(stderr, "\n", 2)[0])
		}
		if exit != test.exit || got != test.want || !strings.Contains(stderr, test.says) {
			t.Errorf("attach %s: exit %d, %s\n%s", test.line, exit, got, stderr)
		}
		if exit != 0 {
			continue
		}
		if exit, stdout, stderr := f.on("attach " + test.line + " -o ndjson"); exit != 0 || !strings.Contains(stdout, `"changed":false`) {
			t.Errorf("attach %s again: exit %d, %s%s", test.line, exit, stdout, stderr)
		}
		off := strings.ReplaceAll(test.line, "--direction ingress", "")
		if exit, _, stderr := f.on("detach " + off); exit != 0 || f.where("x") != "" {
			t.Errorf("detach %s: exit %d, left %s\n%s", off, exit, f.where("x"), stderr)
		}
	}
}

// where lists the attachments of an instance.
func (f *fake) where(name string) string {
	var list []string
	for _, a := range f.instances[name].Attachments {
		list = append(list, a.Hook+" "+optional(a.DevName)+optional(a.Cgroup))
	}
	return strings.Join(list, ", ")
}

func TestAllPods(t *testing.T) {
	f := newFake()
	pods := newFakePods()
	f.endpoints = pods
	f.on("load pod-traffic --name x")
	line := "attach tc x --all-pods --direction both"
	exit, _, stderr := f.on(line)
	if exit != 3 || !strings.Contains(stderr, `"eth9"`) {
		t.Errorf("with an interface that isn't there: exit %d, %s", exit, stderr)
	}
	f = newFake()
	delete(pods, "pod:twice")
	f.endpoints = pods
	f.on("load pod-traffic --name x")
	exit, stdout, stderr := f.on(line + " -o json")
	if got := f.where("x"); exit != 0 || got != "tcx_egress veth-a, tcx_ingress veth-a, tcx_egress eth0, tcx_ingress eth0" {
		t.Errorf("exit %d, attached to %s", exit, got)
	}
	if want := "note: 3 Pods without an interface that has an end on the host, left out: Pod shop/agent, Pod shop/alone, Pod shop/closed; bpfnet attach cgroup x --all-pods has all\n"; !strings.Contains(stderr, want) || !strings.Contains(stderr, "note: listed\n") {
		t.Errorf("notes: %s", stderr)
	}
	if strings.Count(stdout, `"hook":`) != 7 {
		t.Errorf("document: %s", stdout)
	}
	if exit, _, _ := f.on("detach tc x --all-pods --direction egress"); exit != 0 || f.where("x") != "tcx_ingress veth-a, tcx_ingress eth0" {
		t.Errorf("after detach: exit %d, %s", exit, f.where("x"))
	}
	for _, name := range []string{"web", "old"} {
		delete(pods, "pod:shop/"+name)
	}
	if exit, _, stderr := f.on(line); exit != 3 || !strings.Contains(stderr, "no Pod has an interface with an end on the host: Pod shop/agent, ") || !strings.Contains(stderr, "hint: bpfnet attach cgroup x --all-pods\n") {
		t.Errorf("exit %d, %s", exit, stderr)
	}
	f.endpoints = fakePods{}
	if exit, _, stderr := f.on(line); exit != 3 || !strings.Contains(stderr, `attach tc "x": there are no Pods`) {
		t.Errorf("without Pods: exit %d, %s", exit, stderr)
	}
	exit, stdout, stderr = f.on("detach tc x --all-pods -o ndjson")
	if exit != 0 || !strings.Contains(stdout, `"changed":false`) || !strings.Contains(stderr, "note: there are no Pods") {
		t.Errorf("detach without Pods: exit %d, %s%s", exit, stdout, stderr)
	}
}

func TestNetNSOfEndpoint(t *testing.T) {
	for _, test := range []struct {
		netns string
		exit  int
		want  string
	}{
		{"container:web", 0, "812 in 4026532301"},
		{"pod:shop/closed", 5, "the network of Pod shop/closed can't be looked into"},
		{"pod:shop/nobody", 3, "find pod:shop/nobody: no process is behind it"},
		{"pod:twice", 2, "pod:twice means 2 endpoints"},
		{"pod:", 2, "nothing follows the colon"},
	} {
		f := newFake()
		f.endpoints = newFakePods()
		exit, _, stderr := f.on("link list --netns " + test.netns)
		got := f.options.NetNS
		if exit != 0 {
			got = stderr
		}
		if exit != test.exit || !strings.Contains(got, test.want) {
			t.Errorf("%s: exit %d, %s", test.netns, exit, got)
		}
	}
}

func TestWatchEndpoint(t *testing.T) {
	for _, test := range []struct {
		line string
		exit int
		want string // addresses that are shown
		says string
	}{
		{"pods --pod shop/old", 0, "10.77.0.4", ""},
		{"pods --pid 811", 0, "10.77.0.4", ""},
		{"pods --once --pid 900", 0, "10.77.0.4", ""},
		{"pods --container web", 0, "10.77.0.4", ""},
		{"pods --pod shop/b", 0, "10.77.0.5", ""},
		{"pods --pod shop/b --address 10.77.0.4", 0, "", ""},
		{"pods --observe cgroup --pid 811", 0, "10.77.0.4", ""},
		{"pods --observe cgroup --container app", 0, "10.77.0.4", ""},
		{"pods --observe cgroup --pod shop/b", 0, "", ""},
		{"pods --pod shop/agent", 0, "", "note: Pod shop/agent has no interface: it shares the host's network, so it is only seen at cgroups (--observe cgroup)\n"},
		{"pods --observe tc --pod shop/agent", 3, "", `shares the host's network","hints":["bpfnet attach cgroup NAME --pod shop/agent"]`},
		{"pods --pid 1", 5, "", `the network of unit nginx.service can't be looked into","hints":["the processes of others take CAP_SYS_PTRACE","bpfnet attach cgroup NAME --cgroup DIR"]`},
		{"pods --observe cgroup --container web", 6, "", `the cgroup /lxc/web of container web is not below a cgroup2 mount","hints":["bpfnet attach tc NAME --container web needs none"]`},
		{"pods --pid 812", 3, "", "no process is behind it"},
		{"pods --pid 0", 2, "", "not the number of a process"},
		{"pods --pid x", 2, "", "a whole number"},
		{"pods --pid 811 --pod shop/old", 2, "", "--pod and --pid exclude each other"},
		{"counters --pod shop/old", 0, "eth0", ""},
		{"counters --container app --limit 3", 0, "eth0", ""},
		{"counters --pod shop/b", 0, "", ""},
		{"counters --pod shop/agent", 3, "", "shares the host's network"},
		{"counters --pod shop/old --dev eth0", 2, "", "--dev and --pod exclude each other"},
	} {
		f := newFake()
		fakeCapabilities(f)
		pods := newFakePods()
		b := named("b", "veth-b")
		b.Interfaces[0].IfIndex = pointer(5)
		pods["pod:shop/b"] = []endpoint.Endpoint{b}
		f.endpoints = pods
		f.on("load pod-traffic")
		f.on("load xdp-counter")
		exit, stdout, stderr := f.on("watch " + test.line + strings.Repeat(" --once", 1-strings.Count(test.line, "--once")) + " -o json")
		var doc struct {
			Pods       []struct{ Address string }
			Interfaces []struct{ DevName string }
		}
		if err := json.Unmarshal([]byte(stdout), &doc); err != nil && exit == 0 {
			t.Errorf("watch %s: %v", test.line, err)
		}
		var shown []string
		for _, pod := range doc.Pods {
			shown = append(shown, pod.Address)
		}
		for _, i := range doc.Interfaces {
			shown = append(shown, i.DevName)
		}
		if got := strings.Join(shown, " "); exit != test.exit || got != test.want || !strings.Contains(stderr, test.says) {
			t.Errorf("watch %s: exit %d, shows %s\n%s", test.line, exit, got, stderr)
		}
	}
}

func TestShowOfEndpoint(t *testing.T) {
	for _, test := range []struct {
		line string
		exit int
		want []string // in what is printed
	}{
		{"net show --pod shop/one", 0, []string{`"devname":"eth0"`}},
		{"net show --pod shop/two", 0, []string{`"devname":"eth0"`, `"devname":"lo"`}},
		{"net show --pod shop/agent", 3, []string{"shares the host's network"}},
		{"net show dev eth0 --pod shop/one", 2, []string{"--pod and an interface exclude each other"}},
		{"net show --dev eth0 --pod shop/one", 2, []string{"--dev and --pod exclude each other"}},
		{"cgroup show --pod shop/one", 0, []string{"count_ingress"}},
		{"cgroup show --container app effective", 0, []string{"count_ingress", "tune"}},
		{"cgroup show /sys/fs/cgroup/x --container app", 2, []string{"unexpected argument"}},
		{"cgroup show --pod shop/old", 6, []string{"not below a cgroup2 mount"}},
	} {
		f := scriptFake()
		pods := newFakePods()
		pods["pod:shop/one"] = []endpoint.Endpoint{named("one", "eth0")}
		pods["pod:shop/two"] = []endpoint.Endpoint{named("two", "eth0", "lo")}
		f.endpoints = pods
		exit, stdout, stderr := f.on(test.line + " -o ndjson")
		for _, want := range test.want {
			if exit != test.exit || !strings.Contains(stdout+stderr, want) || strings.Contains(stdout, "dissect") {
				t.Errorf("%s: exit %d\n%s%s", test.line, exit, stdout, stderr)
			}
		}
	}
}

func TestCompleteEndpoints(t *testing.T) {
	env := completeEnv(t)
	for _, test := range []struct {
		in, want []string
	}{
		{[]string{"attach", "tc", "mine", "--pod", ""}, []string{"shop/web"}},
		{[]string{"attach", "cgroup", "mine", "--container", ""}, []string{strings.Repeat("a", 12), "nginx", "web", strings.Repeat("d", 12)}},
		{[]string{"watch", "pods", "--container=w"}, []string{"--container=web"}},
		{[]string{"run", "pod-traffic", "--pod=s"}, []string{"--pod=shop/web"}},
	} {
		if got := bareWords(complete(env, test.in)); !slices.Equal(got, test.want) {
			t.Errorf("complete(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}
