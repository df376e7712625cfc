package commands

import (
	"context"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/output"
)

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
	if _, ok := l.flag("json", "j", "pretty", "p"); ok {
		return output.FormatCompact
	}
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
		&cli.BoolFlag{Name: "json", Aliases: []string{"j"}, Usage: "JSON on one line; in the commands that bpftool has, its field names and shapes"},
		&cli.BoolFlag{Name: "pretty", Aliases: []string{"p"}, Usage: "the same as --json, indented"},
		&cli.StringFlag{Name: "bpffs", Usage: "`DIR` that holds bpfnet's state (environment: BPFNET_BPFFS; default: /sys/fs/bpf/bpfnet)"},
		&cli.StringFlag{Name: "netns", Usage: "run against the network namespace `NAME|PATH|PID`"},
		&cli.DurationFlag{Name: "lock-timeout", Value: datapath.DefaultLockTimeout, Usage: "`TIME` to wait for another bpfnet that is changing things"},
		&cli.BoolFlag{Name: "dry-run", Usage: "verify and show what would be done, change nothing"},
		&cli.BoolFlag{Name: "mount", Usage: "mount bpffs on /sys/fs/bpf if it isn't mounted"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no notes on stderr"},
		&cli.BoolFlag{Name: "debug", Usage: "show the whole log of the verifier"},
		&cli.BoolFlag{Name: "version", Usage: "print the version"},
	}
}
