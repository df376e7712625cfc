package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"bpfnet/bpf"
)

// framed puts the length in front of each message.
func framed(messages ...[]byte) (stream []byte) {
	for _, m := range messages {
		stream = append(binary.BigEndian.AppendUint16(stream, uint16(len(m))), m...)
	}
	return stream
}

// received is a flow that tests feed.
type received struct {
	*streams
	key      flowKey
	messages [][]byte
	now      time.Duration
}

func newReceived() *received {
	r := &received{now: time.Hour}
	r.streams = newStreams(func(m []byte) { r.messages = append(r.messages, bytes.Clone(m)) })
	return r
}

func (r *received) segment(sequence uint32, data []byte) {
	r.add(r.key, segment{sequence, data}, false, false, r.now)
}

func (r *received) begin(sequence uint32) { r.add(r.key, segment{sequence, nil}, true, false, r.now) }
func (r *received) end(sequence uint32)   { r.add(r.key, segment{sequence, nil}, false, true, r.now) }

// check checks which messages came, and how many pieces were given up.
func (r *received) check(t *testing.T, incomplete uint64, wanted ...[]byte) {
	t.Helper()
	if !slices.EqualFunc(r.messages, wanted, bytes.Equal) {
		t.Errorf("%d messages %x\nwant %d %x", len(r.messages), r.messages, len(wanted), wanted)
	}
	if r.incomplete != incomplete {
		t.Errorf("%d incomplete, want %d", r.incomplete, incomplete)
	}
	bytes := 0
	for _, f := range r.flows {
		bytes += f.size()
	}
	if bytes != r.bytes {
		t.Errorf("%d bytes, counted as %d", bytes, r.bytes)
	}
}

// names are responses about different names.
func names(t testing.TB, n int) [][]byte {
	t.Helper()
	all := make([][]byte, n)
	for i := range all {
		name := fmt.Sprintf("n%d.example.", i)
		all[i] = reply(t, name, name+" 60 A 192.0.2.1")
	}
	return all
}

