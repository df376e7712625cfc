package commands

import (
	"context"
	"errors"
	"slices"
	"testing"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/sockets"
)

// hasty finds nothing for lack of time, and can't look for all else.
type hasty struct{ *fake }

func (hasty) Sockets() (sockets.API, error) { return hasty{}, nil }

func (hasty) Find(packets []sockets.Packet, hurry func() bool) (sockets.Answer, error) {
	if hurry() {
		return sockets.Answer{}, errors.New("it is in a hurry")
	}
	return sockets.Answer{Processes: make([]*sockets.Process, len(packets)), Missed: 1}, errors.New("look at process 1: permission denied")
}

// blind can't tell whose sockets are.
type blind struct{ *fake }

func (blind) Sockets() (sockets.API, error) { return nil, errors.New("CAP_SYS_PTRACE is missing") }

// That processes of alerts can't be told is a note, once, and how many there was no
// time for is told in the end.
func TestAlertProcessNotes(t *testing.T) {
	for _, test := range []struct {
		backend Backend
		want    []string
	}{
		{hasty{}, []string{
			"processes of alerts are not all known: look at process 1: permission denied",
			"alerts without a process, as there was no time to look for it: 2",
		}},
		{blind{}, []string{"processes of alerts are not all known: CAP_SYS_PTRACE is missing"}},
	} {
		var said []string
		a := newAlertProcesses(test.backend, &deviceNames{}, func(text string) { said = append(said, text) })
		for range 2 {
			if got := a.of(context.Background(), []blocklist.Event{{Hook: "cgroup"}}, &fakeHits{}); len(got) != 1 || got[0] != nil {
				t.Errorf("%T: %+v", test.backend, got)
			}
		}
		a.conclude()
		if !slices.Equal(said, test.want) {
			t.Errorf("%T: %q", test.backend, said)
		}
	}
}
