package test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deviation is an alert of the rule baseline.
type deviation struct {
	Fingerprint string
	EndedAt     *string `json:"ended_at"`
	Observed    struct {
		Deviation, Direction string
		Peak                 uint64
		New                  []string
	}
	Evidence struct {
		Name   string `json:"baseline_endpoint"`
		PodUID string `json:"pod_uid"`
		Sample []string
	}
}

// TestBaseline learns what a Pod does; then it does something else, which is told, and a
// recording of the same time gives the same.
func TestBaseline(t *testing.T) {
	n := newNode(t)
	const uid = "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f"
	container(t, n.podA, "kubepods/burstable/pod"+uid+"/"+containerID(t), "ping", "-q", "-i0.2", addressB)
	n.sh(t, "ip -n $POD_A neigh add 10.77.0.98 lladdr 02:00:00:00:00:98 dev eth0; ip -n $POD_A neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0")
	for _, program := range []string{"pod-traffic", "peers"} {
		n.must(t, "load", program)
		n.must(t, "attach", "tc", program, "--dev", "veth-a", "--direction", "both")
	}
	send := func(address, port string, datagrams int) {
		n.sh(t, fmt.Sprintf("nsenter --net=/run/netns/$POD_A bash -c 'dd if=/dev/zero bs=1400 count=%d status=none >/dev/udp/%s/%s'", datagrams, address, port))
	}
	dir := t.TempDir()
	learned := begin(t, n.bpfnet("baseline", "learn", "--window", "1s", "--interval", "200ms", "--for", "6s"), dir+"/learned.json", dir+"/notes", "")
	send("10.77.0.99", "9", 1)
	file := learned()
	name := "address:" + addressA + "@veth-a" // no engine tells the Pod's name
	for _, want := range []string{`"endpoint": "` + name + `"`, `"peers": ["` + addressB + `", "10.77.0.99"]`, `"ports": ["icmp", "9/udp"]`} {
		if !strings.Contains(file, want) {
			t.Errorf("no %s in\n%s", want, file)
		}
	}
	// It takes half a minute to know enough; or somebody who says so.
	file = regexp.MustCompile(`"windows": \d+`).ReplaceAllString(file, `"windows": 60`)
	if err := os.WriteFile(dir+"/edited.json", []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := n.must(t, "watch", "alerts", "--rule", "baseline", "--baseline", dir+"/edited.json", "--interval", "200ms", "--once"); out != "" {
		t.Errorf("it does what it always does: %s", out)
	}

	pods := begin(t, n.bpfnet("watch", "pods", "--interval", "200ms", "--count", "70", "-o", "ndjson"), dir+"/pods", dir+"/notes", `"schema"`)
	met := begin(t, n.bpfnet("watch", "peers", "--interval", "200ms", "--count", "70", "-o", "ndjson"), dir+"/peers", dir+"/notes", `"schema"`)
	rule := []string{"watch", "alerts", "--rule", "baseline", "--baseline", dir + "/edited.json", "-o", "ndjson"}
	live := begin(t, n.bpfnet(append(rule, "--interval", "200ms", "--for", "10s")...), dir+"/alerts", dir+"/said", "")
	n.sh(t, "sleep 3")
	send("10.77.0.99", "9", 2000)
	send("10.77.0.98", "9", 1)
	send("10.77.0.99", "10", 1)
	watched, recorded := live(), pods()+met()
	if err := os.WriteFile(dir+"/both", []byte(recorded), 0o644); err != nil {
		t.Fatal(err)
	}
	replayed := n.must(t, append(rule, "--replay", dir+"/both")...)
	if again := n.must(t, append(rule, "--replay", dir+"/both")...); again != replayed {
		t.Errorf("replayed once\n%sand once\n%s", replayed, again)
	}
	first := deviations(t, name, uid, watched)
	if second := deviations(t, name, uid, replayed); !slices.Equal(first, second) {
		t.Errorf("live %v, replayed %v", first, second)
	}
	if n.must(t, "baseline", "diff", dir+"/edited.json", dir+"/edited.json", "-o", "json") != "[]\n" {
		t.Error("a file differs from itself")
	}
	n.must(t, "unload", "--all", "--detach")
}

// deviations checks alerts, and returns their fingerprints, sorted.
func deviations(t *testing.T, name, uid, text string) (fingerprints []string) {
	t.Helper()
	told := map[string]int{}
	for line := range strings.Lines(text) {
		var d deviation
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if d.Evidence.Name != name || d.Evidence.PodUID != uid || d.Observed.Deviation == "volume" && (d.Observed.Peak < burstSize/2 || d.Observed.Peak > burstSize+10_000) {
			t.Errorf("it is about something else: %s", line)
		}
		what := strings.Join(append([]string{d.Observed.Deviation + d.Observed.Direction}, append(d.Observed.New, d.Evidence.Sample...)...), " ")
		if d.EndedAt == nil {
			fingerprints = append(fingerprints, d.Fingerprint)
		}
		told[what]++
	}
	if fmt.Sprint(told) != "map[peers 10.77.0.98 9/udp 10.77.0.98:1 ports 10/udp 10/udp 10.77.0.99:1 volumetransmit:2]" {
		t.Errorf("told %v\n%s", told, text)
	}
	slices.Sort(fingerprints)
	return fingerprints
}
