package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// moved is what a call, or a message of one, has moved.
type moved struct {
	n     int
	calls int64
	peer  netip.AddrPort // where the socket isn't connected
}

// mover makes one call that sends or receives.
type mover func(c *child, s *record, r *request, buf []byte) ([]moved, error)

func one(n int, peer netip.AddrPort, err error) ([]moved, error) {
	if err != nil {
		return nil, err
	}
	return []moved{{n, 1, peer}}, nil
}

// many is of what kernels do in steps.
func many(n int64, err error) ([]moved, error) {
	if err != nil {
		return nil, err
	}
	return []moved{{n: int(n), calls: -1}}, nil
}

var senders = map[string]mover{
	"": func(_ *child, s *record, r *request, buf []byte) ([]moved, error) {
		if r.Addr.IsValid() {
			return sendmsg(s, r, buf)
		}
		n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), pointer(buf), uintptr(len(buf)), uintptr(r.Flags), 0, 0)
		if errno != 0 {
			return nil, errno
		}
		return one(int(n), netip.AddrPort{}, nil)
	},
	"write": func(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
		n, err := unix.Write(s.fd, buf)
		return one(n, netip.AddrPort{}, err)
	},
	"writev": func(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
		n, err := unix.Writev(s.fd, [][]byte{buf[:len(buf)/3], buf[len(buf)/3:]})
		return one(n, netip.AddrPort{}, err)
	},
	"sendmsg":  func(_ *child, s *record, r *request, buf []byte) ([]moved, error) { return sendmsg(s, r, buf) },
	"sendmmsg": sendmmsg,
	"sendfile": func(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
		return withFile(buf, func(file int) ([]moved, error) {
			n, err := unix.Sendfile(s.fd, file, nil, len(buf))
			return many(int64(n), err)
		})
	},
	"splice": func(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
		return withFile(buf, func(file int) ([]moved, error) {
			return withPipe(func(out, in int) ([]moved, error) {
				if n, err := unix.Splice(file, nil, in, nil, len(buf), 0); err != nil || int(n) != len(buf) {
					return nil, fmt.Errorf("fill pipe: %d, %w", n, err)
				}
				return many(unix.Splice(out, nil, s.fd, nil, len(buf), 0))
			})
		})
	},
	"vmsplice": func(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
		return withPipe(func(out, in int) ([]moved, error) {
			vector := unix.Iovec{Base: &buf[0]}
			vector.SetLen(len(buf))
			if n, err := unix.Vmsplice(in, []unix.Iovec{vector}, 0); err != nil || n != len(buf) {
				return nil, fmt.Errorf("fill pipe: %d, %w", n, err)
			}
			return many(unix.Splice(out, nil, s.fd, nil, len(buf), 0))
		})
	},
	"io_uring": (*child).uring,
}

var receivers = map[string]mover{
	"": func(_ *child, s *record, r *request, buf []byte) ([]moved, error) {
		n, from, err := unix.Recvfrom(s.fd, buf, r.Flags)
		return one(n, address(from), err)
	},
	"read": func(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
		n, err := unix.Read(s.fd, buf)
		return one(n, netip.AddrPort{}, err)
	},
	"readv": func(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
		n, err := unix.Readv(s.fd, [][]byte{buf[:len(buf)/3], buf[len(buf)/3:]})
		return one(n, netip.AddrPort{}, err)
	},
	"recvmsg": func(_ *child, s *record, r *request, buf []byte) ([]moved, error) {
		n, _, _, from, err := unix.Recvmsg(s.fd, buf, make([]byte, 256), r.Flags)
		return one(n, address(from), err)
	},
	"recvmmsg": recvmmsg,
	"splice": func(_ *child, s *record, r *request, buf []byte) ([]moved, error) {
		return withFile(nil, func(file int) ([]moved, error) {
			return withPipe(func(out, in int) ([]moved, error) {
				n, err := unix.Splice(s.fd, nil, in, nil, len(buf), r.Flags)
				if err != nil {
					return nil, err
				}
				for left := n; left > 0; {
					wrote, err := unix.Splice(out, nil, file, nil, int(left), 0)
					if err != nil {
						return nil, fmt.Errorf("empty pipe: %w", err)
					}
					left -= wrote
				}
				return many(n, nil)
			})
		})
	},
	"io_uring":   (*child).uring,
	"getsockopt": receiveZerocopy,
}

