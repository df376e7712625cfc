package maps

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"bpfnet/internal/fault"
	"bpfnet/internal/holders"
	"bpfnet/pinned"
)

// The kernel doesn't say who reads the records of a map. Whoever does has the
// map open, so a process that has it open for longer than a glance is taken for
// its reader.
const (
	glance     = 200 * time.Millisecond
	claimRetry = 20 * time.Millisecond
)

// claim refuses a map that another process has open, unless steal is set, and
// returns what there is to say about it.
func (h *handle) claim(ctx context.Context, steal bool) (notes []string, err error) {
	others, scanErr := h.holders(ctx)
	switch {
	case scanErr != nil && !errors.Is(scanErr, holders.ErrIncomplete):
		return nil, fmt.Errorf("read events of map %s: %w", h.about.Ref, scanErr)
	case len(others) > 0 && !steal:
		return nil, h.taken(others)
	case len(others) > 0:
		notes = append(notes, h.stolen(others))
	case errors.Is(scanErr, holders.ErrBlind) && !steal: // a few closed processes are no news
		notes = append(notes, fmt.Sprintf("another reader of map %s could be overlooked: %s", h.about.Ref, scanErr))
	}
	return notes, nil
}

// holders returns the processes that have the map open and keep it open.
func (h *handle) holders(ctx context.Context) ([]holders.Process, error) {
	deadline := time.Now().Add(glance)
	for {
		found, err := holders.Scan(holders.Map, []uint32{h.about.ID})
		others := found[h.about.ID]
		if len(others) == 0 || ctx.Err() != nil || time.Now().After(deadline) {
			return others, err
		}
		time.Sleep(claimRetry)
	}
}

func (h *handle) taken(by []holders.Process) error {
	return fault.New(fault.ErrConflict, "read events of map %s: process %s has it open, and only one can read it", h.about.Ref, list(by)).
		Hint("--steal reads it all the same; if that process reads it too, records go to one of you or to both")
}

// stolen says what stealing means: two readers of a ring buffer move the same
// position, the slots of a perf event array change hands.
func (h *handle) stolen(by []holders.Process) string {
	if h.Type() == ebpf.RingBuf {
		return fmt.Sprintf("map %s is open in process %s: if that reads it, a record goes to one of you or to both", h.about.Ref, list(by))
	}
	return fmt.Sprintf("map %s is open in process %s: if that reads it, it gets no more records, also afterwards", h.about.Ref, list(by))
}

func list(processes []holders.Process) string {
	texts := make([]string, len(processes))
	for i, p := range processes {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}

// lockClaims lets one bpfnet at a time open a map and look who else has it
// open, so that of two that start at once one comes first. Where bpffs can't be
// locked they aren't kept apart. fault.ErrLocked says who held the lock too long.
func lockClaims(ctx context.Context, timeout time.Duration) (unlock func(), err error) {
	unlock, err = pinned.LockMount(ctx, timeout)
	switch {
	case errors.Is(err, fault.ErrLocked):
		return nil, err
	case err != nil:
		return func() {}, nil
	}
	return unlock, nil
}
