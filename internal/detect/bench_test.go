package detect

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"bpfnet/internal/peers"
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

// crowdCalls makes documents of endpoints of which each contacts as many peers in a
// second, others each time.
func crowdCalls(endpoints, each int) func() peers.Document {
	doc := newCalls("").docs[0]
	one, none, port, next := uint64(1), uint64(0), uint16(443), uint32(0)
	for i := range endpoints {
		who := row(0, fmt.Sprintf("%08x-9f3a-4f0a-9d2e-5a7b8c9d0e1f", i), traffic.Counters{}).Who
		who.Address = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		doc.Endpoints = append(doc.Endpoints, peers.Endpoint{Who: who})
		for range each {
			doc.Peers = append(doc.Peers, peers.Peer{
				Who: who, Transport: "tcp", Peer: peers.Remote{Port: &port}, NewAttempts: &one, NewAnswers: &one, NewRefusals: &none,
			})
		}
	}
	second := 1.0
	return func() peers.Document {
		for i := range doc.Peers {
			next++
			doc.Peers[i].Peer.Address = netip.AddrFrom4([4]byte{byte(198 + next>>24), byte(next >> 16), byte(next >> 8), byte(next)})
			doc.Peers[i].LastSeen = doc.Time.Add(time.Hour)
		}
		now := doc
		doc.IntervalSeconds = &second
		return now
	}
}

// BenchmarkPeers takes samples of 65,536 rows, as many as the maps of peers have room
// for.
func BenchmarkPeers(b *testing.B) {
	for _, test := range []struct {
		name            string
		endpoints, each int
		step            func(testing.TB) func(peers.Document)
	}{
		{"fanout exact", 1000, 65, stepFanouts("5000/60s")},
		{"fanout estimated", 10, 6553, stepFanouts("5000/60s")},
		{"fanout estimated, all", 1000, 65, stepFanouts("5000/5m")},
		{"scan ports", 1000, 65, stepScans("100ports/60s")},
		{"scan failed", 1000, 65, stepScans("50failed/60s")},
	} {
		b.Run(test.name, func(b *testing.B) {
			next, step := crowdCalls(test.endpoints, test.each), test.step(b)
			before := heap()
			for range 65 {
				step(next())
			}
			size := heap() - before
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				doc := next()
				b.StartTimer()
				step(doc)
			}
			b.ReportMetric(float64(size)/float64(test.endpoints)/1e3, "kB/endpoint")
			runtime.KeepAlive(step)
		})
	}
}

func stepFanouts(rule string) func(testing.TB) func(peers.Document) {
	return func(t testing.TB) func(peers.Document) {
		f := newFanouts(t, Internal{Endpoints: true, Prefixes: Local()}, rule)
		return func(doc peers.Document) { f.Step(doc) }
	}
}

func stepScans(rule string) func(testing.TB) func(peers.Document) {
	return func(t testing.TB) func(peers.Document) {
		s := newScans(t, rule)
		return func(doc peers.Document) { s.Step(doc) }
	}
}
