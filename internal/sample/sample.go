// Package sample has what every document made of two samples of counters needs:
// rates between them, and rows in the order of a field that the user names.
package sample

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"bpfnet/internal/fault"
)

// PerSecond is how much grew per second, rounded to whole units; nil when no
// time has passed.
func PerSecond(grown uint64, elapsed time.Duration) *uint64 {
	if elapsed <= 0 {
		return nil
	}
	rate := uint64(math.Round(float64(grown) / elapsed.Seconds()))
	return &rate
}

// Grown is by how much a counter grew that may have begun anew.
func Grown(before, now uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// Interval is the time between two samples in seconds, in steps of a
// millisecond; nil when there is none.
func Interval(elapsed time.Duration) *float64 {
	if elapsed <= 0 {
		return nil
	}
	seconds := math.Round(elapsed.Seconds()*1000) / 1000
	return &seconds
}

// Value is what p points to, the zero value for nil: unknown sorts as nothing.
func Value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// Fields are the fields that rows can be sorted by, and how each compares.
type Fields[T any] map[string]func(a, b T) int

// By compares a field of rows.
func By[T any, F cmp.Ordered](field func(T) F) func(a, b T) int {
	return func(a, b T) int { return cmp.Compare(field(a), field(b)) }
}

// Names lists the fields, sorted.
func (f Fields[T]) Names() []string {
	names := make([]string, 0, len(f))
	for name := range f {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Check returns an error of kind fault.ErrUsage if order, a field with "-" in
// front for descending, isn't one.
func (f Fields[T]) Check(order string) error {
	if _, ok := f[strings.TrimPrefix(order, "-")]; !ok {
		return fault.New(fault.ErrUsage, "sort by %q: no such field", order).
			Hint("fields are %s; a - in front sorts descending", strings.Join(f.Names(), ", "))
	}
	return nil
}

// Compare returns the comparison that an order, which passes Check, asks for.
func (f Fields[T]) Compare(order string) func(a, b T) int {
	field, descending := strings.CutPrefix(order, "-")
	compare := f[field]
	if !descending {
		return compare
	}
	return func(a, b T) int { return -compare(a, b) }
}
