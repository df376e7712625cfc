package baseline

import (
	"fmt"
	"net/netip"
	"time"

	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// epoch is a Monday.
var epoch = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// feed is a virtual clock with Pods that move and contact.
type feed struct {
	at       time.Time
	interval *float64 // of the next sample
	names    []string
	pods     map[string]*pod
}

type pod struct {
	who traffic.Who
	traffic.Counters
	met []remote
}

func newFeed(names ...string) *feed {
	f := &feed{at: epoch, pods: map[string]*pod{}}
	for _, name := range names {
		f.begin(name)
	}
	return f
}

// begin begins a Pod of the namespace shop.
func (f *feed) begin(name string) *pod {
	index, namespace, uid := uint32(len(f.names)+1), "shop", "uid-"+name
	p := &pod{who: traffic.Who{Address: netip.AddrFrom4([4]byte{10, 77, byte(index >> 8), byte(index)}), IfIndex: &index, Namespace: &namespace, Pod: &name, PodUID: &uid}}
	f.names, f.pods[name] = append(f.names, name), p
	return p
}

// wait lets time pass.
func (f *feed) wait(d time.Duration) *feed {
	f.at = f.at.Add(d)
	seconds := d.Seconds()
	f.interval = &seconds
	return f
}

// move has a Pod transmit so many bytes, in packets of a thousand, and receive a tenth.
func (f *feed) move(name string, bytes uint64) *feed {
	f.pods[name].Add(traffic.Counters{TransmitBytes: bytes, TransmitPackets: bytes / 1000, ReceiveBytes: bytes / 10, ReceivePackets: bytes / 10000})
	return f
}

// meet has a Pod contact ports.
func (f *feed) meet(name, port string, addresses ...string) *feed {
	for _, a := range addresses {
		f.pods[name].met = append(f.pods[name].met, remote{netip.MustParseAddr(a), port})
	}
	return f
}

func (f *feed) pod() traffic.Document {
	d := traffic.Document{Schema: traffic.Schema, Time: f.at.Truncate(time.Second), IntervalSeconds: f.interval, ObservedAt: traffic.TC, Pods: []traffic.Pod{}}
	for _, name := range f.names {
		if p := f.pods[name]; p != nil {
			d.Pods = append(d.Pods, traffic.Pod{Who: p.who, Traffic: traffic.Traffic{Counters: p.Counters}})
		}
	}
	return d
}

func (f *feed) peers() peers.Document {
	d := peers.Document{Schema: peers.Schema, Time: f.at.Truncate(time.Second), IntervalSeconds: f.interval, ObservedAt: traffic.TC, Endpoints: []peers.Endpoint{}, Peers: []peers.Peer{}}
	for _, name := range f.names {
		p := f.pods[name]
		if p == nil {
			continue
		}
		d.Endpoints = append(d.Endpoints, peers.Endpoint{Who: p.who})
		for _, r := range p.met {
			one := uint64(1)
			row := peers.Peer{Who: p.who, Peer: peers.Remote{Address: r.address}, Counters: peers.Counters{Attempts: 1}, NewAttempts: &one}
			if n, transport := splitPort(r.port); n >= 0 {
				port := uint16(n)
				row.Transport, row.Peer.Port = transport, &port
			} else {
				row.Transport = transport
			}
			if f.interval == nil {
				row.NewAttempts = nil
			}
			d.Peers = append(d.Peers, row)
		}
		p.met = nil
	}
	return d
}

// both has a Learner or Check look at what there is now.
func (f *feed) learn(l *Learner) *feed {
	l.Pods(f.pod())
	l.Peers(f.peers())
	return f
}

func (f *feed) check(c *Check) (lines []string) {
	for _, found := range append(c.Pods(f.pod()), c.Peers(f.peers())...) {
		lines = append(lines, tell(found))
	}
	return lines
}

func tell(f Finding) string {
	line := fmt.Sprintf("%s %s since %s", f.Reason, f.Name, f.Started.Sub(epoch))
	if !f.Ended.IsZero() {
		line += fmt.Sprintf(" until %s %s", f.Ended.Sub(epoch), f.EndedBy)
	}
	if a := f.Deviation; a != nil {
		return line + fmt.Sprintf(": %s %d of %d, score %.1f, peak %d, %s of %d", a.Metric, f.Amount, f.Threshold, a.Score, f.Peak, a.Basis, a.Windows)
	}
	return line + fmt.Sprintf(": %d %v %v", f.Amount, f.Items[:min(len(f.Items), 3)], f.Sample[:min(len(f.Sample), 3)])
}

// blank is a document that knows nothing.
func blank(window time.Duration) Document {
	return Document{Schema: Schema, WindowSeconds: uint64(window / time.Second), Endpoints: []Endpoint{}}
}
