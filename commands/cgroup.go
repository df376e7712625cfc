package commands

import (
	"github.com/urfave/cli/v2"

	"bpfnet/internal/bpftool"
	"bpfnet/output"
)

type cgroupDoc struct {
	Schema string `json:"schema"`
	bpftool.CgroupRow
}

func cgroupCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "cgroup",
		Usage: "what is attached to cgroups, by anybody",
		Subcommands: []*cli.Command{{
			Name:      "show",
			Aliases:   []string{"list"},
			Usage:     "programs of a cgroup",
			ArgsUsage: "[CGROUP] [effective]",
			Flags: []cli.Flag{
				&cli.BoolFlag{Name: "effective", Usage: "the programs that run for its processes: those of the cgroups above it, too"},
				podFlag("in place of CGROUP, that"), containerFlag("in place of CGROUP, that"),
			},
			Action: env.cgroupShow,
		}},
	}
}

func (e *Env) cgroupShow(c *cli.Context) error {
	whose, err := selectOne(c, "pod", "container")
	if err != nil {
		return err
	}
	names, word := []string{"CGROUP", "[effective]"}, c.Args().Get(1)
	if whose.isEndpoint() {
		names, word = names[1:], c.Args().First()
	}
	if err := args(c, names...); err != nil {
		return err
	}
	if word != "" && word != "effective" {
		return usage(c, "unexpected argument %q", word)
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	dir := c.Args().First()
	if whose.isEndpoint() {
		t, err := e.targets(c, b, "cgroup", whose)
		if err != nil {
			return err
		}
		dir = t.cgroups[0]
	}
	g, err := b.Bpftool().Cgroup(c.Context, dir, word != "" || c.Bool("effective"))
	if err != nil {
		return err
	}
	e.notes(c, g.Notes)
	if asBpftool(c) {
		return p.List(g.Bpftool(), nil)
	}
	docs := []cgroupDoc{}
	for _, row := range g.Rows() {
		docs = append(docs, cgroupDoc{"bpfnet.cgroup/v1", row})
	}
	return p.List(docs, func() output.Table { return cgroupTable(docs) })
}

func cgroupTable(docs []cgroupDoc) output.Table {
	t := output.Table{Header: []string{"hook", "mechanism", "flags", "prog", "program", "link", "pinned"}}
	for _, d := range docs {
		t.Rows = append(t.Rows, []string{
			d.Hook, optional(d.Mechanism), optional(d.Flags), ident(d.ProgID), optional(d.ProgName), ident(pointed(d.LinkID)), optional(d.Pinned),
		})
	}
	return t
}
