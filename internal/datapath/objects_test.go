package datapath

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

func object(t *testing.T, file string) LoadRequest {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return LoadRequest{Source: "./" + file, Object: raw}
}

func slot(t *testing.T, e *Engine, name, mapName string, i uint32) uint64 {
	t.Helper()
	m, err := e.OpenMap(name, mapName, true)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var n uint64
	if err := m.Lookup(i, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLegacyObject(t *testing.T) {
	e, _, nsB := setup(t)
	l := load(t, e, object(t, "legacy.o"))
	if l.Name != "legacy" || len(l.Programs) != 2 || len(l.Maps) != 1 {
		t.Fatalf("%+v", l)
	}
	attach(t, e, AttachRequest{Hook: "tc", Name: "legacy", Device: "a", Direction: Ingress})
	attach(t, e, AttachRequest{Hook: "xdp", Name: "legacy", Device: "a", Mode: ModeGeneric})
	send(t, nsB, "10.77.0.1:9", 20, 10)
	for i, hook := range []string{"tc", "xdp"} {
		if n := slot(t, e, "legacy", "packets", uint32(i)); n < 20 {
			t.Errorf("%s counted %d of 20", hook, n)
		}
	}
}

func TestObjectWithSeveralPrograms(t *testing.T) {
	e, nsA, nsB := setup(t)
	req := object(t, "several.o")
	req.Set = map[string]string{"step": "3", "small": "0x2", "enabled": "true"}
	l := load(t, e, req)
	if len(l.Programs) != 7 || len(l.Notes) != 1 || !strings.Contains(l.Notes[0], "shared") {
		t.Fatalf("%+v", l)
	}
	if _, err := e.Attach(ctx, AttachRequest{Hook: "xdp", Name: "several", Device: "a"}); !errors.Is(err, fault.ErrUsage) || !strings.Contains(strings.Join(fault.Hints(err), ""), "first, second") {
		t.Fatalf("which of two: %v %q", err, fault.Hints(err))
	}
	attach(t, e, AttachRequest{Hook: "xdp", Name: "several", Program: "second", Device: "a"})
	if got := attach(t, e, AttachRequest{Hook: "tc", Name: "several", Device: "a", Direction: Both}); len(got.Attachments) != 2 {
		t.Fatalf("%+v", got)
	}
	cgroup := testkit.Cgroup(t)
	for hook, want := range map[string]string{"cgroup": "cgroup_inet4_connect", "sockops": "cgroup_sock_ops"} {
		got := attach(t, e, AttachRequest{Hook: hook, Name: "several", Cgroup: cgroup})
		if len(got.Attachments) != 1 || got.Attachments[0].Hook != want {
			t.Fatalf("%s: %+v", hook, got)
		}
	}
	traced := attach(t, e, AttachRequest{Hook: "trace", Name: "several"})
	if len(traced.Attachments) != 2 {
		t.Fatalf("%+v", traced)
	}
	if again := attach(t, e, AttachRequest{Hook: "trace", Name: "several"}); again.Changed {
		t.Errorf("%+v", again)
	}

	send(t, nsB, "10.77.0.1:9", 10, 10)
	connectFrom(t, nsA, cgroup)
	for i, what := range []string{"first", "second", "both_ways", "connects", "sockets", "switches", "switches_typed"} {
		n := slot(t, e, "several", "runs", uint32(i))
		if ran := n > 0; ran != (what != "first") {
			t.Errorf("%s ran %d times", what, n)
		}
		if n%3 != 0 {
			t.Errorf("%s: %d is no multiple of the step that was set", what, n)
		}
	}
	d, err := e.Detach(ctx, DetachRequest{Name: "several"})
	if err != nil || len(d.Attachments) != 7 {
		t.Errorf("%+v %v", d, err)
	}
}

// connectFrom makes a TCP connection on loopback from inside a cgroup.
func connectFrom(t *testing.T, ns, cgroup string) {
	t.Helper()
	procs := filepath.Join(cgroup, "cgroup.procs")
	if err := os.WriteFile(procs, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(filepath.Join(filepath.Dir(cgroup), "cgroup.procs"), []byte("0"), 0)
	err := netns.Do(ns, func() error {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOnlyChosenProgramsAreLoaded(t *testing.T) {
	e, _, _ := setup(t)
	req := object(t, "several.o")
	req.Programs = []string{"first"}
	if l := load(t, e, req); len(l.Programs) != 1 || l.Programs[0].Name != "first" {
		t.Fatalf("%+v", l.Programs)
	}
	req.Programs, req.Name = []string{"nobody"}, "other"
	if _, err := e.Load(ctx, req); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestRejectedProgramLeavesNothingBehind(t *testing.T) {
	e, _, _ := setup(t)
	_, err := e.Load(ctx, object(t, "rejected.o"))
	var log interface{ VerifierLog() []string }
	if !errors.Is(err, fault.ErrRejected) || !errors.As(err, &log) || len(log.VerifierLog()) == 0 || !strings.Contains(err.Error(), "invalid access to packet") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(string(e.root)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestGarbageIsNotAnObject(t *testing.T) {
	e, _, _ := setup(t)
	for _, raw := range [][]byte{{}, []byte("#!/bin/sh"), object(t, "several.o").Object[:100]} {
		if _, err := e.Load(ctx, LoadRequest{Source: "x.o", Object: raw}); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%d bytes: %v", len(raw), err)
		}
	}
}

func TestReplaceRefusesWhatTheKernelCantSwap(t *testing.T) {
	e, _, _ := setup(t)
	load(t, e, object(t, "several.o"))
	before := attach(t, e, AttachRequest{Hook: "trace", Name: "several"})
	req := object(t, "several.o")
	req.Set, req.Replace = map[string]string{"step": "3"}, true
	if _, err := e.Load(ctx, req); !errors.Is(err, fault.ErrConflict) || !strings.Contains(err.Error(), "tracing") {
		t.Errorf("got %v", err)
	}
	if now := instance(t, e, "several").Attachments; len(now) != 2 || now[0].ProgID != before.Attachments[0].ProgID {
		t.Errorf("%+v", now)
	}
}

func TestStrands(t *testing.T) {
	p := &loadPlan{spec: &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{
		"tc": {Type: ebpf.SchedCLS}, "xdp": {Type: ebpf.XDP}, "connect": {Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect},
	}}}
	for _, test := range []struct {
		program, hook string
		defunct, want bool
	}{
		{"tc", "tcx_ingress", false, false},
		{"tc", "clsact_egress", false, false},
		{"xdp", "xdp", false, false},
		{"connect", "cgroup_inet4_connect", false, false},
		{"xdp", "tcx_ingress", false, true},
		{"tc", "xdp", false, true},
		{"tc", "xdp", true, false},
		{"gone", "xdp", false, true},
	} {
		a := Attachment{Program: test.program, Hook: test.hook, Defunct: test.defunct}
		if why := p.strands(a); (why != "") != test.want {
			t.Errorf("%+v: %q", a, why)
		}
	}
}

func TestTraceOfWhatTheKernelDoesntHave(t *testing.T) {
	if err := explainTrace(ebpf.RawTracepoint, unix.ENOENT); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("no such tracepoint: %v", err)
	}
	if err := explainTrace(ebpf.Tracing, ebpf.ErrNotSupported); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("no such kind: %v", err)
	}
}

func TestPlannedListsAreNeverNull(t *testing.T) {
	p, empty := &loadPlan{}, &ebpf.Collection{}
	if p.programs(empty) == nil || p.maps(empty) == nil {
		t.Error("null in place of []")
	}
}

func TestChooseKeepsWhatMapsHold(t *testing.T) {
	p := &loadPlan{spec: &ebpf.CollectionSpec{
		Programs: map[string]*ebpf.ProgramSpec{
			"entry": {Instructions: asm.Instructions{asm.LoadMapPtr(asm.R1, 0).WithReference("jumps"), asm.LoadMapPtr(asm.R1, 0).WithReference("outer")}},
			"next":  {},
			"other": {Instructions: asm.Instructions{asm.LoadMapPtr(asm.R1, 0).WithReference("unused"), asm.LoadMapPtr(asm.R1, 0).WithReference("inner")}},
		},
		Maps: map[string]*ebpf.MapSpec{
			"jumps":  {Type: ebpf.ProgramArray, Contents: []ebpf.MapKV{{Key: uint32(0), Value: "next"}}},
			"outer":  {Type: ebpf.HashOfMaps, Contents: []ebpf.MapKV{{Key: uint32(0), Value: "inner"}}},
			"inner":  {Type: ebpf.Array},
			"unused": {Type: ebpf.Array},
			"people": {Type: ebpf.Array}, // for user space alone
		},
		Variables: map[string]*ebpf.VariableSpec{"v": {SectionName: "unused"}},
	}}
	if err := p.choose([]string{"entry"}); err != nil {
		t.Fatal(err)
	}
	if got := join(keys(p.spec.Programs)); got != "entry, next" {
		t.Errorf("programs: %s", got)
	}
	if got := join(keys(p.spec.Maps)); got != "inner, jumps, outer, people" {
		t.Errorf("maps: %s", got)
	}
	if len(p.spec.Variables) != 0 {
		t.Errorf("variables of maps that aren't there: %v", keys(p.spec.Variables))
	}
}

func TestDefinitionsOfIproute2(t *testing.T) {
	p := &loadPlan{spec: &ebpf.CollectionSpec{
		Programs: map[string]*ebpf.ProgramSpec{"p": {SectionName: "prog"}},
		Maps:     map[string]*ebpf.MapSpec{"m": {Type: ebpf.Array, Extra: bytes.NewReader([]byte{0, 0, 0, 0, 2, 0, 0, 0})}},
	}}
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	if p.spec.Programs["p"].Type != ebpf.XDP || p.spec.Maps["m"].Extra != nil || len(p.notes) != 1 {
		t.Errorf("%+v %+v %q", p.spec.Programs["p"], p.spec.Maps["m"], p.notes)
	}
}
