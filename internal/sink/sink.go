// Package sink sends alerts to other systems. Each sink has a queue and a goroutine of
// its own, so that none waits for another one, and who sends waits for none. It doesn't
// touch the kernel's programs and maps.
package sink

import (
	"context"
	"slices"
	"sync"
	"time"

	"bpfnet/internal/alert"
)

// Event is an alert on its way.
type Event struct {
	Alert    alert.Alert
	Document []byte // its compact JSON, of ASCII without control characters

	labels map[string]string // that Alertmanager has of it
}

// Options are what sinks need of the world.
type Options struct {
	Host     string // the name of this machine
	Getenv   func(string) string
	ReadFile func(string) ([]byte, error)
	Now      func() time.Time
	Note     func(string) // tells what becomes of a sink; called by several goroutines
}

// How long things take.
const (
	requestTime  = 10 * time.Second       // the longest request
	flushTime    = 5 * time.Second        // what is left in the end
	endTime      = time.Second            // until goroutines that were told to end did
	firstPause   = 500 * time.Millisecond // before it is tried again, twice as long each time
	longestPause = 30 * time.Second
	longestAfter = 5 * time.Minute // that a server may ask for
)

// queueLength is how many alerts may wait for a sink.
const queueLength = 1000

// Set are sinks that get the same alerts. nil are none.
type Set struct {
	outlets []*outlet
	cancel  context.CancelFunc
	once    sync.Once
}

// Open opens sinks, of which Stdout isn't one; Close closes them. Errors are of kind
// fault.ErrUsage, fault.ErrNotFound and fault.ErrPermission; whether a server answers
// isn't looked at.
func Open(specs []Spec, o Options) (*Set, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Set{cancel: cancel}
	drivers := make([]driver, 0, len(specs))
	specs = slices.Clone(specs)
	for i := range specs {
		d, err := specs[i].open(o)
		if err != nil {
			for _, d := range drivers {
				d.close()
			}
			cancel()
			return nil, err
		}
		drivers = append(drivers, d)
	}
	for i, d := range drivers {
		if c, ok := d.(*command); ok {
			c.secrets = secretVariables(specs)
		}
		s.outlets = append(s.outlets, newOutlet(ctx, specs[i].Name(), d, o.Note))
	}
	return s, nil
}

// Send gives an alert to all sinks and doesn't wait. A sink whose queue is full doesn't
// get it, which is counted. One goroutine may send, until Close.
func (s *Set) Send(e Event) {
	if s == nil {
		return
	}
	for _, o := range s.outlets {
		o.send(e)
	}
}

// Status is how a sink does. Numbers are of alerts, but for Retries.
type Status struct {
	Sink      string // its name, which may be that of several
	Delivered uint64
	Dropped   uint64 // its queue was full
	Refused   uint64 // it doesn't want them
	Waiting   uint64 // in the queue, or on the way
	Retries   uint64 // how often something was tried again
	Failing   bool   // it didn't take what it was sent last
}

// Status returns how sinks do, in the order in which they were given. It may be called
// at any time.
func (s *Set) Status() (all []Status) {
	if s == nil {
		return nil
	}
	for _, o := range s.outlets {
		all = append(all, o.status())
	}
	return all
}

// Undelivered is what a sink didn't get.
type Undelivered struct {
	Sink    string
	Dropped uint64 // its queue was full
	Refused uint64 // it doesn't want them
	Left    uint64 // it didn't answer until the end
}

// Sum adds them up.
func (u Undelivered) Sum() uint64 { return u.Dropped + u.Refused + u.Left }

// Close gives sinks some seconds to take what waits for them, closes them, and returns
// those that didn't get all, in the order in which they were given.
func (s *Set) Close() (missing []Undelivered) {
	if s == nil {
		return nil
	}
	s.once.Do(s.end)
	for _, o := range s.outlets {
		if u := o.undelivered(); u.Sum() > 0 {
			missing = append(missing, u)
		}
	}
	return missing
}

func (s *Set) end() {
	for _, o := range s.outlets {
		close(o.closing)
		close(o.queue)
	}
	s.wait(flushTime)
	s.cancel()
	s.wait(endTime)
}

// wait waits until all sinks have ended, but not longer than a time.
func (s *Set) wait(longest time.Duration) {
	over := time.After(longest)
	for _, o := range s.outlets {
		select {
		case <-o.ended:
		case <-over:
			return
		}
	}
}
