package datapath

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// twice is who reads again and again, beside those who change things and read once.
type twice struct {
	t    *testing.T
	long *Engine
	ns   string
}

func newTwice(t *testing.T) twice {
	t.Helper()
	e, ns, _ := setup(t)
	r := twice{t, e, ns}
	r.in(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "c"}, PeerName: "d"})
	})
	load(t, r.other(), LoadRequest{Source: "pod-traffic"})
	for _, device := range []string{"a", "c"} {
		attach(t, r.other(), AttachRequest{Hook: "tc", Name: "pod-traffic", Device: device, Direction: Both})
	}
	if r.read()[0].Mechanism != mechanismLink {
		t.Skip("this kernel has no TCX")
	}
	return r
}

// other is an engine that remembers nothing.
func (r twice) other() *Engine { return open(r.t, string(r.long.root), r.ns) }

func (r twice) in(fn func() error) {
	r.t.Helper()
	if err := netns.Do(r.ns, fn); err != nil {
		r.t.Fatal(err)
	}
}

// read returns attachments, which must be the same for both.
func (r twice) read() []Attachment {
	r.t.Helper()
	want := instance(r.t, r.other(), "pod-traffic").Attachments
	got := instance(r.t, r.long, "pod-traffic").Attachments
	if !reflect.DeepEqual(got, want) {
		r.t.Errorf("remembered as %+v, are %+v", got, want)
	}
	return got
}

// at returns the attachments that a device had when it was called so.
func at(all []Attachment, device string) []Attachment {
	return slices.DeleteFunc(slices.Clone(all), func(a Attachment) bool { return a.DevName == nil || *a.DevName != device })
}

func (r twice) device(name string) netlink.Link {
	r.t.Helper()
	var l netlink.Link
	r.in(func() (err error) {
		l, err = netlink.LinkByName(name)
		return err
	})
	return l
}

// What is known of links at tc isn't read from their pins again.
func TestKnownLinks(t *testing.T) {
	r := newTwice(t)
	const mark = "from memory"
	known := r.long.memory.of("pod-traffic")
	for pin, k := range known {
		k.doc.RefusedWhy = []string{mark}
		known[pin] = k
	}
	all, err := r.long.Attachments(ctx, "pod-traffic")
	if err != nil || len(all) != 4 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, a := range all {
		if !slices.Contains(a.RefusedWhy, mark) {
			t.Errorf("read anew: %+v", a)
		}
	}
	if _, err := r.other().Unload(ctx, UnloadRequest{All: true, Detach: true}); err != nil {
		t.Fatal(err)
	}
	if all, err := r.long.Instances(ctx, ""); err != nil || len(all) != 0 || len(r.long.memory.links) != 0 {
		t.Errorf("%+v, %v; known: %+v", all, err, r.long.memory.links)
	}
}

func TestKnownLinksOfInterfaces(t *testing.T) {
	r := newTwice(t)
	elsewhere := testkit.NetNS(t)
	there, err := os.Open(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	here, err := os.Open(r.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()

	c := r.device("c")
	r.in(func() error { return netlink.LinkSetName(c, "renamed") })
	if all := r.read(); len(at(all, "renamed")) != 2 || len(at(all, "a")) != 2 {
		t.Errorf("renamed: %+v", all)
	}
	r.in(func() error { return netlink.LinkSetNsFd(c, int(there.Fd())) })
	moved := func(when string) {
		t.Helper()
		all := at(r.read(), "c") // as it was when it was attached
		if len(all) != 2 || all[0].Defunct || len(all[0].Notes) != 1 || len(all[1].Notes) != 1 {
			t.Errorf("%s: %+v", when, all)
		}
	}
	moved("moved")
	successor := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "new", Index: c.Attrs().Index}, PeerName: "peer"}
	r.in(func() error { return netlink.LinkAdd(successor) })
	moved("with a successor")
	load(t, r.other(), LoadRequest{Source: "pod-traffic", Name: "second"})
	attach(t, r.other(), AttachRequest{Hook: "tc", Name: "second", Device: "new", Direction: Both})
	moved("with a successor that has a program")
	r.in(func() error { return netlink.LinkDel(successor) })
	moved("when its successor has gone")
	if err := netns.Do(elsewhere, func() error {
		l, err := netlink.LinkByName("renamed")
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(l, int(here.Fd()))
	}); err != nil {
		t.Fatal(err)
	}
	if all := at(r.read(), "renamed"); len(all) != 2 || len(all[0].Notes) != 0 {
		t.Errorf("back again: %+v", all)
	}

	a := r.device("a")
	r.in(func() error { return netlink.LinkDel(a) })
	gone := func(when string) {
		t.Helper()
		if all := at(r.read(), "a"); len(all) != 2 || !all[0].Defunct || !all[1].Defunct {
			t.Errorf("%s: %+v", when, all)
		}
	}
	gone("gone")
	r.in(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a", Index: a.Attrs().Index}, PeerName: "b"})
	})
	gone("with a successor")
	attach(t, r.other(), AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both})
	if all := at(r.read(), "a"); len(all) != 2 || all[0].Defunct || all[1].Defunct {
		t.Errorf("attached to its successor: %+v", all)
	}
}

