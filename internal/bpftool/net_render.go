package bpftool

import (
	"fmt"
	"slices"
	"strings"
)

// This file has the two ways to write what is attached in a network namespace:
// bpftool's, and rows in the words that bpfnet has for attachments.

// Bpftool is the document that bpftool prints.
func (n Network) Bpftool() []Object {
	xdp, tc, dissector, netfilter := []Object{}, []Object{}, []Object{}, []Object{}
	for _, x := range n.XDP {
		xdp = append(xdp, x.fields())
	}
	for _, t := range n.TC {
		tc = append(tc, t.fields())
	}
	for _, p := range n.Stack {
		if p.Hook == attachTypes[attachFlowDissector] {
			dissector = append(dissector, Object{{"id", p.ProgID}})
		}
	}
	for _, f := range n.Netfilter {
		netfilter = append(netfilter, append(f.fields(), Field{"id", f.ProgID}))
	}
	return []Object{{{"xdp", xdp}, {"tc", tc}, {"flow_dissector", dissector}, {"netfilter", netfilter}}}
}

func (d Device) fields() Object { return Object{{"devname", d.DevName}, {"ifindex", d.IfIndex}} }

func (x XDP) fields() Object {
	doc := x.Device.fields()
	programs := make([]Object, len(x.Programs))
	for i, p := range x.Programs {
		programs[i] = Object{{"mode", p.Mode}, {"id", p.ProgID}}
	}
	if len(programs) == 1 {
		return append(doc, programs[0]...)
	}
	return append(doc, Field{"multi_attachments", programs})
}

func (t TC) fields() Object {
	doc := append(t.Device.fields(), Field{"kind", t.Kind})
	if t.mprog() {
		return append(doc, t.mprogFields()...)
	}
	if t.Filter != "" {
		doc.add("name", t.Filter)
	}
	if t.ProgID != 0 {
		doc.add("id", t.ProgID)
	}
	if t.Actions != nil {
		actions := []Object{}
		for _, a := range t.Actions {
			actions = append(actions, a.fields())
		}
		doc.add("act", actions)
	}
	return doc
}

func (t TC) mprogFields() Object {
	var doc Object
	if t.ProgName != nil {
		doc.add("name", *t.ProgName)
	}
	linkID := uint32(0)
	if t.LinkID != nil {
		linkID = *t.LinkID
	}
	return append(doc, Object{
		{"prog_id", t.ProgID}, {"prog_flags", setBits(t.ProgFlags)}, {"link_id", linkID}, {"link_flags", setBits(t.LinkFlags)},
	}...)
}

func (a Action) fields() Object {
	var doc Object
	if a.Name != "" {
		doc.add("name", a.Name)
	}
	if a.ID != 0 {
		doc.add("id", a.ID)
	}
	return doc
}

// setBits lists the values of the bits that are set.
func setBits(flags uint32) []uint32 {
	values := []uint32{}
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if flags&bit != 0 {
			values = append(values, bit)
		}
	}
	return values
}

func (f Netfilter) fields() Object {
	return Object{{"pf", f.Family}, {"hook", f.Hook}, {"prio", f.Priority}, {"flags", f.Flags}}
}

// NetworkRow is one attachment in bpfnet's words.
type NetworkRow struct {
	Hook      string  `json:"hook"`      // "xdp", "tcx_ingress", "clsact_egress", "tc", "netkit_peer", "netfilter", …
	Mechanism *string `json:"mechanism"` // "link", "netlink", or "attach": a program without a link; null: not known
	Mode      *string `json:"mode"`      // xdp: native, generic, offload
	DevName   *string `json:"devname"`   // null: it isn't on a device
	IfIndex   *uint32 `json:"ifindex"`
	NetNS     *uint64 `json:"netns"`   // inode; null for netfilter: the kernel doesn't tell
	Target    *string `json:"target"`  // tc: kind of the qdisc; netfilter: family, hook and priority
	ProgID    *uint32 `json:"prog_id"` // null: a filter in classic BPF
	ProgName  *string `json:"prog_name"`
	LinkID    *uint32 `json:"link_id"` // null: no link holds it, or it may not be read
	Pinned    *string `json:"pinned"`  // pin of the link, if it is bpfnet's
}

