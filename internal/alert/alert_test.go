package alert

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/detect"
	"bpfnet/internal/traffic"
)

func hit() blocklist.Event {
	return blocklist.Event{
		Time:   time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Source: netip.MustParseAddrPort("198.51.100.7:40001"), Destination: netip.MustParseAddrPort("10.0.0.1:443"),
		Protocol: 6, Matched: blocklist.Source,
		Entry: blocklist.Entry{List: "feed", Prefix: netip.MustParsePrefix("198.51.100.0/24")},
	}
}

// TestFingerprint checks which hits are told as the same thing.
func TestFingerprint(t *testing.T) {
	want := OfBlocklist(hit(), nil, nil, 0).Fingerprint
	for name, test := range map[string]struct {
		change func(*blocklist.Event)
		same   bool
	}{
		"another time": {func(e *blocklist.Event) { e.Time = e.Time.Add(time.Hour) }, true},
		"another port": {func(e *blocklist.Event) { e.Source = netip.MustParseAddrPort("198.51.100.7:1") }, true},
		"another address of the entry": {func(e *blocklist.Event) {
			e.Source = netip.MustParseAddrPort("198.51.100.8:40001")
		}, true},
		"the way back": {func(e *blocklist.Event) {
			e.Source, e.Destination, e.Matched = e.Destination, e.Source, blocklist.Destination
		}, true},
		"another list":    {func(e *blocklist.Event) { e.Entry.List = "drops" }, false},
		"another prefix":  {func(e *blocklist.Event) { e.Entry.Prefix = netip.MustParsePrefix("198.51.100.0/25") }, false},
		"another far end": {func(e *blocklist.Event) { e.Destination = netip.MustParseAddrPort("10.0.0.2:443") }, false},
	} {
		e := hit()
		test.change(&e)
		if got := OfBlocklist(e, nil, nil, 0).Fingerprint; (got == want) != test.same {
			t.Errorf("%s: %s, first it was %s", name, got, want)
		}
	}
}

// TestTransport checks the words for protocols, and that what isn't known is null.
func TestTransport(t *testing.T) {
	for protocol, want := range map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 47: "47", 58: "icmp", 132: "sctp"} {
		e := hit()
		e.Protocol = protocol
		if got := NetworkOf(e).Transport; got == nil || *got != want {
			t.Errorf("%d: %v, want %s", protocol, got, want)
		}
	}
	e := hit()
	e.Protocol, e.Source = 0, netip.AddrPortFrom(e.Source.Addr(), 0)
	if n := NetworkOf(e); n.Transport != nil || n.Source.Port != nil || n.Destination.Port == nil {
		t.Errorf("%+v", n)
	}
}

func burst() detect.Finding {
	rule, err := detect.ParseBurst("10MiB/10s")
	if err != nil {
		panic(err)
	}
	uid, index := "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f", uint32(4)
	return detect.Finding{
		Rule: rule, Episode: detect.Episode{
			Kind: detect.Pod, Point: traffic.TC, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			Source: traffic.Who{Address: netip.MustParseAddr("10.77.0.4"), PodUID: &uid, IfIndex: &index},
		},
	}
}

// TestBurstFingerprint checks which bursts are told as the same thing.
func TestBurstFingerprint(t *testing.T) {
	other, index, id := "1b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f", uint32(5), "77"
	address := func(change func(*traffic.Who)) func(*detect.Finding) {
		return func(f *detect.Finding) { f.Kind = detect.Address; change(&f.Source) }
	}
	for name, test := range map[string]struct {
		first, second func(*detect.Finding)
		same          bool
	}{
		"its end": {func(*detect.Finding) {}, func(f *detect.Finding) { f.Ended, f.EndedBy = f.Started, detect.Gone }, true},
		"another address of a Pod": {func(*detect.Finding) {}, func(f *detect.Finding) {
			f.Source.Address, f.Source.IfIndex = netip.MustParseAddr("fd77::4"), &index
		}, true},
		"another Pod": {func(*detect.Finding) {}, func(f *detect.Finding) { f.Source.PodUID = &other }, false},
		"a container": {func(*detect.Finding) {}, func(f *detect.Finding) {
			f.Kind, f.Source.PodUID, f.Source.ContainerID = detect.Container, nil, f.Source.PodUID
		}, false},
		"another threshold":  {func(*detect.Finding) {}, func(f *detect.Finding) { f.Rule.Amount++ }, false},
		"another direction":  {func(*detect.Finding) {}, func(f *detect.Finding) { f.Rule.Direction = detect.Receive }, false},
		"an address":         {address(func(*traffic.Who) {}), address(func(*traffic.Who) {}), true},
		"another interface":  {address(func(*traffic.Who) {}), address(func(p *traffic.Who) { p.IfIndex = &index }), false},
		"a cgroup":           {address(func(*traffic.Who) {}), address(func(p *traffic.Who) { p.CgroupID = &id }), false},
		"another address":    {address(func(*traffic.Who) {}), address(func(p *traffic.Who) { p.Address = netip.MustParseAddr("10.77.0.5") }), false},
		"the name comes":     {func(*detect.Finding) {}, func(f *detect.Finding) { f.Source.Pod = &id }, true},
		"another time, more": {func(*detect.Finding) {}, func(f *detect.Finding) { f.Started, f.Amount = f.Started.Add(time.Hour), 7 }, true},
	} {
		a, b := burst(), burst()
		test.first(&a)
		test.second(&b)
		if got := OfBurst(a).Fingerprint == OfBurst(b).Fingerprint; got != test.same {
			t.Errorf("%s: the same is %v", name, got)
		}
	}
	if a := OfBurst(burst()); a.EndedAt != nil {
		t.Errorf("it ended at %v", a.EndedAt)
	}
}

