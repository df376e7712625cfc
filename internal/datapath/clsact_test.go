package datapath

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
)

// attachFilter attaches by the rung of the ladder that kernels without TCX
// reach, on this kernel.
func attachFilter(t *testing.T, e *Engine, name string, d Direction, p Position) Attachment {
	t.Helper()
	var doc Attachment
	err := e.write(ctx, func() error {
		dev, err := resolveDevice("a")
		if err != nil {
			return err
		}
		fitting, err := e.pick(name, "tc", "", d)
		if err != nil {
			return err
		}
		s := spot{dev: dev, at: dev.target, hook: "tcx_" + string(d)}
		if s.candidate, err = one(name, fitting, dev, &s.notes); err != nil {
			return err
		}
		prog, err := e.openProgram(name, s.name)
		if err != nil {
			return err
		}
		defer prog.Close()
		doc, err = e.attachClsact(AttachRequest{Hook: "tc", Name: name, Device: "a", Position: p}, s, prog, []string{"tcx: not supported"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func hasClsact(t *testing.T, ns string) bool {
	t.Helper()
	found := false
	err := netns.Do(ns, func() error {
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		qdiscs, err := netlink.QdiscList(l)
		for _, q := range qdiscs {
			found = found || q.Type() == "clsact"
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func transmitted(t *testing.T, e *Engine, name string) uint64 {
	t.Helper()
	m, err := e.OpenMap(name, "pods", true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var sum uint64
	var key [20]byte
	var perCPU [][4]uint64
	for it := m.Iterate(); it.Next(&key, &perCPU); {
		for _, v := range perCPU {
			sum += v[1]
		}
	}
	return sum
}

func TestClsactFilter(t *testing.T) {
	e, nsA, nsB := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	in := attachFilter(t, e, "pod-traffic", Ingress, Position{})
	attachFilter(t, e, "pod-traffic", Egress, Position{First: true})
	if in.Hook != "clsact_ingress" || in.Mechanism != "netlink" || in.LinkID != nil || in.ProgID == 0 || len(in.RefusedWhy) != 1 {
		t.Fatalf("%+v", in)
	}
	send(t, nsB, "10.77.0.1:9", 50, 10)
	if n := transmitted(t, e, "pod-traffic"); n < 50 {
		t.Errorf("counted %d of 50", n)
	}

	// What is there by this mechanism is found: attaching again changes nothing.
	if again := attach(t, e, AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both}); again.Changed {
		t.Errorf("again: %+v", again)
	}
	old := instance(t, e, "pod-traffic").Attachments
	l := load(t, e, LoadRequest{Source: "pod-traffic", Set: map[string]string{"match_prefixes": "1"}, Replace: true, ReuseMaps: true})
	now := instance(t, e, "pod-traffic").Attachments
	if !l.Replaced || len(now) != 2 || now[0].ProgID == old[0].ProgID {
		t.Errorf("replaced: %+v, was %+v", now, old)
	}
	d, err := e.Detach(ctx, DetachRequest{Hook: "tc", Name: "pod-traffic", Direction: Ingress})
	if err != nil || len(d.Attachments) != 1 {
		t.Fatalf("%+v %v", d, err)
	}
	if !hasClsact(t, nsA) {
		t.Error("the qdisc went with the first of two filters")
	}
	if _, err := e.Unload(ctx, UnloadRequest{All: true, Detach: true}); err != nil {
		t.Fatal(err)
	}
	if hasClsact(t, nsA) {
		t.Error("the qdisc that we made is still there")
	}
}

func TestClsactKeepsWhatOthersMade(t *testing.T) {
	e, nsA, _ := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	load(t, e, LoadRequest{Source: "pod-traffic", Name: "second"})

	// A qdisc that somebody else made stays.
	var foreign *netlink.Clsact
	err := netns.Do(nsA, func() error {
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		foreign = &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		return netlink.QdiscAdd(foreign)
	})
	if err != nil {
		t.Fatal(err)
	}
	attachFilter(t, e, "pod-traffic", Ingress, Position{})
	if _, err := e.Detach(ctx, DetachRequest{Name: "pod-traffic"}); err != nil {
		t.Fatal(err)
	}
	if !hasClsact(t, nsA) {
		t.Fatal("took somebody else's qdisc away")
	}
	if err := netns.Do(nsA, func() error { return netlink.QdiscDel(foreign) }); err != nil {
		t.Fatal(err)
	}

	// A filter that somebody else hung on ours keeps it.
	attachFilter(t, e, "pod-traffic", Ingress, Position{})
	attachFilter(t, e, "second", Ingress, Position{})
	prog, err := e.openProgram("second", "pod_traffic_ingress")
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	other := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: foreign.LinkIndex, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 7, Protocol: unix.ETH_P_ALL},
		Fd:          prog.FD(), Name: "foreign", DirectAction: true,
	}
	if err := netns.Do(nsA, func() error { return netlink.FilterAdd(other) }); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pod-traffic", "second"} {
		if d, err := e.Detach(ctx, DetachRequest{Name: name}); err != nil || len(d.Attachments) != 1 {
			t.Fatalf("%+v %v", d, err)
		}
	}
	if !hasClsact(t, nsA) {
		t.Error("took the qdisc away from under somebody else's filter")
	}
}

func TestClsactIsFoundOnlyInItsNamespace(t *testing.T) {
	e, _, nsB := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	attachFilter(t, e, "pod-traffic", Ingress, Position{})
	if got := instance(t, open(t, string(e.root), nsB), "pod-traffic").Attachments; len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if got := instance(t, e, "pod-traffic").Attachments; len(got) != 1 || !strings.HasPrefix(got[0].Hook, "clsact") {
		t.Errorf("%+v", got)
	}
}

func TestClsactLastIsBehindEarlierOnes(t *testing.T) {
	e, nsA, _ := setup(t)
	for _, name := range []string{"one", "two", "three"} {
		load(t, e, LoadRequest{Source: "pod-traffic", Name: name})
		attachFilter(t, e, name, Ingress, Position{})
	}
	err := netns.Do(nsA, func() error {
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		ours, err := clsactFiltersOf(l, Ingress)
		for i, name := range []string{"one", "two", "three"} {
			if f := ours[i]; !strings.Contains(f.Name, name) || i > 0 && f.Priority <= ours[i-1].Priority {
				t.Errorf("place %d: %s with priority %d", i, f.Name, f.Priority)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestClsactRefusesAnIngressQdisc(t *testing.T) {
	_, nsA, _ := setup(t)
	err := netns.Do(nsA, func() error {
		l, err := netlink.LinkByName("a")
		if err != nil {
			return err
		}
		qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
		if err := netlink.QdiscAdd(qdisc); err != nil {
			return err
		}
		if _, err := ensureClsact(l); !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), "ingress qdisc") {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An unload in one namespace doesn't see the filters in another; one there
// takes them away although nothing is loaded any more.
func TestUnloadTakesFiltersThatWereLeft(t *testing.T) {
	e, nsA, nsB := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	attachFilter(t, e, "pod-traffic", Ingress, Position{})
	if _, err := open(t, string(e.root), nsB).Unload(ctx, UnloadRequest{Name: "pod-traffic"}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Unload(ctx, UnloadRequest{Name: "pod-traffic"}); !errors.Is(err, fault.ErrConflict) {
		t.Errorf("without leave to detach: %v", err)
	}
	u, err := e.Unload(ctx, UnloadRequest{Name: "pod-traffic", Detach: true})
	if err != nil || !u.Changed || u.Detached != 1 || hasClsact(t, nsA) {
		t.Errorf("%+v %v", u, err)
	}
}
