package datapath

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// Where the kernel has no TCX (before 6.6), a program is a direct-action filter
// on the clsact qdisc. No link holds it: it is found again through netlink by
// the name "bpfnet/INSTANCE/FUNCTION" and a handle that only we use.
const (
	FilterPrefix = "bpfnet/" // of that name

	// clsactHandle is the base of our filter handles. The bit clsactOwner says
	// that bpfnet made the qdisc, so that whoever takes the last filter off can
	// take the qdisc, too, and never one that somebody else made.
	clsactHandle = 0xb9fe0000
	clsactOwner  = 0x8000

	clsactFirst    = 1      // priority of --first
	clsactLast     = 0xb000 // lowest priority otherwise: after hand-made filters
	clsactAssigned = 0xc000 // where the priorities begin that the kernel assigns
)

func clsactParent(d Direction) uint32 {
	if d == Ingress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func clsactHook(d Direction) string { return "clsact_" + string(d) }

func errNoNeighbours() error {
	return fault.New(fault.ErrUnsupported, "--before and --after need TCX (Linux 6.6)").Hint("--first and --last work here")
}

func (e *Engine) attachClsact(req AttachRequest, s spot, prog *ebpf.Program, refused []string) (Attachment, error) {
	if req.Position.Before != "" || req.Position.After != "" {
		return Attachment{}, errNoNeighbours()
	}
	direction := hookDirection(s.hook)
	owner, err := ensureClsact(s.dev.link)
	if err != nil {
		return Attachment{}, fmt.Errorf("add clsact qdisc: %w", probe.Explain(probe.OpAttachClsact, err))
	}
	filter, err := newFilter(req, s, prog, direction, owner)
	if err == nil {
		err = addFilter(filter)
	}
	if err != nil {
		return Attachment{}, fault.Join(fmt.Errorf("add filter: %w", err), dropClsact(s.dev.link, owner))
	}
	s.hook = clsactHook(direction)
	doc, err := e.readBack(req.Name, s, Attachment{RefusedWhy: refused, Notes: append([]string{}, s.notes...)})
	if err != nil {
		return Attachment{}, fault.Join(err, netlink.FilterDel(filter), dropClsact(s.dev.link, owner))
	}
	return doc, nil
}

// addFilter leaves no filter behind when it fails: it may be the kernel's answer
// that got lost.
func addFilter(filter *netlink.BpfFilter) error {
	err := netlink.FilterAdd(filter)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		_ = netlink.FilterDel(filter)
	}
	return probe.Explain(probe.OpAttachClsact, err)
}

// ensureClsact makes the qdisc if the device has none, and says whether it is
// ours: made now, or by us before.
func ensureClsact(l netlink.Link) (owner bool, err error) {
	err = netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}})
	if err == nil || !errors.Is(err, unix.EEXIST) {
		return err == nil, err
	}
	if err := refuseIngressQdisc(l); err != nil {
		return false, err
	}
	ours, _, err := clsactFilters(l)
	for _, f := range ours {
		owner = owner || f.Handle&clsactOwner != 0
	}
	return owner, err
}

// refuseIngressQdisc finds the older qdisc that excludes clsact: it takes a
// filter for egress, too, and runs it on ingress.
func refuseIngressQdisc(l netlink.Link) error {
	qdiscs, err := netlink.QdiscList(l)
	for _, q := range qdiscs {
		if q.Type() == "ingress" {
			return fault.New(fault.ErrConflict, "%s has an ingress qdisc, beside which there can't be one", l.Attrs().Name).
				Hint("tc qdisc del dev %s ingress   (if nothing needs it)", l.Attrs().Name)
		}
	}
	return err
}

// clsactFilters lists the BPF filters of ours on a device, and counts those of
// others of any kind.
func clsactFilters(l netlink.Link) (ours []*netlink.BpfFilter, foreign int, err error) {
	for _, d := range []Direction{Ingress, Egress} {
		filters, err := netlink.FilterList(l, clsactParent(d))
		if err != nil {
			return nil, 0, fmt.Errorf("list filters: %w", err)
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && isOurs(b) {
				ours = append(ours, b)
			} else if f.Attrs().Handle != 0 {
				foreign++
			}
		}
	}
	return ours, foreign, nil
}

func isOurs(f *netlink.BpfFilter) bool {
	return f.Handle&0xffff0000 == clsactHandle && strings.HasPrefix(f.Name, FilterPrefix)
}

func newFilter(req AttachRequest, s spot, prog *ebpf.Program, direction Direction, owner bool) (*netlink.BpfFilter, error) {
	ours, err := clsactFiltersOf(s.dev.link, direction)
	if err != nil {
		return nil, err
	}
	handle := freeHandle(ours)
	if owner {
		handle |= clsactOwner
	}
	priority := lastPriority(ours)
	if req.Position.First {
		priority = clsactFirst
	}
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: int(s.at.IfIndex), Parent: clsactParent(direction),
			Handle: handle, Priority: priority, Protocol: unix.ETH_P_ALL,
		},
		Fd: prog.FD(), Name: FilterPrefix + req.Name + "/" + s.name, DirectAction: true,
	}, nil
}

