package metrics

import (
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// peersAge is for how long a peer counts after the last news of it.
const peersAge = 5 * time.Minute

// asTraffic has a packet for each connection, so that series of connections come and
// go like those of traffic.
func asTraffic(s peers.Sample) traffic.Sample {
	t := traffic.Sample{Pods: make(map[traffic.Key]traffic.Counters, len(s.Endpoints)), Attached: s.Attached, Devices: s.Devices}
	for key, c := range s.Endpoints {
		t.Pods[key] = traffic.Counters{TransmitPackets: c.Opened, ReceivePackets: c.Received}
	}
	return t
}

func writeConnections(add func(*Metric, float64, ...string), labels []string, c traffic.Counters) {
	labels = slices.Clip(labels)
	add(podConnections, float64(c.TransmitPackets), append(labels, transmit)...)
	add(podConnections, float64(c.ReceivePackets), append(labels, receive)...)
}

// writePeers writes how many peers the places have that have series of their own.
func (e *Exporter) writePeers(s *snapshot, samples map[string]peers.Sample) {
	for program, sample := range samples {
		distinct := map[place]map[netip.Addr]bool{}
		for key, entry := range sample.Peers {
			at := place{program, key.Endpoint.Point, key.Endpoint.IfIndex, key.Endpoint.CgroupID}
			if distinct[at] == nil {
				distinct[at] = map[netip.Addr]bool{}
			}
			if sample.Time.Sub(entry.LastSeen) < peersAge {
				distinct[at][key.Address] = true
			}
		}
		for at, one := range e.endpoints.places {
			if at.program == program && one.own && !one.gone {
				s.add(podPeers, float64(len(distinct[at])), one.labels...)
			}
		}
		s.add(lostEvents, float64(sample.NoRoom), program, "peer_endpoints")
	}
}
