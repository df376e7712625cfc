package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// mostRecords is how many records are read before their answers are told.
const mostRecords = 64

// Flags of TCP.
const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
)

// Counters are what couldn't be made an answer of, since Open. What the program
// lost is in Lost.
type Counters struct {
	Malformed  uint64 // responses that can't be read
	Incomplete uint64 // pieces of responses whose rest wasn't seen: fragments, segments of TCP; of a fragment the addresses that it has are told
	Ignored    uint64 // other responses: about names that no host can have, other operations than queries
}

// Reader reads the ring buffer of program dns, which one reader empties. It is
// for one goroutine.
type Reader struct {
	pinned   Maps
	instance string
	id       ebpf.MapID // of the ring buffer
	checked  time.Time
	rows     *ebpf.Map
	begun    uint64 // what was lost before
	records  *maps.Records
	streams  *streams
	event    bpf.DNSEvent // that is being read
	answers  []Answer
	counters Counters
}

// Maps opens the pinned maps of instances.
type Maps interface {
	OpenMap(instance, name string, readOnly bool) (*ebpf.Map, error)
}

// Open reads the answers that an instance of the program sees. They have one reader,
// as maps.OpenRecords says.
func Open(ctx context.Context, pinned Maps, instance string, lockTimeout time.Duration, steal bool) (*Reader, error) {
	events, err := pinned.OpenMap(instance, eventsMap, false)
	if err != nil {
		return nil, err
	}
	r := newReader()
	r.pinned, r.instance, r.id, r.checked = pinned, instance, idOf(events), time.Now()
	if r.records, err = maps.OpenRecords(ctx, events, instance+"/"+eventsMap, lockTimeout, steal); err != nil {
		return nil, err
	}
	if r.rows, err = pinned.OpenMap(instance, rowsMap, true); err == nil {
		r.begun, err = r.lost()
	}
	if err != nil {
		return nil, fault.Join(err, r.Close())
	}
	return r, nil
}

const (
	eventsMap = "dns_events"
	rowsMap   = "dns_rows"
)

// Lost is how many responses found no room since Open; it may be called while Read
// runs.
func (r *Reader) Lost() (uint64, error) {
	now, err := r.lost()
	return now - r.begun, err
}

func (r *Reader) lost() (uint64, error) { return lostOf(r.rows) }

// Lost is how many responses found no room since an instance was loaded, also while
// nobody read them.
func Lost(pinned Maps, instance string) (uint64, error) {
	rows, err := pinned.OpenMap(instance, rowsMap, true)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	return lostOf(rows)
}

func lostOf(rows *ebpf.Map) (total uint64, err error) {
	var each []bpf.Counter
	if err := rows.Lookup(uint32(bpf.DNSLost), &each); err != nil {
		return 0, fmt.Errorf("read map dns_rows: %w", err)
	}
	for _, cpu := range each {
		total += cpu.Packets
	}
	return total, nil
}

func newReader() *Reader {
	r := &Reader{}
	r.streams = newStreams(r.whole)
	return r
}

// Notes is what there is to say about other readers.
func (r *Reader) Notes() []string { return r.records.Notes }

// Read emits answers as they come, until emit fails or ctx ends, which is no error.
// ErrNotFound says that the maps are no longer pinned.
func (r *Reader) Read(ctx context.Context, emit func([]Answer) error) error {
	return r.records.Read(ctx, maps.Reading{
		Emit: func(records [][]byte) error {
			r.answers = nil
			for _, record := range records {
				r.take(record)
			}
			if len(r.answers) == 0 {
				return nil
			}
			return emit(r.answers)
		},
		Most: func() int { return mostRecords },
		Idle: r.check,
	})
}

// checkInterval is the time between two looks whether the maps are still pinned.
const checkInterval = time.Second

func (r *Reader) check() error {
	if time.Since(r.checked) < checkInterval {
		return nil
	}
	r.checked = time.Now()
	events, err := r.pinned.OpenMap(r.instance, eventsMap, false)
	if err != nil {
		return err
	}
	defer events.Close()
	if idOf(events) != r.id {
		return fault.New(fault.ErrNotFound, "read events of map %s/%s: it was made anew", r.instance, eventsMap)
	}
	return nil
}

func idOf(m *ebpf.Map) (id ebpf.MapID) {
	if info, err := m.Info(); err == nil {
		id, _ = info.ID()
	}
	return id
}

// Counters returns what couldn't be told.
func (r *Reader) Counters() Counters {
	c := r.counters
	c.Incomplete += r.streams.incomplete
	return c
}

// Close closes the maps.
func (r *Reader) Close() error { return fault.Join(r.records.Close(), r.rows.Close()) }

// take reads a record.
func (r *Reader) take(sample []byte) {
	head, err := binary.Decode(sample, binary.NativeEndian, &r.event)
	if err != nil || int(r.event.Captured) > len(sample)-head {
		r.counters.Malformed++
		return
	}
	payload := sample[head:][:r.event.Captured]
	if r.event.Protocol == unix.IPPROTO_UDP {
		r.message(payload, len(payload) == int(r.event.Length))
		return
	}
	e := &r.event
	key := flowKey{serverOf(e), clientOf(e), e.Ifindex, e.Direction, e.Hook}
	begins := e.TcpFlags&tcpSYN != 0 && e.Offset == 0
	ends := e.TcpFlags&(tcpFIN|tcpRST) != 0 && e.Offset+e.Captured >= e.Length
	r.streams.add(key, segment{e.Sequence, payload}, begins, ends, time.Duration(e.Time))
}

// whole takes a message of a stream.
func (r *Reader) whole(message []byte) { r.message(message, true) }

// message takes a response of which all is there, or only the beginning.
func (r *Reader) message(message []byte, all bool) {
	a, whole, err := decode(message)
	switch {
	case err == errIgnored:
		r.counters.Ignored++
		return
	case !whole && all:
		r.counters.Malformed++
	case !whole:
		r.counters.Incomplete++
	}
	if err != nil {
		return
	}
	e := &r.event
	a.Time, a.IfIndex, a.CgroupID = time.Duration(e.Time), e.Ifindex, e.CgroupId
	a.Server, a.Client, a.Transport = serverOf(e), clientOf(e), "tcp"
	if e.Protocol == unix.IPPROTO_UDP {
		a.Transport = "udp"
	}
	r.answers = append(r.answers, a)
}

func serverOf(e *bpf.DNSEvent) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(e.Source.In6U.U6Addr8).Unmap(), e.SourcePort)
}

func clientOf(e *bpf.DNSEvent) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(e.Destination.In6U.U6Addr8).Unmap(), e.DestinationPort)
}
