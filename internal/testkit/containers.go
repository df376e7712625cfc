package testkit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	bpfnetns "bpfnet/internal/netns"
)

// Crowd makes what the kernel has of containers of Docker, with systemd's names, below
// a cgroup: each is a process with a network namespace, and a veth pair, from veth0
// on, whose other end has two addresses.
func Crowd(t testing.TB, host, cgroup string, count int) {
	t.Helper()
	for i := range count {
		if err := crowded(t, host, filepath.Join(cgroup, fmt.Sprintf("docker-%064x.scope", i)), i); err != nil {
			t.Fatalf("make container %d: %v", i, err)
		}
	}
}

func crowded(t testing.TB, host, dir string, i int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	sleep := exec.Command("sleep", "600")
	sleep.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := sleep.Start(); err != nil {
		return err
	}
	t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	err = bpfnetns.Do(host, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint("veth", i)}, PeerName: "eth0", PeerNamespace: netlink.NsPid(sleep.Process.Pid)})
	})
	if err != nil {
		return err
	}
	return bpfnetns.Do(fmt.Sprintf("/proc/%d/ns/net", sleep.Process.Pid), func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(address(l, fmt.Sprintf("10.202.%d.%d/16", i/250, i%250+1)), address(l, fmt.Sprintf("fd77:202::%x/64", i+1)))
	})
}

func address(l netlink.Link, text string) error {
	a, err := netlink.ParseAddr(text)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, a)
}
