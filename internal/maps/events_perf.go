package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// perfPages is the size of each CPU's buffer, in pages; a power of two.
const perfPages = 32

// What comes before data, in bytes.
const (
	perfHeader   = 8  // struct perf_event_header
	sampleHeader = 12 // of a sample: u64 time, u32 size
)

// preserveElements is BPF_F_PRESERVE_ELEMS: slots stay taken when the process
// that took them is gone.
const preserveElements = 1 << 11

// perf reads a perf event array: each CPU writes into a buffer of its own,
// which is ours, and which its slot of the map leads to.
type perf struct {
	h       *handle
	open    bool // the slots lead to our buffers
	buffers []*perfBuffer
	turn    int // of the buffers, whose records are taken next
	clock   time.Duration
}

// perfBuffer is the buffer of one CPU.
type perfBuffer struct {
	cpu      int
	fd       int
	memory   []byte // a page of struct perf_event_mmap_page, and the data
	data     []byte
	at       uint64 // what next has handed out
	whole    []byte // a record that lay in two pieces
	reported uint64 // lost records that records told of
	pending  uint64 // those that the next record will tell of
}

// openPerf takes a slot for each CPU, with buffers of so many pages.
func openPerf(h *handle, pages int) (*perf, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count CPUs: %w", err)
	}
	p := &perf{h: h, open: true, clock: sinceBoot()}
	for cpu := range min(cpus, int(h.MaxEntries())) {
		b, err := openPerfBuffer(cpu, pages)
		if errors.Is(err, unix.ENODEV) {
			continue // it is off
		}
		if err == nil {
			p.buffers = append(p.buffers, b)
			err = b.takeSlot(h)
		}
		if err != nil {
			return nil, fault.Join(perfError(h, err), p.close())
		}
	}
	return p, nil
}

func perfError(h *handle, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.ErrPermission, "read events of map %s: %w", h.about.Ref, err).
			Hint("buffers of all CPUs take CAP_PERFMON, or CAP_SYS_ADMIN before Linux 5.8")
	}
	return fmt.Errorf("read events of map %s: %w", h.about.Ref, err)
}

func openPerfBuffer(cpu, pages int) (*perfBuffer, error) {
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_BPF_OUTPUT,
		Sample_type: unix.PERF_SAMPLE_RAW | unix.PERF_SAMPLE_TIME,
		Bits:        unix.PerfBitWatermark | unix.PerfBitUseClockID, Clockid: unix.CLOCK_MONOTONIC,
		Wakeup:      1, // byte: wake us for each record
		Read_format: unix.PERF_FORMAT_LOST,
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	fd, err := unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.0 they can't be counted
		attr.Read_format = 0
		fd, err = unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("open the buffer of CPU %d: %w", cpu, err)
	}
	page := os.Getpagesize()
	memory, err := unix.Mmap(fd, 0, (1+pages)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fault.Join(fmt.Errorf("map the buffer of CPU %d: %w", cpu, err), unix.Close(fd))
	}
	return &perfBuffer{cpu: cpu, fd: fd, memory: memory, data: memory[page:]}, nil
}

func (b *perfBuffer) takeSlot(h *handle) error {
	err := element(unix.BPF_MAP_UPDATE_ELEM, h.FD(), slot(b.cpu), binary.NativeEndian.AppendUint32(nil, uint32(b.fd)), 0)
	if err != nil {
		return fmt.Errorf("take the slot of CPU %d: %w", b.cpu, err)
	}
	return nil
}

func slot(cpu int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(cpu)) }

// sinceBoot is what CLOCK_MONOTONIC, which the kernel stamps records with, is
// behind the time of day.
func sinceBoot() time.Duration {
	var monotonic unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic) // it has no errors for a clock that exists
	return time.Duration(time.Now().UnixNano() - monotonic.Nano())
}

func (p *perf) next() (record, bool, error) {
	for range p.buffers {
		b := p.buffers[p.turn]
		r, ok, err := b.next()
		if ok || err != nil {
			r.time = r.time.Add(p.clock)
			return r, ok, err
		}
		p.turn = (p.turn + 1) % len(p.buffers)
	}
	return record{}, false, nil
}

// next takes the next record out of the buffer.
func (b *perfBuffer) next() (record, bool, error) {
	for {
		kind, body, err := b.take()
		if body == nil || err != nil {
			return record{}, false, err
		}
		switch {
		case kind == unix.PERF_RECORD_LOST && len(body) >= 16: // u64 id, u64 lost
			b.pending += binary.NativeEndian.Uint64(body[8:])
		case kind == unix.PERF_RECORD_SAMPLE && holdsSample(body):
			return b.record(body), true, nil
		case kind == unix.PERF_RECORD_LOST, kind == unix.PERF_RECORD_SAMPLE:
			return record{}, false, b.damaged()
		}
	}
}

