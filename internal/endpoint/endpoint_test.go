package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/engine"
	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// site is a host in a network namespace of its own, with a cgroup below which its
// containers have theirs.
type site struct {
	*testing.T
	*Kernel
	host string // path of the namespace
	dir  string // of the cgroup
	base string // its path
}

func newSite(t *testing.T) site {
	t.Helper()
	s := site{T: t, host: testkit.NetNS(t), dir: testkit.Cgroup(t)}
	s.base = "/" + filepath.Base(s.dir)
	s.Kernel = New(s.host, engine.Sockets{})
	return s
}

// run starts a process in a cgroup and a network namespace. What is returned ends
// it, as does the end of the test.
func (s site) run(cgroup, ns string) (pid int, end func()) {
	s.Helper()
	dir := filepath.Join(s.dir, cgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	sleep := exec.Command("sleep", "600")
	if err := netns.Do(ns, sleep.Start); err != nil {
		s.Fatal(err)
	}
	end = func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }
	s.Cleanup(end)
	s.move(sleep.Process.Pid, dir)
	return sleep.Process.Pid, end
}

func (s site) move(pid int, dir string) {
	s.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600); err != nil {
		s.Fatal(err)
	}
}

// connect joins a namespace to the host: its eth0 is the host's dev.
func (s site) connect(ns, dev string, addresses ...string) {
	s.Helper()
	s.link(ns, &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: "eth0"})
	s.address(ns, "eth0", addresses...)
}

// link makes a veth pair whose peer is in a namespace.
func (s site) link(ns string, veth *netlink.Veth) {
	s.Helper()
	file, err := os.Open(ns)
	if err != nil {
		s.Fatal(err)
	}
	defer file.Close()
	veth.PeerNamespace = netlink.NsFd(int(file.Fd()))
	if err := netns.Do(s.host, func() error { return netlink.LinkAdd(veth) }); err != nil {
		s.Fatalf("make veth pair: %v", err)
	}
}

func (s site) address(ns, dev string, addresses ...string) {
	s.Helper()
	err := netns.Do(ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				return err
			}
			a.Flags |= unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.Fatalf("set up %s: %v", dev, err)
	}
}

func (s site) listed() []Endpoint {
	s.Helper()
	l, err := s.List(context.Background())
	if err != nil {
		s.Fatal(err)
	}
	return slices.DeleteFunc(l.Endpoints, func(e Endpoint) bool { return !within(e.Cgroup.Path, s.base) })
}

func (s site) shown(format string, args ...any) []Endpoint {
	s.Helper()
	found, err := s.show(fmt.Sprintf(format, args...))
	if err != nil {
		s.Fatal(err)
	}
	return found
}

func (s site) show(text string) ([]Endpoint, error) {
	s.Helper()
	ref, err := ParseRef(text)
	if err != nil {
		s.Fatal(err)
	}
	l, err := s.Show(context.Background(), ref)
	return l.Endpoints, err
}

// one is the cgroup of the only endpoint behind ref, below the site's.
func (s site) one(format string, args ...any) string {
	s.Helper()
	found := s.shown(format, args...)
	if len(found) != 1 {
		s.Fatalf(format+": %d endpoints", append(args, len(found))...)
	}
	return strings.TrimPrefix(found[0].Cgroup.Path, s.base)
}

