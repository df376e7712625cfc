package endpoint

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
)

// namespace is a network namespace that processes are in.
type namespace struct {
	inode      uint64 // 0 if it may not be read
	members    []*process
	cookie     *uint64
	interfaces []Interface
	closed     bool // this user may not enter it
	gone       bool // all processes in it had ended
}

// host is the network namespace that host-side interfaces are looked for in.
type host struct {
	inode   uint64
	cookie  *uint64
	links   map[int][]netlink.Link // by the number that the namespace of the other end has here
	names   []string               // of all its interfaces
	own     []int                  // indexes of those with no end in another namespace
	all     []netlink.Addr         // of all its interfaces
	numbers *netlink.Handle        // asks for these numbers
	outside bool                   // namespaces aren't entered
}

// hostSides are the kinds of links that have an end in the namespace of the host
// and one in a container. Of others, such as macvlan, IFLA_LINK means something else.
var hostSides = []string{"veth", "netkit"}

// openHost reads the namespace at path, "" for the caller's; close it when done.
func openHost(path string) (*host, error) {
	h := &host{links: map[int][]netlink.Link{}}
	err := netns.Do(path, func() (err error) {
		if h.inode, err = netns.Inode(""); err != nil {
			return err
		}
		if h.cookie, err = ownCookie(); err != nil {
			return err
		}
		list, err := links()
		if err != nil {
			return err
		}
		if h.all, err = addresses(); err != nil {
			return err
		}
		for _, l := range list {
			a := l.Attrs()
			h.names = append(h.names, a.Name)
			if a.NetNsID >= 0 && slices.Contains(hostSides, l.Type()) {
				h.links[a.NetNsID] = append(h.links[a.NetNsID], l)
			} else {
				h.own = append(h.own, a.Index)
			}
		}
		h.numbers, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read interfaces: %w", err)
	}
	return h, nil
}

func (h *host) close() { h.numbers.Close() }

func links() ([]netlink.Link, error) {
	list, _, err := netns.Dump(netlink.LinkList)
	return list, err
}

func addresses() ([]netlink.Addr, error) {
	list, _, err := netns.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	return list, err
}

// isHost says whether n is the host's own; nil if that isn't known.
func (h *host) isHost(n *namespace) *bool {
	if n.inode == 0 && len(n.interfaces) == 0 {
		return nil
	}
	same := n.inode == h.inode
	return &same
}

// read fills in what there is to know of a namespace.
func (h *host) read(n *namespace) error {
	switch n.inode {
	case 0:
		return h.readClosed(n)
	case h.inode:
		n.cookie, n.interfaces = h.cookie, []Interface{}
		return nil
	}
	file, err := n.open()
	if file == nil {
		n.gone = !n.closed
		return err
	}
	defer file.Close()
	number, err := h.numbers.GetNetNsIdByFd(int(file.Fd()))
	if err != nil {
		return fmt.Errorf("ask for the number of network namespace %d: %w", n.inode, err)
	}
	outer := h.outer(number)
	if h.outside {
		n.interfaces = outer
		return nil
	}
	var inner []Interface
	err = netns.Do(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), func() (err error) {
		if n.cookie, err = ownCookie(); err != nil {
			return err
		}
		inner, err = innerInterfaces()
		return err
	})
	if errors.Is(err, fault.ErrPermission) || isDenied(err) {
		n.closed, n.interfaces = true, outer
		return nil
	}
	n.interfaces = joined(inner, outer)
	return err
}

// readClosed finds the host-side interfaces of a namespace that may not be read:
// the kernel tells its number by a process that is in it.
func (h *host) readClosed(n *namespace) error {
	n.closed = true
	p := n.members[0]
	number, err := h.numbers.GetNetNsIdByPid(p.pid)
	if n.gone = !p.same(); err != nil || n.gone {
		return unlessGone(err)
	}
	n.interfaces = h.outer(number)
	return nil
}

// open opens the namespace, through a process that is still in it. It is nil when
// there is none, or none that may be looked into.
func (n *namespace) open() (*os.File, error) {
	for _, p := range n.members {
		file, err := os.Open(p.netnsPath())
		if isDenied(err) {
			n.closed = true
			continue
		}
		if unlessGone(err) != nil {
			return nil, fmt.Errorf("open the network namespace of process %d: %w", p.pid, err)
		}
		if err != nil {
			continue
		}
		var stat unix.Stat_t
		if err := unix.Fstat(int(file.Fd()), &stat); err == nil && stat.Ino == n.inode {
			n.closed = false
			return file, nil
		}
		file.Close()
	}
	return nil, nil
}

// outer lists the host-side interfaces of the namespace that has a number.
func (h *host) outer(number int) []Interface {
	list := []Interface{}
	for _, l := range h.links[number] {
		a := l.Attrs()
		list = append(list, Interface{
			DevName: &a.Name, IfIndex: &a.Index, Kind: l.Type(), InnerIfIndex: a.ParentIndex,
		})
	}
	slices.SortFunc(list, byInnerIndex)
	return list
}

func byInnerIndex(a, b Interface) int { return cmp.Compare(a.InnerIfIndex, b.InnerIfIndex) }

// joined adds their host sides to interfaces of a namespace. Those that have none
// and no address either are left out: every namespace has some.
func joined(inner, outer []Interface) []Interface {
	list := []Interface{}
	for _, i := range inner {
		at := slices.IndexFunc(outer, func(o Interface) bool { return o.InnerIfIndex == i.InnerIfIndex })
		if at >= 0 {
			i.DevName, i.IfIndex = outer[at].DevName, outer[at].IfIndex
		}
		if at >= 0 || len(i.Addresses) > 0 {
			list = append(list, i)
		}
	}
	return list
}

// ownCookie is the cookie of the namespace that the thread is in; nil where the
// kernel has none (before 5.14).
func ownCookie() (*uint64, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(socket)
	cookie, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the cookie of a network namespace: %w", err)
	}
	return &cookie, nil
}

// innerInterfaces lists the interfaces of the namespace that the thread is in.
func innerInterfaces() ([]Interface, error) {
	list, err := links()
	if err != nil {
		return nil, fmt.Errorf("read interfaces: %w", err)
	}
	all, err := addresses()
	if err != nil {
		return nil, fmt.Errorf("read addresses: %w", err)
	}
	all = usable(all)
	var inner []Interface
	for _, l := range list {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 {
			continue
		}
		inner = append(inner, Interface{
			Kind: l.Type(), InnerDevName: &a.Name, InnerIfIndex: a.Index, Addresses: addressesOf(all, a.Index),
		})
	}
	slices.SortFunc(inner, byInnerIndex)
	return inner, nil
}

// usable returns the addresses of a namespace that tell it from others: link-local
// ones only where there are none but those and loopback's.
func usable(all []netlink.Addr) []netlink.Addr {
	found := slices.DeleteFunc(slices.Clone(all), func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
	if slices.ContainsFunc(found, func(a netlink.Addr) bool { return !a.IP.IsLoopback() }) {
		return found
	}
	return all
}

// addressesOf lists the addresses of an interface, IPv4 first.
func addressesOf(all []netlink.Addr, index int) []netip.Addr {
	found := []netip.Addr{}
	for _, a := range all {
		if address, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex == index {
			found = append(found, address.Unmap())
		}
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return slices.Compact(found)
}
