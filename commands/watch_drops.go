package commands

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/drops"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/output"
)

func watchDropsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "drops",
		Usage: "which packets the kernel drops, why and whose, remembered by drops",
		Description: "Reasons are the running kernel's words. Drops in all network namespaces are shown; with --netns only those in that one. " +
			"The sum of what is shown and of others is all that was dropped since the program was attached.",
		Flags: append(watchFlags(dropsProgram, drops.DefaultSort, drops.SortFields()),
			&cli.StringSliceFlag{Name: "reason", Usage: "only those with one of the `REASONS`, the kernel's words with commas between them, such as no_socket; the others count as others"},
			&cli.StringFlag{Name: "dev", Usage: "only those at the device `NAME`; the others count as others"},
			podFlag("only packets"), containerFlag("only packets"),
			&cli.IntFlag{Name: "pid", Usage: "only packets of the container or Pod of the process `N`", DefaultText: "all"},
		),
		Action: func(c *cli.Context) error {
			view := drops.View{
				Sort: c.String("sort"), Limit: c.Int("limit"), Reasons: splitWords(c, "reason"), Device: c.String("dev"), Inside: c.String("netns") != "",
			}
			if err := view.Check(); err != nil {
				return err
			}
			whose, err := selectOne(c, "dev", "pod", "container", "pid")
			if err != nil {
				return err
			}
			return env.watch(c, func(b Backend, p *output.Printer) (stream, error) {
				return env.dropStream(c, b, p, c.String("instance"), view, whose)
			})
		},
	}
}

// dropStream shows the drops of a loaded instance, whose it is told.
func (e *Env) dropStream(c *cli.Context, b Backend, p *output.Printer, instance string, view drops.View, whose selection) (stream, error) {
	sampler, err := b.Drops(instance)
	if err != nil {
		return stream{}, err
	}
	s := &dropSamples{
		sampler: sampler, owners: newPodOwners(b.Endpoints()),
		attached: attachedNews{instance: instance, how: "bpfnet attach trace " + instance},
	}
	if whose.isEndpoint() {
		if view.Match, err = e.dropsOf(c, b, whose, &s.host); err != nil {
			return stream{}, err
		}
	}
	view.Owner, view.Processes = s.owner, s.find
	if found, err := b.Sockets(); err == nil {
		s.processes = drops.NewProcesses(found)
	} else {
		s.unknown(err)
	}
	s.watch.View = view
	return stream{
		sample: e.noting(c, s.take),
		show: func() error {
			columns, lines, _ := e.Terminal()
			if p.Redraws() {
				s.watch.Limit = fitting(view.Limit, lines)
			}
			doc := s.watch.Document()
			e.notes(c, s.notes)
			s.notes = nil
			return p.Event(doc, func() output.Table {
				if p.Redraws() {
					return dropTable(doc).Fit(columns, dropDrops...)
				}
				return dropTable(doc)
			})
		},
	}, nil
}

// dropSamples makes documents of the drops of a loaded instance.
type dropSamples struct {
	sampler   drops.Sampler
	watch     drops.Watch
	host      uint32 // inode of the network namespace that interfaces are in
	owners    *podOwners
	processes *drops.Processes // nil: none can be told
	notes     []string
	told      bool // why processes aren't known
	attached  attachedNews
}

// take takes a sample for the next document, and returns what people should know.
func (s *dropSamples) take(ctx context.Context) ([]string, error) {
	next, err := s.sampler.Sample(ctx)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, fault.New(fault.ErrNotFound, "%w", err).
			Hint("bpfnet load %s, then bpfnet attach trace %[1]s; bpfnet run %[1]s loads and attaches it for as long as it runs", dropsProgram)
	}
	if err != nil {
		return nil, err
	}
	if err := s.watch.CheckReasons(next); err != nil {
		return nil, err
	}
	s.host = next.Host
	interfaces, cgroups, networks := map[uint32]bool{}, map[uint64]bool{}, map[endpoint.NetNS]bool{}
	for key := range next.Entries {
		switch {
		case key.CgroupID > 1:
			cgroups[key.CgroupID] = true
		case key.NetNS == next.Host:
			interfaces[key.IfIndex] = true
		case key.NetNS != 0:
			networks[endpoint.NetNS(key.NetNS)] = true
		}
	}
	notes := s.owners.look(ctx, interfaces, cgroups, networks)
	s.watch.Take(next)
	return append(notes, s.attached.of(next.Attached)...), nil
}

// owner is whose packets have a key: the socket's cgroup says it, else the interface,
// else the network namespace.
func (s *dropSamples) owner(key drops.Key) (endpoint.Owner, bool) {
	if owner, ok := s.owners.Cgroup(key.CgroupID); ok {
		return owner, true
	}
	if key.NetNS == s.host {
		if owner, ok := s.owners.Interface(key.IfIndex); ok {
			return owner, true
		}
	}
	return s.owners.Network(endpoint.NetNS(key.NetNS))
}

