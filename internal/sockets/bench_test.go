package sockets

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkFind looks for the process of one packet: of a socket that is known, and of
// one that isn't.
func BenchmarkFind(b *testing.B) {
	for _, remembers := range []bool{true, false} {
		b.Run(fmt.Sprint("remembered=", remembers), func(b *testing.B) {
			s := newSite(b)
			start(b, s.box, "", "send udp4 :4001 %s:53", nobody)
			f, err := NewFinder(s.host)
			if err != nil {
				b.Fatal(err)
			}
			f.longest = time.Minute
			p := s.packet(udp, boxAddress+":4001", nobody+":53")
			for b.Loop() {
				if !remembers {
					clear(f.holdings)
				}
				p.Time, f.credit = time.Now(), perSecond
				if a, err := f.Find([]Packet{p}, patient); err != nil || a.Processes[0] == nil {
					b.Fatal(a, err)
				}
			}
		})
	}
}
