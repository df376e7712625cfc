package blocklist

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

// Episode is how long after an event a hit of the same entry and the same far end
// makes no other.
const Episode = episode

// EventsRequest says how to read events.
type EventsRequest struct {
	Steal       bool          // read even if another process does
	LockTimeout time.Duration // how long to wait for another one that begins to read
}

// Event is the hit of an entry that begins an episode.
type Event struct {
	Time                time.Time
	Source, Destination netip.AddrPort // port 0: there is none, or it isn't known
	Protocol            uint8          // of IP
	Length              uint32         // of the packet, in bytes
	IfIndex             uint32
	Hook                string // "xdp", "tc", "cgroup"
	Direction           string // "ingress", "egress"
	CgroupID            uint64 // 0: not known
	Dropped             bool   // by this list
	Matched             Match  // Source or Destination
	Suppressed          uint64 // hits of the episode before, after the first one
	Entry               Entry  // List is "" if the list is gone; Reason and Expires are zero if the entry is
}

// FarEnd is the address that isn't on the list, or may be.
func (e Event) FarEnd() netip.Addr {
	if e.Matched == Source {
		return e.Destination.Addr()
	}
	return e.Source.Addr()
}

// Loss is what no event tells of.
type Loss struct {
	Events     uint64 // that found no room since the reading began
	Before     uint64 // that had found none until then, ever, if there was no room then
	Suppressed uint64 // hits within an episode since the reading began
}

// EventsReading says what to do with events.
type EventsReading struct {
	// Emit gets the events that are there; they are taken out of the ring buffer
	// when it returned nil, and not before.
	Emit func([]Event) error
	// Most is how many Emit may get next; 0 ends the reading.
	Most func() int
	// Pending ends the reading when nothing is there any more.
	Pending bool
}

// EventSource is the open events of all lists. They follow lists that are changed
// meanwhile.
type EventSource interface {
	Notes() []string
	// Read reads until there were enough, Emit fails or ctx ends, which is no
	// error. ErrNotFound says that the maps were removed.
	Read(ctx context.Context, how EventsReading) error
	// Loss and Waiting may be called while Read runs.
	Loss() (Loss, error)
	// Waiting is how many events there are, with those that Emit has.
	Waiting() int
	Close() error
}

// eventSource implements EventSource. It holds no lock: writers keep what it looks
// up whole.
type eventSource struct {
	engine   Engine
	records  *maps.Records
	rows     *ebpf.Map
	begun    Loss       // what the rows had
	home     ebpf.MapID // of the map settings: that of the group that the ring buffer is of
	state    *state     // the lists as they were last read
	settings uint32     // id of the map that it has the settings of
	checked  time.Time
	booted   time.Time // when CLOCK_BOOTTIME was 0
	events   []Event
}

// eventBytes is the size of a bpf.BlockEvent.
var eventBytes = binary.Size(bpf.BlockEvent{})

// Events implements API.
func (s *Store) Events(ctx context.Context, r EventsRequest) (EventSource, error) {
	e := &eventSource{engine: s.engine, checked: time.Now()}
	if err := e.open(ctx, r); err != nil {
		return nil, fault.Join(err, e.Close())
	}
	return e, nil
}

func (e *eventSource) open(ctx context.Context, r EventsRequest) error {
	if err := e.reread(); err != nil {
		return err
	}
	e.home = mapID(e.state.Map("settings"))
	var err error
	if e.rows, err = e.state.Open("block_rows"); err != nil {
		return err
	}
	ring, err := e.state.Open("block_events")
	if err != nil {
		return err
	}
	if e.records, err = maps.OpenRecords(ctx, ring, "block_events", r.LockTimeout, r.Steal); err != nil {
		return err
	}
	full := e.records.IsFull(eventBytes)
	if e.begun, err = e.counted(); err == nil && full {
		e.begun.Before = e.begun.Events
	}
	return err
}

// Close implements EventSource.
func (e *eventSource) Close() error {
	if e.state != nil {
		e.state.Close()
	}
	e.rows.Close()
	if e.records == nil {
		return nil
	}
	return e.records.Close()
}

