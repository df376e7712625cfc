package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/output"
)

type importDoc struct {
	Schema string `json:"schema"`
	maps.Imported
	DryRun bool `json:"dry_run"`
}

func mapImportCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "write many entries from a file, or - for standard input; what is there already isn't written",
		ArgsUsage: "MAP FILE|-",
		Description: "FILE is what bpfnet map dump prints as JSON or NDJSON, what bpftool -j map dump prints, CSV, or lines KEY VALUE. " +
			"The first line of CSV may name the columns: key, value, or members of structs (address,pps,action: the first is the key). " +
			"In a line KEY alone writes the value 1. All of it is read before anything is changed.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "replace", Usage: "remove the entries that FILE doesn't have"},
		},
		Action: func(c *cli.Context) error {
			words, err := mapArgs(c, "MAP", "FILE")
			if err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			source, input, err := env.input(c.Context, words.key)
			if err != nil {
				return err
			}
			defer input.Close()
			done, err := b.Maps().Import(c.Context, maps.ImportRequest{
				Map: words.ref, Source: source, Input: input, Replace: c.Bool("replace"), DryRun: c.Bool("dry-run"),
			})
			return env.imported(c, p, done, err)
		},
	}
}

// input opens a file, or standard input, and says what to call it.
func (e *Env) input(ctx context.Context, name string) (source string, input io.ReadCloser, err error) {
	if name == "-" {
		return "stdin", interruptible(ctx, e.Stdin), nil
	}
	input, err = e.OpenFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, fault.New(fault.ErrNotFound, "read %q: no such file", name)
	case errors.Is(err, fs.ErrPermission):
		return "", nil, fault.New(fault.ErrPermission, "read %q: permission denied", name)
	case err != nil:
		return "", nil, err
	}
	return name, input, nil
}

// openFile opens a file to read.
func openFile(name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		f.Close()
		return nil, fault.New(fault.ErrUsage, "read %q: a directory, not a file", name)
	}
	return f, nil
}

// interruptible returns a reader that ends with the error of ctx when that is
// cancelled, although a read of r waits for somebody to type.
func interruptible(ctx context.Context, r io.Reader) io.ReadCloser {
	from, to := io.Pipe()
	stop := context.AfterFunc(ctx, func() { to.CloseWithError(ctx.Err()) })
	go func() {
		_, err := io.Copy(to, r)
		stop()
		to.CloseWithError(err) // nil is the end of the file
	}()
	return from
}

// imported prints what an import did: also one that was interrupted or that the
// kernel refused in part.
func (e *Env) imported(c *cli.Context, p *output.Printer, done maps.Imported, err error) error {
	if done.Map == "" {
		return err
	}
	if err == nil || done.Changed {
		e.importDone(c, p, done)
	}
	printErr := p.Object(importDoc{"bpfnet.map_import/v1", done, c.Bool("dry-run")}, func() output.Table { return importTable(done) })
	if err != nil {
		return err
	}
	return printErr
}

func (e *Env) importDone(c *cli.Context, p *output.Printer, d maps.Imported) {
	e.done(c, p, done{
		changed: d.Changed,
		did:     fmt.Sprintf("imported %s into %s", d.Source, d.Map),
		already: fmt.Sprintf("%s has the entries of %s already", d.Map, d.Source),
		notes:   d.Notes,
	})
}

func importTable(d maps.Imported) output.Table {
	t := output.Table{Header: []string{"entries", "count"}}
	for _, row := range []struct {
		name  string
		count uint64
	}{
		{"read", d.Entries},
		{"added", d.Added},
		{"updated", d.Updated},
		{"unchanged", d.Unchanged},
		{"deleted", d.Deleted},
		{"refused", d.Refused},
	} {
		t.Rows = append(t.Rows, []string{row.name, strconv.FormatUint(row.count, 10)})
	}
	for _, e := range d.Errors[:min(len(d.Errors), shownRefusals)] {
		t.Rows = append(t.Rows, []string{refusedAt(d.Source, e) + " " + text(e.Key), e.Message})
	}
	return t
}

// shownRefusals is how many refused entries the table shows.
const shownRefusals = 20

func refusedAt(source string, e maps.RefusedEntry) string {
	if e.Line == nil {
		return "delete"
	}
	return fmt.Sprintf("%s:%d:%d", source, *e.Line, *e.Column)
}
