package sample

import (
	"errors"
	"slices"
	"testing"
	"time"

	"bpfnet/internal/fault"
)

type row struct{ size, age uint64 }

var fields = Fields[row]{
	"size": By(func(r row) uint64 { return r.size }),
	"age":  By(func(r row) uint64 { return r.age }),
}

func TestOrder(t *testing.T) {
	rows := []row{{2, 1}, {1, 2}, {3, 0}}
	for order, want := range map[string][]row{"size": {{1, 2}, {2, 1}, {3, 0}}, "-size": {{3, 0}, {2, 1}, {1, 2}}, "age": {{3, 0}, {2, 1}, {1, 2}}} {
		if err := fields.Check(order); err != nil {
			t.Error(err)
		}
		got := slices.SortedFunc(slices.Values(rows), fields.Compare(order))
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v", order, got)
		}
	}
	for _, order := range []string{"", "-", "nobody", "--size"} {
		if err := fields.Check(order); !errors.Is(err, fault.ErrUsage) || len(fault.Hints(err)) != 1 {
			t.Errorf("%q: %v", order, err)
		}
	}
}

func TestRates(t *testing.T) {
	if got := PerSecond(10, 4*time.Second); *got != 3 { // 2.5, rounded away from zero
		t.Errorf("%d", *got)
	}
	if got := Interval(1500600 * time.Microsecond); *got != 1.501 {
		t.Errorf("%v", *got)
	}
	if PerSecond(10, 0) != nil || Interval(0) != nil {
		t.Error("no time, and yet a rate")
	}
	if Value[int](nil) != 0 || *PerSecond(0, time.Second) != 0 {
		t.Error("nothing is not zero")
	}
}
