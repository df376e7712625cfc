package workload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// variable makes a run of a test binary a process of a case; sockets that it inherits
// are described in the other.
const (
	variable  = "BPFNET_TEST_WORKLOAD"
	inherited = "BPFNET_TEST_WORKLOAD_SOCKETS"
)

// all, as a socket, is each one that is open.
const all = -1

// request is one thing to do. The numbers of sockets are those of the process.
type request struct {
	Op            string
	Name          string         `json:",omitempty"` // a network, or how to send or receive
	FD            int            `json:",omitempty"`
	FDs           []int          `json:",omitempty"`
	Addr          netip.AddrPort `json:",omitzero"`
	N             int            `json:",omitempty"` // bytes in all; 0: one call
	Size          int            `json:",omitempty"` // bytes of one call
	Count         int            `json:",omitempty"` // of messages, connections, threads
	Flags         int            `json:",omitempty"`
	Level, Option int            `json:",omitempty"`
	Opcode        uint8          `json:",omitempty"`
	Async         bool           `json:",omitempty"`
}

type reply struct {
	FD    int            `json:",omitempty"`
	N     int            `json:",omitempty"`
	Addr  netip.AddrPort `json:",omitzero"`
	Rows  []Expected     `json:",omitempty"`
	Infos []tcpInfo      `json:",omitempty"`
	Errno unix.Errno     `json:",omitempty"`
	Error string         `json:",omitempty"`
}

// tcpInfo is what the kernel has counted of a socket.
type tcpInfo struct {
	Cookie         uint64
	Local, Peer    netip.AddrPort
	Sent, Received uint64 // without what was sent again
}

// networks are the kinds of sockets.
var networks = map[string]struct {
	domain, typ, protocol int
	mapped                bool   // an IPv6 socket with IPv4 addresses
	transport, what       string // what: a kernel may not have it
}{
	"tcp4":   {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP, false, "tcp", "TCP"},
	"tcp6":   {unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, false, "tcp", "TCP"},
	"tcp46":  {unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, true, "tcp", "TCP"},
	"mptcp4": {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, false, "mptcp", "MPTCP"},
	"udp4":   {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP, false, "udp", "UDP"},
	"udp6":   {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP, false, "udp", "UDP"},
	"udp46":  {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP, true, "udp", "UDP"},
	"lite4":  {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, false, "udplite", "UDP-Lite"},
	"lite6":  {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, false, "udplite", "UDP-Lite"},
	"ping4":  {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, false, "icmp", "ping sockets"},
	"ping6":  {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, false, "icmp", "ping sockets"},
	"icmp4":  {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, false, "raw", "raw sockets"},
	"icmp6":  {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, false, "raw", "raw sockets"},
	"raw4":   {unix.AF_INET, unix.SOCK_RAW, experiment, false, "raw", "raw sockets"},
	"raw6":   {unix.AF_INET6, unix.SOCK_RAW, experiment, false, "raw", "raw sockets"},
	"packet": {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, false, "raw", "raw sockets"},
}

// experiment is a protocol for experiments (RFC 3692).
const experiment = 253

// record is a socket of this process.
type record struct {
	id, fd    int
	network   string
	base      Expected
	connected netip.AddrPort
	rows      map[[2]netip.AddrPort]*Expected // by local and peer
}

// child is a process of a case.
type child struct {
	mu      sync.Mutex // threads count, too
	process Expected   // PID and StartTime
	open    map[int]*record
	rows    []Expected // of sockets that were closed
	last    int        // the number of a socket
	forked  []*exec.Cmd
	ring    *ring
	buffer  []byte // what is sent
	into    []byte // what is received
}

func init() {
	if os.Getenv(variable) != "" {
		runtime.LockOSThread() // to the thread group leader, so that threads of a case are others
	}
}

// Main makes the process one of a case if it was started as that, and doesn't return
// then. TestMain calls it first.
func Main() {
	if os.Getenv(variable) == "" {
		return
	}
	c := &child{open: map[int]*record{}, buffer: make([]byte, 1<<20), into: make([]byte, 1<<20)}
	c.process.PID, c.process.StartTime = os.Getpid(), startTime()
	requests, replies := os.NewFile(3, "requests"), os.NewFile(4, "replies")
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	if err := c.inherit(os.Getenv(inherited)); err != nil {
		panic(err)
	}
	queue := make(chan request)
	go func() {
		decoder := json.NewDecoder(requests)
		for {
			var r request
			if decoder.Decode(&r) != nil {
				os.Exit(0) // the test has ended, whatever call this one is in
			}
			queue <- r
		}
	}()
	encoder := json.NewEncoder(replies)
	_ = encoder.Encode(reply{N: os.Getpid()})
	for r := range queue {
		got, err := operations[r.Op](c, &r)
		if err != nil && !errors.As(err, &got.Errno) {
			got.Error = err.Error()
		}
		_ = encoder.Encode(got)
	}
}

