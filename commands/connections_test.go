package commands

import (
	"reflect"
	"testing"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/flow"
)

func TestConnectionsOf(t *testing.T) {
	for flags, want := range map[string]flow.CensusRequest{
		"":                  {Filter: flow.Filter{Transports: []string{"tcp"}}},
		"--pid 900":         {Filter: flow.Filter{Transports: []string{"tcp"}, PIDs: []uint32{900}}},
		"--pod shop/web":    {Filter: flow.Filter{Transports: []string{"tcp"}, Cgroups: []uint64{4020}}},
		"--container nginx": {Filter: flow.Filter{Transports: []string{"tcp"}, Cgroups: []uint64{4022}}},
		"--proto udp,raw --port 53 --listening --state close": {
			Filter: flow.Filter{Transports: []string{"udp", "raw"}, Ports: []uint16{53}}, Listen: true, States: []string{"close"},
		},
	} {
		f := newFake()
		f.endpoints = fakePods{"pod:shop/web": {fakePod()}, "container:nginx": []endpoint.Endpoint{fakePod()}}
		if exit, _, stderr := f.on("connections count " + flags); exit != 0 {
			t.Errorf("%s: exit %d\n%s", flags, exit, stderr)
		}
		if !reflect.DeepEqual(f.census, want) {
			t.Errorf("%s: %+v was asked for", flags, f.census)
		}
	}
}
