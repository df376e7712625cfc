package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
)

// mostAnswers is about how many answers Read returns at once.
const mostAnswers = 1024

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
// for one goroutine, but for Close.
type Reader struct {
	ring     *ringbuf.Reader
	record   ringbuf.Record
	streams  *streams
	event    bpf.DNSEvent // that is being read
	answers  []Answer
	counters Counters
}

// Open returns a reader of the map dns_events. The map may be closed afterwards.
func Open(m *ebpf.Map) (*Reader, error) {
	ring, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, fmt.Errorf("read DNS answers: %w", err)
	}
	return newReader(ring), nil
}

func newReader(ring *ringbuf.Reader) *Reader {
	r := &Reader{ring: ring}
	r.streams = newStreams(r.whole)
	return r
}

// Read waits for answers and returns those that are there. It fails with the
// cause when the context ends, and with os.ErrClosed after Close; what was read
// before is returned, too.
func (r *Reader) Read(ctx context.Context) ([]Answer, error) {
	stop := context.AfterFunc(ctx, func() { _ = r.ring.Flush() })
	defer stop()
	r.answers = nil
	r.ring.SetDeadline(time.Time{})
	for {
		if ctx.Err() != nil {
			return r.answers, context.Cause(ctx)
		}
		err := r.ring.ReadInto(&r.record)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && len(r.answers) > 0:
			return r.answers, nil
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ringbuf.ErrFlushed):
			continue // of an earlier call
		case err != nil:
			return r.answers, fmt.Errorf("read DNS answers: %w", err)
		}
		r.take(r.record.RawSample)
		switch {
		case len(r.answers) == 0:
		case r.record.Remaining == 0 || len(r.answers) >= mostAnswers:
			return r.answers, nil
		default:
			r.ring.SetDeadline(time.Unix(1, 0)) // what remains may be nothing that is told
		}
	}
}

// Counters returns what couldn't be told.
func (r *Reader) Counters() Counters {
	c := r.counters
	c.Incomplete += r.streams.incomplete
	return c
}

// Close ends a Read that waits.
func (r *Reader) Close() error { return r.ring.Close() }

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
