package dns

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
)

// Watcher reads the exchanges that program dns sees: as a Reader, in place of one.
type Watcher struct {
	ring
	exchanges *exchanges
	passes    func(Place) bool
}

// Watch reads the exchanges that an instance of the program sees, as Open does the
// answers; a query is expected to be answered within a time. While the watcher is open
// the program tells of queries, too.
func Watch(ctx context.Context, pinned Maps, instance string, timeout, lockTimeout time.Duration, steal bool) (*Watcher, error) {
	w := newWatcher(timeout)
	if err := w.open(ctx, pinned, instance, lockTimeout, steal, 1); err != nil {
		return nil, err
	}
	return w, nil
}

func newWatcher(timeout time.Duration) *Watcher {
	w := &Watcher{exchanges: newExchanges(timeout)}
	w.streams, w.message = newStreams(w.whole), w.take
	return w
}

// Watching says what to do with exchanges.
type Watching struct {
	// Passes says whether packets count that are seen at a place; nil: all do.
	Passes func(Place) bool
	// Begun gets each exchange when the first of its messages was seen, before Tell
	// does: its process may not be there for long.
	Begun func([]*Exchange)
	// Tell gets them when they have ended.
	Tell func([]*Exchange) error
	// Idle is called when nothing comes for a while.
	Idle func() error
}

// Read reads exchanges until Tell fails or ctx ends, which is no error. ErrNotFound
// says that the maps are no longer pinned.
func (w *Watcher) Read(ctx context.Context, how Watching) error {
	w.passes = how.Passes
	tell := func() error {
		begun, told := w.exchanges.take()
		if len(begun) > 0 {
			how.Begun(begun)
		}
		if len(told) == 0 {
			return nil
		}
		return how.Tell(told)
	}
	return w.read(ctx, tell, func() error {
		// A message that was sent before may only just have come.
		w.exchanges.sweep(sinceBoot() - settling)
		if err := tell(); err != nil {
			return err
		}
		return how.Idle()
	})
}

// sinceBoot is the programs' clock.
func sinceBoot() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // it is there
	return time.Duration(now.Nano())
}

// Forgotten is how many exchanges found no room before they ended.
func (w *Watcher) Forgotten() uint64 { return w.exchanges.forgot }

// Waiting is about how many messages there are to read.
func (w *Watcher) Waiting() int { return w.records.Waiting(mostlyBytes) }

// mostlyBytes is how long most records are.
const mostlyBytes = 96 + 512

// Close closes the maps. The program tells no longer of queries.
func (w *Watcher) Close() error {
	_ = setQueries(w.pinned, w.instance, 0) // unloaded, or the next reader does
	return w.ring.Close()
}

// take takes a message.
func (w *Watcher) take(packed []byte, all bool) {
	m, err := readMessage(packed, true)
	if !w.count(m.whole, all, err) || m.response == w.query {
		return
	}
	e := &w.event
	s := sighting{message: m, packed: packed, time: time.Duration(e.Time), transport: transportOf(e), place: placeOf(e, w.query)}
	if w.passes != nil && !w.passes(s.place) {
		return
	}
	s.server, s.client = w.ends()
	w.exchanges.add(s)
}

func placeOf(e *bpf.DNSEvent, query bool) Place {
	p := Place{AtCgroup: e.Hook == bpf.DNSCgroup, IfIndex: e.Ifindex, Ingress: e.Direction == bpf.DNSIngress}
	// Queries leave the cgroup of who asks, and enter the host side of its interface.
	p.FromAsker = query == (p.Ingress != p.AtCgroup)
	if p.FromAsker && p.AtCgroup || query && !p.AtCgroup {
		p.CgroupID = e.CgroupId // of who sends it
	}
	return p
}
