package probe

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Verdicts that let everything through.
const (
	xdpPass       = 2
	tcUnspecified = -1 // TC_ACT_UNSPEC, TCX_NEXT
	cgroupAllow   = 1
)

// Flags of XDP links.
const (
	xdpGeneric = 1 << 1
	xdpNative  = 1 << 2
)

const xdpFrags = 1 << 5 // BPF_F_XDP_HAS_FRAGS

func probeXDP(string) error {
	return loads(ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP}, xdpPass)
}

func probeXDPFrags(string) error {
	return loads(ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: xdpFrags}, xdpPass)
}

func loads(spec ebpf.ProgramSpec, verdict int32) error {
	program, err := load(spec, verdict)
	if err != nil {
		return err
	}
	return program.Close()
}

func probeXDPGeneric(string) error {
	return withLoopback(func(index int) error { return linksXDP(index, xdpGeneric) })
}

func probeXDPNative(string) error {
	return withVeth(func(index int) error { return linksXDP(index, xdpNative) })
}

func linksXDP(index int, flags uint32) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP}, xdpPass)
	if err != nil {
		return err
	}
	defer program.Close()
	return closeAfter(createLink(program, index, ebpf.AttachXDP, flags))
}

func probeTC(string) error {
	return loads(ebpf.ProgramSpec{Type: ebpf.SchedCLS}, tcUnspecified)
}

// probeTCX needs no device: a kernel that knows the attach type looks for the
// device, one that doesn't refuses before.
func probeTCX(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.SchedCLS, AttachType: ebpf.AttachTCXIngress}, tcUnspecified)
	if err != nil {
		return err
	}
	defer program.Close()
	const nowhere = 1<<31 - 1
	return understood(closeAfter(createLink(program, nowhere, ebpf.AttachTCXIngress, 0)))
}

func probeClsBPF(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.SchedCLS}, tcUnspecified)
	if err != nil {
		return err
	}
	defer program.Close()
	return withLoopback(func(index int) error { return addFilter(index, program, netlink.HANDLE_MIN_INGRESS) })
}

// addFilter attaches a tc program the old way, to a clsact qdisc.
func addFilter(index int, program *ebpf.Program, parent uint32) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return missingModule(fmt.Errorf("add clsact qdisc: %w", err))
	}
	filter := &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:           program.FD(),
		Name:         "bpfnet_probe",
		DirectAction: true,
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return missingModule(fmt.Errorf("add bpf filter: %w", err))
	}
	return nil
}

// missingModule marks ENOENT, the answer when a kind of qdisc or filter is
// unknown, as unsupported.
func missingModule(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return unknownToKernel(err)
}

func probeCgroup2(string) error {
	_, err := Cgroup2Mount()
	return err
}

func probeCgroupSKB(string) error {
	return linksCgroup(ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress)
}

func probeCgroupSock(string) error {
	return linksCgroup(ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate)
}

func probeCgroupSockAddr(string) error {
	return linksCgroup(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect)
}

func probeSockOps(string) error {
	return linksCgroup(ebpf.SockOps, ebpf.AttachCGroupSockOps)
}

// linksCgroup needs no cgroup: a kernel that knows the attach type looks for the
// cgroup, one that doesn't refuses before.
func linksCgroup(kind ebpf.ProgramType, attach ebpf.AttachType) error {
	program, err := load(ebpf.ProgramSpec{Type: kind, AttachType: attach}, cgroupAllow)
	if err != nil {
		return err
	}
	defer program.Close()
	return understood(closeAfter(createLink(program, nothing, attach, 0)))
}

// probeLinkUpdate asks for the replacement of the program of a link that
// doesn't exist.
func probeLinkUpdate(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress}, cgroupAllow)
	if err != nil {
		return err
	}
	defer program.Close()
	return understood(updateLink(nothing, program))
}

const nothing = -1 // a descriptor that no process has

// understood makes the complaint about a missing target a success.
func understood(err error) error {
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
