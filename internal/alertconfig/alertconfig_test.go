package alertconfig

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/alert"
	"bpfnet/internal/baseline"
	"bpfnet/internal/detect"
	"bpfnet/internal/fault"
)

func kinds() Kinds {
	return Kinds{
		alert.RuleBlocklist: nil, alert.RuleBurst: form(detect.ParseBurst), alert.RuleFanout: form(detect.ParseFanout),
		alert.RuleScan: form(detect.ParseScan), alert.RuleBaseline: form(baseline.ParseRule),
	}
}

func form[R fmt.Stringer](parse func(string) (R, error)) func(string) (string, error) {
	return func(text string) (string, error) {
		rule, err := parse(text)
		if err != nil {
			return "", err
		}
		return rule.String(), nil
	}
}

// tell writes a configuration, a line for each thing.
func tell(c Config) string {
	lines := []string{fmt.Sprintf("interval=%s list=%s instance=%s observe=%s peers=%s internal=%s kinds=%s", c.Interval, c.List, c.Instance, c.Observe, c.Peers, c.Internal, c.Kinds)}
	for _, r := range c.Rules {
		lines = append(lines, strings.Join([]string{r.Kind, r.Text, r.Name, string(r.Severity), r.Only.String(), r.Except.String()}, "|"))
	}
	for _, s := range c.Sinks {
		lines = append(lines, "sink "+s)
	}
	for _, s := range c.Silences {
		lines = append(lines, fmt.Sprintf("silence %s|%d|%d|%s", s.Matchers, s.From.Unix(), s.Until.Unix(), s.Comment))
	}
	return strings.Join(lines, "\n") + "\n"
}

func TestRead(t *testing.T) {
	none := time.Time{}.Unix()
	for text, want := range map[string]string{
		"rules: {}": "interval=0s list= instance= observe= peers= internal=[] kinds=[]\n",
		`
interval: 500ms
list: feed
instance: mine
peers_instance: theirs
internal: [10.96.0.0/12, "fd00::1", none]
observe: cgroup
rules:
  burst:
    - 10240KiB/10s,both
    - {when: "1GiB/1m,mad=8", name: exfil, severity: critical, only: 'namespace="shop",pod=~"web-.*"', except: ['pod="web-1"', container="b"]}
    - {when: 1GiB/1m}   # of no name
    - when: "1GiB/1m,mad=8"
  fanout: [50/1m]
  blocklist:
    - only: list="c2"
      severity: critical
    - {}
sinks: [stdout, "exec=./page.sh,arg=a,arg=b", 'alertmanager=http://127.0.0.1:9093']
silences:
  - matchers: [namespace="kube-system", pod=~"coredns-.*"]
    from: 2026-01-02T03:04:05Z
    until: "2026-01-02T04:04:06+01:00"
    comment: they are new
  - matchers: rule="burst"
`: `interval=500ms list=feed instance=mine observe=cgroup peers=theirs internal=[10.96.0.0/12 fd00::1 none] kinds=[burst fanout blocklist]
burst|10MiB/10s||||
burst|1GiB/60s,mad=8|exfil|critical|namespace="shop",pod=~"web-.*"|pod="web-1",container="b"
burst|1GiB/60s||||
burst|1GiB/60s,mad=8||||
fanout|50/60s||||
blocklist|||critical|list="c2"|
blocklist|||||
sink stdout
sink exec=./page.sh,arg=a,arg=b
sink alertmanager=http://127.0.0.1:9093
` + fmt.Sprintf("silence namespace=\"kube-system\",pod=~\"coredns-.*\"|1767323045|1767323046|they are new\nsilence rule=\"burst\"|%d|%d|\n", none, none),
		"rules: {blocklist: }": "interval=0s list= instance= observe= peers= internal=[] kinds=[blocklist]\n",
	} {
		c, err := Read("rules.yaml", []byte(text), kinds())
		if err != nil || tell(c) != want {
			t.Errorf("%v\n%s\nwant\n%s", err, tell(c), want)
		}
	}
}

