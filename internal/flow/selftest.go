package flow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	vishnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/probe"
)

// SelfTest moves known numbers of bytes through sockets of this process, once for each
// mechanism, and compares them with what it counts. It works in network namespaces
// without names; nothing of it outlives the call. When ctx ends, the mechanisms that are
// left aren't tried.
func SelfTest(ctx context.Context, kernel Kernel) (steps []probe.Step) {
	for _, mechanism := range []string{"tp_btf", "fexit", "kprobe"} {
		steps = append(steps, selfTest(ctx, mechanism, func() (Sampler, []string, error) {
			reader, notes, err := startPrivate(ctx, kernel, Request{Backend: mechanism})
			return reader, notes, err
		})...)
	}
	return append(steps, selfTest(ctx, Polling, func() (Sampler, []string, error) { return OpenDiag(Filter{}) })...)
}

// selfTest tests one mechanism, or nothing when ctx has ended.
func selfTest(ctx context.Context, mechanism string, open func() (Sampler, []string, error)) []probe.Step {
	if ctx.Err() != nil {
		return nil
	}
	began := time.Now()
	step := probe.Step{Name: "flows", Mechanism: mechanism}
	entered := false
	err := probe.WithNetNS(func(vishnetns.NsHandle) error {
		entered = true
		sampler, notes, err := open()
		if err != nil {
			return err
		}
		return fault.Join(testSampler(ctx, sampler, mechanism != Polling, notes, &step), sampler.Close())
	})
	if !entered {
		err = probe.Explain(probe.OpCreateNetNS, err)
	}
	if step.OK = err == nil; err != nil {
		why := err.Error()
		step.Detail, step.Skipped = &why, isLacking(err)
	}
	step.DurationMS = float64(time.Since(began).Microseconds()) / 1000
	return []probe.Step{step}
}

// testSampler compares what a sampler counts with what is moved. One that looks at sockets
// from time to time has no datagrams, and not what is closed at once.
func testSampler(ctx context.Context, sampler Sampler, all bool, notes []string, step *probe.Step) error {
	m := mover{want: map[uint64]probe.Moved{}, what: map[uint64]string{}}
	defer m.close()
	m.move(all)
	if m.err != nil {
		return m.err
	}
	got, err := m.counted(ctx, sampler)
	if err != nil {
		return err
	}
	step.Expected, step.Got = total(m.want), total(got)
	what := "TCP, UDP, and connections that are closed at once"
	if !all {
		what = "TCP; it doesn't count datagrams, nor connections that are closed at once"
	}
	seen := fmt.Sprintf("%d of %d bytes sent and %d of %d received counted: %s",
		step.Got.TransmitBytes, step.Expected.TransmitBytes, step.Got.ReceiveBytes, step.Expected.ReceiveBytes, what)
	step.Detail = &seen
	for cookie, want := range m.want {
		if got[cookie] != want {
			return fmt.Errorf("%s: counted %d bytes sent and %d received, not %d and %d%s", m.what[cookie],
				got[cookie].TransmitBytes, got[cookie].ReceiveBytes, want.TransmitBytes, want.ReceiveBytes, strings.Join(append([]string{""}, notes...), "; "))
		}
	}
	if !maps.Equal(got, m.want) {
		return fmt.Errorf("counted %d bytes sent and %d received, which nobody moved", step.Got.TransmitBytes-step.Expected.TransmitBytes, step.Got.ReceiveBytes-step.Expected.ReceiveBytes)
	}
	return nil
}

func total(of map[uint64]probe.Moved) *probe.Moved {
	var sum probe.Moved
	for _, m := range of {
		sum.TransmitBytes += m.TransmitBytes
		sum.ReceiveBytes += m.ReceiveBytes
	}
	return &sum
}

// patience is how long a sampler may take until it knows whose all sockets are.
const patience = 3 * time.Second

// counted is what a sampler has of processes in the network namespace that the thread is
// in, by socket.
func (m *mover) counted(ctx context.Context, sampler Sampler) (map[uint64]probe.Moved, error) {
	here, err := netns.Inode("")
	if err != nil {
		return nil, err
	}
	got := map[uint64]probe.Moved{}
	for until := time.Now().Add(patience); ; time.Sleep(patience / 100) {
		sample, err := sampler.Sample(ctx)
		if err != nil {
			return nil, err
		}
		now := map[uint64]probe.Moved{}
		for _, row := range sample.Rows {
			if row.NetNS == here && row.PID != 0 && row.Status == Exact && row.Counters != (Counters{}) {
				sum := now[row.Cookie]
				now[row.Cookie] = probe.Moved{TransmitBytes: sum.TransmitBytes + row.TransmitBytes, ReceiveBytes: sum.ReceiveBytes + row.ReceiveBytes}
			}
		}
		maps.Copy(got, now) // those that were closed are in one sample
		if maps.Equal(got, m.want) || time.Now().After(until) {
			return got, nil
		}
	}
}

// mover moves bytes through sockets. After an error it does nothing more.
type mover struct {
	want map[uint64]probe.Moved // by the socket's cookie
	what map[uint64]string
	open []int
	err  error
}

func (m *mover) close() {
	for _, fd := range m.open {
		_ = unix.Close(fd)
	}
}

// move sends and receives over both families, as far as the kernel has them.
func (m *mover) move(all bool) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	m.err = err
	families := map[string]unix.Sockaddr{
		"IPv4": &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}},
		"IPv6": &unix.SockaddrInet6{Addr: [16]byte{15: 1}},
	}
	for family, at := range families {
		m.stream("TCP over "+family, at, all)
		if all {
			m.datagrams("UDP over "+family, at)
		}
		if family == "IPv6" && (errors.Is(m.err, unix.EAFNOSUPPORT) || errors.Is(m.err, unix.EADDRNOTAVAIL)) {
			m.err = nil
		}
	}
}

