package commands

import (
	"bytes"
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/*.txtar. In them "bpfnet" is the command line on a
// fake that lives as long as the script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			e.Values["fake"] = scriptFake()
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"bpfnet": runBpfnet,
			"exit":   checkExit,
		},
	})
}

// scriptFake is what the scripts of every group run on; the groups' own parts
// are added here.
func scriptFake() *fake {
	f := newFake()
	f.maps, f.bpftool = newFakeMaps(), fakeBpftool{}
	f.report, f.steps, f.bypass = fakeReport(), fakeSteps(), fakeBypass()
	fakeCapabilities(f)
	return f
}

// runBpfnet is the script command "bpfnet ARGS…"; "exit N" checks the exit code
// afterwards.
func runBpfnet(ts *testscript.TestScript, neg bool, argv []string) {
	var stdout, stderr bytes.Buffer
	env := ts.Value("fake").(*fake).env(&stdout, &stderr)
	env.Getenv = ts.Getenv
	env.ReadFile = func(path string) ([]byte, error) {
		if path == "/etc/passwd" {
			path = "passwd" // the script's
		}
		return os.ReadFile(ts.MkAbs(path))
	}
	env.OpenFile = func(path string) (io.ReadCloser, error) { return os.Open(ts.MkAbs(path)) }
	env.Stdin = strings.NewReader(ts.Getenv("stdin"))
	exit := Run(context.Background(), env, argv)
	_, _ = ts.Stdout().Write(stdout.Bytes())
	_, _ = ts.Stderr().Write(stderr.Bytes())
	ts.Setenv("exit", strconv.Itoa(exit))
	if (exit != 0) != neg {
		ts.Fatalf("exit code %d", exit)
	}
}

func checkExit(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 || args[0] != ts.Getenv("exit") {
		ts.Fatalf("exit code %s, not %v", ts.Getenv("exit"), args)
	}
}
