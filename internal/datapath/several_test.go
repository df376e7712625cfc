package datapath

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
)

// addDevices makes interfaces, and returns their indexes.
func addDevices(t *testing.T, ns string, names ...string) (indexes []uint32) {
	t.Helper()
	err := netns.Do(ns, func() error {
		for _, name := range names {
			d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer-" + name}
			if err := netlink.LinkAdd(d); err != nil {
				return err
			}
			indexes = append(indexes, uint32(d.Index))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return indexes
}

// Several devices in one request: all of them or none, and none that merely has
// the name of the one that was found.
func TestSeveralDevices(t *testing.T) {
	e, nsA, _ := setup(t)
	load(t, e, LoadRequest{Source: "pod-traffic"})
	index := addDevices(t, nsA, "d0", "d1")
	at := func(name string, index uint32) AttachRequest {
		return AttachRequest{Hook: "tc", Name: "pod-traffic", Device: name, IfIndex: index, Direction: Both}
	}
	attach(t, e, at("d0", 0))
	for _, last := range []AttachRequest{at("nothing", 0), at("d1", index[0])} {
		_, err := e.Attach(ctx, at("d0", index[0]), at("a", 0), last)
		if !errors.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), last.Device) {
			t.Errorf("%+v: %v", last, err)
		}
		if left := instance(t, e, "pod-traffic").Attachments; len(left) != 2 {
			t.Errorf("attached before: 2, now: %+v", left)
		}
		last.MayBeGone = true
		got, err := e.Attach(ctx, last, at("d1", index[1]), at("d0", index[0]))
		if err != nil || !got.Changed || len(got.Attachments) != 4 || got.Attachments[2].Changed || len(got.Notes) != 1 || !strings.Contains(got.Notes[0], last.Device) {
			t.Errorf("without what is gone: %+v, %v", got, err)
		}
		off := DetachRequest{Hook: "tc", Name: "pod-traffic", Device: "d1", IfIndex: index[0]}
		if none, err := e.Detach(ctx, off); err != nil || none.Changed {
			t.Errorf("detached from another interface: %+v, %v", none, err)
		}
		off.IfIndex = index[1]
		gone, err := e.Detach(ctx, DetachRequest{Hook: "tc", Name: "pod-traffic", Device: "nothing"}, off)
		if err != nil || len(gone.Attachments) != 2 || len(gone.Notes) > 0 {
			t.Errorf("detach: %+v, %v", gone, err)
		}
	}
}

// What took the place of another instance's gives it back.
func TestSeveralDevicesTakenOver(t *testing.T) {
	e, nsA, nsB := setup(t)
	load(t, e, LoadRequest{Source: "xdp-counter"})
	load(t, e, LoadRequest{Source: "xdp-counter", Name: "second"})
	addDevices(t, nsA, "d0")
	before := attach(t, e, AttachRequest{Hook: "xdp", Name: "xdp-counter", Device: "a", Mode: ModeGeneric}).Attachments[0]
	take := AttachRequest{Hook: "xdp", Name: "second", Device: "a", Replace: true}
	if _, err := e.Attach(ctx, take, AttachRequest{Hook: "xdp", Name: "second", Device: "d0", Mode: ModeOffload}); !errors.Is(err, fault.ErrUnsupported) {
		t.Fatal(err)
	}
	after := instance(t, e, "xdp-counter").Attachments
	if len(after) != 1 || *after[0].LinkID != *before.LinkID || after[0].ProgID != before.ProgID || after[0].Defunct || *after[0].Mode != string(ModeGeneric) {
		t.Fatalf("before %+v, after %+v", before, after)
	}
	if left := instance(t, e, "second").Attachments; len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
	send(t, nsB, "10.77.0.1:9", 5, 10)
	if e.root.Note("second", "targets", pinName(before)) != "" || e.root.Note("xdp-counter", "targets", pinName(after[0])) == "" {
		t.Error("what is remembered isn't where it was")
	}
}
