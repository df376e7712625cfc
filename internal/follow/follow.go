// Package follow keeps a program attached to the host sides of all Pods: to those
// that there are and to each that comes, until it is told to stop. It keeps nothing
// anywhere: what it is to do follows from the kernel's state, so that one that was
// killed is succeeded by the next.
package follow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
)

// Kind is what happened.
type Kind string

// The kinds.
const (
	Attached   Kind = "attached"   // to an interface
	Adopted    Kind = "adopted"    // it was attached before
	Identified Kind = "identified" // who is behind it, where that wasn't known
	Gone       Kind = "gone"       // with its interface
	Detached   Kind = "detached"   // it isn't a Pod's
	Failed     Kind = "failed"     // not attached, for Event.Err
)

// Event is something that happened to an interface.
type Event struct {
	Time    time.Time
	Kind    Kind
	DevName string
	IfIndex uint32
	Pod     *endpoint.Pod // nil: not known, or not known yet
	Took    time.Duration // Attached: since the kernel told of the interface; 0: it was there before
	Traffic []traffic.Entry
	Err     error // Failed
}

// Endpoints finds the Pods.
type Endpoints interface {
	// Behind finds those that have interfaces, fast, and without names.
	Behind(ctx context.Context, indexes []uint32) (endpoint.Listing, error)
	// List finds all, and asks engines for their names.
	List(ctx context.Context) (endpoint.Listing, error)
}

// Counters are those of the program.
type Counters interface {
	// Interfaces lists the indexes of the interfaces that have counters.
	Interfaces(ctx context.Context) ([]uint32, error)
	// Take returns the counters of interfaces, and removes them.
	Take(ctx context.Context, indexes []uint32) (map[uint32][]traffic.Entry, error)
}

// Follower attaches a program.
type Follower struct {
	API       datapath.API
	Endpoints Endpoints
	Counters  Counters               // nil: the program has none by interface
	Request   datapath.AttachRequest // for each Pod, but for the device
	NetNS     string                 // path of the namespace with the host sides, "" for the caller's
	Tell      func(Event) error      // an error of it ends Run

	known   map[uint32]*device   // attached
	waiting map[uint32]*waiting  // not attached, as nobody knows whose they are, or for an error
	heard   map[uint32]time.Time // when the kernel told of an interface
	looked  bool                 // at what there was in the beginning
	checked time.Time            // when attachments were read

	owners question // whose interfaces are
	names  question // what Pods are called
}

// device is an interface that the program is attached to.
type device struct {
	name  string
	pod   *endpoint.Pod
	early time.Time // since when it is attached without a Pod; zero: it is a Pod's
}

// waiting is an interface that the program isn't attached to.
type waiting struct {
	failed   string // the error that was told
	detached bool   // it was attached early, and found to be nobody's
}

const (
	// patience is how long an interface in a namespace that an engine made for a
	// Pod may be without a process: the Pod's image may have to be fetched.
	patience = 2 * time.Minute

	// What isn't a Pod's is asked for as long as it is there, and names where no
	// engine tells them, for which all networks are looked into.
	ownersLongest = 5 * time.Second
	namesLongest  = 30 * time.Second
)

// checkAgain is after what time it is looked for what others detached; tests have
// less. With 200 Pods a look takes 50 ms.
var checkAgain = 10 * time.Second