// Notes implements EventSource.
func (e *eventSource) Notes() []string { return e.records.Notes }

// Loss implements EventSource.
func (e *eventSource) Loss() (Loss, error) {
	now, err := e.counted()
	return Loss{Events: now.Events - e.begun.Events, Before: e.begun.Before, Suppressed: now.Suppressed - e.begun.Suppressed}, err
}

// Waiting implements EventSource.
func (e *eventSource) Waiting() int { return e.records.Waiting(eventBytes) }

func (e *eventSource) counted() (Loss, error) {
	lost, err := readRow(e.rows, bpf.BlockEventsLost)
	if err != nil {
		return Loss{}, err
	}
	suppressed, err := readRow(e.rows, bpf.BlockEventsSuppressed)
	return Loss{Events: lost.Packets, Suppressed: suppressed.Packets}, err
}

// Read implements EventSource.
func (e *eventSource) Read(ctx context.Context, how EventsReading) error {
	return e.records.Read(ctx, maps.Reading{
		Emit: func(records [][]byte) error {
			if err := e.describe(records); err != nil {
				return err
			}
			return how.Emit(e.events)
		},
		Most: how.Most, Idle: e.idle, Pending: how.Pending,
	})
}

// checkInterval is the time between two looks at lists that nothing is told of.
const checkInterval = time.Second

// idle ends the reading when the maps were removed, and doesn't keep those open
// that lists were replaced by.
func (e *eventSource) idle() error {
	if time.Since(e.checked) < checkInterval {
		return nil
	}
	e.checked = time.Now()
	pinned, err := e.state.Open("settings")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		defer pinned.Close()
	}
	if err != nil || mapID(pinned) != e.home {
		return removed()
	}
	return e.follow()
}

func removed() error {
	return fault.New(fault.ErrNotFound, "read events of map block_events: the maps of the blocklist were removed").
		Hint("bpfnet load blocklist   makes them anew")
}

func mapID(m *ebpf.Map) ebpf.MapID {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return id
}

// follow reads the lists again if they were changed.
func (e *eventSource) follow() error {
	id, err := settingsID(e.state.Shared)
	if err != nil || id == e.settings {
		return err
	}
	if err := e.reread(); !errors.Is(err, fault.ErrNotFound) { // else idle says it, when what is there is read
		return err
	}
	return nil
}

