package netns

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// A namespace that is held stays, when its process has ended, too.
func TestHold(t *testing.T) {
	sleep := exec.Command("unshare", "--net", "sleep", "600")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }
	defer end()
	own, err := Inode("")
	if err != nil {
		t.Fatal(err)
	}
	pid, inode := sleep.Process.Pid, own
	for range 500 {
		if inode, _ = Inode("/proc/" + strconv.Itoa(pid) + "/ns/net"); inode != own {
			break
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e7}, nil)
	}
	if inode == own {
		t.Skip("network namespaces can't be made")
	}
	if path, err := Hold(pid, own); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("another namespace is %q, %v", path, err)
	}
	path, err := Hold(pid, inode)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		fd, _ := strconv.Atoi(filepath.Base(path))
		_ = unix.Close(fd)
	}()
	end()
	if _, err := Hold(pid, inode); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
	var inside uint64
	err = Do(path, func() (err error) {
		inside, err = Inode("")
		return err
	})
	if err != nil || inside != inode {
		t.Errorf("in %d, want %d: %v", inside, inode, err)
	}
}
