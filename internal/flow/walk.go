package flow

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
)

// wholeEvery is after what time a walk leaves nothing out, so that the end of a socket that
// nobody told is noticed, too.
const wholeEvery = time.Minute

// walk is what a reader knows of its own walks over the sockets.
type walk struct {
	own    uint32    // number of the last one
	number uint64    // the same among the walks of all readers
	before [2]uint64 // of the two before: a walk over a table that changes may miss a socket once
	isAll  bool      // it leaves nothing out
	all    uint32    // own number of the last such
	at     time.Time // when that began
	alls   int       // so many such are to come next
}

// again has the next two walks leave nothing out.
func (w *walk) again() { w.alls = 2 }

// begin begins a walk, which is likely to get a number among those of all readers. Call
// done behind it.
func (w *walk) begin(objects datapath.Objects, number uint64) (done func(), err error) {
	w.own, w.number = w.own+1, number
	w.isAll = w.own == 1 || w.alls > 0 || time.Since(w.at) >= wholeEvery
	next := bpf.FlowWalk{Number: number, Since: w.before[0]}
	if w.isAll {
		next.Since, w.at = 0, time.Now()
	}
	m, err := objects.Map(bpf.FlowWalks)
	if err != nil {
		return nil, err
	}
	if !seenAsIs() {
		w.isAll = true
		return func() {}, nil
	}
	runtime.LockOSThread()
	thread := uint64(unix.Getpid())<<32 | uint64(unix.Gettid())
	done = func() {
		_ = m.Delete(thread) // it may not be there
		runtime.UnlockOSThread()
	}
	switch err := m.Put(thread, next); {
	case errors.Is(err, unix.EPERM): // it was opened to be read only
		w.isAll = true
	case err != nil:
		done()
		return nil, fmt.Errorf("begin to read the counters of sockets: %w", err)
	}
	return done, nil
}

// end ends a walk. Where it has left nothing out, what wasn't told since the walk that is
// returned isn't there any more.
func (w *walk) end() (since uint32, ok bool) {
	w.before[0], w.before[1] = w.before[1], w.number
	if w.own == 1 {
		w.before[0] = w.number
	}
	if !w.isAll {
		return 0, false
	}
	since, w.all = w.all, w.own
	w.alls = max(0, w.alls-1)
	return since, true
}

// seenAsIs says whether programs see this process under the number that it has.
var seenAsIs = sync.OnceValue(func() bool {
	const first = "pid:[4026531836]" // PROC_PID_INIT_INO
	namespace, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && namespace == first
})
