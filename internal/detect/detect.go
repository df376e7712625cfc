// Package detect has the rules that notice things in samples of traffic and of whom
// endpoints contact. They are functions of the samples and of the time between them, so
// that a recording gives what a watch gave. It doesn't touch the kernel.
package detect

import (
	"time"

	"bpfnet/internal/traffic"
)

// Kind says what an endpoint is.
type Kind string

// The kinds.
const (
	Pod       Kind = "pod"
	Container Kind = "container" // in no Pod
	Address   Kind = "address"   // at an interface or in a cgroup of whom no more is known
)

// EndedBy says why an episode is over.
type EndedBy string

// The reasons.
const (
	Below EndedBy = "below" // there was less for a whole window
	Gone  EndedBy = "gone"  // so it was, and the endpoint isn't in the samples any more
)

// Episode is that an endpoint has reached a rule's threshold, or that this is over.
type Episode struct {
	Kind      Kind
	Source    traffic.Who   // of what is the endpoint's, that which did most when one last did something
	Sources   int           // how many there are, by address and interface or cgroup
	Point     traffic.Point // where it was counted
	Started   time.Time     // the sample that reached the threshold first
	Ended     time.Time     // the first one below it for good; the zero value: it isn't over
	EndedBy   EndedBy       // empty: it isn't over
	Amount    uint64        // in the window before this sample
	Peak      uint64        // the most in a window since it started
	Threshold uint64        // that was reached
	Lost      uint64        // what found no room, since the first sample
}

// EndsBelow is what a window has to have less than for an episode to end: four fifths
// of the threshold.
func (e Episode) EndsBelow() uint64 { return e.Threshold - e.Threshold/5 }

// Timing is how long a rule looks.
type Timing struct {
	Window  time.Duration // whole seconds
	Lasting time.Duration // how long it has to last, whole seconds; 0: it needn't
}

// Times is the timing of any rule.
func (t Timing) Times() Timing { return t }