// Sizes are odd, so that no two sums are equal.
func (m *mover) stream(what string, at unix.Sockaddr, all bool) {
	listener := m.socket(at, unix.SOCK_STREAM)
	m.try(func() error { return unix.Listen(listener, 1) })
	connect := func(how string, counted bool) (a, b int) {
		a = m.socket(at, unix.SOCK_STREAM)
		m.try(func() error { return unix.Connect(a, m.name(listener)) })
		m.try(func() (err error) { b, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); return err })
		m.adopt(b)
		m.know(a, what+", "+how, counted)
		m.know(b, what+", accepted, "+how, counted)
		return a, b
	}
	a, b := connect("open", true)
	for range 3 {
		m.send(a, 101, nil)
		m.receive(b, large, 0, 101) // short reads
	}
	m.send(a, 1003, nil)
	m.receive(b, 401, unix.MSG_PEEK, 401)
	m.receive(b, large, 0, 1003)
	m.try(func() error { return unix.SetsockoptInt(a, unix.SOL_SOCKET, unix.SO_SNDBUF, large/16) })
	m.drain(b, m.sendPart(a, 64*large))
	m.send(b, 7, nil)
	m.receive(a, large, 0, 7)
	c, d := connect("closed at once", all)
	m.send(c, 55, nil)
	m.receive(d, large, 0, 55)
	m.end(c)
	m.end(d)
}

func (m *mover) datagrams(what string, at unix.Sockaddr) {
	a, b := m.socket(at, unix.SOCK_DGRAM), m.socket(at, unix.SOCK_DGRAM)
	m.know(a, what+", connected", true)
	m.know(b, what+", not connected", true)
	m.try(func() error { return unix.Connect(a, m.name(b)) })
	m.send(a, 203, nil)
	m.receive(b, 100, unix.MSG_PEEK, 100)
	m.receive(b, large, 0, 203) // a short read
	m.send(b, 307, m.name(a))
	m.receive(a, large, 0, 307)
}

// large is the size of buffers.
const large = 1 << 16

func (m *mover) try(do func() error) {
	if m.err == nil {
		m.err = do()
	}
}

// socket opens a socket that is bound.
func (m *mover) socket(at unix.Sockaddr, kind int) (fd int) {
	domain := unix.AF_INET
	if _, ok := at.(*unix.SockaddrInet6); ok {
		domain = unix.AF_INET6
	}
	m.try(func() (err error) { fd, err = unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0); return err })
	m.adopt(fd)
	m.try(func() error { return unix.Bind(fd, at) })
	return fd
}

// adopt closes a socket in the end.
func (m *mover) adopt(fd int) {
	if m.err == nil {
		m.open = append(m.open, fd)
	}
}

func (m *mover) end(fd int) {
	m.try(func() error {
		m.open = slices.DeleteFunc(m.open, func(open int) bool { return open == fd })
		return unix.Close(fd)
	})
}

func (m *mover) name(fd int) (at unix.Sockaddr) {
	m.try(func() (err error) { at, err = unix.Getsockname(fd); return err })
	return at
}

func (m *mover) cookie(fd int) (cookie uint64) {
	m.try(func() (err error) {
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		return err
	})
	return cookie
}

// know has a socket counted.
func (m *mover) know(fd int, what string, counted bool) {
	if cookie := m.cookie(fd); counted && m.err == nil {
		m.what[cookie], m.want[cookie] = what, probe.Moved{}
	}
}

// add adds to what a socket has to have moved, if it is to be counted.
func (m *mover) add(fd, sent, received int) {
	cookie := m.cookie(fd)
	if sum, counted := m.want[cookie]; counted {
		m.want[cookie] = probe.Moved{TransmitBytes: sum.TransmitBytes + uint64(sent), ReceiveBytes: sum.ReceiveBytes + uint64(received)}
	}
}

// send sends size bytes in one call.
func (m *mover) send(fd, size int, to unix.Sockaddr) {
	m.try(func() error {
		n, err := unix.SendmsgN(fd, make([]byte, size), nil, to, 0)
		if err == nil && n != size {
			err = fmt.Errorf("sent %d of %d bytes", n, size)
		}
		m.add(fd, n, 0)
		return err
	})
}

// sendPart sends as many of size bytes as the kernel takes at once.
func (m *mover) sendPart(fd, size int) (n int) {
	m.try(func() (err error) {
		n, err = unix.SendmsgN(fd, make([]byte, size), nil, nil, unix.MSG_DONTWAIT)
		m.add(fd, n, 0)
		return err
	})
	return n
}

// receive makes one call that has to give want bytes.
func (m *mover) receive(fd, size, flags, want int) {
	m.try(func() error {
		n, _, err := unix.Recvfrom(fd, make([]byte, size), flags)
		if err == nil && n != want {
			err = fmt.Errorf("received %d of %d bytes", n, want)
		}
		if flags&unix.MSG_PEEK == 0 {
			m.add(fd, 0, n)
		}
		return err
	})
}

// drain receives n bytes.
func (m *mover) drain(fd, n int) {
	for n > 0 && m.err == nil {
		m.try(func() error {
			got, _, err := unix.Recvfrom(fd, make([]byte, large), 0)
			if err == nil && got == 0 {
				err = io.ErrUnexpectedEOF
			}
			n -= got
			m.add(fd, 0, got)
			return err
		})
	}
}
