package dns

import (
	"net/netip"
	"time"
)

// Answer is a response that was seen on the wire.
type Answer struct {
	Time           time.Duration // CLOCK_BOOTTIME, when the program saw it
	Server, Client netip.AddrPort
	Transport      string // "udp" or "tcp"
	IfIndex        uint32
	CgroupID       uint64 // 0: unknown
	Name           string // asked for, in lower case
	Type           uint16 // asked for
	Rcode          int
	Addresses      []Address // that the chain leads to
	Chain          []string  // as in a Resolution
}
