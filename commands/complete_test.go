package commands

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/template"

	"bpfnet/completions"
)

func completeEnv(t *testing.T) *Env {
	t.Helper()
	var stdout, stderr bytes.Buffer
	f := newFake()
	env := f.env(&stdout, &stderr)
	for _, name := range []string{"pod-traffic", "mine"} {
		if exit := Run(context.Background(), env, []string{"load", "pod-traffic", "--name", name, "-q"}); exit != 0 {
			t.Fatalf("load: %s", stderr.String())
		}
	}
	return env
}

// bareWords drops the descriptions.
func bareWords(candidates string) []string {
	var list []string
	for line := range strings.Lines(candidates) {
		word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		list = append(list, word)
	}
	return list
}

func TestComplete(t *testing.T) {
	env := completeEnv(t)
	for _, test := range []struct {
		in   []string
		want []string // all of them; nil: none
	}{
		{[]string{"att"}, []string{"attach"}},
		{[]string{"attach", ""}, []string{"cgroup", "sockops", "tc", "trace", "xdp"}},
		{[]string{"attach", "xdp", ""}, []string{"mine", "pod-traffic"}},
		{[]string{"attach", "xdp", "mine", ""}, nil},
		{[]string{"attach", "xdp", "mine", "--dev", ""}, []string{"eth0", "lo", "veth-a", "veth-b"}},
		{[]string{"attach", "xdp", "mine", "--dev=ve"}, []string{"--dev=veth-a", "--dev=veth-b"}},
		{[]string{"attach", "xdp", "mine", "--mo"}, []string{"--mode", "--mount"}},
		{[]string{"attach", "xdp", "mine", "--mode", "n"}, []string{"native"}},
		{[]string{"attach", "tc", "mine", "--direction", ""}, []string{"ingress", "egress", "both"}},
		{[]string{"attach", "tc", "mine", "--before", "p"}, []string{"pod-traffic"}},
		{[]string{"attach", "tc", "mine", "--prog", ""}, []string{"mine"}},
		{[]string{"-o", ""}, []string{"table", "json", "yaml", "ndjson"}},
		{[]string{"map", "dump", "mine/p", "-o", "js"}, []string{"json"}},
		{[]string{"map", "dump", ""}, []string{"mine/packets", "pod-traffic/packets"}},
		{[]string{"map", "import", "mine/packets", ""}, []string{":files"}},
		{[]string{"map", "pin", "mine/packets", ""}, []string{":files"}},
		{[]string{"map", "unpin", ""}, []string{":files"}},
		{[]string{"export", "prometheus", "--web-config", ""}, []string{":files"}},
		{[]string{"export", ""}, []string{"prometheus"}},
		{[]string{"map", "peek", "m"}, []string{"mine/packets"}},
		{[]string{"map", "watch", "mine/packets", "--sort", ""}, []string{"change", "key"}},
		{[]string{"blocklist", "list", "--sort", ""}, []string{"bytes", "expires", "hits", "last_seen", "list", "prefix"}},
		{[]string{"--bpffs", ""}, []string{":dirs"}},
		{[]string{"load", "pod-"}, []string{"pod-traffic", ":files"}},
		{[]string{"load", "pod-traffic", "--set", "match"}, []string{"match_prefixes="}},
		{[]string{"load", "flows", "--mechanism", ""}, []string{"tp_btf", "fexit", "kprobe"}},
		{[]string{"load", "pod-traffic", "--mechanism", ""}, nil},
		{[]string{"unload", "--", "mi"}, []string{"mine"}},
		{[]string{"completion", "z"}, []string{"zsh"}},
		{[]string{"watch", "pods", "--observe", ""}, []string{"tc", "cgroup"}},
		{[]string{"watch", "pods", "--instance", "m"}, []string{"mine"}},
		{[]string{"watch", "alerts", "--config", ""}, []string{":files"}},
		{[]string{"watch", "alerts", "--silence", "rule"}, []string{"rule=", "rule_name="}},
		{[]string{"ports", "default", ""}, []string{"pass", "drop"}},
		{[]string{"__"}, nil},
	} {
		if got := bareWords(complete(env, test.in)); !slices.Equal(got, test.want) {
			t.Errorf("complete(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

// TestCompleteTree checks that every command and flag of the tree is offered,
// with what it means.
func TestCompleteTree(t *testing.T) {
	env := completeEnv(t)
	root := grammar(newApp(env))
	var walk func(path []string, n *node)
	walk = func(path []string, n *node) {
		if len(n.words) > 0 {
			offered(t, env, append(slices.Clone(path), ""), keys(n.words))
		}
		var flags []string
		for _, f := range append(keys(n.flags), keys(root.flags)...) {
			if len(f) > 1 && f != "help" {
				flags = append(flags, dashed(f))
			}
		}
		offered(t, env, append(slices.Clone(path), "--"), flags)
		for word, sub := range n.words {
			if !sub.raw {
				walk(append(slices.Clone(path), word), sub)
			}
		}
	}
	walk(nil, root)
}

func offered(t *testing.T, env *Env, line, want []string) {
	t.Helper()
	text := complete(env, line)
	got := bareWords(text)
	for _, word := range want {
		if !slices.Contains(got, word) {
			t.Errorf("%q: %s is not offered", line, word)
		}
	}
	for candidate := range strings.Lines(text) {
		if !strings.Contains(candidate, "\t") || strings.HasSuffix(candidate, "\t\n") {
			t.Errorf("%q: %q says nothing of itself", line, candidate)
		}
	}
}

var update = flag.Bool("update", false, "write the completion scripts anew")

// TestCompletionScripts makes the scripts from their templates and compares
// them with those that are embedded.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range completions.Shells() {
		name := "bpfnet." + shell
		script, err := template.ParseFiles(filepath.Join("..", "completions", "templates", name))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := script.Execute(&b, map[string]string{"Complete": completeWord, "Files": completeFiles, "Dirs": completeDirs}); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(filepath.Join("..", "completions", name), b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if b.String() != completions.Script(shell) {
			t.Errorf("%s is not what its template makes: go generate ./completions", name)
		}
	}
}

// TestScriptsParse has every shell that is installed read its script.
func TestScriptsParse(t *testing.T) {
	for _, shell := range completions.Shells() {
		t.Run(shell, func(t *testing.T) {
			command(t, shell, "-n", filepath.Join("..", "completions", "bpfnet."+shell))
		})
	}
}

// command runs a shell and returns what it prints; the test is skipped where
// the shell isn't installed.
func command(t *testing.T, shell string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(shell)
	if err != nil {
		t.Skipf("%s is not installed", shell)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "PATH="+buildDir(t)+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", shell, args, err, out)
	}
	return string(out)
}

// build is the directory of the bpfnet that buildDir makes.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "bpfnet")
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "bpfnet"), "bpfnet").CombinedOutput()
	if err != nil {
		return dir, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

// buildDir builds bpfnet once and returns its directory.
func buildDir(t *testing.T) string {
	t.Helper()
	dir, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := build(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// lines are command lines as typed, and what the shells have to offer.
var completionLines = []struct {
	line string
	want []string
}{
	{"bpfnet att", []string{"attach"}},
	{"bpfnet attach x", []string{"xdp"}},
	{"bpfnet attach xdp name --mo", []string{"--mode", "--mount"}},
	{"bpfnet attach xdp name --mode na", []string{"native"}},
	{"bpfnet -o ", []string{"table", "json", "yaml", "ndjson"}},
	{"bpfnet load port-f", []string{"port-filter"}},
	{"bpfnet attach tc name --dev l", []string{"lo"}},
}

func TestBashCompletes(t *testing.T) {
	script := completions.Script("bash") + `
shopt -s progcomp
compopt() { :; }
COMP_LINE=$1 COMP_POINT=${#1}
_bpfnet
printf '%s\n' "${COMPREPLY[@]}"`
	for _, test := range append(completionLines, struct {
		line string
		want []string
	}{"bpfnet attach xdp name --mode=na", []string{"native"}}) {
		got := strings.Fields(command(t, "bash", "-c", script, "bash", test.line))
		if !slices.Equal(got, test.want) {
			t.Errorf("%q completes to %q, want %q", test.line, got, test.want)
		}
	}
}

// TestBashCompletesTree completes every command of the tree through the script.
func TestBashCompletesTree(t *testing.T) {
	env := completeEnv(t)
	var lines, want []string
	var walk func(line string, n *node)
	walk = func(line string, n *node) {
		if n.raw {
			return
		}
		for _, word := range keys(n.words) {
			lines, want = append(lines, line+word), append(want, word)
			walk(line+word+" ", n.words[word])
		}
	}
	walk("bpfnet ", grammar(newApp(env)))
	script := completions.Script("bash") + `
compopt() { :; }
for line; do
	COMP_LINE=$line COMP_POINT=${#line}
	_bpfnet
	printf '%s\n' "${COMPREPLY[0]}"
done`
	got := strings.Fields(command(t, "bash", append([]string{"-c", script, "bash"}, lines...)...))
	if !slices.Equal(got, want) {
		t.Errorf("bash completes %q\nto %q\nwant %q", lines, got, want)
	}
}

func TestFishCompletes(t *testing.T) {
	for _, test := range completionLines {
		script := completions.Script("fish") + "\ncomplete -C '" + test.line + "'"
		got := bareWords(command(t, "fish", "-c", script))
		slices.Sort(got)
		want := slices.Sorted(slices.Values(test.want))
		if !slices.Equal(got, want) {
			t.Errorf("%q completes to %q, want %q", test.line, got, want)
		}
	}
}

// TestZshCompletes calls the function with the words that zsh would set; the
// functions that zsh shows candidates with print them instead.
func TestZshCompletes(t *testing.T) {
	for _, test := range completionLines {
		script := `compdef() { :; }
_describe() { local name=$3; print -l -- ${(P)name}; }
_files() { print -- files; }
` + completions.Script("zsh") + `
words=("${(@s: :)1}")
CURRENT=$#words
_bpfnet`
		var got []string
		for line := range strings.Lines(command(t, "zsh", "-f", "-c", script, "zsh", test.line)) {
			word, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			if word != "files" {
				got = append(got, word)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%q completes to %q, want %q", test.line, got, test.want)
		}
	}
}
