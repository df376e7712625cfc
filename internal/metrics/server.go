package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/exporter-toolkit/web"

	"bpfnet/internal/fault"
)

const (
	// scrapeTimeout is how long a scrape may take whose client doesn't say it.
	scrapeTimeout = 10 * time.Second
	// answering is what is left of a client's time for the answer itself.
	answering = 500 * time.Millisecond
	// timeoutHeader is where Prometheus says, in seconds, how long it waits.
	timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"
)

// timeoutOf is how long reading the kernel may take for a request.
func timeoutOf(r *http.Request) time.Duration {
	seconds, err := strconv.ParseFloat(r.Header.Get(timeoutHeader), 64)
	asked := time.Duration(seconds * float64(time.Second))
	if err != nil || asked <= 0 || asked > scrapeTimeout {
		return scrapeTimeout - answering
	}
	return max(asked-answering, asked/2)
}

// Handler serves /metrics, /-/healthy, and a page that leads there.
func (e *Exporter) Handler() (http.Handler, error) {
	return e.handler("Metrics of what bpfnet has loaded", e.scrape)
}

func (e *Exporter) handler(about string, scrape func(context.Context) (*snapshot, error)) (http.Handler, error) {
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name: "bpfnet", Description: about, Version: e.Build.Version, Profiling: "false",
		Links: []web.LandingLinks{{Address: "/metrics", Text: "Metrics"}, {Address: "/-/healthy", Text: "Health"}},
	})
	if err != nil {
		return nil, err
	}
	self := prometheus.NewRegistry()
	self.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeoutOf(r))
		defer cancel()
		s, err := scrape(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		all := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
			own, err := self.Gather()
			return append(s.gather(), own...), err
		})
		promhttp.HandlerFor(all, promhttp.HandlerOpts{}).ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "bpfnet is healthy.") })
	mux.Handle("GET /{$}", landing)
	return mux, nil
}

// CheckWebConfig returns an error of kind fault.ErrUsage if a configuration file of
// exporter-toolkit, or a certificate that it names, is wrong.
func CheckWebConfig(path string) error {
	if err := web.Validate(path); err != nil {
		return fault.New(fault.ErrUsage, "read web configuration %s: %w", path, err).
			Hint("https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md says what it may have")
	}
	return nil
}

// Serve answers at a listener until ctx ends, which isn't an error; what is being
// answered then is answered. webConfig is a configuration file of exporter-toolkit, ""
// for neither TLS nor authentication.
func (e *Exporter) Serve(ctx context.Context, l net.Listener, webConfig string) error {
	handler, err := e.Handler()
	if err != nil {
		return err
	}
	return serve(ctx, l, handler, webConfig, e.Note)
}

func serve(ctx context.Context, l net.Listener, handler http.Handler, webConfig string, note func(string)) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	logger := slog.New(slog.NewTextHandler(noteWriter{note}, &slog.HandlerOptions{Level: slog.LevelError}))
	ended := make(chan error, 1)
	go func() { ended <- web.Serve(l, server, &web.FlagConfig{WebConfigFile: &webConfig}, logger) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve metrics: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*scrapeTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		return fmt.Errorf("finish scrapes: %w", err)
	}
	return nil
}

// noteWriter makes notes of lines.
type noteWriter struct{ note func(string) }

func (w noteWriter) Write(line []byte) (int, error) {
	w.note(strings.TrimSpace(string(line)))
	return len(line), nil
}
