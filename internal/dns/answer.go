package dns

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	wire "github.com/miekg/dns"
)

// Answer is a response that program dns saw. Nothing vouches for it: whoever can
// send packets past the program can make one up.
type Answer struct {
	Time           time.Duration // since boot (CLOCK_BOOTTIME), when the program saw the end of it
	Server, Client netip.AddrPort
	Transport      string // "udp" or "tcp"
	IfIndex        uint32
	CgroupID       uint64 // of the socket that sends or receives it there; 0: unknown

	// The question, the name as in Resolution.Chain, and what became of it, as in
	// the header of the message: codes above 15 aren't told.
	Name  string
	Type  uint16
	Rcode int

	// What the answer section says of Name: addresses that its chain of CNAMEs
	// leads to. Others that are there, too, are ignored.
	Addresses []Address
	Chain     []string
}

// Sizes of a message's parts on the wire, in bytes.
const (
	headerSize   = 12
	questionTail = 4  // type and class
	recordTail   = 10 // type, class, TTL, length
)

var (
	errMalformed = errors.New("malformed message")
	errIgnored   = errors.New("no answer about a name")
)

// decode reads a response. What is behind its answer section isn't looked at, and
// of a message that ends too early the records in front of that are taken: who
// asked may do the same. whole says that the answer section is complete.
func decode(message []byte) (a Answer, whole bool, err error) {
	if isQuery(message) {
		return Answer{}, false, errMalformed
	}
	return decodeAny(message)
}

// isQuery says whether a message is one, as far as it is there.
func isQuery(message []byte) bool { return len(message) > 2 && message[2]&0x80 == 0 }

// decodeAny is decode of a query, too.
func decodeAny(message []byte) (a Answer, whole bool, err error) {
	if len(message) < headerSize {
		return Answer{}, false, errMalformed
	}
	questions, records := int(binary.BigEndian.Uint16(message[4:])), int(binary.BigEndian.Uint16(message[6:]))
	if message[2]>>3&0xf != wire.OpcodeQuery || questions == 0 {
		return Answer{}, false, errIgnored
	}
	name, at, err := wire.UnpackDomainName(message, headerSize)
	if err != nil || questions != 1 || at+questionTail > len(message) {
		return Answer{}, false, errMalformed
	}
	a = Answer{Name: hostName(name), Type: binary.BigEndian.Uint16(message[at:]), Rcode: int(message[3] & 0xf)}
	if a.Name == "" || binary.BigEndian.Uint16(message[at+2:]) != wire.ClassINET {
		return Answer{}, false, errIgnored
	}
	section, whole := readRecords(message, at+questionTail, records)
	f, _ := follow(section, name) // a circle leads to no address
	a.Addresses, a.Chain = merge(f.addresses), f.chain
	return a, whole, nil
}

// readRecords reads up to n records from an offset on. whole says that all are
// there; of those that aren't addresses or CNAMEs nothing is kept.
func readRecords(message []byte, at, n int) (records []wire.RR, whole bool) {
	for range n {
		name, next, err := wire.UnpackDomainName(message, at)
		if err != nil || next+recordTail > len(message) {
			return records, false
		}
		header := wire.RR_Header{
			Name:   name,
			Rrtype: binary.BigEndian.Uint16(message[next:]),
			Class:  binary.BigEndian.Uint16(message[next+2:]),
			Ttl:    binary.BigEndian.Uint32(message[next+4:]),
		}
		at = next + recordTail
		end := at + int(binary.BigEndian.Uint16(message[next+8:]))
		if end > len(message) {
			return records, false
		}
		if r := readRecord(header, message, at, end); r != nil {
			records = append(records, r)
		}
		at = end
	}
	return records, true
}

// readRecord makes a record of its data; nil if it has another type, or data that
// isn't of its type.
func readRecord(header wire.RR_Header, message []byte, at, end int) wire.RR {
	data := message[at:end]
	switch {
	case header.Rrtype == wire.TypeA && len(data) == 4:
		return &wire.A{Hdr: header, A: data}
	case header.Rrtype == wire.TypeAAAA && len(data) == 16:
		return &wire.AAAA{Hdr: header, AAAA: data}
	case header.Rrtype == wire.TypeCNAME:
		if target, next, err := wire.UnpackDomainName(message, at); err == nil && next == end {
			return &wire.CNAME{Hdr: header, Target: target}
		}
	}
	return nil
}
