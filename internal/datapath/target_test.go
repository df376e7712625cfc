package datapath

import (
	"errors"
	"testing"

	"bpfnet/internal/fault"
)

func TestCheckTarget(t *testing.T) {
	for _, test := range []struct {
		req  AttachRequest
		want error
	}{
		{AttachRequest{Hook: "tc", Device: "lo"}, nil},
		{AttachRequest{Hook: "tc", Device: "nosuch"}, fault.ErrNotFound},
		{AttachRequest{Hook: "cgroup", Cgroup: "/sys/fs/cgroup/nosuch"}, fault.ErrNotFound},
		{AttachRequest{Hook: "cgroup", Cgroup: "/proc"}, fault.ErrUsage},
		{AttachRequest{Hook: "trace"}, nil},
	} {
		if err := new(Engine).CheckTarget(test.req); !errors.Is(err, test.want) {
			t.Errorf("%+v: %v", test.req, err)
		}
	}
}