// refused checks that ref is an error of a kind.
func (s site) refused(text string, kind error, words string) {
	s.Helper()
	if found, err := s.show(text); !errors.Is(err, kind) || !strings.Contains(err.Error(), words) {
		s.Errorf("%s: %d endpoints, %v", text, len(found), err)
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}

func value[V any](p *V) any {
	if p == nil {
		return nil
	}
	return *p
}

// A Pod of two containers and one that is in no Pod, found both ways by all that
// they have.
func TestEveryWay(t *testing.T) {
	s := newSite(t)
	podNS, webNS := testkit.NetNS(t), testkit.NetNS(t)
	s.connect(podNS, "vethpod", "10.201.7.4/24", "fd77:201::4/64")
	s.connect(webNS, "vethweb", "10.201.7.5/24", "fd77:201::5/64")
	pod, web := "/kubepods/burstable/pod"+uid, "/system.slice/docker-"+idB+".scope"
	pause, _ := s.run(pod+"/"+idA, podNS)
	time.Sleep(20 * time.Millisecond) // the next tick
	app, _ := s.run(pod+"/"+static+static, podNS)
	main, _ := s.run(web, webNS)
	time.Sleep(20 * time.Millisecond)
	child, _ := s.run(web+"/inner", webNS)

	list := s.listed()
	if len(list) != 2 {
		t.Fatalf("%d endpoints: %+v", len(list), list)
	}
	s.checkPod(list[0], podNS, pod, pause, app)
	s.checkContainer(list[1], webNS, web, main)
	for _, ref := range []string{
		fmt.Sprint("pid:", pause), fmt.Sprint("pid:", app), "container:" + idA, "container:" + static + static, "cgroup:" + s.base + pod, "cgroup:" + s.dir + pod + "/" + idA,
		"dev:vethpod", fmt.Sprint("netns:", inode(t, podNS)), "netns:" + filepath.Base(podNS), "10.201.7.4", "fd77:201::4", "::ffff:10.201.7.4",
	} {
		if got := s.one("%s", ref); got != pod {
			t.Errorf("%s is %s", ref, got)
		}
	}
	for _, ref := range []string{
		fmt.Sprint("pid:", main), fmt.Sprint("pid:", child), "container:" + idB, "cgroup:" + s.dir + web + "/", "cgroup:" + s.base + web + "/inner",
		"dev:vethweb", "netns:" + filepath.Base(webNS), "10.201.7.5", "fd77:201::5",
	} {
		if got := s.one("%s", ref); got != web {
			t.Errorf("%s is %s", ref, got)
		}
	}
	if found := s.shown("cgroup:%s", s.base); len(found) != 2 {
		t.Errorf("below the site's cgroup: %d endpoints", len(found))
	}
}

func (s site) checkPod(e Endpoint, ns, path string, pause, app int) {
	s.Helper()
	s.checkNetwork(e, ns, "vethpod", "10.201.7.4", "fd77:201::4")
	s.checkCgroup(e.Cgroup, path)
	if e.Kind != KindPod || e.Pod == nil || e.Pod.UID != uid || value(e.Pod.QoS) != "burstable" || e.Pod.Name != nil || e.Pod.Source != SourceCgroup {
		s.Errorf("Pod: %+v", e)
	}
	s.checkProcess(e.Process, pause)
	if len(e.Containers) != 2 {
		s.Fatalf("containers: %+v", e.Containers)
	}
	for i, want := range []struct {
		id  string
		pid int
	}{{idA, pause}, {static + static, app}} {
		c := e.Containers[i]
		if c.ID != want.id || c.Engine != Unknown || c.Name != nil || c.Source != SourceCgroup {
			s.Errorf("container: %+v", c)
		}
		s.checkProcess(c.Process, want.pid)
		s.checkCgroup(c.Cgroup, path+"/"+want.id)
	}
}

func (s site) checkContainer(e Endpoint, ns, path string, main int) {
	s.Helper()
	s.checkNetwork(e, ns, "vethweb", "10.201.7.5", "fd77:201::5")
	s.checkCgroup(e.Cgroup, path)
	s.checkProcess(e.Process, main)
	if e.Kind != KindContainer || e.Pod != nil || e.Unit != nil || len(e.Containers) != 1 || e.Containers[0].ID != idB || e.Containers[0].Engine != Docker {
		s.Errorf("container: %+v", e)
	}
}

func (s site) checkNetwork(e Endpoint, ns, dev string, addresses ...string) {
	s.Helper()
	if len(e.Interfaces) != 1 {
		s.Fatalf("interfaces: %+v", e.Interfaces)
	}
	i := e.Interfaces[0]
	index, inner := 0, 0
	cookie := any(nil)
	s.in(s.host, func() { index = indexOf(dev) })
	s.in(ns, func() {
		inner = indexOf("eth0")
		if c, err := ownCookie(); err == nil {
			cookie = value(c)
		}
	})
	got := fmt.Sprint(value(i.DevName), value(i.IfIndex), i.Kind, value(i.InnerDevName), i.InnerIfIndex, i.Addresses, value(e.NetNS), value(e.NetNSCookie), value(e.HostNetwork))
	var list []netip.Addr
	for _, text := range addresses {
		list = append(list, netip.MustParseAddr(text))
	}
	if want := fmt.Sprint(dev, index, "veth", "eth0", inner, list, inode(s.T, ns), cookie, false); got != want {
		s.Errorf("network: %s, want %s", got, want)
	}
}

func (s site) in(ns string, fn func()) {
	s.Helper()
	if err := netns.Do(ns, func() error { fn(); return nil }); err != nil {
		s.Fatal(err)
	}
}

func indexOf(dev string) int {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return 0
	}
	return l.Attrs().Index
}

