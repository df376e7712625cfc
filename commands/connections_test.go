package commands

import (
	"bytes"
	"context"
	"reflect"
	"strings"
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

// TestConnectionLines has a terminal, on which an event may be several lines, that have
// all that its one line elsewhere has.
func TestConnectionLines(t *testing.T) {
	const want = "" +
		"03:04:04.001 opened curl/900   1ms 10.77.0.4:40000 -> 10.96.0.1:80\n" +
		"             = 10.77.0.5:8080\n" +
		"03:04:04.999 closed nginx/811  fin local 1m30s 1.0 MB/2.0 kB 10.77.0.5:8080\n" +
		"             <- 10.77.0.4:40000 shop/web nginx\n" +
		"03:04:05.000 failed curl/900   refused peer 1ms\n" +
		"             [2001:db8:1111:2222:3333:4444:5555:6666]:50002\n" +
		"             -> [2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:40443\n"
	for columns, want := range map[int]string{0: strings.ReplaceAll(want, "\n             ", " "), 80: want} {
		var stdout, stderr bytes.Buffer
		f := newFake()
		f.endpoints = fakePods{"pod:shop/web": {fakePod()}}
		env := f.env(&stdout, &stderr)
		env.Terminal = func() (int, int, bool) { return columns, 24, columns > 0 }
		exit := Run(context.Background(), env, strings.Fields("watch connections --count 3"))
		if exit != 0 || stdout.String() != want {
			t.Errorf("%d columns: exit %d: %s\n%s", columns, exit, stderr.String(), stdout.String())
		}
	}
}
