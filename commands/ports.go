package commands

import (
	"context"
	"errors"
	"strconv"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/internal/ports"
	"bpfnet/output"
)

// portFilter is the built-in program that the ports commands work on.
const portFilter = "port-filter"

func portsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "ports",
		Usage: "which ports may pass; loads port-filter if it isn't loaded yet",
		Description: "Among rules for the same port the one with the smallest range decides, among ranges of one size the later rule. " +
			"The destination port is looked up first, then the source port; a drop by either wins.",
		Subcommands: []*cli.Command{
			portsRuleCommand(env, "allow", "let ports pass", ports.API.Allow),
			portsRuleCommand(env, "deny", "drop packets to ports", ports.API.Deny),
			portsRemoveCommand(env),
			portsListCommand(env),
			portsDefaultCommand(env),
		},
	}
}

// rangesEdit is a change that a list of ranges makes.
type rangesEdit func(api ports.API, ctx context.Context, ranges []ports.Range, dryRun bool) (ports.Result, error)

func portsRuleCommand(env *Env, name, usage string, edit rangesEdit) *cli.Command {
	return &cli.Command{
		Name:      name,
		Usage:     usage,
		ArgsUsage: "PORT[-PORT]/tcp|udp|sctp...",
		Flags:     []cli.Flag{sourceFlag(), instanceFlag()},
		Action: func(c *cli.Context) error {
			ranges, err := portRanges(c)
			if err != nil {
				return err
			}
			return env.editPorts(c, true, func(ctx context.Context, api ports.API, dryRun bool) (ports.Result, error) {
				return edit(api, ctx, ranges, dryRun)
			})
		},
	}
}

func portsRemoveCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "remove",
		Usage:     "remove the rules for ports, given as they were added",
		ArgsUsage: "PORT[-PORT]/tcp|udp|sctp...",
		Flags:     []cli.Flag{sourceFlag(), instanceFlag()},
		Action: func(c *cli.Context) error {
			ranges, err := portRanges(c)
			if err != nil {
				return err
			}
			return env.editPorts(c, false, func(ctx context.Context, api ports.API, dryRun bool) (ports.Result, error) {
				return api.Remove(ctx, ranges, dryRun)
			})
		},
	}
}

func portsDefaultCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "default",
		Usage:     "what happens to packets without a rule",
		ArgsUsage: "[pass|drop]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "established", Usage: "let TCP pass that doesn't open a connection; --established=false ends it"},
			&cli.BoolFlag{Name: "strict", Usage: "treat ARP, ICMP, ND, DHCP and what isn't IP like everything else; --strict=false ends it"},
			instanceFlag(),
		},
		Action: func(c *cli.Context) error {
			change, err := defaultChange(c)
			if err != nil {
				return err
			}
			return env.editPorts(c, true, func(ctx context.Context, api ports.API, dryRun bool) (ports.Result, error) {
				return api.Default(ctx, change, dryRun)
			})
		},
	}
}

func portsListCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "the rules, and what they have passed and dropped",
		Flags: []cli.Flag{instanceFlag()},
		Action: func(c *cli.Context) error {
			if err := args(c); err != nil {
				return err
			}
			p, b, err := env.open(c)
			if err != nil {
				return err
			}
			defer b.Close()
			name := c.String("instance")
			api, err := b.Ports(name)
			if err != nil {
				return err
			}
			listing, err := api.List(c.Context)
			if errors.Is(err, fault.ErrNotFound) {
				return fault.New(fault.ErrNotFound, "%w", err).Hint("bpfnet ports allow 80/tcp loads it")
			}
			if err != nil {
				return err
			}
			return printPorts(p, ports.NewDocument(name, ports.Result{Listing: listing}, c.Bool("dry-run")))
		},
	}
}

func sourceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "source", Usage: "the ports are source ports"}
}

func instanceFlag() cli.Flag {
	return &cli.StringFlag{Name: "instance", Value: portFilter, Usage: "loaded instance `NAME`"}
}

