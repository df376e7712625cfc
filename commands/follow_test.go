package commands

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
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
	f.on("load pod-traffic")
	env.Open = func(context.Context, Options) (Backend, error) { return silentFollow{f}, nil }
	env.ReaderGone = func() bool { return true }
	if exit := Run(context.Background(), env, strings.Fields("attach tc pod-traffic --all-pods --follow")); exit != 0 {
		t.Errorf("exit %d: %s", exit, &stderr)
	}
}

// unfit can't be attached.
type unfit struct{ silentFollow }

func (unfit) Attach(context.Context, ...datapath.AttachRequest) (datapath.Attached, error) {
	return datapath.Attached{}, fault.New(fault.ErrUsage, "no program for tc")
}

// Following Pods doesn't begin with what can't be attached to those that there are.
func TestFollowUnfit(t *testing.T) {
	var stdout, stderr bytes.Buffer
	f := newFake()
	env := f.env(&stdout, &stderr)
	env.Open = func(context.Context, Options) (Backend, error) { return unfit{silentFollow{f}}, nil }
	exit := Run(context.Background(), env, strings.Fields("attach tc xdp-counter --all-pods --follow"))
	if exit != 2 || !strings.Contains(stderr.String(), "bpfnet: no program for tc\n") {
		t.Errorf("exit %d: %s", exit, &stderr)
	}
}
