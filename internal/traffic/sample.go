// Package traffic is the Go side of pod-traffic: it reads the counters that the
// program keeps for each Pod address and turns two readings into totals, rates
// and a top list whose sums match what passed. It never changes a counter, and
// removes those of interfaces that have gone when it is told to.
package traffic

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Point is where packets were seen. The same packet passes several points, so
// counts of different points are never added up.
type Point string

// The points that pod-traffic counts at.
const (
	TC     Point = "tc"     // a device; bytes include the link-layer header
	Cgroup Point = "cgroup" // a cgroup's sockets; bytes start at the IP header
)

// Counters are bytes and packets as the Pod sees them: transmit is what the Pod
// sent. Packets are segments. They only grow while an instance is loaded.
type Counters struct {
	TransmitBytes   uint64 `json:"transmit_bytes"`
	TransmitPackets uint64 `json:"transmit_packets"`
	ReceiveBytes    uint64 `json:"receive_bytes"`
	ReceivePackets  uint64 `json:"receive_packets"`
}

// Add adds other counters.
func (c *Counters) Add(other Counters) {
	c.TransmitBytes += other.TransmitBytes
	c.TransmitPackets += other.TransmitPackets
	c.ReceiveBytes += other.ReceiveBytes
	c.ReceivePackets += other.ReceivePackets
}

func (c Counters) bytes() uint64   { return c.TransmitBytes + c.ReceiveBytes }
func (c Counters) packets() uint64 { return c.TransmitPackets + c.ReceivePackets }

// Key tells one Pod's counters from another's.
type Key struct {
	Point    Point
	Address  netip.Addr
	IfIndex  uint32 // at tc: the device; otherwise 0
	CgroupID uint64 // at cgroup: the socket's cgroup; otherwise 0
}

// Compare orders keys of one point.
func (k Key) Compare(o Key) int {
	return cmp.Or(k.Address.Compare(o.Address), cmp.Compare(k.IfIndex, o.IfIndex), cmp.Compare(k.CgroupID, o.CgroupID))
}

// Row names counters of packets that belong to no Pod's entry.
type Row struct {
	Point Point
	Name  string // "non_ip", "truncated", "too_deep", "map_full", "not_a_pod", "multicast", "unspecified"
}

// Sample is one reading of a loaded instance. Counters are summed over CPUs.
type Sample struct {
	Time     time.Time
	Pods     map[Key]Counters
	Rows     map[Row]Counters
	Attached []Point           // where the instance is attached now
	Devices  map[uint32]string // ifindex -> name, of the attached devices
}

// Default returns the point to show when none is asked for, as DefaultPoint does.
func (s Sample) Default(bypassed bool) (point Point, several bool) {
	return DefaultPoint(s.Attached, bypassed)
}

// DefaultPoint returns the point to show of an instance when none is asked for: the
// one that it is attached at, or tc if it is attached at both or at neither; of both
// it is cgroup if packets are known to bypass tc. several says that there was a
// choice.
func DefaultPoint(attached []Point, bypassed bool) (point Point, several bool) {
	tc, cgroup := slices.Contains(attached, TC), slices.Contains(attached, Cgroup)
	if cgroup && (!tc || bypassed) {
		return Cgroup, tc
	}
	return TC, tc && cgroup
}

// Transport is the word for a protocol of IP, or its number; "" for 0, an unknown one.
func Transport(protocol uint8) string {
	switch protocol {
	case 0:
		return ""
	case 1, 58:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 132:
		return "sctp"
	}
	return strconv.Itoa(int(protocol))
}

// Sampler reads the counters of one loaded instance.
type Sampler interface {
	// Sample returns the counters as they are now; fault.ErrNotFound if the
	// instance isn't loaded or has no such maps.
	Sample(ctx context.Context) (Sample, error)
}
