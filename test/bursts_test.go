package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// burstAlert is an alert of the rule burst.
type burstAlert struct {
	Rule, Fingerprint string
	StartedAt         time.Time  `json:"started_at"`
	EndedAt           *time.Time `json:"ended_at"`
	Observed          struct {
		Direction    string
		Amount, Peak uint64
	}
	Evidence struct {
		Endpoint, Address, DevName string
		PodUID                     string  `json:"pod_uid"`
		EndedBy                    *string `json:"ended_by"`
	}
}

func burstAlerts(t *testing.T, text string) (alerts []burstAlert) {
	t.Helper()
	for line := range strings.Lines(text) {
		var a burstAlert
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		alerts = append(alerts, a)
	}
	return alerts
}

// burst is a burst of datagrams that nobody answers, burstSize bytes with headers.
const (
	burst     = "nsenter --net=/run/netns/$POD_A bash -c 'dd if=/dev/zero bs=1400 count=2000 status=none >/dev/udp/10.77.0.99/9'"
	burstSize = 2000 * (1400 + 42)
)

// begin starts a command whose output goes to files, and waits until one of them has a
// text. What it returns waits for the end of the command and returns its stdout.
func begin(t *testing.T, cmd *exec.Cmd, stdout, stderr, text string) func() string {
	t.Helper()
	var files [2]*os.File
	for i, name := range []string{stdout, stderr} {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	written := func() string {
		out, _ := os.ReadFile(stdout)
		said, _ := os.ReadFile(stderr)
		return string(out) + string(said)
	}
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(written(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("no %q in %s", text, written())
			break
		}
	}
	return func() string {
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, written())
		}
		out, err := os.ReadFile(stdout)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
}

// TestBursts has a Pod send a burst: that is told once when it begins and once when
// it is over, and a recording of the same time gives the same.
func TestBursts(t *testing.T) {
	n := newNode(t)
	const uid = "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f"
	container(t, n.podA, "kubepods/burstable/pod"+uid+"/"+containerID(t), "sleep", "600")
	n.sh(t, "ip -n $POD_A neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0")
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	rules := []string{"--burst", "1MB/2s,transmit", "--burst", "1MB/2s,receive", "--burst", "1500packets/2s,for=4s"}

	dir := t.TempDir()
	recording := begin(t, n.bpfnet("watch", "pods", "--interval", "200ms", "--count", "50", "-o", "ndjson"), dir+"/samples", dir+"/notes", `"schema"`)
	live := begin(t, n.bpfnet(append([]string{"watch", "alerts", "--interval", "200ms", "--for", "8s", "-o", "ndjson"}, rules...)...), dir+"/alerts", dir+"/said", "no list alerts yet")
	n.sh(t, burst)
	watched, _ := live(), recording()

	replay := append([]string{"watch", "alerts", "--replay", dir + "/samples", "-o", "ndjson"}, rules...)
	replayed := n.must(t, replay...)
	if again := n.must(t, replay...); again != replayed {
		t.Errorf("replayed once\n%sand once\n%s", replayed, again)
	}
	first := ""
	for name, text := range map[string]string{"live": watched, "replayed": replayed} {
		alerts := burstAlerts(t, text)
		if len(alerts) != 2 {
			t.Fatalf("%s: %d alerts\n%s", name, len(alerts), text)
		}
		began, ended := alerts[0], alerts[1]
		if began.EndedAt != nil || ended.EndedAt == nil || ended.Evidence.EndedBy == nil || *ended.Evidence.EndedBy != "below" ||
			began.Fingerprint != ended.Fingerprint || !began.StartedAt.Equal(ended.StartedAt) || !ended.EndedAt.After(ended.StartedAt) {
			t.Errorf("%s:\n%s", name, text)
		}
		if e := began.Evidence; e.Endpoint != "pod" || e.PodUID != uid || e.Address != addressA || e.DevName != "veth-a" || began.Observed.Direction != "transmit" {
			t.Errorf("%s: it is about %+v", name, began)
		}
		if peak := ended.Observed.Peak; peak < burstSize || peak > burstSize+2000 {
			t.Errorf("%s: a peak of %d bytes, %d were sent", name, peak, burstSize)
		}
		if first == "" {
			first = began.Fingerprint
		}
		if began.Fingerprint != first {
			t.Errorf("%s has another fingerprint", name)
		}
	}

	once := append([]string{"watch", "alerts", "--once", "--rule", "burst", "--interval", "100ms"}, rules[:2]...)
	if out := n.must(t, once...); out != "" {
		t.Errorf("nothing was sent: %s", out)
	}
	cmd := n.bpfnet(once...)
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		time.Sleep(400 * time.Millisecond)
		n.sh(t, burst)
	}
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 10 || strings.Count(stdout.String(), "\n") != 1 {
		t.Errorf("exit %d: %s", cmd.ProcessState.ExitCode(), stdout.String())
	}
	n.must(t, "unload", "--all", "--detach")
}

// TestBurstGone takes the interface of a Pod away while its burst is on: its counters
// go with it, and the alert ends.
func TestBurstGone(t *testing.T) {
	n := newNode(t)
	container(t, n.podA, "kubepods/burstable/pod0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f/"+containerID(t), "sleep", "600")
	n.sh(t, "ip -n $POD_A neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0")
	n.must(t, "load", "pod-traffic")
	dir := t.TempDir()
	follower := n.bpfnet("attach", "tc", "pod-traffic", "--all-pods", "--follow", "-o", "ndjson")
	followed := begin(t, follower, dir+"/events", dir+"/notes", `"event"`)
	watched := begin(t, n.bpfnet("watch", "alerts", "--burst", "1MB/2s", "--interval", "200ms", "--count", "2", "-o", "ndjson"), dir+"/alerts", dir+"/said", "no list alerts yet")
	n.sh(t, burst)
	n.sh(t, "sleep 0.5; ip -n $HOST link del veth-a")
	alerts := burstAlerts(t, watched())
	if end := alerts[1]; end.EndedAt == nil || end.Evidence.EndedBy == nil || *end.Evidence.EndedBy != "gone" || end.Observed.Amount != 0 || end.Fingerprint != alerts[0].Fingerprint {
		t.Errorf("%+v", alerts)
	}
	if err := follower.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if events := followed(); !strings.Contains(events, `"event":"gone"`) {
		t.Errorf("the interface wasn't gone: %s", events)
	}
	n.must(t, "unload", "--all", "--detach")
}
