package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// notified is what Alertmanager sends on.
type notified struct {
	Status string
	Alerts []struct {
		Status              string
		Labels, Annotations map[string]string
		StartsAt, EndsAt    time.Time
	}
}

// alertmanager starts Debian's Alertmanager, whose notifications go to a function, and
// returns its URL.
func alertmanager(t *testing.T, notify func(notified)) string {
	t.Helper()
	commands, err := prometheus()
	if err != nil {
		t.Skipf("Debian's package of Alertmanager can't be fetched: %v", err)
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var n notified
		if body, err := io.ReadAll(r.Body); err != nil || json.Unmarshal(body, &n) != nil {
			t.Errorf("%v: %s", err, body)
		}
		notify(n)
	}))
	t.Cleanup(receiver.Close)
	dir, at := t.TempDir(), freeAddress(t)
	config := fmt.Sprintf(`
route: {receiver: here, group_by: [alertname], group_wait: 0s, group_interval: 1s}
receivers: [{name: here, webhook_configs: [{url: '%s'}]}]`, receiver.URL)
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	const within = `mount -t tmpfs none /usr/share && mkdir /usr/share/prometheus && ln -s "$0"/../share/prometheus/alertmanager /usr/share/prometheus && exec "$0"/prometheus-alertmanager "$@"`
	server := exec.Command("unshare", "--mount", "sh", "-c", within, commands, "--config.file", filepath.Join(dir, "config.yml"),
		"--storage.path", filepath.Join(dir, "data"), "--web.listen-address", at, "--cluster.listen-address=", "--log.level", "warn")
	serve(t, server)
	return "http://" + at
}

// TestAlertmanager has a Pod send a burst: a real Alertmanager, which may not listen yet
// when the watch begins, says that it is on, and that it is over. A webhook and a file
// get the same.
func TestAlertmanager(t *testing.T) {
	n := newNode(t)
	var mu sync.Mutex
	var got []notified
	var posted []string
	at := alertmanager(t, func(n notified) { mu.Lock(); defer mu.Unlock(); got = append(got, n) })
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if posted = append(posted, string(body)); len(posted) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer web.Close()
	const uid = "0b6a1c5e-3c1f-4f0a-9d2e-5a7b8c9d0e1f"
	container(t, n.podA, "kubepods/burstable/pod"+uid+"/"+containerID(t), "sleep", "600")
	n.sh(t, "ip -n $POD_A neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0")
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	n.sh(t, "nsenter --net=/run/netns/$POD_A ping -c1 -q 10.77.0.5 >/dev/null") // so that it is known whose the address is
	dir := t.TempDir()
	watch := n.bpfnet("watch", "alerts", "--burst", "1MB/2s,transmit", "--rule", "burst", "--burst", "1GB/2s,mad=3", "--interval", "200ms", "--count", "2", "--strict",
		"--sink", "alertmanager="+at, "--sink", "webhook="+web.URL, "--sink", "file="+dir+"/alerts")
	// Rules with mad= say so when the first sample was taken.
	end := begin(t, watch, dir+"/out", dir+"/said", "is learning")
	n.sh(t, burst)
	if out := end(); out != "" {
		t.Errorf("stdout has %s", out)
	}
	said, _ := os.ReadFile(dir + "/said")
	text, err := os.ReadFile(dir + "/alerts")
	if err != nil {
		t.Fatal(err)
	}
	alerts := burstAlerts(t, string(text))
	if len(alerts) != 2 || strings.Contains(string(said), "not delivered") {
		t.Fatalf("%s\n%s", text, said)
	}
	began, over := alerts[0], alerts[1]
	mu.Lock()
	if want := strings.SplitAfter(string(text), "\n"); len(posted) != 3 || posted[0] != posted[1] || posted[1]+"\n"+posted[2]+"\n" != want[0]+want[1] {
		t.Errorf("posted %q", posted)
	}
	mu.Unlock()

	find := func(status string) (found bool) {
		mu.Lock()
		defer mu.Unlock()
		for _, one := range got {
			for _, a := range one.Alerts {
				if a.Status != status {
					continue
				}
				found = true
				if a.Labels["alertname"] != "BpfnetBurst" || a.Labels["fingerprint"] != began.Fingerprint || a.Labels["instance"] == "" ||
					!strings.Contains(a.Annotations["summary"], "1MB/2s,transmit of Pod "+uid) || !a.StartsAt.Equal(began.StartedAt) {
					t.Errorf("%+v", a)
				}
				if status == "resolved" && !a.EndsAt.Equal(*over.EndedAt) {
					t.Errorf("it was over at %v, not %v", over.EndedAt, a.EndsAt)
				}
			}
		}
		return found
	}
	for _, status := range []string{"firing", "resolved"} {
		for deadline := time.Now().Add(20 * time.Second); !find(status); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never %s: %+v", status, got)
			}
		}
	}
	n.must(t, "unload", "--all", "--detach")
}

// TestSinksAtTheEnd interrupts a watch: what still can be delivered is, and what can't
// is told.
func TestSinksAtTheEnd(t *testing.T) {
	samples, err := os.ReadFile("testdata/samples.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var posted []string
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		time.Sleep(time.Second)
		mu.Lock()
		defer mu.Unlock()
		posted = append(posted, string(body)+"\n")
	}))
	defer web.Close()
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		posted = nil
		dir := t.TempDir()
		watch := exec.Command(binary, "watch", "alerts", "--replay", "-", "--burst", "10kB/10s", "--sink", "file="+dir+"/alerts", "--sink", "webhook="+web.URL, "--sink", "alertmanager=http://127.0.0.1:1")
		in, err := watch.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		watch.Stderr = &said
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(samples); err != nil {
			t.Fatal(err)
		}
		written := func() string { text, _ := os.ReadFile(dir + "/alerts"); return string(text) }
		for deadline := time.Now().Add(20 * time.Second); strings.Count(written(), "\n") < 2 && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		start := time.Now()
		_ = watch.Process.Signal(signal)
		err = watch.Wait()
		if took := time.Since(start); err != nil || took > 8*time.Second {
			t.Errorf("%v: %v after %v: %s", signal, err, took, said.String())
		}
		if strings.Join(posted, "") != written() || len(posted) != 2 {
			t.Errorf("%v: posted %q, written %q", signal, posted, written())
		}
		want := "note: sink alertmanager=http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused\n" +
			"note: sink alertmanager=http://127.0.0.1:1: alerts that were not delivered: 2 (no room in the queue: 0, refused: 0, left in the end: 2)\n"
		if !strings.HasPrefix(said.String(), want) {
			t.Errorf("%v: %s", signal, said.String())
		}
	}
}
