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
	next uint64 // the number of the record that is read next, from 0 on
}

// since reads what was written after the last time, up to the record before end. What
// was overwritten meanwhile is lost.
func (r *ring) since(end uint64) (records []bpf.FlowRecord, lost uint64, err error) {
	size := uint64(r.m.MaxEntries())
	if end-r.next > size {
		lost = end - r.next - size
		r.next = end - size
	}
	records = make([]bpf.FlowRecord, 0, end-r.next)
	for ; r.next < end; r.next++ {
		var record bpf.FlowRecord
		if err := r.m.Lookup(uint32(r.next%size), &record); err != nil {
			return nil, lost, fmt.Errorf("read what was closed: %w", err)
		}
		if record.Sequence == 0 || record.Sequence <= r.next {
			return records, lost, nil // it is being written: next time
		}
		if record.Sequence != r.next+1 {
			lost++
			continue
		}
		records = append(records, record)
	}
	return records, lost, nil
}
