package commands

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/maps"
	"bpfnet/output"
)

type mapPinDoc struct {
	Schema string `json:"schema"`
	maps.PinChange
	DryRun bool `json:"dry_run"`
}

func mapPinCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "pin",
		Usage:     "pin a map at a path in bpffs, so that it stays when nothing else holds it",
		ArgsUsage: "MAP PATH",
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP", "PATH")
			if err != nil {
				return err
			}
			path, err := filepath.Abs(w.key)
			if err != nil {
				return err
			}
			request := maps.PinRequest{Map: w.ref, Path: path, DryRun: c.Bool("dry-run")}
			return env.changePin(c, func(api maps.API) (maps.PinChange, done, error) {
				change, err := api.Pin(c.Context, request)
				return change, done{
					did:     fmt.Sprintf("pinned %s at %s", change.Map, path),
					already: fmt.Sprintf("%s is pinned at %s already", change.Map, path),
				}, err
			})
		},
	}
}

func mapUnpinCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "unpin",
		Usage:     "remove a pin of a map; one that isn't there is no error",
		ArgsUsage: "PATH|MAP",
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "PATH|MAP")
			if err != nil {
				return err
			}
			request := maps.UnpinRequest{Map: w.ref, DryRun: c.Bool("dry-run")}
			return env.changePin(c, func(api maps.API) (maps.PinChange, done, error) {
				change, err := api.Unpin(c.Context, request)
				return change, done{
					did:     "removed the pin " + optional(change.Pinned),
					already: change.Map + " isn't pinned",
				}, err
			})
		},
	}
}

// changePin runs a writer of pins and reports what it did.
func (e *Env) changePin(c *cli.Context, write func(maps.API) (maps.PinChange, done, error)) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	change, said, err := write(b.Maps())
	if err != nil {
		return err
	}
	if printsNull(c) {
		return p.Object(nil, nil)
	}
	said.changed = change.Changed
	e.done(c, p, said)
	return p.Object(mapPinDoc{"bpfnet.map_pin/v1", change, c.Bool("dry-run")}, func() output.Table { return output.Table{} })
}