// Run attaches until ctx ends, which isn't an error, and leaves everything attached.
func (f *Follower) Run(ctx context.Context) error {
	f.known, f.waiting, f.heard = map[uint32]*device{}, map[uint32]*waiting{}, map[uint32]time.Time{}
	f.owners, f.names = newQuestion(ownersLongest), newQuestion(namesLongest)
	news, err := subscribe(ctx, f.NetNS)
	if err != nil {
		return err
	}
	if err := f.clear(ctx); err != nil {
		return unlessEnded(ctx, err)
	}
	for {
		if err := f.look(ctx); err != nil {
			return unlessEnded(ctx, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case index, open := <-news:
			if !f.hear(news, index, open) {
				news, err = subscribe(ctx, f.NetNS)
			}
		case found := <-f.owners.answers:
			f.owners.asked = false
			err = f.settle(ctx, found)
		case found := <-f.names.answers:
			f.names.asked = false
			err = f.settle(ctx, found)
		case <-time.After(min(f.owners.next(), f.names.next(), checkAgain)):
		}
		if err != nil {
			return unlessEnded(ctx, err)
		}
	}
}

func unlessEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// hear takes note of all that the kernel has told. It is false where something was
// lost, which doesn't matter: each look is at all interfaces.
func (f *Follower) hear(news <-chan uint32, index uint32, open bool) bool {
	for ; open; index, open = <-news {
		if _, ok := f.heard[index]; !ok {
			f.heard[index] = time.Now()
		}
		if len(news) == 0 {
			return true
		}
	}
	return false
}

// clear removes what is left of interfaces that have gone: pins, and counters, which
// are told once.
func (f *Follower) clear(ctx context.Context) error {
	attachments, err := f.API.Attachments(ctx, f.Request.Name)
	if err != nil {
		return err
	}
	live, gone := map[uint32]bool{}, map[uint32]*device{}
	for _, a := range attachments {
		switch {
		case a.IfIndex == nil:
		case a.Defunct:
			gone[*a.IfIndex] = &device{name: *a.DevName}
		default:
			live[*a.IfIndex] = true
		}
	}
	if f.Counters != nil {
		indexes, err := f.Counters.Interfaces(ctx)
		if err != nil {
			return err
		}
		for _, index := range indexes {
			if gone[index] == nil && !exists(f.NetNS, index) {
				gone[index] = &device{}
			}
		}
	}
	maps.DeleteFunc(gone, func(index uint32, _ *device) bool { return live[index] })
	return f.removeGone(ctx, gone)
}

// check compares the interfaces that the program is attached to with its attachments,
// and removes what is left of those that have gone. An interface isn't listed any more
// a moment before its last packet has passed and the kernel takes the program off; it
// tells when it has. What others detached is attached to again.
func (f *Follower) check(ctx context.Context, here host) error {
	unlisted := func(index uint32) bool { return !here.all[index] }
	if time.Since(f.checked) < checkAgain && !slices.ContainsFunc(slices.Collect(maps.Keys(f.known)), unlisted) {
		return nil
	}
	attachments, err := f.API.Attachments(ctx, f.Request.Name)
	if err != nil {
		return unlessLocked(err)
	}
	f.checked = time.Now()
	gone, pinned := maps.Clone(f.known), map[uint32]bool{}
	for _, a := range attachments {
		if a.IfIndex == nil || *a.NetNS != here.inode {
			continue
		}
		if pinned[*a.IfIndex] = true; !a.Defunct {
			delete(gone, *a.IfIndex)
		}
	}
	for index := range gone {
		if !pinned[index] && exists(f.NetNS, index) {
			delete(f.known, index)
			delete(f.heard, index)
			delete(gone, index)
			f.waiting[index] = &waiting{}
			f.owners.soon()
		}
	}
	return f.removeGone(ctx, gone)
}

// unlessLocked is nil for the error that another one holds the lock: the next look
// does it.
func unlessLocked(err error) error {
	if errors.Is(err, fault.ErrLocked) {
		return nil
	}
	return err
}

func (f *Follower) removeGone(ctx context.Context, gone map[uint32]*device) error {
	if len(gone) == 0 {
		return nil
	}
	_, err := f.API.Detach(ctx, datapath.DetachRequest{Hook: f.Request.Hook, Name: f.Request.Name, Defunct: true})
	if err != nil {
		return unlessLocked(err)
	}
	return f.ended(ctx, Gone, gone)
}

// ended tells that the program isn't attached to interfaces any more, and what it had
// counted.
func (f *Follower) ended(ctx context.Context, kind Kind, devices map[uint32]*device) (err error) {
	indexes := slices.Sorted(maps.Keys(devices))
	var counted map[uint32][]traffic.Entry
	if f.Counters != nil {
		if counted, err = f.Counters.Take(ctx, indexes); err != nil {
			return err
		}
	}
	for _, index := range indexes {
		delete(f.known, index)
		d := devices[index]
		if err := f.tell(Event{Kind: kind, DevName: d.name, IfIndex: index, Pod: d.pod, Traffic: counted[index]}); err != nil {
			return err
		}
	}
	return nil
}

func (f *Follower) tell(e Event) error {
	e.Time = time.Now()
	return f.Tell(e)
}

// look compares the interfaces that there are with those that the program is attached
// to. Who is behind them is asked only where that isn't known.
func (f *Follower) look(ctx context.Context) error {
	here, err := hostSides(f.NetNS)
	if err != nil {
		return err
	}
	if err := f.check(ctx, here); err != nil {
		return err
	}
	f.compare(here)
	f.looked = true
	if err := f.attachEarly(ctx, here); err != nil {
		return err
	}
	f.ask(ctx)
	return nil
}

// compare forgets interfaces that have gone, and takes in new ones and new names.
func (f *Follower) compare(here host) {
	if here.whole {
		maps.DeleteFunc(f.heard, func(index uint32, _ time.Time) bool { return !here.all[index] })
		maps.DeleteFunc(f.waiting, func(index uint32, _ *waiting) bool { return here.sides[index] == side{} })
	}
	for index, side := range here.sides {
		if d := f.known[index]; d != nil {
			d.name = side.name
			continue
		}
		if f.waiting[index] == nil {
			f.waiting[index] = &waiting{}
			f.owners.soon()
			if f.heard[index].IsZero() && f.looked {
				f.heard[index] = time.Now()
			}
		}
	}
}

// ask asks who is behind interfaces, and for names, where they aren't known.
func (f *Follower) ask(ctx context.Context) {
	unknown, nameless := slices.Collect(maps.Keys(f.waiting)), false
	for index, d := range f.known {
		if d.pod == nil {
			unknown = append(unknown, index)
		}
		nameless = nameless || d.pod != nil && d.pod.Name == nil
	}
	f.owners.ask(len(unknown) > 0, func() (endpoint.Listing, error) { return f.Endpoints.Behind(ctx, unknown) })
	f.names.ask(nameless, func() (endpoint.Listing, error) { return f.Endpoints.List(ctx) })
}

// attachEarly attaches to interfaces of namespaces that engines make for Pods, before
// there is a process that tells whose they are: the first packets pass before that.
func (f *Follower) attachEarly(ctx context.Context, here host) error {
	var candidates []uint32
	for index, w := range f.waiting {
		if !w.detached && w.failed == "" {
			candidates = append(candidates, index)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	slices.Sort(candidates)
	numbers, err := here.podNamespaces(f.NetNS)
	if err != nil {
		return err
	}
	var early []candidate
	for _, index := range candidates {
		if s, ok := here.sides[index]; ok && numbers[s.peer] {
			early = append(early, candidate{index, s.name, nil})
		}
	}
	return f.attach(ctx, early)
}

// candidate is an interface to attach to.
type candidate struct {
	index uint32
	name  string
	pod   *endpoint.Pod // nil: not known yet
}

// batch is to how many interfaces it is attached at once. Each takes the kernel up to
// 30 ms, during which others wait for the lock, and whoever interrupts for the end.
const batch = 16

// attach attaches to interfaces. That one has gone meanwhile isn't an error, others
// are told once.
func (f *Follower) attach(ctx context.Context, candidates []candidate) error {
	for some := range slices.Chunk(candidates, batch) {
		if err := f.attachBatch(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

func (f *Follower) attachBatch(ctx context.Context, candidates []candidate) error {
	var requests []datapath.AttachRequest
	for _, c := range candidates {
		r := f.Request
		r.Device, r.IfIndex, r.MayBeGone = c.name, c.index, true
		requests = append(requests, r)
	}
	answer, err := f.API.Attach(ctx, requests...)
	switch {
	case errors.Is(err, fault.ErrLocked): // for one after the other it would be waited anew
		return f.failed(ctx, candidates, err)
	case err != nil && len(candidates) > 1: // then nothing is attached
		for _, c := range candidates {
			if err := f.attachBatch(ctx, []candidate{c}); err != nil {
				return err
			}
		}
		return nil
	case err != nil:
		return f.failed(ctx, candidates, err)
	}
	for _, c := range candidates {
		if err := f.attached(c, answer.Attachments); err != nil {
			return err
		}
	}
	return nil
}

// attached tells that the program is attached to an interface, if it is.
func (f *Follower) attached(c candidate, attachments []datapath.Attachment) error {
	own := func(a datapath.Attachment) bool { return a.IfIndex != nil && *a.IfIndex == c.index }
	if !slices.ContainsFunc(attachments, own) {
		return nil
	}
	event := Event{Kind: Adopted, DevName: c.name, IfIndex: c.index, Pod: c.pod}
	if slices.ContainsFunc(attachments, func(a datapath.Attachment) bool { return own(a) && a.Changed }) {
		event.Kind = Attached
		if heard, ok := f.heard[c.index]; ok {
			event.Took = time.Since(heard)
		}
	}
	d := &device{name: c.name, pod: c.pod}
	if c.pod == nil {
		d.early = time.Now()
	}
	delete(f.heard, c.index)
	delete(f.waiting, c.index)
	f.known[c.index] = d
	return f.tell(event)
}

func (f *Follower) failed(ctx context.Context, candidates []candidate, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, loaded := f.API.Attachments(ctx, f.Request.Name); errors.Is(loaded, fault.ErrNotFound) {
		return fmt.Errorf("follow Pods: %w", loaded)
	}
	for _, c := range candidates {
		w := f.waiting[c.index]
		if w == nil || w.failed == err.Error() || w.failed != "" && errors.Is(err, fault.ErrLocked) {
			continue
		}
		w.failed = err.Error()
		if err := f.tell(Event{Kind: Failed, DevName: c.name, IfIndex: c.index, Pod: c.pod, Err: err}); err != nil {
			return err
		}
	}
	return nil
}

// settle takes over who is behind interfaces.
func (f *Follower) settle(ctx context.Context, found answer) error {
	if found.err != nil {
		return found.err
	}
	here, err := hostSides(f.NetNS)
	if err != nil {
		return err
	}
	owners := map[uint32]endpoint.Endpoint{}
	for _, e := range found.Endpoints {
		for _, i := range e.Interfaces {
			if i.IfIndex != nil {
				owners[uint32(*i.IfIndex)] = e
			}
		}
	}
	var pods []candidate
	for _, index := range slices.Sorted(maps.Keys(f.waiting)) {
		if e := owners[index]; e.Pod != nil && here.sides[index] != (side{}) {
			pods = append(pods, candidate{index, here.sides[index].name, e.Pod})
		}
	}
	if len(pods) > 0 {
		f.names.soon()
	}
	if err := f.attach(ctx, pods); err != nil {
		return err
	}
	for _, index := range slices.Sorted(maps.Keys(f.known)) {
		e, ok := owners[index]
		if err := f.recognize(ctx, index, f.known[index], e, ok); err != nil {
			return err
		}
	}
	return nil
}

// recognize takes note of who is behind an interface that the program is attached to.
func (f *Follower) recognize(ctx context.Context, index uint32, d *device, e endpoint.Endpoint, found bool) error {
	switch {
	case found && e.Pod != nil:
		news := d.pod == nil || d.pod.Name == nil && e.Pod.Name != nil
		if d.pod == nil || e.Pod.Name != nil {
			d.pod = e.Pod
		}
		d.early = time.Time{}
		if news && d.pod.Name == nil {
			f.names.soon()
		}
		if news {
			return f.tell(Event{Kind: Identified, DevName: d.name, IfIndex: index, Pod: d.pod})
		}
	case d.early.IsZero(), !found && time.Since(d.early) < patience:
	default:
		_, err := f.API.Detach(ctx, datapath.DetachRequest{Hook: f.Request.Hook, Name: f.Request.Name, Program: f.Request.Program, Device: d.name, Direction: f.Request.Direction})
		if err != nil {
			return unlessLocked(err)
		}
		f.waiting[index] = &waiting{detached: true}
		return f.ended(ctx, Detached, map[uint32]*device{index: d})
	}
	return nil
}
