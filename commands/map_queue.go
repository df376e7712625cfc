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
			return env.changeMap(c, queueChange("pushed %s to %s", "%s may be in %s already"), func(api maps.API) (maps.Change, error) {
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
			return env.changeMap(c, queueChange("popped %s from %s", "%s is still in %s"), func(api maps.API) (maps.Change, error) {
				return api.Pop(c.Context, request)
			})
		},
	}
}

// queueChange reports changes of maps without keys: formats of the value and the
// map.
func queueChange(did, already string) func(maps.Change) (done, output.Table) {
	return func(change maps.Change) (done, output.Table) {
		value := text(change.Value)
		return done{did: fmt.Sprintf(did, value, change.Map), already: fmt.Sprintf(already, value, change.Map)},
			output.Table{Header: []string{"value"}, Rows: [][]string{{value}}}
	}
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
