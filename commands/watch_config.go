package commands

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/alertconfig"
	"bpfnet/internal/fault"
	"bpfnet/internal/match"
	"bpfnet/internal/sink"
	"bpfnet/output"
)

// configBytes is the longest file that --config reads.
const configBytes = 1 << 20

func configFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "rules, sinks and silences of the YAML `FILE`, to which flags add; --dry-run prints what it all comes to"},
		&cli.StringSliceFlag{Name: "silence", Usage: `don't tell alerts that all ` + "`MATCHERS`" + ` fit, as in namespace="kube-system",pod=~"coredns-.*"; labels: ` + strings.Join(alert.LabelNames(), ", ")},
	}
}

// alertSettings is what the file of --config and flags say, whatever the rules are.
type alertSettings struct {
	file              alertconfig.Config // without rules that --rule or --replay leave out
	named             []string           // kinds of rules that were asked for; none: nothing was said
	list              string             // "": all
	instance, observe string
	peers             string   // the instance that remembers them
	prefixes          []string // that aren't external
	interval          time.Duration
	silences          []alertconfig.Silence
	sinks             []sink.Spec
}

// texts are the texts of the rules of a kind, whose flag has its name.
func (s alertSettings) texts(c *cli.Context, kind string) []string {
	return append(s.file.Texts(kind), c.StringSlice(kind)...)
}

// oneForm returns what reads a rule and writes it in its one form.
func oneForm[R fmt.Stringer](parse func(string) (R, error)) func(string) (string, error) {
	return func(text string) (string, error) {
		rule, err := parse(text)
		if err != nil {
			return "", err
		}
		return rule.String(), nil
	}
}

func (e *Env) readAlertSettings(c *cli.Context) (s alertSettings, err error) {
	for _, rule := range c.StringSlice("rule") {
		if _, err := oneOf("rule", rule, alert.Rules()...); err != nil {
			return s, err
		}
	}
	if s.file, err = e.readAlertConfig(c); err != nil {
		return s, err
	}
	s.leaveOut(c)
	s.list, s.instance, s.observe, s.interval = c.String("list"), c.String("instance"), c.String("observe"), c.Duration("interval")
	s.peers, s.prefixes = c.String("peers-instance"), append(s.file.Internal, c.StringSlice("internal")...)
	for _, given := range []struct {
		flag string
		to   *string
		file string
	}{{"list", &s.list, s.file.List}, {"instance", &s.instance, s.file.Instance}, {"observe", &s.observe, s.file.Observe}, {"peers-instance", &s.peers, s.file.Peers}} {
		if !c.IsSet(given.flag) && given.file != "" {
			*given.to = given.file
		}
	}
	if !c.IsSet("interval") && s.file.Interval > 0 {
		s.interval = s.file.Interval
	}
	if s.silences, err = readSilences(c, s.file.Silences); err != nil {
		return s, err
	}
	s.sinks, err = readSinks(c, s.file.Sinks)
	return s, err
}

func (e *Env) readAlertConfig(c *cli.Context) (alertconfig.Config, error) {
	if !c.IsSet("config") {
		return alertconfig.Config{}, nil
	}
	if err := checkStdin(c, "config", c.String("config"), "replay"); err != nil {
		return alertconfig.Config{}, err
	}
	name, input, err := e.input(c.Context, c.String("config"))
	if err != nil {
		return alertconfig.Config{}, err
	}
	defer input.Close()
	text, err := io.ReadAll(io.LimitReader(input, configBytes+1))
	switch {
	case err != nil:
		return alertconfig.Config{}, fmt.Errorf("read %s: %w", name, err)
	case len(text) > configBytes:
		return alertconfig.Config{}, fault.New(fault.ErrUsage, "read %s: it is longer than %d MiB", name, configBytes>>20)
	}
	kinds := alertconfig.Kinds{alert.RuleBlocklist: nil}
	for _, sampled := range sampledRules {
		kinds[sampled.rule] = sampled.form
	}
	return alertconfig.Read(name, text, kinds)
}

// checkStdin refuses to read stdin for a flag and for one of others, too.
func checkStdin(c *cli.Context, flag, name string, others ...string) error {
	for _, other := range others {
		if name == "-" && c.String(other) == "-" {
			return usage(c, "--%s and --%s can't both be stdin", flag, other)
		}
	}
	return nil
}

// leaveOut drops what the file has of rules that are off, and says what is asked for:
// with --rule nothing else, and without it what the file and flags have.
func (s *alertSettings) leaveOut(c *cli.Context) {
	s.named = c.StringSlice("rule")
	off := func(kind string) bool {
		return len(s.named) > 0 && !slices.Contains(s.named, kind) || kind == alert.RuleBlocklist && c.IsSet("replay")
	}
	s.file.Kinds = slices.DeleteFunc(s.file.Kinds, off)
	s.file.Rules = slices.DeleteFunc(s.file.Rules, func(r alertconfig.Rule) bool { return off(r.Kind) })
	if off(alert.RuleBlocklist) {
		s.file.List = ""
	}
	if off(alert.RuleFanout) {
		s.file.Internal = nil
	}
	if len(s.named) > 0 || len(s.file.Kinds) == 0 {
		return
	}
	s.named = s.file.Kinds
	for _, sampled := range sampledRules {
		if c.IsSet(sampled.flag) && !slices.Contains(s.named, sampled.rule) {
			s.named = append(s.named, sampled.rule)
		}
	}
}

