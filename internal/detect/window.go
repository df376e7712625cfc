package detect

import "math/bits"

// clock is a time on the samples' own clock, in milliseconds: it moves by the time
// between samples, whatever the time of day does.
type clock int64

// buckets is how many a window has.
const buckets = 20

// tooFar says whether two samples are so far apart that what a window had in between
// isn't known. Ticks that are as long as the window may be a little late.
func tooFar(apart, window clock) bool { return apart > window*3/2 }

// window is how much came in the last buckets, and in the one before them, which a
// window that doesn't end with a bucket has in part.
type window struct {
	sums [buckets + 1]uint64 // by the number of the bucket
	head clock               // the number of the newest one
}

// advance makes the bucket of a time the newest one.
func (w *window) advance(now, width clock) {
	head := now / width
	for b := max(w.head+1, head-buckets); b <= head; b++ {
		w.sums[b%(buckets+1)] = 0
	}
	w.head = max(w.head, head)
}

// add spreads n evenly over the time from one sample to another, the newest one.
func (w *window) add(from, to clock, n uint64, width clock) {
	w.advance(to, width)
	for b := max(from/width, w.head-buckets); b*width < to; b++ {
		sum := &w.sums[b%(buckets+1)]
		*sum = plus(*sum, part(n, min(to, (b+1)*width)-from, to-from)-part(n, max(from, b*width)-from, to-from))
	}
}

// sum is how much came in the window that ends now.
func (w *window) sum(now, width clock) uint64 {
	w.advance(now, width)
	oldest := w.head - buckets
	total := part(w.sums[oldest%(buckets+1)], (oldest+1)*width-(now-buckets*width), width)
	for b := oldest + 1; b <= w.head; b++ {
		total = plus(total, w.sums[b%(buckets+1)])
	}
	return total
}

// part is n*a/b, rounded down; a is at most b.
func part(n uint64, a, b clock) uint64 {
	high, low := bits.Mul64(n, uint64(a))
	quotient, _ := bits.Div64(high, low, uint64(b))
	return quotient
}

// plus is the sum of two numbers, or the largest there is.
func plus(a, b uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	if carry > 0 {
		return ^uint64(0)
	}
	return sum
}
