package dns

import (
	"context"
	"encoding/binary"
	"errors"
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

// Counters are what couldn't be made an answer or an exchange of, since the reader was
// opened. What the program lost is in Lost.
type Counters struct {
	Malformed  uint64 // messages that can't be read
	Incomplete uint64 // pieces of messages whose rest wasn't seen: fragments, segments of TCP; of a fragment the records that it has are told
	Ignored    uint64 // other messages: other operations than queries, and to a Reader answers about names that no host can have
}

// ring reads the ring buffer of program dns, which one reader empties. It is for one
// goroutine.
type ring struct {
	pinned   Maps
	instance string
	id       ebpf.MapID // of the ring buffer
	checked  time.Time
	rows     *ebpf.Map
	begun    uint64 // what was lost before
	records  *maps.Records
	streams  *streams
	event    bpf.DNSEvent                   // that is being read
	query    bool                           // it is one
	message  func(message []byte, all bool) // takes a message of which all is there, or only the beginning
	counters Counters
}

// Reader reads the answers that program dns sees.
type Reader struct {
	ring
	answers []Answer
}

// Maps opens the pinned maps of instances.
type Maps interface {
	OpenMap(instance, name string, readOnly bool) (*ebpf.Map, error)
}

// Open reads the answers that an instance of the program sees. They have one reader,
// as maps.OpenRecords says.
func Open(ctx context.Context, pinned Maps, instance string, lockTimeout time.Duration, steal bool) (*Reader, error) {
	r := newReader()
	if err := r.open(ctx, pinned, instance, lockTimeout, steal, 0); err != nil {
		return nil, err
	}
	return r, nil
}

// open opens the maps; queries is 1 if the program is to tell of queries, too.
func (r *ring) open(ctx context.Context, pinned Maps, instance string, lockTimeout time.Duration, steal bool, queries uint32) error {
	events, err := pinned.OpenMap(instance, eventsMap, false)
	if err != nil {
		return err
	}
	r.pinned, r.instance, r.id, r.checked = pinned, instance, idOf(events), time.Now()
	if r.records, err = maps.OpenRecords(ctx, events, instance+"/"+eventsMap, lockTimeout, steal); err != nil {
		return err
	}
	if r.rows, err = pinned.OpenMap(instance, rowsMap, true); err == nil {
		r.begun, err = r.lost()
	}
	if err == nil {
		err = setQueries(pinned, instance, queries)
	}
	if err != nil {
		return fault.Join(err, r.Close())
	}
	return nil
}

// setQueries says whether the program is to tell of queries.
func setQueries(pinned Maps, instance string, wanted uint32) error {
	queries, err := pinned.OpenMap(instance, queriesMap, false)
	switch {
	case errors.Is(err, fault.ErrNotFound) && wanted == 0:
		return nil // an older program doesn't
	case errors.Is(err, fault.ErrNotFound):
		return fault.New(fault.ErrNotFound, "%w", err).Hint("an older bpfnet has loaded it: bpfnet load dns --replace --name %s", instance)
	case err != nil:
		return err
	}
	defer queries.Close()
	if err := queries.Put(uint32(0), wanted); err != nil {
		return fmt.Errorf("write map %s/%s: %w", instance, queriesMap, err)
	}
	return nil
}

const (
	eventsMap  = "dns_events"
	queriesMap = "dns_queries"
	rowsMap    = "dns_rows"
)

// Lost is how many messages found no room since the reader was opened; it may be called while Read
// runs.
func (r *ring) Lost() (uint64, error) {
	now, err := r.lost()
	return now - r.begun, err
}

func (r *ring) lost() (uint64, error) { return lostOf(r.rows) }

// Lost is how many messages found no room since an instance was loaded, also while
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
	r.streams, r.message = newStreams(r.whole), r.take
	return r
}

// Notes is what there is to say about other readers.
func (r *ring) Notes() []string { return r.records.Notes }

