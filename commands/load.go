package commands

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"bpfnet/bpf"
	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
	"bpfnet/output"
)

type loadDoc struct {
	Schema string `json:"schema"`
	datapath.Loaded
	DryRun bool `json:"dry_run"`
}

func loadCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "load",
		Usage:     "verify a program and pin it; nothing runs yet",
		ArgsUsage: "PROGRAM|FILE.o",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "`NAME` to load it under (default: that of the program or file)"},
			&cli.StringSliceFlag{Name: "prog", Usage: "load only the program `FUNCTION` of the object; may be repeated"},
			&cli.StringSliceFlag{Name: "set", Usage: "set a global variable, `VARIABLE=VALUE`; may be repeated"},
			&cli.StringSliceFlag{Name: "max-entries", Usage: "size of a map, `MAP=N`; may be repeated"},
			&cli.StringFlag{Name: "mechanism", DefaultText: "the best that works", Usage: "`NAME` of how a built-in program is to do its work, of those that bpfnet programs -o json has"},
			&cli.BoolFlag{Name: "reuse-maps", Usage: "with --replace: keep the maps and what is in them"},
			&cli.BoolFlag{Name: "replace", Usage: "replace what is loaded under that name, where it is attached too"},
		},
		Action: env.load,
	}
}

func (e *Env) load(c *cli.Context) error {
	if err := args(c, "PROGRAM|FILE.o"); err != nil {
		return err
	}
	request, err := e.loadRequest(c)
	if err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	loaded, err := b.Load(c.Context, request)
	if err != nil {
		return err
	}
	e.done(c, p, done{changed: loaded.Changed, did: fmt.Sprintf("loaded %q", loaded.Name), already: fmt.Sprintf("%q is loaded already", loaded.Name), notes: loaded.Notes})
	return printLoaded(p, loaded, request.DryRun)
}

func printLoaded(p *output.Printer, loaded datapath.Loaded, dryRun bool) error {
	loaded.Programs, loaded.Maps, loaded.Notes = list(loaded.Programs), list(loaded.Maps), list(loaded.Notes)
	return p.Object(loadDoc{"bpfnet.load/v1", loaded, dryRun}, func() output.Table { return programTable(loaded.Programs) })
}

func (e *Env) loadRequest(c *cli.Context) (datapath.LoadRequest, error) {
	r := datapath.LoadRequest{
		Source:    c.Args().First(),
		Name:      c.String("name"),
		Programs:  c.StringSlice("prog"),
		Mechanism: c.String("mechanism"),
		ReuseMaps: c.Bool("reuse-maps"),
		Replace:   c.Bool("replace"),
		DryRun:    c.Bool("dry-run"),
	}
	if r.ReuseMaps && !r.Replace {
		return r, usage(c, "--reuse-maps goes with --replace")
	}
	if r.Mechanism != "" && len(r.Programs) > 0 {
		return r, usage(c, "--mechanism and --prog exclude each other")
	}
	var err error
	if r.Set, err = pairs(c, "set"); err != nil {
		return r, err
	}
	if r.MaxEntries, err = sizes(c); err != nil {
		return r, err
	}
	if r.Object, err = e.object(r.Source); err != nil {
		return r, err
	}
	if r.Name == "" {
		r.Name = datapath.DefaultName(r.Source)
	}
	return r, nil
}

// object reads an object file; it returns nil for the name of a built-in
// program.
func (e *Env) object(source string) ([]byte, error) {
	if _, ok := bpf.Lookup(source); ok {
		return nil, nil
	}
	object, err := e.ReadFile(source)
	switch {
	case err == nil:
		return object, nil
	case errors.Is(err, syscall.EISDIR):
		return nil, fault.New(fault.ErrUsage, "load %q: a directory, not an object file", source)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("load %q: %w", source, err)
	case strings.ContainsAny(source, "/."):
		return nil, fault.New(fault.ErrNotFound, "load %q: no such file", source)
	}
	missing := fault.New(fault.ErrNotFound, "load %q: no built-in program and no file of that name", source)
	if near := nearest.Word(source, builtinNames()); near != "" {
		missing = missing.Hint("did you mean %q?", near)
	}
	return nil, missing.Hint("bpfnet programs   lists the built-in ones")
}

func builtinNames() []string {
	var names []string
	for _, p := range bpf.Catalogue() {
		names = append(names, p.Name)
	}
	return names
}

func sizes(c *cli.Context) (map[string]uint32, error) {
	texts, err := pairs(c, "max-entries")
	if err != nil {
		return nil, err
	}
	values := map[string]uint32{}
	for name, text := range texts {
		if values[name] = parseSize(text); values[name] == 0 {
			return nil, usage(c, "--max-entries %s=%s: not a number from 1 to 4294967295", name, text)
		}
	}
	return values, nil
}

// parseSize returns zero for what isn't the size of a map.
func parseSize(text string) uint32 {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}
