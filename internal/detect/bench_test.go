package detect

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"bpfnet/internal/traffic"
)

// full is as many endpoints as the maps of pod-traffic have room for.
const full = 16384

// crowd makes documents of many Pods that send all the time.
func crowd() func(interval float64) traffic.Document {
	doc := newFeed("").docs[0]
	for i := range uint32(full) {
		pod := row(0, fmt.Sprintf("%08x-9f3a-4f0a-9d2e-5a7b8c9d0e1f", i), traffic.Counters{})
		pod.Address, pod.IfIndex = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), &i
		doc.Pods = append(doc.Pods, pod)
	}
	return func(interval float64) traffic.Document {
		for i := range doc.Pods {
			doc.Pods[i].Add(traffic.Counters{TransmitBytes: 1000 + uint64(i), TransmitPackets: 3, ReceiveBytes: 500, ReceivePackets: 2})
		}
		next := doc
		doc.IntervalSeconds = &interval
		return next
	}
}

// BenchmarkStep takes samples of as many endpoints as there may be.
func BenchmarkStep(b *testing.B) {
	for _, rules := range [][]string{{"10MiB/10s"}, {"10MiB/10s,mad=8"}, {"10MiB/10s", "5000packets/1s,transmit", "100MiB/5m,for=10m", "1MiB/10s,mad=8"}} {
		b.Run(fmt.Sprint(rules), func(b *testing.B) {
			next := crowd()
			before := heap()
			d := newDetector(b, rules...)
			for range historyWindows + 2 { // until histories are full
				d.Step(next(10))
			}
			size := heap() - before
			b.ResetTimer()
			for range b.N {
				d.Step(next(1))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/full, "ns/endpoint")
			b.ReportMetric(float64(size)/full, "bytes/endpoint")
			runtime.KeepAlive(d)
		})
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
