// Package testkit makes what tests on a real kernel need, a root in bpffs,
// network namespaces, veth pairs and cgroups, takes it away again, and fails a
// test that leaves anything behind.
package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	bpfnetns "bpfnet/internal/netns"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// namespaces is where ip-netns(8) keeps named ones.
const namespaces = "/run/netns"

var serial atomic.Uint32

// Name returns a name for what a test makes. Nothing that bears it may be left
// when the test ends: namespace, cgroup, pin, process.
func Name(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("bn%d-%d", os.Getpid(), serial.Add(1))
	watch(t).add(name)
	return name
}

// NeedsKernel skips a test that can't work without root and bpffs, and says why.
// It fails one that leaves something behind: BPF objects, namespaces, cgroups,
// processes, descriptors. What the test closes with Cleanup it has to register
// afterwards.
func NeedsKernel(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it loads BPF programs")
	}
	if err := pinned.Mount(); err != nil {
		t.Skipf("needs bpffs: %v", err)
	}
	watch(t)
}

// Root returns a directory in bpffs for one test, removed with all it holds when
// the test ends.
func Root(t testing.TB) string {
	t.Helper()
	NeedsKernel(t)
	dir := filepath.Join(pinned.MountPoint, "bpfnet-test-"+Name(t))
	t.Cleanup(func() {
		watch(t).noteTree(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// NetNS makes a named network namespace and returns its path. Its loopback is
// up.
func NetNS(t testing.TB) string {
	t.Helper()
	NeedsKernel(t)
	name := Name(t)
	path := filepath.Join(namespaces, name)
	make := func() error {
		handle, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		handle.Close()
		return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}})
	}
	if err := onThread(make); err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _ = netns.DeleteNamed(name) })
	OwnNetNS(t, path)
	return path
}

// OwnNetNS makes a network namespace, given by its path, the test's: what is on
// its hooks before it is taken away, by a Cleanup that was registered earlier,
// must go with it.
func OwnNetNS(t testing.TB, path string) {
	t.Cleanup(func() { watch(t).made(hooks(path)) })
}

// onThread runs fn on a thread that ends with it, so that fn may change
// namespace.
func onThread(fn func() error) error { return bpfnetns.Do("/proc/self/ns/net", fn) }

// Pair makes two namespaces joined by a veth pair: device "a" in the first with
// 10.77.0.1 and fd77::1, device "b" in the second with 10.77.0.2 and fd77::2,
// both up.
func Pair(t testing.TB) (nsA, nsB string) {
	t.Helper()
	nsA, nsB = NetNS(t), NetNS(t)
	peer, err := os.Open(nsB)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	err = bpfnetns.Do(nsA, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b", PeerNamespace: netlink.NsFd(int(peer.Fd()))})
	})
	if err != nil {
		t.Fatalf("make veth pair: %v", err)
	}
	up(t, nsA, "a", "10.77.0.1/24", "fd77::1/64")
	up(t, nsB, "b", "10.77.0.2/24", "fd77::2/64")
	return nsA, nsB
}

func up(t testing.TB, ns, dev string, addresses ...string) {
	t.Helper()
	err := bpfnetns.Do(ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			a.Flags |= unix.IFA_F_NODAD // usable at once
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	})
	if err != nil {
		t.Fatalf("set up %s: %v", dev, err)
	}
}

// Cgroup makes a cgroup2 directory and returns its path. What is made below it is
// removed with it.
func Cgroup(t testing.TB) string {
	t.Helper()
	NeedsKernel(t)
	mount, err := probe.Cgroup2Mount()
	if err != nil {
		t.Skipf("needs cgroup2: %v", err)
	}
	dir := filepath.Join(mount, Name(t))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		watch(t).made(cgroupHooks(dir))
		removeCgroup(dir)
	})
	return dir
}

func removeCgroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir)
}

// Hold starts a process, called "sleep", that has a copy of a descriptor open.
// What is returned ends it, as does the end of the test.
func Hold(t testing.TB, fd int) (pid int, end func()) {
	t.Helper()
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(copied), "held")
	defer file.Close()
	holder := exec.Command("sleep", "60")
	holder.ExtraFiles = []*os.File{file}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	t.Cleanup(end)
	return holder.Process.Pid, end
}
