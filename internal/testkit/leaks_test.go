package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	bpfnetns "bpfnet/internal/netns"
	"bpfnet/pinned"
)

// leakVariable makes a run of this test binary one that leaks.
const leakVariable = "BPFNET_TEST_LEAK"

func TestMain(m *testing.M) {
	if os.Getenv(leakVariable) != "" {
		patience = 500 * time.Millisecond
	}
	os.Exit(Run(m))
}

// leaks are what a test may forget, and what is said of it.
var leaks = map[string]struct {
	leak func(*testing.T)
	want string
}{
	"nothing": {func(t *testing.T) {
		root := Root(t)
		m := newMap(t)
		defer m.Close()
		keep(t, m, filepath.Join(root, "it"))
		Cgroup(t)
		nsA, _ := Pair(t)
		Hold(t, m.FD())
		Unhooked(t, nsA)
	}, ""},
	"descriptor": {func(t *testing.T) { NeedsKernel(t); newMap(t) }, "1 descriptors of anon_inode:bpf-map [map "},
	"file":       {func(t *testing.T) { NeedsKernel(t); _, _ = os.Open("/etc/hostname") }, "1 descriptors of /etc/hostname"},
	"map held by a process": {func(t *testing.T) {
		root := Root(t)
		m := newMap(t)
		defer m.Close()
		keep(t, m, filepath.Join(root, "it"))
		file := os.NewFile(uintptr(m.FD()), "map")
		holder := exec.Command("sleep", "5")
		holder.ExtraFiles = []*os.File{file}
		if err := holder.Start(); err != nil {
			t.Fatal(err)
		}
	}, "map "},
	"pin": {func(t *testing.T) {
		m := newMap(t)
		defer m.Close()
		keep(t, m, Root(t)+"-kept")
	}, "-kept"},
	"process": {func(t *testing.T) { _ = exec.Command("sh", "-c", "NAME="+Name(t)+" sleep 5 &").Run() }, "process "},
	"namespace": {func(t *testing.T) {
		name := Name(t)
		_ = onThread(func() error { h, err := netns.NewNamed(name); h.Close(); return err })
	}, "/run/netns/bn"},
	"cgroup": {func(t *testing.T) {
		name := Name(t)
		_, hierarchies := mounts(name)
		_ = os.Mkdir(filepath.Join(hierarchies[0], name), 0o755)
	}, "bn"},
	"mount": {func(t *testing.T) {
		dir := filepath.Join(os.TempDir(), Name(t))
		_ = os.Mkdir(dir, 0o755)
		_ = unix.Mount("none", dir, "tmpfs", 0, "")
	}, "mount /"},
	"qdisc": {func(t *testing.T) {
		ns := NetNS(t)
		_ = bpfnetns.Do(ns, func() error { return netlink.QdiscAdd(clsact(1)) })
		Unhooked(t, ns)
	}, "a clsact qdisc on lo"},
	"filter": {func(t *testing.T) {
		ns := NetNS(t)
		if err := bpfnetns.Do(ns, func() error { return addFilter(1) }); err != nil {
			t.Fatal(err)
		}
		programs := hooks(ns)
		if len(programs) != 1 {
			t.Fatalf("found %v", programs)
		}
		watch(t).made(programs)
		if _, err := os.Open(ns); err != nil { // keeps the namespace
			t.Fatal(err)
		}
	}, "prog "},
}

func newMap(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 3})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func keep(t *testing.T, m *ebpf.Map, path string) {
	t.Helper()
	_ = os.MkdirAll(filepath.Dir(path), 0o700)
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
}

func clsact(index int) *netlink.Clsact {
	return &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
}

func addFilter(index int) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, License: "GPL"})
	if err != nil {
		return err
	}
	defer prog.Close()
	if err := netlink.QdiscAdd(clsact(index)); err != nil {
		return err
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: 3, Priority: 1},
		Fd:          prog.FD(), Name: "leak", DirectAction: true,
	})
}

// TestLeak leaks, in the runs that TestLeaks makes.
func TestLeak(t *testing.T) {
	if l, ok := leaks[os.Getenv(leakVariable)]; ok {
		l.leak(t)
	}
}

// TestLeaks leaks on purpose, each time in a process of its own, and expects that
// the process says so.
func TestLeaks(t *testing.T) {
	if os.Getenv(leakVariable) != "" {
		return
	}
	NeedsKernel(t)
	for name, l := range leaks {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestLeak$")
			cmd.Env = append(os.Environ(), leakVariable+"="+name)
			out, err := cmd.CombinedOutput()
			cleanUp(cmd.Process.Pid)
			if (err != nil) != (l.want != "") || !strings.Contains(string(out), l.want) {
				t.Errorf("%v, and the output lacks %q:\n%s", err, l.want, out)
			}
		})
	}
}

// cleanUp takes away what a process left that bears its names.
func cleanUp(pid int) {
	own := "bn" + strconv.Itoa(pid) + "-"
	pins, _ := filepath.Glob(filepath.Join(pinned.MountPoint, "bpfnet-test-"+own+"*"))
	mounted, hierarchies := mounts(own)
	for _, what := range mounted {
		_ = unix.Unmount(strings.TrimPrefix(what, "mount "), 0)
	}
	for _, dir := range append(hierarchies, os.TempDir()) {
		made, _ := filepath.Glob(filepath.Join(dir, own+"*"))
		pins = append(pins, made...)
	}
	for _, path := range pins {
		_ = os.Remove(path)
	}
	named, _ := filepath.Glob(filepath.Join(namespaces, own+"*"))
	for _, path := range named {
		_ = netns.DeleteNamed(filepath.Base(path))
	}
}

func TestContains(t *testing.T) {
	for _, c := range []struct {
		text, name string
		want       bool
	}{
		{"bn7-1", "bn7-1", true}, {"bn7-1h", "bn7-1", true}, {"bn7-12", "bn7-1", false},
		{"bn7-12 bn7-1", "bn7-1", true}, {"", "bn7-1", false}, {"bn7-12", "bn7-", true},
	} {
		if got := contains(c.text, c.name); got != c.want {
			t.Errorf("contains(%q, %q) = %t", c.text, c.name, got)
		}
	}
}
