package flow

import (
	"fmt"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
)

// ring reads records that programs write round and round. It takes nothing out, so that
// there may be many readers.
type ring struct {
	m    *ebpf.Map
	next uint64                 // the number of the record that is read next, from 0 on
	head func() (uint64, error) // how many records were begun, ever
}

// since reads what was written after the last time, up to the record before end. What
// was overwritten meanwhile is lost.
func (r *ring) since(end uint64) (records []bpf.FlowRecord, lost uint64, err error) {
	size := uint64(r.m.MaxEntries())
	if end-r.next > size {
		lost = end - r.next - size
		r.next = end - size
	}
	for r.next < end {
		to := min(end, r.next+atOnce)
		some, gone, err := r.read(to, size)
		records, lost = append(records, some...), lost+gone
		if err != nil || r.next < to {
			return records, lost, err
		}
	}
	return records, lost, nil
}

// atOnce is how many records are read before it is looked whether they were written over
// meanwhile.
const atOnce = 256

// read reads up to the record before end, or before one that is being written.
func (r *ring) read(end, size uint64) (records []bpf.FlowRecord, lost uint64, err error) {
	records = make([]bpf.FlowRecord, 0, end-r.next)
	for ; r.next < end; r.next++ {
		records = append(records, bpf.FlowRecord{})
		last := len(records) - 1
		if err := r.m.Lookup(uint32(r.next%size), &records[last]); err != nil {
			return nil, lost, fmt.Errorf("read a log of sockets: %w", err)
		}
		sequence := records[last].Sequence
		if sequence != r.next+1 {
			records = records[:last]
		}
		if sequence <= r.next {
			begun, err := r.head()
			if err != nil {
				return nil, lost, err
			}
			if begun <= r.next+size {
				break // it is being written: next time
			}
		}
		if sequence != r.next+1 {
			lost++
		}
	}
	torn, err := r.torn(records, size)
	return records[torn:], lost + uint64(torn), err
}

// torn is how many records, the first ones, may have been written over while they were
// read.
func (r *ring) torn(records []bpf.FlowRecord, size uint64) (n int, err error) {
	begun, err := r.head()
	for err == nil && n < len(records) && records[n].Sequence+size <= begun {
		n++
	}
	return n, err
}
