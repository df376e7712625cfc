package endpoint

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/engine"
	"bpfnet/internal/engine/enginetest"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// BenchmarkList lists 200 containers, each with a network namespace, a veth pair, two
// addresses, and a name that CRI has to tell.
func BenchmarkList(b *testing.B) {
	const containers = 200
	host, dir := testkit.NetNS(b), testkit.Cgroup(b)
	b.Cleanup(func() { removeCgroups(dir) })
	server := &enginetest.CRI{Runtime: "containerd"}
	for i := range containers {
		crowded(b, host, dir, i)
		sandbox := fmt.Sprintf("%064x", 1000+i)
		server.Pod(sandbox, "shop", fmt.Sprint("web-", i), uid, 1, map[string]string{"app": "web"})
		server.Container(fmt.Sprintf("%064x", i), sandbox, "nginx")
	}
	kernel := New(host, engine.Sockets{CRI: server.Serve(b), Docker: docker(b, nil)})
	for b.Loop() {
		l, err := kernel.List(context.Background())
		own := slices.DeleteFunc(l.Endpoints, func(e Endpoint) bool { return !within(e.Cgroup.Path, "/"+filepath.Base(dir)) })
		if err != nil || len(own) != containers || len(own[0].Interfaces) != 1 || len(own[0].Interfaces[0].Addresses) != 2 || own[0].Containers[0].Name == nil {
			b.Fatalf("%d containers, %v", len(own), err)
		}
	}
}

// crowded makes the container of a number.
func crowded(b *testing.B, host, dir string, i int) {
	b.Helper()
	own := filepath.Join(dir, fmt.Sprintf("docker-%064x.scope", i))
	if err := os.Mkdir(own, 0o755); err != nil {
		b.Fatal(err)
	}
	cgroup, err := os.Open(own)
	if err != nil {
		b.Fatal(err)
	}
	defer cgroup.Close()
	sleep := exec.Command("sleep", "600")
	sleep.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := sleep.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	err = netns.Do(host, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("veth", i)}, PeerName: "eth0", PeerNamespace: netlink.NsPid(sleep.Process.Pid)})
	})
	if err == nil {
		err = netns.Do(fmt.Sprintf("/proc/%d/ns/net", sleep.Process.Pid), func() error { return addressed(i) })
	}
	if err != nil {
		b.Fatal(err)
	}
}

func addressed(i int) error {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, text := range []string{fmt.Sprintf("10.202.0.%d/16", i+1), fmt.Sprintf("fd77:202::%x/64", i+1)} {
		a, err := netlink.ParseAddr(text)
		if err == nil {
			err = netlink.AddrAdd(l, a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