// TestReadErrors checks that what is wrong is told with its place, all of it at once.
func TestReadErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "f:1:1: nothing is in it",
		"# nothing\n":               "f:1:1: nothing is in it",
		"null":                      "f:1:1: the file isn't a mapping but nothing",
		"- a":                       "f:1:1: the file isn't a mapping but a list",
		"a: [":                      "f:1:1: did not find expected node content",
		"a: b\n\tc: d":              "f:2:1: found a tab character that violates indentation",
		"list: a\n---\nlist: b":     "f:2:1: a second document begins here",
		"list: a\nlist: b":          "f:2:1: list is given twice, first in line 1",
		"list: a\n'list': a":        "f:2:1: list is given twice, first in line 1",
		"list: [a]":                 "f:1:7: list isn't a text but a list",
		"list: ''":                  "f:1:7: list is empty",
		"list: \"a\\x01\"":          "f:1:7: list has a control character",
		"list:":                     "f:1:6: list is empty",
		"list: &a x\ninstance: *a":  "f:2:11: instance isn't a text but an alias, which isn't read",
		"<<: {list: a}":             `f:1:1: unknown key "<<"`,
		"[a]: b":                    "f:1:1: a key isn't a text but a list",
		"rules: {brust: [a]}":       `f:1:9: unknown key "brust"`,
		"internal: [10.0.0.0/8, x]": `f:1:24: read prefix "x": neither an address nor a prefix`,
		"rules: {scan: [9ports/1s]}\ninternal: [10.0.0.1]": "f:2:11: internal is for the rule fanout, which isn't on",
		"interval: 10":                        `f:1:11: interval "10" is no time like 1s or 500ms`,
		"interval: 1ms":                       "f:1:11: interval 1ms is too short: the least is 10ms",
		"observe: xdp":                        `f:1:10: observe "xdp": no such observe`,
		"rules: [burst]":                      "f:1:8: rules isn't a mapping but a list",
		"rules: {burst: 1B/1s}":               "f:1:16: burst isn't a list but a text",
		"rules: {burst: []}":                  "f:1:16: burst is empty",
		"rules: {burst: [~]}":                 "f:1:17: burst is empty",
		"rules: {burst: [1/1s]}":              `f:1:17: read burst "1/1s": "1" has no unit`,
		"rules: {burst: [{name: a}]}":         "f:1:17: nothing says what a burst is",
		"rules: {burst: [{}]}":                "f:1:17: nothing says what a burst is",
		"rules: {burst: [[a]]}":               "f:1:17: a rule isn't a mapping but a list",
		"rules: {burst: [1B/1s, '1B/1s']}":    "f:1:24: the rule never applies: the one in line 1, which is the same, always does",
		"rules: {blocklist: [{}, {name: a}]}": "f:1:25: the rule never applies",
		"rules: {blocklist: [{only: list=a}, {only: 'list=\"a\"'}]}":       "f:1:37: the rule never applies: the one in line 1 is for the same",
		"rules: {blocklist: [{name: a, only: list=a}, {name: a}]}":         `f:1:53: a rule in line 1 has the name "a" already`,
		"rules: {blocklist: true}":                                         "f:1:20: blocklist isn't a list but a text",
		"rules: {blocklist: [{when: a}]}":                                  `f:1:22: unknown key "when"`,
		"rules: {blocklist: [{severity: crit}]}":                           `f:1:32: severity "crit": no such severity`,
		"rules: {blocklist: [{only: }]}":                                   "only is empty",
		"rules: {blocklist: [{except: []}]}":                               "f:1:30: except is empty",
		"rules: {blocklist: [{only: lst=a}]}":                              `f:1:28: read matchers "lst=a": no label "lst"`,
		"rules: {blocklist: [{only: 'list=~\"(\"'}]}":                      "missing closing )",
		"list: a\nrules: {burst: [1B/1s]}":                                 "f:1:7: list is for the rule blocklist, which isn't on",
		"sinks: stdout":                                                    "f:1:8: sinks isn't a list but a text",
		"sinks: [pager]":                                                   `f:1:9: read sink: no such kind "pager"`,
		"sinks: [stdout, stdout]":                                          "f:1:17: sink stdout is given twice, first in line 1",
		"sinks: ['webhook=http://a:hidden@b']":                             "everybody can read",
		"silences: [{}]":                                                   "f:1:12: a silence has no matchers",
		"silences: [{matchers: rule=a, until: soon}]":                      `f:1:38: until "soon" is no time`,
		"silences: [{matchers: rule=a, until: 2026-01-02}]":                `until "2026-01-02" is no time`,
		"silences: [{matchers: rule=a, untill: a}]":                        `f:1:31: unknown key "untill"`,
		"silences: [{matchers: rule=a}, {matchers: [rule=a], comment: b}]": "f:1:32: a silence is given twice, first in line 1",
		"silences: [{matchers: rule=a, from: 2026-01-02T00:00:00Z, until: 2026-01-02T00:00:00Z}]": "f:1:12: a silence ends before it begins",
		"interval: no\nlist: \nrules:\n  burst:\n    - 1/1s\n    - when: 2/1s\n      nmae: a\n":   `f:1:11: interval "no" is no time like 1s or 500ms; f:2:6: list is empty; f:5:7: read burst "1/1s": `,
		strings.Repeat("a: b\n", 30): "; and 10 more",
	} {
		_, err := Read("f", []byte(text), kinds())
		if !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error()+strings.Join(fault.Hints(err), ""), "hidden") {
			t.Errorf("%s\ngives %v\nnot   %s", text, err, want)
		}
	}
	_, err := Read("f", []byte("rules: {brust: [a], blocklist: [{onyl: a}]}"), kinds())
	if hints := fault.Hints(err); !slices.Equal(hints, []string{`did you mean "burst"?`, `did you mean "only"?`}) {
		t.Errorf("%q", hints)
	}
}

