// Package netns runs code inside another network namespace and names
// namespaces by the inode that the kernel knows them by.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

const (
	namedDir = "/run/netns" // where ip-netns(8) keeps named namespaces
	self     = "/proc/thread-self/ns/net"
)

// Resolve turns the NAME, the PATH or a process's PID of a namespace into its path.
func Resolve(ref string) (string, error) {
	path := ref
	switch {
	case strings.Contains(ref, "/"):
	case isNumber(ref):
		path = "/proc/" + ref + "/ns/net"
	default:
		path = filepath.Join(namedDir, ref)
	}
	if _, err := Inode(path); err != nil {
		return "", err
	}
	return path, nil
}

// Named lists the paths of what ip-netns(8) keeps, which may be no namespaces any more.
func Named() (paths []string) {
	entries, _ := os.ReadDir(namedDir) // without it there are none
	for _, entry := range entries {
		paths = append(paths, filepath.Join(namedDir, entry.Name()))
	}
	return paths
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// Inode returns the inode of the namespace at path, "" for the caller's.
func Inode(path string) (uint64, error) {
	if path == "" {
		path = self
	}
	var stat unix.Stat_t
	var fsys unix.Statfs_t
	if err := unix.Stat(path, &stat); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, fault.New(fault.ErrNotFound, "no network namespace %q", path).Hint("ip netns list   (or give a process id)")
		}
		return 0, fmt.Errorf("open network namespace %q: %w", path, err)
	}
	if err := unix.Statfs(path, &fsys); err != nil || fsys.Type != unix.NSFS_MAGIC {
		return 0, fault.New(fault.ErrUsage, "%q is not a network namespace", path)
	}
	return stat.Ino, nil
}

// Hold returns a path of the namespace that a process is in and that has an inode.
// It stays open until this process ends, whoever has the pid then. ErrNotFound if
// the process isn't in that namespace any more.
func Hold(pid int, inode uint64) (string, error) {
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("open network namespace %q: %w", path, err)
	}
	var stat unix.Stat_t
	if err == nil && unix.Fstat(fd, &stat) == nil && stat.Ino == inode {
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	_ = unix.Close(fd)
	return "", fault.New(fault.ErrNotFound, "network namespace %d: process %d left it meanwhile", inode, pid).Hint("try again")
}

// Do runs fn on a thread that is in the namespace at path; an empty path means
// the namespace the process is in. Sockets that fn opens stay in the namespace;
// goroutines that it starts don't.
func Do(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace %q: %w", path, err)
	}
	defer target.Close()

	result := make(chan error, 1)
	go func() {
		// The thread isn't unlocked: the runtime ends it with the goroutine, so
		// that no other code ever runs in the wrong namespace.
		runtime.LockOSThread()
		if err := netns.Set(netns.NsHandle(int(target.Fd()))); err != nil {
			result <- enterError(path, err)
			return
		}
		result <- fn()
	}()
	return <-result
}

func enterError(path string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fault.New(fault.ErrPermission, "enter network namespace %q: %w", path, err).Hint("entering a namespace needs CAP_SYS_ADMIN")
	}
	return fmt.Errorf("enter network namespace %q: %w", path, err)
}
