package commands

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/detect"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

// burstInterval is the time between two samples unless --interval says otherwise.
const burstInterval = time.Second

func burstFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "burst", Usage: "tell of endpoints that move as much as a `BURST`, AMOUNT/TIME[,transmit|receive|both][,for=TIME][,mad=FACTOR], as in 10MiB/10s,transmit or 5000packets/1s"},
		&cli.StringFlag{Name: "replay", Usage: "look for bursts in `FILE|-`, which watch pods -o ndjson has printed, instead of the kernel"},
		&cli.DurationFlag{Name: "interval", Value: burstInterval, Usage: "`TIME` between two samples for --burst"},
		&cli.StringFlag{Name: "instance", Value: podTraffic, Usage: "loaded instance `NAME` that counts for --burst"},
		&cli.StringFlag{Name: "observe", Usage: "where packets are counted for --burst, `tc|cgroup`; default: as watch pods"},
	}
}

// alertRules are the rules that are on.
type alertRules struct {
	bursts []detect.Burst
	hits   bool // the rule blocklist was asked for
	only   bool // it wasn't, but others were
}

// wantsHits says whether the rule blocklist is on: if others are and nothing is said,
// where it may notice something.
func (r alertRules) wantsHits(ctx context.Context, b Backend) (bool, error) {
	if r.hits || r.only {
		return r.hits, nil
	}
	loaded, _, err := blocklistInstances(ctx, b)
	return loaded != "", err
}

// readAlertRules checks the command line of watch alerts.
func readAlertRules(c *cli.Context) (r alertRules, err error) {
	if err := args(c); err != nil {
		return r, err
	}
	named := c.StringSlice("rule")
	for _, rule := range named {
		if _, err := oneOf("rule", rule, alert.Rules()...); err != nil {
			return r, err
		}
	}
	if c.Bool("once") && c.IsSet("for") {
		return r, usage(c, "--once and --for exclude each other")
	}
	if r.bursts, err = readBursts(c); err != nil {
		return r, err
	}
	r.hits = slices.Contains(named, alert.RuleBlocklist) || c.IsSet("list") || len(r.bursts) == 0
	r.only = !r.hits && len(named) > 0
	if err := checkAlertRules(c, named, r); err != nil {
		return r, err
	}
	return r, checkEventFlags(c)
}

