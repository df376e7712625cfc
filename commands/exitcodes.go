package commands

import (
	"context"
	"errors"
	"syscall"

	"bpfnet/internal/fault"
)

// exitInterrupted is the exit code of a command that a signal ended.
const exitInterrupted = 130

// outcomes are the states that a command can end in but success: the sentinel,
// the exit code and the code word of the error document. The first one that
// an error is counts.
var outcomes = []struct {
	kind error
	exit int
	word string
}{
	{context.Canceled, exitInterrupted, "interrupted"},
	{fault.ErrUsage, 2, "usage"},
	{fault.ErrNotFound, 3, "not_found"},
	{fault.ErrConflict, 4, "conflict"},
	{fault.ErrPermission, 5, "permission"},
	{fault.ErrUnsupported, 6, "unsupported"},
	{fault.ErrRejected, 7, "rejected"},
	{fault.ErrPartial, 8, "partial"},
	{fault.ErrLocked, 9, "locked"},
	{fault.ErrDiffers, 10, "differs"},
	{fault.ErrLossy, 11, "lossy"},
	{syscall.EBUSY, 4, "conflict"},
	{syscall.EROFS, 5, "permission"},
}

// nextSteps are the hints for refusals that any operation can meet.
var nextSteps = []struct {
	errno syscall.Errno
	hint  string
}{
	{syscall.EMFILE, "ulimit -n 1024   raises the limit of open files"},
	{syscall.ENOMEM, "the kernel found no memory: see the machine's, and the limit of the container or service"},
	{syscall.EROFS, "mount -o remount,rw /sys/fs/bpf   makes bpffs writable"},
}

// outcome returns the exit code and code word of an error.
func outcome(err error) (exit int, word string) {
	for _, o := range outcomes {
		if errors.Is(err, o.kind) {
			return o.exit, o.word
		}
	}
	return 1, "failed"
}
