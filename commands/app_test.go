package commands

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/datapath"
	"bpfnet/internal/engine"
	"bpfnet/internal/fault"
)

// cured runs a command line on a small tree with one leaf at every depth, and
// returns what it printed on stdout.
func cured(t *testing.T, action cli.ActionFunc, argv ...string) (string, error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	flags := func() []cli.Flag {
		return []cli.Flag{&cli.StringSliceFlag{Name: "set"}, &cli.IntFlag{Name: "n", Required: true}}
	}
	app := &cli.App{
		Name:   "bpfnet",
		Writer: &stdout,
		Flags:  globalFlags(),
		Commands: []*cli.Command{
			{Name: "leaf", Flags: flags(), Action: action},
			{Name: "parent", Subcommands: []*cli.Command{{Name: "leaf", Flags: flags(), Action: action}}},
		},
	}
	cure(app, newFake().env(&stdout, &stderr))
	ordered, err := reorder(grammar(app), argv)
	if err == nil {
		err = app.RunContext(context.Background(), append([]string{"bpfnet"}, ordered...))
	}
	return stdout.String(), err
}

// TestTraps holds urfave/cli to what cure promises.
func TestTraps(t *testing.T) {
	for _, path := range [][]string{{"leaf"}, {"parent", "leaf"}} {
		line := func(words ...string) []string { return append(slices.Clone(path), words...) }

		t.Run("a missing required flag is a usage error without help", func(t *testing.T) {
			stdout, err := cured(t, func(*cli.Context) error { return nil }, line()...)
			if !errors.Is(err, fault.ErrUsage) || err.Error() != "flag -n is missing" || stdout != "" {
				t.Errorf("%v, stdout %q", err, stdout)
			}
		})
		t.Run("an empty value is a usage error, not the default", func(t *testing.T) {
			_, err := cured(t, func(*cli.Context) error { return nil }, line("-n", "1", "--netns", "")...)
			if !errors.Is(err, fault.ErrUsage) || err.Error() != "flag --netns is empty" {
				t.Errorf("%v", err)
			}
		})
		t.Run("a value that doesn't parse is a usage error without help", func(t *testing.T) {
			stdout, err := cured(t, func(*cli.Context) error { return nil }, line("-n", "x")...)
			if !errors.Is(err, fault.ErrUsage) || stdout != "" {
				t.Errorf("%v, stdout %q", err, stdout)
			}
		})
		t.Run("slice flags keep their commas", func(t *testing.T) {
			var got []string
			_, err := cured(t, func(c *cli.Context) error { got = c.StringSlice("set"); return nil }, line("--set", "a=1,2", "-n", "1", "x", "--set", "b=3")...)
			if err != nil || !slices.Equal(got, []string{"a=1,2", "b=3"}) {
				t.Errorf("%q, %v", got, err)
			}
		})
		t.Run("cli.Exit comes back and clean-up is done", func(t *testing.T) {
			clean := false
			_, err := cured(t, func(*cli.Context) error {
				defer func() { clean = true }()
				return cli.Exit("enough", 42)
			}, line("-n", "1")...)
			if err == nil || !clean {
				t.Errorf("%v, clean %v", err, clean)
			}
		})
		t.Run("an argument named help is an argument", func(t *testing.T) {
			var got []string
			for _, word := range []string{"help", "h", "set"} {
				stdout, err := cured(t, func(c *cli.Context) error { got = c.Args().Slice(); return nil }, line(word, "-n", "1")...)
				if err != nil || stdout != "" || !slices.Equal(got, []string{word}) {
					t.Errorf("%q: %q, %v, stdout %q", word, got, err, stdout)
				}
			}
		})
	}
}

// TestEveryCommand checks what all commands have in common: help on stdout and
// nothing else, and a usage error for an unknown flag.
func TestEveryCommand(t *testing.T) {
	var walk func(path []string, n *node)
	walk = func(path []string, n *node) {
		if n.raw {
			return
		}
		var stdout, stderr bytes.Buffer
		env := newFake().env(&stdout, &stderr)
		if exit := Run(context.Background(), env, append(slices.Clone(path), "--help")); exit != 0 || stderr.Len() > 0 || !strings.Contains(stdout.String(), "USAGE:") {
			t.Errorf("%q --help: exit %d, stderr %q", path, exit, stderr.String())
		}
		stdout.Reset()
		if exit := Run(context.Background(), env, append(slices.Clone(path), "--no-such-flag")); exit != 2 || stdout.Len() > 0 || !strings.Contains(stderr.String(), "hint: ") {
			t.Errorf("%q --no-such-flag: exit %d, stdout %q, stderr %q", path, exit, stdout.String(), stderr.String())
		}
		if len(path) > 0 && n.usage == "" {
			t.Errorf("%q says nothing of itself", path)
		}
		for word, sub := range n.words {
			walk(append(slices.Clone(path), word), sub)
		}
	}
	walk(nil, testGrammar())
}

