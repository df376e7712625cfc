package datapath

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// nativeOnVeth is what a user of containers should know. On Linux 6.18 one TCP
// stream over a veth went from 13.4 to 3.4 Gbit/s, to 5.0 with GRO on, because
// the veth then passes single packets.
const nativeOnVeth = "native XDP makes a veth pass single packets, which costs TCP there most of its throughput: " +
	"prefer `attach tc`, and XDP on the physical interface"

// attachXDP is the ladder of XDP: native, then generic.
func (e *Engine) attachXDP(req AttachRequest, s spot, prog *ebpf.Program) (Attachment, error) {
	modes := []XDPMode{req.Mode}
	if req.Mode == "" || req.Mode == ModeAuto {
		modes = []XDPMode{ModeNative, ModeGeneric}
	}
	var refused []string
	for i, mode := range modes {
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: int(s.at.IfIndex), Flags: xdpFlag(mode)})
		if err == nil {
			if mode == ModeNative && s.dev.kind == "veth" {
				s.notes = append(s.notes, nativeOnVeth)
			}
			s.at.Mode = string(mode)
			return e.pinLink(req, s, l, refused)
		}
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			return e.takeOverXDP(req, s, prog)
		}
		if i == len(modes)-1 || isPermission(err) {
			return Attachment{}, xdpRefused(mode, s.dev, err)
		}
		refused = append(refused, fmt.Sprintf("mode %s: %v", mode, rootCause(err)))
	}
	return Attachment{}, fault.New(fault.ErrUsage, "unknown mode %q", req.Mode)
}

func xdpFlag(mode XDPMode) link.XDPAttachFlags {
	switch mode {
	case ModeNative:
		return link.XDPDriverMode
	case ModeOffload:
		return link.XDPOffloadMode
	default:
		return link.XDPGenericMode
	}
}

func xdpRefused(mode XDPMode, dev device, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL) && mode == ModeOffload:
		return fault.New(fault.ErrUnsupported, "mode %s: the driver of %s (%s) doesn't support it: %w", mode, dev.DevName, dev.kind, rootCause(err)).
			Hint("--mode auto takes the best mode that works")
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return fault.New(fault.ErrUnsupported, "mode %s: %s (%s, MTU %d) refuses it: %w", mode, dev.DevName, dev.kind, dev.link.Attrs().MTU, rootCause(err)).
			Hint("native XDP without fragments support needs an MTU that fits a page; --mode generic has no such limit")
	default:
		return fmt.Errorf("mode %s: %w", mode, probe.Explain(probe.OpAttachXDP, err))
	}
}

// takeOverXDP replaces the program that another instance of ours has on the
// interface, if that was asked for. The link stays; only its program changes,
// so that every packet meets the one or the other.
func (e *Engine) takeOverXDP(req AttachRequest, s spot, prog *ebpf.Program) (Attachment, error) {
	holder, err := e.replaceableXDP(req, s.dev)
	if err != nil {
		return Attachment{}, err
	}
	l, err := link.LoadPinnedLink(*holder.Pinned, nil)
	if err != nil {
		return Attachment{}, probe.Explain(probe.OpOpenPin, err)
	}
	defer l.Close()
	if err := l.Update(prog); err != nil {
		return Attachment{}, fmt.Errorf("replace %s/%s: %w", holder.Name, holder.Program, probe.Explain(probe.OpUpdateLink, err))
	}
	doc, err := e.moveLinkPin(req, s, holder)
	if err != nil {
		return Attachment{}, fault.Join(err, e.moveAttachment(holder.Name, *holder))
	}
	return doc, nil
}

// replaceableXDP returns the attachment on a device that a request may take
// over.
func (e *Engine) replaceableXDP(req AttachRequest, dev device) (*Attachment, error) {
	holder, err := e.xdpHolder(dev)
	if err != nil {
		return nil, err
	}
	if holder == nil || !req.Replace {
		return nil, e.xdpHeld(dev)
	}
	return holder, checkMode(req, *holder)
}

