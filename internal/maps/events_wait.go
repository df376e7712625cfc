package maps

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The longest waits: for records that programs send without waking readers
// (BPF_RB_NO_WAKEUP), and for a record that a program is still writing.
const (
	waitLongest = 100 * time.Millisecond
	waitBusy    = time.Millisecond
)

// waker ends a wait when its context ends.
type waker struct {
	fd   int
	file *os.File
	stop func() bool
}

func newWaker(ctx context.Context) (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make eventfd: %w", err)
	}
	w := &waker{fd: fd, file: os.NewFile(uintptr(fd), "eventfd")}
	w.stop = context.AfterFunc(ctx, func() {
		_, _ = w.file.Write(binary.NativeEndian.AppendUint64(nil, 1)) // closed: nobody waits any more
	})
	return w, nil
}

func (w *waker) close() {
	w.stop()
	w.file.Close()
}

// wait returns when one of the descriptors can be read, the context ends, or
// after a time.
func (w *waker) wait(longest time.Duration, descriptors ...int) error {
	set := make([]unix.PollFd, 0, 1+len(descriptors))
	for _, fd := range append(descriptors, w.fd) {
		set = append(set, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	_, err := unix.Poll(set, int(longest.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for records: %w", err)
	}
	return nil
}
