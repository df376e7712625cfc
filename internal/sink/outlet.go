package sink

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// driver is what a kind of sink does.
type driver interface {
	// most is how many events deliver takes at a time.
	most() int
	// deliver hands events over. It ends when ctx does.
	deliver(ctx context.Context, events []Event) result
	close()
}

// observer is a driver that sees events when they are sent, also those that find no
// room, and may add to them.
type observer interface{ observe(Event) Event }

// repeater is a driver that sends something again and again.
type repeater interface {
	every() time.Duration
	repeat(ctx context.Context) result
}

// result is what became of events. What is in neither was delivered.
type result struct {
	rest    []Event       // to be tried again
	after   time.Duration // not sooner
	refused int           // never will be delivered
	err     error         // why; nil if all were delivered
}

// outlet is a sink with its queue.
type outlet struct {
	driver
	name             string
	note             func(string)
	queue            chan Event
	closing, ended   chan struct{}
	sent, delivered  atomic.Uint64
	dropped, refused atomic.Uint64
	retries          atomic.Uint64
	failing          atomic.Bool

	// Of the goroutine that delivers.
	hurry <-chan struct{} // ends a pause once
	told  uint64          // dropped and refused, as far as notes have told
}

func newOutlet(ctx context.Context, name string, d driver, note func(string)) *outlet {
	o := &outlet{
		driver: d, name: name, note: note,
		queue: make(chan Event, queueLength), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	o.hurry = o.closing
	go o.work(ctx)
	return o
}

func (o *outlet) send(e Event) {
	if d, ok := o.driver.(observer); ok {
		e = d.observe(e)
	}
	o.sent.Add(1)
	select {
	case o.queue <- e:
	default:
		o.dropped.Add(1)
	}
}

func (o *outlet) status() Status {
	s := Status{
		Sink: o.name, Delivered: o.delivered.Load(), Dropped: o.dropped.Load(), Refused: o.refused.Load(),
		Retries: o.retries.Load(), Failing: o.failing.Load(),
	}
	s.Waiting = o.sent.Load() - s.Delivered - s.Dropped - s.Refused // read last, it is the most
	return s
}

func (o *outlet) undelivered() Undelivered {
	s := o.status()
	return Undelivered{Sink: s.Sink, Dropped: s.Dropped, Refused: s.Refused, Left: s.Waiting}
}

// work delivers what is in the queue until it is closed and empty, or ctx ends.
func (o *outlet) work(ctx context.Context) {
	defer close(o.ended)
	defer o.close()
	var again <-chan time.Time
	d, repeats := o.driver.(repeater)
	if repeats {
		ticker := time.NewTicker(d.every())
		defer ticker.Stop()
		again = ticker.C
	}
	for ctx.Err() == nil {
		select {
		case e, more := <-o.queue:
			if !more {
				return
			}
			o.push(ctx, o.gather(e))
		case <-again:
			o.settle(ctx, 0, o.attempt(ctx, d.repeat))
		}
	}
}

// gather takes as much of the queue as is delivered at a time, and doesn't wait.
func (o *outlet) gather(first Event) []Event {
	events := []Event{first}
	for len(events) < o.most() {
		select {
		case e, more := <-o.queue:
			if !more {
				return events
			}
			events = append(events, e)
		default:
			return events
		}
	}
	return events
}

// push delivers events, however often it has to be tried, or until ctx ends.
func (o *outlet) push(ctx context.Context, events []Event) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		r := o.attempt(ctx, func(ctx context.Context) result { return o.deliver(ctx, events) })
		o.settle(ctx, len(events), r)
		if events = r.rest; len(events) == 0 || !o.pause(ctx, max(jitter(pause), min(r.after, longestAfter))) {
			return
		}
		o.retries.Add(1)
	}
}

// attempt gives a driver the time that one request may take.
func (o *outlet) attempt(ctx context.Context, do func(context.Context) result) result {
	longest := requestTime
	if d, ok := o.driver.(interface{ longest() time.Duration }); ok {
		longest = d.longest()
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	return do(ctx)
}

// jitter is half of a time to all of it, so that machines that lost the same server
// don't come back at the same time.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

// pause waits, and says whether ctx hasn't ended. The end of the watch ends one pause.
func (o *outlet) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-o.hurry:
		o.hurry = nil
	case <-timer.C:
	}
	return true
}

// settle counts what became of n events, and tells when a sink stops taking them and
// when it does so again.
func (o *outlet) settle(ctx context.Context, n int, r result) {
	o.refused.Add(uint64(r.refused))
	o.delivered.Add(uint64(n - r.refused - len(r.rest)))
	switch {
	case ctx.Err() != nil:
	case r.err != nil && !o.failing.Load():
		o.failing.Store(true)
		o.note(fmt.Sprintf("sink %s: %v", o.name, r.err))
	case r.err == nil && o.failing.Load():
		o.failing.Store(false)
		text := fmt.Sprintf("sink %s takes alerts again", o.name)
		if lost := o.dropped.Load() + o.refused.Load(); lost > o.told {
			text += fmt.Sprintf("; not delivered meanwhile: %d", lost-o.told)
			o.told = lost
		}
		o.note(text)
	}
}