// Read emits answers as they come, until emit fails or ctx ends, which is no error.
// ErrNotFound says that the maps are no longer pinned.
func (r *Reader) Read(ctx context.Context, emit func([]Answer) error) error {
	return r.read(ctx, func() error {
		answers := r.answers
		r.answers = nil
		if len(answers) == 0 {
			return nil
		}
		return emit(answers)
	}, func() error { return nil })
}

// read reads records; done is called when some were read, which are taken out of the
// map if it doesn't fail, and idle when there are none for a while.
func (r *ring) read(ctx context.Context, done, idle func() error) error {
	return r.records.Read(ctx, maps.Reading{
		Emit: func(records [][]byte) error {
			for _, record := range records {
				r.record(record)
			}
			return done()
		},
		Most: func() int { return mostRecords },
		Idle: func() error {
			if err := idle(); err != nil {
				return err
			}
			return r.check()
		},
	})
}

// checkInterval is the time between two looks whether the maps are still pinned.
const checkInterval = time.Second

func (r *ring) check() error {
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

// Drained says whether all answers that have come were told. It may be called while Read
// runs.
func (r *Reader) Drained() bool { return r.records.Waiting(0) == 0 }

// Counters are what couldn't be told.
func (r *ring) Counters() Counters {
	c := r.counters
	c.Incomplete += r.streams.incomplete
	return c
}

// Close closes the maps.
func (r *ring) Close() error { return fault.Join(r.records.Close(), r.rows.Close()) }

// record reads a record.
func (r *ring) record(sample []byte) {
	e := &r.event
	head, err := binary.Decode(sample, binary.NativeEndian, e)
	if err != nil || int(e.Captured) > len(sample)-head {
		r.counters.Malformed++
		return
	}
	payload := sample[head:][:e.Captured]
	if e.Protocol == unix.IPPROTO_UDP {
		r.query = isQuery(payload)
		r.message(payload, len(payload) == int(e.Length))
		return
	}
	r.query = e.SourcePort != serverPort
	server, client := r.ends()
	key := flowKey{server, client, e.Ifindex, e.Direction, e.Hook, r.query}
	begins := e.TcpFlags&tcpSYN != 0 && e.Offset == 0
	ends := e.TcpFlags&(tcpFIN|tcpRST) != 0 && e.Offset+e.Captured >= e.Length
	r.streams.add(key, segment{e.Sequence, payload}, begins, ends, time.Duration(e.Time))
}

// whole takes a message of a stream.
func (r *ring) whole(message []byte) { r.message(message, true) }

// take takes a response.
func (r *Reader) take(message []byte, all bool) {
	if r.query {
		return // another reader wanted it
	}
	a, whole, err := decode(message)
	if !r.count(whole, all, err) {
		return
	}
	e := &r.event
	a.Time, a.IfIndex, a.CgroupID, a.Transport = time.Duration(e.Time), e.Ifindex, e.CgroupId, transportOf(e)
	a.Server, a.Client = r.ends()
	r.answers = append(r.answers, a)
}

// count counts a message that isn't whole, and says whether it can be told.
func (r *ring) count(whole, all bool, err error) bool {
	switch {
	case err == errIgnored:
		r.counters.Ignored++
		return false
	case !whole && all:
		r.counters.Malformed++
	case !whole:
		r.counters.Incomplete++
	}
	return err == nil
}

// serverPort is the port of DNS servers.
const serverPort = 53

// ends are those of the event.
func (r *ring) ends() (server, client netip.AddrPort) {
	e := &r.event
	source := netip.AddrPortFrom(netip.AddrFrom16(e.Source.In6U.U6Addr8).Unmap(), e.SourcePort)
	destination := netip.AddrPortFrom(netip.AddrFrom16(e.Destination.In6U.U6Addr8).Unmap(), e.DestinationPort)
	if r.query {
		return destination, source
	}
	return source, destination
}

func transportOf(e *bpf.DNSEvent) string {
	if e.Protocol == unix.IPPROTO_UDP {
		return "udp"
	}
	return "tcp"
}