// checkCgroup compares with the directory, and its id with what the kernel gives as
// a file handle.
func (s site) checkCgroup(c Cgroup, path string) {
	s.Helper()
	dir := s.dir + path
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		s.Fatal(err)
	}
	id := uint64(0)
	for i, b := range handle.Bytes() {
		id |= uint64(b) << (8 * i)
	}
	if got, want := fmt.Sprint(c.Path, value(c.Dir), value(c.ID)), fmt.Sprint(s.base+path, dir, id); got != want {
		s.Errorf("cgroup: %s, want %s", got, want)
	}
}

func (s site) checkProcess(p Process, pid int) {
	s.Helper()
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if p.PID != pid || p.Command != "sleep" && p.Command != filepath.Base(exe) || value(p.Executable) != exe {
		s.Errorf("process %d: %+v", pid, p)
	}
	if age := time.Since(p.Start); age < -2*time.Second || age > time.Minute { // the time of the boot is in whole seconds
		s.Errorf("process %d: started %s ago", pid, age)
	}
}

// Two namespaces side by side with the same addresses and interface indexes, as the
// Pods of two nodes have them.
func TestSameAddresses(t *testing.T) {
	s := newSite(t)
	for i, dev := range []string{"vetha", "vethb"} {
		ns := testkit.NetNS(t)
		s.link(ns, &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: "eth0"})
		s.address(ns, "eth0", "10.201.8.1/24", "fd77:201:8::1/64")
		s.run([]string{"/docker/" + idA, "/docker/" + idB}[i], ns)
	}
	s.address(s.host, "vetha", "10.201.8.1/24") // of the host too
	found := s.shown("10.201.8.1")
	if len(found) != 2 || found[0].Interfaces[0].InnerIfIndex != found[1].Interfaces[0].InnerIfIndex {
		t.Fatalf("%+v", found)
	}
	if a, b := s.one("dev:vetha"), s.one("dev:vethb"); a != "/docker/"+idA || b != "/docker/"+idB {
		t.Errorf("vetha is %s, vethb is %s", a, b)
	}
	if a, b := s.one("netns:%d", *found[0].NetNS), s.one("netns:%d", *found[1].NetNS); a == b {
		t.Errorf("both namespaces are %s", a)
	}
}

// Ids of which one is the beginning of another's, and abbreviations.
func TestIDsThatLookAlike(t *testing.T) {
	s := newSite(t)
	s.run("/docker/"+idA, s.host)
	s.run("/docker/"+idB, s.host)
	s.run("/lxc/bn-web", s.host)
	s.run("/lxc/bn-web-2", s.host)
	for ref, want := range map[string]string{
		idA: "/docker/" + idA, idB: "/docker/" + idB, idB[:61]: "/docker/" + idB, "bn-web": "/lxc/bn-web", "bn-web-": "/lxc/bn-web-2",
	} {
		if got := s.one("container:%s", ref); got != want {
			t.Errorf("%s is %s", ref, got)
		}
	}
	s.refused("container:"+idA[:60], fault.ErrUsage, idA+", "+idB)
	s.refused("container:"+idA[:60]+"00", fault.ErrNotFound, "no container")
}

