// Package packettest builds packets for tests and benchmarks of BPF programs,
// and runs programs on them.
package packettest

import (
	"encoding/binary"
	"net/netip"
)

// Numbers of IPv6 extension headers.
const (
	HopByHop           = 0
	Routing            = 43
	Fragmentation      = 44
	Authentication     = 51
	DestinationOptions = 60
)

// Flags of TCP.
const (
	SYN = 0x02
	ACK = 0x10
)

// Layer is one header, with everything inside it.
type Layer func(inner part) part

// part is a built packet from some layer inwards, and how the layer around it
// names it.
type part struct {
	etherType uint16
	protocol  uint8
	data      []byte
}

// Build puts layers into each other, the outermost first.
func Build(layers ...Layer) []byte {
	var packet part
	for i := len(layers) - 1; i >= 0; i-- {
		packet = layers[i](packet)
	}
	return packet.data
}

// Ethernet is an Ethernet header.
func Ethernet() Layer {
	return func(inner part) part {
		header := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
		header = binary.BigEndian.AppendUint16(header, inner.etherType)
		return part{data: append(header, inner.data...)}
	}
}

// VLAN is an 802.1Q tag.
func VLAN(id uint16) Layer { return tag(0x8100, id) }

// ServiceVLAN is an 802.1ad tag.
func ServiceVLAN(id uint16) Layer { return tag(0x88a8, id) }

func tag(etherType, id uint16) Layer {
	return func(inner part) part {
		header := binary.BigEndian.AppendUint16(nil, id)
		header = binary.BigEndian.AppendUint16(header, inner.etherType)
		return part{etherType: etherType, data: append(header, inner.data...)}
	}
}

// EtherType is size bytes of something else than IP.
func EtherType(etherType uint16, size int) Layer {
	return func(part) part { return part{etherType: etherType, data: make([]byte, size)} }
}

// ARP is an ARP message.
func ARP() Layer { return EtherType(0x0806, 28) }

// IPv4Header is what can be chosen in an IPv4 header. Zero is an ordinary one.
type IPv4Header struct {
	Options  int // words of 4 bytes
	ID       uint16
	Offset   uint16 // of the fragment, units of 8 bytes
	More     bool   // fragments follow
	Protocol uint8  // 0: that of the layer inside
}

// IPv4 is an IPv4 header.
func IPv4(source, destination string, header IPv4Header) Layer {
	return func(inner part) part {
		protocol := header.Protocol
		if protocol == 0 {
			protocol = inner.protocol
		}
		fragment := header.Offset
		if header.More {
			fragment |= 0x2000
		}
		words := 5 + header.Options
		data := make([]byte, words*4)
		data[0] = 0x40 | byte(words)
		binary.BigEndian.PutUint16(data[2:], uint16(len(data)+len(inner.data)))
		binary.BigEndian.PutUint16(data[4:], header.ID)
		binary.BigEndian.PutUint16(data[6:], fragment)
		data[8] = 64
		data[9] = protocol
		copy(data[12:], netip.MustParseAddr(source).AsSlice())
		copy(data[16:], netip.MustParseAddr(destination).AsSlice())
		return part{etherType: 0x0800, data: append(data, inner.data...)}
	}
}

// IPv6 is an IPv6 header without extensions.
func IPv6(source, destination string) Layer {
	return func(inner part) part {
		data := make([]byte, 40)
		data[0] = 0x60
		binary.BigEndian.PutUint16(data[4:], uint16(len(inner.data)))
		data[6] = inner.protocol
		data[7] = 64
		copy(data[8:], netip.MustParseAddr(source).AsSlice())
		copy(data[24:], netip.MustParseAddr(destination).AsSlice())
		return part{etherType: 0x86dd, data: append(data, inner.data...)}
	}
}

// Extension is an IPv6 extension header of at least 8 bytes that is extra
// length units longer than the shortest (4 bytes each in Authentication, else 8).
func Extension(number uint8, extra int) Layer {
	return func(inner part) part {
		data := make([]byte, 8+8*extra)
		length := extra
		if number == Authentication {
			data = make([]byte, 12+4*extra)
			length++
		}
		data[0], data[1] = inner.protocol, byte(length)
		return part{protocol: number, data: append(data, inner.data...)}
	}
}

// Fragment is an IPv6 fragment header; offset in units of 8 bytes.
func Fragment(id uint32, offset uint16, more bool) Layer {
	return func(inner part) part {
		data := []byte{inner.protocol, 0}
		fragment := offset << 3
		if more {
			fragment |= 1
		}
		data = binary.BigEndian.AppendUint16(data, fragment)
		data = binary.BigEndian.AppendUint32(data, id)
		return part{protocol: Fragmentation, data: append(data, inner.data...)}
	}
}

// TCP is a TCP header.
func TCP(source, destination uint16, flags uint8) Layer {
	return func(inner part) part {
		data := make([]byte, 20)
		binary.BigEndian.PutUint16(data, source)
		binary.BigEndian.PutUint16(data[2:], destination)
		data[12], data[13] = 5<<4, flags
		return part{protocol: 6, data: append(data, inner.data...)}
	}
}

// Segment is a TCP header with a sequence number and one that it acknowledges.
func Segment(source, destination uint16, flags uint8, sequence, acknowledged uint32) Layer {
	return func(inner part) part {
		p := TCP(source, destination, flags)(inner)
		binary.BigEndian.PutUint32(p.data[4:], sequence)
		binary.BigEndian.PutUint32(p.data[8:], acknowledged)
		return p
	}
}

// UDP is a UDP header.
func UDP(source, destination uint16) Layer {
	return func(inner part) part {
		data := make([]byte, 8)
		binary.BigEndian.PutUint16(data, source)
		binary.BigEndian.PutUint16(data[2:], destination)
		binary.BigEndian.PutUint16(data[4:], uint16(8+len(inner.data)))
		return part{protocol: 17, data: append(data, inner.data...)}
	}
}

// SCTP is an SCTP header.
func SCTP(source, destination uint16) Layer {
	return func(inner part) part {
		data := make([]byte, 12)
		binary.BigEndian.PutUint16(data, source)
		binary.BigEndian.PutUint16(data[2:], destination)
		return part{protocol: 132, data: append(data, inner.data...)}
	}
}

// Echo is an ICMP message of a type that has an identifier, of version 4 or 6 by its
// protocol.
func Echo(protocol, kind uint8, identifier uint16) Layer {
	return Protocol(protocol, kind, 0, 0, 0, byte(identifier>>8), byte(identifier), 0, 1)
}

// ICMP is an ICMP echo request.
func ICMP() Layer { return Protocol(1, 8, 0) }

// ICMPv6 is an ICMPv6 message: 128 echo request, 135 neighbour solicitation.
func ICMPv6(kind byte) Layer { return Protocol(58, kind, 0) }

// Protocol is some other upper-layer header.
func Protocol(number uint8, header ...byte) Layer {
	return func(inner part) part {
		return part{protocol: number, data: append(append([]byte{}, header...), inner.data...)}
	}
}

// Payload is size bytes of data.
func Payload(size int) Layer {
	return func(part) part { return part{data: make([]byte, size)} }
}

// Data is given bytes of data.
func Data(data []byte) Layer {
	return func(part) part { return part{data: data} }
}
