package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
)

// Socket is what sock_diag says of a socket.
type Socket struct {
	Protocol, Family, State uint8          // Family is that of the socket: one of AF_INET6 may have addresses of IPv4
	Local, Remote           netip.AddrPort // of a raw socket the port is its protocol
	Cookie                  uint64         // tells it from all others, also later ones
	Inode                   uint32         // 0: no process has it
	UID                     uint32         // of who made it
	Cgroup                  uint64         // of who made it; 0: the kernel doesn't tell
	ReadQueue               uint32         // of TCP: bytes that have come and weren't read, and the FIN
	WriteQueue              uint32         // of TCP: bytes that weren't acknowledged, and SYN and FIN
	Info                    []byte         // tcp_info; nil: there is none. Good as long as the function runs that is called with it
	NetNS                   uint64         // inode; 0: not known

	only6 bool   // takes no IPv4
	index uint32 // of the interface that it is bound to; 0: none
}

// identity tells a socket from all others of its namespace, also later ones.
type identity struct {
	netns, cookie uint64
	inode         uint32 // 0: no process has it
}

func (s Socket) id() identity { return identity{s.NetNS, s.Cookie, s.Inode} }

// States of sockets (enum in net/tcp_states.h); of UDP connected ones are Established,
// others Close.
const (
	Established = 1
	SynSent     = 2
	SynReceived = 3
	FinWait1    = 4
	FinWait2    = 5
	TimeWait    = 6
	Close       = 7
	CloseWait   = 8
	LastAck     = 9
	Listen      = 10
	Closing     = 11
	NewSynRecv  = 12 // asks for what SynReceived says: connections that have no socket yet
	AllStates   = 1<<13 - 1
)

// ends are those of a packet as its socket has them, and the interface on its side.
type ends struct {
	protocol      uint8
	local, remote netip.AddrPort
	index         uint32
}

// diagID and diagRequest are what linux/inet_diag.h has (inet_diag_sockid,
// inet_diag_req_v2).
type diagID struct {
	LocalPort, RemotePort [2]byte // of the socket; in the order of the network
	Local, Remote         [16]byte
	Index                 uint32
	Cookie                [2]uint32
}

type diagRequest struct {
	Family, Protocol, Extensions, Pad uint8
	States                            uint32
	ID                                diagID
}

// diagLength is the length of a diagMessage.
const diagLength = 72

// Attributes of a diagMessage.
const (
	attributeInfo   = 2  // INET_DIAG_INFO
	attributeOnly6  = 11 // INET_DIAG_SKV6ONLY
	attributeCgroup = 21 // INET_DIAG_CGROUP_ID
)

// askInfo asks for tcp_info.
const askInfo = 1 << (attributeInfo - 1)

// anyCookie asks for a socket whatever its cookie (INET_DIAG_NOCOOKIE).
const anyCookie = ^uint32(0)

func (r *diagRequest) Len() int { return len(r.Serialize()) }

// tcpOfBoth is the type of an older request (TCPDIAG_GETSOCK, with inet_diag_req), which
// lists the TCP sockets of both families in one walk over the kernel's table.
const tcpOfBoth = 18

// kind is the type of the request, and of its answers.
func (r *diagRequest) kind() uint16 {
	if r.Family == unix.AF_UNSPEC {
		return tcpOfBoth
	}
	return nl.SOCK_DIAG_BY_FAMILY
}

// Serialize implements nl.NetlinkRequestData.
func (r *diagRequest) Serialize() []byte {
	var fields any = r
	if r.kind() == tcpOfBoth {
		fields = struct {
			Family, Source, Target, Extensions uint8
			ID                                 diagID
			States, Cache                      uint32
		}{Extensions: r.Extensions, ID: r.ID, States: r.States}
	}
	b, _ := binary.Append(nil, binary.NativeEndian, fields) // it has a fixed size
	return b
}

// find asks for the socket that the kernel itself finds for what comes from the
// remote end. It is false where there is none.
func find(e ends) (found Socket, ok bool, err error) {
	r := diagRequest{Protocol: e.protocol, States: AllStates, ID: diagID{Index: e.index, Cookie: [2]uint32{anyCookie, anyCookie}}}
	local, remote := e.local, e.remote
	if e.protocol == unix.IPPROTO_UDP { // udp_diag has them the other way round
		local, remote = remote, local
	}
	r.Family = family(e.local.Addr())
	r.ID.LocalPort, r.ID.Local = wire(local)
	r.ID.RemotePort, r.ID.Remote = wire(remote)
	ok, err = one(&r, &found)
	return found, ok, err
}