// clsactFiltersOf lists the BPF filters of ours in one direction of a device.
func clsactFiltersOf(l netlink.Link, direction Direction) ([]*netlink.BpfFilter, error) {
	ours, _, err := clsactFilters(l)
	return slices.DeleteFunc(ours, func(f *netlink.BpfFilter) bool { return f.Parent != clsactParent(direction) }), err
}

// lastPriority returns a priority after the filters of ours in a direction: of
// two with the same the kernel runs the newer one first.
func lastPriority(ours []*netlink.BpfFilter) uint16 {
	last := uint16(clsactLast) - 1
	for _, f := range ours {
		last = max(last, f.Priority)
	}
	return min(last+1, clsactAssigned-1)
}

// freeHandle returns the lowest handle of ours that is free in a direction.
func freeHandle(ours []*netlink.BpfFilter) uint32 {
	var used []int
	for _, f := range ours {
		used = append(used, int(f.Handle&^clsactHandle&^clsactOwner))
	}
	sort.Ints(used)
	free := 1
	for _, u := range used {
		if u == free {
			free++
		}
	}
	return clsactHandle | uint32(free)
}

// dropClsact removes the qdisc if it is ours and nothing hangs on it any more.
func dropClsact(l netlink.Link, owner bool) error {
	if !owner {
		return nil
	}
	ours, foreign, err := clsactFilters(l)
	if err != nil || foreign > 0 || len(ours) > 0 {
		return err
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscDel(qdisc); err != nil {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return nil
}

// clsactAttachments finds the filters of an instance on the devices of this
// network namespace.
func (e *Engine) clsactAttachments(instance string, here uint64) ([]Attachment, error) {
	qdiscs, err := netlink.QdiscList(nil)
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var docs []Attachment
	for _, q := range qdiscs {
		if q.Type() != "clsact" {
			continue
		}
		index := q.Attrs().LinkIndex
		ours, _, err := clsactFilters(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}})
		if err != nil && !deviceGone(uint32(index)) {
			return nil, err
		}
		if err != nil || len(ours) == 0 {
			continue
		}
		l, err := netlink.LinkByIndex(index)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // it went away meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("look up interface %d: %w", index, err)
		}
		for _, f := range ours {
			if doc, ok := clsactAttachment(f, l, here); ok && doc.Name == instance {
				docs = append(docs, doc)
			}
		}
	}
	return docs, nil
}

func clsactAttachment(f *netlink.BpfFilter, l netlink.Link, here uint64) (Attachment, bool) {
	name := strings.TrimPrefix(f.Name, FilterPrefix)
	slash := strings.LastIndex(name, "/")
	if slash < 0 {
		return Attachment{}, false
	}
	hook := clsactHook(Egress)
	if f.Parent == netlink.HANDLE_MIN_INGRESS {
		hook = clsactHook(Ingress)
	}
	a := l.Attrs()
	return Attachment{
		Name: name[:slash], Program: name[slash+1:], Hook: hook, Mechanism: mechanismNetlink,
		DevName: &a.Name, IfIndex: ptr(uint32(a.Index)), NetNS: &here, ProgID: ObjectID(f.Id),
		RefusedWhy: []string{}, Notes: []string{},
	}, true
}

// findClsact finds the filter behind an attachment.
func findClsact(a Attachment) (netlink.Link, *netlink.BpfFilter, error) {
	l, err := netlink.LinkByIndex(int(*a.IfIndex))
	if err != nil {
		return nil, nil, fmt.Errorf("look up interface %q: %w", *a.DevName, err)
	}
	ours, _, err := clsactFilters(l)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range ours {
		if f.Parent == clsactParent(hookDirection(a.Hook)) && f.Name == FilterPrefix+a.Name+"/"+a.Program {
			return l, f, nil
		}
	}
	return nil, nil, fault.New(fault.ErrNotFound, "its filter on %s is gone", *a.DevName)
}

// replaceClsact swaps the program of a filter in place.
func replaceClsact(a Attachment, prog *ebpf.Program) error {
	_, f, err := findClsact(a)
	if err != nil {
		return err
	}
	f.Fd = prog.FD()
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("replace filter: %w", probe.Explain(probe.OpAttachClsact, err))
	}
	return nil
}

func detachClsact(a Attachment) error {
	l, f, err := findClsact(a)
	if err != nil {
		return err
	}
	if err := netlink.FilterDel(f); err != nil {
		return fmt.Errorf("remove filter: %w", probe.Explain(probe.OpAttachClsact, err))
	}
	return dropClsact(l, f.Handle&clsactOwner != 0)
}
