package commands

import (
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/baseline"
	"bpfnet/output"
)

func baselineFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "baseline", Usage: "tell of endpoints that do what they normally don't, by a `BASELINE`, FILE[,score=NUMBER][,unknown], where baseline learn has printed FILE"}
}

// learnedRule is a rule with what its file has.
type learnedRule struct {
	baseline.Rule
	learned baseline.Document
}

// readBaselines reads what --baseline asks for, and the files.
func (e *Env) readBaselines(c *cli.Context, s alertSettings) (rules []learnedRule, err error) {
	for _, text := range s.texts(c, alert.RuleBaseline) {
		r, err := baseline.ParseRule(text)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(rules, func(l learnedRule) bool { return l.Rule == r }) {
			return nil, usage(c, "--baseline %s is given twice", r)
		}
		if err := checkStdin(c, "baseline", r.File, "config", "replay"); err != nil {
			return nil, err
		}
		d, err := e.readBaseline(c.Context, r.File)
		if err != nil {
			return nil, err
		}
		window := time.Duration(d.WindowSeconds) * time.Second
		if s.interval > window {
			return nil, usage(c, "--interval %s is longer than the windows of %s, which have %s", s.interval, r.File, window)
		}
		rules = append(rules, learnedRule{r, d})
	}
	return rules, nil
}

// baselineRule looks for what deviates from a baseline.
type baselineRule struct{ *baseline.Check }

func (r baselineRule) step(s samples) (found []found) {
	var all []baseline.Finding
	if s.pods != nil {
		all = append(all, r.Pods(*s.pods)...)
	}
	if s.peers != nil {
		all = append(all, r.Peers(*s.peers)...)
	}
	for _, f := range all {
		found = append(found, foundAs(alert.OfBaseline(f), f.Rule.String(), func() string { return baselineLine(f) }))
	}
	return found
}

// conclude says what there is to know of deviations in the end.
func (r baselineRule) conclude(note func(string)) error {
	if n := r.Firing(); n > 0 {
		note(fmt.Sprintf("deviations that aren't over: %d", n))
	}
	if n := r.Strangers(); n > 0 {
		note(fmt.Sprintf("endpoints that the baseline doesn't have, so that nothing is noticed of them: %d", n))
	}
	if n := r.Learning(); n > 0 {
		note(fmt.Sprintf("endpoints of which the baseline doesn't know enough to judge how much they move: %d", n))
	}
	if apart, window, tell := r.TooFar(); tell {
		note(fmt.Sprintf("samples were up to %s apart, longer than a window of %s: how much was moved in between wasn't judged", apart, window))
	}
	const noRoom = ", because there was no room"
	packets, contacts := r.Lost()
	if what := "packets of no endpoint's counters"; packets > 0 {
		return lossOf(packets, what+noRoom, what, moreRoom, note)
	}
	what := "peers and connections that weren't seen"
	return lossOf(contacts, what+noRoom, what, morePeers, note)
}

// baselineLine is a deviation for people.
func baselineLine(f baseline.Finding) string {
	what, much, detail := string(f.Reason), muchOf(output.Count(f.Amount), "new"), ""
	if f.News != nil {
		detail = someText(true, 2, f.Items)
	}
	if d := f.Deviation; d != nil {
		number := volumeNumber(string(d.Metric))
		what, much = string(d.Metric), muchOf(number(f.Amount), "of "+number(f.Threshold))
		detail = fmt.Sprintf("score %.1f", d.Score)
	}
	return lineOf(alert.RuleBaseline, what, f.Started, f.Ended, much, f.Source, detail)
}
