package commands

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"bpfnet/internal/alertconfig"
)

// alertGate decides which alerts are told, and as what.
type alertGate struct {
	rules    []alertconfig.Rule
	silences []alertconfig.Silence
	on       map[string]*episode // what lasts and isn't over, by fingerprint
	began    uint64              // how many episodes have
	silenced map[string]uint64   // alerts that a silence was for when they came, by kind of rule
}

// episode is an alert that may not be over.
type episode struct {
	found
	rule     alertconfig.Rule
	labels   map[string]string
	number   uint64
	told     bool
	silenced bool // and told when that ends
}

func newAlertGate(rules []alertconfig.Rule, silences []alertconfig.Silence) *alertGate {
	return &alertGate{rules: rules, silences: silences, on: map[string]*episode{}, silenced: map[string]uint64{}}
}

// admit says whether something is told at a time, and as what. Of an end it is what
// it was of the beginning.
func (g *alertGate) admit(f found, at time.Time) (found, bool) {
	if e := g.on[f.alert.Fingerprint]; e != nil && f.alert.EndedAt != nil {
		delete(g.on, f.alert.Fingerprint)
		return f.as(e.rule), e.told
	}
	e := &episode{found: f}
	if applies := g.choose(e); applies {
		e.silenced = g.quiet(e.labels, at)
		e.told = !e.silenced
	}
	if e.silenced {
		g.silenced[f.alert.Rule]++
	}
	if f.alert.Lasts() && f.alert.EndedAt == nil {
		g.began++
		e.number = g.began
		g.on[f.alert.Fingerprint] = e
	}
	return e.found, e.told
}

// choose finds the rule that an episode is of, and says whether there is one.
func (g *alertGate) choose(e *episode) (applies bool) {
	if len(g.rules)+len(g.silences) == 0 {
		return true
	}
	e.labels = e.alert.Labels()
	applies = true
	for _, r := range g.rules {
		if r.Kind != e.alert.Rule || r.Text != e.text {
			continue
		}
		if applies = r.Applies(e.labels); applies {
			e.rule, e.found = r, e.as(r)
			e.labels = e.alert.Labels()
			break
		}
	}
	return applies
}

// quiet says whether a silence is for labels.
func (g *alertGate) quiet(labels map[string]string, at time.Time) bool {
	return slices.ContainsFunc(g.silences, func(s alertconfig.Silence) bool { return s.Holds(labels, at) })
}

// late returns what still is on and no silence is for any more, in the order in which
// it began.
func (g *alertGate) late(at time.Time) (all []found) {
	var due []*episode
	for _, e := range g.on {
		if e.silenced && !e.told && !g.quiet(e.labels, at) {
			e.told = true
			due = append(due, e)
		}
	}
	slices.SortFunc(due, func(a, b *episode) int { return cmp.Compare(a.number, b.number) })
	for _, e := range due {
		all = append(all, e.found)
	}
	return all
}

// conclude says what wasn't told.
func (g *alertGate) conclude(note func(string)) {
	for _, rule := range slices.Sorted(maps.Keys(g.silenced)) {
		note(fmt.Sprintf("alerts of the rule %s that were silenced: %d", rule, g.silenced[rule]))
	}
	untold := 0
	for _, e := range g.on {
		if !e.told {
			untold++
		}
	}
	if untold > 0 {
		note(fmt.Sprintf("of what isn't over nobody was told, because of silences, only or except: %d", untold))
	}
}

// as is what a rule makes of something found.
func (f found) as(r alertconfig.Rule) found {
	var more []string
	if r.Name != "" {
		f.alert.RuleName = &r.Name
		more = append(more, r.Name)
	}
	if r.Severity != "" {
		f.alert.Severity = r.Severity
		more = append(more, string(r.Severity))
	}
	if line := f.line; len(more) > 0 {
		f.line = func() string { return line() + "  [" + strings.Join(more, ", ") + "]" }
	}
	return f
}
