package counter

import (
	"context"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
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
	instances, err := r.api.Instances(ctx, r.instance)
	if err != nil {
		return Sample{}, err
	}
	if len(instances) != 1 {
		return Sample{}, fault.New(fault.ErrNotFound, "read %s: not loaded", r.instance)
	}
	s := Sample{Time: time.Now(), Interfaces: map[uint32]Classes{}, Devices: devices(instances[0].Attachments)}
	return s, r.read("interfaces", s.readInterfaces)
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

// readInterfaces keeps the interfaces that have counted something or are
// attached.
func (s *Sample) readInterfaces(m *ebpf.Map) error {
	var perCPU []Classes
	for index := range m.MaxEntries() {
		if err := m.Lookup(index, &perCPU); err != nil {
			return err
		}
		var sum Classes
		for _, cpu := range perCPU {
			for class := range sum {
				sum[class].add(cpu[class])
			}
		}
		_, attached := s.Devices[index]
		if attached || sum.total().Packets > 0 {
			s.Interfaces[index] = sum
		}
	}
	return nil
}

// read opens a map of the instance for fn.
func (r *Reader) read(name string, fn func(*ebpf.Map) error) error {
	m, err := r.api.OpenMap(r.instance, name, true)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := fn(m); err != nil {
		return fmt.Errorf("read %s/%s: %w", r.instance, name, err)
	}
	return nil
}
