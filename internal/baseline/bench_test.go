package baseline

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// many is how many endpoints benchmarks have.
const many = 1000

// crowd is a document of a whole week of many endpoints, each with some peers.
func crowd() Document {
	d := blank(time.Minute)
	u := Usual{Median: 1234567, MAD: 123456, Most: 2345678}
	for i := range many {
		e := Endpoint{Endpoint: fmt.Sprintf("workload:shop/web%04d", i), Ports: []string{"443/tcp", "53/udp"}}
		for j := range 20 {
			e.Peers = append(e.Peers, fmt.Sprintf("192.0.2.%d", j))
		}
		for h := range hours {
			e.Volume = append(e.Volume, Cell{hourName(h), 120, u, u, u, u})
		}
		d.Endpoints = append(d.Endpoints, e)
	}
	return d
}

func crowded() *feed {
	var names []string
	for i := range many {
		names = append(names, fmt.Sprintf("web%04d-5d59d67564-x2x4z", i))
	}
	return newFeed(names...)
}

// next is a sample in which each endpoint has moved and contacted something.
func (f *feed) next() {
	for _, p := range f.pods {
		p.Add(traffic.Counters{TransmitBytes: 20_000, TransmitPackets: 20_000, ReceiveBytes: 20_000, ReceivePackets: 20_000})
		p.met = append(p.met, remote{netip.AddrFrom4([4]byte{192, 0, 2, 1}), "443/tcp"})
	}
	f.wait(time.Second)
}

// BenchmarkStep takes a sample a second of many endpoints.
func BenchmarkStep(b *testing.B) {
	type take func(traffic.Document, peers.Document)
	run := func(name string, open func() take) {
		b.Run(name, func(b *testing.B) {
			before := heap()
			f, take := crowded(), open()
			size := heap() - before
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				f.next()
				pods, met := f.pod(), f.peers()
				b.StartTimer()
				take(pods, met)
			}
			b.ReportMetric(float64(size)/many, "bytes/endpoint")
			runtime.KeepAlive(take)
		})
	}
	run("learn", func() take {
		l := Learn(crowd())
		return func(pods traffic.Document, met peers.Document) { l.Pods(pods); l.Peers(met) }
	})
	run("check", func() take {
		c := checked(b, crowd(), "")
		return func(pods traffic.Document, met peers.Document) { c.Pods(pods); c.Peers(met) }
	})
}

// BenchmarkFile writes and reads the file of many endpoints.
func BenchmarkFile(b *testing.B) {
	d := crowd()
	text := d.Encode()
	b.Run("write", func(b *testing.B) {
		for range b.N {
			text = d.Encode()
		}
		b.ReportMetric(float64(len(text)), "bytes")
	})
	b.Run("read", func(b *testing.B) {
		for range b.N {
			if _, err := Read(text, "f"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
