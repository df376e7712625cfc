package alertconfig

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"bpfnet/internal/alert"
	"bpfnet/internal/match"
	"bpfnet/internal/sink"
	"bpfnet/internal/traffic"
)

// file reads the whole.
func (r *reader) file(n *yaml.Node) {
	var list, internal *yaml.Node
	sinks, silences := map[string]int{}, map[string]int{}
	r.mapping(n, "the file", fields{
		"interval":       r.interval,
		"list":           func(n *yaml.Node) { r.config.List, _ = r.text(n, "list"); list = n },
		"instance":       r.setText("instance", &r.config.Instance),
		"internal":       func(n *yaml.Node) { r.list(n, "internal", r.internal); internal = n },
		"peers_instance": r.setText("peers_instance", &r.config.Peers),
		"observe":        r.setWord("observe", &r.config.Observe, string(traffic.TC), string(traffic.Cgroup)),
		"rules":          r.rules,
		"sinks":          func(n *yaml.Node) { r.list(n, "sinks", func(n *yaml.Node) { r.sink(n, sinks) }) },
		"silences":       func(n *yaml.Node) { r.list(n, "silences", func(n *yaml.Node) { r.silence(n, silences) }) },
	})
	off := func(kind string) bool { return len(r.config.Kinds) > 0 && !slices.Contains(r.config.Kinds, kind) }
	if r.config.List != "" && off(alert.RuleBlocklist) {
		_ = r.wrong(list, "list is for the rule %s, which isn't on", alert.RuleBlocklist).Hint("rules: {%s: , …}", alert.RuleBlocklist)
	}
	if internal != nil && off(alert.RuleFanout) {
		_ = r.wrong(internal, "internal is for the rule %s, which isn't on", alert.RuleFanout).Hint("rules: {%s: [50/60s]}", alert.RuleFanout)
	}
}

// internal reads a prefix.
func (r *reader) internal(n *yaml.Node) {
	text, ok := r.text(n, "internal")
	if !ok {
		return
	}
	if _, err := ParseInternal(text); err != nil {
		r.at(n.Line, n.Column, err)
	}
	r.config.Internal = append(r.config.Internal, text)
}

func (r *reader) interval(n *yaml.Node) {
	text, ok := r.text(n, "interval")
	if !ok {
		return
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		r.wrong(n, "interval %q is no time like 1s or 500ms", text)
	case d < LeastInterval:
		r.wrong(n, "interval %s is too short: the least is %s", text, LeastInterval)
	}
	r.config.Interval = d
}

func (r *reader) setText(what string, to *string) func(*yaml.Node) {
	return func(n *yaml.Node) { *to, _ = r.text(n, what) }
}

// setWord reads one of several words.
func (r *reader) setWord(what string, to *string, words ...string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		text, ok := r.text(n, what)
		if ok && !slices.Contains(words, text) {
			_ = r.wrong(n, "%s %q: no such %s", what, text, what).Hint("%s: one of %s", what, strings.Join(words, ", "))
		}
		*to = text
	}
}

// rules reads the rules of all kinds.
func (r *reader) rules(n *yaml.Node) {
	known := fields{}
	for kind, parse := range r.kinds {
		known[kind] = func(n *yaml.Node) {
			r.config.Kinds = append(r.config.Kinds, kind)
			if parse == nil {
				r.untold(n, kind)
				return
			}
			r.told(n, kind, parse)
		}
	}
	r.mapping(n, "rules", known)
}

// untold reads the rules of a kind that has no text: nothing, or what they have besides.
func (r *reader) untold(n *yaml.Node, kind string) {
	if n.ShortTag() == "!!null" {
		return
	}
	var before []placed
	r.list(n, kind, func(n *yaml.Node) {
		rule := Rule{Kind: kind}
		r.ruleFields(n, &rule, fields{})
		before = r.add(n, before, rule)
	})
}

// told reads the rules of a kind that has a text: that, or a mapping that has it.
func (r *reader) told(n *yaml.Node, kind string, parse func(string) (string, error)) {
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		r.wrong(n, "%s is empty", kind)
	}
	var before []placed
	r.list(n, kind, func(n *yaml.Node) {
		rule, told := Rule{Kind: kind}, false
		when := func(n *yaml.Node) { rule.Text, told = r.ruleText(n, kind, parse), true }
		if n.Kind == yaml.ScalarNode {
			when(n)
		} else {
			r.ruleFields(n, &rule, fields{"when": when})
		}
		switch {
		case rule.Text != "":
			before = r.add(n, before, rule)
		case n.Kind == yaml.MappingNode && !told:
			_ = r.wrong(n, "nothing says what a %s is", kind).Hint("when: TEXT   as --%s takes it", kind)
		}
	})
}

