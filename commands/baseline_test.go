package commands

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestLookOnce(t *testing.T) {
	slow := func(ctx context.Context) error {
		<-ctx.Done()
		return fmt.Errorf("read a map: %w", ctx.Err())
	}
	if late, err := lookOnce(t.Context(), slow); !late || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: late %v, %v", late, err)
	}
	gone := errors.New("gone")
	for _, want := range []error{nil, gone} {
		if late, err := lookOnce(t.Context(), func(context.Context) error { return want }); late || err != want {
			t.Errorf("late %v, %v, want %v", late, err, want)
		}
	}
}
