package flow

import "bpfnet/internal/sample"

// kernel compares what was counted with what the kernel says that TCP sockets moved.
type kernel struct {
	generation  uint32
	sockets     map[connection]*count
	seen        int    // of them in this sample
	counted, of uint64 // bytes since the sample before
}

// count is what the kernel said of a socket.
type count struct {
	transmitted, received uint64
	generation            uint32
	comparable            bool // with what was counted since the sample before
}

func (k *kernel) begin() {
	k.generation++
	k.seen, k.counted, k.of = 0, 0, 0
}

// count adds what a row has moved. Several rows may be of one socket, of which the
// kernel knows the sum. A socket that was there before counting began is compared
// from its second sample on.
func (k *kernel) count(r *Row, s *state, grown Counters) {
	if r.TCP == nil || r.TCP.Transmitted == nil || r.TCP.Received == nil {
		return
	}
	c := s.socket
	if c == nil || k.generation-c.generation > 1 { // it may have been forgotten
		c = k.sockets[connectionOf(r)]
	}
	known := c != nil
	if !known {
		c = &count{}
		k.sockets[connectionOf(r)] = c
	}
	s.socket = c
	if c.generation != k.generation {
		before := *c
		*c = count{*r.TCP.Transmitted, *r.TCP.Received, k.generation, known || !r.Opened.IsZero()}
		if c.comparable {
			k.of += sample.Grown(before.transmitted, c.transmitted) + sample.Grown(before.received, c.received)
		}
		k.seen++
	}
	if c.comparable {
		k.counted += grown.bytes()
	}
}

// sweep forgets sockets as Watch.sweep does rows.
func (k *kernel) sweep() {
	if len(k.sockets) == k.seen {
		return
	}
	for at, c := range k.sockets {
		if k.generation-c.generation > 1 {
			delete(k.sockets, at)
		}
	}
}

func (k *kernel) ratio() *float64 {
	if k.of == 0 {
		return nil
	}
	ratio := float64(k.counted) / float64(k.of)
	return &ratio
}