// Containers on the host's network have none of their own.
func TestHostNetwork(t *testing.T) {
	s := newSite(t)
	ns := testkit.NetNS(t)
	s.connect(ns, "vetha")
	s.address(s.host, "vetha", "10.201.9.1/24")
	pid, _ := s.run("/kubepods/pod"+uid+"/crio-"+idA, s.host)
	other, _ := s.run("/somewhere", s.host)
	found := s.shown("pid:%d", pid)
	if e := found[0]; len(found) != 1 || value(e.HostNetwork) != true || value(e.NetNS) != inode(t, s.host) || e.Interfaces == nil || len(e.Interfaces) > 0 {
		t.Errorf("%+v", found)
	}
	if found := s.shown("netns:%d", inode(t, s.host)); len(found) != 1 || found[0].Kind != KindPod {
		t.Errorf("in the host's namespace: %+v", found)
	}
	s.refused("10.201.9.1", fault.ErrNotFound, "address of this host")
	s.refused("dev:vetha", fault.ErrNotFound, "no process is behind it")
	s.refused("dev:nothing", fault.ErrNotFound, "no such interface")
	if found := s.shown("pid:%d", other); found[0].Kind != KindProcess || found[0].Process.PID != other || len(found[0].Containers) > 0 {
		t.Errorf("%+v", found)
	}
}

// Containers that share a network namespace, and a process in none that is in it.
func TestSharedNamespace(t *testing.T) {
	s := newSite(t)
	ns := testkit.NetNS(t)
	s.connect(ns, "vetha", "10.201.10.1/24")
	s.run("/docker/"+idA, ns)
	s.run("/docker/"+idB, ns)
	s.run("/system.slice/bn-probe.service", ns)
	for _, ref := range []string{"dev:vetha", "10.201.10.1"} {
		found := s.shown("%s", ref)
		if len(found) != 3 || found[0].Kind != KindContainer || found[2].Kind != KindUnit || value(found[2].Unit) != "bn-probe.service" || value(found[2].Slice) != "system.slice" {
			t.Errorf("%s: %+v", ref, found)
		}
	}
}

// A container in a container, in a Pod.
func TestNested(t *testing.T) {
	s := newSite(t)
	s.run("/kubepods/besteffort/pod"+static+"/"+idA, s.host)
	s.run("/kubepods/besteffort/pod"+static+"/"+idA+"/docker/"+idB, s.host)
	list := s.listed()
	if len(list) != 2 || list[0].Kind != KindPod || list[0].Pod.UID != static || len(list[0].Containers) != 1 || len(list[0].Outer) != 0 {
		t.Fatalf("%+v", list)
	}
	inner := list[1]
	if inner.Kind != KindContainer || inner.Containers[0].ID != idB || len(inner.Outer) != 1 || inner.Outer[0].ID != idA || value(inner.Outer[0].PodUID) != static {
		t.Errorf("%+v", inner)
	}
	if got := s.shown("cgroup:%s/kubepods/besteffort/pod%s/%s/docker/%s", s.base, static, idA, idB); got[0].Containers[0].ID != idB {
		t.Errorf("%+v", got)
	}
}

// Interfaces of other kinds, more than one, and none.
func TestInterfaces(t *testing.T) {
	s := newSite(t)
	ns, alone := testkit.NetNS(t), testkit.NetNS(t)
	s.connect(ns, "vetha", "10.201.11.1/24")
	s.link(ns, &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "vethb"}, PeerName: "net1"})
	s.in(ns, func() {
		parent, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: parent.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE})
		}
		testkit.Needs(t, "macvlan", err, unix.EOPNOTSUPP)
	})
	s.address(ns, "mac0", "10.201.11.3/24")
	local := testkit.NetNS(t)
	s.connect(local, "vethc", "fe80::7/64")
	s.address(ns, "net1", "fe80::8/64")
	s.run("/docker/"+idA, ns)
	s.run("/docker/"+idB, alone)
	s.run("/lxc/bn-local", local)
	list := s.listed()
	got := ""
	for _, i := range list[0].Interfaces {
		got += fmt.Sprintln(value(i.InnerDevName), i.Kind, value(i.DevName), len(i.Addresses))
	}
	if want := "eth0 veth vetha 1\nnet1 veth vethb 0\nmac0 macvlan <nil> 1\n"; got != want {
		t.Errorf("interfaces:\n%s", got)
	}
	if list[1].Interfaces == nil || len(list[1].Interfaces) > 0 || value(list[1].HostNetwork) != false {
		t.Errorf("without interfaces: %+v", list[1])
	}
	if got := s.shown("dev:vethc")[0].Interfaces[0].Addresses; !slices.Contains(got, netip.MustParseAddr("fe80::7")) {
		t.Errorf("with nothing but link-local addresses: %s", got)
	}
	if found := s.one("dev:vethb"); found != "/docker/"+idA {
		t.Errorf("vethb is %s", found)
	}
}

