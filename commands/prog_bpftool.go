package commands

import (
	"context"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/bpftool"
	"bpfnet/internal/fault"
)

// This file answers "prog" and "link" as bpftool does, for --json and --pretty:
// of the whole kernel, not of bpfnet's alone.

// The arguments in this dialect, and what help says about it.
const (
	progWords = "[id N|tag HEX|name NAME|pinned PATH|NAME[/FUNCTION]]"
	linkWords = "[id N|pinned PATH|NAME[/HOOK]]"

	progDialect = "With --json or --pretty it shows programs of the whole kernel, as bpftool does: " + progWords
	linkDialect = "With --json or --pretty it shows links of the whole kernel, as bpftool does: " + linkWords
)

// pidsFlag asks for what costs more than the rest. Documents of our own don't
// have it.
func pidsFlag() []cli.Flag {
	return []cli.Flag{&cli.BoolFlag{Name: "pids", Usage: "with --json or --pretty: find the processes that have it open"}}
}

// noPids refuses pidsFlag in our own dialect.
func noPids(c *cli.Context) error {
	if c.Bool("pids") {
		return usage(c, "--pids goes with --json or --pretty")
	}
	return nil
}

func (e *Env) programsAsBpftool(c *cli.Context) error {
	return e.objectsAsBpftool(c, progWords, bpftool.API.Programs)
}

func (e *Env) linksAsBpftool(c *cli.Context) error {
	return e.objectsAsBpftool(c, linkWords, bpftool.API.Links)
}

// objectsAsBpftool prints the objects that the arguments mean: the only one that
// fits as an object, several as an array, and all of them if none is named.
func (e *Env) objectsAsBpftool(c *cli.Context, usage string, show func(api bpftool.API, ctx context.Context, ref string, pids bool) ([]bpftool.Object, error)) error {
	line := "usage: " + commandName(c) + " " + usage
	ref, rest, err := objectWords(c.Args().Slice())
	switch {
	case err != nil:
		return err
	case ref == "" && c.NArg() > 0:
		return fault.New(fault.ErrUsage, "the argument is empty").Hint("%s", line)
	case len(rest) > 0:
		return fault.New(fault.ErrUsage, "unexpected argument %q", rest[0]).Hint("%s", line)
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	docs, err := show(b.Bpftool(), c.Context, ref, c.Bool("pids"))
	if err != nil {
		return err
	}
	if ref != "" && len(docs) == 1 {
		return p.Object(docs[0], nil)
	}
	return p.List(docs, nil)
}
