package commands

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
)

// fakeEndpoints are a Pod of a sandbox and a container, a container with a name, one
// on the host's network, of which the engine isn't known, and a unit. Some of the Pod
// can't be read.
type fakeEndpoints struct{}

func (fakeEndpoints) List(context.Context) (endpoint.Listing, error) {
	return endpoint.Listing{
		Endpoints: []endpoint.Endpoint{fakePod(), fakeContainer(), fakeHostNetwork()},
		Notes:     []string{"1 of 3 endpoints can't be looked into"},
	}, nil
}

func (fakeEndpoints) Show(_ context.Context, ref endpoint.Ref) (endpoint.Listing, error) {
	switch ref.String() {
	case "dev:veth-a", "container:73051af", "container:web", "fd77::4":
		return endpoint.Listing{Endpoints: []endpoint.Endpoint{fakeContainer()}}, nil
	case "pid:1":
		return endpoint.Listing{Endpoints: []endpoint.Endpoint{fakeUnit()}}, nil
	case "container:7":
		return endpoint.Listing{}, fault.New(fault.ErrUsage, `the ids of several containers begin with "7": 73051af, 74`).Hint("give more of the id")
	}
	return endpoint.Listing{}, fault.New(fault.ErrNotFound, "find %s: no process is behind it", ref)
}

func pointer[V any](v V) *V { return &v }

func fakeProcess(pid int, command string) endpoint.Process {
	return endpoint.Process{PID: pid, Start: time.Date(2026, 1, 2, 3, 4, 5, 120e6, time.UTC), Executable: pointer("/usr/bin/" + command), Command: command}
}

func fakePod() endpoint.Endpoint {
	path := "/kubepods/burstable/pod0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f"
	cgroup := func(path string, id uint64) endpoint.Cgroup {
		return endpoint.Cgroup{Path: path, Dir: pointer("/sys/fs/cgroup" + path), ID: &id}
	}
	e := endpoint.Endpoint{
		Kind: endpoint.KindPod, Pod: &endpoint.Pod{
			UID: "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f", QoS: pointer("burstable"), Namespace: pointer("shop"), Name: pointer("web"),
			Labels: map[string]string{"app": "web"}, Source: "cri",
		},
		Process: fakeProcess(810, "pause"), Cgroup: cgroup(path, 4020),
		Interfaces: []endpoint.Interface{{DevName: pointer("veth-b"), IfIndex: pointer(5), Kind: "veth", InnerIfIndex: 2}}, HostNetwork: pointer(false),
	}
	e.Process.Executable = nil
	for i, command := range []string{"pause", "nginx"} {
		id := strings.Repeat(string(rune('a'+i)), 64)
		e.Containers = append(e.Containers, endpoint.Container{
			Engine: endpoint.Containerd, ID: id, Labels: map[string]string{}, Source: "cri", Process: fakeProcess(810+i, command),
			Cgroup: cgroup(path+"/"+id, uint64(4021+i)),
		})
	}
	e.Containers[1].Name = pointer("nginx")
	return e
}

func fakeContainer() endpoint.Endpoint {
	cgroup := endpoint.Cgroup{Path: "/lxc/web"}
	return endpoint.Endpoint{
		Kind: endpoint.KindContainer, Process: fakeProcess(812, "init"), Cgroup: cgroup,
		Containers: []endpoint.Container{{Engine: endpoint.LXC, ID: "web", Name: pointer("web"), Source: endpoint.SourceCgroup, Process: fakeProcess(812, "init"), Cgroup: cgroup}},
		Outer:      []endpoint.Outer{{Engine: endpoint.Docker, ID: strings.Repeat("c", 64)}},
		NetNS:      pointer(uint64(4026532301)), NetNSCookie: pointer(uint64(1 << 60)), HostNetwork: pointer(false),
		Interfaces: []endpoint.Interface{{
			DevName: pointer("veth-a"), IfIndex: pointer(4), Kind: "veth", InnerDevName: pointer("eth0"), InnerIfIndex: 2,
			Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.4"), netip.MustParseAddr("fd77::4")},
		}},
	}
}

func fakeHostNetwork() endpoint.Endpoint {
	e := fakeContainer()
	e.Process, e.HostNetwork, e.Interfaces, e.Outer = fakeProcess(813, "agent"), pointer(true), []endpoint.Interface{}, nil
	e.Containers[0].ID, e.Containers[0].Name, e.Containers[0].Engine = strings.Repeat("d", 64), nil, endpoint.Unknown
	return e
}

func fakeUnit() endpoint.Endpoint {
	return endpoint.Endpoint{Kind: endpoint.KindUnit, Unit: pointer("nginx.service"), Slice: pointer("system.slice"), Process: fakeProcess(1, "nginx"), Cgroup: endpoint.Cgroup{Path: "/system.slice/nginx.service"}}
}

func (fakeEndpoints) PodRoots(context.Context) ([]string, error) {
	return []string{"/sys/fs/cgroup/kubepods"}, nil
}

func (fakeEndpoints) Surroundings([]uint32) (endpoint.Surroundings, error) {
	return endpoint.Surroundings{
		Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("192.0.2.1")},
		Networks:  []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("10.77.0.0/24")},
	}, nil
}

func (fakeEndpoints) GoneCgroups([]uint64) (map[uint64]bool, error) { return map[uint64]bool{}, nil }

func (fakeEndpoints) CgroupOf(e endpoint.Endpoint, ref endpoint.Ref) (endpoint.Cgroup, map[uint64]bool, error) {
	form, value, _ := strings.Cut(ref.String(), ":")
	c := e.Cgroup
	if form == "pid" {
		for _, one := range e.Containers {
			if strconv.Itoa(one.Process.PID) == value {
				c = one.Cgroup
			}
		}
	}
	if form == "container" {
		one, ok := e.Container(value)
		if !ok {
			return c, nil, fault.New(fault.ErrNotFound, "find %s: the endpoint that it is in has no container of that name", ref)
		}
		c = one.Cgroup
	}
	if c.Dir == nil {
		return c, nil, nil
	}
	return c, map[uint64]bool{*c.ID: true}, nil
}