// Threads stand for their process.
func TestThreads(t *testing.T) {
	testkit.NeedsKernel(t)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil || len(tasks) < 2 {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		if pid, err := Leader(tid); pid != os.Getpid() && !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("thread %d is of process %d, %v", tid, pid, err)
		}
	}
	all, _, err := readProcesses()
	if n := len(slices.DeleteFunc(all, func(p *process) bool { return p.pid != os.Getpid() })); err != nil || n != 1 {
		t.Errorf("this process is there %d times, %v", n, err)
	}
}

// Processes that come and go while they are looked at are no error.
func TestProcessesThatEnd(t *testing.T) {
	s := newSite(t)
	dir := filepath.Join(s.dir, "docker", idA)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				short := exec.Command("true")
				short.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
				_ = short.Run()
			}
		}
	}()
	seen := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		seen += len(s.listed())
		_, err := s.show("container:" + idA)
		if err != nil && !errors.Is(err, fault.ErrNotFound) {
			t.Error(err)
		}
	}
	close(stop)
	<-stopped
	t.Logf("seen %d times", seen)
	s.refused("container:"+idA, fault.ErrNotFound, "no container")
}

// A pid that is used again is another process, also while it is being read.
// The executable of a process is known while it runs, and not by whoever has its
// number later.
func TestExecutable(t *testing.T) {
	self, _, err := readProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const tick = 1e9 / ticksPerSecond
	pid, start := uint32(self.pid), self.start*tick
	for _, test := range []struct {
		pid   uint32
		start uint64
		want  string
	}{
		{pid, start, self.executable}, {pid, start + tick - 1, self.executable}, {pid, start + tick, ""}, {pid, start - 1, ""}, {1 << 30, start, ""},
	} {
		if got := Executable(test.pid, test.start); got != test.want {
			t.Errorf("%d since %d: %q, want %q", test.pid, test.start, got, test.want)
		}
	}
}

func TestPIDReuse(t *testing.T) {
	s := newSite(t)
	pid, end := s.run("/docker/"+idA, s.host)
	before := s.shown("pid:%d", pid)[0]
	dir, err := OpenProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	old, _, _ := readProcess(pid)
	end()
	s.startAs(pid, "/docker/"+idB)
	after := s.shown("pid:%d", pid)[0]
	if after.Containers[0].ID != idB || !after.Process.Start.After(before.Process.Start) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if text, err := dir.read("cgroup"); unlessGone(err) != nil || err == nil {
		t.Errorf("the old process still has %q, %v", text, err)
	}
	if old.same() {
		t.Error("the new process is taken for the old one")
	}
	s.refused("container:"+idA, fault.ErrNotFound, "no container")
}

// startAs starts a process that has a pid.
func (s site) startAs(pid int, cgroup string) {
	s.Helper()
	for range 2000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			testkit.Needs(s, "choice of process numbers", err, unix.ENOENT)
		}
		got, end := s.run(cgroup, s.host)
		if got == pid {
			return
		}
		end()
	}
	s.Fatalf("no process got pid %d", pid)
}

// This process is where it is, whatever namespaces its threads have been in: the
// first one, which others see, stays in the last.
func TestOwnNamespace(t *testing.T) {
	s := newSite(t)
	ns := testkit.NetNS(t)
	first := fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	for range 1000 {
		if inode(t, first) == inode(t, ns) {
			break
		}
		s.in(ns, func() {})
	}
	s.refused("netns:"+filepath.Base(ns), fault.ErrNotFound, "no process is behind it")
	if got := s.shown("pid:%d", os.Getpid())[0]; value(got.NetNS) != inode(t, "/proc/thread-self/ns/net") {
		t.Errorf("%+v", got)
	}
}
