package commands

import (
	"context"
	"testing"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/endpoint"
)

// lateName is a Pod whose name is told from the second look on.
type lateName struct {
	fakeEndpoints
	looks *int
}

func (l lateName) List(context.Context) (endpoint.Listing, error) {
	e := named("web", "veth-a")
	if *l.looks++; *l.looks == 1 {
		e.Pod.Namespace, e.Pod.Name = nil, nil
	}
	return endpoint.Listing{Endpoints: []endpoint.Endpoint{e}}, nil
}

// An alert of a Pod that had no name at first has it.
func TestAlertPodNamedLater(t *testing.T) {
	pods := newAlertPods(context.Background(), lateName{looks: new(int)}, &deviceNames{names: map[uint32]*string{4: pointer("veth-a")}})
	if got := pods.of(context.Background(), blocklist.Event{Hook: "tc", IfIndex: 4}); got.Pod != nil {
		t.Errorf("before the second look: %s", *got.Pod)
	}
	got := pods.of(context.Background(), blocklist.Event{Hook: "tc", IfIndex: 4, CgroupID: 99})
	if got.Pod == nil || *got.Pod != "web" || *got.Namespace != "shop" {
		t.Errorf("after it: %+v", got)
	}
}
