package flow

import (
	"net/netip"
	"time"
)

// Schema names the document.
const Schema = "bpfnet.flows/v1"

// Document is what flows have moved, or groups of them.
type Document struct {
	Schema          string    `json:"schema"`
	Time            time.Time `json:"time"`
	Since           time.Time `json:"since"`            // when counting began
	IntervalSeconds *float64  `json:"interval_seconds"` // null: no sample before
	Backend         Backend   `json:"backend"`
	Loss            Loss      `json:"loss"`            // since the watch began
	ReconcileRatio  *float64  `json:"reconcile_ratio"` // bytes that were counted of what the kernel says that TCP sockets moved since the sample before; null: it says nothing
	By              []string  `json:"by"`              // what flows are grouped by; empty: each is shown by itself
	Flows           []Flow    `json:"flows"`           // those with news since the sample before; all without one
	Others          Amount    `json:"others"`          // those with news that a limit leaves out
	Total           Amount    `json:"total"`           // all that fit the filter, those that were closed and aren't shown any more, too
}

// Flow is what one process has moved through one socket, with one peer, or the sum of
// a group. What a group has in common is there, all else null.
type Flow struct {
	Network     Network     `json:"network"`
	Process     ProcessDoc  `json:"process"`
	User        User        `json:"user"`
	Container   Container   `json:"container"`
	K8s         K8s         `json:"k8s"`
	IO          IO          `json:"io"`
	TCP         Connection  `json:"tcp"`
	Attribution Attribution `json:"attribution"`
	Src         *End        `json:"src"` // who sent; null, as the next: the grouping isn't by direction
	Dst         *End        `json:"dst"`
	Flows       int         `json:"flows"` // that were open since the sample before
	Cookie      *string     `json:"cookie"`
	OpenedAt    *time.Time  `json:"opened_at"` // null: before counting began, as far as is known
	ClosedAt    *time.Time  `json:"closed_at"` // null: it is open
}

// Network is where a flow is.
type Network struct {
	Transport *string  `json:"transport"`
	Type      *string  `json:"type"` // "ipv4", "ipv6"
	NetNS     *uint64  `json:"netns"`
	Local     Address  `json:"local"`
	Peer      Peer     `json:"peer"`
	NAT       *Address `json:"nat"` // whom the peer's address was translated to
}

// Address is one end.
type Address struct {
	Address *netip.Addr `json:"address"`
	Port    *uint16     `json:"port"` // null: the transport has none
}

// Peer is the far end.
type Peer struct {
	Address
	Name *string `json:"name"`
}

// ProcessDoc is who uses the socket.
type ProcessDoc struct {
	PID        *uint32    `json:"pid"`
	StartTime  *time.Time `json:"start_time"`
	Executable *string    `json:"executable"` // null: it had ended before it was looked at
	Command    *string    `json:"command"`
	Owners     *int       `json:"owners"` // processes that are known to have used the socket, or have it open
}

// User is whose the process is.
type User struct {
	UID  *uint32 `json:"uid"`
	Name *string `json:"name"` // on the host
}

// Container is the container that the process is in.
type Container struct {
	ID   *string `json:"id"`
	Name *string `json:"name"`
}

// K8s is the Pod that the process is in.
type K8s struct {
	Namespace *string `json:"namespace"`
	Pod       *string `json:"pod"`
	PodUID    *string `json:"pod_uid"`
}

// End is one end of a sum by direction.
type End struct {
	Address
	Process   ProcessDoc `json:"process"`
	User      User       `json:"user"`
	Container Container  `json:"container"`
	K8s       K8s        `json:"k8s"`
	NetNS     *uint64    `json:"netns"`
}

// IO is what was moved. Received is null of sums by direction: what dst received is
// what src transmitted.
type IO struct {
	TransmitBytes          *uint64 `json:"transmit_bytes"`
	ReceiveBytes           *uint64 `json:"receive_bytes"`
	TransmitCalls          *uint64 `json:"transmit_calls"`
	ReceiveCalls           *uint64 `json:"receive_calls"`
	NewTransmitBytes       *uint64 `json:"new_transmit_bytes"` // since the sample before; null, as all that follow: there is none
	NewReceiveBytes        *uint64 `json:"new_receive_bytes"`
	NewTransmitCalls       *uint64 `json:"new_transmit_calls"`
	NewReceiveCalls        *uint64 `json:"new_receive_calls"`
	TransmitBytesPerSecond *uint64 `json:"transmit_bytes_per_second"`
	ReceiveBytesPerSecond  *uint64 `json:"receive_bytes_per_second"`
}

// Connection is the state of a TCP connection; all null for other transports.
type Connection struct {
	State       *string `json:"state"`
	OpenedBy    *string `json:"opened_by"` // "local", "peer"
	SRTT        *uint32 `json:"srtt_us"`
	MinRTT      *uint32 `json:"min_rtt_us"`
	Retransmits *uint32 `json:"retransmits"`
	Error       *string `json:"error"` // "ECONNREFUSED"; null: it was closed without one, or is open
}

// Attribution says how far the counters can be trusted; of a group, those of the flow
// that can be the least.
type Attribution struct {
	Status Status `json:"status"`
}

// Amount is what several flows or groups have moved.
type Amount struct {
	Flows int `json:"flows"` // others: flows or groups; total: flows that were open since the sample before
	IO    IO  `json:"io"`
}
