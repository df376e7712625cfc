package follow

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/engine"
	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
	"bpfnet/internal/traffic"
)

// node is a host in a network namespace of its own, with pod-traffic loaded, and
// containers made of namespaces, cgroups and processes.
type node struct {
	*testing.T
	api    *datapath.Engine
	root   string // bpffs directory
	host   string // path of its namespace
	cgroup string // directory of a cgroup2
	events chan Event
	ended  chan error // gets the error of the last Follower, and is closed
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{T: t, host: testkit.NetNS(t), cgroup: testkit.Cgroup(t), events: make(chan Event, 100)}
	var err error
	n.root = testkit.Root(t)
	if n.api, err = datapath.Open(datapath.Options{Root: n.root, NetNS: n.host, LockTimeout: lockTimeout}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.api.Load(context.Background(), datapath.LoadRequest{Source: "pod-traffic", Name: "pod-traffic"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = n.api.Unload(context.Background(), datapath.UnloadRequest{All: true, Detach: true})
	})
	return n
}

// follow starts a Follower. What is returned ends it, and is its error.
func (n *node) follow() (end func() error) {
	n.Helper()
	return n.followWith(&Follower{
		Counters: traffic.NewReader(n.api, "pod-traffic"),
		Request:  datapath.AttachRequest{Hook: "tc", Name: "pod-traffic", Direction: datapath.Both},
	})
}

func (n *node) followWith(f *Follower) (end func() error) {
	n.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	n.ended = ended
	f.API, f.Endpoints, f.NetNS = n.api, endpoint.New(n.host, engine.Sockets{}), n.host
	f.Tell = func(e Event) error { n.events <- e; return nil }
	go func() {
		ended <- f.Run(ctx)
		close(ended)
	}()
	end = func() error {
		cancel()
		return <-ended
	}
	n.Cleanup(func() { _ = end() })
	return end
}

const (
	within      = 10 * time.Second
	lockTimeout = 300 * time.Millisecond
)

// next is the next event, which must be of a kind and a device.
func (n *node) next(kind Kind, dev string) Event {
	n.Helper()
	select {
	case e := <-n.events:
		if e.Kind != kind || e.DevName != dev {
			n.Fatalf("%s %s %+v, want %s %s", e.Kind, e.DevName, e, kind, dev)
		}
		return e
	case <-time.After(within):
		n.Fatalf("no %s %s", kind, dev)
	}
	return Event{}
}

// silence checks that nothing is told.
func (n *node) silence(d time.Duration) {
	n.Helper()
	select {
	case e := <-n.events:
		n.Errorf("%s %s %+v", e.Kind, e.DevName, e)
	case <-time.After(d):
	}
}

// namespace makes a network namespace of that name.
func (n *node) namespace(name string) string {
	n.Helper()
	path := filepath.Join(namespaceDir, name)
	err := netns.Do("/proc/self/ns/net", func() error {
		handle, err := vns.NewNamed(name)
		if err == nil {
			handle.Close()
		}
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = vns.DeleteNamed(name) })
	testkit.OwnNetNS(n.T, path)
	return path
}

// connect joins a namespace to the host: its eth0 is the host's dev.
func (n *node) connect(ns, dev, inner, outer string) {
	n.Helper()
	file, err := os.Open(ns)
	if err != nil {
		n.Fatal(err)
	}
	defer file.Close()
	n.in(n.host, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: dev}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(file.Fd()))})
	})
	n.up(ns, "eth0", inner)
	n.up(n.host, dev, outer)
}

func (n *node) in(ns string, fn func() error) {
	n.Helper()
	if err := netns.Do(ns, fn); err != nil {
		n.Fatal(err)
	}
}

// up sets an interface up, with an address, and without what IPv6 sends by itself.
func (n *node) up(ns, dev, address string) {
	n.Helper()
	n.in(ns, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+dev+"/disable_ipv6", []byte("1"), 0); err != nil {
			return err
		}
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
	})
}

