package datapath

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/probe"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

var ctx = context.Background()

// tcHook is the word for a tc hook by the mechanism that this kernel has.
func tcHook(d Direction) string {
	if probe.Feature("tcx") != nil {
		return "clsact_" + string(d)
	}
	return "tcx_" + string(d)
}

// open waits a minute for other writers: an emulated machine takes seconds to
// load a program.
func open(t *testing.T, root, ns string) *Engine {
	t.Helper()
	e, err := Open(Options{Root: root, NetNS: ns, LockTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// setup gives a test a root, two joined namespaces and an engine in the first.
func setup(t *testing.T) (e *Engine, nsA, nsB string) {
	t.Helper()
	root := testkit.Root(t)
	nsA, nsB = testkit.Pair(t)
	return open(t, root, nsA), nsA, nsB
}

func load(t *testing.T, e *Engine, req LoadRequest) Loaded {
	t.Helper()
	loaded, err := e.Load(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func attach(t *testing.T, e *Engine, req AttachRequest) Attached {
	t.Helper()
	attached, err := e.Attach(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return attached
}

func instance(t *testing.T, e *Engine, name string) Instance {
	t.Helper()
	all, err := e.Instances(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 {
		t.Fatalf("%d instances", len(all))
	}
	if alone, err := e.Attachments(ctx, name); err != nil || !reflect.DeepEqual(alone, all[0].Attachments) {
		t.Errorf("attachments alone are %+v, %v, want %+v", alone, err, all[0].Attachments)
	}
	return all[0]
}

// send sends n UDP datagrams of size bytes from one namespace to 10.77.0.x in
// the other.
func send(t *testing.T, from, to string, n, size int) {
	t.Helper()
	err := netns.Do(from, func() error {
		conn, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		defer conn.Close()
		for sent := 0; sent < n; {
			_, err := conn.Write(make([]byte, size))
			switch {
			case err == nil:
				sent++
			case !errors.Is(err, unix.ECONNREFUSED): // an earlier one's ICMP port unreachable; this one wasn't sent
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func packets(t *testing.T, e *Engine, name string) uint64 {
	t.Helper()
	m, err := e.OpenMap(name, "packets", true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var perCPU [][2]uint64
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, v := range perCPU {
		sum += v[0]
	}
	return sum
}

func TestLoadIsIdempotent(t *testing.T) {
	e, _, _ := setup(t)
	first := load(t, e, LoadRequest{Source: "xdp-counter"})
	if !first.Changed || !first.Builtin || len(first.Programs) == 0 || len(first.Maps) == 0 {
		t.Fatalf("first load: %+v", first)
	}
	again := load(t, e, LoadRequest{Source: "xdp-counter"})
	if again.Changed || again.Programs[0].ID != first.Programs[0].ID {
		t.Fatalf("second load: %+v", again)
	}
	_, err := e.Load(ctx, LoadRequest{Source: "xdp-counter", MaxEntries: map[string]uint32{"interfaces": 16}})
	if !errors.Is(err, fault.ErrConflict) {
		t.Fatalf("other parameters: %v", err)
	}
	replaced := load(t, e, LoadRequest{Source: "xdp-counter", MaxEntries: map[string]uint32{"interfaces": 16}, Replace: true})
	if !replaced.Changed || replaced.Programs[0].ID == first.Programs[0].ID {
		t.Fatalf("replace: %+v", replaced)
	}
	for _, m := range replaced.Maps {
		if m.Name == "interfaces" && m.MaxEntries != 16 {
			t.Errorf("max_entries %d", m.MaxEntries)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	e, _, _ := setup(t)
	if l := load(t, e, LoadRequest{Source: "xdp-counter", DryRun: true}); !l.Changed {
		t.Error("a dry run of a first load doesn't report a change")
	} else if l.Programs[0].ID != 0 || l.Maps[0].ID != 0 {
		t.Errorf("ids of what isn't there: %+v", l)
	}
	if _, err := os.Stat(string(e.root)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a dry run made the root: %v", err)
	}
	load(t, e, LoadRequest{Source: "xdp-counter"})
	a := attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", DryRun: true})
	if !a.Changed || len(instance(t, e, "xdp-counter").Attachments) != 0 {
		t.Fatalf("dry run of attach: %+v", a)
	}
	u, err := e.Unload(ctx, UnloadRequest{All: true, DryRun: true})
	if err != nil || !u.Changed {
		t.Fatalf("%+v %v", u, err)
	}
	instance(t, e, "xdp-counter")
}

func TestXDPCountsRealPackets(t *testing.T) {
	for _, mode := range []XDPMode{ModeAuto, ModeNative, ModeGeneric} {
		t.Run(string(mode), func(t *testing.T) {
			e, _, nsB := setup(t)
			load(t, e, LoadRequest{Source: "xdp-counter"})
			got := attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", Mode: mode})
			a := got.Attachments[0]
			want := string(mode)
			if mode == ModeAuto {
				want = string(ModeNative)
			}
			if !got.Changed || a.Mode == nil || *a.Mode != want || a.Mechanism != "link" || a.LinkID == nil || *a.DevName != "a" {
				t.Fatalf("%+v mode %v", a, a.Mode)
			}
			if wantsNote := want == "native"; (len(a.Notes) > 0) != wantsNote {
				t.Errorf("notes on a veth: %q", a.Notes)
			}
			if elsewhere := instance(t, open(t, string(e.root), nsB), "xdp-counter").Attachments[0]; elsewhere.Mode == nil || *elsewhere.Mode != want {
				t.Errorf("mode seen from another namespace: %v", elsewhere.Mode)
			}
			before := packets(t, e, "xdp-counter")
			send(t, nsB, "10.77.0.1:9", 100, 64)
			if n := packets(t, e, "xdp-counter") - before; n < 100 {
				t.Errorf("counted %d of 100 packets", n)
			}
			if again := attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", Mode: mode}); again.Changed {
				t.Errorf("attaching again changed %+v", again)
			}
			d, err := e.Detach(ctx, DetachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a"})
			if err != nil || !d.Changed || len(d.Attachments) != 1 {
				t.Fatalf("detach: %+v %v", d, err)
			}
			before = packets(t, e, "xdp-counter")
			send(t, nsB, "10.77.0.1:9", 10, 64)
			if n := packets(t, e, "xdp-counter") - before; n != 0 {
				t.Errorf("counted %d packets after detach", n)
			}
			if d, err := e.Detach(ctx, DetachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a"}); err != nil || d.Changed {
				t.Errorf("second detach: %+v %v", d, err)
			}
		})
	}
}

func TestXDPConflictNamesTheHolder(t *testing.T) {
	e, nsA, _ := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	load(t, e, LoadRequest{Source: "xdp-counter", Name: "second"})
	attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a"})
	_, err := e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "second", Device: "a"})
	if !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), "xdp-counter/xdp_counter") {
		t.Fatalf("got %v", err)
	}
	if _, err := e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "second", Device: "a", DryRun: true}); !errors.Is(err, fault.ErrConflict) {
		t.Fatalf("dry run: %v", err)
	}
	before := instance(t, e, "xdp-counter").Attachments[0]
	taken := attach(t, e, AttachRequest{Hook: "xdp", Name: "second", Device: "a", Replace: true})
	if a := taken.Attachments[0]; !taken.Changed || *a.LinkID != *before.LinkID || a.ProgID == before.ProgID {
		t.Fatalf("take over: %+v", a)
	}
	if left := instance(t, e, "xdp-counter").Attachments; len(left) != 0 {
		t.Errorf("still attached: %+v", left)
	}
	if _, err := e.Detach(ctx, DetachRequest{Name: "second"}); err != nil {
		t.Fatal(err)
	}

	// Somebody else's program.
	prog := passXDP(t)
	var foreign link.Link
	err = netns.Do(nsA, func() error {
		dev, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		foreign, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Attrs().Index})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	_, err = e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "second", Device: "a", Replace: true})
	info, _ := foreign.Info()
	if !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), `"foreign"`) || !strings.Contains(err.Error(), "link id") {
		t.Fatalf("foreign program %d, link %d: %v", info.Program, info.ID, err)
	}
}

func passXDP(t *testing.T) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	return prog
}

// Replacing a running instance must not let a packet pass unseen: with the maps
// kept, every packet sent while it is replaced over and over is counted.
func TestReplaceMissesNoPacket(t *testing.T) {
	e, _, nsB := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", Mode: ModeGeneric})
	base := packets(t, e, "xdp-counter")
	const n = 20000
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(t, nsB, "10.77.0.1:9", n, 10)
	}()
	swaps := 0
	for running := true; running; swaps++ {
		select {
		case <-done:
			running = false
		default:
		}
		// Only the recorded parameters differ: the same object, loaded anew.
		l := load(t, e, LoadRequest{Source: "xdp-counter", Replace: true, ReuseMaps: true, Programs: [][]string{{"xdp_counter"}, nil}[swaps%2]})
		if !l.Changed || !l.Replaced {
			t.Fatalf("%+v", l)
		}
	}
	if got := packets(t, e, "xdp-counter") - base; got < n {
		t.Errorf("counted %d of %d packets over %d replacements", got, n, swaps)
	} else {
		t.Logf("%d packets, %d replacements", got, swaps)
	}
}

func TestReplaceRefusesWhatWouldStrandAnAttachment(t *testing.T) {
	e, _, _ := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both})
	_, err := e.Load(ctx, LoadRequest{Source: "pod-traffic", Programs: []string{"pod_traffic_egress"}, Replace: true})
	if !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), "pod_traffic_ingress") {
		t.Fatalf("got %v", err)
	}
	_, err = e.Load(ctx, LoadRequest{Source: "pod-traffic", MaxEntries: map[string]uint32{"pods": 8}, Replace: true, ReuseMaps: true})
	if !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), "MaxEntries") {
		t.Fatalf("incompatible map: %v", err)
	}
	if got := instance(t, e, "pod-traffic").Attachments; len(got) != 2 {
		t.Errorf("%d attachments left", len(got))
	}
}

