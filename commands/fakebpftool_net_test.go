package commands

import (
	"context"
	"strings"

	"bpfnet/internal/bpftool"
	"bpfnet/internal/fault"
)

// Programs knows two programs of one name, of which one is pinned.
func (fakeBpftool) Programs(_ context.Context, ref string, _ bool) ([]bpftool.Object, error) {
	program := func(id uint32, tag string) bpftool.Object {
		return bpftool.Object{{Name: "id", Value: id}, {Name: "type", Value: "xdp"}, {Name: "name", Value: "twin"}, {Name: "tag", Value: tag}}
	}
	return fakeObjects(ref, map[string][]bpftool.Object{
		"":                                     {program(839, "a04f5eef06a7f555"), program(840, "ff04f5eef06a7f55")},
		"name:twin":                            {program(839, "a04f5eef06a7f555"), program(840, "ff04f5eef06a7f55")},
		"tag:a04f5eef06a7f555":                 {program(839, "a04f5eef06a7f555")},
		"id:839":                               {program(839, "a04f5eef06a7f555")},
		"/sys/fs/bpf/bpfnet/mine/progs/second": {program(840, "ff04f5eef06a7f55")},
		"mine":                                 {program(840, "ff04f5eef06a7f55")},
	})
}

// Links knows one link.
func (fakeBpftool) Links(_ context.Context, ref string, pids bool) ([]bpftool.Object, error) {
	link := bpftool.Object{{Name: "id", Value: 97}, {Name: "type", Value: "tcx"}, {Name: "prog_id", Value: 839}}
	if pids {
		link = append(link, bpftool.Field{Name: "pids", Value: []string{"a process"}})
	}
	return fakeObjects(ref, map[string][]bpftool.Object{"": {link}, "id:97": {link}})
}

func fakeObjects(ref string, known map[string][]bpftool.Object) ([]bpftool.Object, error) {
	docs, ok := known[ref]
	if !ok {
		return nil, fault.New(fault.ErrNotFound, "open %q: no such object", ref)
	}
	return docs, nil
}

func running(id, link uint32, name, pin string) bpftool.Running {
	r := bpftool.Running{ProgID: id}
	if link != 0 {
		r.LinkID = &link
	}
	if name != "" {
		r.ProgName = &name
	}
	if pin != "" {
		r.Pinned = &pin
	}
	return r
}

// Network has a program of each kind: XDP, TCX by bpfnet, a filter, a filter of
// a qdisc, a flow dissector and netfilter.
func (fakeBpftool) Network(_ context.Context, device string) (bpftool.Network, error) {
	eth0, veth := bpftool.Device{DevName: "eth0", IfIndex: 2}, bpftool.Device{DevName: "veth-a", IfIndex: 4}
	n := bpftool.Network{
		NetNS: 4026532301, LinksRead: true,
		XDP: []bpftool.XDP{{Device: eth0, Programs: []bpftool.XDPProgram{{Mode: "driver", Running: running(839, 0, "twin", "")}}}},
		TC: []bpftool.TC{
			{Device: eth0, Kind: "htb", Filter: "cls.o:[cls]", Running: running(850, 0, "cls", "")},
			{Device: veth, Kind: "tcx/ingress", Running: running(841, 97, "pod_traffic_ingress", "/sys/fs/bpf/bpfnet/pod-traffic/links/x")},
			{Device: veth, Kind: "clsact/egress", Filter: "bytecode", Running: running(0, 0, "", "")},
		},
		Stack:     []bpftool.StackProgram{{Hook: "flow_dissector", Running: running(860, 98, "dissect", "")}},
		Netfilter: []bpftool.Netfilter{{Family: 2, Hook: 1, Priority: -128, Running: running(861, 99, "guard", "")}},
		Notes:     []string{},
	}
	switch device {
	case "":
	case "eth0":
		n.TC = n.TC[:1]
	case "lo":
		n.XDP, n.TC = nil, []bpftool.TC{{Device: bpftool.Device{DevName: "lo", IfIndex: 1}, Kind: "clsact/egress", Running: running(0, 0, "", "")}}
	default:
		return n, fault.New(fault.ErrNotFound, "show network of %q: no such interface", device)
	}
	return n, nil
}

// Cgroup has a program of its own, and effective also one from above.
func (fakeBpftool) Cgroup(_ context.Context, path string, effective bool) (bpftool.Cgroup, error) {
	if !strings.HasPrefix(path, "/sys/fs/cgroup/") {
		return bpftool.Cgroup{}, fault.New(fault.ErrNotFound, "show cgroup %q: no such cgroup", path)
	}
	const multi = 2
	own := bpftool.CgroupProgram{AttachType: 0, Flags: multi, Running: running(870, 100, "count_ingress", "")}
	c := bpftool.Cgroup{Path: path, ID: 4021, Effective: effective, KernelBTF: true, LinksRead: true, Programs: []bpftool.CgroupProgram{own}}
	if effective {
		c.Programs = append(c.Programs, bpftool.CgroupProgram{AttachType: 3, Running: running(871, 0, "tune", "")})
	}
	return c, nil
}
