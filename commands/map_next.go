package commands

import (
	"github.com/urfave/cli/v2"

	"bpfnet/internal/maps"
	"bpfnet/output"
)

type mapNextDoc struct {
	Schema string `json:"schema"`
	maps.NextKey
}

func mapNextCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "next",
		Aliases:   []string{"getnext"},
		Usage:     "the key that follows KEY in the kernel's order, or the first one; after the last it ends with 3",
		ArgsUsage: "MAP [KEY]",
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP", "[KEY]")
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			if asBpftool(c) {
				doc, err := b.Bpftool().MapNextKey(c.Context, w.ref, w.key)
				if err != nil {
					return err
				}
				return p.Object(doc, nil)
			}
			found, err := b.Maps().Next(c.Context, w.ref, w.key)
			if err != nil {
				return err
			}
			env.notes(c, found.Notes)
			return p.Object(mapNextDoc{"bpfnet.map_next/v1", found}, func() output.Table {
				return output.Table{Header: []string{"key", "next key"}, Rows: [][]string{{orNone(found.Key), text(found.Next)}}}
			})
		},
	}
}