func TestTCBothDirections(t *testing.T) {
	e, _, _ := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	got := attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both})
	if !got.Changed || len(got.Attachments) != 2 {
		t.Fatalf("%+v", got)
	}
	for i, hook := range []string{tcHook(Ingress), tcHook(Egress)} {
		if got.Attachments[i].Hook != hook {
			t.Errorf("hook %q", got.Attachments[i].Hook)
		}
	}
	if _, err := e.Unload(ctx, UnloadRequest{Name: "pod-traffic"}); !errors.Is(err, fault.ErrConflict) {
		t.Errorf("unload while attached: %v", err)
	}
	d, err := e.Detach(ctx, DetachRequest{Hook: "tc", Name: "pod-traffic", Direction: Ingress})
	if err != nil || len(d.Attachments) != 1 || d.Attachments[0].Hook != tcHook(Ingress) {
		t.Fatalf("%+v %v", d, err)
	}
	again := attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both})
	if !again.Changed || !again.Attachments[0].Changed || again.Attachments[1].Changed {
		t.Errorf("attach of the missing half: %+v", again)
	}
	u, err := e.Unload(ctx, UnloadRequest{Name: "pod-traffic", Detach: true})
	if err != nil || !u.Changed || u.Detached != 2 {
		t.Fatalf("%+v %v", u, err)
	}
	if u, err := e.Unload(ctx, UnloadRequest{Name: "pod-traffic"}); err != nil || u.Changed {
		t.Errorf("second unload: %+v %v", u, err)
	}
}