func TestGlobalFlagsReachTheBackend(t *testing.T) {
	var stdout, stderr bytes.Buffer
	f := newFake()
	env := f.env(&stdout, &stderr)
	if exit := Run(context.Background(), env, strings.Fields("status --bpffs /x --netns blue --lock-timeout 3s --mount")); exit != 0 {
		t.Fatal(stderr.String())
	}
	want := Options{Options: datapath.Options{Root: "/x", NetNS: "/run/netns/blue", LockTimeout: 3 * time.Second, Mount: true}}
	if f.options != want {
		t.Errorf("options are %+v, want %+v", f.options, want)
	}
	variables := map[string]string{"CONTAINER_RUNTIME_ENDPOINT": "unix:///run/cri", "DOCKER_HOST": "unix:///run/docker", "XDG_RUNTIME_DIR": "/run/user/0"}
	env.Getenv = func(name string) string { return variables[name] }
	for line, want := range map[string]engine.Sockets{
		"status":                            {CRI: "/run/cri", Docker: "/run/docker", User: "/run/user/0"},
		"status --cri-socket unix:///run/a": {CRI: "/run/a", Docker: "/run/docker", User: "/run/user/0"},
		"status --docker-socket b":          {CRI: "/run/cri", Docker: "b", User: "/run/user/0"},
	} {
		if exit := Run(context.Background(), env, strings.Fields(line)); exit != 0 || f.options.Engines != want {
			t.Errorf("%s: exit %d, engines are %+v, want %+v", line, exit, f.options.Engines, want)
		}
	}
	env.Getenv = func(name string) string { return map[string]string{"BPFNET_BPFFS": "/y"}[name] }
	if exit := Run(context.Background(), env, []string{"status"}); exit != 0 || f.options.Root != "/y" || f.options.LockTimeout != datapath.DefaultLockTimeout {
		t.Errorf("exit %d, options are %+v", exit, f.options)
	}
	if exit := Run(context.Background(), env, strings.Fields("status --lock-timeout 0s")); exit != 0 || f.options.LockTimeout <= 0 || f.options.LockTimeout > time.Millisecond {
		t.Errorf("exit %d, not waiting is %s", exit, f.options.LockTimeout)
	}
}

func TestArgs(t *testing.T) {
	for _, test := range []struct {
		names string
		argv  string
		want  string // message; "" for success
	}{
		{"", "", ""},
		{"", "a", `unexpected argument "a"`},
		{"MAP KEY", "a b", ""},
		{"MAP KEY", "a", "argument KEY is missing"},
		{"MAP [NAME]", "a", ""},
		{"MAP [NAME]", "a b c", `unexpected argument "c"`},
		{"RULE...", "", "argument RULE is missing"},
		{"RULE...", "a b c", ""},
		{"MAP [KEY...]", "a b c", ""},
	} {
		var got error
		check := func(c *cli.Context) error { got = args(c, strings.Fields(test.names)...); return nil }
		_, err := cured(t, check, append([]string{"leaf", "-n=1"}, strings.Fields(test.argv)...)...)
		if err != nil || message(got) != test.want {
			t.Errorf("args(%q) of %q: %v, %v; want %q", test.names, test.argv, got, err, test.want)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestStart checks that a command and a completion start without delay, the
// best of several tries because the machine may be busy.
func TestStart(t *testing.T) {
	bpfnet := filepath.Join(buildDir(t), "bpfnet")
	for _, argv := range [][]string{{"version"}, {completeWord, "--", "attach", "xdp", ""}} {
		best := time.Hour
		for range 10 {
			start := time.Now()
			if out, err := exec.Command(bpfnet, argv...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v\n%s", argv, err, out)
			}
			best = min(best, time.Since(start))
		}
		if best > 20*time.Millisecond {
			t.Errorf("%q takes %s", argv, best)
		}
	}
}

// TestPipe checks that a reader that goes away neither kills bpfnet nor makes
// it fail.
func TestPipe(t *testing.T) {
	out := command(t, "bash", "-c", "for i in 1 2 3 4 5; do bpfnet completion bash | :; echo ${PIPESTATUS[0]}; done")
	if strings.Trim(out, "0\n") != "" {
		t.Errorf("exit codes are %q", out)
	}
}

// TestPartsOfApp checks that a command alone is what it is among all others.
func TestPartsOfApp(t *testing.T) {
	var out bytes.Buffer
	env := newFake().env(&out, &out)
	all := newApp(env)
	for i, b := range builders() {
		part := newPartOfApp(env, b.name)
		if len(part.Commands) != 1 || part.Commands[0].Name != b.name || all.Commands[i].Name != b.name {
			t.Errorf("%s builds %s", b.name, all.Commands[i].Name)
		}
	}
	for line, want := range map[string]string{
		"map dump x":                   "map",
		"-o json --quiet version":      "version",
		"--output=json -jp map list":   "map",
		"--match map prog list":        "", // a flag of some command, which takes a value
		"--help map":                   "",
		"--lock-timeout 1s":            "",
		"maps":                         "",
		"-- map":                       "",
		"--output map status":          "status",
		"--dry-run=true -q attach tcx": "attach",
	} {
		if got := firstCommand(strings.Fields(line)); got != want {
			t.Errorf("the command of %q is %q, want %q", line, got, want)
		}
	}
}
