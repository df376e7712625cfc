// Package drops is the Go side of the program drops: it reads which packets the kernel
// drops, and why. It never changes an entry.
package drops

import (
	"cmp"
	"context"
	"net/netip"
	"time"
)

// Key is what packets have in common that are counted together. Of numbers 0 means
// that it isn't known, or that there is none.
type Key struct {
	Reason      uint32 // number of the running kernel; 0: it tells none
	Location    uint64 // address in the kernel's code
	EtherType   uint16
	Protocol    uint8          // of IP
	Source      netip.AddrPort // the zero value, as Destination: not an IP packet
	Destination netip.AddrPort
	Direction   Direction
	NetNS       uint32 // inode, of the interface or else of the socket
	IfIndex     uint32
	CgroupID    uint64 // of the socket
	Socket      uint32 // its inode; 0 also: no process has it
	SocketNetNS uint32 // inode
}

// Direction is which way a packet passed an interface.
type Direction string

// The directions; empty: not known.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Compare orders keys.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		cmp.Compare(k.Reason, o.Reason), cmp.Compare(k.Location, o.Location), cmp.Compare(k.NetNS, o.NetNS), cmp.Compare(k.IfIndex, o.IfIndex),
		cmp.Compare(k.EtherType, o.EtherType), cmp.Compare(k.Protocol, o.Protocol), k.Source.Compare(o.Source), k.Destination.Compare(o.Destination),
		cmp.Compare(k.Direction, o.Direction), cmp.Compare(k.CgroupID, o.CgroupID), cmp.Compare(k.Socket, o.Socket), cmp.Compare(k.SocketNetNS, o.SocketNetNS),
	)
}

// Counters only grow. Bytes are those from the IP header on.
type Counters struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Entry is what was dropped with one key.
type Entry struct {
	Counters
	DevName             string // "": not known
	FirstSeen, LastSeen time.Time
}

// Sample is one reading of a loaded instance.
type Sample struct {
	Time      time.Time
	Host      uint32 // inode of the network namespace that the instance was opened for
	Entries   map[Key]Entry
	Reasons   map[uint32]Counters // all that was dropped; read after the entries were
	Made      uint64              // entries that were ever made, read before the entries were
	NoRoom    uint64              // packets that are in no reason
	Missed    uint64              // packets that the program didn't see
	Attached  bool
	Names     map[uint32]string // of reasons, as the running kernel has them
	Locations map[uint64]string // symbols of Entries' locations, as far as they are known
}

// Sampler reads a loaded instance.
type Sampler interface {
	// Sample returns what is known now; fault.ErrNotFound if the instance isn't
	// loaded or has no such maps.
	Sample(ctx context.Context) (Sample, error)
}