// TestExamples checks the files that people begin with.
// TestReadMany checks that a file as long as may be is read, or refused, in time.
func TestReadMany(t *testing.T) {
	var text strings.Builder
	text.WriteString("rules:\n  blocklist:\n")
	for i := range 1 << 15 {
		fmt.Fprintf(&text, "    - only: pod=\"%d\"\n", i)
	}
	began := time.Now()
	c, err := Read("rules.yaml", []byte(text.String()), kinds())
	if took := time.Since(began); took > 20*time.Second || len(c.Rules) != mostRules || !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), "rules.yaml:1003:7: there are more than 1000 rules") {
		t.Errorf("%d rules after %s: %v", len(c.Rules), took, err)
	}
}

func TestExamples(t *testing.T) {
	guide, err := os.ReadFile("../../docs/alerts.md")
	if err != nil {
		t.Fatal(err)
	}
	deployed, err := os.ReadFile("../../deploy/alerts/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	examples := [][]byte{deployed}
	for _, block := range regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllSubmatch(guide, -1) {
		examples = append(examples, block[1])
	}
	if len(examples) < 2 {
		t.Error("the guide has no example")
	}
	for _, text := range examples {
		if c, err := Read("example", text, kinds()); err != nil || len(c.Rules) == 0 || len(c.Sinks) == 0 || len(c.Silences) == 0 {
			t.Errorf("%v\n%s", err, text)
		}
	}
	// What is commented out there works, too.
	commented := regexp.MustCompile(`(?m)^( *)#([^ \n]|  )`).ReplaceAll(deployed, []byte("$1$2"))
	if slices.Equal(commented, deployed) {
		t.Error("nothing is commented out")
	}
	c, err := Read("all", commented, kinds())
	if err != nil {
		t.Errorf("%v\n%s", err, commented)
	}
	for _, kind := range alert.Rules() {
		if !slices.Contains(c.Kinds, kind) {
			t.Errorf("deploy/alerts/rules.yaml has no example of the rule %s", kind)
		}
	}
}

func TestApplies(t *testing.T) {
	read := func(text string) Config {
		c, err := Read("f", []byte(text), kinds())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	web := map[string]string{"namespace": "shop", "pod": "web"}
	for text, want := range map[string]bool{
		"{}": true, "{only: namespace=shop}": true, "{only: namespace=kube}": false, "{except: pod=web}": false, "{except: pod=db}": true,
		"{only: namespace=shop, except: pod=web}": false, "{except: [pod=web, namespace=kube]}": true,
	} {
		if got := read("rules: {blocklist: [" + text + "]}").Rules[0].Applies(web); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]bool{
		"{matchers: pod=web}": true, "{matchers: pod=db}": false,
		"{matchers: pod=web, from: 2026-01-02T03:04:05Z}": true, "{matchers: pod=web, from: 2026-01-02T03:04:06Z}": false,
		"{matchers: pod=web, until: 2026-01-02T03:04:05Z}": false, "{matchers: pod=web, until: 2026-01-02T04:04:06+01:00}": true,
	} {
		if got := read("silences: [" + text + "]").Silences[0].Holds(web, at); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// FuzzRead checks that what is refused is an error of usage, with a place.
func FuzzRead(f *testing.F) {
	deployed, err := os.ReadFile("../../deploy/alerts/rules.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(deployed), "rules: {burst: [1B/1s, {when: 1B/1s}], blocklist: [{}]}", "a: &a [*a]", "? [a]\n: b", "---\n...\n---", "{<<: *x}", "!!binary a: !!float b",
		"silences: [{matchers: [rule=a, 'pod=~\"b\"'], from: 2026-01-02T00:00:00Z}]", "\xef\xbb\xbfsinks: ['webhook=http://a%2C']",
	} {
		f.Add([]byte(seed))
	}
	place := regexp.MustCompile(`^f:[1-9][0-9]*:[1-9][0-9]*: .`)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Read("f", text, kinds())
		if err != nil {
			if !errors.Is(err, fault.ErrUsage) || !place.MatchString(err.Error()) {
				t.Error(err)
			}
			return
		}
		for _, r := range c.Rules {
			if !slices.Contains(c.Kinds, r.Kind) || r.Severity != "" && !slices.Contains(alert.Severities(), string(r.Severity)) {
				t.Errorf("%+v", r)
			}
		}
	})
}
