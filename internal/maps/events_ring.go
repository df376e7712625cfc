package maps

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// ringOverwrite is BPF_F_RB_OVERWRITE, since Linux 6.19: the positions mean
// something else then.
const ringOverwrite = 1 << 19

// What precedes each record in a ring buffer: 8 bytes, of which the first four
// are the length and two flags.
const (
	ringHeader  = 8
	ringBusy    = 1 << 31 // BPF_RINGBUF_BUSY_BIT
	ringDiscard = 1 << 30 // BPF_RINGBUF_DISCARD_BIT
)

// ring reads a ring buffer. It shares three parts of memory with the kernel:
// the page with the position up to which records were read, the page with the
// one up to which they are written, and the data, mapped twice in a row, so that
// no record is ever in two pieces.
type ring struct {
	h        *handle
	consumer []byte // a page that we write
	producer []byte // a page and the data
	data     []byte
	size     uint64
	at       uint64 // what next has handed out
	fresh    bool   // at is as it was released
	busy     bool   // the next record isn't complete
	now      time.Time
}

func openRing(h *handle) (*ring, error) {
	size, page := int(h.MaxEntries()), os.Getpagesize()
	consumer, err := unix.Mmap(h.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("read events of map %s: map its position: %w", h.about.Ref, err)
	}
	producer, err := unix.Mmap(h.FD(), int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fault.Join(fmt.Errorf("read events of map %s: map its data: %w", h.about.Ref, err), unix.Munmap(consumer))
	}
	return &ring{
		h: h, consumer: consumer, producer: producer, data: producer[page:], size: uint64(size), fresh: true,
	}, nil
}

// position is the counter in the first bytes of a page, an unsigned long.
func position(page []byte) *uintptr { return (*uintptr)(unsafe.Pointer(unsafe.SliceData(page))) }

func (r *ring) next() (record, bool, error) {
	if r.fresh {
		r.at, r.now, r.fresh = uint64(atomic.LoadUintptr(position(r.consumer))), time.Now(), false
	}
	for {
		length, discarded, ok, err := r.header()
		if !ok || err != nil {
			return record{}, false, err
		}
		data := r.data[r.at&(r.size-1)+ringHeader:][:length:length]
		r.at += ringHeader + (length+7)&^7
		if !discarded {
			return record{data: data, time: r.now}, true, nil
		}
	}
}

// header reads what precedes the next record; ok says that it is complete.
func (r *ring) header() (length uint64, discarded, ok bool, err error) {
	written := uint64(atomic.LoadUintptr(position(r.producer))) - r.at
	r.busy = false
	switch {
	case written == 0:
		return 0, false, false, nil
	case written < ringHeader || written > r.size:
		return 0, false, false, errors.New("its positions contradict each other")
	}
	// Atomic, because the kernel clears the flag after it has written the data.
	header := atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.data[r.at&(r.size-1)])))
	if r.busy = header&ringBusy != 0; r.busy {
		return 0, false, false, nil
	}
	length = uint64(header &^ (ringBusy | ringDiscard))
	if length > written-ringHeader {
		return 0, false, false, errors.New("a record is longer than what was written")
	}
	return length, header&ringDiscard != 0, true, nil
}

func (r *ring) release() {
	// Another reader, if there is one, may be ahead: nobody goes back.
	if at := uintptr(r.at); !r.fresh && at > atomic.LoadUintptr(position(r.consumer)) {
		atomic.StoreUintptr(position(r.consumer), at)
	}
	r.fresh = true
}

func (r *ring) wait(w *waker) error {
	if r.busy { // there is something to read all the time, so the kernel wouldn't let us wait
		return w.wait(waitBusy)
	}
	return w.wait(waitLongest, r.h.FD())
}

// leave leaves what wasn't read to the next reader.
func (*ring) leave() (rest bool, err error) { return false, nil }

// lost is unknown: the kernel tells only the program that there is no space.
func (*ring) lost() []CPULost { return nil }

func (r *ring) close() error {
	return fault.Join(unix.Munmap(r.consumer), unix.Munmap(r.producer), r.h.Close())
}