func TestTCOrder(t *testing.T) {
	e, nsA, _ := setup(t)
	ids := map[ObjectID]string{}
	at := func(name string, p Position) error {
		load(t, e, LoadRequest{Source: "pod-traffic", Name: name})
		got, err := e.Attach(ctx, AttachRequest{Hook: "tc", Name: name, Device: "a", Direction: Ingress, Position: p})
		if err == nil {
			ids[got.Attachments[0].ProgID] = name
		}
		return err
	}
	for _, step := range []struct {
		name string
		at   Position
	}{{"m", Position{}}, {"z", Position{Last: true}}, {"a", Position{First: true}}, {"b", Position{Before: "m"}}, {"n", Position{After: "m"}}} {
		err := at(step.name, step.at)
		relative := step.at.Before != "" || step.at.After != ""
		if probe.Feature("tcx") != nil && relative {
			if !errors.Is(err, fault.ErrUnsupported) {
				t.Errorf("%+v without TCX: %v", step.at, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if probe.Feature("tcx") != nil {
		return // the order of filters is their priority; nothing lists it by program
	}
	order := func() string {
		var text strings.Builder
		err := netns.Do(nsA, func() error {
			dev, err := resolveDevice("a")
			if err != nil {
				return err
			}
			r, err := link.QueryPrograms(link.QueryOptions{Target: int(dev.IfIndex), Attach: ebpf.AttachTCXIngress})
			if err != nil {
				return err
			}
			for _, p := range r.Programs {
				text.WriteString(ids[ObjectID(p.ID)])
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	if got := order(); got != "abmnz" {
		t.Errorf("order %q", got)
	}
	if err := at("a", Position{First: true}); err != nil {
		t.Errorf("where it is already: %v", err)
	}
	if err := at("a", Position{Last: true}); !errors.Is(err, fault.ErrConflict) {
		t.Errorf("elsewhere: %v", err)
	}
	if err := at("x", Position{Before: "nobody"}); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("before nobody: %v", err)
	}
}

func TestPerInterfaceCountersRefuseASecondNamespace(t *testing.T) {
	e, _, nsB := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a"})
	other := open(t, string(e.root), nsB)
	_, err := other.Attach(ctx, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "b"})
	a := instance(t, e, "xdp-counter").Attachments[0]
	var index uint32
	_ = netns.Do(nsB, func() error { d, err := resolveDevice("b"); index = d.IfIndex; return err })
	if same := index == *a.IfIndex; errors.Is(err, fault.ErrConflict) != same {
		t.Fatalf("index %d and %d: %v", *a.IfIndex, index, err)
	}
}

func TestDefunct(t *testing.T) {
	e, nsA, _ := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	load(t, e, LoadRequest{Source: "xdp-counter"})
	attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both})
	attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a"})
	cgroup := testkit.Cgroup(t)
	attach(t, e, AttachRequest{Hook: "cgroup", Name: "pod-traffic", Cgroup: cgroup})
	err := netns.Do(nsA, func() error {
		dev, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		return netlink.LinkDel(dev)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(cgroup); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // the kernel lets go of a cgroup's programs later
	for _, i := range []Instance{instance(t, e, "pod-traffic"), instance(t, e, "xdp-counter")} {
		for _, a := range i.Attachments {
			if !a.Defunct {
				t.Errorf("not defunct: %+v", a)
			}
		}
	}
	load(t, e, LoadRequest{Source: "pod-traffic", Set: map[string]string{"match_prefixes": "1"}, Replace: true})
	d, err := e.Detach(ctx, DetachRequest{Hook: "tc", Name: "pod-traffic", Defunct: true})
	want := 2
	if probe.Feature("tcx") != nil {
		want = 0 // filters go with their interface
	}
	if err != nil || len(d.Attachments) != want {
		t.Fatalf("%+v %v", d, err)
	}
	d, err = e.Detach(ctx, DetachRequest{Defunct: true})
	if err != nil || len(d.Attachments) != 3 {
		t.Fatalf("%+v %v", d, err)
	}
	if u, err := e.Unload(ctx, UnloadRequest{All: true}); err != nil || !u.Changed {
		t.Fatalf("%+v %v", u, err)
	}
}

// A namespace that is deleted takes its interfaces along.
func TestDefunctAfterTheNamespaceIsGone(t *testing.T) {
	root := testkit.Root(t)
	_, nsB := testkit.Pair(t)
	load(t, open(t, root, nsB), LoadRequest{Source: "xdp-counter"})
	attach(t, open(t, root, nsB), AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "b"})
	if err := netns.Do(nsB, func() error {
		l, err := netlink.LinkByName("b")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}); err != nil {
		t.Fatal(err)
	}
	a := instance(t, open(t, root, ""), "xdp-counter").Attachments[0]
	if !a.Defunct || a.DevName == nil || *a.DevName != "b" {
		t.Errorf("%+v", a)
	}
}

func TestCgroupAttachment(t *testing.T) {
	e, _, _ := setup(t)
	cgroup := testkit.Cgroup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	got := attach(t, e, AttachRequest{Hook: "cgroup", Name: "pod-traffic", Cgroup: cgroup})
	if len(got.Attachments) != 2 || *got.Attachments[0].Cgroup != cgroup || got.Attachments[0].CgroupID == nil {
		t.Fatalf("%+v", got)
	}
	if again := attach(t, e, AttachRequest{Hook: "cgroup", Name: "pod-traffic", Cgroup: cgroup}); again.Changed {
		t.Errorf("again: %+v", again)
	}
	for path, want := range map[string]error{"/nonexistent": fault.ErrNotFound, "/tmp": fault.ErrUsage} {
		if _, err := e.Attach(ctx, AttachRequest{Hook: "cgroup", Name: "pod-traffic", Cgroup: path}); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := e.Attach(ctx, AttachRequest{Hook: "sockops", Name: "pod-traffic", Cgroup: cgroup}); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("sockops: %v", err)
	}
}

func TestUnknownTargetsAndNames(t *testing.T) {
	e, _, _ := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	for _, c := range []struct {
		req  AttachRequest
		want error
		text string
	}{
		{AttachRequest{Hook: "xdp", Name: "pod-traffic", Device: "a"}, fault.ErrUsage, "no program for xdp"},
		{AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "eth9", Direction: Both}, fault.ErrNotFound, `attach tc "pod-traffic" to "eth9": no such interface`},
		{AttachRequest{Hook: "tc", Name: "xdp-counter", Device: "a", Direction: Both}, fault.ErrNotFound, "no loaded program"},
		{AttachRequest{Hook: "tc", Name: "pod-traffic", Program: "x", Device: "a", Direction: Both}, fault.ErrNotFound, "no program \"x\""},
	} {
		_, err := e.Attach(ctx, c.req)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || len(fault.Hints(err)) == 0 {
			t.Errorf("%+v: %v, hints %q", c.req, err, fault.Hints(err))
		}
	}
	for _, req := range []DetachRequest{
		{Hook: "tc", Name: "pod-traffic", Device: "eth9"},
		{Hook: "cgroup", Name: "pod-traffic", Cgroup: "/sys/fs/cgroup/nowhere"},
		{Hook: "tc", Name: "nobody"},
	} {
		if d, err := e.Detach(ctx, req); err != nil || d.Changed || len(d.Notes) != 1 {
			t.Errorf("%+v: %+v %v", req, d, err)
		}
	}
	if _, err := e.Instances(ctx, "nobody"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("status of nobody: %v", err)
	}
	if _, err := e.Attachments(ctx, "nobody"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("attachments of nobody: %v", err)
	}
}

func TestSetIsCheckedByType(t *testing.T) {
	e, _, _ := setup(t)
	for _, set := range []map[string]string{{"match_prefixes": "300"}, {"match_prefixes": "x"}, {"nobody": "1"}} {
		_, err := e.Load(ctx, LoadRequest{Source: "pod-traffic", Set: set})
		if !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%v: %v", set, err)
		}
	}
	if names, _ := e.root.Names(); len(names) != 0 {
		t.Errorf("left behind: %q", names)
	}
}

// Ten writers at once: every one of them succeeds, and nothing is lost.
func TestParallelWriters(t *testing.T) {
	e, _, _ := setup(t)
	var wg sync.WaitGroup
	for _, name := range []string{"p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"} {
		wg.Go(func() {
			if _, err := e.Load(ctx, LoadRequest{Source: "pod-traffic", Name: name}); err != nil {
				t.Error(err)
				return
			}
			if _, err := e.Attach(ctx, AttachRequest{Hook: "tc", Name: name, Device: "a", Direction: Both}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := e.Instances(ctx, "")
	if err != nil || len(all) != 10 {
		t.Fatalf("%d instances, %v", len(all), err)
	}
	for _, i := range all {
		if len(i.Attachments) != 2 {
			t.Errorf("%s has %d attachments", i.Name, len(i.Attachments))
		}
	}
	if u, err := e.Unload(ctx, UnloadRequest{All: true, Detach: true}); err != nil || len(u.Names) != 10 || u.Detached != 20 {
		t.Errorf("%+v %v", u, err)
	}
}

func TestForeignObjectInPlaceOfALink(t *testing.T) {
	e, _, _ := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a"})
	a := instance(t, e, "xdp-counter").Attachments[0]
	if err := os.Remove(*a.Pinned); err != nil {
		t.Fatal(err)
	}
	prog := passXDP(t)
	if err := prog.Pin(filepath.Join(filepath.Dir(*a.Pinned), pinned.Encode(pinName(a)))); err != nil {
		t.Fatal(err)
	}
	got := instance(t, e, "xdp-counter").Attachments[0]
	if !got.Defunct || len(got.Notes) == 0 {
		t.Errorf("%+v", got)
	}
	if _, err := e.Detach(ctx, DetachRequest{Defunct: true}); err != nil {
		t.Fatal(err)
	}
}

func TestLoopbackAndBridge(t *testing.T) {
	e, nsA, _ := setup(t)
	testkit.Needs(t, "bridges", netns.Do(nsA, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	}), unix.EOPNOTSUPP)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	load(t, e, LoadRequest{Source: "pod-traffic"})
	for _, dev := range []string{"lo", "br0"} {
		x := attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: dev})
		if a := x.Attachments[0]; *a.Mode != "generic" || len(a.RefusedWhy) != 1 {
			t.Errorf("%s: mode %s, refused %q", dev, *a.Mode, a.RefusedWhy)
		}
		if _, err := e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: dev, Mode: ModeNative}); !errors.Is(err, fault.ErrConflict) {
			t.Errorf("%s in another mode: %v", dev, err)
		}
		attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: dev, Direction: Both})
	}
	if _, err := e.Detach(ctx, DetachRequest{Hook: "xdp", Name: "xdp-counter"}); err != nil {
		t.Fatal(err)
	}
	_, err := e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "lo", Mode: ModeNative})
	if !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("native on lo: %v", err)
	}
}

