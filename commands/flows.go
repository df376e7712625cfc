package commands

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/flow"
	"bpfnet/output"
)

func flowsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "flows",
		Usage: "what processes have sent and received",
		Subcommands: []*cli.Command{{
			Name:  "sum",
			Usage: "one table of what was moved since a loaded instance began to count, or in the time of --interval",
			Description: "Where both ends are sockets of this machine, what each transmits counts, and not what the other one receives of it. " +
				byDescription(),
			Flags: append(flowFlags("src.pod,dst.pod", "-io.transmit_bytes"),
				&cli.DurationFlag{Name: "interval", Value: watchInterval, DefaultText: "none, 2s if nothing is loaded", Usage: "count for a `TIME`, and show what was moved in it"},
			),
			Action: env.flowsSum,
		}},
	}
}

func (e *Env) flowsSum(c *cli.Context) error {
	if err := args(c); err != nil {
		return err
	}
	t, err := readTicks(c)
	if err != nil {
		return err
	}
	choice, err := readFlowChoice(c)
	if err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := e.openFlows(c, b, choice)
	if err != nil {
		return err
	}
	defer s.close()
	t.count = 1
	return stream{
		sample: s.sample,
		show: func() error {
			doc := s.watch.Document()
			if doc.Total.Flows == 0 {
				e.note(c, "note: nothing was moved")
			}
			if err := p.Object(doc, func() output.Table { return flowTable(doc) }); err != nil {
				return err
			}
			return s.lossy()
		},
	}.run(c.Context, t, s.news == nil || c.IsSet("interval"))
}

// flowColumn is a column of the table, of those that a view has.
type flowColumn struct {
	name  string
	by    []string // dimensions that have it; nil: it has to do with no dimension
	alone bool     // flows that aren't grouped have it
	cell  func(f *flow.Flow, by []string) string
}

// flowColumns are all, in their order.
var flowColumns = []flowColumn{
	{"from", nil, false, func(f *flow.Flow, by []string) string { return partyText(f.Src, "src.", by) }},
	{"to", nil, false, func(f *flow.Flow, by []string) string { return partyText(f.Dst, "dst.", by) }},
	{"process", []string{"process", "command"}, true, func(f *flow.Flow, _ []string) string { return processText(f.Process) }},
	{"executable", []string{"executable"}, false, func(f *flow.Flow, _ []string) string { return optional(f.Process.Executable) }},
	{"user", []string{"user"}, false, func(f *flow.Flow, _ []string) string { return userText(f.User) }},
	{"pod", []string{"pod", "container"}, true, func(f *flow.Flow, _ []string) string { return podName(f.K8s.Namespace, f.K8s.Pod, f.K8s.PodUID) }},
	{"container", []string{"container"}, true, func(f *flow.Flow, _ []string) string { return containerText(f.Container) }},
	{"netns", []string{"netns"}, false, func(f *flow.Flow, _ []string) string { return netnsText(f.Network.NetNS) }},
	{"proto", []string{"transport"}, true, func(f *flow.Flow, _ []string) string { return optional(f.Network.Transport) }},
	{"local", []string{"local", "local_port"}, true, func(f *flow.Flow, _ []string) string { return addressText(f.Network.Local) }},
	{"peer", []string{"peer", "peer_port"}, true, peerText},
	{"state", []string{"state"}, true, func(f *flow.Flow, _ []string) string { return optional(f.TCP.State) }},
	{"flows", nil, false, func(f *flow.Flow, _ []string) string { return output.Count(uint64(f.Flows)) }},
	{"tx", nil, true, func(f *flow.Flow, _ []string) string { return bytesCell(f.IO.TransmitBytes) }},
	{"tx rate", nil, true, func(f *flow.Flow, _ []string) string { return rateCell(f.IO.TransmitBytesPerSecond) }},
	{"rx", nil, true, func(f *flow.Flow, _ []string) string { return bytesCell(f.IO.ReceiveBytes) }},
	{"rx rate", nil, true, func(f *flow.Flow, _ []string) string { return rateCell(f.IO.ReceiveBytesPerSecond) }},
	{"rtt", nil, true, rttText},
	{"retrans", nil, true, func(f *flow.Flow, _ []string) string { return ident(pointed(f.TCP.Retransmits)) }},
	{"counted", nil, true, inexact},
}

// flowDrops are the columns that a narrow terminal does without, the first ones first.
var flowDrops = []string{"retrans", "rtt", "local", "counted", "state", "netns", "tx", "rx", "proto", "container", "flows", "pod"}

// has says whether a document shows a column.
func (col flowColumn) has(d flow.Document) bool {
	switch directed := slices.ContainsFunc(d.By, func(word string) bool { return strings.Contains(word, ".") }); {
	case len(d.By) == 0:
		return col.alone
	case col.name == "from" || col.name == "to":
		return directed
	case slices.Contains([]string{"rx", "rx rate"}, col.name):
		return !directed
	case slices.Contains([]string{"flows", "tx", "tx rate"}, col.name):
		return true
	}
	return slices.ContainsFunc(col.by, func(word string) bool { return slices.Contains(d.By, word) })
}

func flowTable(d flow.Document) output.Table {
	var t output.Table
	columns := slices.DeleteFunc(slices.Clone(flowColumns), func(col flowColumn) bool { return !col.has(d) })
	for _, col := range columns {
		t.Header = append(t.Header, col.name)
	}
	row := func(name string, f *flow.Flow) {
		var cells []string
		for _, col := range columns {
			cells = append(cells, col.cell(f, d.By))
		}
		if name != "" {
			cells[0] = name
		}
		t.Rows = append(t.Rows, cells)
	}
	for i := range d.Flows {
		row("", &d.Flows[i])
	}
	if n := d.Others.Flows; n > 0 {
		row(output.Count(uint64(n))+" others", &flow.Flow{IO: d.Others.IO, Flows: n})
	}
	if n := d.Loss.Events + d.Loss.MapFull + d.Loss.Missed; n > 0 {
		row(output.Count(n)+" lost", &flow.Flow{})
	}
	if n := d.Loss.Unattributed; n > 0 {
		row(output.Bytes(n)+" unknown", &flow.Flow{})
	}
	return t
}
