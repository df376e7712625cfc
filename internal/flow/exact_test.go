package flow

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
	"bpfnet/internal/workload"
)

func TestMain(m *testing.M) {
	workload.Main()
	os.Exit(testkit.Run(m))
}

func newEngine(t testing.TB) *datapath.Engine {
	t.Helper()
	engine, err := datapath.Open(datapath.Options{Root: testkit.Root(t)})
	if err != nil {
		t.Fatal(err)
	}
	return engine
}

// startIn begins to count with one mechanism, the best that works if it is "".
func startIn(t testing.TB, engine *datapath.Engine, mechanism string) *Reader {
	t.Helper()
	reader, notes, err := startPrivate(context.Background(), engine, Request{Backend: mechanism})
	what := "flows"
	if mechanism != "" {
		what += " by " + mechanism
	}
	testkit.Needs(t, what, err, fault.ErrUnsupported, fault.ErrRejected)
	if mechanism != "" && len(notes) > 0 {
		t.Errorf("notes: %q", notes)
	}
	t.Cleanup(func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	})
	return reader
}

func take(t testing.TB, sampler Sampler) Sample {
	t.Helper()
	sample, err := sampler.Sample(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return sample
}

// What each process has moved through each socket is counted to the byte, while the
// sockets are open and after they were closed.
func TestExact(t *testing.T) {
	for _, mechanism := range []string{"tp_btf", "fexit", "kprobe"} {
		t.Run(mechanism, func(t *testing.T) {
			started := startIn(t, newEngine(t), mechanism) // once, before all are tried
			take(t, started)                               // what it opens stays open
			if !testing.Short() {
				started = nil
			}
			place := workload.Loopback(t)
			for _, c := range cases() {
				t.Run(c.Name, func(t *testing.T) { exact(t, mechanism, started, c, place) })
			}
		})
	}
}

// cases are all; in a short test of TCP and UDP those of IPv4, and a few others.
func cases() []workload.Case {
	return slices.DeleteFunc(workload.Cases(), func(c workload.Case) bool {
		network, what, _ := strings.Cut(c.Name, "/")
		other := slices.Contains([]string{"tcp6", "tcp46", "udp6", "udp46"}, network)
		return testing.Short() && other && !slices.Contains([]string{"plain", "splice", "existing", "dual-stack"}, what)
	})
}

// exact is one case. It starts to count anew, unless it may take a reader that was started
// before: loading takes most of the time where a kernel is emulated.
func exact(t *testing.T, mechanism string, started *Reader, c workload.Case, place workload.Place) {
	var reader *Reader
	earlier := map[uint64]bool{}    // cookies of sockets of other cases
	engine := newEngine(t)          // before the processes, which a test that is skipped ends last
	totals := map[string]Counters{} // of rows that were closed
	in := namespaces(t, place)
	watch := NewWatch(View{})
	look := func() Sample {
		sample := take(t, reader)
		sample.Rows = slices.DeleteFunc(slices.Clone(sample.Rows), func(r Row) bool { return earlier[r.Cookie] })
		reconcile(t, watch, sample, in)
		return sample
	}
	want := workload.Run(t, c, place, workload.Hooks{
		Load: func() {
			if c.Existing || started == nil {
				reader = startIn(t, engine, mechanism)
				return
			}
			reader = started
			for _, row := range take(t, reader).Rows {
				earlier[row.Cookie] = true
			}
		},
		Open: func(want []workload.Expected) {
			sample := look()
			compare(t, "open", urgent(c, want), flowsOf(sample, in, totals), sample.Loss.Missed)
		},
	})
	sample := look()
	compare(t, "closed", urgent(c, want), flowsOf(sample, in, totals), sample.Loss.Missed)
}

// reconcile compares what was counted with the kernel's own counters, which don't miss
// anything while nothing moves.
func reconcile(t *testing.T, w *Watch, s Sample, in map[uint64]bool) {
	t.Helper()
	s.Rows = slices.DeleteFunc(slices.Clone(s.Rows), func(r Row) bool { return !in[r.NetNS] })
	w.Take(s)
	if ratio := w.Document().ReconcileRatio; ratio != nil && *ratio != 1 && s.Loss.Missed == 0 {
		t.Errorf("of %d bytes that the kernel moved %d were counted", w.kernel.of, w.kernel.counted)
	}
}

// urgent adds the byte of urgent data that is passed over, and counts as received although
// nobody has read it.
func urgent(c workload.Case, want []workload.Expected) []workload.Expected {
	want = slices.Clone(want)
	for i := range want {
		if strings.HasSuffix(c.Name, "/oob-unread") && want[i].ReceiveBytes > 0 {
			want[i].ReceiveBytes++
		}
	}
	return want
}

// namespaces are those of a place.
func namespaces(t *testing.T, place workload.Place) map[uint64]bool {
	t.Helper()
	in := map[uint64]bool{}
	for _, side := range []workload.Side{place.Client, place.Server} {
		inode, err := netns.Inode(side.NetNS)
		if err != nil {
			t.Fatal(err)
		}
		in[inode] = true
	}
	return in
}

// flowsOf is what the rows of a sample in some namespaces, and those that were closed before it, say.
func flowsOf(sample Sample, in map[uint64]bool, closed map[string]Counters) map[string]Counters {
	all := maps.Clone(closed)
	for _, row := range sample.Rows {
		if row.Counters == (Counters{}) || !in[row.NetNS] {
			continue
		}
		key := keyOf(int(row.PID), row.Cookie, row.Transport, row.Family, row.Local, row.Peer) + " " + string(row.Status)
		sum := all[key]
		sum.add(row.Counters)
		all[key] = sum
		if row.Closed != nil {
			sum = closed[key]
			sum.add(row.Counters)
			closed[key] = sum
		}
	}
	return all
}

// keyOf names a flow. With whom sockets other than TCP's and UDP's talk isn't known, nor
// on which of its addresses one did that is bound to none.
func keyOf(pid int, cookie uint64, transport string, family int, local, peer netip.AddrPort) string {
	if transport == "icmp" || transport == "raw" {
		return fmt.Sprintf("%d %d %d", pid, cookie, family)
	}
	return fmt.Sprintf("%d %d %s %d %d %v", pid, cookie, transport, family, local.Port(), peer)
}

// compare compares what was counted with what was moved; as many calls as were missed
// may lack.
func compare(t *testing.T, when string, want []workload.Expected, got map[string]Counters, missed uint64) {
	t.Helper()
	wanted := map[string]Counters{}
	for _, w := range want {
		key := keyOf(w.PID, w.Cookie, w.Transport, w.Family, w.Local, w.Peer) + " exact"
		counted, sum := got[key], wanted[key]
		more := Counters{TransmitBytes: w.TransmitBytes, ReceiveBytes: w.ReceiveBytes}
		if more.TransmitCalls = uint64(w.TransmitCalls); w.TransmitCalls < 0 {
			more.TransmitCalls = counted.TransmitCalls
		}
		if more.ReceiveCalls = uint64(w.ReceiveCalls); w.ReceiveCalls < 0 {
			more.ReceiveCalls = counted.ReceiveCalls
		}
		sum.add(more)
		wanted[key] = sum
	}
	fold(wanted, got)
	if maps.Equal(wanted, got) || missed > 0 && lacking(wanted, got) <= missed {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(wanted)) {
		if got[key] != wanted[key] {
			t.Errorf("%s: %s: %+v, want %+v", when, key, got[key], wanted[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if _, ok := wanted[key]; !ok {
			t.Errorf("%s: %s: %+v, which nobody moved", when, key, got[key])
		}
	}
}

// lacking is how many calls at least weren't counted; all of them if something was that
// nobody moved.
func lacking(wanted, got map[string]Counters) (calls uint64) {
	for key, has := range got {
		w := wanted[key]
		if has.TransmitBytes > w.TransmitBytes || has.ReceiveBytes > w.ReceiveBytes || has.TransmitCalls > w.TransmitCalls || has.ReceiveCalls > w.ReceiveCalls {
			return math.MaxUint64
		}
	}
	for key, w := range wanted {
		if has := got[key]; has != w {
			calls += max(1, w.TransmitCalls-has.TransmitCalls+w.ReceiveCalls-has.ReceiveCalls)
		}
	}
	return calls
}

// fold sums what those processes moved that a socket doesn't tell apart.
func fold(wanted, got map[string]Counters) {
	for shared := range got {
		whole, ok := strings.CutSuffix(shared, " shared")
		if !ok {
			continue
		}
		_, socket, _ := strings.Cut(whole, " ")
		for key, moved := range wanted {
			if _, told := got[key]; !told && strings.HasSuffix(key, " "+socket+" exact") {
				sum := wanted[shared]
				sum.add(moved)
				wanted[shared] = sum
				delete(wanted, key)
			}
		}
	}
}