func TestDryRunChecksPositionAndHolder(t *testing.T) {
	e, nsA, _ := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	load(t, e, LoadRequest{Source: "pod-traffic", Name: "second"})
	load(t, e, LoadRequest{Source: "xdp-counter"})
	_, err := e.Attach(ctx, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Ingress, Position: Position{Before: "second"}, DryRun: true})
	if !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("before what isn't attached: %v", err)
	}
	prog := passXDP(t)
	err = netns.Do(nsA, func() error {
		dev, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		foreign, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Attrs().Index})
		if err == nil {
			t.Cleanup(func() { foreign.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", Replace: true, DryRun: true})
	if !errors.Is(err, fault.ErrConflict) {
		t.Errorf("in the place of somebody else's program: %v", err)
	}
}

func TestTakingOverKeepsTheModeThatIsAskedFor(t *testing.T) {
	e, _, _ := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	load(t, e, LoadRequest{Source: "xdp-counter", Name: "second"})
	attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", Mode: ModeGeneric})
	_, err := e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "second", Device: "a", Mode: ModeNative, Replace: true})
	if !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), "mode generic") {
		t.Fatalf("got %v", err)
	}
	attach(t, e, AttachRequest{Hook: "xdp", Name: "second", Device: "a", Mode: ModeGeneric, Replace: true})
}

