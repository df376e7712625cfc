package commands

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/alertconfig"
	"bpfnet/internal/baseline"
	"bpfnet/internal/detect"
	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
)

// rulesInterval is the time between two samples unless --interval says otherwise.
const rulesInterval = time.Second

func ruleFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "burst", Usage: "tell of endpoints that move as much as a `BURST`, AMOUNT/TIME[,transmit|receive|both][,for=TIME][,mad=FACTOR], as in 10MiB/10s,transmit, 5000packets/1s or 500connections/10s"},
		&cli.StringSliceFlag{Name: "fanout", Usage: "tell of endpoints that contact as many external peers as a `FANOUT`, PEERS/TIME[,attempted|answered][,for=TIME], as in 50/60s"},
		&cli.StringSliceFlag{Name: "internal", Usage: "for --fanout, peers in the `PREFIX` aren't external, such as the Service CIDR; none: all are but those that are given"},
		&cli.StringSliceFlag{Name: "scan", Usage: "tell of endpoints that try as much as a `SCAN`, Nports/TIME of one peer or Nfailed/TIME connections, [,for=TIME], as in 100ports/60s or 50failed/60s"},
		&cli.StringFlag{Name: "replay", Usage: "look for them in `FILE|-`, which watch pods and watch peers -o ndjson have printed, instead of the kernel"},
		&cli.DurationFlag{Name: "interval", Value: rulesInterval, Usage: "`TIME` between two samples"},
		&cli.StringFlag{Name: "instance", Value: podTraffic, Usage: "loaded instance `NAME` that counts bytes and packets for --burst"},
		&cli.StringFlag{Name: "peers-instance", Value: peersProgram, Usage: "loaded instance `NAME` that remembers peers, and counts connections for --burst"},
		&cli.StringFlag{Name: "observe", Usage: "where packets are seen, `tc|cgroup`; default: as watch pods and watch peers"},
	}
}

// alertRules are the rules that are on.
type alertRules struct {
	alertSettings
	bursts      []detect.Burst // of bytes and packets
	connections []detect.Burst
	fanouts     []detect.Fanout
	scans       []detect.Scan
	baselines   []learnedRule
	internal    []netip.Prefix // that were given
	all         bool           // other peers are all external
	hits        bool           // the rule blocklist was asked for
	only        bool           // it wasn't, but others were
}

// wantsPods says whether a rule looks at samples of Pods, whatever there is.
func (r alertRules) wantsPods() bool { return len(r.bursts) > 0 }

// wantsPeers says whether a rule looks at samples of peers, whatever there is.
func (r alertRules) wantsPeers() bool {
	return len(r.connections)+len(r.fanouts)+len(r.scans) > 0
}

// sampled says whether a rule looks at samples.
func (r alertRules) sampled() bool {
	return r.wantsPods() || r.wantsPeers() || len(r.baselines) > 0
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
	if err := r.readSampled(c); err != nil {
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

// readSampled reads the rules that look at samples.
func (r *alertRules) readSampled(c *cli.Context) error {
	bursts, err := readRules(c, r.alertSettings, alert.RuleBurst, detect.ParseBurst)
	if err != nil {
		return err
	}
	for _, b := range bursts {
		if b.Metric == detect.Connections {
			r.connections = append(r.connections, b)
		} else {
			r.bursts = append(r.bursts, b)
		}
	}
	if r.fanouts, err = readRules(c, r.alertSettings, alert.RuleFanout, detect.ParseFanout); err != nil {
		return err
	}
	if r.scans, err = readRules(c, r.alertSettings, alert.RuleScan, detect.ParseScan); err != nil {
		return err
	}
	if err := r.readInternal(c); err != nil {
		return err
	}
	if err := checkInterval(c, r.interval); err != nil {
		return err
	}
	return traffic.View{Point: traffic.Point(r.observe)}.Check()
}

// readRules reads the rules of a kind, whose flag has its name; each may be given once.
func readRules[R interface {
	comparable
	fmt.Stringer
	Times() detect.Timing
}](c *cli.Context, s alertSettings, kind string, parse func(string) (R, error)) (rules []R, err error) {
	for _, text := range s.texts(c, kind) {
		r, err := parse(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(rules, r) {
			return nil, usage(c, "--%s %s is given twice", kind, r)
		}
		if s.interval > r.Times().Window {
			return nil, usage(c, "--interval %s is longer than the window of --%s %s", s.interval, kind, r)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func (r *alertRules) readInternal(c *cli.Context) error {
	if len(r.prefixes) > 0 && len(r.fanouts) == 0 {
		return usage(c, "--internal is for --fanout")
	}
	for _, text := range r.prefixes {
		prefix, err := alertconfig.ParseInternal(text)
		switch {
		case err != nil:
			return fault.New(fault.ErrUsage, "%w", err)
		case !prefix.IsValid():
			r.all = true
		default:
			r.internal = append(r.internal, prefix)
		}
	}
	return nil
}

// sampledRules are the rules that look at samples, the flags that turn them on, what
// each is, and what writes their texts in one form.
var sampledRules = []struct {
	rule, flag, what, example string
	form                      func(string) (string, error)
}{
	{alert.RuleBurst, "burst", "a burst", "10MiB/10s", oneForm(detect.ParseBurst)},
	{alert.RuleFanout, "fanout", "a fan-out", "50/60s", oneForm(detect.ParseFanout)},
	{alert.RuleScan, "scan", "a scan", "100ports/60s", oneForm(detect.ParseScan)},
	{alert.RuleBaseline, "baseline", "a baseline", "learn.json", oneForm(baseline.ParseRule)},
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
			return usage(c, "nothing says what %s is", sampled.what).Hint("--%s %s", sampled.flag, sampled.example)
		}
	}
	if len(named) > 0 && !hits && c.IsSet("list") {
		return usage(c, "--list is for the rule %s", alert.RuleBlocklist)
	}
	for _, samples := range []struct {
		flag, what, hint string
		wanted           bool
	}{
		{"replay", "samples", "--burst 10MiB/10s", r.sampled()}, {"interval", "samples", "--burst 10MiB/10s", r.sampled()}, {"observe", "samples", "--burst 10MiB/10s", r.sampled()},
		{"instance", "samples of Pods", "--burst 10MiB/10s", r.wantsPods() || len(r.baselines) > 0},
		{"peers-instance", "samples of peers", "--fanout 50/60s", r.wantsPeers() || len(r.baselines) > 0},
	} {
		if c.IsSet(samples.flag) && !samples.wanted {
			return usage(c, "--%s: no rule looks at %s", samples.flag, samples.what).Hint("%s", samples.hint)
		}
	}
	if !c.IsSet("replay") {
		return nil
	}
	for _, flag := range []string{"list", "steal", "for", "interval", "instance", "peers-instance", "observe"} {
		if c.IsSet(flag) {
			return usage(c, "--replay and --%s exclude each other", flag)
		}
	}
	if hits {
		return usage(c, "--replay: there are no recordings for the rule %s", alert.RuleBlocklist)
	}
	return nil
}