func readBursts(c *cli.Context) (bursts []detect.Burst, err error) {
	for _, text := range c.StringSlice("burst") {
		b, err := detect.ParseBurst(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(bursts, b) {
			return nil, usage(c, "--burst %s is given twice", b)
		}
		if interval := c.Duration("interval"); interval > b.Window {
			return nil, usage(c, "--interval %s is longer than the window of --burst %s", interval, b)
		}
		bursts = append(bursts, b)
	}
	if interval := c.Duration("interval"); interval < 10*time.Millisecond {
		return nil, usage(c, "--interval %s is too short: the least is 10ms", interval)
	}
	return bursts, traffic.View{Point: traffic.Point(c.String("observe"))}.Check()
}

// checkAlertRules refuses flags of rules that are off.
func checkAlertRules(c *cli.Context, named []string, r alertRules) error {
	burst, hits := slices.Contains(named, alert.RuleBurst), slices.Contains(named, alert.RuleBlocklist)
	switch {
	case len(r.bursts) > 0 && hits && !burst:
		return usage(c, "--rule %s turns off what --burst asks for: --rule %s as well, or neither", alert.RuleBlocklist, alert.RuleBurst)
	case burst && !hits && c.IsSet("list"):
		return usage(c, "--list is for the rule %s", alert.RuleBlocklist)
	}
	if len(r.bursts) == 0 {
		for _, flag := range []string{"replay", "interval", "instance", "observe"} {
			if c.IsSet(flag) {
				burst = true
			}
		}
		if burst {
			return usage(c, "nothing says what a burst is").Hint("--burst 10MiB/10s")
		}
	}
	if !c.IsSet("replay") {
		return nil
	}
	for _, flag := range []string{"list", "steal", "for", "interval", "instance", "observe"} {
		if c.IsSet(flag) {
			return usage(c, "--replay and --%s exclude each other", flag)
		}
	}
	if hits {
		return usage(c, "--replay: there are no recordings for the rule %s", alert.RuleBlocklist)
	}
	return nil
}

// burstWatch looks for bursts.
type burstWatch struct {
	detector *detect.Detector
	samples  *podSamples // nil: of a recording
	interval time.Duration
}

// podSample is a sample, and what people should know of it.
type podSample struct {
	traffic.Document
	notes []string
}

// watchBursts takes the first sample: bursts are what comes after it.
func (e *Env) watchBursts(c *cli.Context, b Backend, rules []detect.Burst) (*burstWatch, error) {
	samples, err := e.podSamples(c, b, c.String("instance"), traffic.View{Point: traffic.Point(c.String("observe"))})
	if err != nil {
		return nil, err
	}
	if _, err := samples.take(c.Context); err != nil {
		return nil, err
	}
	w := &burstWatch{detector: detect.New(rules), samples: samples, interval: c.Duration("interval")}
	w.detector.Step(samples.document())
	for _, r := range rules {
		if r.Factor > 0 {
			e.note(c, "note: --burst %s is learning: it tells nothing of an endpoint that was watched for less than %s", r, r.Learning())
		}
	}
	return w, nil
}

// read takes samples until ctx ends.
func (w *burstWatch) read(ctx context.Context, to chan<- podSample) error {
	return ticks{interval: w.interval}.run(ctx, func() error {
		notes, err := w.samples.take(ctx)
		if err != nil {
			return err
		}
		select {
		case to <- podSample{w.samples.document(), notes}:
		case <-ctx.Done():
		}
		return nil
	})
}

// showBursts shows the alerts of a sample, and says whether there were enough or
// all of one look.
func (w *alertWatch) showBursts(s podSample) (over bool, err error) {
	for _, note := range s.notes {
		w.note(note)
	}
	for _, f := range w.bursts.detector.Step(s.Document) {
		if w.enough() {
			break
		}
		if err := w.tell(alert.OfBurst(f), func() string { return burstLine(f) }); err != nil {
			return true, err
		}
	}
	live := w.bursts.samples != nil
	return w.enough() || live && w.once && w.bursts.detector.Ready(), w.stream.Flush()
}

// moreRoom is how packets that found no room come to have one.
const moreRoom = "bpfnet load pod-traffic --max-entries pods=N   makes room for more addresses"

// conclude says what there is to know of bursts in the end, and returns how many
// packets no endpoint's counters have.
func (w *burstWatch) conclude(note func(string)) uint64 {
	d := w.detector
	if n := d.Firing(); n > 0 {
		note(fmt.Sprintf("bursts that aren't over: %d", n))
	}
	if n := d.Learning(); n > 0 {
		note(fmt.Sprintf("what is usual isn't known yet for endpoints, once for each rule that wants it: %d", n))
	}
	if apart, window, tell := d.TooFar(); tell {
		note(fmt.Sprintf("samples were up to %s apart, longer than a window of %s: bursts in between may not be seen", apart, window))
	}
	if n := d.MapFull(); n > 0 {
		note(fmt.Sprintf("packets that no endpoint's counters have, because the map was full: %d", n))
	}
	return d.MapFull()
}

// replayAlerts shows the bursts of a recording.
func (e *Env) replayAlerts(c *cli.Context, sinks alertSinks, rules alertRules) error {
	p, err := e.printer(c)
	if err != nil {
		return err
	}
	c.Context = e.Interrupts(c.Context)
	source, input, err := e.input(c.Context, c.String("replay"))
	if err != nil {
		return err
	}
	defer input.Close()
	w := &alertWatch{
		stream: p.Stream(), sinks: sinks, note: sinks.note, most: c.Uint64("count"), once: c.Bool("once"), strict: c.Bool("strict"),
		bursts: &burstWatch{detector: detect.New(rules.bursts)},
	}
	err = detect.Replay(input, source, func(doc traffic.Document) error {
		over, err := w.showBursts(podSample{Document: doc})
		switch {
		case err != nil:
			return err
		case over:
			return errEnough
		}
		return c.Context.Err()
	})
	if errors.Is(err, errEnough) || c.Context.Err() != nil {
		err = nil
	}
	return w.conclude(err)
}

// burstLine is a burst for people.
func burstLine(f detect.Finding) string {
	at, fate := f.Started, "began"
	if !f.Ended.IsZero() {
		at, fate = f.Ended, "ended"
	}
	s := f.Source
	who := podName(s.Namespace, s.Pod, s.PodUID)
	if who == "" {
		who = podContainer(s)
	}
	amount := output.Count
	if f.Rule.Metric == detect.Bytes {
		amount = output.Bytes
	}
	line := fmt.Sprintf("%s  %-10s  %-18s  %-7s  %8s of %-8s  %-39s  %-10s  %s",
		at.Local().Format("15:04:05.000"), alert.RuleBurst, f.Rule, fate, amount(f.Amount), amount(f.Threshold), s.Address, podPlace(s), who)
	return strings.TrimRight(line, " ")
}