func TestAttachBesideAMissingProgram(t *testing.T) {
	e, _, _ := setup(t)
	if probe.Feature("tcx") != nil {
		t.Skip("this kernel has no TCX: filters have no neighbours")
	}
	load(t, e, LoadRequest{Source: "pod-traffic"})
	_, err := e.Attach(ctx, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Ingress, Position: Position{Before: "id:4294967295"}})
	if !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// A second half that can't be attached takes the first half away again, but not
// what was there before, which a killed replacement had left on an old program.
func TestAttachHalfWayKeepsWhatWasThere(t *testing.T) {
	e, nsA, _ := setup(t)
	if probe.Feature("tcx") != nil {
		t.Skip("this kernel has no TCX: the second half is held by a link")
	}
	load(t, e, LoadRequest{Source: "pod-traffic"})
	load(t, e, LoadRequest{Source: "pod-traffic", Name: "second"})
	egress, err := e.openProgram("pod-traffic", "pod_traffic_egress")
	if err != nil {
		t.Fatal(err)
	}
	defer egress.Close()
	err = netns.Do(nsA, func() error {
		dev, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		held, err := link.AttachTCX(link.TCXOptions{Interface: dev.Attrs().Index, Program: egress, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			t.Cleanup(func() { held.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	both := AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both}
	if _, err := e.Attach(ctx, both); !errors.Is(err, fault.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if left := instance(t, e, "pod-traffic").Attachments; len(left) != 0 {
		t.Errorf("half is left: %+v", left)
	}
	there := attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Ingress}).Attachments[0]
	if err := e.moveAttachment("second", there); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Attach(ctx, both); !errors.Is(err, fault.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if left := instance(t, e, "pod-traffic").Attachments; len(left) != 1 {
		t.Errorf("what was there is gone: %+v", left)
	}
}

func TestDetachByAlternativeName(t *testing.T) {
	e, nsA, _ := setup(t)
	const alternative = "alternative-name-of-a"
	err := netns.Do(nsA, func() error {
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		return netlink.LinkAddAltName(l, alternative)
	})
	testkit.Needs(t, "alternative names", err, unix.EOPNOTSUPP)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: alternative, Direction: Ingress})
	d, err := e.Detach(ctx, DetachRequest{Hook: "tc", Name: "pod-traffic", Device: alternative})
	if err != nil || len(d.Attachments) != 1 {
		t.Errorf("%+v %v", d, err)
	}
}

// An interface that moves to another namespace keeps its programs, and another
// one that gets its index is not taken for it.
func TestMovedInterface(t *testing.T) {
	e, nsA, _ := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	load(t, e, LoadRequest{Source: "pod-traffic"})
	x := AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", Mode: ModeGeneric}
	tc := AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Ingress}
	index := int(*attach(t, e, x).Attachments[0].IfIndex)
	if a := attach(t, e, tc).Attachments[0]; a.Mechanism != mechanismLink {
		t.Skip("this kernel has no TCX: filters go when their interface moves")
	}
	elsewhere, err := os.Open(testkit.NetNS(t))
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	moved := func() {
		t.Helper()
		for _, name := range []string{"xdp-counter", "pod-traffic"} {
			if a := instance(t, e, name).Attachments[0]; a.Defunct || *a.DevName != "a" || len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "moved") {
				t.Errorf("%+v", a)
			}
		}
	}
	inA := func(fn func() error) {
		t.Helper()
		if err := netns.Do(nsA, fn); err != nil {
			t.Fatal(err)
		}
	}
	inA(func() error {
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, int(elsewhere.Fd()))
	})
	moved()
	inA(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "new", Index: index}, PeerName: "peer"})
	})
	moved()
	x.Device, tc.Device = "new", "new"
	for _, req := range []AttachRequest{x, tc} {
		if _, err := e.Attach(ctx, req); !errors.Is(err, fault.ErrConflict) {
			t.Errorf("attach to its successor: %v", err)
		}
		if d, err := e.Detach(ctx, DetachRequest{Hook: req.Hook, Name: req.Name, Device: "new"}); err != nil || d.Changed {
			t.Errorf("detach from its successor: %+v %v", d, err)
		}
		if d, err := e.Detach(ctx, DetachRequest{Hook: req.Hook, Name: req.Name}); err != nil || len(d.Attachments) != 1 {
			t.Errorf("%+v %v", d, err)
		}
		attach(t, e, req)
	}
}

func TestUnloadAllKeepsWhatOthersPinned(t *testing.T) {
	e, _, _ := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	others := filepath.Join(string(e.root), "globals")
	if err := os.Mkdir(others, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := passXDP(t).Pin(filepath.Join(others, "theirs")); err != nil {
		t.Fatal(err)
	}
	u, err := e.Unload(ctx, UnloadRequest{All: true, Detach: true})
	if err != nil || len(u.Names) != 1 || u.Names[0] != "xdp-counter" {
		t.Errorf("%+v %v", u, err)
	}
	if _, err := os.Stat(filepath.Join(others, "theirs")); err != nil {
		t.Error(err)
	}
}
