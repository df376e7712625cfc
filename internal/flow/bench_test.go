package flow

import (
	"context"
	"fmt"
	"testing"
)

// crowd makes 20,000 idle sockets of three processes.
func crowd(b *testing.B) *site {
	const each = 5000
	s := newSite(b)
	l, at := s.listen()
	address := fmt.Sprintf("%d*127.0.0.1:%d", each, at.Port)
	done := make(chan bool)
	go func() {
		for range 2 {
			s.dialer("", address)
		}
		close(done)
	}()
	for range 2 * each {
		l.accept()
	}
	<-done
	return s
}

// BenchmarkReader takes a sample of 20,000 idle sockets.
func BenchmarkReader(b *testing.B) {
	r := startIn(b, newEngine(b), "tp_btf")
	crowd(b)
	take(b, r)
	b.ReportAllocs()
	for b.Loop() {
		if sample := take(b, r); len(sample.Rows) < 20000 {
			b.Fatal(len(sample.Rows))
		}
	}
}

// BenchmarkDiag takes a sample of 20,000 idle sockets.
func BenchmarkDiag(b *testing.B) {
	d := crowd(b).sampler(Filter{})
	d.sample()
	b.ReportAllocs()
	for b.Loop() {
		if sample, err := d.Sample(context.Background()); err != nil || len(sample.Rows) < 20000 {
			b.Fatal(len(sample.Rows), err)
		}
	}
}
