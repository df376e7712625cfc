package flow

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// startKprobes counts with kprobes, in maps of other sizes.
func (s *site) startKprobes(entries map[string]uint32) *sampler {
	s.Helper()
	objects, err := newEngine(s).Start(context.Background(), datapath.LoadRequest{Source: Program, Mechanism: "kprobe", MaxEntries: entries})
	testkit.Needs(s, "flows by kprobe", err, fault.ErrUnsupported, fault.ErrRejected)
	r, err := newReader(objects)
	s.must(err)
	s.Cleanup(func() { s.must(r.Close()) })
	return &sampler{site: s, Sampler: r}
}

// sendByFive has five sockets send, and returns how many bytes, and how many were counted.
func (s *sampler) sendByFive() (sent, counted uint64) {
	s.Helper()
	for i := range 5 {
		e := s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		s.must(unix.Sendto(e.fd, make([]byte, 10+i), 0, loopback(9)))
		sent += uint64(10 + i)
	}
	for _, r := range s.sample() {
		counted += r.TransmitBytes
	}
	return sent, counted
}

// With kprobes sockets are in a table: what finds no room there is lost, and told.
func TestKprobesTellWhatFindsNoRoom(t *testing.T) {
	s := newSite(t)
	d := s.startKprobes(map[string]uint32{"flow_sockets": 1})
	sent, counted := d.sendByFive()
	if d.last.Loss.MapFull < 4 || counted+d.last.Loss.Unattributed < sent {
		t.Errorf("of %d bytes %d were counted; lost: %+v", sent, counted, d.last.Loss)
	}
}

// Sockets have cookies before anybody asks for one, but for those that are older than the
// watch; each of those has an id of its own.
func TestKprobesTellCookies(t *testing.T) {
	s := newSite(t)
	old := []peerEnd{s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0), s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)}
	d := s.startKprobes(nil)
	late := s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	for i, e := range append(old, late) {
		s.must(unix.Sendto(e.fd, make([]byte, 10+i), 0, loopback(9)))
	}
	client, server := s.pair()
	client.send(20)
	server.receive(20)
	without, seen := 0, map[uint64]uint64{}
	for _, r := range d.sample() {
		if r.Cookie >= noCookie {
			without++
		}
		if r.Counters != (Counters{}) {
			seen[r.Cookie] += r.TransmitBytes + r.ReceiveBytes
		}
	}
	for want, e := range map[uint64]peerEnd{12: late, 20: client} {
		if got := seen[e.cookie()]; got != want {
			t.Errorf("%d bytes, want %d", got, want)
		}
	}
	if without != 2 || len(seen) != 5 || seen[server.cookie()] != 20 {
		t.Errorf("%d without a cookie of %v", without, seen)
	}
}

// Processes that find no place are told together, also while the socket is open.
func TestKprobesTellWhoFindsNoPlace(t *testing.T) {
	s := newSite(t)
	d := s.startKprobes(map[string]uint32{"flow_claims": 1})
	sent, counted := d.sendByFive()
	if counted != sent {
		t.Errorf("of %d bytes %d were counted; lost: %+v", sent, counted, d.last.Loss)
	}
}
