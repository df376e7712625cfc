package metrics

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"bpfnet/internal/alert"
	"bpfnet/internal/blocklist"
	"bpfnet/internal/sink"
)

// scrapeWatch is what a scrape of a watch answers.
func scrapeWatch(t *testing.T, w *Watch) string {
	t.Helper()
	return scraped(t, w.Handler)
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

func newWatch(f *fake, sinks ...sink.Status) *Watch {
	return NewWatch(f, Options{Build: Build{"v1", "abc", "go1"}, Now: time.Now, Note: func(string) {}}, func() []sink.Status { return sinks })
}

// Alerts are counted once, and are on until they are over.
func TestWatchAlerts(t *testing.T) {
	w := newWatch(newFake())
	of := func(rule, fingerprint string, over bool) alert.Alert {
		a := alert.Alert{Rule: rule, Severity: alert.Warning, Fingerprint: fingerprint}
		if over {
			a.EndedAt = &time.Time{}
		}
		return a
	}
	check := func(when string, want ...string) {
		t.Helper()
		if got := seriesOf(scrapeWatch(t, w), "bpfnet_alerts_"); !slices.Equal(got, want) {
			t.Errorf("%s: %q", when, got)
		}
	}
	var first, second, third []string
	for _, rule := range alert.Rules() {
		if (alert.Alert{Rule: rule}).Lasts() {
			on := `bpfnet_alerts_firing{rule="` + rule + `"} `
			first, second, third = append(first, on+"0"), append(second, on+"2"), append(third, on+"1")
		}
	}
	for _, rule := range alert.Rules() {
		for _, severity := range alert.Severities() {
			all, grown := `bpfnet_alerts_total{rule="`+rule+`",severity="`+severity+`"} `, []string{"0", "0"}
			if severity == string(alert.Warning) {
				grown = []string{"2", "3"}
			}
			first, second, third = append(first, all+"0"), append(second, all+grown[0]), append(third, all+grown[1])
		}
	}
	slices.Sort(first)
	slices.Sort(second)
	slices.Sort(third)
	check("at first", first...)
	for _, rule := range alert.Rules() {
		w.Count(of(rule, "a", false))
		w.Count(of(rule, "b", false))
	}
	check("raised", second...)
	for _, rule := range alert.Rules() {
		w.Count(of(rule, "a", true))
		w.Count(of(rule, "c", false))
		w.Count(of(rule, "c", true))
	}
	check("over", third...)
	var none *Watch
	none.Count(of(alert.RuleBurst, "a", false))
}

// Sinks of one name are one series, and up if all are.
func TestWatchSinks(t *testing.T) {
	w := newWatch(newFake(),
		sink.Status{Sink: "webhook=https://a", Delivered: 5, Dropped: 1, Refused: 2, Waiting: 3, Retries: 4, Failing: true},
		sink.Status{Sink: "webhook=https://a", Delivered: 5}, sink.Status{Sink: "syslog"})
	var want []string
	for metric, values := range map[string][2]string{
		"deliveries_total": {"0", "10"}, "dropped_total": {"0", "1"}, "refused_total": {"0", "2"},
		"retries_total": {"0", "4"}, "queue_length": {"0", "3"}, "up": {"1", "0"},
	} {
		want = append(want, `bpfnet_sink_`+metric+`{sink="syslog"} `+values[0], `bpfnet_sink_`+metric+`{sink="webhook=https://a"} `+values[1])
	}
	slices.Sort(want)
	if got := seriesOf(scrapeWatch(t, w), "bpfnet_sink_"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// What was lost on the way to the watch is what the exporter says.
func TestWatchLosses(t *testing.T) {
	f := newFake("dns")
	f.lists.overview.Packets = map[string]blocklist.Counter{"events_lost": {Packets: 7}, "hits_full": {Packets: 3}}
	text := scrapeWatch(t, newWatch(f))
	got, want := seriesOf(text, "bpfnet_lost_"), seriesOf(watch(t, f, 1).text(), "bpfnet_lost_")
	if len(got) != 3 || !slices.Equal(got, want) {
		t.Errorf("%q, the exporter has %q", got, want)
	}
	if read := seriesOf(text, "bpfnet_scrape_success"); len(read) != 3 {
		t.Errorf("%q", read)
	}
}

// What a watch serves follows Prometheus' rules, and is among the metrics that there are.
func TestWatchLint(t *testing.T) {
	f := newFake("dns")
	f.lists.overview.Packets = map[string]blocklist.Counter{}
	text := scrapeWatch(t, newWatch(f, sink.Status{Sink: "syslog"}))
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) != 0 {
		t.Errorf("%v %v", problems, err)
	}
	known := map[string]bool{}
	for _, m := range All() {
		known[m.Name] = true
	}
	for _, line := range seriesOf(text, "# TYPE bpfnet_") {
		if name := strings.Fields(line)[2]; !known[name] {
			t.Errorf("%s isn't in All: %v", name, slices.Sorted(maps.Keys(known)))
		}
	}
}

// Alerts are counted while scrapes read.
func TestWatchWhileScraped(t *testing.T) {
	w := newWatch(newFake())
	var counting sync.WaitGroup
	counting.Go(func() {
		for range 1000 {
			w.Count(alert.Alert{Rule: alert.RuleBurst, Severity: alert.Warning, Fingerprint: "a"})
		}
	})
	for range 10 {
		scrapeWatch(t, w)
	}
	counting.Wait()
	if text := scrapeWatch(t, w); !strings.Contains(text, `bpfnet_alerts_total{rule="burst",severity="warning"} 1000`) {
		t.Error(text)
	}
}
