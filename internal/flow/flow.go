// Package flow says which process has sent and received how much, through which
// socket, and with whom.
package flow

import (
	"context"
	"net/netip"
	"time"
)

// Backend is how flows are counted: a word for each thing that is known of them.
type Backend struct {
	TCPTransmit string `json:"tcp_transmit"` // "tp_btf/sock_send_length", "fexit/inet_sendmsg", "sock_diag"
	TCPReceive  string `json:"tcp_receive"`
	Datagrams   string `json:"datagrams"` // UDP, ICMP and raw sockets, both ways; "none": they aren't counted
	Store       string `json:"store"`     // where counters are: "sk_storage"; "sock_diag": the kernel's own
}

// Process is who uses a socket. Threads are one process.
type Process struct {
	PID     uint32 // of the thread group leader; 0: not known
	Start   uint64 // of the leader, ns of CLOCK_BOOTTIME; tells processes of one pid apart
	Command string // name of the leader, from the kernel
	UID     uint32
	Cgroup  uint64 // id in cgroup2; 0: not known
}

// Counters only grow while the socket lives.
type Counters struct {
	TransmitBytes uint64 `json:"transmit_bytes"` // what calls took, not what was sent again
	ReceiveBytes  uint64 `json:"receive_bytes"`  // what calls gave, without peeks
	TransmitCalls uint64 `json:"transmit_calls"` // that moved something
	ReceiveCalls  uint64 `json:"receive_calls"`
}

// TCP is the state of a connection, from the kernel.
type TCP struct {
	State       string  // the kernel's name, lower-case: "established", "syn_sent"
	SRTT        uint32  // smoothed round trip time, µs; 0: not measured
	MinRTT      uint32  // µs; 0: not measured
	Retransmits uint32  // segments
	Error       uint32  // errno that it was closed with; 0: none
	Transmitted *uint64 // what the kernel has taken from this socket's callers since it was made, bytes; nil: not known
	Received    *uint64 // what the kernel has given to this socket's callers since then
}

// Status is how far the counters of a row can be trusted.
type Status string

// The statuses of rows, best first.
const (
	Exact  Status = "exact"  // all since the flow's beginning, or since counting began
	Shared Status = "shared" // more processes used the socket than are told apart: this row is what the others moved
	Sum    Status = "sum"    // of a socket that several processes have open, which aren't told apart
	Polled Status = "polled" // what was moved after the last look before its end isn't counted
)

// Row is what one process has moved through one socket, with one peer.
type Row struct {
	Cookie    uint64 // of the socket: not used again while the machine runs
	NetNS     uint64 // inode of its network namespace
	Transport string // "tcp", "udp", "udplite", "icmp", "raw", or the protocol's number; MPTCP is "mptcp"
	Family    int    // unix.AF_INET or AF_INET6; an IPv6 socket with mapped addresses is AF_INET
	Local     netip.AddrPort
	Peer      netip.AddrPort // invalid: not connected, and not known
	NAT       netip.AddrPort // whom the peer's address was translated to; invalid: nobody
	Process
	Owners int // processes that are known to have used it, or have it open; at least 1 if PID is known
	Counters
	TCP    *TCP       // nil: no TCP
	Opened time.Time  // when it was first seen; zero: before counting began
	Closed *time.Time // nil: it is open
	Inward bool       // TCP: the peer opened the connection
	Status Status
}

// ID tells rows apart, and is the same in all samples.
type ID struct {
	Cookie, Start uint64
	PID           uint32
	Opened        int64          // ns; 0: before counting began. A socket may be connected again
	Peer          netip.AddrPort // of datagrams; TCP has one peer
}

// ID returns the identity of a row.
func (r *Row) ID() ID {
	id := ID{Cookie: r.Cookie, Start: r.Start, PID: r.PID, Opened: r.openedAt()}
	if r.TCP == nil {
		id.Peer = r.Peer
	}
	return id
}

// openedAt is Opened in an ID.
func (r *Row) openedAt() int64 {
	if r.Opened.IsZero() {
		return 0
	}
	return r.Opened.UnixNano()
}

// Loss is what samples don't have, since counting began.
type Loss struct {
	Events       uint64 `json:"events"`             // records of sockets that were closed, overwritten before they were read
	MapFull      uint64 `json:"map_full"`           // sockets, or peers of them, that found no room
	Missed       uint64 `json:"missed"`             // calls that the programs didn't see, at most; since they were loaded
	Unattributed uint64 `json:"unattributed_bytes"` // moved, but by nobody that is known
}

// Sample is all rows at one moment.
type Sample struct {
	Time    time.Time
	Since   time.Time // when counting began
	Backend Backend
	// Rows of open sockets with what they have moved so far, and of those that were
	// closed since the sample before; in the first sample all that are remembered.
	Rows []Row
	Loss Loss
}

// Filter is what is counted at all. The zero value is everything.
type Filter struct {
	PIDs       []uint32
	Cgroups    []uint64 // and those below them
	Transports []string
	Ports      []uint16 // local or peer's
}

// Sampler takes samples. Two samplers of one instance don't disturb each other.
type Sampler interface {
	Sample(ctx context.Context) (Sample, error)
	Close() error
}

// Request says whose samples to open.
type Request struct {
	Instance string // a loaded instance; if there is none of that name, counting begins now and ends with the sampler
	Filter   Filter // of what begins to be counted; a loaded instance counts what it was loaded for
	Backend  string // the mechanism to take, "tp_btf", "fexit", "kprobe" or "sock_diag"; empty: the best that works
}
