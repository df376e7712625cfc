package flow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

// counted is how many sockets a process, 0 for none, has in a state.
type counted map[string]int

func (c counted) add(pid int, state string, n int) { c[fmt.Sprintf("%d %s", pid, state)] += n }

// census counts those of the site.
func (s *site) census(r CensusRequest) counted {
	s.Helper()
	census, _, err := TakeCensus(context.Background(), r)
	s.must(err)
	c := counted{}
	for _, row := range census.Rows {
		if row.NetNS == s.inode {
			c.add(int(row.PID), row.TCP.State, 1)
		}
	}
	if census.Seen < 2 {
		s.Errorf("%d namespaces were seen", census.Seen)
	}
	return c
}

// TestCensusByName counts sockets of a namespace in which there is no process: one
// elsewhere has them.
func TestCensusByName(t *testing.T) {
	s, want := newNamed(t), counted{}
	s.pair()
	want.add(os.Getpid(), "established", 2)
	if got := s.census(CensusRequest{Filter: Filter{Transports: []string{"tcp"}}}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestCensus counts sockets of two processes, and of none, in many states, and compares
// with what ss(8) finds.
func TestCensus(t *testing.T) {
	s := newSite(t)
	s.in(func() error { return blackhole("198.51.100.0/24") })
	me := os.Getpid()
	l, at := s.listen()
	address := fmt.Sprintf("127.0.0.1:%d", at.Port)
	other := s.dialer("", "/127.0.0.1:4500", address, address)
	want := counted{}
	want.add(me, "listen", 1)
	want.add(other, "listen", 1)
	want.add(other, "established", 2)
	l.accept()
	want.add(me, "established", 1)
	want.add(0, "established", 1) // not accepted

	first, second := s.pair()
	first.shutdown()
	want.add(me, "fin_wait2", 1)
	want.add(me, "close_wait", 1)
	_ = second

	for range 3 {
		a, b := s.pair()
		a.close()
		b.eof()
		b.close()
		want.add(0, "time_wait", 1)
	}

	c := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	c.connect(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{198, 51, 100, 7}})
	want.add(me, "syn_sent", 1)

	deferring, to := s.listen()
	deferring.set(unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30)
	want.add(me, "listen", 1)
	waiting := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	waiting.connect(to)
	waiting.ready(unix.POLLOUT)
	want.add(me, "established", 1)
	want.add(0, "syn_recv", 1)

	six := s.socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	six.must(unix.Bind(six.fd, &unix.SockaddrInet6{Port: 4600}))
	six.must(unix.Listen(six.fd, 1))
	mappedEnd := s.socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	mappedEnd.connect(mapped(4600))
	want.add(me, "listen", 1)
	want.add(me, "established", 1)
	want.add(0, "established", 1)

	bound := s.socket(unix.AF_INET, unix.SOCK_STREAM, 0) // is no connection, and ss doesn't have it
	bound.must(unix.Bind(bound.fd, loopback(4700)))

	got := s.census(CensusRequest{Filter: Filter{Transports: []string{"tcp"}}, Listen: true})
	for end := time.Now().Add(3 * time.Second); !maps.Equal(want, got) && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		got = s.census(CensusRequest{Filter: Filter{Transports: []string{"tcp"}}, Listen: true})
	}
	if !maps.Equal(want, got) {
		t.Errorf("%v, want %v", got, want)
	}
	s.likeSS(got)

	for name, c := range map[string]struct {
		request CensusRequest
		has     func(pid int, state string) bool
	}{
		"no listeners": {CensusRequest{}, func(_ int, state string) bool { return state != "listen" }},
		"states":       {CensusRequest{States: []string{"time_wait", "listen"}}, func(_ int, state string) bool { return state == "time_wait" || state == "listen" }},
		"states and listeners": {
			CensusRequest{States: []string{"syn_sent"}, Listen: true},
			func(_ int, state string) bool { return state == "syn_sent" || state == "listen" },
		},
		"process": {CensusRequest{Filter: Filter{PIDs: []uint32{uint32(other)}}}, func(pid int, state string) bool { return pid == other && state != "listen" }},
	} {
		t.Run(name, func(t *testing.T) {
			want := maps.Clone(want)
			maps.DeleteFunc(want, func(key string, _ int) bool {
				var pid int
				var state string
				_, err := fmt.Sscan(key, &pid, &state)
				return err != nil || !c.has(pid, state)
			})
			c.request.Filter.Transports = []string{"tcp"}
			if got := s.census(c.request); !maps.Equal(want, got) {
				t.Errorf("%v, want %v", got, want)
			}
		})
	}
	for name, c := range map[string]struct {
		request CensusRequest
		err     error
	}{
		"transport": {CensusRequest{Filter: Filter{Transports: []string{"mptcp"}}}, fault.ErrUnsupported},
		"state":     {CensusRequest{States: []string{"open"}}, fault.ErrUsage},
		"process":   {CensusRequest{Filter: Filter{PIDs: []uint32{1 << 30}}}, fault.ErrNotFound},
	} {
		if _, _, err := TakeCensus(context.Background(), c.request); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// likeSS compares the numbers of states with those of ss(8).
func (s *site) likeSS(got counted) {
	s.Helper()
	if _, err := exec.LookPath("ss"); err != nil {
		s.Log("no ss to compare with")
		return
	}
	var out []byte
	s.in(func() (err error) {
		out, err = exec.Command("ss", "-Htan").Output()
		return err
	})
	words := map[string]string{
		"ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_recv", "FIN-WAIT-2": "fin_wait2", "TIME-WAIT": "time_wait",
		"CLOSE-WAIT": "close_wait", "LISTEN": "listen",
	}
	want, all := map[string]int{}, map[string]int{}
	for line := range strings.Lines(string(out)) {
		word, _, _ := strings.Cut(line, " ")
		want[words[word]]++
	}
	for key, n := range got {
		_, state, _ := strings.Cut(key, " ")
		all[state] += n
	}
	if !maps.Equal(all, want) {
		s.Errorf("%v, but ss has %v:\n%s", all, want, out)
	}
}

// TestCount checks documents of a census.
func TestCount(t *testing.T) {
	row := func(cookie uint64, pid uint32, state string) Row {
		return Row{Cookie: cookie, Transport: "tcp", Process: Process{PID: pid, Start: uint64(pid), Command: "web"}, TCP: &TCP{State: state}}
	}
	c := Census{Rows: []Row{row(1, 7, "established"), row(2, 8, "established"), row(3, 7, "established"), row(4, 0, "time_wait"), row(5, 7, "syn_sent")}, Seen: 3, Skipped: 1}
	d := View{By: []string{"process", "state"}, Limit: 2}.Count(c)
	if d.Total != 5 || d.Others != (OtherCounts{2, 2}) || d.Namespaces != (NamespaceCounts{3, 1}) || len(d.Counts) != 2 {
		t.Fatalf("%+v", d)
	}
	if n := d.Counts[0]; n.Connections != 2 || *n.Process.PID != 7 || *n.State != "established" || n.Network.Transport != nil {
		t.Errorf("%+v", n)
	}
	if n := d.Counts[1]; n.Connections != 1 || n.Process.PID != nil || *n.State != "time_wait" {
		t.Errorf("%+v", n)
	}
	if words := CountDimensions(); !slices.Contains(words, "executable") || slices.Contains(words, "src.pod") {
		t.Error(words)
	}
}
