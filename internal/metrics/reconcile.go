package metrics

import (
	"maps"
	"slices"
	"strings"

	"bpfnet/internal/datapath"
	"bpfnet/internal/traffic"
)

// comparison compares what an instance of pod-traffic counts at tc with what its
// interfaces count themselves. Between two readings with other attachments it says
// nothing: what an interface has of before it was attached can't be told, nor what one
// has of after it was read last.
type comparison struct {
	attached map[attached]bool // at the reading before; empty: there is none to go on from
	kinds    map[uint32]string // of these interfaces
	last     reconciled
	sum      reconciled
}

// attached is a program that hangs somewhere, until it is attached anew.
type attached struct {
	hook    string
	ifindex uint32
	program datapath.ObjectID
	link    uint32
}

// reconciled are bytes in both directions.
type reconciled struct{ counted, passed uint64 }

// pairs are the kinds of interfaces that count the packets that tc sees, and not what
// they were on a wire.
var pairs = []string{"veth", "netkit"}

// reconcile writes how much an instance has counted of what passed its interfaces since
// the exporter started, where that can be said. The sample was taken after the instance
// was read.
func (e *Exporter) reconcile(s *snapshot, in datapath.Instance, sample traffic.Sample) error {
	c := e.compared[in.Name]
	if c == nil {
		c = &comparison{}
		e.compared[in.Name] = c
	}
	before := c.attached
	c.attached = nil
	hanging := hangingAtTC(in)
	if prefixes := in.Parameters["match_prefixes"]; len(hanging) == 0 || prefixes != "" && prefixes != "0" {
		return nil // with prefixes a packet between two Pods is counted twice
	}
	now, err := e.source.InterfaceBytes()
	if err != nil {
		return err
	}
	devices := bothWays(in, now.NetNS)
	if whole, err := e.exact(c, devices, sample); err != nil || !whole {
		return err
	}
	reading := reconciled{counted: countedAt(devices, sample)}
	for index := range devices {
		passed, ok := now.Bytes[index]
		if !ok {
			return nil // it has gone
		}
		reading.passed += passed
	}
	if maps.Equal(before, hanging) && reading.counted >= c.last.counted && reading.passed >= c.last.passed {
		c.sum.counted += reading.counted - c.last.counted
		c.sum.passed += reading.passed - c.last.passed
	}
	c.attached, c.last = hanging, reading
	if c.sum.passed > 0 {
		s.set(reconcileRatio, float64(c.sum.counted)/float64(c.sum.passed), in.Name)
	}
	return nil
}

func hangingAtTC(in datapath.Instance) map[attached]bool {
	all := map[attached]bool{}
	for _, a := range in.Attachments {
		if a.Defunct || a.IfIndex == nil {
			continue
		}
		one := attached{hook: a.Hook, ifindex: *a.IfIndex, program: a.ProgID}
		if a.LinkID != nil {
			one.link = *a.LinkID
		}
		all[one] = true
	}
	return all
}

// bothWays returns the interfaces that an instance counts at, none if one of them is in
// another namespace or counted in one direction only, as what is no Pod's is counted for
// all of them together.
func bothWays(in datapath.Instance, netns uint64) map[uint32]bool {
	directions, devices := map[uint32]string{}, map[uint32]bool{}
	for _, a := range in.Attachments {
		if a.Defunct || a.IfIndex == nil {
			continue
		}
		if a.NetNS == nil || *a.NetNS != netns {
			return nil
		}
		_, direction, _ := strings.Cut(a.Hook, "_")
		if before := directions[*a.IfIndex]; before != "" && before != direction {
			devices[*a.IfIndex] = true
		}
		directions[*a.IfIndex] = direction
	}
	if len(devices) != len(directions) {
		return nil
	}
	return devices
}

// exact says whether interfaces are all that a sample is of, and count the same packets
// once.
func (e *Exporter) exact(c *comparison, devices map[uint32]bool, sample traffic.Sample) (bool, error) {
	if len(devices) == 0 || len(devices) != len(sample.Devices) {
		return false, nil
	}
	kinds, unknown := map[uint32]string{}, []uint32{}
	for index := range devices {
		if _, ok := sample.Devices[index]; !ok {
			return false, nil
		}
		kind, ok := c.kinds[index]
		if !ok {
			unknown = append(unknown, index)
			continue
		}
		kinds[index] = kind
	}
	if len(unknown) > 0 {
		found, err := e.source.InterfaceKinds(unknown)
		if err != nil {
			return false, err
		}
		maps.Copy(kinds, found)
	}
	c.kinds = kinds
	for index := range devices {
		if !slices.Contains(pairs, kinds[index]) {
			return false, nil
		}
	}
	return true, nil
}

// countedAt adds up what a sample has at interfaces.
func countedAt(devices map[uint32]bool, sample traffic.Sample) (sum uint64) {
	for key, c := range sample.Pods {
		if key.Point == traffic.TC && devices[key.IfIndex] {
			sum += bytesOf(c)
		}
	}
	for row, c := range sample.Rows {
		if row.Point == traffic.TC {
			sum += bytesOf(c)
		}
	}
	return sum
}
