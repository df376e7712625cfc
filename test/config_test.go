package test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
)

// TestAlertConfig has a Pod send a burst while a file says what to look for: two sinks
// get what it is called and how severe it is, and nothing of what is silenced.
func TestAlertConfig(t *testing.T) {
	n := newNode(t)
	var mu sync.Mutex
	var posted string
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		posted += string(body) + "\n"
	}))
	defer web.Close()
	const uid = "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f"
	container(t, n.podA, "kubepods/burstable/pod"+uid+"/"+containerID(t), "sleep", "600")
	n.sh(t, "ip -n $POD_A neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0")
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	n.sh(t, "nsenter --net=/run/netns/$POD_A ping -c1 -q 10.77.0.5 >/dev/null") // so that it is known whose the address is
	dir := t.TempDir()
	config := fmt.Sprintf(`
interval: 200ms
rules:
  burst:
    - {when: "1MB/2s,transmit", name: others, except: devname="veth-a"}
    - {when: "1MB/2s,transmit", name: egress, severity: critical, only: ['endpoint="pod"', devname=~"veth-.*"]}
    - {when: 1500packets/2s, name: storm}
    - "1GB/2s,mad=3"
sinks: [file=%s/alerts, webhook=%s]
silences:
  - {matchers: rule_name="egress", until: 2001-02-03T04:05:06Z}
  - {matchers: rule_name="storm", from: 2001-02-03T04:05:06Z}
`, dir, web.URL)
	if err := os.WriteFile(dir+"/rules.yaml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	recording := begin(t, n.bpfnet("watch", "pods", "--interval", "200ms", "--count", "50", "-o", "ndjson"), dir+"/samples", dir+"/notes", `"schema"`)
	// Rules with mad= say so when the first sample was taken.
	end := begin(t, n.bpfnet("watch", "alerts", "--config", dir+"/rules.yaml", "--count", "2", "--strict"), dir+"/out", dir+"/said", "is learning")
	n.sh(t, burst)
	if out := end(); out != "" {
		t.Errorf("stdout has %s", out)
	}
	said, _ := os.ReadFile(dir + "/said")
	if !strings.Contains(string(said), "\nnote: alerts of the rule burst that were silenced: 1\n") {
		t.Errorf("%s", said)
	}
	text, err := os.ReadFile(dir + "/alerts")
	if err != nil {
		t.Fatal(err)
	}
	const head = `{"schema":"bpfnet.alert/v1","rule":"burst","rule_name":"egress","severity":"critical",`
	alerts := burstAlerts(t, string(text))
	if len(alerts) != 2 || strings.Count(string(text), head) != 2 || alerts[0].EndedAt != nil || alerts[1].EndedAt == nil || alerts[0].Evidence.PodUID != uid {
		t.Fatalf("%s\n%s", text, said)
	}
	mu.Lock()
	if posted != string(text) {
		t.Errorf("posted %s", posted)
	}
	mu.Unlock()

	recording()
	replay := n.must(t, "watch", "alerts", "--config", dir+"/rules.yaml", "--replay", dir+"/samples", "--sink", "stdout", "-o", "ndjson", "-q")
	again := burstAlerts(t, replay)
	if len(again) != 2 || strings.Count(replay, head) != 2 || again[0].Fingerprint != alerts[0].Fingerprint {
		t.Errorf("replayed %s", replay)
	}
	n.must(t, "unload", "--all", "--detach")
}
