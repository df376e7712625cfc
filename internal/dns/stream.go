package dns

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"bpfnet/bpf"
)

// Bounds of what is kept of streams.
const (
	mostFlows    = 4096
	mostBytes    = 8 << 20 // of all flows
	mostWaiting  = 16      // segments of a flow behind a gap
	widestGap    = 1 << 20 // bytes that a segment may be away from where the stream is
	longestGap   = time.Second
	longestPause = time.Minute
	lengthSize   = 2 // bytes in front of each message
)

// flowKey is one direction of a connection, seen at one point.
type flowKey struct {
	server, client netip.AddrPort
	ifIndex        uint32
	direction      bpf.DNSDirection
	hook           bpf.DNSHook
	query          bool // from the client
}

// segment is a piece of a stream.
type segment struct {
	sequence uint32 // of its first byte
	data     []byte
}

// flow is a stream whose messages can be told apart.
type flow struct {
	start   uint32        // sequence of its first byte, if that was seen
	next    uint32        // sequence of the byte that comes next
	partial []byte        // what there is of the next message
	waiting []segment     // in their order, behind a gap
	gap     time.Duration // when the first of them came
	used    time.Duration // when the last segment came
}

func (f *flow) size() int {
	size := len(f.partial)
	for _, s := range f.waiting {
		size += len(s.data)
	}
	return size
}

// streams puts messages together from segments. A stream is followed from its
// SYN, or from a segment that consists of whole messages, which is where one
// begins. One that misses something is given up, and followed again from such a
// segment.
type streams struct {
	flows      map[flowKey]*flow
	bytes      int
	swept      time.Duration
	message    func([]byte) // called with each message, which is valid until it returns
	incomplete uint64       // pieces given up
}

func newStreams(message func([]byte)) *streams {
	return &streams{flows: map[flowKey]*flow{}, message: message}
}

// add takes a segment that came at a time. begins says that the stream begins with
// it, ends that nothing follows.
func (s *streams) add(key flowKey, g segment, begins, ends bool, now time.Duration) {
	s.sweep(now)
	f := s.flows[key]
	if begins && (f == nil || f.start != g.sequence) {
		s.drop(key)
		f = s.make(key, now)
		f.start, f.next = g.sequence, g.sequence
	}
	if f != nil && !f.near(g) {
		s.drop(key)
		f = nil
	}
	if f == nil {
		f = s.enter(key, g, now)
	}
	if f != nil {
		f.used = now
		s.place(key, f, g, now)
	}
	if f = s.flows[key]; f != nil && ends && len(f.waiting) == 0 {
		s.drop(key)
	}
	s.shrink(key)
}

// near says whether a segment can belong to the stream.
func (f *flow) near(g segment) bool {
	distance := int64(int32(g.sequence - f.next))
	return distance <= widestGap && distance >= -widestGap
}

// enter begins to follow a stream with a segment from its middle, if that is
// possible; nil if not.
func (s *streams) enter(key flowKey, g segment, now time.Duration) *flow {
	if len(g.data) == 0 {
		return nil
	}
	if !isWhole(g.data) {
		s.incomplete++
		return nil
	}
	f := s.make(key, now)
	f.start, f.next = g.sequence-1, g.sequence
	return f
}

// isWhole says whether data is a row of whole messages.
func isWhole(data []byte) bool {
	for len(data) > 0 {
		message, rest := cut(data)
		if message == nil {
			return false
		}
		if _, whole, err := decodeAny(message); !whole && err != errIgnored {
			return false
		}
		data = rest
	}
	return true
}

// cut cuts the first message off a stream; nil if it isn't there yet.
func cut(data []byte) (message, rest []byte) {
	if len(data) < lengthSize {
		return nil, data
	}
	end := lengthSize + int(binary.BigEndian.Uint16(data))
	if len(data) < end {
		return nil, data
	}
	return data[lengthSize:end], data[end:]
}