func startTime() uint64 {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		panic(err)
	}
	// The name, in brackets, may have blanks in it; the state, field 3, follows.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	start, err := strconv.ParseUint(string(fields[22-3]), 10, 64)
	if err != nil {
		panic(err)
	}
	return start
}

var operations map[string]func(*child, *request) (reply, error)

func init() {
	operations = map[string]func(*child, *request) (reply, error){
		"socket": (*child).socket, "option": (*child).option, "name": (*child).name, "sysctl": (*child).sysctl, "state": (*child).state, "ring": (*child).startRing,
		"listen": (*child).listen, "accept": (*child).accept, "connect": (*child).connect, "disconnect": (*child).disconnect,
		"send": (*child).send, "receive": (*child).receive, "threads": (*child).threads,
		"burst": (*child).burst, "serve": (*child).serve,
		"shutdown": (*child).shutdown, "close": (*child).close,
		"fork": (*child).fork, "pass": (*child).pass, "take": (*child).take,
		"reset": (*child).reset, "report": (*child).report, "info": (*child).info, "end": (*child).end,
	}
}

// add makes a descriptor a socket of the process, of a number that it has elsewhere.
func (c *child) add(id, fd int, network string) (*record, error) {
	s := &record{id: id, fd: fd, network: network, rows: map[[2]netip.AddrPort]*Expected{}, base: c.process}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, err
	}
	s.base.Cookie, s.base.Transport, s.base.Protocol = cookie, networks[network].transport, networks[network].protocol
	if err := s.names(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[id], c.last = s, max(c.last, id)
	return s, nil
}

func (c *child) create(network string, bind netip.AddrPort) (*record, error) {
	n := networks[network]
	fd, err := unix.Socket(n.domain, n.typ|unix.SOCK_CLOEXEC, n.protocol)
	if err != nil {
		return nil, err
	}
	if n.protocol == unix.IPPROTO_TCP || n.protocol == unix.IPPROTO_UDP {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if bind.IsValid() {
		err = unix.Bind(fd, sockaddr(n.domain, bind))
	}
	if err != nil {
		return nil, err
	}
	return c.add(c.last+1, fd, network)
}

// names asks the kernel for the addresses of a socket.
func (s *record) names() error {
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return err
	}
	s.base.Local = address(name)
	if peer, err := unix.Getpeername(s.fd); err == nil {
		s.connected = address(peer)
		s.base.Connected = true
	}
	return nil
}

