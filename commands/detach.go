package commands

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/fault"
	"bpfnet/output"
)

func detachCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:  "detach",
		Usage: "take a program off its hooks; it stays loaded",
		Flags: []cli.Flag{defunctFlag()},
		Subcommands: []*cli.Command{
			env.detachHook("tc", append(devFlags(), allPodsFlag(hostSide), directionFlag())...),
			env.detachHook("xdp", devFlags()...),
			env.detachHook("sockops", cgroupFlags()...),
			env.detachHook("cgroup", append(cgroupFlags(), allPodsFlag(theCgroup), directionFlag())...),
			env.detachHook("trace"),
		},
		Action: func(c *cli.Context) error {
			if !c.Bool("defunct") {
				return env.bare(c)
			}
			return env.detach(c, datapath.DetachRequest{Defunct: true}, selection{})
		},
	}
}

func defunctFlag() cli.Flag {
	return &cli.BoolFlag{Name: "defunct", Usage: "only attachments whose interface or cgroup is gone"}
}

func (e *Env) detachHook(hook string, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:      hook,
		Usage:     "every " + hook + " attachment of NAME, or those that the flags select",
		ArgsUsage: "NAME",
		Flags:     append(flags, progFlag(), defunctFlag()),
		Action: func(c *cli.Context) error {
			request, err := detachRequest(c)
			if err != nil {
				return err
			}
			target, err := selectOne(c, targetFlags(c)...)
			if err != nil {
				return err
			}
			return e.detach(c, request, target)
		},
	}
}

func detachRequest(c *cli.Context) (datapath.DetachRequest, error) {
	r := datapath.DetachRequest{
		Hook:    c.Command.Name,
		Name:    c.Args().First(),
		Program: c.String("prog"),
		Defunct: c.Bool("defunct"),
	}
	name := "NAME"
	if r.Defunct {
		name = "[NAME]"
	}
	if err := args(c, name); err != nil {
		return r, err
	}
	var err error
	r.Direction, err = direction(c)
	return r, err
}

func (e *Env) detach(c *cli.Context, request datapath.DetachRequest, target selection) error {
	request.DryRun = c.Bool("dry-run")
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	requests, err := e.detachFrom(c, b, request, target)
	if err != nil {
		return err
	}
	answer := datapath.Attached{Name: request.Name}
	if len(requests) > 0 {
		if answer, err = b.Detach(c.Context, requests...); err != nil {
			return err
		}
	}
	e.done(c, p, done{
		changed: answer.Changed,
		did:     fmt.Sprintf("detached %s", counted(len(answer.Attachments), "attachment")),
		already: "nothing to detach",
		notes:   answer.Notes,
	})
	return printAttached(p, answer, request.DryRun, "detached")
}

// counted writes a number with its noun: "1 map", "2 maps".
func counted(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

type unloadDoc struct {
	Schema string `json:"schema"`
	datapath.Unloaded
	DryRun bool `json:"dry_run"`
}

func unloadCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:      "unload",
		Usage:     "remove a loaded program and its maps",
		ArgsUsage: "NAME|--all",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "everything that is loaded"},
			&cli.BoolFlag{Name: "detach", Usage: "detach it first"},
		},
		Action: env.unload,
	}
}

func (e *Env) unload(c *cli.Context) error {
	r := datapath.UnloadRequest{Name: c.Args().First(), All: c.Bool("all"), Detach: c.Bool("detach"), DryRun: c.Bool("dry-run")}
	if err := args(c, "[NAME]"); err != nil {
		return err
	}
	if r.All == (r.Name != "") {
		return fault.New(fault.ErrUsage, "unload takes a name or --all").Hint("see: bpfnet unload --help")
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	answer, err := b.Unload(c.Context, r)
	if err != nil {
		return err
	}
	answer.Names = list(answer.Names)
	e.done(c, p, done{changed: answer.Changed, did: fmt.Sprintf("unloaded %s", counted(len(answer.Names), "program")), already: "nothing to unload"})
	return p.Object(unloadDoc{"bpfnet.unload/v1", answer, r.DryRun}, func() output.Table { return namesTable(answer.Names) })
}
