package drops

import (
	"net/netip"
	"time"
)

// Schema names the document.
const Schema = "bpfnet.drops/v1"

// backend is how packets are seen.
const backend = "tp_btf"

// Document is what the kernel has dropped since the program was attached. The sum of
// Drops and Others is Total, and so is that of Reasons.
type Document struct {
	Schema          string    `json:"schema"`
	Time            time.Time `json:"time"`
	IntervalSeconds *float64  `json:"interval_seconds"` // null: no sample before, no rates
	Backend         string    `json:"backend"`
	Loss            Loss      `json:"loss"`
	Drops           []Drop    `json:"drops"`
	Others          Others    `json:"others"`
	Reasons         []Reason  `json:"reasons"` // those with the most packets first
	Total           Dropped   `json:"total"`
}

// Loss is what the document doesn't have.
type Loss struct {
	Drops   uint64 `json:"drops"`   // entries, since the watch began, that made room for others before they were read; their packets are in Others
	Missed  uint64 `json:"missed"`  // packets, since the program was loaded, that it didn't see
	Reasons uint64 `json:"reasons"` // packets, since the program was loaded, whose reason found no room
}

// Dropped is counters with their growth per second, null when it is unknown.
type Dropped struct {
	Counters
	PacketsPerSecond *uint64 `json:"packets_per_second"`
	BytesPerSecond   *uint64 `json:"bytes_per_second"`
}

// Reason is all that was dropped for one reason.
type Reason struct {
	Reason *string `json:"reason"` // null: the kernel tells none
	Dropped
}

// Drop is packets that were dropped in the same way.
type Drop struct {
	Reason   *string `json:"reason"`   // in the kernel's words, or its number; null: it tells none
	Location *string `json:"location"` // "function+offset"; null: the kernel doesn't tell it, or not to this user
	Dropped
	Direction *Direction `json:"direction"` // null: not known
	Network   *Network   `json:"network"`   // null: it isn't known what it was
	Who
	Process   *Process  `json:"process"` // null: not known
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
}

// Network is what the packets were.
type Network struct {
	Transport   *string `json:"transport"` // null: it isn't IP
	Type        string  `json:"type"`      // "ipv4", "ipv6", "arp", or the EtherType's number
	Source      *End    `json:"source"`    // null, as the next: it isn't IP, or can't be read
	Destination *End    `json:"destination"`
}

// End is where packets were from, or for.
type End struct {
	Address netip.Addr `json:"address"`
	Port    *uint16    `json:"port"` // null: the transport has none, or it isn't known
}

// Who is whose packets they were, and where.
type Who struct {
	Namespace   *string `json:"namespace"`
	Pod         *string `json:"pod"`
	PodUID      *string `json:"pod_uid"`
	Container   *string `json:"container"` // null for a Pod whose containers can't be told apart
	ContainerID *string `json:"container_id"`
	DevName     *string `json:"devname"`
	IfIndex     *uint32 `json:"ifindex"`
	NetNS       *uint32 `json:"netns"`     // inode, of the interface or else of the socket
	CgroupID    *string `json:"cgroup_id"` // of the socket; text: jq would round it
}

// Process is who has the socket open that has sent the packets, or would have got them.
type Process struct {
	PID        int       `json:"pid"`
	StartTime  time.Time `json:"start_time"`
	Executable *string   `json:"executable"`
	Command    string    `json:"command"` // chosen by the process
	Owners     int       `json:"owners"`  // how many have the socket open
}

// Others is all that Drops doesn't show.
type Others struct {
	Drops int `json:"drops"` // entries that a limit or a filter leaves out
	Dropped
}