func sockaddr(domain int, a netip.AddrPort) unix.Sockaddr {
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().Unmap().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// address returns mapped addresses as such.
func address(s unix.Sockaddr) netip.AddrPort {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return netip.AddrPort{}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	if !a.IsValid() {
		return a
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// count counts what a call has moved.
func (c *child) count(s *record, transmit bool, m moved) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.base.Local.Port() == 0 {
		_ = s.names()
	}
	if m.peer.IsValid() && networks[s.network].typ == unix.SOCK_STREAM {
		s.connected, s.base.Connected = m.peer, true // by the call that sent
	}
	peer := m.peer // sendto may name another one than the socket is connected to
	if !peer.IsValid() {
		peer = s.connected
	}
	if networks[s.network].typ == unix.SOCK_RAW || s.base.Transport == "icmp" {
		peer = netip.AddrPortFrom(peer.Addr(), 0)
	}
	ends := [2]netip.AddrPort{s.base.Local, peer}
	row := s.rows[ends]
	if row == nil {
		fresh := s.base
		row, s.rows[ends] = &fresh, &fresh
		row.Local, row.Peer = unmapped(s.base.Local), unmapped(peer)
		row.Family = unix.AF_INET6
		if row.Peer.Addr().Is4() || !row.Peer.IsValid() && row.Local.Addr().Is4() {
			row.Family = unix.AF_INET
		}
	}
	if m.n == 0 {
		return
	}
	more := Expected{ReceiveBytes: uint64(m.n), ReceiveCalls: m.calls}
	if transmit {
		more = Expected{TransmitBytes: uint64(m.n), TransmitCalls: m.calls}
	}
	row.add(more)
}

func (c *child) find(id int) (*record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.open[id]
	if s == nil {
		return nil, fmt.Errorf("no socket %d", id)
	}
	return s, nil
}

// with calls what needs a socket.
func (c *child) with(r *request, do func(*record) (reply, error)) (reply, error) {
	s, err := c.find(r.FD)
	if err != nil {
		return reply{}, err
	}
	return do(s)
}

func (c *child) socket(r *request) (reply, error) {
	s, err := c.create(r.Name, r.Addr)
	if err != nil {
		return reply{}, err
	}
	return reply{FD: s.id}, nil
}

func (c *child) option(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) {
		if r.Level == unix.SOL_SOCKET && (r.Option == unix.SO_SNDTIMEO || r.Option == unix.SO_RCVTIMEO) {
			return reply{}, unix.SetsockoptTimeval(s.fd, r.Level, r.Option, &unix.Timeval{Usec: int64(r.N)})
		}
		if r.Level == unix.SOL_SOCKET && r.Option == unix.SO_LINGER {
			return reply{}, unix.SetsockoptLinger(s.fd, r.Level, r.Option, &unix.Linger{Onoff: 1, Linger: int32(r.N)})
		}
		if r.Level == unix.IPPROTO_ICMPV6 && r.Option == unix.ICMPV6_FILTER {
			var filter unix.ICMPv6Filter // of what is refused
			for i := range filter.Data {
				filter.Data[i] = ^uint32(0)
			}
			filter.Data[r.N/32] &^= 1 << (r.N % 32)
			return reply{}, unix.SetsockoptICMPv6Filter(s.fd, r.Level, r.Option, &filter)
		}
		return reply{}, unix.SetsockoptInt(s.fd, r.Level, r.Option, r.N)
	})
}

func (c *child) name(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) { return reply{Addr: s.base.Local}, s.names() })
}

// sysctl sets one of the network namespace: "ipv4/ip_forward=1".
func (c *child) sysctl(r *request) (reply, error) {
	name, value, _ := strings.Cut(r.Name, "=")
	return reply{}, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// state waits until a TCP socket is in a state, and returns its options.
func (c *child) state(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) {
		for end := time.Now().Add(patience / 2); ; time.Sleep(time.Millisecond) {
			i, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err != nil {
				return reply{}, err
			}
			if int(i.State) == r.N {
				return reply{N: int(i.Options)}, nil
			}
			if time.Now().After(end) {
				return reply{}, fmt.Errorf("state %d, not %d", i.State, r.N)
			}
		}
	})
}

// startRing finds out whether there is io_uring.
func (c *child) startRing(r *request) (got reply, err error) {
	c.ring, err = newRing(uint32(r.Flags))
	return got, err
}

// disconnect makes a socket one that isn't connected.
func (c *child) disconnect(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) {
		var none unix.RawSockaddr // AF_UNSPEC
		if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none)); errno != 0 {
			return reply{}, errno
		}
		s.connected, s.base.Connected = netip.AddrPort{}, false
		return reply{}, s.names()
	})
}

func (c *child) listen(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) { return reply{}, unix.Listen(s.fd, r.N) })
}

func (c *child) accept(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) {
		a, err := c.accepted(s)
		if err != nil {
			return reply{}, err
		}
		return reply{FD: a.id, Addr: a.connected}, nil
	})
}

func (c *child) accepted(listener *record) (*record, error) {
	for {
		fd, _, err := unix.Accept4(listener.fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return c.add(c.last+1, fd, listener.network)
	}
}

// routeWait is how long a route may be missing.
const routeWait = 5 * time.Second

func (c *child) connect(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) {
		// On a busy machine the kernel now and then has no route to an address of lo for a moment.
		err := unix.Connect(s.fd, sockaddr(networks[s.network].domain, r.Addr))
		for end := time.Now().Add(routeWait); err == unix.ENETUNREACH && time.Now().Before(end); time.Sleep(time.Millisecond) {
			err = unix.Connect(s.fd, sockaddr(networks[s.network].domain, r.Addr))
		}
		if err != nil {
			return reply{}, err
		}
		s.connected, s.base.Connected = r.Addr, true
		return reply{}, s.names()
	})
}

func (c *child) shutdown(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) { return reply{}, unix.Shutdown(s.fd, unix.SHUT_WR) })
}

// close closes a socket; its row stays.
func (c *child) close(r *request) (reply, error) {
	for id, s := range c.open {
		if r.FD == all || r.FD == id {
			_ = unix.Close(s.fd)
			c.keep(s)
		}
	}
	return reply{}, nil
}

