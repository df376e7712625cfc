package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The runnable blocks of a document are those fenced as "sh". They are run in
// their order, on a host that has what the text speaks of: the device veth-a of
// a container that sends, a device eth0, and objects in the current directory. A line
// that ends in "# until Ctrl-C" is interrupted after a moment and has to end
// well. All other fences (console, json, text) are only shown.
var (
	shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	untilCtrlC = regexp.MustCompile(`(?m)^sudo (.*?)\s+# until Ctrl-C.*$`)
)

// interrupted is what becomes of such a line. The moment is longer where loading a
// program takes long.
func interrupted(loading time.Duration) string {
	moment := 3*time.Second + 4*loading
	return fmt.Sprintf("timeout --foreground --preserve-status --signal=INT %.1fs $1", moment.Seconds())
}

func TestReadme(t *testing.T)      { runBlocks(t, "../README.md") }
func TestArticles(t *testing.T)    { runBlocks(t, "../docs/articles.md") }
func TestMaps(t *testing.T)        { runBlocks(t, "../docs/maps.md") }
func TestBlocklist(t *testing.T)   { runBlocks(t, "../docs/blocklist.md") }
func TestBaselines(t *testing.T)   { runBlocks(t, "../docs/baseline.md") }
func TestAlerts(t *testing.T)      { runBlocks(t, "../docs/alerts.md") }
func TestDNS(t *testing.T)         { runBlocks(t, "../docs/dns.md") }
func TestPeers(t *testing.T)       { runBlocks(t, "../docs/peers.md") }
func TestFlows(t *testing.T)       { runBlocks(t, "../docs/flows.md") }
func TestDrops(t *testing.T)       { runBlocks(t, "../docs/drops.md") }
func TestConnections(t *testing.T) { runBlocks(t, "../docs/connections.md") }
func TestEndpoints(t *testing.T)   { runBlocks(t, "../docs/endpoints.md") }
func TestMetrics(t *testing.T)     { runBlocks(t, "../docs/metrics.md") }

func runBlocks(t *testing.T, document string) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	dir := prepareReader(t, n)
	blocks := shellBlock.FindAllStringSubmatch(string(text), -1)
	if len(blocks) == 0 {
		t.Fatalf("%s has no runnable block", document)
	}
	start := time.Now()
	n.must(t, "load", "pod-traffic", "--dry-run")
	line := interrupted(time.Since(start))
	for _, block := range blocks {
		runBlock(t, n, dir, untilCtrlC.ReplaceAllString(block[1], line))
	}
	if out := n.must(t, "status", "-o", "json"); !strings.Contains(out, `"instances": []`) {
		t.Errorf("%s leaves behind:\n%s", document, out)
	}
}

// prepareReader makes what the documents speak of, and a sudo for those who are
// root already. It returns the directory to run in.
func prepareReader(t *testing.T, n node) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"my_xdp.o": "../bpf/xdpcounter_bpfel.o", "my_limits.o": "../internal/datapath/testdata/limits.o"}
	for file, from := range files {
		object, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		files[file] = string(object)
	}
	files["bin/sudo"] = "#!/bin/sh\nexec \"$@\"\n"
	for file, content := range files {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.sh(t, `
ip -n $HOST link add eth0 type veth peer name uplink
ip -n $HOST link set uplink up
ip -n $HOST link set eth0 up`)
	container(t, n.podA, "docker/"+containerID(t), "ping", "-q", "-i0.2", addressB)
	return dir
}

func runBlock(t *testing.T, n node, dir, block string) {
	t.Helper()
	cmd := exec.Command("nsenter", "--net=/run/netns/"+n.host, "--", "bash", "-euxo", "pipefail", "-c", block)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second // what a block that fails has left in the background
	path := strings.Join([]string{filepath.Join(dir, "bin"), filepath.Dir(binary), os.Getenv("PATH")}, ":")
	cmd.Env = append(append(os.Environ(), n.env()...), "PATH="+path)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("%v in\n%s", err, block)
	}
}