// run starts a process in a cgroup and a network namespace.
func (n *node) run(cgroup, ns string) (end func()) {
	n.Helper()
	dir := filepath.Join(n.cgroup, cgroup)
	sleep := exec.Command("sleep", "600")
	n.in(ns, sleep.Start)
	end = func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }
	n.Cleanup(end)
	err := errors.Join(os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0o600))
	if err != nil {
		n.Fatal(err)
	}
	return end
}

// send sends datagrams out of a namespace.
func (n *node) send(ns, to string, count int) {
	n.Helper()
	n.in(ns, func() error {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for range count {
			if _, err := c.WriteTo(make([]byte, 1000), &net.UDPAddr{IP: net.ParseIP(to), Port: 9}); err != nil {
				return err
			}
		}
		return nil
	})
}

// counted is what an interface of the host has counted: what came out of the Pod, and
// went into it.
func (n *node) counted(dev string) (transmit, receive uint64) {
	n.Helper()
	n.in(n.host, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		transmit, receive = l.Attrs().Statistics.RxBytes, l.Attrs().Statistics.TxBytes
		return nil
	})
	return transmit, receive
}

// deleted takes an interface of the host away.
func (n *node) deleted(dev string) {
	n.Helper()
	n.in(n.host, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
}

// renamed gives an interface of the host another name.
func (n *node) renamed(dev, name string) {
	n.Helper()
	n.in(n.host, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, name), netlink.LinkSetUp(l))
	})
}

// left is what bpffs and the map still have of interfaces.
func (n *node) left() string {
	n.Helper()
	attachments, err := n.api.Attachments(context.Background(), "pod-traffic")
	if err != nil {
		n.Fatal(err)
	}
	var list []string
	for _, a := range attachments {
		list = append(list, fmt.Sprint(*a.DevName, " ", a.Hook, " ", a.Defunct))
	}
	indexes, err := traffic.NewReader(n.api, "pod-traffic").Interfaces(context.Background())
	if err != nil {
		n.Fatal(err)
	}
	return fmt.Sprint(strings.Join(list, ", "), "; counters: ", len(indexes))
}

// Processes of other tests aren't to be behind the same ids.
func podPath(number int) string {
	return fmt.Sprintf("/kubepods/burstable/pod%s/%08x%056x", podUID(number), os.Getpid(), number)
}

func podUID(number int) string {
	return fmt.Sprintf("%08x-3c1f-4f0a-9d2e-%012x", os.Getpid(), number)
}

func dockerPath() string { return fmt.Sprintf("/docker/%08x%056x", os.Getpid(), 0xd) }

