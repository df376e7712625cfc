package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What io_uring is asked to do, and flags of it: linux/io_uring.h.
const (
	opReadv   = 1
	opWritev  = 2
	opSendmsg = 9
	opRecvmsg = 10
	opRead    = 22
	opWrite   = 23
	opSend    = 26
	opRecv    = 27
	opSplice  = 30
	opSendZC  = 47

	setupPolled    = 1 << 1 // a thread of the kernel submits
	sqeAsync       = 1 << 4
	enterGetEvents = 1 << 0
	enterWakeUp    = 1 << 1
	cqeNotice      = 1 << 3 // that a buffer is free again

	offSQRing = 0
	offCQRing = 0x8000000
	offSQEs   = 0x10000000
	entries   = 4
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq                                                   struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// submission is struct io_uring_sqe.
type submission struct {
	opcode, flags         uint8
	ioprio                uint16
	fd                    int32
	off, addr             uint64
	len, opFlags          uint32
	userData              uint64
	bufIndex, personality uint16
	spliceIn              int32
	_                     [2]uint64
}

// completion is struct io_uring_cqe.
type completion struct {
	userData uint64
	result   int32
	flags    uint32
}

// ring does one thing at a time.
type ring struct {
	fd     int
	params ringParams
	sq, cq []byte
	sqes   []byte
}

func newRing(flags uint32) (*ring, error) {
	r := &ring{params: ringParams{flags: flags}}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, entries, uintptr(unsafe.Pointer(&r.params)), 0)
	if errno != 0 {
		return nil, errno
	}
	r.fd = int(fd)
	unix.CloseOnExec(r.fd)
	for _, area := range []struct {
		at     *[]byte
		offset int64
		size   uint32
	}{
		{&r.sq, offSQRing, r.params.sq.array + 4*r.params.sqEntries},
		{&r.cq, offCQRing, r.params.cq.cqes + uint32(unsafe.Sizeof(completion{}))*r.params.cqEntries},
		{&r.sqes, offSQEs, uint32(unsafe.Sizeof(submission{})) * r.params.sqEntries},
	} {
		var err error
		if *area.at, err = unix.Mmap(r.fd, area.offset, int(area.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func word(area []byte, offset uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&area[offset]))
}

// do submits one thing and waits for its result.
func (r *ring) do(s submission) (int, error) {
	tail := word(r.sq, r.params.sq.tail)
	slot := *tail & *word(r.sq, r.params.sq.mask)
	*(*submission)(unsafe.Pointer(&r.sqes[uintptr(slot)*unsafe.Sizeof(s)])) = s
	*word(r.sq, r.params.sq.array+4*slot) = slot
	atomic.AddUint32(tail, 1)
	submit, flags := uintptr(1), uintptr(enterGetEvents)
	if r.params.flags&setupPolled != 0 {
		flags |= enterWakeUp
	}
	for {
		head := word(r.cq, r.params.cq.head)
		for ; atomic.LoadUint32(word(r.cq, r.params.cq.tail)) == *head; submit = 0 {
			if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, flags, 0, 0); errno != 0 && errno != unix.EINTR {
				return 0, errno
			}
		}
		at := *head & *word(r.cq, r.params.cq.mask)
		done := *(*completion)(unsafe.Pointer(&r.cq[r.params.cq.cqes+at*uint32(unsafe.Sizeof(completion{}))]))
		atomic.AddUint32(head, 1)
		if done.flags&cqeNotice != 0 {
			continue
		}
		if done.result < 0 {
			return 0, unix.Errno(-done.result)
		}
		return int(done.result), nil
	}
}

// uring makes one call by io_uring, by another thread where it is Async.
func (c *child) uring(s *record, r *request, buf []byte) ([]moved, error) {
	sqe := submission{opcode: r.Opcode, fd: int32(s.fd), opFlags: uint32(r.Flags)}
	if r.Async {
		sqe.flags = sqeAsync
	}
	vector := &unix.Iovec{Base: unsafe.SliceData(buf)}
	vector.SetLen(len(buf))
	header := &unix.Msghdr{Iov: vector}
	header.SetIovlen(1)
	defer runtime.KeepAlive(header)
	switch r.Opcode {
	case opReadv, opWritev:
		sqe.addr, sqe.len = uint64(uintptr(unsafe.Pointer(vector))), 1
	case opSendmsg, opRecvmsg:
		sqe.addr, sqe.len = uint64(uintptr(unsafe.Pointer(header))), 1
	case opSplice:
		return c.uringSplice(r.Op == "send", sqe, buf)
	default:
		sqe.addr, sqe.len = uint64(pointer(buf)), uint32(len(buf))
	}
	n, err := c.ring.do(sqe)
	if len(buf) > 65536 { // it may take several attempts
		return many(int64(n), err)
	}
	return one(n, netip.AddrPort{}, err)
}

// uringSplice moves bytes between a socket and a pipe.
func (c *child) uringSplice(transmit bool, sqe submission, buf []byte) ([]moved, error) {
	none := ^uint64(0) // no offset
	sqe.off, sqe.addr, sqe.len = none, none, uint32(len(buf))
	return withPipe(func(out, in int) ([]moved, error) {
		if !transmit {
			sqe.spliceIn, sqe.fd = sqe.fd, int32(in)
			n, err := c.ring.do(sqe)
			return many(int64(n), err)
		}
		if n, err := unix.Write(in, buf); err != nil || n != len(buf) {
			return nil, errors.Join(fmt.Errorf("fill pipe: %d", n), err)
		}
		sqe.spliceIn = int32(out)
		n, err := c.ring.do(sqe)
		return many(int64(n), err)
	})
}
