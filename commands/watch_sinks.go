package commands

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/sink"
	"bpfnet/output"
)

func sinkFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "sink", DefaultText: sink.Stdout, Usage: "send alerts to `SINK`, " + sink.Grammar + ": stdout, file=PATH, syslog, webhook=URL, alertmanager=URL, elasticsearch=URL, otlp=URL, exec=COMMAND"}
}

// alertSinks is where alerts go.
type alertSinks struct {
	set    *sink.Set // nil: nowhere but to stdout
	stdout bool
	note   func(string)
}

// readSinks reads the sinks of a file, and those that --sink adds.
func readSinks(c *cli.Context, texts []string) (specs []sink.Spec, err error) {
	given := map[string]bool{}
	for _, text := range append(texts, c.StringSlice("sink")...) {
		spec, err := sink.Parse(text)
		if err != nil {
			return nil, err
		}
		if given[text] {
			return nil, usage(c, "--sink %s is given twice", spec.Name())
		}
		given[text] = true
		specs = append(specs, spec)
	}
	return specs, nil
}

// openSinks opens sinks; close them when done.
func (e *Env) openSinks(c *cli.Context, all []sink.Spec) (alertSinks, error) {
	if err := e.checkWatchMetrics(c); err != nil {
		return alertSinks{}, err
	}
	var one sync.Mutex
	s := alertSinks{stdout: len(all) == 0, note: func(text string) {
		one.Lock()
		defer one.Unlock()
		e.note(c, "note: %s", text)
	}}
	var specs []sink.Spec
	for _, spec := range all {
		if spec.Kind() == sink.Stdout {
			s.stdout = true
			continue
		}
		specs = append(specs, spec)
	}
	if len(specs) == 0 {
		return s, nil
	}
	host, err := e.Hostname()
	if err != nil {
		return s, fmt.Errorf("read the name of this machine: %w", err)
	}
	s.set, err = sink.Open(specs, sink.Options{Host: host, Getenv: e.Getenv, ReadFile: e.ReadFile, Now: e.Now, Note: s.note})
	return s, err
}

// whileWanted returns a context that ends after limit, if it isn't 0, and when nobody
// reads stdout, if that is where alerts go.
func (e *Env) whileWanted(parent context.Context, s alertSinks, limit time.Duration) (context.Context, context.CancelFunc) {
	switch {
	case s.stdout:
		return e.whileRead(parent, limit)
	case limit > 0:
		return context.WithTimeout(parent, limit)
	}
	return context.WithCancel(parent)
}

// tell sends what was found at a time to all sinks, unless a rule or a silence keeps it
// back.
func (w *alertWatch) tell(f found, at time.Time) error {
	f, told := w.gate.admit(f, at)
	if !told {
		return nil
	}
	return w.send(f)
}

// send sends an alert to all sinks; to stdout it goes with the next flush.
func (w *alertWatch) send(f found) error {
	document, err := output.Marshal(f.alert)
	if err != nil {
		return err
	}
	w.shown.Add(1)
	w.metrics.Count(f.alert)
	w.sinks.set.Send(sink.Event{Alert: f.alert, Document: document})
	if !w.sinks.stdout {
		return nil
	}
	return w.stream.Add(document, f.line)
}

// closeSinks waits some seconds for what isn't delivered, says what never was, and
// returns how much that is.
func (w *alertWatch) closeSinks() (sum uint64) {
	for _, u := range w.sinks.set.Close() {
		w.note(fmt.Sprintf("sink %s: alerts that were not delivered: %d (no room in the queue: %d, refused: %d, left in the end: %d)",
			u.Sink, u.Sum(), u.Dropped, u.Refused, u.Left))
		sum += u.Sum()
	}
	return sum
}
