// Package test tries the built command line on real traffic: acceptance
// scripts, kills at every system call, and commands with fewer capabilities.
package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"bpfnet/internal/testkit"
)

// binary is the bpfnet that the tests run: one that they build, or that of the
// environment variable BPFNET_BINARY, for machines without Go.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bpfnet-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // for tests as another user
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if binary = os.Getenv("BPFNET_BINARY"); binary != "" {
		return testkit.Run(m)
	}
	binary = filepath.Join(dir, "bpfnet")
	if out, err := exec.Command("go", "build", "-o", binary, "bpfnet").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build bpfnet: %v\n%s", err, out)
		return 1
	}
	return testkit.Run(m)
}

// node is a host of its own in a network namespace: two Pods, each a namespace
// with a device eth0, hang with their host-side devices veth-a and veth-b on a
// bridge.
type node struct {
	host, podA, podB string // names of namespaces
	root             string // bpffs directory
}

// addresses of the Pods.
const (
	addressA = "10.77.0.4"
	addressB = "10.77.0.5"
)

func newNode(t testing.TB) node {
	t.Helper()
	testkit.NeedsKernel(t)
	base := testkit.Name(t)
	n := node{host: base + "h", podA: base + "a", podB: base + "b", root: testkit.Root(t)}
	t.Cleanup(func() {
		for _, ns := range []string{n.podA, n.podB, n.host} {
			_ = exec.Command("sh", "-c", fmt.Sprintf("ip netns pids %s | grep -vx %d | xargs -r kill; ip netns del %s", ns, os.Getpid(), ns)).Run()
		}
	})
	for _, ns := range []string{n.podA, n.podB, n.host} {
		testkit.OwnNetNS(t, "/run/netns/"+ns)
	}
	script := `set -e
for ns in $HOST $POD_A $POD_B; do ip netns add $ns; ip -n $ns link set lo up; done
ip -n $HOST link add br0 type bridge
ip -n $HOST addr add 10.77.0.1/24 dev br0
ip -n $HOST addr add fd77::1/64 dev br0 nodad
ip -n $HOST link set br0 up
pod() {
	ip -n $HOST link add $2 type veth peer name eth0 netns $1
	ip -n $HOST link set $2 master br0 up
	ip -n $1 addr add $3/24 dev eth0
	ip -n $1 addr add $4/64 dev eth0 nodad
	ip -n $1 link set eth0 up
	ip -n $1 route add default via 10.77.0.1
}
pod $POD_A veth-a 10.77.0.4 fd77::4
pod $POD_B veth-b 10.77.0.5 fd77::5
for i in $(seq 100); do nsenter --net=/run/netns/$POD_A ping -c1 -W1 -q 10.77.0.5 >/dev/null && exit 0; sleep 0.1; done
exit 1`
	cmd := exec.Command("bash", "-c", script)
	cmd.Env = append(os.Environ(), n.env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make a node: %v\n%s", err, out)
	}
	return n
}

func (n node) env() []string {
	return []string{"HOST=" + n.host, "POD_A=" + n.podA, "POD_B=" + n.podB, "BPFNET_BPFFS=" + n.root, "BPFNET_OUTPUT="}
}

// bpfnet returns a command line that runs on the node's host.
func (n node) bpfnet(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, append([]string{"--netns", n.host}, args...)...)
	cmd.Env = append(os.Environ(), n.env()...)
	return cmd
}

