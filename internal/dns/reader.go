package dns

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
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
// lost is in its map dns_rows.
type Counters struct {
	Malformed  uint64 // responses that can't be read
	Incomplete uint64 // pieces of responses whose rest wasn't seen: fragments, segments of TCP; of a fragment the addresses that it has are told
	Ignored    uint64 // other responses: about names that no host can have, other operations than queries
}

// Reader reads the ring buffer of program dns, which one reader empties. It is
// for one goroutine.
type Reader struct {
	records  *maps.Records
	streams  *streams
	event    bpf.DNSEvent // that is being read
	answers  []Answer
	counters Counters
}

// Open reads a map dns_events, called ref in errors, and closes it in the end. It
// has one reader, as maps.OpenRecords says.
func Open(ctx context.Context, m *ebpf.Map, ref string, lockTimeout time.Duration, steal bool) (*Reader, error) {
	records, err := maps.OpenRecords(ctx, m, ref, lockTimeout, steal)
	if err != nil {
		return nil, err
	}
	r := newReader()
	r.records = records
	return r, nil
}

func newReader() *Reader {
	r := &Reader{}
	r.streams = newStreams(r.whole)
	return r
}

// Notes is what there is to say about other readers.
func (r *Reader) Notes() []string { return r.records.Notes }

// Read emits answers as they come, until emit fails or ctx ends, which is no error.
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
		Idle: func() error { return nil },
	})
}

// Counters returns what couldn't be told.
func (r *Reader) Counters() Counters {
	c := r.counters
	c.Incomplete += r.streams.incomplete
	return c
}

// Close closes the ring buffer.
func (r *Reader) Close() error { return r.records.Close() }

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
