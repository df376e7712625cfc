package test

import (
	"encoding/json"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

// documented is what docs/output.md says of one document or shape: for each
// path, whether everything below it is free.
type documented map[string]bool

var (
	heading = regexp.MustCompile(`(?m)^##? (.+)$`)
	keyRow  = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\|")
	shapeIn = regexp.MustCompile(`\[([^\]]+)\]\(#`)
)

// readOutputPage returns the paths of every section of docs/output.md, shapes
// put in place.
func readOutputPage(t *testing.T) map[string]documented {
	t.Helper()
	page, err := os.ReadFile("../docs/output.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	bounds := heading.FindAllStringSubmatchIndex(text, -1)
	bodies := map[string]string{}
	for i, b := range bounds {
		end := len(text)
		if i+1 < len(bounds) {
			end = bounds[i+1][0]
		}
		bodies[text[b[2]:b[3]]] = text[b[1]:end]
	}
	sections := map[string]documented{}
	for name := range bodies {
		d := documented{}
		d.add("", name, bodies)
		sections[name] = d
	}
	return sections
}

func (d documented) add(prefix, section string, bodies map[string]string) {
	for _, row := range keyRow.FindAllStringSubmatch(bodies[section], -1) {
		key, kind := strings.TrimSuffix(row[1], "…"), strings.TrimSpace(row[2])
		path := prefix + key
		shape := shapeIn.FindStringSubmatch(kind)
		if shape != nil && key != row[1] {
			d.add(path, shape[1], bodies)
			continue
		}
		d[path] = kind == "any"
		if shape != nil {
			d.add(path+".", shape[1], bodies)
		}
	}
	for path := range maps.Clone(d) { // "a[].b" says that there is "a[]"
		for parent, ok := cutLast(path); ok; parent, ok = cutLast(parent) {
			if _, known := d[parent]; !known {
				d[parent] = false
			}
		}
	}
}

func cutLast(path string) (string, bool) {
	i := strings.LastIndex(path, ".")
	return path[:max(i, 0)], i > 0
}

// observed is what a document has: every path, and whether nothing was below it.
type observed map[string]bool

func (o observed) add(path string, value any, free documented) {
	if free[path] {
		o[path] = true
		return
	}
	switch v := value.(type) {
	case map[string]any:
		o.empty(path, len(v) == 0)
		for key, inner := range v {
			o.add(strings.TrimPrefix(path+"."+key, "."), inner, free)
		}
	case []any:
		o.empty(path+"[]", len(v) == 0)
		for _, inner := range v {
			o.add(path+"[]", inner, free)
		}
	case nil:
		o.empty(path, true)
	default:
		o.empty(path, false)
	}
}

// empty notes a path; one that once had something below it isn't empty.
func (o observed) empty(path string, empty bool) {
	before, known := o[path]
	o[path] = empty && (before || !known)
}

// compare reports paths that only one side has. What is below an empty array or
// null can't be seen.
func compare(t *testing.T, schema string, want documented, got observed) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok && path != "" && !hasArray(want, path) {
			t.Errorf("%s: docs/output.md lacks %s", schema, path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[path]; !ok && !hidden(path, got) {
			t.Errorf("%s: docs/output.md has %s, which isn't there", schema, path)
		}
	}
}

// hasArray says that a path that was null is documented as an array.
func hasArray(want documented, path string) bool {
	_, ok := want[path+"[]"]
	return ok
}

func hidden(path string, got observed) bool {
	for ok := true; ok; path, ok = cutLast(path) {
		array := strings.TrimSuffix(path, "[]")
		if got[path] || got[array] && array != path {
			return true
		}
	}
	return false
}

// TestDocuments compares what the commands print with docs/output.md.
func TestDocuments(t *testing.T) {
	n := newNode(t)
	cgroup := testkit.Cgroup(t)
	pod := "kubepods/burstable/pod0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f/" + containerID(t)
	container(t, n.podA, pod, "sleep", "600")
	container(t, n.podB, pod+"/docker/"+containerID(t), "sleep", "600")
	page := readOutputPage(t)
	seen := map[string]observed{}
	for _, line := range []string{
		"load pod-traffic", "attach tc pod-traffic --dev veth-a --direction both", "follow", "load xdp-counter",
		"attach xdp xdp-counter --dev veth-b --mode generic", "ping", "watch pods --interval 100ms --count 2", "watch counters --once",
		"load peers", "attach tc peers --dev veth-a --direction both", "ping", "watch peers --interval 100ms --count 2",
		"watch flows --interval 100ms --count 2", "flows sum",
		"load flows", "attach trace flows", "connect", "watch connections --since-load --for 100ms", "unload flows --detach",
		"load dns", "attach tc dns --dev veth-a --direction both", "ask",
		"load drops", "attach trace drops", "drop", "watch drops --interval 100ms --count 2",
		"ports allow 80/tcp", "ports list",
		"blocklist add 198.51.100.0/24 --reason scans --expires 24h", "refuse", "unknown", "blocklist test 198.51.100.7", "blocklist list --hits", "blocklist export", "blocklist lists", "load blocklist", "attach tc blocklist --dev veth-b --direction both", "blocklist add 10.77.0.0/24 --list watched --reason scans --expires 24h --force",
		"blocklist action alert --list watched", "ping", "watch alerts --count 1", "watch alerts --replay testdata/samples.ndjson --burst 10kB/10s", "watch alerts --replay testdata/peers.ndjson --fanout 2/10s --scan 2ports/10s --scan 2failed/10s",
		"watch alerts --config ../deploy/alerts/rules.yaml --dry-run",
		"baseline show testdata/baseline.json", "deviate", "watch alerts --replay testdata/deviating.ndjson --baseline testdata/baseline.json",
		"status", "status --interval 100ms --once", "blocklist clear", "prog list", "link list", "programs",
		"endpoint list", "connections count --by process,state,peer --listening", "net show", "attach cgroup pod-traffic --cgroup $CGROUP", "cgroup show $CGROUP",
		"map list --fill", "map show pod-traffic/pods --pids", "map pin pod-traffic/pods $PIN --dry-run",
		"map create $PIN --type hash --key-size 4 --value-size 4 --max-entries 1 --dry-run", "map freeze pod-traffic/pods --dry-run", "map next xdp-counter/packets", "map watch pod-traffic/pods --interval 100ms --once", "map get xdp-counter/packets 0", "map set pod-traffic/pod_prefixes 10.0.0.0/8 1",
		"map delete pod-traffic/pod_prefixes 10.0.0.0/8", "map import pod-traffic/pod_prefixes testdata/prefixes.csv", "map clear pod-traffic/pod_prefixes", "doctor --selftest", "version", "detach tc pod-traffic",
		"load ../internal/datapath/testdata/events.o --name ev", "send", "map events ev/events --count 1", "unload --all --detach",
	} {
		if line == "ping" {
			n.sh(t, "nsenter --net=/run/netns/$POD_A ping -q -c2 -i0.2 "+addressB)
			continue
		}
		if line == "ask" { // and get an answer
			serveNames(t, n, map[string][]string{"www.example.": {"A 10.77.0.5"}})
			watch := n.watchesDNS(t, "--count", "1", "--name", "www.example", "-q")
			n.askFor(t, "www.example.", "udp")
			note(t, watch.wait(t), page, seen)
			continue
		}
		if line == "connect" { // to a server
			n.connects(t)
			continue
		}
		if line == "drop" { // at a port that nobody has
			n.sh(t, "nsenter --net=/run/netns/$POD_A bash -c 'echo x >/dev/udp/"+addressB+"/9'")
			continue
		}
		if line == "follow" { // until the first document
			note(t, n.sh(t, "timeout -s INT 20 nsenter --net=/run/netns/$HOST bpfnet attach tc pod-traffic --all-pods --follow -q -o ndjson | head -n 1"), page, seen)
			continue
		}
		if line == "send" { // a record
			n.sh(t, "head -c 60 /dev/zero | tr '\\0' r | bpftool prog run pinned $BPFNET_BPFFS/ev/progs/send_record data_in - repeat 1")
			continue
		}
		if line == "deviate" { // exit 10
			out, _ := n.bpfnet("baseline", "diff", "testdata/baseline.json", "testdata/baseline2.json", "-o", "ndjson", "-q").Output()
			for text := range strings.Lines(string(out)) {
				note(t, text, page, seen)
			}
			continue
		}
		if line == "refuse" { // an entry of an import; exit 8
			out, _ := n.bpfnet("blocklist", "import", "testdata/prefixes.csv", "-o", "ndjson", "-q").Output()
			note(t, string(out), page, seen)
			continue
		}
		if line == "unknown" { // a domain that no server is asked for: none can be reached; exit 8
			out, _ := n.bpfnet("blocklist", "add", "--domain", "evil.example", "--domain", "*.bad.example", "-o", "ndjson", "-q").Output()
			note(t, string(out), page, seen)
			continue
		}
		for text := range strings.Lines(n.must(t, append(strings.Fields(strings.NewReplacer("$CGROUP", cgroup, "$PIN", n.root+"-kept").Replace(line)), "-o", "ndjson", "-q")...)) {
			note(t, text, page, seen)
		}
	}
	out := n.bpfnet("load", "nothing-of-that-name", "-o", "json")
	noteError(t, out, page, seen)
	for _, name := range slices.Sorted(maps.Keys(page)) {
		if got := seen[name]; got != nil {
			compare(t, name, page[name], got)
		} else if strings.HasPrefix(name, "bpfnet.") {
			t.Errorf("no command of this test prints %s", name)
		}
	}
}

func note(t *testing.T, text string, page map[string]documented, seen map[string]observed) {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	name, _ := doc["schema"].(string)
	if name == "" {
		name = "Errors"
	}
	if page[name] == nil {
		t.Errorf("docs/output.md lacks %q", name)
	}
	if seen[name] == nil {
		seen[name] = observed{}
	}
	seen[name].add("", doc, page[name])
}

func noteError(t *testing.T, cmd *exec.Cmd, page map[string]documented, seen map[string]observed) {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err == nil {
		t.Fatal("no error")
	}
	note(t, stderr.String(), page, seen)
}

// connects has a connection in a Pod that is opened and closed.
func (n node) connects(t *testing.T) {
	t.Helper()
	err := netns.Do("/run/netns/"+n.podA, func() error {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer listener.Close()
		client, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return err
		}
		defer client.Close()
		server, err := listener.Accept()
		if err != nil {
			return err
		}
		defer server.Close()
		_, err = server.Write([]byte("hello"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
