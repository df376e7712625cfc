package bpftool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"bpfnet/internal/probe"
)

// This file reads by netlink what package netlink leaves out: the XDP programs
// of each mode, and the actions of filters.

// Attributes of linux/if_link.h, linux/pkt_cls.h and linux/tc_act/tc_bpf.h.
const (
	iflaXDPAttached = 2
	iflaXDPProgID   = 4
	iflaXDPDrvID    = 5
	iflaXDPSkbID    = 6
	iflaXDPHwID     = 7

	tcaBPFAct  = 1
	tcaBPFName = 7
	tcaBPFID   = 11

	tcaActKind    = 1
	tcaActOptions = 2

	tcaActBPFParms = 2
	tcaActBPFName  = 6
	tcaActBPFID    = 9
)

// dump asks for all objects of a kind and returns the messages without their
// headers.
func dump(command int, request nl.NetlinkRequestData, reply uint16) ([][]byte, error) {
	const attempts = 5
	var messages [][]byte
	var err error
	for range attempts {
		req := nl.NewNetlinkRequest(command, unix.NLM_F_DUMP)
		req.AddData(request)
		if messages, err = req.Execute(unix.NETLINK_ROUTE, reply); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return messages, err
}

// attributes takes a message, or a nested attribute, apart.
func attributes(b []byte) map[uint16][]byte {
	parsed, err := parseAttributes(b)
	if err != nil {
		return nil
	}
	m := make(map[uint16][]byte, len(parsed))
	for _, a := range parsed {
		m[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
	}
	return m
}

// parseAttributes takes attributes apart of which the last may lack its padding,
// which package nl doesn't expect.
func parseAttributes(b []byte) ([]syscall.NetlinkRouteAttr, error) {
	missing := -len(b) & (unix.RTA_ALIGNTO - 1)
	return nl.ParseRouteAttr(append(b[:len(b):len(b)], make([]byte, missing)...))
}

func attrU32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// deviceXDP is a device and its XDP programs.
type deviceXDP struct {
	Device
	xdp      []XDPProgram
	hostSide bool // of a pair whose other end is in another network namespace
}

// readDevices lists the devices of this network namespace, or the one of an
// index that isn't 0.
func readDevices(only uint32) ([]deviceXDP, error) {
	messages, err := dump(unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var devices []deviceXDP
	for _, m := range messages {
		index := uint32(nl.DeserializeIfInfomsg(m).Index)
		if only != 0 && only != index {
			continue
		}
		tb := attributes(m[unix.SizeofIfInfomsg:])
		devices = append(devices, deviceXDP{
			Device{text(tb[unix.IFLA_IFNAME]), index}, xdpPrograms(attributes(tb[unix.IFLA_XDP])), isHostSide(tb),
		})
	}
	return devices, nil
}

// isHostSide says whether a link is one of a pair of which the other one is in
// another network namespace, as those of Pods are.
func isHostSide(tb map[uint16][]byte) bool {
	kind := text(attributes(tb[unix.IFLA_LINKINFO])[unix.IFLA_INFO_KIND])
	_, apart := tb[unix.IFLA_LINK_NETNSID]
	return apart && (kind == "veth" || kind == "netkit")
}

// xdpModes are bpftool's words for the modes of XDP, in its order: the value of
// IFLA_XDP_ATTACHED, and the attribute of the program.
var xdpModes = []struct {
	mode     string
	attached byte
	id       uint16
}{
	{"generic", 2, iflaXDPSkbID},
	{"driver", 1, iflaXDPDrvID},
	{"offload", 3, iflaXDPHwID},
}

func xdpPrograms(tb map[uint16][]byte) []XDPProgram {
	if len(tb[iflaXDPAttached]) == 0 {
		return nil
	}
	attached := tb[iflaXDPAttached][0]
	var programs []XDPProgram
	for _, m := range xdpModes {
		id := tb[m.id]
		if m.attached == attached {
			id = tb[iflaXDPProgID]
		} else if attached != xdpAttachedMulti {
			continue
		}
		if len(id) > 0 {
			programs = append(programs, XDPProgram{m.mode, Running{ProgID: attrU32(id)}})
		}
	}
	return programs
}

// mprogKinds are the lists of programs of a device, in bpftool's words.
var mprogKinds = []struct {
	kind       string
	attachType uint32
}{
	{"tcx/ingress", attachTCXIngress},
	{"tcx/egress", attachTCXEgress},
	{"netkit/primary", attachNetkitPrimary},
	{"netkit/peer", attachNetkitPeer},
}

// readMprogs lists the TCX and netkit programs of a device, as far as ask, which
// is query, doesn't fail.
func readMprogs(d Device, ask func(target, attachType, flags uint32) ([]attached, error)) (programs []TC, err error) {
	for _, m := range mprogKinds {
		list, asked := ask(d.IfIndex, m.attachType, 0)
		if asked != nil && !hasNoMprogs(asked) && err == nil {
			err = fmt.Errorf("query programs of %s on %s: %w", m.kind, d.DevName, probe.Explain(probe.OpQueryHook, asked))
		}
		for _, a := range list {
			t := TC{Device: d, Kind: m.kind, Running: Running{ProgID: a.progID}, ProgFlags: a.progFlags, LinkFlags: a.linkFlags}
			if a.linkID != 0 {
				t.LinkID = &a.linkID
			}
			programs = append(programs, t)
		}
	}
	return programs, err
}

// hasNoMprogs says whether an error means that the kernel (EINVAL) or the device
// has no such programs: it isn't a netkit device (ENXIO), is the peer of one
// (EACCES), has none attached (ENOENT), or is gone.
func hasNoMprogs(err error) bool {
	for _, none := range []error{unix.EINVAL, unix.ENXIO, unix.EACCES, unix.ENOENT, unix.ENODEV} {
		if errors.Is(err, none) {
			return true
		}
	}
	return false
}

// filterParent is what a filter can hang on: a qdisc, a class, or a side of a
// clsact qdisc.
type filterParent struct {
	kind   string
	handle uint32
}

// readParents lists the qdiscs of each device, or the classes of one.
func readParents(command, reply int, index uint32) (map[uint32][]filterParent, error) {
	messages, err := dump(command, &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(index)}, uint16(reply))
	if err != nil {
		return nil, err
	}
	parents := map[uint32][]filterParent{}
	for _, m := range messages {
		msg := nl.DeserializeTcMsg(m)
		if msg.Handle != 0 { // others, noqueue, have no filters
			on := uint32(msg.Ifindex)
			parents[on] = append(parents[on], filterParent{text(attributes(m[nl.SizeofTcMsg:])[nl.TCA_KIND]), msg.Handle})
		}
	}
	return parents, nil
}

func readQdiscs() (map[uint32][]filterParent, error) {
	qdiscs, err := readParents(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, 0)
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	return qdiscs, nil
}

// filterParents lists what filters can hang on, in bpftool's order: the classes
// of a device, its qdiscs, and where the kernel has the filters of an ingress or
// clsact qdisc.
func filterParents(d Device, qdiscs []filterParent) ([]filterParent, error) {
	if len(qdiscs) == 0 {
		return nil, nil
	}
	classes, err := readParents(unix.RTM_GETTCLASS, unix.RTM_NEWTCLASS, d.IfIndex)
	if err != nil {
		return nil, fmt.Errorf("list classes of %s: %w", d.DevName, err)
	}
	parents, ingress := classes[d.IfIndex], false
	for _, q := range qdiscs {
		ingress = ingress || q.kind == "ingress" || q.kind == "clsact"
		if q.kind != "clsact" {
			parents = append(parents, q)
		}
	}
	if ingress {
		parents = append(parents, filterParent{"root", netlink.HANDLE_ROOT},
			filterParent{"clsact/ingress", netlink.HANDLE_MIN_INGRESS}, filterParent{"clsact/egress", netlink.HANDLE_MIN_EGRESS})
	}
	return parents, nil
}

// readTC lists the filters of a device that are programs.
func readTC(d Device, qdiscs []filterParent) ([]TC, error) {
	var programs []TC
	parents, err := filterParents(d, qdiscs)
	if err != nil {
		return nil, err
	}
	for _, p := range parents {
		filters, err := readFilters(d, p)
		if err != nil {
			return nil, err
		}
		programs = append(programs, filters...)
	}
	return programs, nil
}

// readFilters lists the BPF filters below a parent.
func readFilters(d Device, parent filterParent) ([]TC, error) {
	request := &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(d.IfIndex), Parent: parent.handle}
	messages, err := dump(unix.RTM_GETTFILTER, request, unix.RTM_NEWTFILTER)
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", d.DevName, err)
	}
	var filters []TC
	for _, m := range messages {
		tb := attributes(m[nl.SizeofTcMsg:])
		if options, ok := tb[nl.TCA_OPTIONS]; ok && text(tb[nl.TCA_KIND]) == "bpf" {
			bpf := attributes(options)
			filters = append(filters, TC{
				Device: d, Kind: parent.kind, Filter: text(bpf[tcaBPFName]),
				Running: Running{ProgID: attrU32(bpf[tcaBPFID])}, Actions: readActions(bpf[tcaBPFAct]),
			})
		}
	}
	return filters, nil
}

// readActions lists the actions of a filter that are programs; nil when it has
// no actions at all.
func readActions(b []byte) []Action {
	if b == nil {
		return nil
	}
	actions := []Action{}
	parsed, err := parseAttributes(b)
	if err != nil {
		return actions
	}
	for _, a := range parsed {
		act := attributes(a.Value)
		options := attributes(act[tcaActOptions])
		if text(act[tcaActKind]) == "bpf" && options[tcaActBPFParms] != nil {
			actions = append(actions, Action{text(options[tcaActBPFName]), attrU32(options[tcaActBPFID])})
		}
	}
	return actions
}