func TestKnownLinksOfOthers(t *testing.T) {
	r := newTwice(t)
	var before []Attachment
	changed := func(what string, change func() error) {
		t.Helper()
		before = r.read()
		if err := change(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if now := r.read(); reflect.DeepEqual(now, before) {
			t.Errorf("%s: as before: %+v", what, now)
		}
	}
	tc := AttachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Both}
	reload := func(set string) func() error {
		return func() error {
			_, err := r.other().Load(ctx, LoadRequest{Source: "pod-traffic", Set: map[string]string{"match_prefixes": set}, Replace: true})
			return err
		}
	}
	changed("replaced", reload("1"))
	changed("another program in a link", func() error {
		prog := testkit.Classifier(t, "foreign", asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()})
		l, err := link.LoadPinnedLink(*at(r.read(), "a")[0].Pinned, nil)
		if err != nil {
			return err
		}
		defer l.Close()
		return l.Update(prog)
	})
	changed("detached", func() error {
		_, err := r.other().Detach(ctx, DetachRequest{Hook: "tc", Name: "pod-traffic", Device: "a", Direction: Ingress})
		return err
	})
	changed("attached again", func() error {
		_, err := r.other().Attach(ctx, tc)
		return err
	})
	changed("detached and attached", func() error {
		if _, err := r.other().Detach(ctx, DetachRequest{Hook: "tc", Name: "pod-traffic", Device: "a"}); err != nil {
			return err
		}
		_, err := r.other().Attach(ctx, tc)
		return err
	})
	changed("unloaded and loaded", func() error {
		if _, err := r.other().Unload(ctx, UnloadRequest{Name: "pod-traffic", Detach: true}); err != nil {
			return err
		}
		load(t, r.other(), LoadRequest{Source: "pod-traffic"})
		_, err := r.other().Attach(ctx, tc)
		return err
	})
	cgroup := testkit.Cgroup(t)
	changed("attached to a cgroup", func() error {
		_, err := r.other().Attach(ctx, AttachRequest{Hook: "cgroup", Name: "pod-traffic", Cgroup: cgroup})
		return err
	})
	changed("replaced at a cgroup", reload("1"))
	changed("detached from a cgroup", func() error {
		_, err := r.other().Detach(ctx, DetachRequest{Hook: "cgroup", Name: "pod-traffic"})
		return err
	})
	changed("attached by a filter", func() error {
		attachFilter(t, r.other(), "pod-traffic", Ingress, Position{})
		return nil
	})
	changed("filter replaced", reload("0"))
	changed("filter detached", func() error {
		all := r.read()
		return r.other().write(ctx, func() error { return detachClsact(all[len(all)-1]) })
	})
	changed("a pin that is something else", func() error {
		path := *at(r.read(), "a")[0].Pinned
		if err := os.Remove(path); err != nil {
			return err
		}
		return passXDP(t).Pin(path)
	})
	if all := r.read(); !slices.ContainsFunc(all, func(a Attachment) bool {
		return a.Defunct && strings.Contains(strings.Join(a.Notes, ""), "not a link")
	}) {
		t.Errorf("%+v", all)
	}
}