func readSilences(c *cli.Context, silences []alertconfig.Silence) ([]alertconfig.Silence, error) {
	for _, text := range c.StringSlice("silence") {
		m, err := match.Parse(text, alert.LabelNames())
		if err != nil {
			return nil, err
		}
		silences = append(silences, alertconfig.Silence{Matchers: m})
	}
	return silences, nil
}

// alertConfigDoc is what a watch would do.
type alertConfigDoc struct {
	Schema          string       `json:"schema"`
	IntervalSeconds float64      `json:"interval_seconds"`
	List            *string      `json:"list"`
	Instance        *string      `json:"instance"`
	PeersInstance   *string      `json:"peers_instance"`
	Internal        []string     `json:"internal"`
	Observe         *string      `json:"observe"`
	Rules           []ruleDoc    `json:"rules"`
	Sinks           []string     `json:"sinks"`
	Silences        []silenceDoc `json:"silences"`
}

type ruleDoc struct {
	Rule     string  `json:"rule"`
	When     *string `json:"when"`
	Optional bool    `json:"optional"`
	Name     *string `json:"rule_name"`
	Severity *string `json:"severity"`
	Only     *string `json:"only"`
	Except   *string `json:"except"`
}

type silenceDoc struct {
	Matchers string     `json:"matchers"`
	From     *time.Time `json:"from"`
	Until    *time.Time `json:"until"`
	Comment  *string    `json:"comment"`
}

// showAlertRules prints what a watch would do.
func (e *Env) showAlertRules(c *cli.Context, r alertRules) error {
	p, err := e.printer(c)
	if err != nil {
		return err
	}
	doc := alertConfigDoc{
		Schema: "bpfnet.alert_config/v1", IntervalSeconds: r.interval.Seconds(), List: alert.Known(r.list), Internal: list(r.prefixes), Observe: alert.Known(r.observe),
		Rules: list(r.ruleDocs(c)), Sinks: []string{}, Silences: []silenceDoc{},
	}
	if r.wantsPods() || len(r.baselines) > 0 {
		doc.Instance = &r.instance
	}
	if r.wantsPeers() || len(r.baselines) > 0 {
		doc.PeersInstance = &r.peers
	}
	for _, s := range r.sinks {
		doc.Sinks = append(doc.Sinks, s.Name())
	}
	if len(r.sinks) == 0 {
		doc.Sinks = append(doc.Sinks, sink.Stdout)
	}
	for _, s := range r.silences {
		doc.Silences = append(doc.Silences, silenceDoc{s.Matchers.String(), alert.Known(s.From.UTC()), alert.Known(s.Until.UTC()), alert.Known(s.Comment)})
	}
	return p.Object(doc, doc.table)
}

// ruleDocs are the rules that are on.
func (r alertRules) ruleDocs(c *cli.Context) (docs []ruleDoc) {
	add := func(kind, text string, optional bool) {
		rules := slices.DeleteFunc(slices.Clone(r.file.Rules), func(rule alertconfig.Rule) bool { return rule.Kind != kind || rule.Text != text })
		if len(rules) == 0 {
			rules = []alertconfig.Rule{{}}
		}
		for _, rule := range rules {
			docs = append(docs, ruleDoc{
				kind, alert.Known(text), optional, alert.Known(rule.Name), alert.Known(string(rule.Severity)),
				alert.Known(rule.Only.String()), alert.Known(rule.Except.String()),
			})
		}
	}
	if r.hits || !r.only && !c.IsSet("replay") {
		add(alert.RuleBlocklist, "", !r.hits)
	}
	for _, sampled := range sampledRules {
		for _, text := range r.texts(c, sampled.rule) {
			if form, err := sampled.form(text); err == nil { // it was read before
				add(sampled.rule, form, false)
			}
		}
	}
	return docs
}

func (d alertConfigDoc) table() output.Table {
	t := output.Table{Header: []string{"what", "of", "details"}}
	row := func(what, of string, details ...string) {
		t.Rows = append(t.Rows, []string{what, of, strings.Join(slices.DeleteFunc(details, func(d string) bool { return d == "" }), "; ")})
	}
	labelled := func(label string, text *string) string {
		if text == nil {
			return ""
		}
		return label + " " + *text
	}
	for _, instance := range []*string{d.Instance, d.PeersInstance} {
		if instance != nil {
			row("samples", *instance, "every "+time.Duration(d.IntervalSeconds*float64(time.Second)).String(), labelled("at", d.Observe))
		}
	}
	if len(d.Internal) > 0 {
		row("internal", strings.Join(d.Internal, ", "))
	}
	for _, r := range d.Rules {
		where := ""
		if r.Rule == alert.RuleBlocklist {
			where = labelled("list", d.List)
		}
		if r.Optional {
			where = "where a program reads lists"
		}
		row("rule "+r.Rule, optional(r.When), where, labelled("name", r.Name), optional(r.Severity), labelled("only", r.Only), labelled("except", r.Except))
	}
	for _, s := range d.Sinks {
		row("sink", s)
	}
	for _, s := range d.Silences {
		row("silence", s.Matchers, moment("from", s.From), moment("until", s.Until), optional(s.Comment))
	}
	return t
}

func moment(label string, at *time.Time) string {
	if at == nil {
		return ""
	}
	return label + " " + at.Format(time.RFC3339)
}