// one asks for a socket. It is false where there is none.
func one(r *diagRequest, found *Socket) (ok bool, err error) {
	err = ask(r, 0, func(s Socket) { *found, ok = s, true })
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) { // another one has its addresses
		return false, nil
	}
	return ok && err == nil, err
}

// list lists the sockets with a local port in some states that may have sent what
// has the ends, or may get it. It is false if some may be missing.
func list(e ends, states uint32) (found []Socket, whole bool, err error) {
	families := []uint8{unix.AF_INET6}
	if e.local.Addr().Is4() {
		families = append(families, unix.AF_INET)
	}
	for _, f := range families {
		r := diagRequest{Family: f, Protocol: e.protocol, States: states}
		r.ID.LocalPort, _ = wire(e.local)
		of, whole, err := netns.Dump(func() (of []Socket, err error) {
			err = ask(&r, unix.NLM_F_DUMP, func(s Socket) {
				if s.fits(e) {
					of = append(of, s)
				}
			})
			return of, err
		})
		if err != nil || !whole {
			return nil, false, err
		}
		found = append(found, of...)
	}
	return found, true, nil
}

// Each calls fn with the sockets of a protocol in some states, as bits, that are in the
// network namespace of the thread; with some of them twice where they change meanwhile.
// It is false if some may be missing, and ENOENT where the kernel lists none of that
// protocol.
func Each(protocol uint8, states uint32, fn func(Socket)) (whole bool, err error) {
	if file, ok := listed[protocol]; ok {
		return true, read(file, protocol, fn)
	}
	all, families := true, []uint8{unix.AF_INET, unix.AF_INET6}
	if protocol == unix.IPPROTO_TCP {
		families = []uint8{unix.AF_UNSPEC}
	}
	for _, f := range families {
		r := diagRequest{Family: f, Protocol: protocol, Extensions: askInfo, States: states}
		_, whole, err := netns.Dump(func() ([]Socket, error) { return nil, ask(&r, unix.NLM_F_DUMP, fn) })
		if err != nil {
			return false, fmt.Errorf("list sockets: %w", err)
		}
		all = all && whole
	}
	return all, nil
}

// Exists says whether a TCP socket is still there, in the network namespace of the
// thread: what the kernel keeps in its stead when it is closed has no tcp_info.
func Exists(s Socket) (bool, error) {
	r := diagRequest{Family: s.Family, Protocol: s.Protocol, Extensions: askInfo, States: AllStates, ID: diagID{Index: s.index, Cookie: [2]uint32{uint32(s.Cookie), uint32(s.Cookie >> 32)}}}
	r.ID.LocalPort, r.ID.Local = s.wire(s.Local)
	r.ID.RemotePort, r.ID.Remote = s.wire(s.Remote)
	var now Socket
	ok, err := one(&r, &now)
	return ok && now.Info != nil, err
}

// wire is an end of the socket in its own family.
func (s Socket) wire(end netip.AddrPort) (port [2]byte, address [16]byte) {
	if s.Family == unix.AF_INET6 {
		end = netip.AddrPortFrom(netip.AddrFrom16(end.Addr().As16()), end.Port())
	}
	return wire(end)
}

// fits says whether a socket may have what has the ends.
func (s Socket) fits(e ends) bool {
	address := s.Local.Addr()
	if address.IsUnspecified() {
		if s.only6 && e.local.Addr().Is4() || address.Is4() && e.local.Addr().Is6() {
			return false
		}
	} else if address != e.local.Addr() {
		return false
	}
	if s.index != 0 && e.index != 0 && s.index != e.index {
		return false
	}
	return s.Local.Port() == e.local.Port() && (s.Remote.Port() == 0 || s.Remote == e.remote)
}

// ask sends a request, and calls fn with each answer. netlink.ErrDumpInterrupted if
// sockets came or went meanwhile.
func ask(r *diagRequest, flags int, fn func(Socket)) error {
	request := nl.NewNetlinkRequest(int(r.kind()), flags)
	request.AddData(r)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, request.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buffer := buffers.Get().(*[answerSize]byte)
	defer buffers.Put(buffer)
	for changed := false; ; {
		n, _, err := unix.Recvfrom(fd, buffer[:], 0)
		if err != nil {
			return err
		}
		more, err := answers(buffer[:n], r.Protocol, &changed, fn)
		switch {
		case err != nil:
			return err
		case !more && changed:
			return netlink.ErrDumpInterrupted
		case !more:
			return nil
		}
	}
}