func portRanges(c *cli.Context) ([]ports.Range, error) {
	if err := args(c, "PORT/PROTOCOL..."); err != nil {
		return nil, err
	}
	side := ports.Destination
	if c.Bool("source") {
		side = ports.Source
	}
	var ranges []ports.Range
	for _, text := range c.Args().Slice() {
		r, err := ports.ParseRange(text, side)
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func defaultChange(c *cli.Context) (ports.DefaultChange, error) {
	var change ports.DefaultChange
	if err := args(c, "[pass|drop]"); err != nil {
		return change, err
	}
	switch verdict := c.Args().First(); verdict {
	case "pass", "drop":
		drop := verdict == "drop"
		change.Drop = &drop
	case "":
	default:
		return change, usage(c, "unknown verdict %q: it is pass or drop", verdict)
	}
	change.Established, change.Strict = givenBool(c, "established"), givenBool(c, "strict")
	if change == (ports.DefaultChange{}) {
		return change, usage(c, "nothing to change: give pass, drop, --established or --strict")
	}
	return change, nil
}

// givenBool is a flag's value, nil if it isn't given.
func givenBool(c *cli.Context, name string) *bool {
	if !c.IsSet(name) {
		return nil
	}
	value := c.Bool(name)
	return &value
}

// portsEdit is a change of a policy.
type portsEdit func(ctx context.Context, api ports.API, dryRun bool) (ports.Result, error)

// editPorts changes the policy of the instance that is asked for and prints it.
// With load, port-filter is loaded first if it isn't there, and unloaded again
// if the change fails.
func (e *Env) editPorts(c *cli.Context, load bool, edit portsEdit) error {
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	name := c.String("instance")
	api, loaded, err := e.portsAPI(c, b, name, load)
	if err != nil {
		return err
	}
	result, err := edit(c.Context, api, c.Bool("dry-run"))
	if err != nil {
		if loaded && !c.Bool("dry-run") {
			return cleanUp(err, b, name)
		}
		return err
	}
	result.Changed = result.Changed || loaded
	e.done(c, p, done{changed: result.Changed, did: "changed the policy of " + name, already: name + " has that policy already"})
	if err := printPorts(p, ports.NewDocument(name, result, c.Bool("dry-run"))); err != nil {
		return err
	}
	return e.noteUnattached(c, b, name)
}

// portsAPI returns what the change is made with. If port-filter isn't loaded, it
// is loaded under its own name with load, and the change is only planned
// without. loaded says whether that was done, or with --dry-run would be.
func (e *Env) portsAPI(c *cli.Context, b Backend, name string, load bool) (api ports.API, loaded bool, err error) {
	_, err = b.Attachments(c.Context, name)
	missing := name == portFilter && errors.Is(err, fault.ErrNotFound)
	if err != nil && !missing {
		return nil, false, err
	}
	if missing && !load {
		return ports.Unloaded(), false, nil
	}
	if missing {
		loaded, err = e.loadPorts(c, b)
		if err != nil || c.Bool("dry-run") {
			return ports.Unloaded(), loaded, err
		}
	}
	api, err = b.Ports(name)
	return api, loaded, err
}

func (e *Env) loadPorts(c *cli.Context, b Backend) (bool, error) {
	dryRun := c.Bool("dry-run")
	loaded, err := b.Load(c.Context, datapath.LoadRequest{Source: portFilter, Name: portFilter, DryRun: dryRun})
	if err != nil {
		return false, err
	}
	e.notes(c, loaded.Notes)
	if dryRun {
		e.note(c, "note: would load %s", portFilter)
	} else if loaded.Changed {
		e.note(c, "note: loaded %s", portFilter)
	}
	return loaded.Changed, nil
}

func printPorts(p *output.Printer, doc ports.Document) error {
	return p.Object(doc, func() output.Table { return portsTable(doc) })
}

// noteUnattached says how to attach a filter that filters nothing yet.
func (e *Env) noteUnattached(c *cli.Context, b Backend, name string) error {
	attachments, err := b.Attachments(c.Context, name)
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(attachments) == 0 {
		e.note(c, "note: %s is not attached, so nothing is filtered: bpfnet attach tc %s --dev DEVICE --direction ingress", name, name)
	}
	return nil
}

// portsTable shows the rules, then what no rule decided. Reasons that the policy
// rules out and that nothing was counted for are left out.
func portsTable(d ports.Document) output.Table {
	t := output.Table{Header: []string{"rule", "verdict", "ports", "side", "packets", "bytes"}}
	for _, r := range d.Rules {
		t.Rows = append(t.Rows, portsRow(strconv.Itoa(int(r.Number)), r.Verdict, r.Ports, r.Side, r.Counter))
	}
	for _, row := range d.Rows {
		if row.Packets > 0 || row.Row == "default_"+d.Default || row.Row == "established" && d.Established {
			t.Rows = append(t.Rows, portsRow(row.Row, row.Verdict, "", "", row.Counter))
		}
	}
	return t
}

func portsRow(name, verdict, ports, side string, counter ports.Counter) []string {
	return []string{name, verdict, ports, side, output.Count(counter.Packets), output.Bytes(counter.Bytes)}
}

// portsStream shows the policy of a loaded instance.
func portsStream(b Backend, p *output.Printer, instance string) (stream, error) {
	api, err := b.Ports(instance)
	if err != nil {
		return stream{}, err
	}
	var doc ports.Document
	return stream{
		sample: func(ctx context.Context) error {
			listing, err := api.List(ctx)
			if err != nil {
				return err
			}
			doc = ports.NewDocument(instance, ports.Result{Listing: listing}, false)
			return nil
		},
		show: func() error { return p.Event(doc, func() output.Table { return portsTable(doc) }) },
	}, nil
}
