package commands

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/alertconfig"
	"bpfnet/internal/baseline"
	"bpfnet/internal/detect"
	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
	"bpfnet/output"
)

// burstInterval is the time between two samples unless --interval says otherwise.
const burstInterval = time.Second

func burstFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "burst", Usage: "tell of endpoints that move as much as a `BURST`, AMOUNT/TIME[,transmit|receive|both][,for=TIME][,mad=FACTOR], as in 10MiB/10s,transmit or 5000packets/1s"},
		&cli.StringFlag{Name: "replay", Usage: "apply rules to `FILE|-`, which watch pods and watch peers -o ndjson have printed, instead of the kernel"},
		&cli.DurationFlag{Name: "interval", Value: burstInterval, Usage: "`TIME` between two samples for --burst and --baseline"},
		&cli.StringFlag{Name: "instance", Value: podTraffic, Usage: "loaded instance `NAME` that counts for --burst and --baseline"},
		&cli.StringFlag{Name: "observe", Usage: "where packets are counted for --burst and --baseline, `tc|cgroup`; default: as watch pods"},
	}
}

// alertRules are the rules that are on.
type alertRules struct {
	alertSettings
	bursts    []detect.Burst
	baselines []learnedRule
	hits      bool // the rule blocklist was asked for
	only      bool // it wasn't, but others were
}

// sampled says whether a rule looks at samples.
func (r alertRules) sampled() bool { return len(r.bursts) > 0 || len(r.baselines) > 0 }

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
func (e *Env) readAlertRules(c *cli.Context) (r alertRules, err error) {
	if err := args(c); err != nil {
		return r, err
	}
	if r.alertSettings, err = e.readAlertSettings(c); err != nil {
		return r, err
	}
	if c.Bool("once") && c.IsSet("for") {
		return r, usage(c, "--once and --for exclude each other")
	}
	if r.bursts, err = readBursts(c, r.alertSettings); err != nil {
		return r, err
	}
	if r.baselines, err = e.readBaselines(c, r.alertSettings); err != nil {
		return r, err
	}
	r.hits = slices.Contains(r.named, alert.RuleBlocklist) || r.list != "" || !r.sampled()
	r.only = !r.hits && len(r.named) > 0
	if err := checkAlertRules(c, r.named, r); err != nil {
		return r, err
	}
	return r, checkEventFlags(c)
}

// gate decides which alerts are told.
func (r alertRules) gate() *alertGate { return newAlertGate(r.file.Rules, r.silences) }

func readBursts(c *cli.Context, s alertSettings) (bursts []detect.Burst, err error) {
	for _, text := range s.texts(c, alert.RuleBurst) {
		b, err := detect.ParseBurst(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(bursts, b) {
			return nil, usage(c, "--burst %s is given twice", b)
		}
		if s.interval > b.Window {
			return nil, usage(c, "--interval %s is longer than the window of --burst %s", s.interval, b)
		}
		bursts = append(bursts, b)
	}
	if s.interval < alertconfig.LeastInterval {
		return nil, usage(c, "--interval %s is too short: the least is %s", s.interval, alertconfig.LeastInterval)
	}
	return bursts, traffic.View{Point: traffic.Point(s.observe)}.Check()
}

// sampledRules are the rules that look at samples, the flags that turn them on, and
// what writes their texts in one form.
var sampledRules = []struct {
	rule, flag, example string
	form                func(string) (string, error)
}{
	{alert.RuleBurst, "burst", "10MiB/10s", oneForm(detect.ParseBurst)},
	{alert.RuleBaseline, "baseline", "learn.json", oneForm(baseline.ParseRule)},
}

// checkAlertRules refuses flags of rules that are off.
func checkAlertRules(c *cli.Context, named []string, r alertRules) error {
	hits := slices.Contains(named, alert.RuleBlocklist)
	for _, sampled := range sampledRules {
		on, asked := len(r.texts(c, sampled.rule)) > 0, slices.Contains(named, sampled.rule)
		switch {
		case on && len(named) > 0 && !asked:
			return usage(c, "--rule %s turns off what --%s asks for: --rule %s as well, or neither", named[0], sampled.flag, sampled.rule)
		case asked && !on:
			return usage(c, "nothing says what a %s is", sampled.rule).Hint("--%s %s", sampled.flag, sampled.example)
		}
	}
	if len(named) > 0 && !hits && c.IsSet("list") {
		return usage(c, "--list is for the rule %s", alert.RuleBlocklist)
	}
	if !r.sampled() {
		for _, flag := range []string{"replay", "interval", "instance", "observe"} {
			if c.IsSet(flag) {
				return usage(c, "--%s: no rule looks at samples", flag).Hint("--%s %s", sampledRules[0].flag, sampledRules[0].example)
			}
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

// burstRule looks for bursts.
type burstRule struct{ *detect.Detector }

func (r burstRule) step(s samples) (found []found) {
	if s.pods == nil {
		return nil
	}
	for _, f := range r.Step(*s.pods) {
		found = append(found, foundAs(alert.OfBurst(f), f.Rule.String(), func() string { return burstLine(f) }))
	}
	return found
}

func (r burstRule) ready() bool { return r.Ready() }

// noteLearning says of which rules there won't be alerts at once.
func (e *Env) noteLearning(c *cli.Context, rules []detect.Burst) {
	for _, r := range rules {
		if r.Factor > 0 {
			e.note(c, "note: --burst %s is learning: it tells nothing of an endpoint that was watched for less than %s", r, r.Learning())
		}
	}
}

// moreRoom is how packets that found no room come to have one.
const moreRoom = "bpfnet load pod-traffic --max-entries pods=N   makes room for more addresses"

// conclude says what there is to know of bursts in the end.
func (r burstRule) conclude(note func(string)) error {
	if n := r.Firing(); n > 0 {
		note(fmt.Sprintf("bursts that aren't over: %d", n))
	}
	if n := r.Learning(); n > 0 {
		note(fmt.Sprintf("what is usual isn't known yet for endpoints, once for each rule that wants it: %d", n))
	}
	if apart, window, tell := r.TooFar(); tell {
		note(fmt.Sprintf("samples were up to %s apart, longer than a window of %s: bursts in between may not be seen", apart, window))
	}
	n := r.Lost()
	if n == 0 {
		return nil
	}
	note(fmt.Sprintf("packets that no endpoint's counters have, because the map was full: %d", n))
	return fault.New(fault.ErrLossy, "watch alerts: packets of no endpoint's counters: %d", n).Hint("%s", moreRoom)
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
