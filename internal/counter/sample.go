// Package counter is the Go side of xdp-counter: it reads the packets and bytes
// that the program counts for each interface and protocol and turns two
// readings into totals and rates. It never writes a counter.
package counter

import (
	"context"
	"time"
)

// Counter is packets and bytes. Bytes are frame lengths without the checksum.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func (c *Counter) add(other Counter) {
	c.Packets += other.Packets
	c.Bytes += other.Bytes
}

// Classes are the counters of one interface, in the order of the BPF side's
// struct interface_counters. Each packet is in exactly one, so that their sum is
// the interface's total. The last three are reserved and 0.
type Classes [16]Counter

func (c Classes) total() Counter {
	var total Counter
	for _, counter := range c {
		total.add(counter)
	}
	return total
}

// Sample is one reading of a loaded instance. Counters are summed over CPUs.
type Sample struct {
	Time       time.Time
	Interfaces map[uint32]Classes // by ifindex; 0: indices beyond the map
	Devices    map[uint32]string  // ifindex -> name, of the attached devices
}

// Sampler reads the counters of one loaded instance.
type Sampler interface {
	// Sample returns the counters as they are now; fault.ErrNotFound if the
	// instance isn't loaded or has no such maps.
	Sample(ctx context.Context) (Sample, error)
}
