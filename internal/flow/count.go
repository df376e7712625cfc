package flow

import (
	"context"
	"slices"
	"strings"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/internal/sockets"
)

// CensusRequest says what sockets are listed.
type CensusRequest struct {
	Filter Filter
	States []string // the kernel's names; empty: all but of listeners
	Listen bool     // listeners, too
}

// Census is which sockets there are at one moment.
type Census struct {
	Time    time.Time
	Rows    []Row // one of each, without counters; the state of others than TCP's is there, too
	Seen    int   // network namespaces
	Skipped int   // namespaces that this user may not enter
}

// TakeCensus lists the sockets of all network namespaces that processes are in or that have a name. Those
// that the kernel keeps without one, in time_wait and syn_recv, have no process. The
// notes, for people, say what is missing. ErrUsage if the kernel knows no such state,
// ErrNotFound if there is no such process.
func TakeCensus(ctx context.Context, r CensusRequest) (Census, []string, error) {
	for _, state := range r.States {
		if names := States(); !slices.Contains(names, state) {
			return Census{}, nil, fault.New(fault.ErrUsage, "the kernel has no state %q", state).Hint("%s", nearest.Hint(state, names))
		}
	}
	d, err := newDiag(r.Filter, sockets.AllStates)
	if err != nil {
		return Census{}, nil, err
	}
	d.full = true
	s, err := d.take(ctx, time.Time{})
	if err != nil {
		return Census{}, nil, err
	}
	for _, pid := range r.Filter.PIDs {
		if _, there := slices.BinarySearch(s.pids, int(pid)); !there {
			return Census{}, nil, fault.New(fault.ErrNotFound, "no process %d", pid)
		}
	}
	c := Census{Time: time.Now(), Seen: s.seen, Skipped: s.skipped}
	for _, a := range d.order {
		if state := StateName(a.socket.State); r.has(a.socket.State, state) && d.fits(a) && d.isAsked(a) {
			c.Rows = a.rows(c.Rows, nil)
			row := &c.Rows[len(c.Rows)-1]
			row.TCP, row.Counters = &TCP{State: state}, Counters{}
		}
	}
	return c, s.notes(), nil
}

func (r CensusRequest) has(state uint8, name string) bool {
	if state == sockets.Listen {
		return r.Listen || slices.Contains(r.States, name)
	}
	return len(r.States) == 0 || slices.Contains(r.States, name)
}

// CountSchema names the document.
const CountSchema = "bpfnet.connections/v1"

// CountDocument is how many sockets there are of each kind.
type CountDocument struct {
	Schema     string          `json:"schema"`
	Time       time.Time       `json:"time"`
	Namespaces NamespaceCounts `json:"namespaces"` // of the network, with a process in them or a name
	By         []string        `json:"by"`         // what sockets are grouped by
	Counts     []Count         `json:"counts"`     // the most first
	Others     OtherCounts     `json:"others"`
	Total      int             `json:"total"` // sockets
}

// NamespaceCounts are numbers of network namespaces.
type NamespaceCounts struct {
	Seen    int `json:"seen"`
	Skipped int `json:"skipped"` // this user may not enter them
}

// Count is how many sockets have something in common, of which all else is null.
type Count struct {
	Network     CountedNetwork `json:"network"`
	Process     CountedProcess `json:"process"`
	User        User           `json:"user"`
	Container   Container      `json:"container"`
	K8s         K8s            `json:"k8s"`
	State       *string        `json:"state"`
	Connections int            `json:"connections"`
}

// CountedNetwork is where sockets are.
type CountedNetwork struct {
	Transport *string `json:"transport"`
	NetNS     *uint64 `json:"netns"`
	Local     Address `json:"local"`
	Peer      Address `json:"peer"`
}

// CountedProcess is who has sockets open.
type CountedProcess struct {
	PID        *uint32    `json:"pid"` // null also: the kernel keeps them for nobody, or it isn't known
	StartTime  *time.Time `json:"start_time"`
	Executable *string    `json:"executable"`
	Command    *string    `json:"command"`
}

// OtherCounts are what a limit leaves out.
type OtherCounts struct {
	Counts      int `json:"counts"`
	Connections int `json:"connections"`
}

// CountDimensions lists what View.By can have to count.
func CountDimensions() []string {
	return slices.DeleteFunc(Dimensions(), func(word string) bool { return strings.Contains(word, ".") })
}

// Count counts the sockets of a census by v.By, of CountDimensions.
func (v View) Count(c Census) CountDocument {
	v.Sort, v.all = "-flows", true
	w := NewWatch(v)
	w.Take(Sample{Time: c.Time, Rows: c.Rows})
	all := w.Document()
	d := CountDocument{
		Schema: CountSchema, Time: all.Time, Namespaces: NamespaceCounts{c.Seen, c.Skipped}, By: v.By,
		Counts: []Count{}, Others: OtherCounts{Counts: all.Others.Flows, Connections: all.Total.Flows}, Total: all.Total.Flows,
	}
	for _, f := range all.Flows {
		n, p := f.Network, f.Process
		d.Counts = append(d.Counts, Count{
			CountedNetwork{n.Transport, n.NetNS, n.Local, n.Peer.Address}, CountedProcess{p.PID, p.StartTime, p.Executable, p.Command},
			f.User, f.Container, f.K8s, f.TCP.State, f.Flows,
		})
		d.Others.Connections -= f.Flows
	}
	return d
}
