package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// resolveCgroup checks that path is a cgroup2 directory and returns its id, the
// inode that BPF programs see.
func resolveCgroup(path string) (target, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return target{}, fault.New(fault.ErrUsage, "cgroup %q: %w", path, err)
	}
	var stat unix.Stat_t
	var fsys unix.Statfs_t
	if err := unix.Stat(abs, &stat); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return target{}, fault.New(fault.ErrNotFound, "no such cgroup").Hint("give the directory below the cgroup2 mount, such as /sys/fs/cgroup/system.slice")
		}
		return target{}, fmt.Errorf("read cgroup: %w", err)
	}
	if err := unix.Statfs(abs, &fsys); err != nil || fsys.Type != unix.CGROUP2_SUPER_MAGIC {
		return target{}, fault.New(fault.ErrUsage, "not a directory of a cgroup2 file system").Hint("mount -t cgroup2 shows where cgroup2 is; programs can't be attached to version 1 hierarchies")
	}
	return target{Cgroup: abs, CgroupID: stat.Ino}, nil
}

// cgroupSpots resolves a cgroup request: every program that fits goes to its own
// place in the cgroup.
func (e *Engine) cgroupSpots(req AttachRequest) ([]spot, error) {
	at, err := resolveCgroup(req.Cgroup)
	if err != nil {
		return nil, err
	}
	fitting, err := e.pick(req.Name, req.Hook, req.Program, req.Direction)
	if err != nil {
		return nil, err
	}
	var spots []spot
	for _, c := range fitting {
		spots = append(spots, spot{candidate: c, hook: cgroupHooks[c.cgroupAttach()], at: at})
	}
	return spots, nil
}

func (e *Engine) attachCgroup(req AttachRequest, s spot, prog *ebpf.Program) (Attachment, error) {
	l, err := cgroupLink(s.at.Cgroup, s.candidate, prog)
	if err != nil {
		return Attachment{}, err
	}
	return e.pinLink(req, s, l, nil)
}

// cgroupLink attaches a program to its place in a cgroup.
func cgroupLink(path string, c candidate, prog *ebpf.Program) (link.Link, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	hook := cgroupHooks[c.cgroupAttach()]
	// Not AttachCgroup: where links are missing it falls back to an attachment
	// that can't be pinned.
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: c.cgroupAttach()})
	if errors.Is(err, unix.EPERM) && heldExclusively(dir, c.cgroupAttach()) {
		return nil, fault.New(fault.ErrConflict, "%s: a program that was attached without BPF_F_ALLOW_MULTI owns the hook", hook).
			Hint("bpfnet cgroup show %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", hook, probe.Explain(probe.OpAttachCgroup, err))
	}
	return l, nil
}

// heldExclusively says whether programs are attached to the cgroup itself: then
// EPERM means that one of them refuses company.
func heldExclusively(dir *os.File, attach ebpf.AttachType) bool {
	r, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: attach})
	return err == nil && len(r.Programs) > 0
}
