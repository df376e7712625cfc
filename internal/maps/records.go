package maps

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
)

// Records are the records of a ring buffer as bytes, for who knows their type.
type Records struct {
	// Notes is what there is to say about other readers.
	Notes []string
	ring  *ring
	batch [][]byte
}

// OpenRecords reads a ring buffer, called ref in errors, and closes it in the
// end. It has one reader, as API.Events says, with the same errors.
func OpenRecords(ctx context.Context, m *ebpf.Map, ref string, lockTimeout time.Duration, steal bool) (*Records, error) {
	h, err := newBytes(m)
	if err == nil {
		err = h.describe(ref)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	r, err := claimRing(ctx, h, lockTimeout, steal)
	if err != nil {
		h.Close()
		return nil, err
	}
	return r, nil
}

func claimRing(ctx context.Context, h *handle, lockTimeout time.Duration, steal bool) (*Records, error) {
	unlock, err := lockClaims(ctx, lockTimeout)
	if err != nil {
		return nil, fmt.Errorf("read events of map %s: %w", h.about.Ref, err)
	}
	defer unlock()
	notes, err := h.claim(ctx, steal)
	if err != nil {
		return nil, err
	}
	ring, err := openRing(h)
	if err != nil {
		return nil, err
	}
	return &Records{Notes: notes, ring: ring}, nil
}

// Close closes the ring buffer.
func (r *Records) Close() error { return r.ring.close() }

// IsFull says whether a record of so many bytes finds no space now.
func (r *Records) IsFull(bytes int) bool { return r.written()+space(bytes) >= r.ring.size }

// Waiting is how many records of so many bytes there are that weren't taken out, those
// that Emit has among them.
func (r *Records) Waiting(bytes int) int { return int(r.written() / space(bytes)) }

// written is how many bytes of the map are in use.
func (r *Records) written() uint64 {
	return uint64(atomic.LoadUintptr(position(r.ring.producer)) - atomic.LoadUintptr(position(r.ring.consumer)))
}

// space is what a record of so many bytes takes.
func space(bytes int) uint64 { return ringHeader + uint64(bytes+7)&^7 }

// Reading says how to read records.
type Reading struct {
	// Emit gets the records that are there, which are taken out of the map when
	// it returned nil, and not before. They are overwritten afterwards.
	Emit func(records [][]byte) error
	// Most is how many Emit may get next; 0 ends the reading.
	Most func() int
	// Idle is called when there was nothing to read for a while.
	Idle func() error
	// Pending ends the reading when nothing is there any more.
	Pending bool
}

// Read reads until there were enough, one of the functions fails, or ctx ends,
// which is no error.
func (r *Records) Read(ctx context.Context, how Reading) error {
	w, err := newWaker(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	for ctx.Err() == nil {
		most := min(how.Most(), batchRecords)
		if most == 0 {
			return nil
		}
		n, err := r.take(most, how.Emit)
		switch {
		case err != nil:
			return err
		case n > 0:
			continue
		case how.Pending && !r.ring.busy:
			return nil
		}
		if err := r.ring.wait(w); err != nil {
			return err
		}
		if err := how.Idle(); err != nil {
			return err
		}
	}
	return nil
}

// take emits what is there, at most so many records, and takes it out of the
// map.
func (r *Records) take(most int, emit func([][]byte) error) (int, error) {
	r.batch = r.batch[:0]
	for len(r.batch) < most {
		next, ok, err := r.ring.next()
		if err != nil {
			return 0, fmt.Errorf("read events of map %s: %w", r.ring.h.about.Ref, err)
		}
		if !ok {
			break
		}
		r.batch = append(r.batch, next.data)
	}
	if len(r.batch) > 0 {
		if err := emit(r.batch); err != nil {
			r.ring.fresh = true // the next reading begins with them
			return 0, err
		}
	}
	r.ring.release()
	return len(r.batch), nil
}
