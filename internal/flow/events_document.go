package flow

import (
	"slices"
	"time"
)

// EventSchema names the document.
const EventSchema = "bpfnet.connection/v1"

// EventDocument is what has happened to a TCP connection.
type EventDocument struct {
	Schema          string     `json:"schema"`
	Time            time.Time  `json:"time"`
	Event           string     `json:"event"`     // "opened", "closed", "failed"
	Direction       *string    `json:"direction"` // "outward", "inward": the peer opened it; null: it was there before counting began
	Network         Network    `json:"network"`
	Process         ProcessDoc `json:"process"` // the first one that used it; of an inward one that nobody has used yet the listener's
	User            User       `json:"user"`
	Container       Container  `json:"container"`
	K8s             K8s        `json:"k8s"`
	Processes       []UseDoc   `json:"processes"` // all that used it and are told apart
	IO              *Counters  `json:"io"`        // of all of them; null: it isn't closed
	TCP             Connection `json:"tcp"`
	DurationSeconds *float64   `json:"duration_seconds"` // from the beginning of the handshake; null: that was before counting began, or others began it and it is open
	ClosedBy        *string    `json:"closed_by"`        // "local", "peer"
	Reason          *string    `json:"reason"`
	Cookie          *string    `json:"cookie"`
	OpenedAt        *time.Time `json:"opened_at"` // when the handshake began
	Loss            EventLoss  `json:"loss"`
}

// UseDoc is what a process did with a connection.
type UseDoc struct {
	PID        *uint32    `json:"pid"`
	StartTime  *time.Time `json:"start_time"`
	Executable *string    `json:"executable"`
	Command    *string    `json:"command"`
	IO         *Counters  `json:"io"` // null: it isn't closed
}

// Directions of connections.
var inward, outward = "inward", "outward"

// Teller makes documents of events, for one goroutine.
type Teller struct {
	w      *Watch
	failed bool
	names  map[connection]string // of the peers of connections that are open
}

// NewTeller returns a Teller of the connections that fit a view, or only of those that
// couldn't be opened.
func NewTeller(v View, failed bool) *Teller {
	return &Teller{NewWatch(v), failed, map[connection]string{}}
}

// Fit leaves the events to tell of, and of their processes those that fit.
func (t *Teller) Fit(events []Event) []Event {
	for i := range events {
		e := &events[i]
		e.Rows = slices.DeleteFunc(e.Rows, func(r Row) bool { return !t.w.fits(&r) })
	}
	return slices.DeleteFunc(events, func(e Event) bool { return len(e.Rows) == 0 || t.failed && e.Kind != "failed" })
}

// Document tells of an event.
func (t *Teller) Document(e *Event, loss EventLoss) EventDocument {
	if len(t.w.processes) > mostProcesses {
		clear(t.w.processes)
	}
	first := &e.Rows[0]
	d := EventDocument{Schema: EventSchema, Time: e.Time.UTC(), Event: e.Kind, Loss: loss, ClosedBy: known(&e.Ended), Reason: known(&e.Reason)}
	var f Flow
	new(values).fill(&f, first)
	local := t.processes(&d, e.Rows)
	d.Network, d.TCP, d.Cookie, d.OpenedAt = f.Network, f.TCP, f.Cookie, f.OpenedAt
	d.Network.Transport, d.Network.NetNS, d.Network.Local = &first.Transport, local.NetNS, local.Address
	address, port := first.Peer.Addr(), first.Peer.Port()
	name := t.name(e)
	d.Network.Peer = Peer{Address{known(&address), known(&port)}, known(&name)}
	d.Process, d.User, d.Container, d.K8s = local.Process, local.User, local.Container, local.K8s
	switch {
	case first.Inward:
		d.Direction = &inward
	case first.Opened.IsZero():
		d.TCP.OpenedBy = nil
	default:
		d.Direction = &outward
	}
	d.Process.Owners, d.TCP.State = f.Process.Owners, known(&first.TCP.State)
	if !first.Opened.IsZero() && (e.Kind != "opened" || !first.Inward) {
		seconds := e.Time.Sub(first.Opened).Round(time.Microsecond).Seconds()
		d.DurationSeconds = &seconds
	}
	return d
}

// name is what the peer was called when the connection began.
func (t *Teller) name(e *Event) string {
	r := &e.Rows[0]
	if t.w.Name == nil || !r.Peer.IsValid() {
		return ""
	}
	id := connectionOf(r)
	name, known := t.names[id]
	if !known {
		began := r.Opened
		if began.IsZero() {
			began = e.Time
		}
		name = t.w.Name(r.Local.Addr(), r.Peer.Addr(), time.Since(began))
	}
	switch {
	case e.Kind != "opened":
		delete(t.names, id)
	case len(t.names) < mostConnections:
		t.names[id] = name
	}
	return name
}

// processes fills in who has used a connection, and returns who was the first.
func (t *Teller) processes(d *EventDocument, rows []Row) (first End) {
	var sum, io *Counters
	if d.Event == "closed" {
		sum = &Counters{}
	}
	d.IO, d.Processes = sum, make([]UseDoc, 0, len(rows))
	for i := range rows {
		if sum != nil {
			io = &rows[i].Counters
			sum.add(*io)
		}
		local := t.w.localParty(&rows[i])
		end := t.w.end(&local, new(values), 0)
		if i == 0 {
			first = end
		}
		if p := end.Process; p.PID != nil {
			d.Processes = append(d.Processes, UseDoc{p.PID, p.StartTime, p.Executable, p.Command, io})
		}
	}
	return first
}