func (c *child) keep(s *record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, s.id)
	c.rows = append(c.rows, s.moved()...)
}

// moved returns the rows of a socket that aren't empty.
func (s *record) moved() []Expected {
	var rows []Expected
	for _, row := range s.rows {
		if row.TransmitBytes+row.ReceiveBytes > 0 {
			rows = append(rows, *row)
		}
	}
	return rows
}

func (c *child) report(*request) (reply, error) {
	rows := append([]Expected{}, c.rows...)
	for _, s := range c.open {
		rows = append(rows, s.moved()...)
	}
	return reply{Rows: rows}, nil
}

// reset forgets what was moved.
func (c *child) reset(*request) (reply, error) {
	c.rows = nil
	for _, s := range c.open {
		clear(s.rows)
	}
	return reply{}, nil
}

func (c *child) info(*request) (reply, error) {
	var infos []tcpInfo
	for _, s := range c.open {
		if s.base.Transport != "tcp" || !s.base.Connected {
			continue
		}
		i, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return reply{}, err
		}
		infos = append(infos, tcpInfo{s.base.Cookie, unmapped(s.base.Local), unmapped(s.connected), i.Bytes_sent - i.Bytes_retrans, i.Bytes_received})
	}
	return reply{Infos: infos}, nil
}

func (c *child) end(*request) (reply, error) {
	for _, cmd := range c.forked {
		_ = cmd.Wait()
	}
	return reply{}, nil
}

// description is a socket that is passed on.
type description struct {
	ID      int
	Network string
}

// fork starts another process with pipes that the test has open, and with sockets.
func (c *child) fork(r *request) (reply, error) {
	cmd := exec.Command(os.Args[0])
	cmd.Stderr = os.Stderr
	for i, flags := range []int{os.O_RDONLY, os.O_WRONLY} {
		end, err := os.OpenFile(r.Name+strconv.Itoa(r.FDs[i]), flags, 0)
		if err != nil {
			return reply{}, err
		}
		defer end.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, end)
	}
	var passed []description
	for _, id := range r.FDs[2:] {
		s, err := c.find(id)
		if err != nil {
			return reply{}, err
		}
		fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return reply{}, err
		}
		file := os.NewFile(uintptr(fd), "socket")
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
		passed = append(passed, description{id, s.network})
	}
	text, err := json.Marshal(passed)
	if err != nil {
		return reply{}, err
	}
	cmd.Env = append(os.Environ(), inherited+"="+string(text))
	if err := cmd.Start(); err != nil {
		return reply{}, err
	}
	c.forked = append(c.forked, cmd)
	return reply{N: cmd.Process.Pid}, nil
}

func (c *child) inherit(text string) error {
	if text == "" {
		return nil
	}
	var passed []description
	if err := json.Unmarshal([]byte(text), &passed); err != nil {
		return err
	}
	for i, p := range passed {
		unix.CloseOnExec(5 + i)
		if _, err := c.add(p.ID, 5+i, p.Network); err != nil {
			return err
		}
	}
	return nil
}

// mailbox is where a process takes sockets.
func mailbox(pid int) unix.Sockaddr {
	return &unix.SockaddrUnix{Name: fmt.Sprint("@bpfnet-workload-", pid)}
}

// pass sends a socket to the process N, which has to be in the same network namespace.
func (c *child) pass(r *request) (reply, error) {
	return c.with(r, func(s *record) (reply, error) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return reply{}, err
		}
		defer unix.Close(fd)
		err = unix.ECONNREFUSED
		for end := time.Now().Add(patience / 2); errors.Is(err, unix.ECONNREFUSED) && time.Now().Before(end); time.Sleep(time.Millisecond) {
			err = unix.Sendmsg(fd, []byte(s.network), unix.UnixRights(s.fd), mailbox(r.N), 0)
		}
		return reply{}, err
	})
}

// take receives a socket.
func (c *child) take(*request) (reply, error) {
	box, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return reply{}, err
	}
	defer unix.Close(box)
	if err := unix.Bind(box, mailbox(os.Getpid())); err != nil {
		return reply{}, err
	}
	network, rights := make([]byte, 16), make([]byte, unix.CmsgSpace(4))
	n, _, _, _, err := unix.Recvmsg(box, network, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return reply{}, err
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return reply{}, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return reply{}, err
	}
	s, err := c.add(c.last+1, fds[0], string(network[:n]))
	if err != nil {
		return reply{}, err
	}
	return reply{FD: s.id}, nil
}
