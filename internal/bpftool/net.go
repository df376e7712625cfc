package bpftool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/internal/netns"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Networks describes what is attached in a network namespace.
type Networks interface {
	// Network describes the programs on the devices and in the stack of the
	// network namespace; with the name of a device, only those of that device
	// and of the stack. ErrNotFound if there is no such device.
	Network(ctx context.Context, device string) (Network, error)
}

// Network is what is attached in a network namespace, whoever attached it.
type Network struct {
	NetNS     uint64 // inode
	XDP       []XDP
	TC        []TC
	Stack     []StackProgram // flow dissector and socket lookup
	Netfilter []Netfilter    // of the whole machine: the kernel doesn't tell the namespace
	LinksRead bool           // false: which links hold programs isn't known
	HostSides []uint32       // devices whose other end is in another network namespace, by their index
	Unread    error          // why programs of TCX and netkit aren't known; nil: they are
	Notes     []string       // what couldn't be read, and why
}

// Device is a network device.
type Device struct {
	DevName string
	IfIndex uint32
}

// Running is a program on a hook and what holds it there.
type Running struct {
	ProgID   uint32  // 0: not an eBPF program
	ProgName *string // nil: it has none, or it may not be read
	LinkID   *uint32 // nil: no link holds it, or links may not be read
	Pinned   *string // pin of the link, below bpfnet's root
}

// XDP is the XDP programs of a device: one, or one for each of several modes.
type XDP struct {
	Device
	Programs []XDPProgram
}

// XDPProgram is one of the XDP programs of a device.
type XDPProgram struct {
	Mode string // bpftool's word: "generic", "driver" or "offload"
	Running
}

// TC is a program where tc has them: a filter of a qdisc, a TCX program, or a
// netkit program.
type TC struct {
	Device
	Kind   string // "tcx/ingress", "netkit/peer", "clsact/egress", or of another qdisc its kind, "htb"
	Filter string // name that a filter was given
	Running
	Actions              []Action // of a filter that doesn't decide itself
	ProgFlags, LinkFlags uint32   // of TCX and netkit
}

// mprog says whether programs of this kind are in the kernel's multi-program
// lists, unlike filters.
func (t TC) mprog() bool {
	return strings.HasPrefix(t.Kind, "tcx/") || strings.HasPrefix(t.Kind, "netkit/")
}

// Action is a program that is an action of a filter.
type Action struct {
	Name string
	ID   uint32
}

// StackProgram is a program of the network namespace itself.
type StackProgram struct {
	Hook string // "flow_dissector" or "sk_lookup"
	Running
}

// Netfilter is a program on a hook of netfilter.
type Netfilter struct {
	Family, Hook uint32 // NFPROTO_*, NF_INET_*
	Priority     int32
	Flags        uint32
	Running
}

func newNetfilter(info *linkInfo) Netfilter {
	return Netfilter{
		Family: info.u32(0), Hook: info.u32(4), Priority: int32(info.u32(8)), Flags: info.u32(12),
		Running: Running{ProgID: info.progID, LinkID: &info.id},
	}
}

// Network implements API.
func (k *Kernel) Network(_ context.Context, device string) (Network, error) {
	var n Network
	err := netns.Do(k.netns, func() error {
		var err error
		if n.NetNS, err = netns.Inode(""); err != nil {
			return err
		}
		var only uint32
		if device != "" {
			if only, err = deviceIndex(device); err != nil {
				return err
			}
		}
		return k.readNetwork(&n, only)
	})
	return n, err
}

func (k *Kernel) readNetwork(n *Network, only uint32) error {
	known, err := k.links()
	n.LinksRead = err == nil
	if err != nil {
		n.Notes = append(n.Notes, fmt.Sprintf("what holds programs of others, and netfilter, are not shown: %v", err))
	}
	if err := known.readDevices(n, only); err != nil {
		return err
	}
	n.Netfilter = known.netfilter()
	if n.Stack, err = known.stack(n.NetNS); err != nil {
		n.Notes = append(n.Notes, fmt.Sprintf("programs of the stack are not shown: %v", err))
	}
	return nil
}

// readDevices describes the programs of all devices, or of the one of an index
// that isn't 0.
func (known knownLinks) readDevices(n *Network, only uint32) error {
	devices, err := readDevices(only)
	if err != nil {
		return err
	}
	qdiscs, err := readQdiscs()
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d.hostSide {
			n.HostSides = append(n.HostSides, d.IfIndex)
		}
		if len(d.xdp) > 0 {
			n.XDP = append(n.XDP, XDP{d.Device, known.xdp(d)})
		}
		mprogs, err := readMprogs(d.Device, query)
		n.Unread = cmp.Or(n.Unread, err)
		filters, err := readTC(d.Device, qdiscs[d.IfIndex])
		if err != nil {
			return err
		}
		n.TC = append(append(n.TC, known.tc(mprogs)...), known.tc(filters)...)
	}
	if n.Unread != nil {
		n.Notes = append(n.Notes, fmt.Sprintf("programs of TCX and netkit are not shown: %v", n.Unread))
	}
	return nil
}

