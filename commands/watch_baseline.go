package commands

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/baseline"
	"bpfnet/internal/fault"
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

func (r baselineRule) ready() bool { return r.Ready() }

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
	packets, contacts := r.Lost()
	for _, lost := range []struct {
		count      uint64
		what, hint string
	}{{packets, "packets of no endpoint's counters", moreRoom}, {contacts, "peers and connections that weren't seen", morePeers}} {
		if lost.count > 0 {
			note(fmt.Sprintf("%s, because there was no room: %d", lost.what, lost.count))
			return fault.New(fault.ErrLossy, "watch alerts: %s: %d", lost.what, lost.count).Hint("%s", lost.hint)
		}
	}
	return nil
}

// morePeers is how peers that found no room come to have one.
const morePeers = "bpfnet load peers --max-entries peer_entries=N   makes room for more peers"

// baselineLine is a deviation for people.
func baselineLine(f baseline.Finding) string {
	at, fate := f.Started, "began"
	if !f.Ended.IsZero() {
		at, fate = f.Ended, "ended"
	}
	s := f.Source
	who := podName(s.Namespace, s.Pod, s.PodUID)
	if who == "" {
		who = podContainer(s)
	}
	what, much := string(f.Reason), fmt.Sprintf("%8s %-11s", output.Count(f.Amount), "new")
	detail := ""
	if f.News != nil {
		detail = strings.Join(f.Items[:min(len(f.Items), 3)], ", ")
	}
	if d := f.Deviation; d != nil {
		number := volumeNumber(string(d.Metric))
		what, much = string(d.Metric), fmt.Sprintf("%8s of %-8s", number(f.Amount), number(f.Threshold))
		detail = fmt.Sprintf("score %.1f", d.Score)
	}
	line := fmt.Sprintf("%s  %-10s  %-18s  %-7s  %s  %-39s  %-10s  %s  %s",
		at.Local().Format("15:04:05.000"), alert.RuleBaseline, what, fate, much, s.Address, podPlace(s), who, detail)
	return strings.TrimRight(line, " ")
}
