package commands

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/maps"
	"bpfnet/output"
)

func mapPushCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "push",
		Aliases:   []string{"enqueue"},
		Usage:     "add a value to a queue, stack or Bloom filter",
		ArgsUsage: "MAP VALUE",
		Action: func(c *cli.Context) error {
			ref, value, err := valueArgs(c, "MAP", "VALUE")
			if err != nil {
				return err
			}
			request := maps.PushRequest{Map: ref, Value: value, DryRun: c.Bool("dry-run")}
			return env.changeQueue(c, "pushed %s to %s", "%s may be in %s already", func(api maps.API) (maps.Change, error) {
				return api.Push(c.Context, request)
			})
		},
	}
}

func mapPopCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "pop",
		Aliases:   []string{"dequeue"},
		Usage:     "take the next value out of a queue or stack",
		ArgsUsage: "MAP",
		Action: func(c *cli.Context) error {
			w, err := mapArgs(c, "MAP")
			if err != nil {
				return err
			}
			if asBpftool(c) && !c.Bool("dry-run") {
				return env.nextAsBpftool(c, w.ref, true)
			}
			request := maps.PopRequest{Map: w.ref, DryRun: c.Bool("dry-run")}
			return env.changeQueue(c, "popped %s from %s", "", func(api maps.API) (maps.Change, error) {
				return api.Pop(c.Context, request)
			})
		},
	}
}

// changeQueue runs a writer of maps without keys and reports what it did.
func (e *Env) changeQueue(c *cli.Context, did, already string, write func(maps.API) (maps.Change, error)) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	change, err := write(b.Maps())
	if err != nil {
		return err
	}
	if printsNull(c) {
		e.notes(c, change.Notes)
		return p.Object(nil, nil)
	}
	said := done{changed: change.Changed, did: fmt.Sprintf(did, text(change.Value), change.Map), notes: change.Notes}
	if !change.Changed {
		said.already = fmt.Sprintf(already, text(change.Value), change.Map)
	}
	e.done(c, p, said)
	change.Notes = list(change.Notes)
	return p.Object(mapChangeDoc{"bpfnet.map_change/v1", change, c.Bool("dry-run")}, func() output.Table {
		return output.Table{Header: []string{"value"}, Rows: [][]string{{text(change.Value)}}}
	})
}

func mapPeekCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "peek",
		Usage:     "the next value of a queue or stack; of a Bloom filter whether VALUE may be in it",
		ArgsUsage: "MAP [VALUE]",
		Action: func(c *cli.Context) error {
			ref, value, err := valueArgs(c, "MAP", "[VALUE]")
			if err != nil {
				return err
			}
			if asBpftool(c) && value == "" {
				return env.nextAsBpftool(c, ref, false)
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			entry, err := b.Maps().Peek(c.Context, ref, value)
			if err != nil {
				return err
			}
			env.notes(c, entry.Notes)
			return p.Object(entryDoc{"bpfnet.map_entry/v1", entry}, func() output.Table {
				return output.Table{Header: []string{"value"}, Rows: [][]string{{text(entry.Value)}}}
			})
		},
	}
}

// valueArgs reads the arguments of a command on a map without keys: "MAP VALUE",
// or bpftool's "id 57 value 1 0 0 0".
func valueArgs(c *cli.Context, names ...string) (ref, value string, err error) {
	ref, rest, err := objectWords(c.Args().Slice())
	if err == nil && len(rest) > 1 && rest[0] == "value" {
		value, err = dataWords("value", rest[1:])
		return ref, value, err
	}
	w, err := mapArgs(c, names...)
	return w.ref, w.key, err
}