// zerocopyReceive is struct tcp_zerocopy_receive.
type zerocopyReceive struct {
	address            uint64
	length, skip       uint32
	inq                uint32
	err                int32
	copyAddress        uint64
	copyLength         int32
	flags              uint32
	control, controlen uint64
	messageFlags, _    uint32
}

// receiveZerocopy maps pages of a TCP socket, or has few bytes copied; it calls recv for
// what can't be had so.
func receiveZerocopy(_ *child, s *record, _ *request, buf []byte) ([]moved, error) {
	if _, _, err := unix.Recvfrom(s.fd, buf[:1], unix.MSG_PEEK); err != nil { // wait
		return nil, err
	}
	area, err := unix.Mmap(s.fd, 0, 1<<20, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(area) }()
	got := zerocopyReceive{address: uint64(pointer(area)), length: uint32(len(area)), copyAddress: uint64(pointer(buf)), copyLength: int32(len(buf))}
	length := uint32(unsafe.Sizeof(got))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.IPPROTO_TCP, unix.TCP_ZEROCOPY_RECEIVE, uintptr(unsafe.Pointer(&got)), uintptr(unsafe.Pointer(&length)), 0)
	runtime.KeepAlive(buf)
	if errno != 0 {
		return nil, errno
	}
	n := int64(got.length)
	if length > uint32(unsafe.Offsetof(got.copyLength)) { // older kernels copy nothing
		n += int64(got.copyLength)
	}
	if n > 0 {
		return many(n, nil)
	}
	n1, _, err := unix.Recvfrom(s.fd, buf[:min(len(buf), int(got.skip))], 0)
	return one(n1, netip.AddrPort{}, err)
}

func sendmsg(s *record, r *request, buf []byte) ([]moved, error) {
	var to unix.Sockaddr
	if r.Addr.IsValid() {
		to = sockaddr(networks[s.network].domain, r.Addr)
	}
	n, err := unix.SendmsgN(s.fd, buf, nil, to, r.Flags)
	return one(n, r.Addr, err)
}

func pointer(buf []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(buf))) }

// withFile calls what uses a file with the text buf.
func withFile(buf []byte, use func(int) ([]moved, error)) ([]moved, error) {
	file, err := unix.MemfdCreate("workload", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(file)
	if n, err := unix.Pwrite(file, buf, 0); err != nil || n != len(buf) {
		return nil, fmt.Errorf("fill file: %d, %w", n, err)
	}
	return use(file)
}

func withPipe(use func(out, in int) ([]moved, error)) ([]moved, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	return use(ends[0], ends[1])
}

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	n      uint32
}

// messages makes headers that share a buffer and have room for a name each.
func messages(count int, buf []byte) ([]message, []unix.RawSockaddrAny) {
	list, names := make([]message, count), make([]unix.RawSockaddrAny, count)
	for i := range list {
		vector := &unix.Iovec{Base: unsafe.SliceData(buf)}
		vector.SetLen(len(buf))
		list[i].header.Iov = vector
		list[i].header.SetIovlen(1)
	}
	return list, names
}

func sendmmsg(_ *child, s *record, r *request, buf []byte) ([]moved, error) {
	list, _ := messages(r.Count, buf)
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)), uintptr(r.Flags), 0, 0)
	return eachMessage(list, nil, n, errno)
}

func recvmmsg(_ *child, s *record, r *request, buf []byte) ([]moved, error) {
	list, names := messages(r.Count, buf)
	for i := range list {
		list[i].header.Name, list[i].header.Namelen = (*byte)(unsafe.Pointer(&names[i])), unix.SizeofSockaddrAny
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)), uintptr(r.Flags), 0, 0)
	return eachMessage(list, names, n, errno)
}

func eachMessage(list []message, names []unix.RawSockaddrAny, n uintptr, errno unix.Errno) ([]moved, error) {
	if errno != 0 {
		return nil, errno
	}
	var each []moved
	for i, m := range list[:n] {
		each = append(each, moved{n: int(m.n), calls: 1})
		if names != nil {
			each[i].peer = rawAddress(&names[i])
		}
	}
	return each, nil
}

