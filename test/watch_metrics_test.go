package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// until waits until a scrape of a watch has series, and returns it.
func (e exporter) until(lines ...string) string {
	e.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		text, missing := e.text(), ""
		for _, line := range lines {
			if !strings.Contains(text, line+"\n") {
				missing = line
			}
		}
		if missing == "" {
			return text
		}
		if time.Now().After(deadline) {
			e.Fatalf("no %s in %s\n%s", missing, text, e.notes)
		}
	}
}

// A watch counts the alerts of a real burst and what its sinks make of them; promtool
// finds nothing wrong, and a real Prometheus raises the alert that ships for what wasn't
// delivered.
func TestWatchMetrics(t *testing.T) {
	commands, err := prometheus()
	if err != nil {
		t.Skipf("Debian's package of Prometheus can't be fetched: %v", err)
	}
	n := newNode(t)
	var requests atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch requests.Add(1) {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer web.Close()
	n.sh(t, "ip -n $POD_A neigh add 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0")
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	e := newExporter(t, n.bpfnet("watch", "alerts", "--rule", "burst", "--burst", "1MB/2s,transmit", "--interval", "200ms", "--listen", "127.0.0.1:0",
		"--sink", "webhook="+web.URL+"/secret", "--sink", "file="+filepath.Join(t.TempDir(), "alerts")))
	sink := fmt.Sprintf(`{sink="webhook=%s"} `, web.URL)
	first := e.until(`bpfnet_alerts_total{rule="blocklist",severity="warning"} 0`, `bpfnet_alerts_total{rule="burst",severity="warning"} 0`,
		`bpfnet_alerts_firing{rule="burst"} 0`, `bpfnet_sink_up`+sink+"1", `bpfnet_sink_deliveries_total`+sink+"0")
	check := exec.Command(filepath.Join(commands, "promtool"), "check", "metrics")
	check.Stdin = strings.NewReader(first)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	for _, hidden := range []string{"secret", addressA} {
		if strings.Contains(first, hidden) {
			t.Errorf("%s is in %s", hidden, first)
		}
	}
	if exported := n.export(t).text(); fmt.Sprint(seriesOf(exported, "bpfnet_lost_")) != fmt.Sprint(seriesOf(first, "bpfnet_lost_")) {
		t.Errorf("the watch lost %q, the exporter says %q", seriesOf(first, "bpfnet_lost_"), seriesOf(exported, "bpfnet_lost_"))
	}

	dir, at := t.TempDir(), freeAddress(t)
	rules, err := filepath.Abs("../deploy/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files: ['%s']\nscrape_configs: [{job_name: bpfnet, static_configs: [{targets: ['%s']}]}]", rules, e.address)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	serve(t, exec.Command(filepath.Join(commands, "prometheus"), "--config.file", filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", at, "--log.level", "error"))
	waitFor(t, "Prometheus scrapes", func() bool { return strings.Contains(query(at, `bpfnet_sink_refused_total`), " 0 ") })
	n.sh(t, burst)
	e.until(`bpfnet_alerts_total{rule="burst",severity="warning"} 1`, `bpfnet_alerts_firing{rule="burst"} 1`)
	e.until(`bpfnet_alerts_total{rule="burst",severity="warning"} 1`, `bpfnet_alerts_firing{rule="burst"} 0`, `bpfnet_sink_deliveries_total`+sink+"1",
		`bpfnet_sink_refused_total`+sink+"1", `bpfnet_sink_retries_total`+sink+"1", `bpfnet_sink_queue_length`+sink+"0", `bpfnet_sink_up`+sink+"0")
	waitFor(t, "the alert fires", func() bool {
		return strings.Contains(query(at, `ALERTS{alertname="BpfnetAlertsUndelivered",alertstate="firing",sink="webhook=`+web.URL+`"}`), " 1 ")
	})
}

// seriesOf are the series of a text whose names begin with something.
func seriesOf(text, prefix string) (lines []string) {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
