package alert

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/traffic"
)

// BlocklistObserved is what the rule blocklist counts: packets, of which the
// alert is about the first one.
type BlocklistObserved struct {
	Packets    uint64 `json:"packets"`
	Suppressed uint64 `json:"suppressed"` // of the episode before, without an alert
}

// BlocklistEvidence is the packet that met an entry, and the entry.
type BlocklistEvidence struct {
	Network   Network    `json:"network"`
	Direction string     `json:"direction"`
	Hook      string     `json:"hook"`
	DevName   *string    `json:"devname"`
	IfIndex   *uint32    `json:"ifindex"`
	CgroupID  *string    `json:"cgroup_id"` // text: jq would round it
	Length    uint32     `json:"length"`
	List      *string    `json:"list"` // null: it is gone
	Prefix    string     `json:"prefix"`
	Action    *string    `json:"action"`
	Dropped   bool       `json:"dropped"`
	Matched   string     `json:"matched"`
	Reason    *string    `json:"reason"`
	ExpiresAt *time.Time `json:"expires_at"`
	FoundBy   string     `json:"found_by"`
	Domain    *string    `json:"domain"`
	Process   *Process   `json:"process"` // null: not known
}

// Process is the process whose socket has sent the packet, or would get it: of several
// the one with the lowest pid.
type Process struct {
	PID        int       `json:"pid"`
	StartTime  time.Time `json:"start_time"`
	Executable *string   `json:"executable"`
	Command    string    `json:"command"` // chosen by the process
	Owners     int       `json:"owners"`  // how many have the socket open
}

// String is the process for people.
func (p Process) String() string { return fmt.Sprintf("%d (%s)", p.PID, p.Command) }

// Network is who sent a packet to whom.
type Network struct {
	Transport   *string `json:"transport"` // null: the packet doesn't tell
	Type        string  `json:"type"`
	Source      End     `json:"source"`
	Destination End     `json:"destination"`
}

// End is an end of a connection.
type End struct {
	Address netip.Addr `json:"address"`
	Port    *uint16    `json:"port"`
}

// foundByEntry says that the entry was put on the list as an address.
const foundByEntry blocklist.FoundBy = "entry"

// OfBlocklist is the alert of a hit. devname and process are nil where they aren't
// known; lost is how many hits weren't reported since the watch began.
func OfBlocklist(e blocklist.Event, devname *string, process *Process, lost uint64) Alert {
	prefix := e.Entry.Prefix.String()
	return Alert{
		Schema: Schema, Rule: RuleBlocklist, Severity: Warning,
		Fingerprint: fingerprint(RuleBlocklist, e.Entry.List, prefix, e.FarEnd().String()),
		StartedAt:   e.Time.UTC(), WindowSeconds: uint64(blocklist.Episode / time.Second),
		Observed: BlocklistObserved{Packets: 1, Suppressed: e.Suppressed},
		Evidence: BlocklistEvidence{
			Network: NetworkOf(e), Direction: e.Direction, Hook: e.Hook,
			DevName: devname, IfIndex: Known(e.IfIndex), CgroupID: cgroupID(e.CgroupID), Length: e.Length,
			List: Known(e.Entry.List), Prefix: prefix, Action: Known(string(e.Entry.Action)), Dropped: e.Dropped, Matched: string(e.Matched),
			Reason: Known(e.Entry.Reason), ExpiresAt: Known(e.Entry.Expires),
			FoundBy: string(cmp.Or(e.Entry.FoundBy, foundByEntry)), Domain: Known(e.Entry.Domain),
			Process: process,
		},
		Loss: Loss{Events: lost},
	}
}

// Known is nil, null in documents, for a zero value.
func Known[T comparable](value T) *T {
	var zero T
	if value == zero {
		return nil
	}
	return &value
}

func cgroupID(id uint64) *string {
	if id == 0 {
		return nil
	}
	text := strconv.FormatUint(id, 10)
	return &text
}

// NetworkOf is who sent the packet of a hit to whom.
func NetworkOf(e blocklist.Event) Network {
	n := Network{
		Transport: Known(traffic.Transport(e.Protocol)), Type: "ipv6",
		Source:      End{e.Source.Addr(), Known(e.Source.Port())},
		Destination: End{e.Destination.Addr(), Known(e.Destination.Port())},
	}
	if e.Source.Addr().Is4() {
		n.Type = "ipv4"
	}
	return n
}
