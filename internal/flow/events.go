package flow

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

// EventsRequest says of whose connections events are told.
type EventsRequest struct {
	Instance  string // a loaded instance; if there is none of that name, counting begins now and ends with the source
	Filter    Filter // of what begins to be counted; a loaded instance counts what it was loaded for
	SinceLoad bool   // also what is remembered from before
	Failed    bool   // only those that couldn't be opened
}

// Event is what has happened to a TCP connection.
type Event struct {
	Kind   string // "opened", "closed", "failed"
	Time   time.Time
	Rows   []Row  // one for each process that used it, in that order; of what isn't closed there is one
	Ended  string // "local", "peer": whose doing the end was; "" if nobody's, or not known
	Reason string // of an end, in a word; "": not known
}

// EventLoss is what events aren't told of, since the source was opened.
type EventLoss struct {
	Events  uint64 `json:"events"`   // records that were overwritten before they were read
	MapFull uint64 `json:"map_full"` // sockets that found no room
	Missed  uint64 `json:"missed"`   // calls that the programs didn't see, at most
}

// EventSource reads events. Two sources of one instance don't disturb each other.
type EventSource interface {
	// Read returns what has happened since the last time, the oldest first; what
	// several processes have used is told one Read later, unless it is the last one.
	Read(last bool) ([]Event, EventLoss, error)
	Close() error
}

// Events is the EventSource of the program flows, loaded or started.
type Events struct {
	reader *Reader
	opened ring
	open   map[connection]*shared
	before struct {
		bpf.FlowSums
		missed uint64
	}
	loss   EventLoss
	failed bool // what is closed isn't read
}

// connection tells those of a socket apart, which may be connected again.
type connection struct{ cookie, opened uint64 }

func connectionOf(r *Row) connection { return connection{r.Cookie, uint64(r.openedAt())} }

// shared is the end of a connection that several processes have used, of which more
// may be told.
type shared struct {
	event Event
	fresh bool // since the Read before
}

