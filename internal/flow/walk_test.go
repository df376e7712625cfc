package flow

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// readers opens several readers of one loaded instance.
func readers(t *testing.T, n int) (all []*Reader) {
	t.Helper()
	ctx, engine := context.Background(), newEngine(t)
	_, err := engine.Load(ctx, datapath.LoadRequest{Source: Program, Name: "walked"})
	testkit.Needs(t, "loaded flows", err, fault.ErrUnsupported, fault.ErrRejected)
	_, err = engine.Attach(ctx, datapath.AttachRequest{Hook: "trace", Name: "walked"})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		r, _, err := openLoaded(ctx, engine, Request{Instance: "walked"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		all = append(all, r)
	}
	return all
}

// tells says whether the last walk of a reader has told a socket.
func tells(r *Reader, cookie uint64) bool {
	at, known := r.open.index[place{cookie: cookie}]
	return known && r.open.about[at].walk == r.walk.own
}

// has checks what the row of a socket says.
func has(t *testing.T, d *sampler, e peerEnd, state string, transmitted, received uint64) {
	t.Helper()
	r := d.row(e.cookie())
	if r.TCP.State != state || r.TransmitBytes != transmitted || r.ReceiveBytes != received || *r.TCP.Transmitted != transmitted || *r.TCP.Received != received {
		t.Errorf("%s %+v %d %d, want %s %d %d", r.TCP.State, r.Counters, *r.TCP.Transmitted, *r.TCP.Received, state, transmitted, received)
	}
}

// acknowledged waits until what was sent has been.
func acknowledged() { time.Sleep(200 * time.Millisecond) }

// Each reader is told of what has changed since its own last walk, whatever the others
// have seen, and has what hasn't.
func TestWalksTellChanges(t *testing.T) {
	all := readers(t, 3)
	s := newSite(t)
	a, b := s.pair()
	idle, _ := s.pair()
	idle.send(1)
	acknowledged()
	var as []*sampler
	for _, r := range all {
		as = append(as, &sampler{site: s, Sampler: r})
	}
	sent := uint64(0)
	for round := range 12 {
		for i, d := range as[:2] { // the third one walks once in three rounds
			a.send(10 + i)
			b.receive(10 + i)
			sent += uint64(10 + i)
			has(t, d, a, "established", sent, 0)
			has(t, d, b, "established", 0, sent)
			has(t, d, idle, "established", 1, 0)
		}
		if round%3 == 0 {
			has(t, as[2], a, "established", sent, 0)
			has(t, as[2], b, "established", 0, sent)
		}
		for i, d := range as[:2] { // nothing has changed
			has(t, d, a, "established", sent, 0)
			if round > 0 && tells(all[i], idle.cookie()) {
				t.Errorf("round %d: reader %d is told of a socket that is idle", round, i)
			}
		}
	}
	acknowledged()
	for i, d := range as {
		for range 3 { // one that has become idle is told twice
			d.sample()
		}
		has(t, d, a, "established", sent, 0)
		if tells(all[i], a.cookie()) || all[i].walk.isAll {
			t.Errorf("reader %d is told of a socket that has become idle", i)
		}
	}
}

// Readers that walk at the same time, while sockets are used, all end up with the same.
func TestWalksAtOnce(t *testing.T) {
	all := readers(t, 3)
	s := newSite(t)
	var clients, servers [50]peerEnd
	sent := map[uint64]uint64{}
	for i := range clients {
		clients[i], servers[i] = s.pair()
	}
	var group sync.WaitGroup
	done := make(chan bool)
	for _, r := range all {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := r.Sample(context.Background()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 3000 {
		n := i * i % len(clients) // some more often
		clients[n].send(1 + n)
		servers[n].receive(1 + n)
		sent[clients[n].cookie()] += uint64(1 + n)
	}
	close(done)
	group.Wait()
	for i, r := range all {
		d := &sampler{site: s, Sampler: r}
		d.sample()
		got := map[uint64]uint64{}
		for _, row := range d.sample() {
			if row.TransmitBytes > 0 {
				got[row.Cookie] = row.TransmitBytes
			}
		}
		if !maps.Equal(got, sent) {
			t.Errorf("reader %d: %v, want %v", i, got, sent)
		}
	}
}

// What changes without a call of anybody is told, too.
func TestWalksTellWhatChangesAlone(t *testing.T) {
	r := startIn(t, newEngine(t), "")
	s := newSite(t)
	d := &sampler{site: s, Sampler: r}
	a, b := s.pair()
	a.send(5)
	acknowledged()
	for range 4 {
		has(t, d, a, "established", 5, 0)
	}
	b.shutdown() // a does nothing
	a.ready(unix.POLLIN)
	has(t, d, a, "close_wait", 5, 0)
	for until := time.Now().Add(3 * time.Second); d.row(b.cookie()).TCP.State != "fin_wait2" && time.Now().Before(until); { // it is acknowledged a moment later
		time.Sleep(10 * time.Millisecond)
	}
	has(t, d, b, "fin_wait2", 0, 0)

	a, _ = s.pair()
	for range 5 {
		has(t, d, a, "established", 0, 0)
	}
	s.loopbackIs(false)
	a.send(7)
	has(t, d, a, "established", 7, 0)
	before := d.row(a.cookie()).TCP.Retransmits
	for until := time.Now().Add(10 * time.Second); d.row(a.cookie()).TCP.Retransmits == before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("what is sent again isn't told")
		}
	}
	s.loopbackIs(true)
}

// A walk that leaves nothing out loses no socket, and takes away those that nobody has
// told the end of.
func TestWalksThatLeaveNothingOut(t *testing.T) {
	r := startIn(t, newEngine(t), "")
	if r.backend.Store != "sk_storage" {
		t.Skip("this kernel has no memory of sockets for what traces")
	}
	s := newSite(t)
	d := &sampler{site: s, Sampler: r}
	a, _ := s.pair()
	a.send(3)
	acknowledged()
	for range 3 {
		has(t, d, a, "established", 3, 0)
	}
	const nowhere = 1<<63 + 1
	r.take(&bpf.FlowRecord{Cookie: nowhere})
	r.walk.again()
	for i := range 3 {
		has(t, d, a, "established", 3, 0)
		if _, there := r.open.index[place{cookie: nowhere}]; there != (i == 0) {
			t.Errorf("walk %d: the row of a socket that isn't there: %v", i, there)
		}
	}
	r.walk.at = r.walk.at.Add(-wholeEvery) // it is time again
	if has(t, d, a, "established", 3, 0); !r.walk.isAll || !tells(r, a.cookie()) {
		t.Errorf("%+v", r.walk)
	}
	if has(t, d, a, "established", 3, 0); r.walk.isAll || tells(r, a.cookie()) {
		t.Errorf("%+v", r.walk)
	}
}

// TestTable has sockets told, told again with more and less, closed and handed over.
func TestTable(t *testing.T) {
	table, other := table{index: map[place]int32{}}, table{index: map[place]int32{}}
	tell := func(walk uint32, cookie, opened uint64, pids ...uint32) {
		for i, pid := range pids {
			row := table.tell(&bpf.FlowRecord{Cookie: cookie, Opened: opened, Number: uint32(i)}, walk)
			*row = Row{Cookie: cookie, Process: Process{PID: pid}}
		}
	}
	is := func(want ...string) {
		t.Helper()
		table.finish()
		var got []string
		for i, row := range table.rows {
			at := table.about[i].place
			if at.cookie != row.Cookie || table.index[at] != int32(i) {
				t.Errorf("row %d: %+v of %d", i, at, row.Cookie)
			}
			got = append(got, fmt.Sprint(row.Cookie, "/", row.PID))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || len(table.index) != len(want) || len(table.about) != len(want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	tell(1, 10, 5, 1, 2, 3)
	tell(1, 11, 6, 1)
	tell(1, 12, 7, 4, 5)
	is("10/1", "10/2", "10/3", "11/1", "12/4", "12/5")
	tell(2, 10, 5, 2) // a supposed owner is none, and so on
	is("10/2", "11/1", "12/4", "12/5")
	tell(2, 12, 7, 4, 5, 6)
	is("10/2", "11/1", "12/4", "12/5", "12/6")
	tell(2, 12, 7, 4, 5, 6)
	tell(2, 12, 7, 4, 5, 6) // twice, as walks over changing tables have it
	is("10/2", "11/1", "12/4", "12/5", "12/6")
	table.close(12, 6) // an earlier connection of the same socket
	is("10/2", "11/1", "12/4", "12/5", "12/6")
	if row := table.known(place{12, 1}, 3); row == nil || row.PID != 5 {
		t.Errorf("%+v", row)
	}
	if table.known(place{12, 3}, 3) != nil || table.known(place{13, 0}, 3) != nil {
		t.Error("rows that aren't there are known")
	}
	table.move(12, &other)
	is("10/2", "11/1")
	table.move(12, &other)
	if len(other.rows) != 3 || other.rows[other.index[place{12, 2}]].PID != 6 || len(other.index) != 3 {
		t.Errorf("%+v", other)
	}
	table.expire(2)
	is("10/2")
	table.close(10, 5)
	is()
}
