package commands

import (
	"cmp"
	"context"
	"io"
	"slices"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/output"
)

// Run runs one command line, without the program's name, and returns the exit
// code. Cancelling ctx is how a signal reaches a command.
func Run(ctx context.Context, env *Env, argv []string) int {
	if len(argv) > 0 && argv[0] == "help" {
		argv = append(argv[1:len(argv):len(argv)], "--help")
	}
	app := newPartOfApp(env, firstCommand(argv))
	root := grammar(app)
	l, err := parse(root, argv)
	l.showByDefault()
	var ordered []string
	if err == nil {
		ordered, err = l.order(root)
	}
	if err == nil {
		help := &memory{Writer: env.Stdout}
		app.Writer = help
		err = cmp.Or(app.RunContext(ctx, append([]string{app.Name}, ordered...)), help.err)
	}
	_, debug := l.flag("debug")
	return report(env.Stderr, err, l.format(env), debug)
}

// memory is a writer that remembers its first error: who prints help doesn't
// look at it.
type memory struct {
	io.Writer
	err error
}

func (m *memory) Write(p []byte) (int, error) {
	n, err := m.Writer.Write(p)
	m.err = cmp.Or(m.err, err)
	return n, err
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
func newApp(env *Env) *cli.App { return newPartOfApp(env, "") }

// newPartOfApp builds the command tree with one command below the root, because
// building all of them takes longer than most commands; all of them for "".
func newPartOfApp(env *Env, only string) *cli.App {
	app := &cli.App{
		Name:      "bpfnet",
		Usage:     "watch and control the network traffic of containers and Pods with eBPF",
		ErrWriter: env.Stderr,
		Reader:    env.Stdin,
		Flags:     globalFlags(),
		Commands:  commandTree(env, only),
	}
	cure(app, env)
	return app
}

// builder makes one of the commands below the root.
type builder struct {
	name  string
	build func(*Env) *cli.Command
}

// builders lists the commands below the root in the order of help.
func builders() []builder {
	return []builder{
		{"load", loadCommand},
		{"attach", attachCommand},
		{"detach", detachCommand},
		{"unload", unloadCommand},
		{"prog", progCommand},
		{"link", linkCommand},
		{"net", netCommand},
		{"cgroup", cgroupCommand},
		{"endpoint", endpointCommand},
		{"status", statusCommand},
		{"run", runCommand},
		{"map", mapCommand},
		{"watch", watchCommand},
		{"connections", connectionsCommand},
		{"flows", flowsCommand},
		{"baseline", baselineCommand},
		{"export", exportCommand},
		{"ports", portsCommand},
		{"blocklist", blocklistCommand},
		{"programs", programsCommand},
		{"doctor", doctorCommand},
		{"completion", completionCommand},
		{completeWord, completeCommand},
		{"version", versionCommand},
	}
}

// commandTree builds the commands below the root, or only the one of that name.
func commandTree(env *Env, only string) []*cli.Command {
	var tree []*cli.Command
	for _, b := range builders() {
		if only == "" || only == b.name {
			tree = append(tree, b.build(env))
		}
	}
	return tree
}

// firstCommand returns the name of the command below the root that a command
// line is certain to run: only global flags stand before it. Else "".
func firstCommand(argv []string) string {
	if len(argv) == 0 || !isFlag(argv[0]) {
		return knownCommand(argv)
	}
	root := nodeOf(&cli.Command{Flags: globalFlags()})
	l := line{node: root}
	for i := 0; i < len(argv); i++ {
		if !isFlag(argv[i]) {
			return knownCommand(argv[i:])
		}
		f := splitFlag(argv[i])
		takesValue, global := root.flags[f.name]
		if !global && !l.isCluster(root, argv[i]) {
			return ""
		}
		if takesValue && !f.given {
			i++
		}
	}
	return ""
}

// knownCommand returns the first word when it is the name of a command.
func knownCommand(argv []string) string {
	if slices.ContainsFunc(builders(), func(b builder) bool { return len(argv) > 0 && b.name == argv[0] }) {
		return argv[0]
	}
	return ""
}

func globalFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FORMAT` of results: table, json, yaml or ndjson (environment: BPFNET_OUTPUT; default: table)"},
		&cli.BoolFlag{Name: "json", Aliases: []string{"j"}, Usage: "JSON on one line; in the commands that bpftool has, its field names and shapes"},
		&cli.BoolFlag{Name: "pretty", Aliases: []string{"p"}, Usage: "the same as --json, indented"},
		&cli.StringFlag{Name: "bpffs", Usage: "`DIR` that holds bpfnet's state (environment: BPFNET_BPFFS; default: /sys/fs/bpf/bpfnet)"},
		&cli.StringFlag{Name: "netns", Usage: "run against the network namespace `NAME|PATH|PID|container:ID|pod:NAMESPACE/NAME`"},
		&cli.StringFlag{Name: "cri-socket", Usage: "`SOCKET` of CRI or containerd to ask for names (environment: CONTAINER_RUNTIME_ENDPOINT; default: the usual places)"},
		&cli.StringFlag{Name: "docker-socket", Usage: "`SOCKET` of Docker or Podman to ask for names (environment: DOCKER_HOST; default: the usual places)"},
		&cli.DurationFlag{Name: "lock-timeout", Value: datapath.DefaultLockTimeout, Usage: "`TIME` to wait for another bpfnet that is changing things"},
		&cli.BoolFlag{Name: "dry-run", Usage: "verify and show what would be done, change nothing"},
		&cli.BoolFlag{Name: "mount", Usage: "mount bpffs on /sys/fs/bpf if it isn't mounted"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no notes on stderr"},
		&cli.BoolFlag{Name: "debug", Usage: "show the whole log of the verifier"},
		&cli.BoolFlag{Name: "version", Usage: "print the version"},
	}
}
