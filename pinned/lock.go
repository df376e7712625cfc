package pinned

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

const lockPoll = 5 * time.Millisecond

// DefaultLockTimeout is how long a command waits for another one.
const DefaultLockTimeout = 10 * time.Second

// LockMount takes the exclusive lock of the bpffs at MountPoint itself. Without
// fault.ErrLocked an error says that there is no such lock here.
func LockMount(ctx context.Context, timeout time.Duration) (unlock func(), err error) {
	return Root(MountPoint).lock(ctx, unix.LOCK_EX, timeout)
}

// LockShared takes the lock for reading. A root that doesn't exist needs none:
// there is nothing to read.
func (r Root) LockShared(ctx context.Context, timeout time.Duration) (unlock func(), err error) {
	for {
		unlock, err = r.lock(ctx, unix.LOCK_SH, timeout)
		if !errors.Is(err, fs.ErrNotExist) {
			return unlock, err
		}
		if _, err := os.Stat(string(r)); errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil
		}
	}
}

// Lock takes the lock for writing, makes the root if it is missing, and
// finishes or undoes what a killed writer left half-done. unlock removes a root
// that Lock made and that is empty again; one that somebody else made, with an
// owner and a mode, stays.
func (r Root) Lock(ctx context.Context, timeout time.Duration) (unlock func(), err error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	for {
		if err := r.make(); err != nil {
			return nil, permission("make", string(r), err)
		}
		if err := r.writable(); err != nil {
			return nil, err
		}
		release, err := r.lock(ctx, unix.LOCK_EX, timeout)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed by another writer meanwhile
		}
		if err != nil {
			return nil, err
		}
		if err := r.recover(); err != nil {
			release()
			return nil, err
		}
		return func() {
			r.removeIfEmpty()
			release()
		}, nil
	}
}

// make makes the root if it is missing, and marks it as made here.
func (r Root) make() error {
	if _, err := os.Lstat(string(r)); err == nil {
		return nil
	}
	if err := os.MkdirAll(string(r), 0o700); err != nil {
		return err
	}
	err := os.Symlink("bpfnet", r.madeMark())
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return nil // another writer was here, and may have removed it again
	}
	return err
}

// writable refuses a root that can't be changed, before anything is taken off a
// hook whose pin would stay.
func (r Root) writable() error {
	info, err := os.Stat(string(r))
	switch {
	case errors.Is(err, fs.ErrNotExist) && isLink(string(r)), err == nil && !info.IsDir():
		return fault.New(fault.ErrConflict, "%s is in the way: it isn't a directory", r).Hint("choose another directory with --bpffs")
	case errors.Is(unix.Access(string(r), unix.W_OK), unix.EROFS):
		return fmt.Errorf("write to %s: %w", r, unix.EROFS)
	}
	return nil
}

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

func (r Root) madeMark() string { return filepath.Join(string(r), madeName) }

func (r Root) removeIfEmpty() {
	entries, err := os.ReadDir(string(r))
	if err == nil && len(entries) == 1 && entries[0].Name() == madeName {
		_ = os.Remove(r.madeMark())
		_ = os.Remove(string(r))
	}
}

func permission(verb, path string, err error) error {
	if inner := (*fs.PathError)(nil); errors.As(err, &inner) {
		err = inner.Err // it names the operation and the path, as we do
	}
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.ErrPermission, "%s %s: %w", verb, path, err).Hint("run as root, or give the user write access to %s", path)
	}
	return fmt.Errorf("%s %s: %w", verb, path, err)
}

func (r Root) lock(ctx context.Context, how int, timeout time.Duration) (func(), error) {
	dir, err := os.Open(string(r))
	if err != nil {
		return nil, permission("open", string(r), err)
	}
	if err := flock(ctx, dir, how, timeout); err != nil {
		dir.Close()
		return nil, err
	}
	if !sameFile(dir, string(r)) {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", r, fs.ErrNotExist)
	}
	return func() { dir.Close() }, nil
}

func flock(ctx context.Context, dir *os.File, how int, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		err := unix.Flock(int(dir.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", dir.Name(), err)
		}
		if time.Now().After(deadline) {
			return fault.New(fault.ErrLocked, "lock %s: %s held it for more than %s", dir.Name(), holder(dir), timeout).
				Hint("wait longer with --lock-timeout, or look at what that process does")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

func sameFile(f *os.File, path string) bool {
	mine, err1 := f.Stat()
	now, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(mine, now)
}

// holder names the process that /proc/locks says holds a lock on dir.
func holder(dir *os.File) string {
	var stat unix.Stat_t
	locks, err := os.Open("/proc/locks")
	if err != nil || unix.Fstat(int(dir.Fd()), &stat) != nil {
		return "another process"
	}
	defer locks.Close()
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(stat.Dev)), unix.Minor(uint64(stat.Dev)), stat.Ino)
	return lockHolder(locks, file)
}

// lockHolder finds the process in the lines of /proc/locks; file is the device
// and inode, as they are there.
func lockHolder(locks io.Reader, file string) string {
	for s := bufio.NewScanner(locks); s.Scan(); {
		// "1: FLOCK  ADVISORY  WRITE 708 00:13:22 0 EOF"
		f := strings.Fields(s.Text())
		if len(f) > 5 && f[1] == "FLOCK" && f[5] == file {
			return "process " + f[4]
		}
	}
	return "another process"
}
