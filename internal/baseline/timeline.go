package baseline

import "time"

// slack is by how much the time of day may differ from the time that has passed before
// a clock counts as set.
const slack = 2 * time.Second

// timeline is the time of samples. Documents have it in whole seconds, and the time
// between two more exactly.
type timeline struct {
	window  time.Duration
	now     time.Time     // zero: there was no sample
	longest time.Duration // between two samples
}

// advance goes to the next sample. It isn't known when what came since the last one did
// if that begins a recording, if a clock was set or if a window may be in between.
func (t *timeline) advance(at time.Time, interval *float64) (before time.Time, known bool) {
	before = t.now
	if before.IsZero() || interval == nil {
		t.now = at
		return before, false
	}
	apart := time.Duration(*interval * float64(time.Second))
	next := before.Add(apart)
	t.now = next
	if latest := at.Add(time.Second - time.Millisecond); next.Before(at) {
		t.now = at
	} else if next.After(latest) {
		t.now = latest
	}
	if t.now.Sub(next).Abs() > slack {
		return before, false
	}
	if !t.now.After(before) {
		t.now = before.Add(time.Millisecond)
	}
	t.longest = max(t.longest, apart)
	return before, !t.tooFar(apart)
}

// tooFar says whether two samples are so far apart that what a window had in between
// isn't known. Ticks that are as long as the window may be a little late.
func (t *timeline) tooFar(apart time.Duration) bool { return apart > t.window*3/2 }

// begin is when the window began that ends at a time or after it.
func (t *timeline) begin(at time.Time) time.Time { return at.Add(-1).Truncate(t.window) }
