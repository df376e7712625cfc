package commands

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/alert"
	"bpfnet/internal/alertconfig"
	"bpfnet/internal/match"
)

// lasting is an alert of a Pod that isn't over, or is.
func lasting(pod string, over bool) found {
	namespace, at := "shop", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	a := alert.Alert{Rule: alert.RuleBurst, Severity: alert.Warning, Fingerprint: pod, StartedAt: at, K8s: alert.K8s{Namespace: &namespace, Pod: &pod}}
	if over {
		a.EndedAt = &at
	}
	return foundAs(a, "1B/1s", func() string { return pod })
}

func matchers(t testing.TB, text string) match.Matchers {
	t.Helper()
	m, err := match.Parse(text, alert.LabelNames())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestGateLate checks that what was silenced is told late in the order in which it
// began, once, and only if it isn't over.
func TestGateLate(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	g := newAlertGate(nil, []alertconfig.Silence{
		{Matchers: matchers(t, `pod=~"a.*"`), Until: start.Add(time.Minute)}, {Matchers: matchers(t, `pod="a7"`), Until: start.Add(time.Hour)},
	})
	var want []string
	for i := range 20 {
		pod := fmt.Sprint("a", i)
		if f, told := g.admit(lasting(pod, false), start); told {
			t.Errorf("%s is told", f.line())
		}
		if i != 7 && i != 8 {
			want = append(want, pod)
		}
	}
	if _, told := g.admit(lasting("a8", true), start); told {
		t.Error("the end of what was silenced is told")
	}
	if _, told := g.admit(lasting("b", false), start); !told {
		t.Error("b isn't told")
	}
	lines := func(at time.Time) (lines []string) {
		for _, f := range g.late(at) {
			lines = append(lines, f.line())
		}
		return lines
	}
	if early := lines(start.Add(59 * time.Second)); early != nil {
		t.Errorf("%q", early)
	}
	if got := lines(start.Add(time.Minute)); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if again := lines(start.Add(2 * time.Minute)); again != nil {
		t.Errorf("again: %q", again)
	}
	for _, pod := range []string{"a0", "b"} {
		if _, told := g.admit(lasting(pod, true), start); !told {
			t.Errorf("the end of %s isn't told", pod)
		}
	}
	if _, told := g.admit(lasting("a7", false), start); told {
		t.Error("a7 is told")
	}
	var said []string
	g.conclude(func(text string) { said = append(said, text) })
	if got := strings.Join(said, "; "); got != "alerts of the rule burst that were silenced: 21; of what isn't over nobody was told, because of silences, only or except: 1" {
		t.Error(got)
	}
}

// TestGateKeeps checks that an end has the name and severity of its beginning, whatever
// is known then.
func TestGateKeeps(t *testing.T) {
	g := newAlertGate([]alertconfig.Rule{
		{Kind: alert.RuleBurst, Text: "1B/1s", Name: "unknown", Severity: alert.Info, Only: matchers(t, `namespace=""`)},
		{Kind: alert.RuleBurst, Text: "1B/1s", Only: matchers(t, `pod="web"`)},
		{Kind: alert.RuleBurst, Text: "2B/1s", Severity: alert.Critical},
	}, nil)
	nameless := lasting("web", false)
	nameless.alert.K8s = alert.K8s{}
	for _, f := range []found{nameless, lasting("web", true)} {
		got, told := g.admit(f, time.Now())
		if !told || *got.alert.RuleName != "unknown" || got.alert.Severity != alert.Info || got.line() != "web  [unknown, info]" {
			t.Errorf("%v, %+v", told, got.alert)
		}
	}
	if got, told := g.admit(lasting("web", false), time.Now()); !told || got.alert.RuleName != nil || got.alert.Severity != alert.Warning {
		t.Errorf("%v, %+v", told, got.alert)
	}
	if _, told := g.admit(lasting("db", false), time.Now()); told {
		t.Error("no rule fits")
	}
	if len(g.silenced) > 0 {
		t.Errorf("%v", g.silenced)
	}
}

func BenchmarkGate(b *testing.B) {
	g := newAlertGate([]alertconfig.Rule{{Kind: alert.RuleBurst, Text: "1B/1s", Name: "big", Only: matchers(b, `pod=~"web-.*"`)}},
		[]alertconfig.Silence{{Matchers: matchers(b, `namespace="kube-system",pod=~"coredns-.*"`)}})
	f := lasting("web-1", false)
	for b.Loop() {
		g.admit(f, f.alert.StartedAt)
	}
}