func deviceIndex(name string) (uint32, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return 0, fault.New(fault.ErrNotFound, "show network of %q: no such interface", name).
			Hint("an interface of a container is in its network namespace: --netns")
	}
	if err != nil {
		return 0, fmt.Errorf("look up interface %q: %w", name, err)
	}
	return uint32(l.Attrs().Index), nil
}

func deviceName(index uint32) (string, error) {
	l, err := netlink.LinkByIndex(int(index))
	if err != nil {
		return "", fmt.Errorf("look up interface %d: %w", index, err)
	}
	return l.Attrs().Name, nil
}

// Value of IFLA_XDP_ATTACHED for programs of several modes.
const xdpAttachedMulti = 4

// xdpRuns says whether a device of this namespace runs an XDP program.
func xdpRuns(index, progID uint32) bool {
	l, err := netlink.LinkByIndex(int(index))
	if err != nil || l.Attrs().Xdp == nil {
		return false
	}
	x := l.Attrs().Xdp
	return x.AttachMode == xdpAttachedMulti || x.ProgId == progID
}

// knownLinks are the links of the machine, to find what holds a program.
type knownLinks struct {
	links []*linkInfo
	pins  map[uint32]string // those below bpfnet's root
}

// links reads all links; with an error those that are pinned below the root,
// which take no CAP_SYS_ADMIN.
func (k *Kernel) links() (knownLinks, error) {
	known := k.pinnedLinks()
	err := linkKind.each(func(fd int) error {
		info, err := readLink(fd)
		if err == nil && known.pins[info.id] == "" {
			known.links = append(known.links, info)
		}
		return err
	})
	return known, err
}

// pinnedLinks reads the links that are pinned below the root. What can't be read
// isn't known as pinned.
func (k *Kernel) pinnedLinks() knownLinks {
	known := knownLinks{pins: map[uint32]string{}}
	names, _ := k.root.Names()
	for _, name := range names {
		pins, _ := k.root.List(name, pinned.Links)
		for _, pin := range pins {
			path := k.root.Path(name, pinned.Links, pin)
			_ = linkKind.with(path, func(fd int) error {
				info, err := readLink(fd)
				if err == nil {
					known.links, known.pins[info.id] = append(known.links, info), path
				}
				return err
			})
		}
	}
	return known
}

// running describes a program that the first link for which match is true
// holds.
func (known knownLinks) running(progID uint32, match func(*linkInfo) bool) Running {
	for _, info := range known.links {
		if info.progID == progID && match(info) {
			return known.held(progID, info.id)
		}
	}
	return known.held(progID, 0)
}

// held describes a program that a link holds; 0 stands for no link.
func (known knownLinks) held(progID, linkID uint32) Running {
	r := Running{ProgID: progID, ProgName: programName(progID)}
	if linkID != 0 {
		r.LinkID = &linkID
	}
	if path, ok := known.pins[linkID]; ok {
		r.Pinned = &path
	}
	return r
}

func programName(id uint32) *string {
	fd, err := progKind.Open(id)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	info, err := programInfo(fd)
	if err != nil || info.Name[0] == 0 {
		return nil
	}
	name := maps.ProgramName(fd, info)
	return &name
}

func (known knownLinks) xdp(d deviceXDP) []XDPProgram {
	programs := make([]XDPProgram, len(d.xdp))
	for i, p := range d.xdp {
		programs[i] = XDPProgram{p.Mode, known.running(p.ProgID, func(info *linkInfo) bool {
			return info.typ == linkXDP && info.u32(0) == d.IfIndex
		})}
	}
	return programs
}

func (known knownLinks) tc(programs []TC) []TC {
	for i, p := range programs {
		id := uint32(0)
		if p.LinkID != nil {
			id = *p.LinkID
		}
		programs[i].Running = known.held(p.ProgID, id)
	}
	return programs
}

// netfilter lists the programs of netfilter hooks in the order in which they
// run.
func (known knownLinks) netfilter() []Netfilter {
	var list []Netfilter
	for _, info := range known.links {
		if info.typ == linkNetfilter {
			f := newNetfilter(info)
			f.Running = known.held(info.progID, info.id)
			list = append(list, f)
		}
	}
	slices.SortStableFunc(list, func(a, b Netfilter) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Hook, b.Hook),
			cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Flags, b.Flags))
	})
	return list
}

// stack lists the programs of this network namespace itself.
func (known knownLinks) stack(inode uint64) ([]StackProgram, error) {
	here, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer here.Close()
	var programs []StackProgram
	for _, attachType := range []uint32{attachFlowDissector, attachSkLookup} {
		list, err := query(uint32(here.Fd()), attachType, 0)
		if errors.Is(err, unix.EINVAL) {
			continue // this kernel doesn't tell
		}
		if err != nil {
			return nil, fmt.Errorf("query programs of %s: %w", attachTypes[attachType], probe.Explain(probe.OpQueryHook, err))
		}
		for _, a := range list {
			programs = append(programs, StackProgram{attachTypes[attachType], known.running(a.progID, func(info *linkInfo) bool {
				return info.typ == linkNetNS && uint64(info.u32(0)) == inode && info.u32(4) == attachType
			})})
		}
	}
	return programs, nil
}