// answerSize is more than the kernel writes at once.
const answerSize = 64 << 10

// buffers are used again: there may be megabytes of answers each second.
var buffers = sync.Pool{New: func() any { return new([answerSize]byte) }}

// answers reads messages, and says whether others follow. changed is set if the kernel
// says that the list has changed meanwhile.
func answers(raw []byte, protocol uint8, changed *bool, fn func(Socket)) (more bool, err error) {
	for len(raw) >= unix.SizeofNlMsghdr {
		length, kind, flags := int(binary.NativeEndian.Uint32(raw)), binary.NativeEndian.Uint16(raw[4:]), binary.NativeEndian.Uint16(raw[6:])
		if length < unix.SizeofNlMsghdr || length > len(raw) {
			return false, fmt.Errorf("a message of sock_diag says that it has %d bytes", length)
		}
		message := raw[unix.SizeofNlMsghdr:length]
		*changed = *changed || flags&unix.NLM_F_DUMP_INTR != 0
		switch kind {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			if len(message) >= 4 {
				if errno := -int32(binary.NativeEndian.Uint32(message)); errno != 0 {
					return false, unix.Errno(errno)
				}
			}
			return false, nil
		default:
			s, err := parse(message)
			if err != nil {
				return false, err
			}
			s.Protocol = protocol
			fn(s)
		}
		if flags&unix.NLM_F_MULTI == 0 {
			return false, nil
		}
		raw = raw[min(len(raw), nlAlign(length)):]
	}
	return true, nil
}

func nlAlign(length int) int { return (length + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// parse reads an inet_diag_msg of linux/inet_diag.h and the attributes behind it.
func parse(message []byte) (s Socket, err error) {
	if len(message) < diagLength {
		return s, fmt.Errorf("a message of sock_diag has %d bytes", len(message))
	}
	number := func(at int) uint32 { return binary.NativeEndian.Uint32(message[at:]) }
	s = Socket{
		Family: message[0], State: message[1], index: number(40), Cookie: uint64(number(48))<<32 | uint64(number(44)),
		ReadQueue: number(56), WriteQueue: number(60), UID: number(64), Inode: number(68),
	}
	s.Local = unwire(s.Family, [2]byte(message[4:]), [16]byte(message[8:]))
	s.Remote = unwire(s.Family, [2]byte(message[6:]), [16]byte(message[24:]))
	for rest := message[diagLength:]; len(rest) >= unix.SizeofRtAttr; {
		length, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if length < unix.SizeofRtAttr || length > len(rest) {
			return s, fmt.Errorf("an attribute of sock_diag says that it has %d bytes", length)
		}
		value := rest[unix.SizeofRtAttr:length]
		switch {
		case kind == attributeInfo:
			s.Info = value
		case kind == attributeOnly6 && len(value) >= 1:
			s.only6 = value[0] != 0
		case kind == attributeCgroup && len(value) >= 8:
			s.Cgroup = binary.NativeEndian.Uint64(value)
		}
		rest = rest[min(len(rest), nlAlign(length)):]
	}
	return s, nil
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func wire(end netip.AddrPort) (port [2]byte, address [16]byte) {
	binary.BigEndian.PutUint16(port[:], end.Port())
	copy(address[:], end.Addr().AsSlice())
	return port, address
}

func unwire(family uint8, port [2]byte, address [16]byte) netip.AddrPort {
	a := netip.AddrFrom16(address).Unmap()
	if family == unix.AF_INET {
		a = netip.AddrFrom4([4]byte(address[:4]))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port[:]))
}

// isLocal says whether an address is one of the namespace that the thread is in: what
// has others is forwarded, whoever has a socket that would fit.
func isLocal(end ends) (bool, error) {
	address := end.local.Addr()
	var options *netlink.RouteGetOptions
	if address.IsLinkLocalUnicast() && address.Is6() {
		options = &netlink.RouteGetOptions{OifIndex: int(end.index)}
	}
	routes, err := netlink.RouteGetWithOptions(address.AsSlice(), options)
	if errno := syscall.Errno(0); errors.As(err, &errno) && slices.Contains([]error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL}, error(errno)) {
		return false, nil // of routes that lead nowhere
	}
	return len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL, err
}
