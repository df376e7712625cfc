package commands

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"bpfnet/internal/datapath"
	"bpfnet/internal/follow"
)

// silentFollow tells of nothing.
type silentFollow struct{ *fake }

func (silentFollow) Follow(ctx context.Context, _ datapath.AttachRequest, _ func(follow.Event) error) error {
	<-ctx.Done()
	return nil
}

// Following Pods ends when nobody reads what it tells, also while nothing happens.
func TestFollowWithoutReader(t *testing.T) {
	var stdout, stderr bytes.Buffer
	f := newFake()
	env := f.env(&stdout, &stderr)
	env.Open = func(context.Context, Options) (Backend, error) { return silentFollow{f}, nil }
	env.ReaderGone = func() bool { return true }
	if exit := Run(context.Background(), env, strings.Fields("attach tc pod-traffic --all-pods --follow")); exit != 0 {
		t.Errorf("exit %d: %s", exit, &stderr)
	}
}