// take takes what comes next out of the buffer, of whatever kind it is; body is
// nil when nothing comes.
func (b *perfBuffer) take() (kind uint32, body []byte, err error) {
	meta := (*unix.PerfEventMmapPage)(unsafe.Pointer(unsafe.SliceData(b.memory)))
	written := atomic.LoadUint64(&meta.Data_head) - b.at
	if written == 0 {
		return 0, nil, nil
	}
	header := b.bytes(b.at, perfHeader) // 8 bytes aligned by 8 are never in two pieces
	kind, length := binary.NativeEndian.Uint32(header), uint64(binary.NativeEndian.Uint16(header[6:]))
	if length < perfHeader || length > written || written > uint64(len(b.data)) {
		return 0, nil, b.damaged()
	}
	body = b.bytes(b.at, length)[perfHeader:]
	b.at += length
	return kind, body, nil
}

// holdsSample says whether a body has all the data that it says it has.
func holdsSample(body []byte) bool {
	return len(body) >= sampleHeader && uint64(binary.NativeEndian.Uint32(body[8:])) <= uint64(len(body)-sampleHeader)
}

func (b *perfBuffer) damaged() error { return fmt.Errorf("the buffer of CPU %d is damaged", b.cpu) }

func (b *perfBuffer) record(body []byte) record {
	r := record{
		data: body[sampleHeader:][:binary.NativeEndian.Uint32(body[8:])],
		time: time.Unix(0, int64(binary.NativeEndian.Uint64(body))),
		cpu:  b.cpu, lost: b.pending,
	}
	b.reported, b.pending = b.reported+b.pending, 0
	return r
}

// bytes returns a part of the data, which is a circle.
func (b *perfBuffer) bytes(at, length uint64) []byte {
	size := uint64(len(b.data))
	start := at & (size - 1)
	if start+length <= size {
		return b.data[start : start+length]
	}
	b.whole = append(append(b.whole[:0], b.data[start:]...), b.data[:start+length-size]...)
	return b.whole
}

func (p *perf) release() {
	for _, b := range p.buffers {
		meta := (*unix.PerfEventMmapPage)(unsafe.Pointer(unsafe.SliceData(b.memory)))
		atomic.StoreUint64(&meta.Data_tail, b.at)
	}
	p.clock = sinceBoot()
	if len(p.buffers) > 0 {
		p.turn = (p.turn + 1) % len(p.buffers) // one busy CPU doesn't keep the others waiting
	}
}

func (p *perf) wait(w *waker) error {
	descriptors := make([]int, len(p.buffers))
	for i, b := range p.buffers {
		descriptors[i] = b.fd
	}
	return w.wait(waitLongest, descriptors...)
}

// leave gives the slots back. What is in the buffers is lost with them.
func (p *perf) leave() (rest bool, err error) {
	if !p.open {
		return true, nil
	}
	p.open = false
	if p.h.about.Flags&preserveElements != 0 {
		for _, b := range p.buffers {
			freed := element(unix.BPF_MAP_DELETE_ELEM, p.h.FD(), slot(b.cpu), nil, 0)
			if freed != nil && !errors.Is(freed, unix.ENOENT) {
				err = fault.Join(err, fmt.Errorf("free the slot of CPU %d: %w", b.cpu, freed))
			}
		}
	}
	return true, fault.Join(err, p.h.Close()) // frees the slots that were taken through it, and no others
}

func (p *perf) lost() []CPULost {
	var all []CPULost
	for _, b := range p.buffers {
		if n := b.lost(); n > 0 {
			all = append(all, CPULost{b.cpu, n})
		}
	}
	return all
}

// lost counts the records that found no space: what the kernel counts includes
// those that no record has told of yet.
func (b *perfBuffer) lost() uint64 {
	var counts [16]byte // u64 value, u64 lost
	told := b.reported + b.pending
	if n, err := unix.Read(b.fd, counts[:]); err != nil || n < len(counts) {
		return told
	}
	return max(told, binary.NativeEndian.Uint64(counts[8:]))
}

func (p *perf) close() error {
	_, err := p.leave()
	for _, b := range slices.Backward(p.buffers) {
		err = fault.Join(err, unix.Munmap(b.memory), unix.Close(b.fd))
	}
	p.buffers = nil
	return err
}