// place puts a segment where it belongs.
func (s *streams) place(key flowKey, f *flow, g segment, now time.Duration) {
	if len(g.data) == 0 {
		return
	}
	if int32(g.sequence-f.next) > 0 {
		s.wait(key, f, g, now)
		return
	}
	if !s.append(key, f, g) {
		return
	}
	for len(f.waiting) > 0 && int32(f.waiting[0].sequence-f.next) <= 0 {
		first := f.waiting[0]
		f.waiting = f.waiting[1:]
		s.bytes -= len(first.data)
		if !s.append(key, f, first) {
			return
		}
	}
	f.gap = now
}

// append adds what is new in a segment to the stream and hands out messages;
// false if the flow was given up.
func (s *streams) append(key flowKey, f *flow, g segment) bool {
	seen := f.next - g.sequence
	if seen >= uint32(len(g.data)) {
		return true // sent again
	}
	data := g.data[seen:]
	f.next += uint32(len(data))
	s.bytes += len(data)
	f.partial = append(f.partial, data...)
	rest := f.partial
	for {
		message, behind := cut(rest)
		if message == nil {
			break
		}
		if len(message) < headerSize {
			s.drop(key) // it isn't DNS
			return false
		}
		s.message(message)
		rest = behind
	}
	if taken := len(f.partial) - len(rest); taken > 0 {
		s.bytes -= taken
		f.partial = slices.Clone(rest)
	}
	return true
}

// wait keeps a segment until what is missing in front of it comes. Where that
// takes too long, because the segment came but wasn't seen, the flow is given up,
// and followed again from one of those that wait.
func (s *streams) wait(key flowKey, f *flow, g segment, now time.Duration) {
	at, known := slices.BinarySearchFunc(f.waiting, g, func(a, b segment) int {
		return cmp.Compare(int32(a.sequence-f.next), int32(b.sequence-f.next))
	})
	switch {
	case known && len(f.waiting[at].data) >= len(g.data):
		return
	case len(f.waiting) == 0:
		f.gap = now
	}
	f.waiting = slices.Insert(f.waiting, at, segment{g.sequence, slices.Clone(g.data)})
	s.bytes += len(g.data)
	if len(f.waiting) < mostWaiting && now-f.gap < longestGap {
		return
	}
	waiting := f.waiting
	f.waiting = nil
	for _, w := range waiting {
		s.bytes -= len(w.data)
	}
	s.drop(key)
	for _, w := range waiting {
		if f := s.flows[key]; f != nil && int32(w.sequence-f.next) <= 0 {
			s.append(key, f, w)
		} else if f = s.enter(key, w, now); f != nil {
			s.append(key, f, w)
		}
	}
}

func (s *streams) make(key flowKey, now time.Duration) *flow {
	s.drop(key)
	f := &flow{used: now}
	s.flows[key] = f
	return f
}

// drop gives a flow up; what it has of a message is lost.
func (s *streams) drop(key flowKey) {
	f := s.flows[key]
	if f == nil {
		return
	}
	if len(f.partial) > 0 {
		s.incomplete++
	}
	s.incomplete += uint64(len(f.waiting))
	s.bytes -= f.size()
	delete(s.flows, key)
}

// sweep drops flows that nothing came of for long, now and then.
func (s *streams) sweep(now time.Duration) {
	if now-s.swept < longestPause/4 {
		return
	}
	s.swept = now
	for key, f := range s.flows {
		if now-f.used > longestPause {
			s.drop(key)
		}
	}
}

// shrink drops the flows that were used longest ago until the bounds are kept,
// but not the one that is in use.
func (s *streams) shrink(inUse flowKey) {
	if len(s.flows) <= mostFlows && s.bytes <= mostBytes {
		return
	}
	keys := make([]flowKey, 0, len(s.flows))
	for key := range s.flows {
		if key != inUse {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b flowKey) int { return cmp.Compare(s.flows[a].used, s.flows[b].used) })
	for _, key := range keys {
		if len(s.flows) <= mostFlows*3/4 && s.bytes <= mostBytes*3/4 {
			return
		}
		s.drop(key)
	}
}
