package probe

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// WithNetNS runs fn on a thread in a new network namespace that has no name:
// it is gone with everything in it when fn returns, or when the process ends.
func WithNetNS(fn func(here netns.NsHandle) error) error {
	result := make(chan error, 1)
	go func() {
		// A thread that can't get back stays locked and ends with the goroutine.
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			result <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer home.Close()
		here, err := netns.New()
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("create network namespace: %w", err)
			return
		}
		err = fn(here)
		here.Close()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// withLoopback runs fn with the index of a loopback device that nobody uses.
func withLoopback(fn func(index int) error) error {
	return WithNetNS(func(netns.NsHandle) error {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return fmt.Errorf("find loopback device: %w", err)
		}
		return fn(lo.Index)
	})
}

// withVeth runs fn with the index of one end of a pair of virtual devices.
func withVeth(fn func(index int) error) error {
	return WithNetNS(func(netns.NsHandle) error {
		attributes := netlink.NewLinkAttrs()
		attributes.Name = "probe0"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "probe1"}); err != nil {
			return unknownToKernel(fmt.Errorf("create veth: %w", err))
		}
		device, err := net.InterfaceByName(attributes.Name)
		if err != nil {
			return fmt.Errorf("find veth: %w", err)
		}
		return fn(device.Index)
	})
}

var serial atomic.Uint32

// uniqueName is a name for something that lives for an instant in a directory
// that other processes use too.
func uniqueName() string {
	return fmt.Sprintf("bpfnet-probe-%d-%d", os.Getpid(), serial.Add(1))
}

// withCgroup runs fn with an open, empty cgroup2 directory made for it.
func withCgroup(fn func(dir *os.File) error) (err error) {
	mount, err := Cgroup2Mount()
	if err != nil {
		return err
	}
	path := filepath.Join(mount, uniqueName())
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("create cgroup: %w", err)
	}
	defer func() { err = fault.Join(err, os.Remove(path)) }()
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	return fn(dir)
}

// withSymlink makes a symbolic link in a directory and removes it.
func withSymlink(dir string) (err error) {
	path := filepath.Join(dir, uniqueName())
	if err := os.Symlink("text", path); err != nil {
		return unknownToKernel(fmt.Errorf("create symbolic link: %w", err))
	}
	defer func() { err = fault.Join(err, os.Remove(path)) }()
	_, err = os.Readlink(path)
	return err
}

func closeAfter(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}
