package peers

import (
	"net/netip"
	"time"

	"bpfnet/internal/traffic"
)

// Schema names the document.
const Schema = "bpfnet.peers/v1"

// Document is whom endpoints have contacted, seen at one point.
type Document struct {
	Schema          string        `json:"schema"`
	Time            time.Time     `json:"time"`
	IntervalSeconds *float64      `json:"interval_seconds"` // null: no sample before
	ObservedAt      traffic.Point `json:"observed_at"`
	Loss            Loss          `json:"loss"`
	Endpoints       []Endpoint    `json:"endpoints"` // all, by address and place
	Peers           []Peer        `json:"peers"`     // those with news since the sample before; all without one
	Others          Others        `json:"others"`
}

// Loss is what the document doesn't have, since the watch began.
type Loss struct {
	Peers     uint64 `json:"peers"`     // new entries that made room for others before they were read
	Endpoints uint64 `json:"endpoints"` // connections of endpoints that found no room
}

// Endpoint is how many connections an address at one device or in one cgroup has had.
type Endpoint struct {
	traffic.Who
	Connections
}

// Connections only grow while an instance is loaded. Of transports without connections
// a flow of packets counts as one.
type Connections struct {
	Opened   uint64 `json:"connections_opened"`   // attempts of the endpoint's own
	Received uint64 `json:"connections_received"` // attempts of others
}

// Peer is what an endpoint has contacted: a port of an address.
type Peer struct {
	traffic.Who
	Transport string `json:"transport"` // "tcp", "udp", "icmp", "sctp", or the protocol's number
	Peer      Remote `json:"peer"`
	Counters
	NewAttempts *uint64   `json:"new_attempts"` // since the sample before; null, as the next two: there is none
	NewAnswers  *uint64   `json:"new_answers"`
	NewRefusals *uint64   `json:"new_refusals"`
	FirstSeen   time.Time `json:"first_seen"` // of the first attempt that the counters have
	LastSeen    time.Time `json:"last_seen"`  // of the last packet that changed them
}

// Remote is the far end.
type Remote struct {
	Address netip.Addr `json:"address"`
	Port    *uint16    `json:"port"` // null: the transport has none
}

// Counters begin anew when an entry had to make room for others in between.
type Counters struct {
	Attempts uint64 `json:"attempts"` // connections, or flows of packets, that the endpoint began
	Answers  uint64 `json:"answers"`  // those that the peer answered
	Refusals uint64 `json:"refusals"` // those that it, or somebody on the way, refused
}

// Others is what a limit or a filter leaves out.
type Others struct {
	Peers     int `json:"peers"`
	Endpoints int `json:"endpoints"`
}
