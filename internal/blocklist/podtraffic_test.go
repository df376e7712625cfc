package blocklist

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	. "bpfnet/bpf/packettest"
	"bpfnet/internal/datapath"
	"bpfnet/internal/testkit"
)

// pod-traffic's functions: their verdicts, and whether they count what is dropped.
var podHooks = []struct {
	function     string
	layer3       bool
	counters     string
	pass, drop   uint32
	countsDrops  bool
	headerCounts bool
}{
	{"pod_traffic_ingress", false, "pods", 0xffffffff, 2, true, true},
	{"pod_traffic_egress", false, "pods", 0xffffffff, 2, false, true},
	{"pod_traffic_ingress_l3", true, "pods", 0xffffffff, 2, true, true},
	{"pod_traffic_egress_l3", true, "pods", 0xffffffff, 2, false, true},
	{"pod_traffic_cgroup_egress", true, "cgroup_pods", 1, 0, false, false},
	{"pod_traffic_cgroup_ingress", true, "cgroup_pods", 1, 0, false, false},
}

// loadPodTraffic loads pod-traffic; lists may be there already.
func loadPodTraffic(t testing.TB, set map[string]string) (programs, *datapath.Engine) {
	t.Helper()
	root := testkit.Root(t)
	s, engine := newStoreIn(t, root)
	fillLists(t, s)
	if _, err := engine.Load(context.Background(), datapath.LoadRequest{Source: "pod-traffic", Set: set}); err != nil {
		t.Fatal(err)
	}
	return programs{s, root, "pod-traffic"}, engine
}

// podBytes is what pod-traffic counted in a map and in its rows.
func podBytes(t testing.TB, p programs, name string) (bytes uint64) {
	t.Helper()
	for _, name := range []string{name, "rows"} {
		var key []byte
		var each []bpf.PodCounters
		entries := p.openMap(t, name).Iterate()
		for entries.Next(&key, &each) {
			for _, one := range each {
				bytes += one.TransmitBytes + one.ReceiveBytes
			}
		}
		if err := entries.Err(); err != nil {
			t.Fatal(err)
		}
	}
	return bytes
}

func TestPodTrafficConsultsLists(t *testing.T) {
	p, _ := loadPodTraffic(t, nil)
	before := counted(t, p.Store)
	for _, hook := range podHooks {
		program := p.program(t, hook.function)
		for _, c := range packets {
			if c.only2 && hook.layer3 {
				continue
			}
			packet := c.build(hook.layer3 && hook.headerCounts)
			size := uint64(len(packet))
			if !hook.headerCounts {
				size -= 14 // which the test run takes off
			}
			dropped := c.fate == fate(bpf.BlockDropped)
			want, bytes := hook.pass, size
			if dropped {
				want = hook.drop
			}
			if dropped && !hook.countsDrops {
				bytes = 0
			}
			sum := podBytes(t, p, hook.counters)
			if got := run(t, program, packet); got != want {
				t.Errorf("%s, %s: verdict %d, want %d", hook.function, c.name, got, want)
			}
			if got := podBytes(t, p, hook.counters) - sum; got != bytes {
				t.Errorf("%s, %s: counted %d bytes, want %d", hook.function, c.name, got, bytes)
			}
			before = grew(t, p.Store, hook.function+", "+c.name, before, c.fate)
		}
	}
}

// Without the lists every packet goes on, and is counted in no row of theirs.
func TestPodTrafficWithoutLists(t *testing.T) {
	p, _ := loadPodTraffic(t, map[string]string{"blocklist": "0"})
	before := counted(t, p.Store)
	packet := Build(Ethernet(), v4("203.0.113.7", "10.0.0.1"), UDP(1, 2), Payload(30))
	for _, hook := range podHooks {
		if hook.layer3 {
			continue
		}
		if got := run(t, p.program(t, hook.function), packet); got != hook.pass {
			t.Errorf("%s: verdict %d", hook.function, got)
		}
	}
	grew(t, p.Store, "without lists", before, unlisted)
	if got := podBytes(t, p, "pods"); got != 2*uint64(len(packet)) {
		t.Errorf("counted %d bytes", got)
	}
}

// blocklist and pod-traffic have the same lists; those of the last one that is
// unloaded stay, and its own maps are its own.
func TestPodTrafficSharesLists(t *testing.T) {
	ctx := context.Background()
	p, engine := loadPodTraffic(t, nil)
	packet := Build(Ethernet(), v4("192.0.2.77", "10.0.0.1"), UDP(1, 2), Payload(30))
	if _, err := engine.Load(ctx, datapath.LoadRequest{Source: "blocklist"}); err != nil {
		t.Fatal(err)
	}
	mustAdd(t, p.Store, "drops", "192.0.2.77/32")
	both := []programs{p, {p.Store, p.root, "blocklist"}}
	for _, one := range both {
		function := map[string]string{"pod-traffic": "pod_traffic_egress", "blocklist": "blocklist_egress"}[one.instance]
		if got := run(t, one.program(t, function), packet); got != 2 {
			t.Errorf("%s: verdict %d", function, got)
		}
	}
	if got := counted(t, p.Store)["dropped"].Packets; got != 2 {
		t.Errorf("%d packets dropped", got)
	}
	if _, err := engine.Load(ctx, datapath.LoadRequest{Source: "pod-traffic", Name: "second"}); err != nil {
		t.Fatal(err)
	}
	run(t, p.program(t, "pod_traffic_ingress"), packet)
	if own, other := podBytes(t, p, "pods"), podBytes(t, programs{p.Store, p.root, "second"}, "pods"); own == 0 || other != 0 {
		t.Errorf("%d and %d bytes", own, other)
	}
	// What is replaced keeps its own maps on request, and the lists in any case.
	values := map[bool]string{true: "2", false: "1"}
	for _, reuse := range []bool{true, false} {
		counted := podBytes(t, p, "pods")
		if _, err := engine.Load(ctx, datapath.LoadRequest{Source: "pod-traffic", Set: map[string]string{"blocklist": values[reuse]}, Replace: true, ReuseMaps: reuse}); err != nil {
			t.Fatal(err)
		}
		if got := podBytes(t, p, "pods"); reuse && got != counted || !reuse && got != 0 {
			t.Errorf("reuse %v: %d bytes, before %d", reuse, got, counted)
		}
		if got := run(t, p.program(t, "pod_traffic_egress"), packet); got != 2 {
			t.Errorf("reuse %v: verdict %d", reuse, got)
		}
	}
	for _, name := range []string{"pod-traffic", "second", "blocklist"} {
		if _, err := engine.Unload(ctx, datapath.UnloadRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if got := contents(t, p.Store, "drops"); len(got) != 10 {
		t.Errorf("%v is left", got)
	}
	// A bpfnet that knew fewer maps made the group: reading says so, loading adds them.
	if err := pinRemove(t, filepath.Join(p.root, "@shared:blocklist", "block_answers")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Overview(ctx); err == nil {
		t.Error("a group that lacks a map was read")
	}
	if _, err := engine.Load(ctx, datapath.LoadRequest{Source: "pod-traffic"}); err != nil {
		t.Fatal(err)
	}
	if got := run(t, p.program(t, "pod_traffic_egress"), packet); got != 2 {
		t.Errorf("completed: verdict %d", got)
	}
	if _, err := p.Overview(ctx); err != nil {
		t.Error(err)
	}
}

func pinRemove(t testing.TB, path string) error {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Unpin()
}
