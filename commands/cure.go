package commands

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/output"
)

// cure takes urfave/cli's habits out of the tree that scripts would trip over:
// help and usage errors on stdout, a "help" subcommand that any argument of
// that name reaches, exits from inside of Run, slice flags split at commas,
// parents that succeed without a subcommand.
func cure(app *cli.App, env *Env) {
	app.HideVersion = true
	app.HideHelp = true
	app.DisableSliceFlagSeparator = true
	app.ExitErrHandler = func(*cli.Context, error) {}
	app.OnUsageError = usageError
	app.Flags = append(app.Flags, helpFlag())
	hideFalse(app.Flags)
	app.Action = env.bare
	for _, command := range app.Commands {
		cureCommand(command, env)
	}
}

func cureCommand(command *cli.Command, env *Env) {
	command.HideHelp = true
	template := cli.CommandHelpTemplate
	if len(command.Subcommands) > 0 {
		template = cli.SubcommandHelpTemplate
		command.UsageText = "bpfnet " + command.Name + " COMMAND [options] …"
	}
	command.CustomHelpTemplate = template + "\nGLOBAL OPTIONS: see bpfnet --help\n"
	command.OnUsageError = usageError
	required := takeRequired(command.Flags)
	command.Flags = append(command.Flags, helpFlag())
	hideFalse(command.Flags)
	for _, sub := range command.Subcommands {
		cureCommand(sub, env)
	}
	if command.Action == nil {
		command.Action = env.bare
	}
	action := command.Action
	command.Action = func(c *cli.Context) error {
		if c.Bool("version") {
			return printVersion(c, env)
		}
		for _, name := range required {
			if fmt.Sprint(c.Value(name)) == "" || !c.IsSet(name) {
				return usage(c, "flag %s is missing", dashed(name))
			}
		}
		if name := emptyFlag(c); name != "" {
			return usage(c, "flag %s is empty", dashed(name))
		}
		return action(c)
	}
}

// emptyFlag returns a flag whose value is the empty string: a script's variable
// that isn't set must not mean the host's namespace, or every attachment.
func emptyFlag(c *cli.Context) string {
	for _, f := range slices.Concat(c.Command.Flags, c.App.Flags) {
		if s, ok := f.(*cli.StringFlag); ok && c.IsSet(s.Name) && c.String(s.Name) == "" {
			return s.Name
		}
	}
	return ""
}

func helpFlag() cli.Flag {
	return &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show help"}
}

// takeRequired returns the names of the required flags and makes them optional
// for urfave/cli, which would print help on stdout.
func takeRequired(flags []cli.Flag) []string {
	var names []string
	for _, f := range flags {
		if r, ok := f.(cli.RequiredFlag); ok && r.IsRequired() {
			names = append(names, f.Names()[0])
			reflect.ValueOf(f).Elem().FieldByName("Required").SetBool(false)
		}
	}
	return names
}

// hideFalse keeps "(default: false)" out of help.
func hideFalse(flags []cli.Flag) {
	for _, f := range flags {
		if b, ok := f.(*cli.BoolFlag); ok {
			b.DisableDefaultText = true
		}
	}
}

// bare is the action of a command that needs a subcommand.
func (e *Env) bare(c *cli.Context) error {
	if c.Bool("version") {
		return printVersion(c, e)
	}
	p, err := e.printer(c)
	if err != nil {
		return err
	}
	if p.Format() == output.FormatTable {
		c.App.Writer = e.Stderr
		if err := showHelp(c); err != nil {
			return err
		}
	}
	return fault.New(fault.ErrUsage, "a command is missing after %q", commandName(c)).
		Hint("one of: %s", strings.Join(visible(c), ", "))
}

func showHelp(c *cli.Context) error {
	if len(c.Lineage()) <= 2 {
		return cli.ShowAppHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

func visible(c *cli.Context) []string {
	var names []string
	for _, sub := range c.Command.VisibleCommands() {
		names = append(names, sub.Name)
	}
	return names
}

// commandName is the command as typed, "bpfnet attach xdp".
func commandName(c *cli.Context) string {
	if c.Command.HelpName == "" {
		return "bpfnet"
	}
	return c.Command.HelpName
}

// usageError is how a flag ends whose value doesn't parse.
func usageError(c *cli.Context, err error, _ bool) error {
	value, name, ok := refusedValue(err.Error())
	if !ok {
		return usage(c, "%s", err)
	}
	problem := fault.New(fault.ErrUsage, "%s %q: not such a value", dashed(name), value)
	for _, f := range slices.Concat(c.Command.Flags, c.App.Flags) {
		if slices.Contains(f.Names(), name) {
			return problem.Hint("%s", wanted(f))
		}
	}
	return problem
}

// refusedValue takes the text of package flag's error apart.
func refusedValue(text string) (value, name string, ok bool) {
	for _, format := range []string{"invalid value %q for flag -%s", "invalid boolean value %q for -%s"} {
		if n, _ := fmt.Sscanf(text, format, &value, &name); n == 2 {
			return value, strings.TrimSuffix(name, ":"), true
		}
	}
	return "", "", false
}

// wanted says what a flag's value looks like.
func wanted(f cli.Flag) string {
	switch f.(type) {
	case *cli.DurationFlag:
		return "a time is a number with its unit: 500ms, 2s, 1m"
	case *cli.BoolFlag:
		return "this flag stands alone, or with =true or =false"
	case *cli.Float64Flag:
		return "a number"
	}
	return "a whole number"
}
