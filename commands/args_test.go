package commands

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/fault"
)

func testGrammar() *node {
	var out bytes.Buffer
	return grammar(newApp(newFake().env(&out, &out)))
}

// reorder is what Run does with a command line before urfave/cli sees it.
func reorder(root *node, argv []string) ([]string, error) {
	l, err := parse(root, argv)
	if err != nil {
		return nil, err
	}
	l.showByDefault()
	return l.order(root)
}

func TestReorder(t *testing.T) {
	root := testGrammar()
	for _, test := range []struct{ name, in, want string }{
		{"nothing", "", ""},
		{"in order already", "-o json attach xdp x", "-o=json attach xdp -- x"},
		{"local flag behind the argument", "attach xdp x --mode native --dev eth0", "attach xdp --mode=native --dev=eth0 -- x"},
		{"global flag at the end", "map dump x/y -o json", "-o=json map dump -- x/y"},
		{"global flag between command and subcommand", "attach --output=yaml xdp x", "--output=yaml attach xdp -- x"},
		{"local flag before the command", "--dev eth0 attach xdp x", "attach xdp --dev=eth0 -- x"},
		{"bool takes no value", "unload --all --dry-run", "--dry-run unload --all"},
		{"bool with a value", "unload --all=false x", "unload --all=false -- x"},
		{"single dash for a long name", "attach xdp x -dev lo", "attach xdp --dev=lo -- x"},
		{"value with an equals sign", "load x --set a=b=c", "load --set=a=b=c -- x"},
		{"empty value", "load x --name=", "load --name= -- x"},
		{"value after = may begin with a dash", "load x --set=-1", "load --set=-1 -- x"},
		{"negative number as value", "load x --set -1", "load --set=-1 -- x"},
		{"word with a dash as value", "watch pods --sort -address", "watch pods --sort=-address"},
		{"negative number as argument", "map get x/y -1", "map get -- x/y -1"},
		{"dash is an argument", "map get x/y -", "map get -- x/y -"},
		{"flags of one letter behind one dash", "-jp map dump x/y", "-j -p map dump -- x/y"},
		{"bpftool's show goes without saying", "-j map", "-j map show"},
		{"so it does for its flags", "net --dev lo -p", "-p net show --dev=lo"},
		{"but not for help", "-j map --help", "map --help"},
		{"nor in our own dialect", "map", "map"},
		{"a format joined to -o", "map -ojson dump x/y", "-o=json map dump -- x/y"},
		{"-- ends flags", "map get x/y -- --output", "map get -- x/y --output"},
		{"-- twice", "map get -- -- x", "map get -- -- x"},
		{"argument named like a command", "unload load", "unload -- load"},
		{"argument named like a flag", "unload all", "unload -- all"},
		{"help drops the arguments", "map get x --help", "map get --help"},
		{"help in front", "-h attach", "attach --help"},
		{"completion words are arguments", "__complete -- attach xdp --de", "__complete -- -- attach xdp --de"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := reorder(root, strings.Fields(test.in))
			if err != nil || strings.Join(got, " ") != test.want {
				t.Errorf("reorder(%q) = %q, %v; want %q", test.in, strings.Join(got, " "), err, test.want)
			}
		})
	}
}

func TestReorderErrors(t *testing.T) {
	root := testGrammar()
	for _, test := range []struct{ in, message, hint string }{
		{"attach xdp x --dev", "flag --dev needs a value", "a value that begins with a dash is written --dev=VALUE"},
		{"--bpffs", "flag --bpffs needs a value", "a value that begins with a dash is written --bpffs=VALUE"},
		{"attach xdp x --dev --mode native", "flag --dev needs a value", "a value that begins with a dash is written --dev=VALUE"},
		{"attach xdp x -o", "flag -o needs a value", "a value that begins with a dash is written -o=VALUE"},
		{"attach xdp x --devv eth0", "unknown flag --devv", "did you mean --dev?"},
		{"attach xdp x --outptu json", "unknown flag --outptu", "did you mean --output?"},
		{"attach xdp x --zzzzzzzz", "unknown flag --zzzzzzzz", "see: bpfnet attach xdp --help"},
		{"-jz map dump x/y", "unknown flag --jz", "see: bpfnet map dump --help"},
		{"-jo map dump x/y", "unknown flag --jo", "see: bpfnet map dump --help"},
		{"map dump x/y -oxml", "unknown flag --oxml", "see: bpfnet map dump --help"},
		{"attach xdp x -z", "unknown flag -z", "see: bpfnet attach xdp --help"},
		{"attach xdp x --direction egress", "unknown flag --direction", "see: bpfnet attach xdp --help"},
		{"atach xdp x", `unknown command "atach"`, `did you mean "attach"?`},
		{"attach xpd x", `unknown command "attach xpd"`, `did you mean "xdp"?`},
		{"frobnicate", `unknown command "frobnicate"`, "see: bpfnet --help"},
		{"frobnicate --help", `unknown command "frobnicate"`, "see: bpfnet --help"},
		{"-- status", `a command is missing before "--"`, `did you mean "bpfnet status", without the "--"?`},
		{"attach -- xdp x", `a command is missing before "--"`, `did you mean "bpfnet attach xdp", without the "--"?`},
		{"attach xdp x --prog a --prog b", `flag --prog is given twice: "a" and "b"`, "see: bpfnet attach xdp --help"},
		{"-o json status --output yaml", `flag --output is given twice: "json" and "yaml"`, "see: bpfnet status --help"},
		{"unload x --all --all=false", `flag --all is given twice: "true" and "false"`, "see: bpfnet unload --help"},
		{"attach xdp x --prog a --prog a", "", ""},
		{"run x --prog a --prog b", "", ""},
		{"attach xdp x --prog a --prog b --help", "", ""},
		{"--", "", ""},
	} {
		got, err := reorder(root, strings.Fields(test.in))
		if test.message == "" {
			if err != nil {
				t.Errorf("reorder(%q) = %q, %v", test.in, got, err)
			}
			continue
		}
		if !errors.Is(err, fault.ErrUsage) || err.Error() != test.message || !slices.Equal(fault.Hints(err), []string{test.hint}) {
			t.Errorf("reorder(%q) = %q, %v %q; want %q, hint %q", test.in, got, err, fault.Hints(err), test.message, test.hint)
		}
	}
}