// OpenEvents opens the events of a loaded instance of flows, or begins to watch until
// the source is closed. The strings are for people.
// ErrUnsupported: the kernel can't run the program, and without it there are no events.
func OpenEvents(ctx context.Context, kernel Kernel, req EventsRequest) (EventSource, []string, error) {
	request := Request{Instance: req.Instance, Filter: req.Filter}
	request.Filter.Transports = []string{"tcp"}
	reader, notes, err := openLoaded(ctx, kernel, request)
	began := errors.Is(err, fault.ErrNotFound)
	if began {
		reader, notes, err = startPrivate(ctx, kernel, request)
		if errors.Is(err, fault.ErrUnsupported) || errors.Is(err, fault.ErrRejected) {
			err = fault.New(fault.ErrUnsupported, "%w", err).Hint("events of connections take the program; bpfnet connections count and watch flows do without")
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if began {
		notes = append([]string{begins(req.Instance)}, notes...)
	}
	e, err := newEvents(reader, began || req.SinceLoad)
	if err != nil {
		return nil, nil, fault.Join(err, reader.Close())
	}
	e.failed = req.Failed
	source, more := translateEvents(e, kernel)
	return source, append(notes, more...), nil
}

func newEvents(reader *Reader, all bool) (*Events, error) {
	e := &Events{reader: reader, open: map[connection]*shared{}}
	var err error
	if e.opened, err = reader.ring("opened_flows", func(sums bpf.FlowSums) uint64 { return sums.Opened }); err != nil {
		return nil, err
	}
	if e.before.FlowSums, err = reader.sums(); err == nil {
		e.before.missed, err = reader.missed(e.before.FlowSums)
	}
	if err != nil {
		return nil, err
	}
	if !all {
		e.opened.next, reader.closed.next = e.before.Opened, e.before.Closed
	}
	return e, nil
}

// Close implements EventSource.
func (e *Events) Close() error { return e.reader.Close() }

// Read implements EventSource.
func (e *Events) Read(last bool) ([]Event, EventLoss, error) {
	sums, err := e.reader.sums()
	if err != nil {
		return nil, e.loss, err
	}
	var closed []bpf.FlowRecord
	var lostClosed uint64
	if !e.failed {
		if closed, lostClosed, err = e.reader.closed.since(sums.Closed); err != nil {
			return nil, e.loss, err
		}
	}
	opened, lostOpened, err := e.opened.since(sums.Opened)
	if err != nil {
		return nil, e.loss, err
	}
	e.loss.Events += lostOpened + lostClosed
	e.loss.MapFull = sums.NoRoom - e.before.NoRoom
	missed, err := e.reader.missed(sums)
	if err != nil {
		return nil, e.loss, err
	}
	e.loss.Missed = missed - e.before.missed
	events := make([]Event, 0, len(opened)+len(closed))
	for i := range opened {
		events = append(events, e.event(&opened[i]))
	}
	events = e.ends(events, closed, last)
	slices.SortStableFunc(events, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return events, e.loss, nil
}

// ends adds the connections that were closed. Those that never opened have failed before.
func (e *Events) ends(events []Event, closed []bpf.FlowRecord, last bool) []Event {
	for _, s := range e.open {
		s.fresh = false
	}
	for i := range closed {
		from := &closed[i]
		if !isConnection(from) || from.Ending == bpf.FlowEndedRefused || from.Ending == bpf.FlowEndedGivenUp {
			continue
		}
		event := e.event(from)
		if from.Owners <= 1 {
			events = append(events, event)
			continue
		}
		which := connection{from.Cookie, from.Opened}
		if s := e.open[which]; s != nil {
			s.event.Rows, s.fresh = append(s.event.Rows, event.Rows...), true
		} else {
			e.open[which] = &shared{event, true}
		}
	}
	for which, s := range e.open {
		if last || !s.fresh {
			events = append(events, s.event)
			delete(e.open, which)
		}
	}
	return events
}

// isConnection says whether a record is of a TCP socket that had a peer.
func isConnection(from *bpf.FlowRecord) bool {
	return transportOf(from.Type, from.Protocol) == "tcp" && from.PeerPort != 0
}

func (e *Events) event(from *bpf.FlowRecord) Event {
	event := Event{Time: e.reader.time(from.Time), Rows: []Row{e.reader.row(from)}}
	switch from.Event {
	case bpf.FlowOpened:
		event.Kind = "opened"
		return event
	case bpf.FlowFailed:
		event.Kind = "failed"
	default:
		event.Kind = "closed"
	}
	event.Ended, event.Reason = reasonOf(from.Ending, unix.Errno(from.Error))
	return event
}

// reasons are words for what an end came with.
var reasons = map[unix.Errno]struct{ ended, reason string }{
	unix.ECONNREFUSED: {"peer", "refused"},
	unix.ECONNRESET:   {"peer", "reset"},
	unix.EPIPE:        {"peer", "reset"}, // after its FIN
	unix.ECONNABORTED: {"local", "aborted"},
	unix.ETIMEDOUT:    {"", "timeout"},
	unix.ENETUNREACH:  {"", "unreachable"},
	unix.EHOSTUNREACH: {"", "unreachable"},
	unix.EHOSTDOWN:    {"", "unreachable"},
	unix.ENONET:       {"", "unreachable"},
	unix.ENOPROTOOPT:  {"", "unreachable"},
	unix.EACCES:       {"", "unreachable"}, // IPv6: prohibited
}

// reasonOf is whose doing an end was, and why it came.
func reasonOf(ending bpf.FlowEnding, errno unix.Errno) (ended, reason string) {
	if errno != 0 {
		r := reasons[errno]
		return r.ended, cmp.Or(r.reason, "error")
	}
	switch ending {
	case bpf.FlowEndedLocal:
		return "local", "fin"
	case bpf.FlowEndedPeer:
		return "peer", "fin"
	case bpf.FlowEndedAborted:
		return "local", "reset" // what a peer does comes with an error
	case bpf.FlowEndedGivenUp:
		return "local", "abandoned"
	case bpf.FlowEndedRefused:
		return "", "" // by the kernel here: no port was free
	}
	return "", "fin" // the first one came before counting began
}