// A Pod that is there and ones that come are attached to, a container that isn't a Pod
// isn't. When one goes, its last counters are what its interface has counted, and
// nothing is left.
func TestFollow(t *testing.T) {
	n := newNode(t)
	ns := []string{testkit.NetNS(t), testkit.NetNS(t), testkit.NetNS(t), testkit.NetNS(t)}
	n.run(podPath(0), ns[0])
	n.connect(ns[0], "veth0", "10.205.0.2/24", "10.205.0.1/24")
	end := n.follow()
	if e := n.next(Attached, "veth0"); e.Pod == nil || e.Pod.UID != podUID(0) {
		t.Errorf("Pod: %+v", e.Pod)
	}

	n.run(dockerPath(), ns[2])
	n.connect(ns[2], "veth2", "10.205.2.2/24", "10.205.2.1/24")
	n.run(podPath(1), ns[1])
	n.connect(ns[1], "veth1", "10.205.1.2/24", "10.205.1.1/24")
	if e := n.next(Attached, "veth1"); e.Pod == nil || e.Pod.UID != podUID(1) || e.Took == 0 {
		t.Errorf("Pod: %+v, %s", e.Pod, e.Took)
	} else {
		t.Logf("attached %s after the kernel told of the interface", e.Took)
	}
	n.connect(ns[3], "veth3", "10.205.3.2/24", "10.205.3.1/24")
	n.silence(100 * time.Millisecond)
	n.run(podPath(3), ns[3])
	n.next(Attached, "veth3")

	sent, received := n.counted("veth3")
	n.send(ns[3], "10.205.3.1", 100)
	n.send(n.host, "10.205.3.2", 50)
	sentAll, receivedAll := n.counted("veth3")
	n.deleted("veth3")
	e := n.next(Gone, "veth3")
	var total traffic.Counters
	for _, entry := range e.Traffic {
		total.TransmitBytes += entry.TransmitBytes
		total.ReceiveBytes += entry.ReceiveBytes
	}
	arp := uint64(42)
	if e.Pod == nil || e.Pod.UID != podUID(3) || total.TransmitBytes < 100*1000 || sentAll-sent-total.TransmitBytes > 2*arp || receivedAll-received-total.ReceiveBytes > 2*arp {
		t.Errorf("last counters: %+v of %+v; the interface: %d, %d", e.Traffic, e.Pod, sentAll-sent, receivedAll-received)
	}
	n.send(ns[0], "10.205.0.1", 1)
	if got, want := n.left(), "veth0 tcx_ingress false, veth1 tcx_ingress false"; !strings.Contains(strings.ReplaceAll(got, "clsact", "tcx"), "counters: 1") ||
		strings.Contains(got, "true") || strings.Contains(got, "veth3") {
		t.Errorf("left: %s, want %s", got, want)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	n.silence(0)
}

// Another one takes over where one was killed: what is attached stays, and what went
// meanwhile is told of once and removed.
func TestFollowAgain(t *testing.T) {
	n := newNode(t)
	ns := []string{testkit.NetNS(t), testkit.NetNS(t)}
	for i, path := range ns {
		n.run(podPath(i), path)
		n.connect(path, fmt.Sprint("veth", i), fmt.Sprintf("10.206.%d.2/24", i), fmt.Sprintf("10.206.%d.1/24", i))
	}
	end := n.follow()
	n.next(Attached, "veth0")
	n.next(Attached, "veth1")
	if err := end(); err != nil {
		t.Fatal(err)
	}
	n.send(ns[1], "10.206.1.1", 10)
	gone := "veth1"
	if strings.Contains(n.left(), "clsact") { // filters go with the interface, and its name
		gone = ""
	}
	n.deleted("veth1")

	end = n.follow()
	if e := n.next(Gone, gone); len(e.Traffic) != 1 || e.Traffic[0].TransmitBytes != 10*1042 || e.Traffic[0].Address.String() != "10.206.1.2" {
		t.Errorf("last counters: %+v", e.Traffic)
	}
	if e := n.next(Adopted, "veth0"); e.Pod == nil || e.Pod.UID != podUID(0) {
		t.Errorf("Pod: %+v", e.Pod)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if got := n.left(); strings.Contains(got, "veth1") || !strings.HasSuffix(got, "counters: 0") {
		t.Errorf("left: %s", got)
	}
}

// In a namespace that an engine made for a Pod it is attached before there is a process,
// and taken off again where that is none of a Pod.
func TestFollowEarly(t *testing.T) {
	n := newNode(t)
	end := n.follow()
	for i, cgroup := range []string{podPath(0), dockerPath()} {
		ns := n.namespace(fmt.Sprintf("cni-%08x-3c1f-4f0a-9d2e-5a7b8c9d0e%02x", os.Getpid(), i))
		dev := fmt.Sprint("veth", i)
		began := time.Now()
		n.connect(ns, dev, fmt.Sprintf("10.207.%d.2/24", i), fmt.Sprintf("10.207.%d.1/24", i))
		if e := n.next(Attached, dev); e.Pod != nil {
			t.Errorf("Pod: %+v", e.Pod)
		}
		t.Logf("attached %s after making the interface began", time.Since(began))
		if i == 1 {
			dev = "other1"
			n.renamed("veth1", dev)
		}
		n.run(cgroup, ns)
		if i == 0 {
			if e := n.next(Identified, dev); e.Pod == nil || e.Pod.UID != podUID(0) {
				t.Errorf("Pod: %+v", e.Pod)
			}
			continue
		}
		n.next(Detached, dev)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if got := n.left(); strings.Contains(got, "other1") {
		t.Errorf("left: %s", got)
	}
}

// What others detach is attached to again. It ends when what it attaches isn't loaded
// any more.
func TestFollowUnloaded(t *testing.T) {
	n := newNode(t)
	ns := testkit.NetNS(t)
	n.run(podPath(0), ns)
	n.connect(ns, "veth0", "10.208.0.2/24", "10.208.0.1/24")
	n.follow()
	n.next(Attached, "veth0")
	if _, err := n.api.Detach(context.Background(), datapath.DetachRequest{Hook: "tc", Name: "pod-traffic"}); err != nil {
		t.Fatal(err)
	}
	if e := n.next(Attached, "veth0"); e.Pod == nil || e.Pod.UID != podUID(0) || e.Took != 0 {
		t.Errorf("attached again: %+v", e)
	}
	if _, err := n.api.Unload(context.Background(), datapath.UnloadRequest{Name: "pod-traffic", Detach: true}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-n.ended:
		if !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(within):
		t.Error("it goes on without a program")
	}
}

// While another one holds the lock it goes on, and does later what it couldn't.
func TestFollowLocked(t *testing.T) {
	n := newNode(t)
	connect := func(i int) {
		ns := testkit.NetNS(t)
		n.run(podPath(i), ns)
		n.connect(ns, fmt.Sprint("veth", i), fmt.Sprintf("10.209.%d.2/24", i), fmt.Sprintf("10.209.%d.1/24", i))
	}
	connect(0)
	end := n.follow()
	n.next(Attached, "veth0")
	unlock := n.locked()
	connect(1)
	if e := n.next(Failed, "veth1"); !errors.Is(e.Err, fault.ErrLocked) {
		t.Errorf("failed: %v", e.Err)
	}
	n.deleted("veth0")
	n.silence(3 * lockTimeout)
	unlock()
	later := []string{}
	for range 2 {
		e := <-n.events
		later = append(later, fmt.Sprint(e.Kind, " ", e.DevName))
	}
	if slices.Sort(later); !slices.Equal(later, []string{"attached veth1", "gone veth0"}) {
		t.Errorf("later: %q", later)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// An interface has gone also if one that has its index in another network namespace is
// attached to.
func TestFollowOtherNamespace(t *testing.T) {
	n := newNode(t)
	other := &node{T: t, host: testkit.NetNS(t)}
	other.connect(testkit.NetNS(t), "veth1", "10.211.0.2/24", "10.211.0.1/24")
	api, err := datapath.Open(datapath.Options{Root: n.root, NetNS: other.host})
	if err != nil {
		t.Fatal(err)
	}
	request := datapath.AttachRequest{Hook: "tc", Name: "port-filter", Direction: datapath.Ingress}
	if _, err := api.Load(context.Background(), datapath.LoadRequest{Source: request.Name, Name: request.Name}); err != nil {
		t.Fatal(err)
	}
	at := request
	at.Device = "veth1"
	there, err := api.Attach(context.Background(), at)
	if err != nil {
		t.Fatal(err)
	}
	n.followWith(&Follower{Request: request})
	ns := testkit.NetNS(t)
	n.run(podPath(0), ns)
	n.connect(ns, "veth0", "10.211.0.2/24", "10.211.0.1/24")
	if e := n.next(Attached, "veth0"); e.IfIndex != *there.Attachments[0].IfIndex {
		t.Errorf("%d isn't the index of the other one", e.IfIndex)
	}
	n.deleted("veth0")
	n.next(Gone, "veth0")
}

// locked holds the lock of bpffs.
func (n *node) locked() (unlock func()) {
	n.Helper()
	dir, err := os.Open(n.root)
	if err == nil {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		n.Fatal(err)
	}
	return func() { dir.Close() }
}