// TestFlagsAgree checks what reorder relies on: a flag's name takes a value
// everywhere or nowhere, and no command has a global flag's name.
func TestFlagsAgree(t *testing.T) {
	root := testGrammar()
	seen := map[string]bool{}
	var walk func(path string, n *node)
	walk = func(path string, n *node) {
		for name, takes := range n.flags {
			if before, ok := seen[name]; ok && before != takes {
				t.Errorf("%s: --%s takes a value here and none elsewhere, or the other way round", path, name)
			}
			seen[name] = takes
			if _, global := root.flags[name]; global && n != root && !isHelp(name) {
				t.Errorf("%s: --%s hides the global flag", path, name)
			}
		}
		for word, sub := range n.words {
			walk(path+" "+word, sub)
		}
	}
	walk("bpfnet", root)
}

// call is what reached an action.
type call struct {
	command, dev string
	dry          bool
	args         []string
}

// recorder is a tree whose actions note what they were called with.
func recorder(got *call) *cli.App {
	action := func(c *cli.Context) error {
		*got = call{c.Command.HelpName, c.String("dev"), c.Bool("dry"), c.Args().Slice()}
		return nil
	}
	app := &cli.App{
		Name:  "bpfnet",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "dry", Aliases: []string{"d"}}},
		Commands: []*cli.Command{
			{Name: "leaf", Flags: []cli.Flag{&cli.StringFlag{Name: "dev"}}, Action: action},
			{Name: "parent", Subcommands: []*cli.Command{{Name: "leaf", Flags: []cli.Flag{&cli.StringFlag{Name: "dev"}}, Action: action}}},
		},
	}
	var out bytes.Buffer
	cure(app, newFake().env(&out, &out))
	return app
}

// FuzzReorder checks that urfave/cli sees in a reordered line what reorder saw
// in the original, and that a second reordering changes nothing.
func FuzzReorder(f *testing.F) {
	for _, seed := range []string{"leaf a b", "parent leaf --dev x a", "leaf a --dev", "--dev leaf leaf", "-d leaf -- -d --dev", "leaf --dev=-d -1 leaf", "parent --dry leaf dev", "leaf help", "leaf h --dev=="} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var got call
		app := recorder(&got)
		root := grammar(app)
		argv := strings.Fields(text)
		ordered, err := reorder(root, argv)
		if err != nil {
			if !errors.Is(err, fault.ErrUsage) || len(fault.Hints(err)) == 0 {
				t.Fatalf("reorder(%q): %v is no usage error with a hint", argv, err)
			}
			return
		}
		again, err := reorder(root, ordered)
		if err != nil || !slices.Equal(again, ordered) {
			t.Fatalf("reorder(%q) = %q, then %q, %v", argv, ordered, again, err)
		}
		l, err := parse(root, argv)
		if _, help := l.flag("help", "h"); err != nil || help || len(l.node.words) > 0 {
			return
		}
		if err := app.RunContext(context.Background(), append([]string{"bpfnet"}, ordered...)); err != nil {
			if !errors.Is(err, fault.ErrUsage) {
				t.Fatalf("run %q: %v", ordered, err)
			}
			return
		}
		dev, _ := l.flag("dev")
		want := call{command: "bpfnet " + strings.Join(l.path, " "), dev: dev, dry: got.dry, args: l.args}
		if got.command != want.command || got.dev != want.dev || !slices.Equal(got.args, want.args) {
			t.Fatalf("run %q of %q: action saw %+v, want %+v", ordered, argv, got, want)
		}
	})
}
