package commands

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/bpf"
	"bpfnet/completions"
	"bpfnet/internal/alert"
	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/flow"
	"bpfnet/internal/sink"
	"bpfnet/internal/traffic"
	"bpfnet/output"
	"bpfnet/pinned"
)

// completeWord is the hidden command that the shell scripts call:
// "bpfnet __complete -- WORD…" with the words of the line after "bpfnet", the
// one being typed last. It prints a line for each candidate, a tab and what it
// means behind it, and at most one of the directives.
const completeWord = "__complete"

// The directives: the shell itself knows what comes here.
const (
	completeFiles = ":files"
	completeDirs  = ":dirs"
)

// completionCommand prints a shell's script.
func completionCommand(env *Env) *cli.Command {
	command := &cli.Command{Name: "completion", Usage: "print the completion script of a shell"}
	for _, shell := range completions.Shells() {
		command.Subcommands = append(command.Subcommands, &cli.Command{
			Name:        shell,
			Usage:       "for " + shell,
			Description: completions.Usage(shell),
			Action: func(c *cli.Context) error {
				if err := args(c); err != nil {
					return err
				}
				_, err := fmt.Fprint(env.Stdout, completions.Script(shell))
				return err
			},
		})
	}
	return command
}

func completeCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:   completeWord,
		Hidden: true,
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) > 0 && words[0] == "--" {
				words = words[1:]
			}
			_, err := fmt.Fprint(env.Stdout, complete(env, words))
			return err
		},
	}
}

// completer finds what may stand at the end of a command line.
type completer struct {
	env  *Env
	root *node
	line line
	word string // as far as it is typed
}

