package pinned

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Shared returns the directory of a group of maps that several instances share.
func (r Root) Shared(group string) string { return filepath.Join(string(r), sharedPrefix+group) }

// MakeShared makes the directory of a group in one step: pin puts the maps of
// the group into the directory that it is given.
func (r Root) MakeShared(group string, pin func(dir string) error) error {
	dir := filepath.Join(string(r), newPrefix+sharedPrefix+group)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return permission("make", dir, err)
	}
	err := pin(dir)
	if err == nil {
		err = os.Rename(dir, r.Shared(group))
	}
	if err != nil {
		_ = removeTree(dir) // the next writer does it, else
		return fmt.Errorf("make the maps of %s: %w", group, err)
	}
	return nil
}

// RemoveShared takes the pins of a group away. Instances that are loaded keep
// its maps by pins of their own.
func (r Root) RemoveShared(group string) error {
	gone := filepath.Join(string(r), gonePrefix+sharedPrefix+group)
	if err := os.Rename(r.Shared(group), gone); err != nil {
		return permission("remove", r.Shared(group), err)
	}
	return removeTree(gone)
}

// ClaimShared takes work on a group of maps for the caller, beside the lock and without
// waiting, until release or the end of the process. free says whether nobody else has it;
// of a group that nobody has made it is free.
func (r Root) ClaimShared(group string) (release func(), free bool, err error) {
	dir, err := os.Open(r.Shared(group))
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, true, nil
	}
	if err != nil {
		return nil, false, permission("open", r.Shared(group), err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return func() { dir.Close() }, true, nil
	}
	dir.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("claim %s: %w", r.Shared(group), err)
}