// TestLabels checks that every label comes from somewhere, and that there are no others.
func TestLabels(t *testing.T) {
	text := func(s string) *string { return &s }
	b := burst()
	b.Source.Namespace, b.Source.Pod, b.Source.Container, b.Source.DevName = text("shop"), text("web-1"), text("app"), text("veth-a")
	a := OfBurst(b)
	a.RuleName = text("big")
	seen := a.Labels()
	for name, value := range OfBlocklist(hit(), text("eth0"), nil, 0).Labels() {
		if _, too := seen[name]; !too {
			seen[name] = value
		}
	}
	want := map[string]string{
		"rule": "burst", "rule_name": "big", "severity": "warning", "fingerprint": a.Fingerprint, "namespace": "shop", "pod": "web-1",
		"container": "app", "endpoint": "pod", "devname": "veth-a", "list": "feed",
	}
	if !maps.Equal(seen, want) || !slices.Equal(slices.Sorted(maps.Keys(want)), slices.Sorted(slices.Values(LabelNames()))) {
		t.Errorf("%v, of %v", seen, LabelNames())
	}
	if nothing := (Alert{Evidence: 7}).Labels(); len(nothing) != 3 {
		t.Errorf("%v", nothing)
	}
}

// TestSummaries checks what people are told of fan-outs and scans.
func TestSummaries(t *testing.T) {
	index := uint32(4)
	ep := detect.Episode{
		Kind: detect.Address, Point: traffic.TC, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Amount: 51, Peak: 60, Threshold: 50,
		Source: traffic.Who{Address: netip.MustParseAddr("10.77.0.4"), IfIndex: &index},
	}
	over := ep
	over.Ended = ep.Started.Add(time.Minute)
	fanout, _ := detect.ParseFanout("50/60s,answered")
	ports, _ := detect.ParseScan("50ports/60s")
	failed, _ := detect.ParseScan("50failed/60s")
	tried := []detect.PeerPort{{Address: netip.MustParseAddr("198.51.100.7"), Port: 22}}
	for want, a := range map[string]Alert{
		"fanout 50/60s,answered of 10.77.0.4: 51 external peers in 60s, threshold 50":   OfFanout(detect.FanoutFinding{Episode: ep, Rule: fanout}),
		"fanout 50/60s,answered of 10.77.0.4 is over: at most 60 external peers in 60s": OfFanout(detect.FanoutFinding{Episode: over, Rule: fanout}),
		"scan 50ports/60s of 10.77.0.4: 51 ports of 198.51.100.7 in 60s, threshold 50":  OfScan(detect.ScanFinding{Episode: ep, Rule: ports, Ports: tried}),
		"scan 50failed/60s of 10.77.0.4 is over: at most 60 failed connections in 60s":  OfScan(detect.ScanFinding{Episode: over, Rule: failed, Ports: tried}),
	} {
		if got := a.Summary(); got != want || !a.Lasts() {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if a, b := OfFanout(detect.FanoutFinding{Episode: ep, Rule: fanout}), OfFanout(detect.FanoutFinding{Episode: over, Rule: fanout}); a.Fingerprint != b.Fingerprint || a.EndedAt != nil || b.EndedAt == nil {
		t.Errorf("%+v\n%+v", a, b)
	}
}
