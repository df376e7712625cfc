package sockets

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bpfnet/internal/netns"
)

// socket is what sock_diag says of a socket.
type socket struct {
	state         uint8
	local, remote netip.AddrPort
	id            identity
	cgroup        uint64 // 0: the kernel doesn't tell
	only6         bool   // takes no IPv4
	index         uint32 // of the interface that it is bound to; 0: none
}

// identity tells a socket from all others of its namespace, also later ones.
type identity struct {
	netns, cookie uint64
	inode         uint32 // 0: no process has it
}

// States of sockets (enum in net/tcp_states.h); of UDP connected ones are established.
const (
	established = 1
	synReceived = 3
	closeWait   = 8
	listening   = 10
	allStates   = 1<<13 - 1
)

// ends are those of a packet as its socket has them, and the interface on its side.
type ends struct {
	protocol      uint8
	local, remote netip.AddrPort
	index         uint32
}

// diagID and the two below are what linux/inet_diag.h has (inet_diag_sockid,
// inet_diag_req_v2, inet_diag_msg).
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

type diagMessage struct {
	Family, State, Timer, Retransmits uint8
	ID                                diagID
	Expires, ReadQueue, WriteQueue    uint32
	UID, Inode                        uint32
}

// Attributes of a diagMessage.
const (
	attributeOnly6  = 11 // INET_DIAG_SKV6ONLY
	attributeCgroup = 21 // INET_DIAG_CGROUP_ID
)

// anyCookie asks for a socket whatever its cookie (INET_DIAG_NOCOOKIE).
const anyCookie = ^uint32(0)

func (r *diagRequest) Len() int { return binary.Size(r) }

// Serialize implements nl.NetlinkRequestData.
func (r *diagRequest) Serialize() []byte {
	b, _ := binary.Append(nil, binary.NativeEndian, r) // it has a fixed size
	return b
}

// find asks for the socket that the kernel itself finds for what comes from the
// remote end. It is false where there is none.
func find(e ends) (found socket, ok bool, err error) {
	r := diagRequest{Protocol: e.protocol, States: allStates, ID: diagID{Index: e.index, Cookie: [2]uint32{anyCookie, anyCookie}}}
	local, remote := e.local, e.remote
	if e.protocol == unix.IPPROTO_UDP { // udp_diag has them the other way round
		local, remote = remote, local
	}
	r.Family = family(e.local.Addr())
	r.ID.LocalPort, r.ID.Local = wire(local)
	r.ID.RemotePort, r.ID.Remote = wire(remote)
	messages, err := ask(&r, 0)
	if errors.Is(err, unix.ENOENT) {
		return found, false, nil
	}
	if err != nil || len(messages) != 1 {
		return found, false, err
	}
	found, err = parse(messages[0])
	return found, err == nil, err
}

// list lists the sockets with a local port in some states that may have sent what
// has the ends, or may get it. It is false if some may be missing.
func list(e ends, states uint32) (found []socket, whole bool, err error) {
	families := []uint8{unix.AF_INET6}
	if e.local.Addr().Is4() {
		families = append(families, unix.AF_INET)
	}
	for _, f := range families {
		r := diagRequest{Family: f, Protocol: e.protocol, States: states}
		r.ID.LocalPort, _ = wire(e.local)
		messages, whole, err := netns.Dump(func() ([][]byte, error) { return ask(&r, unix.NLM_F_DUMP) })
		if err != nil || !whole {
			return nil, false, err
		}
		for _, m := range messages {
			s, err := parse(m)
			if err != nil {
				return nil, false, err
			}
			if s.fits(e) {
				found = append(found, s)
			}
		}
	}
	return found, true, nil
}

// fits says whether a socket may have what has the ends.
func (s socket) fits(e ends) bool {
	address := s.local.Addr()
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
	return s.local.Port() == e.local.Port() && (s.remote.Port() == 0 || s.remote == e.remote)
}

func ask(r *diagRequest, flags int) ([][]byte, error) {
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, flags)
	request.AddData(r)
	return request.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
}

func parse(message []byte) (s socket, err error) {
	var m diagMessage
	n, err := binary.Decode(message, binary.NativeEndian, &m)
	if err != nil {
		return s, err
	}
	s = socket{
		state: m.State, index: m.ID.Index, id: identity{inode: m.Inode, cookie: uint64(m.ID.Cookie[1])<<32 | uint64(m.ID.Cookie[0])},
		local: unwire(m.Family, m.ID.LocalPort, m.ID.Local), remote: unwire(m.Family, m.ID.RemotePort, m.ID.Remote),
	}
	attributes, err := nl.ParseRouteAttr(message[n:])
	for _, a := range attributes {
		switch {
		case a.Attr.Type == attributeOnly6 && len(a.Value) >= 1:
			s.only6 = a.Value[0] != 0
		case a.Attr.Type == attributeCgroup && len(a.Value) >= 8:
			s.cgroup = binary.NativeEndian.Uint64(a.Value)
		}
	}
	return s, err
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
