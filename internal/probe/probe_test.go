package probe

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

func TestReport(t *testing.T) {
	needRoot(t)
	started := time.Now()
	report := Run(context.Background(), pinned.DefaultRoot)
	t.Logf("%s, %s: %v", report.Environment.Kernel, report.Environment.Machine, time.Since(started))
	for _, f := range report.Features {
		t.Logf("%-22s %-13s %s", f.Feature, f.Status, text(f.Detail))
	}
	for _, c := range report.Choices {
		t.Logf("%-22s %-13s %v", c.Purpose, text(c.Mechanism), c.Refused)
	}
	for _, name := range []string{"tc", "xdp", "cls_bpf", "cgroup_skb", "map_percpu_hash", "map_in_map", "prog_test_run"} {
		if r, ok := report.Result(name); !ok || r.Status != Available {
			t.Errorf("%s: %s: %s", name, r.Status, text(r.Detail))
		}
	}
}

// TestReportAgrees checks answers that must fit together on every kernel.
func TestReportAgrees(t *testing.T) {
	needRoot(t)
	report := Run(context.Background(), pinned.DefaultRoot)
	status := func(name string) Status {
		r, _ := report.Result(name)
		return r.Status
	}
	_, err := os.Stat("/sys/bus/event_source/devices/kprobe")
	if missing := errors.Is(err, fs.ErrNotExist); missing != (status("kprobe") == Unsupported) {
		t.Errorf("kprobe is %s, its events are missing: %t", status("kprobe"), missing)
	}
	if status("fentry") == Available && status("tp_btf") != Available {
		t.Errorf("fentry is available, tp_btf is %s", status("tp_btf"))
	}
	if lsms := report.Environment.LSMs; lsms != nil && !slices.Contains(lsms, "bpf") && status("lsm") == Available {
		t.Errorf("lsm is available with %v", lsms)
	}
	for _, f := range report.Features {
		if (f.Status == Available) != (f.Detail == nil) {
			t.Errorf("%s is %s with detail %q", f.Feature, f.Status, text(f.Detail))
		}
	}
}

func TestReportStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, f := range Run(ctx, pinned.DefaultRoot).Features {
		if f.Status != Unknown {
			t.Errorf("%s: %s", f.Feature, f.Status)
		}
	}
}

func TestCatalogueNamesFeatures(t *testing.T) {
	for name, programs := range neededBy() {
		if _, ok := lookup(name); !ok {
			t.Errorf("%v need %q, which has no probe", programs, name)
		}
	}
}

func TestFeature(t *testing.T) {
	if err := Feature("warp"); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("unknown feature: %v", err)
	}
	needRoot(t)
	if err := Feature("map_hash"); err != nil {
		t.Error(err)
	}
}

