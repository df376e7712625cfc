package metrics

import (
	"context"
	"net"
	"net/http"
	"sync"

	"bpfnet/internal/alert"
	"bpfnet/internal/sink"
)

// Watch makes metrics of a watch for alerts: what it has raised, how its sinks do, and
// what found no room on the way.
type Watch struct {
	exporter *Exporter
	sinks    func() []sink.Status

	mu     sync.Mutex
	raised map[raised]float64
	firing map[string]map[string]bool // fingerprints of what is on, by rule
}

type raised struct {
	rule     string
	severity alert.Severity
}

// NewWatch returns a Watch that has counted nothing yet; sinks is asked in each scrape.
func NewWatch(source Source, o Options, sinks func() []sink.Status) *Watch {
	w := &Watch{exporter: New(source, o), sinks: sinks, raised: map[raised]float64{}, firing: map[string]map[string]bool{}}
	for _, rule := range alert.Rules() {
		for _, severity := range alert.Severities() {
			w.raised[raised{rule, alert.Severity(severity)}] = 0
		}
		if (alert.Alert{Rule: rule}).Lasts() {
			w.firing[rule] = map[string]bool{}
		}
	}
	return w
}

// Count takes an alert, or the end of one. A nil Watch counts nothing.
func (w *Watch) Count(a alert.Alert) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.EndedAt != nil {
		delete(w.firing[a.Rule], a.Fingerprint)
		return
	}
	w.raised[raised{a.Rule, a.Severity}]++
	if on := w.firing[a.Rule]; on != nil {
		on[a.Fingerprint] = true
	}
}

// Serve is as Exporter's.
func (w *Watch) Serve(ctx context.Context, l net.Listener, webConfig string) error {
	handler, err := w.Handler()
	if err != nil {
		return err
	}
	return serve(ctx, l, handler, webConfig, w.exporter.Note)
}

// Handler is as Exporter's.
func (w *Watch) Handler() (http.Handler, error) {
	return w.exporter.handler("Metrics of a watch for alerts", w.scrape)
}

func (w *Watch) scrape(ctx context.Context) (*snapshot, error) {
	e := w.exporter
	return e.once(ctx, func(s *snapshot) {
		w.writeAlerts(s)
		w.writeSinks(s)
		loaded := e.readInstances(ctx, s)
		e.part(ctx, s, "blocklist", func() error {
			overview, err := e.source.Blocklist().Overview(ctx)
			if err == nil {
				writeLosses(s, overview)
			}
			return err
		})
		e.part(ctx, s, "dns", func() error { return e.readDNS(s, ofProgram(loaded, "dns")) })
	})
}

func (w *Watch) writeAlerts(s *snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for what, n := range w.raised {
		s.set(alertsTotal, n, what.rule, string(what.severity))
	}
	for rule, on := range w.firing {
		s.set(alertsFiring, float64(len(on)), rule)
	}
}

// writeSinks adds up sinks of one name; they are up if all are.
func (w *Watch) writeSinks(s *snapshot) {
	down := map[string]bool{}
	for _, one := range w.sinks() {
		s.add(sinkDeliveries, float64(one.Delivered), one.Sink)
		s.add(sinkDropped, float64(one.Dropped), one.Sink)
		s.add(sinkRefused, float64(one.Refused), one.Sink)
		s.add(sinkRetries, float64(one.Retries), one.Sink)
		s.add(sinkQueue, float64(one.Waiting), one.Sink)
		if down[one.Sink] = down[one.Sink] || one.Failing; down[one.Sink] {
			s.set(sinkUp, 0, one.Sink)
		} else {
			s.set(sinkUp, 1, one.Sink)
		}
	}
}