// must runs bpfnet and returns its stdout.
func (n node) must(t testing.TB, args ...string) string {
	t.Helper()
	cmd := n.bpfnet(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("bpfnet %q: %v\n%s%s", args, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// sh runs a shell script with the node's names in the environment.
func (n node) sh(t testing.TB, script string) string {
	t.Helper()
	cmd := exec.Command("bash", "-euc", script)
	cmd.Env = append(append(os.Environ(), n.env()...), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// serve runs a server until the test ends.
func serve(t testing.TB, server *exec.Cmd) {
	t.Helper()
	log := &strings.Builder{}
	server.Stderr = log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Log(log)
		}
	})
}

// TestScripts runs the acceptance scripts, each on a node of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "scripts",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			n := newNode(env.T().(testing.TB))
			env.Vars = append(env.Vars, n.env()...)
			env.Setenv("PATH", filepath.Dir(binary)+":"+os.Getenv("PATH"))
			data, err := filepath.Abs("../internal/datapath/testdata")
			env.Setenv("OBJECTS", data)
			env.Setenv("PIN", n.root+"-kept")
			env.Setenv("KEPT", filepath.Base(n.root)+"-kept")
			env.Defer(func() { _ = os.Remove(n.root + "-kept") })
			return err
		},
		Condition: func(name string) (bool, error) {
			return hasFeature(name), nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"bpfnet": runBpfnet,
			"in":     runIn,
			"jq":     runJQ,
		},
	})
}

// hasFeature says whether this kernel has a feature, named as in "bpfnet
// doctor": a line of a script that begins with [tcx] is for such kernels.
func hasFeature(name string) bool {
	return slices.Contains(features(), name)
}

// container starts a process as engines do, in a network namespace and in a cgroup,
// whose path is below one of the test's own. It is gone when the test ends.
func container(t testing.TB, namespace, path string, command ...string) (pid int) {
	t.Helper()
	top := testkit.Cgroup(t)
	dir := filepath.Join(top, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cgroup, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + namespace, "--"}, command...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for ; dir != top; dir = filepath.Dir(dir) {
			_ = os.Remove(dir)
		}
	})
	return cmd.Process.Pid
}

// containerID is an id as engines make them, for a container of a test.
func containerID(t testing.TB) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(testkit.Name(t))))
}

// features lists what this kernel has.
var features = sync.OnceValue(func() []string {
	out, err := exec.Command(binary, "doctor", "-o", "json").Output()
	if err != nil {
		panic(fmt.Sprintf("bpfnet doctor: %v", err))
	}
	var doc struct {
		Features []struct{ Feature, Status string }
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		panic(fmt.Sprintf("bpfnet doctor: %v", err))
	}
	var have []string
	for _, f := range doc.Features {
		if f.Status == "available" {
			have = append(have, f.Feature)
		}
	}
	return have
})

// runBpfnet is `bpfnet ARGS`: the tool on the node's host.
func runBpfnet(ts *testscript.TestScript, neg bool, args []string) {
	expect(ts, neg, ts.Exec("bpfnet", append([]string{"--netns", ts.Getenv("HOST")}, args...)...))
}

// runIn is `in NAMESPACE COMMAND …`.
func runIn(ts *testscript.TestScript, neg bool, args []string) {
	expect(ts, neg, ts.Exec("nsenter", append([]string{"--net=/run/netns/" + args[0], "--"}, args[1:]...)...))
}

// runJQ is `jq FILTER`: the filter must be true of the last stdout.
func runJQ(ts *testscript.TestScript, neg bool, args []string) {
	out := ts.ReadFile("stdout")
	cmd := exec.Command("jq", append([]string{"-e"}, args...)...)
	cmd.Stdin = bytes.NewBufferString(out)
	result, err := cmd.CombinedOutput()
	if (err == nil) == neg {
		ts.Fatalf("jq %q: %s of\n%s", args, result, out)
	}
}

func expect(ts *testscript.TestScript, neg bool, err error) {
	if (err == nil) == neg {
		ts.Fatalf("unexpected result: %v", err)
	}
}

// jq applies a filter that makes text of a document.
func jq(t testing.TB, filter, doc string) string {
	t.Helper()
	cmd := exec.Command("jq", "-r", filter)
	cmd.Stdin = strings.NewReader(doc)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("jq %q: %v of\n%s", filter, err, doc)
	}
	return strings.TrimSpace(string(out))
}
