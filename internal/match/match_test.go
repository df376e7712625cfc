package match

import (
	"errors"
	"strings"
	"testing"

	"bpfnet/internal/fault"
)

var known = []string{"rule", "namespace", "pod", "severity"}

func TestMatch(t *testing.T) {
	web := map[string]string{"rule": "burst", "namespace": "shop", "pod": "web-1"}
	for text, want := range map[string]bool{
		`namespace="shop"`:                     true,
		`namespace = "shop" , pod =~ "web-.*"`: true,
		`{namespace="shop",pod!="web-1"}`:      false,
		`pod=~"web"`:                           false, // of the whole value
		`pod=~"web|web-[0-9]"`:                 true,
		`pod=~"web-\\d"`:                       true,
		`pod!~"db-.*",`:                        true,
		`pod!~".*-1"`:                          false,
		`severity=""`:                          true, // it isn't there
		`severity!="critical"`:                 true,
		`severity=~".+"`:                       false,
		`namespace=shop`:                       true,
		`"rule"="burst"`:                       true,
		`namespace="shop",namespace="kube"`:    false,
	} {
		m, err := Parse(text, known)
		if err != nil || m.Match(web) != want {
			t.Errorf("%s: %v, want %v; %v", text, m.Match(web), want, err)
			continue
		}
		again, err := Parse(m.String(), known)
		if err != nil || again.String() != m.String() || again.Match(web) != want {
			t.Errorf("%s: %s, then %s, %v", text, m, again, err)
		}
	}
	if !Matchers(nil).Match(web) {
		t.Error("none refuse")
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                      "there are none",
		"{}":                    "there are none",
		"namespace":             "expected an operator",
		`namespace="shop`:       "missing end",
		`namespace=="shop"`:     "expected",
		`namespace="a" pod="b"`: "comma",
		`{namespace="a"`:        "close brace",
		`pod=~"("`:              "missing closing )",
		`pod=~"a\d"`:            "invalid input",
		`podd="a"`:              `no label "podd"`,
		`source="10.0.0.1"`:     `no label "source"`,
		"pod=\"\xff\"":          "isn't UTF-8",
	} {
		m, err := Parse(text, known)
		if !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), want) || len(fault.Hints(err)) != 1 {
			t.Errorf("%s: %v, %v, %q", text, m, err, fault.Hints(err))
		}
	}
	_, err := Parse(`podd="a"`, known)
	if hints := fault.Hints(err); hints[0] != `did you mean "pod"?` {
		t.Errorf("%q", hints)
	}
}

// FuzzParse checks that what is written is read as the same again.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{`namespace="shop",pod=~"web-.*"`, `{pod!~"a|b",}`, `"rule"="a\"b\\c\n"`, `pod=ä`, `severity!="`, "pod=\"\\ud800\"", `pod="\a\x00"`} {
		f.Add(seed, "web-1")
	}
	f.Fuzz(func(t *testing.T, text, value string) {
		m, err := Parse(text, known)
		if err != nil {
			if !errors.Is(err, fault.ErrUsage) {
				t.Error(err)
			}
			return
		}
		again, err := Parse(m.String(), known)
		if err != nil || again.String() != m.String() {
			t.Fatalf("%q, then %q, %v", m, again, err)
		}
		values := map[string]string{"pod": value, "rule": "burst"}
		if m.Match(values) != again.Match(values) {
			t.Errorf("%q: %v", m, m.Match(values))
		}
	})
}