// complete returns the candidates for the last of the words, a line each.
func complete(env *Env, words []string) string {
	if len(words) == 0 {
		words = []string{""}
	}
	before, word := words[:len(words)-1], words[len(words)-1]
	co := completer{env: env, root: grammar(newApp(env)), word: word}
	var b strings.Builder
	for _, candidate := range co.candidates(before) {
		if strings.HasPrefix(candidate, word) || strings.HasPrefix(candidate, ":") {
			name, about, described := strings.Cut(candidate, "\t")
			b.WriteString(output.Escape(name))
			if described {
				b.WriteString("\t" + output.Escape(about))
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func (co *completer) candidates(before []string) []string {
	last := len(before) - 1
	if last >= 0 && isFlag(before[last]) && !slices.Contains(before, "--") {
		co.line, _ = parse(co.root, before[:last]) // what is wrong is still being typed
		if f := splitFlag(before[last]); !f.given && co.line.takesValue(co.root, f.name) {
			return co.value(f.name)
		}
	}
	co.line, _ = parse(co.root, before)
	switch {
	case slices.Contains(before, "--"):
		return co.argument()
	case isFlag(co.word) || co.word == "-":
		return co.flag()
	case len(co.line.node.words) > 0:
		return about(co.line.node.words)
	}
	return co.argument()
}

// flag completes a flag, or the value behind its "=".
func (co *completer) flag() []string {
	if f := splitFlag(co.word); f.given {
		var joined []string
		for _, value := range co.value(f.name) {
			if !strings.HasPrefix(value, ":") {
				joined = append(joined, dashed(f.name)+"="+value)
			}
		}
		return joined
	}
	return append(co.line.node.flagWords(), co.root.flagWords()...)
}

// flagWords are the long flags of a command with what they mean.
func (n *node) flagWords() []string {
	var words []string
	for _, name := range keys(n.flags) {
		if len(name) > 1 && name != "help" {
			words = append(words, dashed(name)+"\t"+n.about[name])
		}
	}
	return words
}

func about(commands map[string]*node) []string {
	var words []string
	for _, name := range keys(commands) {
		words = append(words, name+"\t"+commands[name].usage)
	}
	return words
}

// value completes the value of a flag.
func (co *completer) value(flag string) []string {
	switch flag {
	case "output", "o":
		return output.Formats()
	case "dev":
		names, _ := co.env.Interfaces() // no names, no candidates
		return names
	case "pod", "container":
		return co.endpointNames(flag)
	case "direction":
		return []string{string(datapath.Ingress), string(datapath.Egress), string(datapath.Both)}
	case "mode":
		return []string{string(datapath.ModeAuto), string(datapath.ModeNative), string(datapath.ModeGeneric), string(datapath.ModeOffload)}
	case "sort":
		return co.sortFields()
	case "observe":
		return []string{string(traffic.TC), string(traffic.Cgroup)}
	case "type":
		return typeCandidates(co.line.path)
	case "inner":
		return co.maps()
	case "rule":
		return alert.Rules()
	case "sink":
		return sink.Kinds()
	case "silence":
		return co.labels()
	case "backend":
		return flowBackends
	case "mechanism":
		return co.mechanisms()
	case "by":
		if slices.Contains(co.line.path, "connections") {
			return flow.CountDimensions()
		}
		return flow.Dimensions()
	case "proto":
		return flowTransports
	case "state":
		return flow.States()
	case "name", "instance", "peers-instance", "before", "after":
		return co.loaded()
	case "prog":
		return co.programs()
	case "set":
		return co.parameters()
	case "max-entries":
		return co.mapSizes()
	case "bpffs", "cgroup":
		return []string{completeDirs}
	case "netns", "btf", "replay", "config", "merge", "baseline", "cri-socket", "docker-socket", "web-config":
		return []string{completeFiles}
	}
	return nil
}

// labels are what matchers begin with.
func (co *completer) labels() (words []string) {
	for _, name := range alert.LabelNames() {
		words = append(words, name+"=")
	}
	return words
}

// sortFields are the columns that the command can sort by.
func (co *completer) sortFields() []string {
	if slices.Contains(co.line.path, "map") {
		return []string{"change", "key"}
	}
	if slices.Contains(co.line.path, "blocklist") {
		return entryFields.Names()
	}
	if slices.Contains(co.line.path, "counters") || slices.Contains(co.line.args, xdpCounter) {
		return counter.SortFields()
	}
	return traffic.SortFields()
}

// argument completes an argument by the command that it is for.
func (co *completer) argument() []string {
	if slices.Contains([]string{"map import", "map pin"}, strings.Join(co.line.path, " ")) && len(co.line.args) == 1 {
		return []string{completeFiles}
	}
	if len(co.line.path) == 0 {
		return nil
	}
	if len(co.line.args) > 0 {
		return co.nextArgument()
	}
	switch co.line.path[0] {
	case "load":
		return append(builtinWords(), completeFiles)
	case "run":
		return builtinWords()
	case "map":
		if slices.Contains(co.line.path, "unpin") || slices.Contains(co.line.path, "create") {
			return []string{completeFiles}
		}
		return co.maps()
	case "ports":
		return co.verdicts()
	case "attach", "detach", "unload", "status", "prog", "link":
		return co.loaded()
	case "baseline":
		if !slices.Contains(co.line.path, "learn") {
			return []string{completeFiles}
		}
	case "net":
		return []string{"dev"}
	case "cgroup":
		return []string{completeDirs}
	case "endpoint":
		return co.endpoints()
	}
	return nil
}

// endpoints completes what an endpoint is looked for by.
func (co *completer) endpoints() []string {
	if slices.Contains(co.line.path, "list") {
		return nil
	}
	words := []string{"pid:", "pod:", "container:", "cgroup:", "netns:"}
	for _, device := range co.value("dev") {
		words = append(words, "dev:"+device)
	}
	return words
}

// longestLook is how long names may take that somebody waits for.
const longestLook = 100 * time.Millisecond

// endpointNames completes a Pod or a container.
func (co *completer) endpointNames(kind string) []string {
	ctx, cancel := context.WithTimeout(context.Background(), longestLook)
	defer cancel()
	b, err := co.env.Open(ctx, Options{})
	if err != nil {
		return nil
	}
	defer b.Close()
	var names []string
	found, _ := b.Endpoints().List(ctx) // no endpoints, no candidates
	for _, e := range found.Endpoints {
		if kind == "pod" && e.Kind == endpoint.KindPod {
			names = append(names, podName(e.Pod.Namespace, e.Pod.Name, &e.Pod.UID))
		}
		for _, one := range e.Containers {
			if kind == "container" {
				names = append(names, containerName(one))
			}
		}
	}
	return names
}

// nextArgument completes an argument that others stand before.
func (co *completer) nextArgument() []string {
	switch args := co.line.args; co.line.path[0] {
	case "net":
		if slices.Equal(args, []string{"dev"}) {
			return co.value("dev")
		}
	case "baseline":
		if len(args) == 1 && slices.Contains(co.line.path, "diff") {
			return []string{completeFiles}
		}
	case "cgroup":
		if len(args) == 1 {
			return []string{"effective"}
		}
	}
	return nil
}

func builtinWords() []string {
	var words []string
	for _, p := range bpf.Catalogue() {
		words = append(words, p.Name+"\t"+p.Summary)
	}
	return words
}

func (co *completer) verdicts() []string {
	if slices.Contains(co.line.path, "default") {
		return []string{"pass", "drop"}
	}
	return nil
}

// state is what is pinned below the root that the line names.
func (co *completer) state() State {
	root := co.env.Getenv("BPFNET_BPFFS")
	for _, f := range co.line.flags {
		if f.name == "bpffs" {
			root = f.value
		}
	}
	if root == "" {
		root = pinned.DefaultRoot
	}
	return co.env.State(root)
}

func (co *completer) loaded() []string {
	names, _ := co.state().Names() // what can't be read has no candidates
	return names
}

func (co *completer) maps() []string {
	state := co.state()
	var refs []string
	for _, name := range co.loaded() {
		maps, _ := state.List(name, pinned.Maps)
		for _, m := range maps {
			refs = append(refs, name+"/"+m)
		}
	}
	return refs
}

// programs completes the functions of the loaded instance that is named.
func (co *completer) programs() []string {
	if len(co.line.args) == 0 {
		return nil
	}
	names, _ := co.state().List(co.line.args[0], pinned.Progs)
	return names
}

func (co *completer) parameters() []string {
	var words []string
	if program, ok := co.builtin(); ok {
		for _, parameter := range program.Parameters {
			words = append(words, parameter.Name+"=\t"+parameter.Summary)
		}
	}
	return words
}

func (co *completer) mechanisms() []string {
	program, _ := co.builtin()
	return bpf.MechanismNames(program.Mechanisms)
}

func (co *completer) mapSizes() []string {
	var words []string
	if program, ok := co.builtin(); ok {
		for _, m := range program.Maps {
			words = append(words, m.Name+"=\t"+m.Summary)
		}
	}
	return words
}

// builtin is the built-in program that the line names.
func (co *completer) builtin() (bpf.Program, bool) {
	if len(co.line.args) == 0 {
		return bpf.Program{}, false
	}
	return bpf.Lookup(co.line.args[0])
}
