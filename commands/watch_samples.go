package commands

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/baseline"
	"bpfnet/internal/detect"
	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// samples are what rules look at, taken one after the other.
type samples struct {
	pods  *traffic.Document // nil: no rule looks at these
	peers *peers.Document   // the same
	notes []string          // what people should know of them
}

// sampleRule notices things in samples.
type sampleRule interface {
	// step looks at the next samples.
	step(samples) []found
	// Ready says whether everything that one look is to find may have been found.
	Ready() bool
	// conclude says what there is to know in the end, and returns an error of kind
	// fault.ErrLossy if something couldn't be seen.
	conclude(note func(string)) error
}

// time is when they were taken, by the clock of who took them.
func (s samples) time() time.Time {
	if s.pods == nil {
		return s.peers.Time
	}
	return s.pods.Time
}

// found is what a rule has noticed.
type found struct {
	alert alert.Alert
	text  string        // of the rule; "": its kind has none
	line  func() string // for people
}

func foundAs(a alert.Alert, text string, line func() string) found { return found{a, text, line} }

// sampleSource takes samples of one kind.
type sampleSource interface {
	// take takes the next sample, and returns what people should know of it.
	take(ctx context.Context) ([]string, error)
	// put puts the document of the last sample among the others.
	put(*samples)
}

// sampleWatch applies rules to samples.
type sampleWatch struct {
	rules    []sampleRule
	sources  []sampleSource // none: of a recording
	interval time.Duration
}

// sampleRules makes the rules that look at samples.
func (r alertRules) sampleRules(internal detect.Internal) (rules []sampleRule) {
	if len(r.bursts) > 0 {
		rules = append(rules, burstRule{detect.New(r.bursts)})
	}
	if len(r.connections) > 0 {
		rules = append(rules, connectionsRule{burstRule{detect.New(r.connections)}})
	}
	if len(r.fanouts) > 0 {
		rules = append(rules, fanoutRule{detect.NewFanouts(r.fanouts, internal)})
	}
	if len(r.scans) > 0 {
		rules = append(rules, scanRule{detect.NewScans(r.scans)})
	}
	for _, b := range r.baselines {
		rules = append(rules, baselineRule{baseline.NewCheck(b.learned, b.Rule)})
	}
	return rules
}

// watchSamples takes the first samples: what rules notice comes after these.
func (e *Env) watchSamples(c *cli.Context, b Backend, r alertRules) (*sampleWatch, error) {
	w := &sampleWatch{interval: r.interval}
	pods, met := r.wantsPods(), r.wantsPeers()
	if len(r.baselines) > 0 {
		counted, contacted, err := e.baselineKinds(c, b, r.instance, r.peers)
		if err != nil {
			return nil, err
		}
		pods, met = pods || counted, met || contacted
	}
	var err error
	if w.sources, err = e.sampleSources(c, b, r.instance, r.peers, traffic.Point(r.observe), pods, met); err != nil {
		return nil, err
	}
	first, err := w.take(c.Context)
	if err != nil {
		return nil, err
	}
	e.notes(c, first.notes)
	internal := detect.Internal{}
	if len(r.fanouts) > 0 {
		if internal, err = e.findInternal(c, b, r); err != nil {
			return nil, err
		}
	}
	w.rules = r.sampleRules(internal)
	for _, rule := range w.rules {
		rule.step(first)
	}
	e.noteLearning(c, slices.Concat(r.bursts, r.connections))
	return w, nil
}

// sampleSources takes samples of traffic and of peers.
func (e *Env) sampleSources(c *cli.Context, b Backend, instance, peersInstance string, point traffic.Point, pods, met bool) (sources []sampleSource, err error) {
	if pods {
		s, err := e.podSamples(c, b, instance, traffic.View{Point: point})
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	if met {
		s, err := e.peerSamples(c, b, peersInstance, peers.View{Point: point})
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
	}
	return sources, nil
}

func (w *sampleWatch) take(ctx context.Context) (s samples, err error) {
	for _, source := range w.sources {
		notes, err := source.take(ctx)
		if err != nil {
			return s, err
		}
		s.notes = append(s.notes, notes...)
		source.put(&s)
	}
	return s, nil
}

// read takes samples until ctx ends.
func (w *sampleWatch) read(ctx context.Context, to chan<- samples) error {
	return ticks{interval: w.interval}.run(ctx, func() error {
		s, err := w.take(ctx)
		if err != nil {
			return err
		}
		select {
		case to <- s:
		case <-ctx.Done():
		}
		return nil
	})
}

// ready says whether one look is over.
func (w *sampleWatch) ready() bool {
	for _, rule := range w.rules {
		if !rule.Ready() {
			return false
		}
	}
	return true
}

// conclude says what there is to know in the end, what several rules say once, and
// returns the first error of what couldn't be seen.
func (w *sampleWatch) conclude(note func(string)) (lossy error) {
	told := map[string]bool{}
	for _, rule := range w.rules {
		err := rule.conclude(func(text string) {
			if !told[text] {
				told[text] = true
				note(text)
			}
		})
		if lossy == nil {
			lossy = err
		}
	}
	return lossy
}

// showSamples shows the alerts of samples, and says whether there were enough or all
// of one look.
func (w *alertWatch) showSamples(s samples) (over bool, err error) {
	for _, note := range s.notes {
		w.note(note)
	}
	for _, rule := range w.samples.rules {
		for _, f := range rule.step(s) {
			if w.enough() {
				break
			}
			if err := w.tell(f, s.time()); err != nil {
				return true, err
			}
		}
	}
	for _, f := range w.gate.late(s.time()) {
		if w.enough() {
			break
		}
		if err := w.send(f); err != nil {
			return true, err
		}
	}
	live := len(w.samples.sources) > 0
	return w.enough() || live && w.once && w.samples.ready(), w.stream.Flush()
}

// replayAlerts shows what rules notice in a recording.
func (e *Env) replayAlerts(c *cli.Context, sinks alertSinks, rules alertRules) error {
	p, err := e.printer(c)
	if err != nil {
		return err
	}
	c.Context = e.Interrupts(c.Context)
	w := newAlertWatch(c, p, sinks, rules)
	w.samples = &sampleWatch{rules: rules.sampleRules(detect.Internal{Prefixes: rules.internal, Endpoints: !rules.all})}
	err = e.replay(c, func(s samples) error {
		over, err := w.showSamples(s)
		if err == nil && over {
			err = errEnough
		}
		return err
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return w.conclude(err)
}

// replay reads the samples of --replay, until the command is interrupted.
func (e *Env) replay(c *cli.Context, step func(samples) error) error {
	source, input, err := e.input(c.Context, c.String("replay"))
	if err != nil {
		return err
	}
	defer input.Close()
	err = detect.Replay(input, source, func(s detect.Sample) error {
		return cmp.Or(step(samples{pods: s.Pods, peers: s.Peers}), c.Context.Err())
	})
	if c.Context.Err() != nil {
		return nil // with what there was until then
	}
	return err
}
