package datapath

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
)

// device is a resolved network interface.
type device struct {
	target
	kind     string // "veth", "bridge", "device", "tun", …
	ethernet bool   // packets start with an Ethernet header
	link     netlink.Link
}

// resolveDevice looks an interface up by name in the namespace of the calling
// thread.
func resolveDevice(name string) (device, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return device{}, noInterface(name)
	}
	if err != nil {
		return device{}, fmt.Errorf("look up interface %q: %w", name, err)
	}
	inode, err := netns.Inode("")
	if err != nil {
		return device{}, err
	}
	a := l.Attrs()
	return device{
		target:   target{DevName: a.Name, IfIndex: uint32(a.Index), NetNS: inode},
		kind:     l.Type(),
		ethernet: hasEthernetHeader(a.EncapType),
		link:     l,
	}, nil
}

// hasEthernetHeader says whether frames of a device start with an Ethernet
// header, by the name that netlink gives its ARPHRD type. Loopback has one.
func hasEthernetHeader(encap string) bool {
	return encap == "ether" || encap == "loopback"
}

func noInterface(name string) error {
	err := fault.New(fault.ErrNotFound, "no such interface")
	if names := interfaceNames(); len(names) > 0 {
		err.Hint("interfaces: %s", join(names))
	}
	return err.Hint("an interface of a container is in its network namespace: --netns")
}

func interfaceNames() []string {
	interfaces, err := net.Interfaces()
	if err != nil || len(interfaces) > 20 {
		return nil
	}
	var names []string
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return names
}

// byIndex looks up an interface of this namespace.
type byIndex func(index int) (netlink.Link, error)

// lookUpOnce returns what looks interfaces up, each once, until done is called: by one
// socket, as of thousands the sockets would take longer than the interfaces.
func lookUpOnce() (device byIndex, done func(), err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	type answer struct {
		netlink.Link
		error
	}
	known := map[int]answer{}
	return func(index int) (netlink.Link, error) {
		a, ok := known[index]
		if !ok {
			a.Link, a.error = h.LinkByIndex(index)
			known[index] = a
		}
		return a.Link, a.error
	}, h.Close, nil
}

// describeDevice fills in what the kernel says now of the interface of an
// attachment in this namespace.
func describeDevice(doc *Attachment, device byIndex) {
	l, err := device(int(*doc.IfIndex))
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || err == nil && !runs(l, *doc) {
		doc.Notes = append(doc.Notes, fmt.Sprintf("%s was moved to another network namespace, attached as it was", *doc.DevName))
		return
	}
	if err != nil {
		return
	}
	doc.DevName = ptr(l.Attrs().Name)
	if x := l.Attrs().Xdp; x != nil && doc.Hook == hookXDP {
		if mode := xdpModeWord(x.AttachMode); mode != nil {
			doc.Mode = mode
		}
	}
}

// runs says whether a device runs the program of an attachment. The kernel tells
// the interface index of a link and not the namespace: when the interface moves
// away, another one may get its index.
func runs(l netlink.Link, a Attachment) bool {
	if a.Hook == hookXDP {
		x := l.Attrs().Xdp
		return x != nil && (x.AttachMode == xdpAttachedMulti || x.ProgId == uint32(a.ProgID))
	}
	if a.Mechanism != mechanismLink || hookGroup(a.Hook) != "tc" {
		return true
	}
	order, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: tcxAttach(a.Hook)})
	if err != nil {
		return true // it can't be told
	}
	return slices.ContainsFunc(order.Programs, func(p link.AttachedProgram) bool { return ObjectID(p.ID) == a.ProgID })
}

// Values of IFLA_XDP_ATTACHED (enum in linux/if_link.h).
const (
	xdpAttachedDrv = 1
	xdpAttachedSKB = 2
	xdpAttachedHW  = 3

	xdpAttachedMulti = 4
)

// xdpModeWord translates IFLA_XDP_ATTACHED; nil when several modes are in use.
func xdpModeWord(attached uint32) *string {
	switch attached {
	case xdpAttachedDrv:
		return ptr(string(ModeNative))
	case xdpAttachedSKB:
		return ptr(string(ModeGeneric))
	case xdpAttachedHW:
		return ptr(string(ModeOffload))
	default:
		return nil
	}
}
