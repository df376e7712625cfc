package detect

import (
	"math"
	"slices"
)

// How many windows, one after the other, an endpoint's history has at most, and at
// least before it says what is usual.
const (
	historyWindows = 120
	learnWindows   = 30
)

// LeastSpread is the least MAD, as a part of the mean: where all windows are the same
// the next one may be a little different.
const LeastSpread = 0.05

// Usual is what windows of an endpoint have had.
type Usual struct {
	Windows int     // how many
	Mean    float64 // of them
	MAD     float64 // the median of their distances from the median, at least a twentieth of the mean
}

// history is how much an endpoint had in each of the last windows.
type history struct {
	sums  []uint64 // the oldest one is at next when there are historyWindows
	next  int
	whole clock  // the number of the first window that was seen from its beginning
	sum   uint64 // of the window that the sample before was in
	after uint64 // of the one that the sample is in, if that is another
	usual *Usual // of sums; nil: not known
}

// add spreads n evenly over the time between two samples, of which what was before
// the window that the sample before was in doesn't count.
func (h *history) add(from, before, now clock, n uint64, width clock) {
	start, last := now/width*width, before/width*width
	if from < last {
		n, from = n-part(n, last-from, now-from), last
	}
	if start == last {
		h.sum = plus(h.sum, n)
		return
	}
	early := part(n, start-from, now-from)
	h.sum, h.after = plus(h.sum, early), plus(h.after, n-early)
}

// roll ends the window that the sample before was in if this one is in another. What
// isn't usual isn't learned, nor are windows that weren't seen as a whole, or of which
// two end at once.
func (h *history) roll(before, now, width clock, known, usual bool) {
	last, number := before/width, now/width
	if !known || tooFar(now-before, width) {
		h.whole = number + 1
	}
	if last == number {
		return
	}
	if usual && last >= h.whole && last+1 == number {
		h.learn(h.sum)
	}
	h.sum, h.after = h.after, 0
}

func (h *history) learn(sum uint64) {
	h.usual = nil
	if len(h.sums) < historyWindows {
		h.sums = append(h.sums, sum)
		return
	}
	h.sums[h.next] = sum
	h.next = (h.next + 1) % historyWindows
}

// known is what is usual, nil while that is being learned.
func (h *history) known() *Usual {
	if len(h.sums) < learnWindows {
		return nil
	}
	if h.usual == nil {
		u := usualOf(h.sums)
		h.usual = &u
	}
	return h.usual
}

func usualOf(sums []uint64) Usual {
	u := Usual{Windows: len(sums)}
	sorted := make([]float64, len(sums))
	for i, sum := range sums {
		sorted[i] = float64(sum)
		u.Mean += sorted[i] / float64(len(sums))
	}
	middle := median(sorted)
	for i := range sorted {
		sorted[i] = math.Abs(sorted[i] - middle)
	}
	u.MAD = max(median(sorted), LeastSpread*u.Mean)
	return u
}

// median sorts values.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

// threshold is so many MADs above the mean, and at least the floor.
func (u Usual) threshold(factor float64, floor uint64) uint64 {
	above := math.Ceil(u.Mean + factor*u.MAD)
	if above >= math.MaxUint64 {
		return math.MaxUint64
	}
	return max(floor, uint64(above))
}
