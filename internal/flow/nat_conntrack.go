package flow

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The attributes of ICMP, of linux/netfilter/nfnetlink_conntrack.h; the type and the code
// follow. Those of ICMPv6 are as many behind them.
const (
	ctProtoICMPID = 4
	ctProtoICMPv6 = 3
)

// tuple is what packets of one direction have in common.
type tuple struct {
	protocol uint8
	from, to netip.AddrPort // of ICMP both ports are the number of the echoes
}

func (t tuple) isICMP() bool {
	return t.protocol == unix.IPPROTO_ICMP || t.protocol == unix.IPPROTO_ICMPV6
}

// tuple is that of what the process sends; false: connections of such sockets aren't
// tracked, or with whom isn't known.
func (r *Row) tuple() (t tuple, ok bool) {
	t = tuple{from: r.Local, to: r.Peer}
	if t.from.Addr().IsUnspecified() && t.to.Addr().Is4() { // an IPv6 socket's, too
		t.from = netip.AddrPortFrom(netip.IPv4Unspecified(), t.from.Port())
	}
	switch r.Transport {
	case "tcp", "mptcp":
		t.protocol = unix.IPPROTO_TCP
	case "icmp":
		t.protocol = unix.IPPROTO_ICMP
		if t.to.Addr().Is6() {
			t.protocol = unix.IPPROTO_ICMPV6
		}
		t.to = netip.AddrPortFrom(t.to.Addr(), t.from.Port())
	default:
		number, _ := protocolOf(r.Transport)
		t.protocol = uint8(number)
	}
	return t, t.protocol != 0 && t.from.Port() != 0 && t.protocol != unix.IPPROTO_RAW && t.from.Addr().Is4() == t.to.Addr().Is4()
}

// conntrack is a socket of ctnetlink.
type conntrack struct {
	fd  int
	buf []byte
}

func openConntrack() (*conntrack, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	return &conntrack{fd, make([]byte, 8<<10)}, err
}

func (c *conntrack) close() { _ = unix.Close(c.fd) }

// reverse looks up the connection that packets are of, and returns what those in the other
// direction have in common: ENOENT: none is tracked.
func (c *conntrack) reverse(t tuple) (tuple, error) {
	request := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|nl.IPCTNL_MSG_CT_GET, 0)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	if t.from.Addr().Is6() {
		request.Data[0] = &nl.Nfgenmsg{NfgenFamily: unix.AF_INET6, Version: nl.NFNETLINK_V0}
	}
	request.AddData(t.attribute())
	if err := unix.Sendto(c.fd, request.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return tuple{}, err
	}
	n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
	if err != nil {
		return tuple{}, err
	}
	const head = unix.SizeofNlMsghdr + nl.SizeofNfgenmsg
	if n < head {
		return tuple{}, fmt.Errorf("a message of ctnetlink has %d bytes", n)
	}
	if binary.NativeEndian.Uint16(c.buf[4:]) == unix.NLMSG_ERROR {
		return tuple{}, unix.Errno(-int32(binary.NativeEndian.Uint32(c.buf[unix.SizeofNlMsghdr:])))
	}
	both := attributes(c.buf[head:n])
	original, reply := readTuple(both[nl.CTA_TUPLE_ORIG]), readTuple(both[nl.CTA_TUPLE_REPLY])
	if original == t {
		return reply, nil
	}
	return original, nil
}

// attribute is what ctnetlink is asked with.
func (t tuple) attribute() *nl.RtAttr {
	from, to, icmp, echo := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST, ctProtoICMPID, byte(8)
	if t.from.Addr().Is6() {
		from, to, icmp, echo = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST, ctProtoICMPID+ctProtoICMPv6, 128
	}
	a := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	addresses := a.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	addresses.AddRtAttr(from, t.from.Addr().AsSlice())
	addresses.AddRtAttr(to, t.to.Addr().AsSlice())
	protocol := a.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	protocol.AddRtAttr(nl.CTA_PROTO_NUM, []byte{t.protocol})
	if t.isICMP() {
		protocol.AddRtAttr(icmp, nl.BEUint16Attr(t.from.Port()))
		protocol.AddRtAttr(icmp+1, []byte{echo})
		protocol.AddRtAttr(icmp+2, []byte{0})
	} else {
		protocol.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(t.from.Port()))
		protocol.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(t.to.Port()))
	}
	return a
}

func readTuple(raw []byte) (t tuple) {
	parts := attributes(raw)
	addresses, protocol := attributes(parts[nl.CTA_TUPLE_IP]), attributes(parts[nl.CTA_TUPLE_PROTO])
	address := func(v4, v6 uint16) netip.Addr {
		a, ok := netip.AddrFromSlice(addresses[v4])
		if !ok {
			a, _ = netip.AddrFromSlice(addresses[v6])
		}
		return a
	}
	port := func(types ...uint16) uint16 {
		for _, typ := range types {
			if raw := protocol[typ]; len(raw) == 2 {
				return binary.BigEndian.Uint16(raw)
			}
		}
		return 0
	}
	if number := protocol[nl.CTA_PROTO_NUM]; len(number) == 1 {
		t.protocol = number[0]
	}
	t.from = netip.AddrPortFrom(address(nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC), port(nl.CTA_PROTO_SRC_PORT, ctProtoICMPID, ctProtoICMPID+ctProtoICMPv6))
	t.to = netip.AddrPortFrom(address(nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST), port(nl.CTA_PROTO_DST_PORT, ctProtoICMPID, ctProtoICMPID+ctProtoICMPv6))
	return t
}

// attributes are those of a message by their types; none of one that is cut off.
func attributes(raw []byte) map[uint16][]byte {
	all, _ := nl.ParseRouteAttr(raw)
	by := make(map[uint16][]byte, len(all))
	for _, a := range all {
		by[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
	}
	return by
}
