package commands

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/maps"
	"bpfnet/output"
)

// mapWatchInterval is the time between two ticks of map watch.
const mapWatchInterval = time.Second

// watchRows is how many changes a table shows unless --limit says otherwise: so
// many fit on a screen.
const watchRows = 20

func mapWatchCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "watch",
		Usage:     "what changes in a map, again and again",
		ArgsUsage: "MAP",
		Description: "The first document comes at once and has no changes; each later one has those since the one before, with the growth of each number per second. " +
			"--once ends after the first; with --interval it waits that long first.",
		Flags: append(tickFlags(mapWatchInterval),
			&cli.StringFlag{Name: "sort", Value: maps.DefaultWatchSort, Usage: "`FIELD` to sort changes by; -FIELD is descending; fields: change, key, or a number of the value"},
			&cli.IntFlag{Name: "limit", DefaultText: fmt.Sprintf("%d, in tables %d", maps.DefaultWatchLimit, watchRows), Usage: "show the first `N` changes"},
			&cli.StringFlag{Name: "match", Usage: "only keys whose text begins with `PREFIX`, or with hex: whose bytes do"},
		),
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP")
			if err != nil {
				return err
			}
			t, err := readTicks(c)
			if err != nil {
				return err
			}
			if c.IsSet("limit") && c.Int("limit") < 1 {
				return usage(c, "--limit %d: the least is 1", c.Int("limit"))
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			return env.watchMap(c, p, b.Maps(), t, w.ref)
		},
	}
}

func (e *Env) watchMap(c *cli.Context, p *output.Printer, api maps.API, t ticks, ref string) error {
	sampler, err := api.Watch(maps.WatchRequest{Map: ref, Match: c.String("match"), Sort: c.String("sort"), Limit: watchLimit(c, p)})
	if err != nil {
		return err
	}
	defer sampler.Close()
	var doc maps.Watched
	s := stream{
		sample: func(ctx context.Context) error {
			first := doc.Schema == ""
			doc, err = sampler.Sample(ctx)
			if first && err == nil {
				e.notes(c, doc.Notes)
			}
			return err
		},
		show: func() error {
			return p.Event(doc, func() output.Table { return watchedTable(doc) })
		},
	}
	return s.run(c.Context, t, ratesOnly(c))
}

func watchLimit(c *cli.Context, p *output.Printer) int {
	switch {
	case c.IsSet("limit"):
		return c.Int("limit")
	case p.Format() == output.FormatTable:
		return watchRows
	}
	return maps.DefaultWatchLimit
}

func watchedTable(d maps.Watched) output.Table {
	t := output.Table{
		Header: []string{"key", "value", "per second", "change"},
		Footer: []string{
			fmt.Sprintf("total %d", d.Entries), "", "",
			fmt.Sprintf("%d added, %d removed, %d changed", d.Added, d.Removed, d.Changed),
		},
	}
	for _, c := range d.Changes {
		row := []string{text(c.Key), brief(c.Value, c.Sum), text(c.PerSecond), "changed"}
		switch {
		case c.Previous == nil:
			row[3] = "added"
		case c.Value == nil:
			row[1], row[3] = text(c.Previous), "removed"
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}
