package sink

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"bpfnet/internal/fault"
)

// file appends documents to a file, a line each. When the path leads to another file
// it goes on there, so that logs may be rotated.
type file struct {
	path string
	f    *os.File
	torn bool // its last line isn't whole
}

// fileMode lets the group read, as logs do.
const fileMode = 0o640

func openFile(s Spec, _ Options) (driver, error) {
	d := &file{path: s.target}
	err := d.reopen()
	if errors.Is(err, syscall.ENXIO) { // a pipe that nobody reads yet
		return d, nil
	}
	return d, asFault(err)
}

// asFault gives an error of a file the kind that it has.
func asFault(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.ErrNotFound, "%w", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fault.New(fault.ErrPermission, "%w", err)
	}
	return fault.New(fault.ErrUsage, "%w", err)
}

func (d *file) most() int { return 100 }

func (d *file) close() {
	if d.f != nil {
		d.f.Close()
		d.f = nil
	}
}

// reopen opens the file that the path leads to. It doesn't wait for the reader of a
// pipe.
func (d *file) reopen() error {
	d.close()
	f, err := os.OpenFile(d.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, fileMode)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.path, cause(err))
	}
	d.f, d.torn = f, false
	return nil
}

// cause is what a system call said.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// isThere says whether the path leads to the file that is open.
func (d *file) isThere() bool {
	if d.f == nil {
		return false
	}
	mine, err := d.f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(d.path)
	return err == nil && os.SameFile(mine, there)
}

func (d *file) deliver(ctx context.Context, events []Event) result {
	if !d.isThere() {
		if err := d.reopen(); err != nil {
			return result{rest: events, err: err}
		}
	}
	deadline, _ := ctx.Deadline()
	_ = d.f.SetWriteDeadline(deadline) // only pipes have one
	for i, e := range events {
		if err := d.write(e.Document); err != nil {
			return result{rest: events[i:], err: fmt.Errorf("write: %w", cause(err))}
		}
	}
	return result{}
}

// write writes a line. After one that isn't whole, of a disk that was full, it begins
// a new one.
func (d *file) write(document []byte) error {
	line := append(slices.Clone(document), '\n')
	if d.torn {
		line = slices.Insert(line, 0, '\n')
	}
	n, err := d.f.Write(line)
	if n > 0 {
		d.torn = line[n-1] != '\n'
	}
	return err
}
