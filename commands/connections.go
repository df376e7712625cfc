package commands

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
	"bpfnet/internal/nearest"
	"bpfnet/output"
)

func connectionsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "connections",
		Usage: "the connections that there are now",
		Subcommands: []*cli.Command{{
			Name:  "count",
			Usage: "how many each process has, in each state, in all network namespaces",
			Description: "It takes no program. --by counts by what connections have in common: " + strings.Join(flow.CountDimensions(), ", ") + ". " +
				"Of a connection that several processes have open, the one with the lowest pid is shown.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "by", Value: "process,state", Usage: "count by `DIMENSIONS`, with commas between them"},
				&cli.StringFlag{Name: "state", DefaultText: "all but listen", Usage: "only those in the `STATES`, the kernel's words with commas between them"},
				&cli.BoolFlag{Name: "listening", Usage: "count listening sockets, too"},
				&cli.StringFlag{Name: "proto", Value: "tcp", Usage: "sockets of the `TRANSPORTS`, of tcp, udp, udplite, icmp, raw, with commas between them"},
				&cli.StringFlag{Name: "port", Usage: "only the local or peer's `PORTS`, with commas between them"},
				&cli.UintFlag{Name: "pid", DefaultText: "all", Usage: "only those of the process `N`"},
				&cli.StringFlag{Name: "container", Usage: "only those of the container `ID|NAME`"},
				&cli.StringFlag{Name: "pod", Usage: "only those of the Pod `NAMESPACE/NAME|UID`"},
				&cli.StringFlag{Name: "cgroup", Usage: "only those of the cgroup `DIR` and those below it"},
				&cli.IntFlag{Name: "limit", DefaultText: noLimit, Usage: "show the first `N`, the rest counts as others"},
			},
			Action: env.connectionsCount,
		}},
	}
}

func (e *Env) connectionsCount(c *cli.Context) error {
	if err := args(c); err != nil {
		return err
	}
	view := flow.View{By: commaWords(c.String("by")), Limit: c.Int("limit")}
	if err := checkCount(view); err != nil {
		return err
	}
	whose, err := selectOne(c, "pid", "container", "pod", "cgroup")
	if err != nil {
		return err
	}
	filter, err := readFlowFilter(c)
	if err != nil {
		return err
	}
	request := flow.CensusRequest{Filter: filter, States: commaWords(c.String("state")), Listen: c.Bool("listening")}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := e.flowsOf(c, b, whose, &request.Filter, &view); err != nil {
		return err
	}
	census, notes, err := b.Connections(c.Context, request)
	if err != nil {
		return err
	}
	owners := newPodOwners(b.Endpoints())
	e.notes(c, append(notes, owners.find(c.Context, cgroupsOf(census.Rows))...))
	if view.Boot, err = e.BootTime(); err != nil {
		return err
	}
	view.Executable, view.Users, view.Owner = e.Executable, e.users(), owners.Cgroup
	doc := view.Count(census)
	return p.Object(doc, func() output.Table { return countTable(doc) })
}

func checkCount(view flow.View) error {
	for _, word := range view.By {
		if words := flow.CountDimensions(); !slices.Contains(words, word) {
			return fault.New(fault.ErrUsage, "count by %q: no such dimension", word).Hint("%s", nearest.Hint(word, words))
		}
	}
	if len(view.By) == 0 {
		return fault.New(fault.ErrUsage, "count by nothing").Hint("one of: %s", strings.Join(flow.CountDimensions(), ", "))
	}
	return view.Check()
}

func countTable(d flow.CountDocument) output.Table {
	columns := slices.DeleteFunc(slices.Clone(flowColumns), func(col flowColumn) bool {
		return !slices.ContainsFunc(col.by, func(word string) bool { return slices.Contains(d.By, word) })
	})
	var t output.Table
	for _, col := range columns {
		t.Header = append(t.Header, col.name)
	}
	t.Header = append(t.Header, "connections")
	row := func(f flow.Flow, connections int) []string {
		var cells []string
		for _, col := range columns {
			cells = append(cells, col.cell(&f, d.By))
		}
		return append(cells, output.Count(uint64(connections)))
	}
	for _, n := range d.Counts {
		t.Rows = append(t.Rows, row(flow.Flow{
			Network: flow.Network{Transport: n.Network.Transport, NetNS: n.Network.NetNS, Local: n.Network.Local, Peer: flow.Peer{Address: n.Network.Peer}},
			Process: flow.ProcessDoc{PID: n.Process.PID, Executable: n.Process.Executable, Command: n.Process.Command},
			User:    n.User, Container: n.Container, K8s: n.K8s, TCP: flow.Connection{State: n.State},
		}, n.Connections))
	}
	for _, rest := range []struct {
		name        string
		connections int
	}{{"others", d.Others.Connections}, {"total", d.Total}} {
		if rest.name == "others" && d.Others.Counts == 0 {
			continue
		}
		cells := row(flow.Flow{}, rest.connections)
		cells[0] = rest.name
		if rest.name == "total" {
			t.Footer = cells
		} else {
			t.Rows = append(t.Rows, cells)
		}
	}
	return t
}