// find finds the processes of what is shown.
func (s *dropSamples) find(shown []drops.Shown) []*drops.Process {
	if s.processes == nil {
		return make([]*drops.Process, len(shown))
	}
	found, err := s.processes.Of(shown)
	if err != nil {
		s.unknown(err)
	}
	return found
}

// unknown tells once why processes aren't known.
func (s *dropSamples) unknown(err error) {
	if !s.told {
		s.notes = append(s.notes, fmt.Sprintf("processes of drops are not all known: %v", err))
	}
	s.told = true
}

// dropsOf says which drops are those of an endpoint.
func (e *Env) dropsOf(c *cli.Context, b Backend, s selection, host *uint32) (func(drops.Key) bool, error) {
	one, err := e.oneEndpoint(c, b, s)
	if err != nil {
		return nil, err
	}
	cgroup, cgroups, err := b.Endpoints().CgroupOf(one, s.ref)
	if err != nil {
		return nil, err
	}
	place := dropPlace{cgroups: cgroups, devices: onHost(one.Interfaces)}
	switch {
	case one.NetNS != nil && !pointed(one.HostNetwork):
		place.network = uint32(*one.NetNS)
	case len(cgroups) == 0 && pointed(one.HostNetwork):
		return nil, noCgroup(one, cgroup)
	case len(cgroups) == 0:
		return nil, closedNetwork(one)
	}
	return func(k drops.Key) bool { return place.has(k, *host) }, nil
}

// dropPlace is where the packets of an endpoint are dropped.
type dropPlace struct {
	cgroups map[uint64]bool // of its sockets; none: not known
	devices map[uint32]bool // the host sides of its interfaces
	network uint32          // inode; 0: the host's, or not known
}

// has says whether packets are the endpoint's: those of its sockets, and in its network
// and at its interfaces also those of nobody there who is known.
func (p dropPlace) has(k drops.Key, host uint32) bool {
	switch {
	case p.cgroups[k.CgroupID]:
		return true
	case p.network == 0, k.CgroupID > 1 && len(p.cgroups) > 0 && k.SocketNetNS == p.network:
		return false
	}
	return k.NetNS == p.network || k.NetNS == host && p.devices[k.IfIndex]
}

// dropDrops are the columns that a narrow terminal does without, the first ones first.
var dropDrops = []string{"last seen", "rate", "transport", "device", "container", "pod", "process"}

func dropTable(d drops.Document) output.Table {
	t := output.Table{
		Header: []string{"reason", "packets", "rate", "pod", "container", "process", "device", "transport", "source", "destination", "last seen"},
		Footer: dropRow("total", d.Total),
	}
	for _, drop := range d.Drops {
		row := dropRow(dropReason(drop), drop.Dropped)
		row[3], row[4], row[6], row[10] = podName(drop.Namespace, drop.Pod, drop.PodUID), optional(drop.Container), optional(drop.DevName), ago(d.Time, drop.LastSeen)
		if drop.Container == nil && drop.ContainerID != nil {
			row[4] = shortened(*drop.ContainerID)
		}
		if drop.Process != nil {
			row[5] = fmt.Sprintf("%s (%d)", drop.Process.Command, drop.Process.PID)
		}
		if n := drop.Network; n != nil {
			row[7], row[8], row[9] = n.Type, dropEnd(n.Source), dropEnd(n.Destination)
			if n.Transport != nil {
				row[7] = *n.Transport
			}
		}
		t.Rows = append(t.Rows, row)
	}
	if d.Others.Packets > 0 {
		t.Rows = append(t.Rows, dropRow("others", d.Others.Dropped))
	}
	if lost := d.Loss.Missed + d.Loss.Reasons; lost > 0 {
		t.Rows = append(t.Rows, dropRow("missed", drops.Dropped{Counters: drops.Counters{Packets: lost}}))
	}
	return t
}

// dropReason is the reason, or where it was, on kernels that tell none.
func dropReason(d drops.Drop) string {
	if d.Reason == nil {
		return optional(d.Location)
	}
	return *d.Reason
}

// dropRow is a row of which only the counters are filled in.
func dropRow(name string, d drops.Dropped) []string {
	row := make([]string, 11)
	row[0], row[1], row[2] = name, output.Count(d.Packets), perSecondCell(d.PacketsPerSecond)
	return row
}

func dropEnd(e *drops.End) string {
	if e == nil {
		return ""
	}
	return endText(netip.AddrPortFrom(e.Address, pointed(e.Port)))
}