// TestStreamAnyWay: however a stream is cut into segments, and in whatever order
// and how often they come, its messages come once and in order.
func TestStreamAnyWay(t *testing.T) {
	messages := names(t, 20)
	stream := framed(messages...)
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		start := uint32(-random.IntN(len(stream))) // the sequence turns over
		var segments []segment
		for at := 0; at < len(stream); {
			end := min(at+1+random.IntN(200), len(stream))
			from := max(0, at-random.IntN(50)) // what was sent again
			segments = append(segments, segment{start + uint32(from), stream[from:end]})
			at = end
		}
		for i := range segments {
			if j := min(i+random.IntN(4), len(segments)-1); seed%3 > 0 {
				segments[i], segments[j] = segments[j], segments[i]
			}
		}
		r := newReceived()
		r.begin(start)
		for _, g := range segments {
			r.segment(g.sequence, g.data)
			if seed%2 == 0 {
				r.segment(g.sequence, g.data)
				r.begin(start)
			}
		}
		r.end(start + uint32(len(stream)))
		r.check(t, 0, messages...)
		if len(r.flows) != 0 {
			t.Errorf("seed %d: %d flows are left", seed, len(r.flows))
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// A stream that isn't seen from its beginning is followed from whole responses.
func TestStreamFromTheMiddle(t *testing.T) {
	m := names(t, 4)
	r := newReceived()
	first, second := framed(m[0]), framed(m[1], m[2])
	r.segment(1000, first[10:])
	r.segment(990, nil)
	r.check(t, 1)
	r.segment(2000, second)
	r.check(t, 1, m[1], m[2])
	third := framed(m[3])
	r.segment(2000+uint32(len(second)), third[:5])
	r.segment(2005+uint32(len(second)), third[5:])
	r.check(t, 1, m[1], m[2], m[3])
}

// What was lost on the way to us is never sent again: the stream goes on with what
// waits, when enough has come or after a time.
func TestStreamGap(t *testing.T) {
	m := names(t, mostWaiting+1)
	for _, wait := range []time.Duration{0, 2 * longestGap} {
		r := newReceived()
		r.begin(1)
		at := uint32(1 + len(framed(m[0])))
		sent := m[1:]
		if wait > 0 {
			sent = m[1:3]
		}
		for _, message := range sent {
			data := framed(message)
			r.segment(at, data)
			at += uint32(len(data))
			r.now += wait
		}
		r.check(t, 0, sent...)
		r.segment(at, framed(m[0]))
		r.check(t, 0, append(slices.Clone(sent), m[0])...)
	}
	// Half a message is in front of the gap, half a one behind.
	r := newReceived()
	r.begin(0)
	r.segment(0, framed(m[0])[:20])
	r.segment(100, framed(m[1])[20:])
	r.now += 2 * longestGap
	r.segment(200, framed(m[2]))
	r.check(t, 2, m[2])
}

func TestStreamOther(t *testing.T) {
	m := names(t, 3)
	r := newReceived()
	r.begin(0)
	r.segment(0, append(framed(m[0]), 0, 3, 1, 2, 3)) // no DNS
	r.check(t, 1, m[0])
	if len(r.flows) != 0 {
		t.Error("the flow is kept")
	}
	// Another connection with the same ports, far from where the old one was.
	r.begin(0)
	r.segment(0, framed(m[0])[:20])
	r.segment(1<<31+7, framed(m[1]))
	r.check(t, 2, m[0], m[1])
	r.begin(77)
	r.segment(77, framed(m[2]))
	r.check(t, 2, m[0], m[1], m[2])
	// A reset in a message.
	r.segment(77+uint32(len(framed(m[2]))), framed(m[0])[:20])
	r.add(r.key, segment{97 + uint32(len(framed(m[2]))), nil}, false, true, r.now)
	r.check(t, 3, m[0], m[1], m[2])
}

// Memory is bounded, whatever comes.
func TestStreamBounds(t *testing.T) {
	r := newReceived()
	half := framed(make([]byte, 65535))[:40000]
	for i := range 3 * mostFlows {
		r.key.client = netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i))
		r.now += time.Millisecond
		r.begin(0)
		if i%3 == 0 {
			r.segment(0, half)
		}
		if len(r.flows) > mostFlows || r.bytes > mostBytes {
			t.Fatalf("%d flows, %d bytes", len(r.flows), r.bytes)
		}
	}
	r.now += 2 * longestPause
	r.begin(1)
	if len(r.flows) != 1 || r.bytes != 0 {
		t.Errorf("%d flows, %d bytes after a pause", len(r.flows), r.bytes)
	}
}

// FuzzStream: whatever segments come, memory is bounded and counted right.
func FuzzStream(f *testing.F) {
	m := names(f, 2)
	stream := framed(m...)
	f.Add(stream, []byte{1, 0, 0, 40, 0, 40, 255})
	f.Add(stream, []byte{0, 0, 0, 255, 0, 50, 10, 2, 30, 99})
	f.Fuzz(func(t *testing.T, stream, steps []byte) {
		r := newReceived()
		for ; len(steps) >= 3; steps = steps[3:] {
			at := min(int(steps[1])*4, len(stream))
			end := min(at+int(steps[2]), len(stream))
			r.key.hook = bpf.DNSHook(steps[0] >> 6)
			r.add(r.key, segment{uint32(at), stream[at:end]}, steps[0]&1 != 0, steps[0]&2 != 0, r.now)
			r.now += time.Duration(steps[0]) * time.Millisecond * 10
		}
		r.check(t, r.incomplete, r.messages...)
		for _, f := range r.flows {
			if len(f.waiting) >= mostWaiting || len(f.partial) > 65536+lengthSize {
				t.Errorf("%d wait, %d bytes of a message", len(f.waiting), len(f.partial))
			}
		}
	})
}
