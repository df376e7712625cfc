// Package peers is the Go side of the program peers: it reads whom Pods contact, and
// whether they were answered. It never changes an entry.
package peers

import (
	"context"
	"net/netip"
	"time"

	"bpfnet/internal/traffic"
)

// Key tells one entry from another.
type Key struct {
	Endpoint traffic.Key
	Protocol uint8 // of IP
	Address  netip.Addr
	Port     uint16 // 0: the transport has none
}

// Entry is what is known of a peer.
type Entry struct {
	Counters
	FirstSeen, LastSeen time.Time

	// Before is what the counters were in the sample before; nil: the entry is
	// another one than was there, or none was.
	Before *Counters
}

// Sample is one reading of a loaded instance.
type Sample struct {
	Time      time.Time
	First     bool // no sample was taken before
	Endpoints map[traffic.Key]Connections
	Peers     map[Key]Entry // of the first sample all, else those that aren't as in the sample before
	Made      uint64        // entries that were ever made, read before the entries were
	NoRoom    uint64        // connections of endpoints that found no room
	Attached  []traffic.Point
	Devices   map[uint32]string // ifindex -> name, of the attached devices
}

// Sampler reads a loaded instance.
type Sampler interface {
	// Sample returns what is known now; fault.ErrNotFound if the instance isn't
	// loaded or has no such maps. After an error the next one is the first again.
	Sample(ctx context.Context) (Sample, error)
}