func rawAddress(name *unix.RawSockaddrAny) netip.AddrPort {
	port := func(p uint16) uint16 { return p>>8 | p<<8 }
	switch name.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr), port(in.Port))
	}
	return netip.AddrPort{}
}

func (c *child) send(r *request) (reply, error) {
	if s, err := c.find(r.FD); err == nil {
		head(c.buffer, s.base.Protocol, r.Addr)
	}
	return c.move(r, true, senders[r.Name], c.buffer)
}

// head makes what is sent begin as a protocol wants it.
func head(buf []byte, protocol int, to netip.AddrPort) {
	switch protocol {
	case unix.IPPROTO_ICMP:
		copy(buf, []byte{8, 0, 0xf7, 0xff}) // an echo request, and its checksum
	case unix.IPPROTO_ICMPV6:
		copy(buf, []byte{128, 0})
	case unix.IPPROTO_RAW:
		copy(buf, append([]byte{0x45, 8: 64, 9: experiment, 15: 0}, to.Addr().AsSlice()...)) // the kernel adds the rest
	}
}

func (c *child) receive(r *request) (reply, error) {
	return c.move(r, false, receivers[r.Name], c.into)
}

// move makes calls and counts what they return, until there are N bytes, the peer has
// closed, or one fails; one call where N is 0.
func (c *child) move(r *request, transmit bool, call mover, buf []byte) (got reply, err error) {
	s, err := c.find(r.FD)
	if err != nil {
		return got, err
	}
	for {
		size := r.Size
		if r.N > 0 {
			size = min(size, r.N-got.N)
		}
		list, err := call(c, s, r, buf[:size])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		before := got.N
		for _, m := range list {
			got.N += m.n
			if r.Flags&(unix.MSG_PEEK|unix.MSG_ERRQUEUE) == 0 || r.Name == "splice" {
				c.count(s, transmit, m)
			}
		}
		if err != nil || got.N >= r.N || got.N == before {
			return got, err
		}
	}
}

// threads has Count threads send at the same time, each of them under a name of its own.
func (c *child) threads(r *request) (reply, error) {
	type result struct {
		reply
		error
	}
	results := make(chan result)
	for i := range r.Count {
		go func() {
			runtime.LockOSThread() // it ends with the goroutine
			name, err := unix.BytePtrFromString(fmt.Sprint("renamed ", i))
			if err == nil {
				err = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
			}
			if err != nil {
				results <- result{error: err}
				return
			}
			got, err := c.send(r)
			results <- result{got, err}
		}()
	}
	var got reply
	var errs []error
	for range r.Count {
		result := <-results
		got.N += result.N
		errs = append(errs, result.error)
	}
	return got, errors.Join(errs...)
}

// burst makes Count connections, or sockets for datagrams, that send Size bytes each
// and are closed at once.
func (c *child) burst(r *request) (reply, error) {
	for range r.Count {
		s, err := c.create(r.Name, netip.AddrPort{})
		if err != nil {
			return reply{}, err
		}
		if _, err := c.connect(&request{FD: s.id, Addr: r.Addr}); err != nil {
			return reply{}, err
		}
		if _, err := c.send(&request{FD: s.id, Size: r.Size}); err != nil {
			return reply{}, err
		}
		if _, err := c.close(&request{FD: s.id}); err != nil {
			return reply{}, err
		}
	}
	return reply{}, nil
}

// serve accepts Count connections, or all there are if that is 0, and reads each to
// its end.
func (c *child) serve(r *request) (got reply, err error) {
	listener, err := c.find(r.FD)
	if err != nil {
		return got, err
	}
	if r.Count == 0 {
		if err := unix.SetNonblock(listener.fd, true); err != nil {
			return got, err
		}
	}
	for r.Count == 0 || got.N < r.Count {
		s, err := c.accepted(listener)
		if r.Count == 0 && errors.Is(err, unix.EAGAIN) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		if _, err := c.receive(&request{FD: s.id, N: 1 << 30, Size: 65536}); err != nil {
			return got, err
		}
		if _, err := c.close(&request{FD: s.id}); err != nil {
			return got, err
		}
		got.N++
	}
	return got, nil
}
