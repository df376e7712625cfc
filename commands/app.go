package commands

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
	"bpfnet/output"
)

// defaultLockTimeout is how long a writer waits for another one.
const defaultLockTimeout = 10 * time.Second

// Run runs one command line, without the program's name, and returns the exit
// code. Cancelling ctx is how a signal reaches a command.
func Run(ctx context.Context, env *Env, argv []string) int {
	app := newApp(env)
	root := grammar(app)
	if len(argv) > 0 && argv[0] == "help" {
		argv = append(argv[1:len(argv):len(argv)], "--help")
	}
	l, err := parse(root, argv)
	var ordered []string
	if err == nil {
		ordered, err = l.order(root)
	}
	if err == nil {
		err = app.RunContext(ctx, append([]string{app.Name}, ordered...))
	}
	_, debug := l.flag("debug")
	return report(env.Stderr, err, l.format(env), debug)
}

// format is how errors are written: as results are, and as lines when that
// can't be told.
func (l line) format(env *Env) output.Format {
	name, ok := l.flag("output", "o")
	if !ok {
		name = env.Getenv("BPFNET_OUTPUT")
	}
	format, err := output.ParseFormat(name)
	if err != nil {
		return output.FormatTable
	}
	return format
}

// newApp builds the command tree. Nothing of it is shared between two calls.
func newApp(env *Env) *cli.App {
	app := &cli.App{
		Name:      "bpfnet",
		Usage:     "watch and control the network traffic of containers and Pods with eBPF",
		Writer:    env.Stdout,
		ErrWriter: env.Stderr,
		Reader:    env.Stdin,
		Flags:     globalFlags(),
		Commands:  commandTree(env),
	}
	cure(app, env)
	return app
}

func commandTree(env *Env) []*cli.Command {
	return []*cli.Command{
		loadCommand(env),
		attachCommand(env),
		detachCommand(env),
		unloadCommand(env),
		progCommand(env),
		linkCommand(env),
		statusCommand(env),
		runCommand(env),
		mapCommand(env),
		watchCommand(env),
		portsCommand(env),
		programsCommand(env),
		doctorCommand(env),
		completionCommand(env),
		completeCommand(env),
		versionCommand(env),
	}
}

func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT` of results: table, json, yaml or ndjson (environment: BPFNET_OUTPUT; default: table)"},
		&cli.StringFlag{Name: "bpffs", Usage: "`DIR` that holds bpfnet's state (environment: BPFNET_BPFFS; default: /sys/fs/bpf/bpfnet)"},
		&cli.StringFlag{Name: "netns", Usage: "run against the network namespace `NAME|PATH|PID`"},
		&cli.DurationFlag{Name: "lock-timeout", Value: defaultLockTimeout, Usage: "how `LONG` to wait for another bpfnet that is changing things"},
		&cli.BoolFlag{Name: "dry-run", Usage: "verify and show what would be done, change nothing"},
		&cli.BoolFlag{Name: "mount", Usage: "mount bpffs on /sys/fs/bpf if it isn't mounted"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no notes on stderr"},
		&cli.BoolFlag{Name: "debug", Usage: "show the whole log of the verifier"},
		&cli.BoolFlag{Name: "version", Usage: "print the version"},
	}
}

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
			if !c.IsSet(name) {
				return usage(c, "flag %s is missing", dashed(name))
			}
		}
		return action(c)
	}
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
	for _, f := range append(c.Command.Flags, c.App.Flags...) {
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

// usage returns a usage error that points to the command's help.
func usage(c *cli.Context, format string, args ...any) *fault.Error {
	return fault.New(fault.ErrUsage, format, args...).Hint("see: %s --help", commandName(c))
}

// args checks the arguments of a command against their names: "MAP" has to be
// there, "[NAME]" may be, "RULE..." is one or more.
func args(c *cli.Context, names ...string) error {
	least, most := 0, len(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "[") {
			least++
		}
		if strings.HasSuffix(strings.TrimSuffix(name, "]"), "...") {
			most = c.NArg()
		}
	}
	line := strings.Join(append([]string{"usage:", commandName(c)}, names...), " ")
	if n := c.NArg(); n < least {
		return fault.New(fault.ErrUsage, "argument %s is missing", strings.TrimSuffix(names[n], "...")).Hint("%s", line)
	} else if n > most {
		return fault.New(fault.ErrUsage, "unexpected argument %q", c.Args().Get(most)).Hint("%s", line)
	}
	return nil
}

// ticks says when a stream takes its samples.
type ticks struct {
	interval time.Duration
	count    int // 0: until interrupted
}

// tickFlags are the flags of streams; read them with readTicks.
func tickFlags(interval time.Duration) []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: "interval", Value: interval, Usage: "`TIME` between two samples"},
		&cli.IntFlag{Name: "count", Usage: "end after `N` samples"},
		&cli.BoolFlag{Name: "once", Usage: "one sample, the same as --count 1"},
	}
}

// readTicks reads tickFlags.
func readTicks(c *cli.Context) (ticks, error) {
	t := ticks{interval: c.Duration("interval"), count: c.Int("count")}
	if t.interval < 10*time.Millisecond {
		return t, usage(c, "--interval %s is too short: the least is 10ms", t.interval)
	}
	if t.count < 0 || c.IsSet("count") && t.count == 0 {
		return t, usage(c, "--count %d: the least is 1", t.count)
	}
	if c.Bool("once") {
		if t.count > 1 {
			return t, usage(c, "--once and --count %d exclude each other", t.count)
		}
		t.count = 1
	}
	return t, nil
}

// run calls fn after each interval, count times or until ctx ends, which is a
// clean end.
func (t ticks) run(ctx context.Context, fn func() error) error {
	ticker := time.NewTicker(t.interval)
	defer ticker.Stop()
	for n := 0; t.count == 0 || n < t.count; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := fn(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	return nil
}
