package workload

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"bpfnet/internal/testkit"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(testkit.Run(m))
}

// TestCases: what one end has sent, the other has received, and the kernel has counted
// the same.
func TestCases(t *testing.T) {
	places := map[string]func(testing.TB) Place{"loopback": Loopback, "veth": Veth}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			place := place(t)
			for _, c := range Cases() {
				if testing.Short() && name == "veth" && !strings.HasSuffix(c.Name, "MB") {
					continue
				}
				t.Run(c.Name, func(t *testing.T) {
					w := &world{TB: t, place: place}
					rows := w.run(c, nil, func() { w.compareInfo(c) })
					for _, r := range rows {
						t.Logf("%+v", r)
					}
					w.compare(c, rows)
				})
			}
		})
	}
}

// TestRun: hooks are called when they should be, and rows say whose they are.
func TestRun(t *testing.T) {
	place := Loopback(t)
	for _, c := range Cases() {
		if c.Name != "tcp4/existing-queue" && c.Name != "udp4/unconnected" {
			continue
		}
		var calls []string
		var open []Expected
		rows := Run(t, c, place, Hooks{
			Load: func() { calls = append(calls, "load") },
			Open: func(rows []Expected) {
				calls, open = append(calls, "open"), rows
				for _, r := range rows {
					stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.PID))
					if err != nil || strings.Fields(string(stat))[21] != fmt.Sprint(r.StartTime) {
						t.Errorf("process %d began at %d: %s, %v", r.PID, r.StartTime, stat, err)
					}
				}
			},
		})
		if !slices.Equal(calls, []string{"load", "open"}) {
			t.Errorf("%s: hooks %q", c.Name, calls)
		}
		if want := map[bool]int{true: 2, false: 8}[c.Existing]; len(rows) != want || !sameRows(rows, open) {
			t.Errorf("%s: %d rows, not %d: %+v, while open %+v", c.Name, len(rows), want, rows, open)
		}
		sent, received := total(rows)
		folded := BySocket(rows)
		if s, r := total(folded); s != sent || r != received || !c.Existing && len(folded) != 4 {
			t.Errorf("%s: by socket %+v", c.Name, folded)
		}
	}
}

func sameRows(a, b []Expected) bool {
	in := map[Expected]bool{}
	for _, r := range a {
		in[r] = true
	}
	return len(a) == len(b) && !slices.ContainsFunc(b, func(r Expected) bool { return !in[r] })
}

// compare compares both ends. Raw sockets receive headers, and ping sockets what the
// kernel answers.
func (w *world) compare(c Case, rows []Expected) {
	w.Helper()
	if len(rows) == 0 {
		w.Fatal("nothing has moved")
	}
	if t := rows[0].Transport; t == "raw" || t == "icmp" {
		return
	}
	sent, received := total(rows)
	if sent+w.queued != received+w.discarded {
		w.Errorf("sent %d and %d before, received %d, discarded %d", sent, w.queued, received, w.discarded)
	}
	if w.queued != 0 || w.discarded != 0 || slices.ContainsFunc(rows, func(r Expected) bool { return !r.Peer.IsValid() }) {
		return
	}
	type direction struct{ from, to uint16 }
	out, in := map[direction]uint64{}, map[direction]uint64{}
	for _, r := range rows {
		if r.TransmitBytes > 0 {
			out[direction{r.Local.Port(), r.Peer.Port()}] += r.TransmitBytes
		}
		if r.ReceiveBytes > 0 {
			in[direction{r.Peer.Port(), r.Local.Port()}] += r.ReceiveBytes
		}
	}
	if !maps.Equal(out, in) {
		w.Errorf("sent %v, received %v", out, in)
	}
}

// compareInfo compares what calls returned with what TCP has counted since the sockets
// were connected.
func (w *world) compareInfo(c Case) {
	w.Helper()
	if c.Existing {
		return
	}
	type connection struct {
		cookie      uint64
		local, peer netip.AddrPort
	}
	moved := map[connection]Expected{} // by all processes
	for _, r := range w.expected() {
		all := moved[connection{r.Cookie, r.Local, r.Peer}]
		all.add(r)
		moved[connection{r.Cookie, r.Local, r.Peer}] = all
	}
	for _, p := range w.procs {
		for _, i := range p.do(request{Op: "info"}).Infos {
			calls := moved[connection{i.Cookie, i.Local, i.Peer}]
			unread := i.Received - calls.ReceiveBytes // the FIN is one byte
			if i.Sent != calls.TransmitBytes || unread > 1+uint64(w.discarded) {
				w.Errorf("the kernel counts %+v, calls returned %+v", i, calls)
			}
		}
	}
}