// Rows lists what is attached to the devices, and with stack also what is in the
// stack, each once.
func (n Network) Rows(stack bool) []NetworkRow {
	rows := []NetworkRow{}
	for _, x := range n.XDP {
		for _, p := range x.Programs {
			row := n.row(p.Running, x.Device, "xdp", n.without("netlink"))
			row.Mode = ptr(ownMode(p.Mode))
			rows = append(rows, row)
		}
	}
	for _, t := range n.TC {
		if !n.repeated(t) {
			rows = append(rows, n.tcRow(t))
		}
	}
	if !stack {
		return rows
	}
	for _, p := range n.Stack {
		rows = append(rows, n.row(p.Running, Device{}, p.Hook, n.without("attach")))
	}
	for _, f := range n.Netfilter {
		row := n.row(f.Running, Device{}, "netfilter", nil)
		row.NetNS, row.Target = nil, ptr(f.place())
		rows = append(rows, row)
	}
	return rows
}

// without is the mechanism of a program that no link is known to hold; nil when
// links may not be read.
func (n Network) without(mechanism string) *string {
	if !n.LinksRead {
		return nil
	}
	return &mechanism
}

// row describes a program; without is the mechanism that holds it if no link
// does.
func (n Network) row(r Running, d Device, hook string, without *string) NetworkRow {
	row := NetworkRow{
		Hook: hook, Mechanism: without, NetNS: &n.NetNS, ProgName: r.ProgName, LinkID: r.LinkID, Pinned: r.Pinned,
	}
	if r.LinkID != nil {
		row.Mechanism = ptr("link")
	}
	if r.ProgID != 0 {
		row.ProgID = &r.ProgID
	}
	if d.IfIndex != 0 {
		row.DevName, row.IfIndex = &d.DevName, &d.IfIndex
	}
	return row
}

func (n Network) tcRow(t TC) NetworkRow {
	switch {
	case t.mprog():
		return n.row(t.Running, t.Device, strings.ReplaceAll(t.Kind, "/", "_"), ptr("attach"))
	case strings.HasPrefix(t.Kind, "clsact/"):
		return n.row(t.Running, t.Device, strings.ReplaceAll(t.Kind, "/", "_"), ptr("netlink"))
	}
	row := n.row(t.Running, t.Device, "tc", ptr("netlink"))
	row.Target = &t.Kind
	return row
}

// repeated says whether the kernel lists a filter once more: those of an ingress
// qdisc also stand where those of a clsact qdisc would, and below the root.
func (n Network) repeated(t TC) bool {
	return (t.Kind == "root" || strings.HasPrefix(t.Kind, "clsact/")) && slices.ContainsFunc(n.TC, func(other TC) bool {
		return other.Kind == "ingress" && other.IfIndex == t.IfIndex
	})
}

// ownMode is bpfnet's word for a mode of XDP.
func ownMode(mode string) string {
	if mode == "driver" {
		return "native"
	}
	return mode
}

// The words of nft(8) for NFPROTO_* and for the hooks of each.
var (
	netfilterFamilies = []string{1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
	netfilterHooks    = []string{"prerouting", "input", "forward", "output", "postrouting"}
	arpHooks          = []string{"input", "output", "forward"}
)

// place is where in netfilter a program is: "ip input priority -128".
func (f Netfilter) place() string {
	hooks := netfilterHooks
	if worded(netfilterFamilies, f.Family) == "arp" {
		hooks = arpHooks
	}
	return fmt.Sprintf("%v %v priority %d", worded(netfilterFamilies, f.Family), worded(hooks, f.Hook), f.Priority)
}

func ptr[T any](v T) *T { return &v }
