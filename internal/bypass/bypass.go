// Package bypass finds programs that take packets past the host side of Pods,
// which pod-traffic then doesn't see at tc, but at the Pods' cgroups.
package bypass

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"bpfnet/internal/bpftool"
	"bpfnet/internal/datapath"
)

// Report says whether packets of Pods pass by the host side of their interfaces.
type Report struct {
	Bypassed *bool     `json:"bypassed"` // null: not known
	Programs []Program `json:"programs"` // those that do it
	Detail   *string   `json:"detail"`   // why it isn't known of all programs

	NetNS     uint64   `json:"-"` // inode
	HostSides []uint32 `json:"-"` // indexes of devices
}

// Program is a program that redirects packets past host sides.
type Program struct {
	DevName  string   `json:"devname"` // the device that it is attached to
	IfIndex  uint32   `json:"ifindex"`
	Hook     string   `json:"hook"` // "tcx_ingress", "clsact_ingress", "netkit_peer"
	ProgID   uint32   `json:"prog_id"`
	ProgName *string  `json:"prog_name"`
	Calls    []string `json:"calls"`  // helpers that it or a program that it goes on in calls
	Misses   []Part   `json:"misses"` // what host sides miss by it
	Before   []uint32 `json:"-"`      // ids of programs that see packets before it does
}

// Part is a part of Pods' packets, as the Pod sees them.
type Part string

// The parts.
const (
	Transmit Part = "transmit" // of the Pod behind the device
	Receive  Part = "receive"  // of any Pod
)

// Find looks at the programs of a network namespace that can take packets past
// host sides. What can't be read is in Detail.
func Find(ctx context.Context, networks bpftool.Networks) Report {
	r := Report{Programs: []Program{}}
	n, err := networks.Network(ctx, "")
	if err != nil {
		r.doubt(err)
		return r
	}
	r.NetNS, r.HostSides = n.NetNS, n.HostSides
	if n.Unread != nil {
		r.doubt(n.Unread)
	}
	code := newReader()
	for i, t := range n.TC {
		if !takes(t) {
			continue
		}
		calls, err := code.calls(ctx, t.ProgID)
		if err != nil {
			if !own(t) {
				r.doubt(fmt.Errorf("read program %d on %s: %w", t.ProgID, t.DevName, err))
			}
			continue
		}
		if p := newProgram(t, calls, n); len(p.Misses) > 0 {
			p.Before = before(t, n.TC[:i])
			r.Programs = append(r.Programs, p)
		}
	}
	if bypassed := len(r.Programs) > 0; bypassed || r.Detail == nil {
		r.Bypassed = &bypassed
	}
	return r
}

// doubt notes why not all is known; the first reason stands for all of them.
func (r *Report) doubt(err error) {
	if r.Detail == nil {
		why := err.Error()
		r.Detail = &why
	}
}

// takes says whether a program is where it can take packets past host sides.
// Filters of an ingress qdisc are listed as clsact's, too.
func takes(t bpftool.TC) bool { return t.ProgID != 0 && (ingress(t) || t.Kind == "netkit/peer") }

func ingress(t bpftool.TC) bool { return t.Kind == "tcx/ingress" || t.Kind == "clsact/ingress" }

// own says whether bpfnet attached a program. Its own redirect nothing, and it may
// not be allowed to look into programs by their ids.
func own(t bpftool.TC) bool {
	return t.Pinned != nil || strings.HasPrefix(t.Filter, datapath.FilterPrefix)
}

// newProgram describes a program that calls redirects.
func newProgram(t bpftool.TC, calls []string, n bpftool.Network) Program {
	p := Program{
		DevName: t.DevName, IfIndex: t.IfIndex, Hook: strings.ReplaceAll(t.Kind, "/", "_"),
		ProgID: t.ProgID, ProgName: t.ProgName, Calls: calls,
	}
	if len(calls) > 0 && slices.Contains(n.HostSides, t.IfIndex) {
		p.Misses = append(p.Misses, Transmit)
	}
	if slices.Contains(calls, redirectPeer) && ingress(t) { // from netkit's hooks the kernel drops it
		p.Misses = append(p.Misses, Receive)
	}
	return p
}

// before returns those of earlier programs that see a packet before t: a program
// of netkit's hook comes before all others.
func before(t bpftool.TC, earlier []bpftool.TC) (ids []uint32) {
	for _, e := range earlier {
		if ingress(t) && ingress(e) && e.IfIndex == t.IfIndex {
			ids = append(ids, e.ProgID)
		}
	}
	return ids
}

// Past returns the programs that take packets past attachments.
func (r Report) Past(attachments []datapath.Attachment) []Program {
	return slices.DeleteFunc(slices.Clone(r.Programs), func(p Program) bool {
		return !slices.ContainsFunc(attachments, func(a datapath.Attachment) bool { return r.past(p, a) })
	})
}

func (r Report) past(p Program, a datapath.Attachment) bool {
	if a.Defunct || a.IfIndex == nil || a.NetNS == nil || *a.NetNS != r.NetNS || !slices.Contains(r.HostSides, *a.IfIndex) {
		return false
	}
	if strings.HasSuffix(a.Hook, "_egress") {
		return slices.Contains(p.Misses, Receive)
	}
	return slices.Contains(p.Misses, Transmit) && p.IfIndex == *a.IfIndex && !slices.Contains(p.Before, uint32(a.ProgID))
}

// String says what the program does, and where.
func (p Program) String() string {
	name := fmt.Sprintf("program %d", p.ProgID)
	if p.ProgName != nil {
		name = *p.ProgName
	}
	return fmt.Sprintf("%s on %s (%s) calls %s", name, p.DevName, p.Hook, strings.Join(p.Calls, ", "))
}
