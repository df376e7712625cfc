package commands

import (
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/bpftool"
	"bpfnet/output"
)

type netDoc struct {
	Schema string `json:"schema"`
	bpftool.NetworkRow
}

func netCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "net",
		Usage: "what is attached to the interfaces, by anybody",
		Subcommands: []*cli.Command{{
			Name:      "show",
			Aliases:   []string{"list"},
			Usage:     "programs on the interfaces and in the stack of the network namespace",
			ArgsUsage: "[dev NAME]",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "dev", Usage: "only the programs of interface `NAME`"},
				podFlag("only those of " + hostSide), containerFlag("only those of " + hostSide),
			},
			Action: env.netShow,
		}},
	}
}

func (e *Env) netShow(c *cli.Context) error {
	device, err := netDevice(c)
	if err != nil {
		return err
	}
	whose, err := selectOne(c, "dev", "pod", "container")
	if err != nil {
		return err
	}
	if whose.isEndpoint() && device != "" {
		return usage(c, "%s and an interface exclude each other", dashed(whose.flag))
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	n, err := e.network(c, b, device, whose)
	if err != nil {
		return err
	}
	e.notes(c, n.Notes)
	if asBpftool(c) {
		return p.List(n.Bpftool(), nil)
	}
	docs := []netDoc{}
	for _, row := range n.Rows(device == "" && !whose.isEndpoint()) {
		docs = append(docs, netDoc{"bpfnet.net/v1", row})
	}
	return p.List(docs, func() output.Table { return netTable(docs) })
}

// network reads what is attached to an interface, to those of an endpoint, or to
// all for "", and what isn't an interface's.
func (e *Env) network(c *cli.Context, b Backend, device string, whose selection) (bpftool.Network, error) {
	if !whose.isEndpoint() {
		return b.Bpftool().Network(c.Context, device)
	}
	t, err := e.targets(c, b, "tc", whose)
	if err != nil {
		return bpftool.Network{}, err
	}
	var all bpftool.Network
	for _, d := range t.devices {
		one, err := b.Bpftool().Network(c.Context, *d.DevName)
		if err != nil {
			return all, err
		}
		one.XDP, one.TC = append(all.XDP, one.XDP...), append(all.TC, one.TC...)
		all = one
	}
	return all, nil
}

// netDevice is the interface that is asked for, by --dev or in bpftool's words;
// "" for all of them.
func netDevice(c *cli.Context) (string, error) {
	device := c.String("dev")
	switch words := c.Args().Slice(); {
	case c.IsSet("dev") && device == "":
		return "", usage(c, "--dev: the name is empty")
	case len(words) == 0:
		return device, nil
	case len(words) == 2 && words[0] == "dev" && words[1] != "" && device == "":
		return words[1], nil
	case len(words) == 1 && words[0] == "dev" && device == "":
		return "", usage(c, "the name of the interface is missing after %q", words[0])
	default:
		return "", usage(c, "unexpected argument %q", words[0])
	}
}

func netTable(docs []netDoc) output.Table {
	t := output.Table{Header: []string{"target", "hook", "mechanism", "prog", "program", "link", "pinned"}}
	for _, d := range docs {
		how := optional(d.Mechanism)
		if d.Mode != nil {
			how = strings.TrimSpace(how + " (" + *d.Mode + ")")
		}
		t.Rows = append(t.Rows, []string{
			netTarget(d), d.Hook, how, ident(pointed(d.ProgID)), optional(d.ProgName), ident(pointed(d.LinkID)), optional(d.Pinned),
		})
	}
	return t
}

// netTarget names what a program hangs on: an interface, perhaps a qdisc of it,
// or a place in the stack.
func netTarget(d netDoc) string {
	switch {
	case d.DevName != nil && d.Target != nil:
		return *d.DevName + " " + *d.Target
	case d.DevName != nil:
		return *d.DevName
	}
	return optional(d.Target)
}
