package commands

import (
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/maps"
	"bpfnet/output"
)

type clearDoc struct {
	Schema string `json:"schema"`
	maps.Cleared
	DryRun bool `json:"dry_run"`
}

func mapClearCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "clear",
		Usage:     "remove all entries; those of arrays are set to zero, queues and stacks emptied",
		ArgsUsage: "MAP",
		Action: func(c *cli.Context) error {
			words, err := mapArgs(c, "MAP")
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			cleared, err := b.Maps().Clear(c.Context, maps.ClearRequest{Map: words.ref, DryRun: c.Bool("dry-run")})
			if err != nil {
				return err
			}
			removed := removedText(cleared)
			env.done(c, p, done{
				changed: cleared.Changed,
				did:     fmt.Sprintf("removed %s from %s", removed, cleared.Map),
				already: fmt.Sprintf("%s has no entries", cleared.Map),
				notes:   cleared.Notes,
			})
			cleared.Notes = list(cleared.Notes)
			return p.Object(clearDoc{"bpfnet.map_clear/v1", cleared, c.Bool("dry-run")}, func() output.Table {
				return output.Table{Header: []string{"map", "removed"}, Rows: [][]string{{cleared.Map, removed}}}
			})
		},
	}
}

func removedText(c maps.Cleared) string {
	switch {
	case c.Removed == nil:
		return "all elements"
	case *c.Removed == 1:
		return "1 entry"
	}
	return strconv.FormatUint(*c.Removed, 10) + " entries"
}