func TestOnlyAnswersAreRemembered(t *testing.T) {
	const name = "test_feature"
	defer cache.Delete(name)
	answers := []error{unix.EPERM, ErrNotSupported, nil}
	f := feature{name: name, op: OpPacketSocket, probe: func(string) error {
		answer := answers[0]
		answers = answers[1:]
		return answer
	}}
	for _, want := range []error{unix.EPERM, ErrNotSupported, ErrNotSupported} {
		if err := f.cached(""); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

func TestForbidden(t *testing.T) {
	needRoot(t)
	guarded := feature{op: OpLoadTC, guarded: true}
	if err := guarded.judge(unix.EPERM); guarded.status(err) != Forbidden {
		t.Errorf("got %v", err)
	}
	open := feature{op: OpLoadTC}
	if err := open.judge(unix.EPERM); open.status(err) != Unknown {
		t.Errorf("got %v", err)
	}
}

func TestMissingBPFFS(t *testing.T) {
	f, _ := lookup("bpffs")
	if err := f.cached(t.TempDir()); f.status(err) != Unsupported {
		t.Errorf("got %v", err)
	}
}

func TestChoices(t *testing.T) {
	no := "because"
	report := Report{Features: []Result{
		{Feature: "tcx", Status: Unsupported, Detail: &no},
		{Feature: "cls_bpf", Status: Available},
		{Feature: "xdp_native", Status: Available},
	}}
	got := choices(report)
	if text(got[0].Mechanism) != "clsact filter" || !slices.Equal(got[0].Refused, []Refusal{{"tcx link", Unsupported, no}}) {
		t.Errorf("tc: %+v", got[0])
	}
	if text(got[1].Mechanism) != "native" || len(got[1].Refused) != 0 {
		t.Errorf("xdp: %+v", got[1])
	}
	if got[2].Mechanism != nil || len(got[2].Refused) != 1 {
		t.Errorf("cgroup: %+v", got[2])
	}
}

func TestExplainKeepsOtherErrors(t *testing.T) {
	for _, err := range []error{nil, unix.EBUSY, fs.ErrNotExist} {
		if got := Explain(OpLoadTC, err); got != err {
			t.Errorf("got %v, want %v", got, err)
		}
	}
}

func TestExplainWithoutAMissingCapability(t *testing.T) {
	needRoot(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	if got := explainedAs(OpLoadTrampoline, unix.EPERM); got.Kind != "unsupported" || !strings.Contains(got.Text, "the kernel forbids it") {
		t.Errorf("fentry: %+v", got)
	}
	if got := explainedAs(OpAttachCgroup, unix.EPERM); got.Kind != "conflict" {
		t.Errorf("cgroup: %+v", got)
	}
	if err := Explain(OpLoadXDP, unix.EPERM); !errors.Is(err, unix.EPERM) {
		t.Errorf("the cause is lost: %v", err)
	}
}

func TestCgroup2Mount(t *testing.T) {
	const mountinfo = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
41 31 0:38 / /run/some\040where/else rw,relatime shared:9 - cgroup2 cgroup2 rw
42 31 0:38 /../b\040c /sys/fs/cgroup/a\040b rw - cgroup2 none rw
43 31 0:39 / /c rw - cgroup cgroup rw,name=cgroup2
`
	if got, cgroup, err := cgroup2Mount(strings.NewReader(mountinfo)); err != nil || got != "/sys/fs/cgroup/a b" || cgroup != "/../b c" {
		t.Errorf("got %q, which is cgroup %q, %v", got, cgroup, err)
	}
	if _, _, err := cgroup2Mount(strings.NewReader("")); !errors.Is(err, ErrNotSupported) {
		t.Errorf("got %v", err)
	}
}

func TestSelfTest(t *testing.T) {
	needRoot(t)
	steps := SelfTest(context.Background())
	if len(steps) != len(trials)+1 {
		t.Errorf("%d steps, want %d", len(steps), len(trials)+1)
	}
	for _, s := range steps {
		t.Logf("%-18s %-14s %5.1f ms  %s", s.Name, s.Mechanism, s.DurationMS, text(s.Detail))
		if !s.OK && !s.Skipped {
			t.Errorf("%s by %s: %s", s.Name, s.Mechanism, text(s.Detail))
		}
	}
}

// TestNothingIsLeft counts what probes make, before and after.
func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	home, err := ownCgroup()
	if err != nil {
		t.Skip(err)
	}
	before := leftovers(t)
	for _, f := range features {
		_ = f.probe(pinned.DefaultRoot)
	}
	SelfTest(context.Background())
	waitFor(t, func() bool { return !leftovers(t).exceeds(before) }, func() {
		t.Errorf("left over: %+v, before: %+v", leftovers(t), before)
	})
	if now, err := ownCgroup(); err != nil || now != home {
		t.Errorf("process is in cgroup %q, was in %q: %v", now, home, err)
	}
}

// left is what this process' probes can leave behind.
type left struct{ programs, descriptors, cgroups, names int }

func (l left) exceeds(other left) bool {
	return l.programs > other.programs || l.descriptors > other.descriptors || l.cgroups > other.cgroups || l.names > other.names
}

func leftovers(t *testing.T) left {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	mount, _ := Cgroup2Mount()
	cgroups, _ := filepath.Glob(filepath.Join(mount, "bpfnet-probe-*"))
	names, _ := filepath.Glob(filepath.Join(pinned.MountPoint, "bpfnet-probe-*"))
	return left{probePrograms(t), len(files), len(cgroups), len(names)}
}

func probePrograms(t *testing.T) int {
	t.Helper()
	n := 0
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if err != nil {
			return n
		}
		id = next
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if info, err := program.Info(); err == nil && info.Name == "bpfnet_probe" {
			n++
		}
		program.Close()
	}
}

// waitFor waits for what the kernel does in its own time.
func waitFor(t *testing.T, done func() bool, otherwise func()) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			otherwise()
			return
		}
	}
}

func TestExplainWhatTheKernelDoesntHave(t *testing.T) {
	cause := fmt.Errorf("program type XDP: %w", ebpf.ErrNotSupported)
	if err := Explain(OpLoadXDP, cause); !errors.Is(err, fault.ErrUnsupported) || !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("got %v", err)
	}
}
