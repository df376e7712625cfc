package fault

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestJoin(t *testing.T) {
	first, second := errors.New("detach"), New(ErrConflict, "undo").Hint("a step")
	for _, c := range []struct {
		errs []error
		want string
	}{
		{nil, "<nil>"},
		{[]error{nil, nil}, "<nil>"},
		{[]error{nil, first}, "detach"},
		{[]error{first, nil, second}, "detach; undo"},
		{[]error{Join(first, second), first}, "detach; undo; detach"},
	} {
		if got := fmt.Sprint(Join(c.errs...)); got != c.want {
			t.Errorf("%v: %q, want %q", c.errs, got, c.want)
		}
	}
	both := fmt.Errorf("load: %w", Join(first, second))
	if !errors.Is(both, first) || !errors.Is(both, ErrConflict) || !slices.Equal(Hints(both), []string{"a step"}) {
		t.Errorf("%v hides what it consists of", both)
	}
}