func (r *reader) ruleText(n *yaml.Node, kind string, parse func(string) (string, error)) string {
	text, ok := r.text(n, kind)
	if !ok {
		return ""
	}
	form, err := parse(text)
	if err != nil {
		r.at(n.Line, n.Column, err)
		return ""
	}
	return form
}

// ruleFields reads what any rule may have, besides known.
func (r *reader) ruleFields(n *yaml.Node, rule *Rule, known fields) {
	known["name"] = func(n *yaml.Node) { rule.Name = r.ruleName(n) }
	known["severity"] = r.setWord("severity", (*string)(&rule.Severity), alert.Severities()...)
	known["only"] = func(n *yaml.Node) { rule.Only = r.matchers(n, "only") }
	known["except"] = func(n *yaml.Node) { rule.Except = r.matchers(n, "except") }
	r.mapping(n, "a rule", known)
}

func (r *reader) ruleName(n *yaml.Node) string {
	name, ok := r.text(n, "name")
	if line := r.names[name]; ok && line > 0 {
		r.wrong(n, "a rule in line %d has the name %q already", line, name)
	}
	r.names[name] = n.Line
	return name
}

// placed is a rule and its line.
type placed struct {
	Rule
	line int
}

// mostRules is how many a file may have: each is compared with those before it.
const mostRules = 1000

// add adds a rule to those of its kind, unless it never could apply.
func (r *reader) add(n *yaml.Node, before []placed, rule Rule) []placed {
	if len(r.config.Rules) == mostRules {
		r.wrong(n, "there are more than %d rules", mostRules)
		return before
	}
	for _, b := range before {
		if b.Text != rule.Text {
			continue
		}
		if b.Only == nil && b.Except == nil {
			_ = r.wrong(n, "the rule never applies: the one in line %d, which is the same, always does", b.line).Hint("the first rule whose only and except fit counts; put the one without last")
			return before
		}
		if b.Only.String() == rule.Only.String() && b.Except.String() == rule.Except.String() {
			r.wrong(n, "the rule never applies: the one in line %d is for the same", b.line)
			return before
		}
	}
	r.config.Rules = append(r.config.Rules, rule)
	return append(before, placed{rule, n.Line})
}

// matchers reads a text, or a list of texts, that all have to fit.
func (r *reader) matchers(n *yaml.Node, what string) (all match.Matchers) {
	one := func(n *yaml.Node) {
		text, ok := r.text(n, what)
		if !ok {
			return
		}
		m, err := match.Parse(text, alert.LabelNames())
		if err != nil {
			r.at(n.Line, n.Column, err)
		}
		all = append(all, m...)
	}
	if n.Kind != yaml.SequenceNode {
		one(n)
		return all
	}
	if len(n.Content) == 0 {
		r.wrong(n, "%s is empty", what)
	}
	r.list(n, what, one)
	return all
}

func (r *reader) sink(n *yaml.Node, lines map[string]int) {
	text, ok := r.text(n, "a sink")
	if !ok {
		return
	}
	s, err := sink.Parse(text)
	switch line := lines[text]; {
	case err != nil:
		r.at(n.Line, n.Column, err)
	case line > 0:
		r.wrong(n, "sink %s is given twice, first in line %d", s.Name(), line)
	}
	lines[text] = n.Line
	r.config.Sinks = append(r.config.Sinks, text)
}

func (r *reader) silence(n *yaml.Node, lines map[string]int) {
	var s Silence
	asked := len(r.problems)
	r.mapping(n, "a silence", fields{
		"matchers": func(n *yaml.Node) { s.Matchers = r.matchers(n, "matchers") },
		"from":     r.setTime("from", &s.From),
		"until":    r.setTime("until", &s.Until),
		"comment":  r.setText("comment", &s.Comment),
	})
	id := fmt.Sprint(s.Matchers, s.From, s.Until)
	switch line := lines[id]; {
	case len(r.problems) > asked:
		return
	case s.Matchers == nil:
		_ = r.wrong(n, "a silence has no matchers").Hint(`matchers: namespace="shop"`)
	case !s.Until.IsZero() && !s.Until.After(s.From):
		r.wrong(n, "a silence ends before it begins")
	case line > 0:
		r.wrong(n, "a silence is given twice, first in line %d", line)
	}
	lines[id] = n.Line
	r.config.Silences = append(r.config.Silences, s)
}

func (r *reader) setTime(what string, to *time.Time) func(*yaml.Node) {
	return func(n *yaml.Node) {
		text, ok := r.text(n, what)
		if !ok {
			return
		}
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			_ = r.wrong(n, "%s %q is no time", what, text).Hint("%s: 2026-01-02T15:04:05Z", what)
		}
		*to = at
	}
}
