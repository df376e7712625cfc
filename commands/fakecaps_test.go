package commands

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/peers"
	"bpfnet/internal/ports"
	"bpfnet/internal/traffic"
)

// fakeCapabilities gives a fake the built-in programs' own parts. Each sample
// is taken a second after the one before.
func fakeCapabilities(f *fake) {
	f.traffic = &fakeTraffic{fake: f}
	f.counters = &fakeCounters{fake: f}
	f.ports = &fakePorts{fake: f}
}

var sampleStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

type fakeTraffic struct {
	*fake
	samples uint64
}

func (f *fakeTraffic) Sample(context.Context) (traffic.Sample, error) {
	in, err := f.instance("pod-traffic")
	if err != nil {
		return traffic.Sample{}, err
	}
	n := f.samples
	f.samples++
	s := traffic.Sample{
		Time: sampleStart.Add(time.Duration(n) * time.Second),
		Pods: map[traffic.Key]traffic.Counters{
			{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.4"), IfIndex: 4}:       {TransmitBytes: 1000 + 500*n, TransmitPackets: 10 + n, ReceiveBytes: 20, ReceivePackets: 2},
			{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.5"), IfIndex: 5}:       {TransmitBytes: 9000, TransmitPackets: 9, ReceiveBytes: 80, ReceivePackets: 1},
			{Point: traffic.Cgroup, Address: netip.MustParseAddr("10.77.0.4"), CgroupID: 77}: {TransmitBytes: 7, TransmitPackets: 1},
		},
		Rows:    map[traffic.Row]traffic.Counters{{Point: traffic.TC, Name: "non_ip"}: {TransmitBytes: 60, TransmitPackets: 1}},
		Devices: map[uint32]string{4: "veth-a"},
	}
	s.Attached = pointsOf(in)
	return s, nil
}

func pointsOf(in *datapath.Instance) (points []traffic.Point) {
	for _, a := range in.Attachments {
		point := traffic.TC
		if a.Cgroup != nil {
			point = traffic.Cgroup
		}
		points = append(points, point)
	}
	return points
}

type fakePeers struct {
	*fake
	name    string
	samples uint64
}

// Sample has peers of the endpoint at veth-a and of one in a cgroup; later ones have
// another attempt of the first, a peer that is new, and one that nobody has read.
func (f *fakePeers) Sample(context.Context) (peers.Sample, error) {
	in, err := f.instance(f.name)
	if err != nil {
		return peers.Sample{}, err
	}
	n := f.samples
	f.samples++
	web := traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.4"), IfIndex: 4}
	db := traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.5"), IfIndex: 5}
	inside := traffic.Key{Point: traffic.Cgroup, Address: web.Address, CgroupID: 77}
	remote, remote6 := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::1")
	at := func(seconds int64) time.Time { return sampleStart.Add(time.Duration(seconds) * time.Second) }
	https, before := peers.Key{Endpoint: web, Protocol: 6, Address: remote, Port: 443}, peers.Counters{Attempts: 9 + n, Answers: 8, Refusals: 1}
	s := peers.Sample{
		Time: at(int64(n)), First: n == 0, Made: 100 + 2*n,
		Endpoints: map[traffic.Key]peers.Connections{web: {Opened: 13 + n, Received: 2}, db: {Received: 40}, inside: {Opened: 1}},
		Peers: map[peers.Key]peers.Entry{
			https: {Counters: peers.Counters{Attempts: 10 + n, Answers: 8, Refusals: 2}, Before: &before, FirstSeen: at(-60), LastSeen: at(int64(n) - 1)},
		},
		Devices:  map[uint32]string{4: "veth-a"},
		Attached: pointsOf(in),
	}
	if n > 0 {
		s.Peers[peers.Key{Endpoint: web, Protocol: 17, Address: remote6, Port: 53}] = peers.Entry{Counters: peers.Counters{Attempts: 1}, FirstSeen: at(0), LastSeen: at(0)}
		return s, nil
	}
	for key, e := range map[peers.Key]peers.Entry{
		{Endpoint: web, Protocol: 1, Address: remote}:               {Counters: peers.Counters{Attempts: 3, Answers: 3}, FirstSeen: at(-30), LastSeen: at(-20)},
		{Endpoint: inside, Protocol: 17, Address: remote, Port: 53}: {Counters: peers.Counters{Attempts: 1, Answers: 1}, FirstSeen: at(-30), LastSeen: at(-30)},
	} {
		s.Peers[key] = e
	}
	return s, nil
}

type fakeCounters struct {
	*fake
	samples uint64
}

func (f *fakeCounters) Sample(context.Context) (counter.Sample, error) {
	if _, err := f.instance("xdp-counter"); err != nil {
		return counter.Sample{}, err
	}
	n := f.samples
	f.samples++
	return counter.Sample{
		Time:       sampleStart.Add(time.Duration(n) * time.Second),
		Interfaces: map[uint32]counter.Classes{4: {0: {Packets: 10 + 5*n, Bytes: 1000 + 100*n}, 10: {Packets: 1, Bytes: 60}}, 9: {6: {Packets: 1, Bytes: 90}}},
		Devices:    map[uint32]string{4: "eth0"},
	}, nil
}

// fakePorts is the policy of a fake's port-filter. A rule for port 1 can't be
// written.
type fakePorts struct {
	*fake
	policy ports.Policy
}

func (f *fakePorts) Allow(_ context.Context, ranges []ports.Range, dryRun bool) (ports.Result, error) {
	return f.with(ranges, false, dryRun)
}

func (f *fakePorts) Deny(_ context.Context, ranges []ports.Range, dryRun bool) (ports.Result, error) {
	return f.with(ranges, true, dryRun)
}

func (f *fakePorts) with(ranges []ports.Range, drop, dryRun bool) (ports.Result, error) {
	if ranges[0].First == 1 {
		return ports.Result{}, errors.New("replace policy of port-filter: cannot allocate memory")
	}
	next, changed, err := f.policy.With(ranges, drop)
	if err != nil {
		return ports.Result{}, err
	}
	return f.answer(next, changed, dryRun), nil
}

func (f *fakePorts) Remove(_ context.Context, ranges []ports.Range, dryRun bool) (ports.Result, error) {
	next, changed := f.policy.Without(ranges)
	return f.answer(next, changed, dryRun), nil
}

func (f *fakePorts) Default(_ context.Context, change ports.DefaultChange, dryRun bool) (ports.Result, error) {
	next, changed := f.policy.WithDefault(change)
	return f.answer(next, changed, dryRun), nil
}

func (f *fakePorts) List(context.Context) (ports.Listing, error) {
	if _, err := f.instance("port-filter"); err != nil {
		return ports.Listing{}, err
	}
	return f.answer(f.policy, false, true).Listing, nil
}

func (f *fakePorts) answer(next ports.Policy, changed, dryRun bool) ports.Result {
	if !dryRun {
		f.policy = next
	}
	r := ports.Result{Changed: changed, Listing: ports.Listing{
		Policy: next, Rules: make([]ports.Counter, len(next.Rules)), Rows: make([]ports.Counter, len(ports.Rows())),
	}}
	for i, rule := range next.Rules {
		r.Rules[i] = ports.Counter{Packets: uint64(rule.Number), Bytes: 100 * uint64(rule.Number)}
	}
	return r
}

// TestRunInterrupted ends a run by its context, as a signal does: it is a clean
// end, and nothing stays.
func TestRunInterrupted(t *testing.T) {
	f := newFake()
	fakeCapabilities(f)
	var stdout, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	exit := Run(ctx, f.env(&stdout, &stderr), []string{"run", "pod-traffic", "--dev", "veth-a", "-o", "json", "--interval", "20ms"})
	if exit != 0 || len(f.instances) != 0 {
		t.Errorf("exit code %d, %d instances: %s", exit, len(f.instances), &stderr)
	}
	if lines := strings.Count(stdout.String(), "\n"); lines < 2 {
		t.Errorf("%d documents", lines)
	}
}

// stuck is a Backend that can't unload.
type stuck struct{ Backend }

func (stuck) Unload(context.Context, datapath.UnloadRequest) (datapath.Unloaded, error) {
	return datapath.Unloaded{}, fault.New(fault.ErrLocked, "unload x: locked").Hint("wait")
}

func TestCleanUpReportsBoth(t *testing.T) {
	err := cleanUp(fault.New(fault.ErrNotFound, "attach x: gone"), stuck{newFake()}, "x")
	if !errors.Is(err, fault.ErrNotFound) || !errors.Is(err, fault.ErrLocked) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %q", err)
	}
}

func TestJobAttachments(t *testing.T) {
	types := func(kinds ...string) (programs []datapath.Program) {
		for _, kind := range kinds {
			programs = append(programs, datapath.Program{Type: kind})
		}
		return programs
	}
	pod := []selection{{flag: "pod"}}
	find := func(r datapath.AttachRequest, _ selection) ([]datapath.AttachRequest, error) {
		r.Device = "veth-b"
		return []datapath.AttachRequest{r}, nil
	}
	for _, test := range []struct {
		job      job
		programs []datapath.Program
		want     datapath.AttachRequest
	}{
		{job{devices: []string{"d"}, direction: datapath.Both}, types("sched_cls", "cgroup_skb"),
			datapath.AttachRequest{Hook: "tc", Device: "d", Direction: datapath.Both}},
		{job{devices: []string{"d"}, direction: datapath.Ingress}, types("sched_cls", "xdp"),
			datapath.AttachRequest{Hook: "tc", Device: "d", Direction: datapath.Ingress}},
		{job{devices: []string{"d"}, mode: datapath.ModeGeneric}, types("sched_cls", "xdp"),
			datapath.AttachRequest{Hook: "xdp", Device: "d", Mode: datapath.ModeGeneric}},
		{job{devices: []string{"d"}}, types("xdp"),
			datapath.AttachRequest{Hook: "xdp", Device: "d", Mode: datapath.ModeAuto}},
		{job{cgroups: []string{"/c"}, direction: datapath.Both}, types("sched_cls", "cgroup_skb"),
			datapath.AttachRequest{Hook: "cgroup", Cgroup: "/c", Direction: datapath.Both}},
		{job{cgroups: []string{"/c"}}, types("sock_ops"),
			datapath.AttachRequest{Hook: "sockops", Cgroup: "/c"}},
		{job{endpoints: pod, direction: datapath.Both}, types("sched_cls", "cgroup_skb"),
			datapath.AttachRequest{Hook: "tc", Device: "veth-b", Direction: datapath.Both}},
		{job{endpoints: pod, mode: datapath.ModeNative}, types("xdp"),
			datapath.AttachRequest{Hook: "xdp", Device: "veth-b", Mode: datapath.ModeNative}},
		{job{endpoints: pod, direction: datapath.Ingress}, types("cgroup_skb"),
			datapath.AttachRequest{Hook: "cgroup", Device: "veth-b", Direction: datapath.Ingress}},
		{job{endpoints: pod}, types("sock_ops"),
			datapath.AttachRequest{Hook: "sockops", Device: "veth-b"}},
		{job{}, types("tracepoint"), datapath.AttachRequest{Hook: "trace"}},
	} {
		got, err := test.job.attachments(test.programs, find)
		if err != nil || len(got) != 1 || got[0] != test.want {
			t.Errorf("%+v of %+v: %+v, %v", test.job, test.programs, got, err)
		}
	}
}
