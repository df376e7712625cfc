package counter

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"bpfnet/internal/datapath"
)

// Reader is the Sampler of a loaded instance. It opens the maps for each
// sample, so that it follows an instance that is replaced.
type Reader struct {
	api      datapath.API
	instance string
}

// NewReader returns a Sampler for a loaded instance of xdp-counter. It doesn't
// touch the kernel before the first sample.
func NewReader(api datapath.API, instance string) *Reader {
	return &Reader{api: api, instance: instance}
}

// Sample implements Sampler.
func (r *Reader) Sample(ctx context.Context) (Sample, error) {
	attachments, err := r.api.Attachments(ctx, r.instance)
	if err != nil {
		return Sample{}, err
	}
	s := Sample{Time: time.Now(), Interfaces: map[uint32]Classes{}, Devices: devices(attachments)}
	return s, datapath.WalkMap(ctx, r.api, r.instance, "interfaces", s.see)
}

// devices names the interfaces that are attached.
func devices(attachments []datapath.Attachment) map[uint32]string {
	names := map[uint32]string{}
	for _, a := range attachments {
		if a.IfIndex != nil && a.DevName != nil && !a.Defunct {
			names[*a.IfIndex] = *a.DevName
		}
	}
	return names
}

// see keeps an interface that has counted something or is attached.
func (s *Sample) see(key, value []byte) error {
	index, sum := binary.NativeEndian.Uint32(key), sum(value)
	_, attached := s.Devices[index]
	if attached || sum.total().Packets > 0 {
		s.Interfaces[index] = sum
	}
	return nil
}

// counterSize is the size of a bpf.Counter.
const counterSize = 16

// sum adds up the bpf.InterfaceCounters of all CPUs.
func sum(perCPU []byte) Classes {
	var sum Classes
	for cpu := range slices.Chunk(perCPU, len(sum)*counterSize) {
		for class := range sum {
			c := cpu[class*counterSize:]
			sum[class].add(Counter{binary.NativeEndian.Uint64(c), binary.NativeEndian.Uint64(c[8:])})
		}
	}
	return sum
}