// settingsID is the id of the map with the settings in force; 0: there is none.
func settingsID(s *datapath.Shared) (id uint32, err error) {
	err = s.Map("settings").Lookup(uint32(0), &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	return id, err
}

// mostRereads is how often reread tries when a writer comes between.
const mostRereads = 10

// reread reads the lists as they are now.
func (e *eventSource) reread() error {
	for try := 1; ; try++ {
		next, id, err := e.peek()
		if err == nil {
			if e.state != nil {
				e.state.Close()
			}
			e.state, e.settings = next, id
			return nil
		}
		if try == mostRereads || errors.Is(err, fault.ErrNotFound) {
			return err
		}
	}
}

// errChanged says that the settings were replaced while they were read.
var errChanged = errors.New("read the lists: they change all the time")

// peek reads the lists without the lock, and the id of their settings.
func (e *eventSource) peek() (next *state, id uint32, err error) {
	shared, err := e.engine.PeekShared(group)
	if err != nil {
		return nil, 0, err
	}
	if e.home != 0 && mapID(shared.Map("settings")) != e.home { // others were made meanwhile
		shared.Close()
		return nil, 0, removed()
	}
	after := uint32(0)
	if id, err = settingsID(shared); err == nil {
		next, err = openState(shared)
	}
	if err == nil {
		after, err = settingsID(shared)
	}
	if err == nil && after != id {
		err = errChanged
	}
	if err != nil {
		shared.Close()
		return nil, 0, err
	}
	return next, id, nil
}

// clockStep is by how much the clock of people has to be another for times to follow
// it. Reading two clocks one after the other takes a moment, which differs: what came
// later is not to seem earlier for it.
const clockStep = 100 * time.Millisecond

func (e *eventSource) readClock() error {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	booted := time.Now().Round(0).Add(-time.Duration(up.Nano()))
	if booted.Sub(e.booted).Abs() > clockStep {
		e.booted = booted
	}
	return nil
}

// describe makes events of records.
func (e *eventSource) describe(records [][]byte) error {
	if err := e.follow(); err != nil {
		return err
	}
	if err := e.readClock(); err != nil {
		return err
	}
	e.events = e.events[:0]
	e.state.forgetDomains()           // they change without the settings
	entries := map[bpf.HitKey]Entry{} // a scan meets one again and again
	for _, record := range records {
		var raw bpf.BlockEvent
		if _, err := binary.Decode(record, binary.NativeEndian, &raw); err != nil {
			return fmt.Errorf("read events of map block_events: a record of %d bytes: %w", len(record), err)
		}
		event, found := newEvent(raw, e.booted), false
		if event.Entry, found = entries[raw.Entry]; !found {
			event.Entry = e.state.known(raw.Entry)
			entries[raw.Entry] = event.Entry
		}
		e.events = append(e.events, event)
	}
	return nil
}

// The words of enum block_hook and enum block_direction.
var (
	hookWords      = [256]string{"xdp", "tc", "cgroup"}
	directionWords = [256]string{"ingress", "egress"}
)

func newEvent(raw bpf.BlockEvent, booted time.Time) Event {
	address := func(bytes [16]byte) netip.Addr {
		if raw.Entry.Ipv4 != 0 {
			return netip.AddrFrom16(bytes).Unmap()
		}
		return netip.AddrFrom16(bytes)
	}
	e := Event{
		Time:        booted.Add(time.Duration(raw.Time)),
		Source:      netip.AddrPortFrom(address(raw.Source.In6U.U6Addr8), raw.SourcePort),
		Destination: netip.AddrPortFrom(address(raw.Destination.In6U.U6Addr8), raw.DestinationPort),
		Protocol:    raw.Protocol, Length: raw.Length, IfIndex: raw.Ifindex,
		Hook: hookWords[raw.Hook], Direction: directionWords[raw.Direction], CgroupID: raw.CgroupId,
		Dropped: raw.Dropped != 0, Matched: Source, Suppressed: raw.Suppressed,
	}
	if raw.MatchedDestination != 0 {
		e.Matched = Destination
	}
	return e
}

// known is what is known of an entry that was hit. Where a writer is at work, and
// when the entry has gone, that is less.
func (s *state) known(hit bpf.HitKey) Entry {
	identity, p := unhit(hit)
	known := Entry{Prefix: p.netip()}
	number, ok := s.identified(identity)
	if !ok {
		return known
	}
	known.List, known.Action = nameOf(s.lists[number]), s.action(number)
	e, found, err := s.lookup(number, p)
	if err != nil || !found {
		known.List = strings.TrimSuffix(known.List, addressesSuffix)
		return known
	}
	known.Expires = s.expiry(e)
	if strings.HasSuffix(known.List, addressesSuffix) {
		s.nameOwner(number, &known)
	}
	var note bpf.BlockNote
	if e.note != 0 && s.Map("block_notes").Lookup(e.note, &note) == nil {
		known.Reason = textOf(note.Text[:])
	}
	return known
}

// nameOwner says which domain a hit address belongs to, if that can be read.
func (s *state) nameOwner(number uint32, e *Entry) {
	o, err := s.owners(context.Background(), number)
	if err == nil {
		o.name(e)
	}
	e.List = strings.TrimSuffix(e.List, addressesSuffix)
}

// identified returns the number of the list of an identity.
func (s *state) identified(identity uint32) (uint32, bool) {
	for number := range s.lists {
		if s.config.Lists>>number&1 != 0 && uint32(s.config.Identities[number]) == identity && nameOf(s.lists[number]) != "" {
			return uint32(number), true
		}
	}
	return 0, false
}