// moveLinkPin moves the pin of a link from one instance to another.
func (e *Engine) moveLinkPin(req AttachRequest, s spot, from *Attachment) (Attachment, error) {
	pin := linkPin(s.hook, s.name, s.at)
	text := e.root.Note(from.Name, pinned.Targets, pinName(*from))
	if err := e.root.SetNote(req.Name, pinned.Targets, pin, text); err != nil {
		return Attachment{}, err
	}
	if err := os.Rename(*from.Pinned, e.root.Path(req.Name, pinned.Links, pin)); err != nil {
		return Attachment{}, fmt.Errorf("move link %s: %w", *from.Pinned, err)
	}
	_ = os.Remove(e.root.Path(from.Name, pinned.Targets, pinName(*from))) // or the next writer does
	s.notes = append(s.notes, fmt.Sprintf("took over from %s/%s", from.Name, from.Program))
	return e.readBack(req.Name, s, Attachment{RefusedWhy: []string{}, Notes: append([]string{}, s.notes...)})
}

// giveBack undoes takeOverXDP: the link runs the program of from again.
func (e *Engine) giveBack(doc, from Attachment) error {
	if err := e.root.SetNote(from.Name, pinned.Targets, pinName(from), e.root.Note(doc.Name, pinned.Targets, pinName(doc))); err != nil {
		return err
	}
	if err := os.Rename(*doc.Pinned, *from.Pinned); err != nil {
		return fmt.Errorf("move link %s: %w", *doc.Pinned, err)
	}
	_ = os.Remove(e.root.Path(doc.Name, pinned.Targets, pinName(doc))) // or the next writer does
	return e.moveAttachment(from.Name, from)
}

// xdpHolder finds the attachment of ours that holds the XDP hook of a device.
func (e *Engine) xdpHolder(dev device) (*Attachment, error) {
	names, err := e.root.Names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		docs, err := e.attachments(name)
		if err != nil {
			return nil, err
		}
		for _, a := range docs {
			if a.Hook == hookXDP && !a.Defunct && *a.IfIndex == dev.IfIndex && *a.NetNS == dev.NetNS {
				return &a, nil
			}
		}
	}
	return nil, nil
}

// xdpHeld names who holds the XDP hook of a device.
func (e *Engine) xdpHeld(dev device) error {
	holder, err := e.xdpHolder(dev)
	if err != nil {
		return err
	}
	if holder != nil {
		return fault.New(fault.ErrConflict, "%s/%s is attached there (program id %d, link id %d)", holder.Name, holder.Program, holder.ProgID, *holder.LinkID).
			Hint("add --replace to swap it in place, or first: bpfnet detach xdp %s --dev %s", holder.Name, dev.DevName)
	}
	id := foreignXDP(dev)
	if id == 0 {
		return xdpAbove(dev)
	}
	held := fault.New(fault.ErrConflict, "another XDP program is attached there: %s", nameProgram(id))
	if linkID, ok := foreignLink(id, dev.IfIndex); ok {
		held.Message += fmt.Sprintf(", link id %d", linkID)
		return held.Hint("bpftool link detach id %d", linkID)
	}
	return held.Hint("ip link set dev %s xdp off   (if nothing needs it)", dev.DevName)
}

// xdpAbove explains a refusal of a device that has no program: the kernel takes
// none below a bridge or bond that has one.
func xdpAbove(dev device) error {
	above := "an interface above it"
	if master, err := netlink.LinkByIndex(dev.link.Attrs().MasterIndex); err == nil {
		above = fmt.Sprintf("%s, of which it is a port,", master.Attrs().Name)
	}
	return fault.New(fault.ErrConflict, "%s has an XDP program, and the kernel takes none below it then", above).
		Hint("attach to the ports first, or detach the program there")
}

func foreignXDP(dev device) uint32 {
	l, err := netlink.LinkByIndex(int(dev.IfIndex))
	if err != nil || l.Attrs().Xdp == nil {
		return 0
	}
	return l.Attrs().Xdp.ProgId
}

// nameProgram describes a program by its id; its name needs CAP_SYS_ADMIN.
func nameProgram(id uint32) string {
	text := fmt.Sprintf("program id %d", id)
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return text
	}
	defer prog.Close()
	if info, err := prog.Info(); err == nil && info.Name != "" {
		text = fmt.Sprintf("%q (%s)", info.Name, text)
	}
	return text
}

// foreignLink finds the link that holds a program on an interface. It needs
// CAP_SYS_ADMIN and finds nothing without.
func foreignLink(progID, ifindex uint32) (uint32, bool) {
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err == nil && uint32(info.Program) == progID && linkIfIndex(info) == ifindex {
			return uint32(it.ID), true
		}
	}
	return 0, false
}
