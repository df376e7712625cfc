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

// classes is how many classes the program tells apart.
const classes = 13

// Classes are the counters of one interface. Each packet is in exactly one, so
// that their sum is the interface's total. The order is that of the BPF side's
// struct interface_counters and of the names in this package's documents.
type Classes [classes]Counter

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
	Total      Counter            // everything the program has seen
	Interfaces map[uint32]Classes // by ifindex; 0: indices beyond the map
	Devices    map[uint32]string  // ifindex -> name, of the attached devices
}

// Sampler reads the counters of one loaded instance.
type Sampler interface {
	// Sample returns the counters as they are now; fault.ErrNotFound if the
	// instance isn't loaded or has no such maps.
	Sample(ctx context.Context) (Sample, error)
}
