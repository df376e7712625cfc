package datapath

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

// loadFlows loads flows, or skips the test where the kernel can't.
func loadFlows(t *testing.T) *Engine {
	t.Helper()
	e := open(t, testkit.Root(t), "")
	_, err := e.Load(ctx, LoadRequest{Source: "flows"})
	testkit.Needs(t, "loaded flows", err, fault.ErrUnsupported, fault.ErrRejected)
	return e
}

// began is when the seed of flows ran first.
func began(t *testing.T, e *Engine) uint64 {
	t.Helper()
	m, err := e.OpenMap("flows", "flow_totals", true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var sums bpf.FlowSums
	if err := m.Lookup(uint32(0), &sums); err != nil {
		t.Fatal(err)
	}
	return sums.Began
}

// refusedAs fails unless an error is of a kind, and has a hint.
func refusedAs(t *testing.T, err, kind error, hint string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(strings.Join(fault.Hints(err), "\n"), hint) {
		t.Errorf("%v (hints %q), want %v with the hint %q", err, fault.Hints(err), kind, hint)
	}
}

// What flows needs at the root of cgroup2 comes and goes with what traces.
func TestFlowsAreOneAttachment(t *testing.T) {
	e := loadFlows(t)
	root, err := probe.Cgroup2Mount()
	if err != nil {
		t.Skip(err)
	}
	trace := AttachRequest{Hook: "trace", Name: "flows"}
	_, err = e.Attach(ctx, AttachRequest{Hook: "cgroup", Name: "flows", Cgroup: root})
	refusedAs(t, err, fault.ErrUsage, "bpfnet attach trace flows")
	for _, alone := range []string{"flows_seed", "flows_dump"} {
		_, err := e.Attach(ctx, AttachRequest{Hook: "trace", Name: "flows", Program: alone})
		refusedAs(t, err, fault.ErrUsage, "")
	}
	dry := trace
	dry.DryRun = true
	planned := attach(t, e, dry)
	if in := instance(t, e, "flows"); len(in.Attachments) != 0 || began(t, e) != 0 {
		t.Fatalf("a dry run: %+v", in.Attachments)
	}
	attached := attach(t, e, trace)
	in := instance(t, e, "flows")
	if n := len(in.Programs) - 2; len(attached.Attachments) != n || len(planned.Attachments) != n || len(in.Attachments) != n {
		t.Fatalf("%d programs attached, %d planned, %d read back, of %d", len(attached.Attachments), len(planned.Attachments), len(in.Attachments), n)
	}
	since := began(t, e)
	if again := attach(t, e, trace); again.Changed || since == 0 || began(t, e) != since {
		t.Errorf("attached again: %v, counting since %d, %d", again.Changed, since, began(t, e))
	}
	_, err = e.Load(ctx, LoadRequest{Source: "flows", Set: map[string]string{"port": "80"}, Replace: true})
	refusedAs(t, err, fault.ErrConflict, "bpfnet detach trace flows")
	_, err = e.Unload(ctx, UnloadRequest{Name: "flows"})
	refusedAs(t, err, fault.ErrConflict, "bpfnet detach trace flows")
	if d, err := e.Detach(ctx, DetachRequest{Hook: "cgroup", Name: "flows"}); err != nil || d.Changed {
		t.Errorf("half of it detached: %+v, %v", d, err)
	}
	if now := instance(t, e, "flows").Attachments; len(now) != len(in.Attachments) || now[0].ProgID != in.Attachments[0].ProgID {
		t.Errorf("after what was refused: %+v", now)
	}
	if d, err := e.Detach(ctx, DetachRequest{Hook: "trace", Name: "flows"}); err != nil || len(d.Attachments) != len(in.Attachments) {
		t.Errorf("%+v, %v", d, err)
	}
	if l, err := e.Load(ctx, LoadRequest{Source: "flows", Set: map[string]string{"port": "80"}, Replace: true, ReuseMaps: true}); err != nil || !l.Changed {
		t.Errorf("%+v, %v", l, err)
	}
	if began(t, e) != since {
		t.Error("the maps weren't kept")
	}
}

// What was attached before one program couldn't be is taken off.
func TestFlowsAreAttachedWhollyOrNot(t *testing.T) {
	e := loadFlows(t)
	if _, err := probe.Cgroup2Mount(); err != nil {
		t.Skip(err)
	}
	// A directory with the name of what is attached last can't be replaced.
	pin := e.root.Path("flows", pinned.Links, linkPin(hookTrace, "flows_state", target{Trace: "tp_btf/inet_sock_set_state"}))
	if err := os.MkdirAll(filepath.Join(pin, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := e.Attach(ctx, AttachRequest{Hook: "trace", Name: "flows"}); err == nil {
		t.Fatalf("%+v", got)
	}
	if err := os.RemoveAll(pin); err != nil {
		t.Fatal(err)
	}
	if now := instance(t, e, "flows").Attachments; len(now) != 0 {
		t.Errorf("%+v", now)
	}
	if got := attach(t, e, AttachRequest{Hook: "trace", Name: "flows"}); !got.Changed {
		t.Errorf("%+v", got)
	}
}

// Where kprobes can't be pinned flows isn't loaded to be of no use, and it is said why;
// counting without pins does.
func TestKprobesWithoutPins(t *testing.T) {
	e := open(t, testkit.Root(t), "")
	started, err := e.Start(ctx, LoadRequest{Source: "flows", Mechanism: "kprobe"})
	testkit.Needs(t, "flows by kprobe", err, fault.ErrUnsupported, fault.ErrRejected)
	if err := started.Close(); err != nil {
		t.Error(err)
	}
	_, err = e.Load(ctx, LoadRequest{Source: "flows", Mechanism: "kprobe"})
	if err == nil {
		entries := 0
		for _, a := range attach(t, e, AttachRequest{Hook: "trace", Name: "flows"}).Attachments {
			switch {
			case a.Target == nil: // at the root of cgroups
			case strings.HasPrefix(*a.Target, "kprobe/"):
				entries++
			case strings.HasPrefix(*a.Target, "kretprobe/") && entries > 0:
				t.Errorf("%s is attached after the entry of a function", a.Program)
			}
		}
		return
	}
	refusedAs(t, err, fault.ErrUnsupported, "Linux 5.15")
	if e.root.Exists("flows") {
		t.Error("it is there")
	}
}

func TestMechanismOfLoad(t *testing.T) {
	e := open(t, testkit.Root(t), "")
	_, err := e.Load(ctx, LoadRequest{Source: "flows", Mechanism: "magic"})
	refusedAs(t, err, fault.ErrUsage, "tp_btf, fexit, kprobe")
	_, err = e.Load(ctx, LoadRequest{Source: "pod-traffic", Mechanism: "fexit"})
	refusedAs(t, err, fault.ErrUsage, "")
	for _, mechanism := range []string{"tp_btf", "fexit", "kprobe"} {
		l, err := e.Load(ctx, LoadRequest{Source: "flows", Name: mechanism, Mechanism: mechanism})
		if errors.Is(err, fault.ErrUnsupported) || errors.Is(err, fault.ErrRejected) && probe.Feature("tp_btf_sock_length") != nil {
			t.Logf("%s: %v", mechanism, err)
			continue
		}
		if err != nil {
			t.Error(err)
		}
		has := slices.ContainsFunc(l.Programs, func(p Program) bool { return p.Name == "flows_inet_sendmsg" })
		if has != (mechanism != "tp_btf") {
			t.Errorf("%s: %+v", mechanism, l.Programs)
		}
	}
}

// Nothing that was opened stays open, whatever becomes of it.
func TestFlowsLeaveNothingOpen(t *testing.T) {
	e := loadFlows(t)
	open := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	use := func(o Objects, err error) error {
		if err != nil {
			return err
		}
		r, err := o.Iterate("flows_dump", "flow_sockets")
		if err != nil {
			return errors.Join(err, o.Close())
		}
		return errors.Join(r.Close(), o.Close())
	}
	for name, do := range map[string]func() error{
		"open":          func() error { return use(e.Open(ctx, "flows")) },
		"start":         func() error { return use(e.Start(ctx, LoadRequest{Source: "flows"})) },
		"start, forced": func() error { return use(e.Start(ctx, LoadRequest{Source: "flows", Mechanism: "fexit"})) },
		"attach": func() error {
			_, err := e.Attach(ctx, AttachRequest{Hook: "trace", Name: "flows"})
			return err
		},
		"unload": func() error { _, err := e.Unload(ctx, UnloadRequest{Name: "flows", Detach: true}); return err },
		"load":   func() error { _, err := e.Load(ctx, LoadRequest{Source: "flows"}); return err },
	} {
		if _, err := e.Load(ctx, LoadRequest{Source: "flows"}); err != nil { // what is remembered of the kernel, too
			t.Fatal(err)
		}
		before := open()
		if err := do(); err != nil && !errors.Is(err, fault.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if after := open(); after != before {
			t.Errorf("%s: %d descriptors, %d before", name, after, before)
		}
	}
}
