package commands

import (
	"encoding/json"
	"reflect"
	"testing"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/flow"
)

// growingPod is the fake Pod whose container, of cgroup 4022, is there when its cgroup
// is looked at again.
type growingPod struct {
	fakePods
	looks int
}

func (p *growingPod) CgroupOf(e endpoint.Endpoint, ref endpoint.Ref) (endpoint.Cgroup, map[uint64]bool, error) {
	c, ids, err := p.fakePods.CgroupOf(e, ref)
	if p.looks++; p.looks > 2 {
		ids[4022] = true
	}
	return c, ids, err
}

func TestWatchFlowsOf(t *testing.T) {
	pods := fakePods{"pod:shop/web": {fakePod()}, "container:nginx": {fakePod()}, "container:web": {fakeContainer()}}
	for _, test := range []struct {
		flags   string
		exit    int
		want    flow.Filter
		cookies []string
	}{
		{"--pod shop/web", 0, flow.Filter{Cgroups: []uint64{4020}}, []string{"3", "2"}},
		{"--container nginx", 0, flow.Filter{Cgroups: []uint64{4022}}, []string{"3", "2"}},
		{"--container web", 6, flow.Filter{}, nil},
		{"--pid 900", 0, flow.Filter{PIDs: []uint32{900}}, []string{"9007199254740993"}},
		{"--proto udp,47 --port 53,80", 0, flow.Filter{Transports: []string{"udp", "47"}, Ports: []uint16{53, 80}}, []string{"4"}},
		{"--proto 17,132,1", 0, flow.Filter{Transports: []string{"udp", "sctp", "icmp"}}, []string{"4"}},
		{"--peer 10.77.0.5", 0, flow.Filter{}, []string{"9007199254740993"}}, // by its other address
	} {
		f := newFake()
		f.endpoints = &growingPod{fakePods: pods}
		exit, stdout, stderr := f.on("watch flows --once --since-load -o json --backend sock_diag --instance mine " + test.flags)
		if exit != test.exit {
			t.Errorf("%s: exit %d\n%s", test.flags, exit, stderr)
			continue
		}
		if exit != 0 {
			continue
		}
		var doc flow.Document
		if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
			t.Fatal(err)
		}
		var cookies []string
		for _, shown := range doc.Flows {
			cookies = append(cookies, *shown.Cookie)
		}
		if want := (flow.Request{Instance: "mine", Filter: test.want, Backend: "sock_diag"}); !reflect.DeepEqual(f.flows, want) {
			t.Errorf("%s: %+v was asked for", test.flags, f.flows)
		}
		if !reflect.DeepEqual(cookies, test.cookies) {
			t.Errorf("%s: flows %v", test.flags, cookies)
		}
	}
}
