// Package alertconfig reads the file that says what watch alerts looks for and whom it
// tells. It doesn't look at what the file names, and doesn't touch the kernel.
package alertconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"bpfnet/internal/alert"
	"bpfnet/internal/match"
)

// LeastInterval is the least time between two samples.
const LeastInterval = 10 * time.Millisecond

// Config is what the file says; what it doesn't is the zero value.
type Config struct {
	Interval time.Duration // between two samples
	List     string        // only hits of this one
	Instance string        // that counts
	Peers    string        // the instance that remembers peers
	Internal []string      // what ParseInternal reads
	Observe  string        // where packets are counted
	Kinds    []string      // of rules that are on
	Rules    []Rule        // in the order of the file
	Sinks    []string      // that sink.Parse reads
	Silences []Silence
}

// NoInternal is instead of a prefix, and says that nothing is internal but what is given.
const NoInternal = "none"

// ParseInternal reads the prefix of peers that aren't external, or an address as the
// prefix of itself. NoInternal is the zero value.
func ParseInternal(text string) (netip.Prefix, error) {
	if text == NoInternal {
		return netip.Prefix{}, nil
	}
	if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return prefix, fmt.Errorf("read prefix %q: neither an address nor a prefix", text)
	}
	return prefix, nil
}

// Rule says what alerts of a kind of rule are like. Where several have the same text,
// the first one that applies counts.
type Rule struct {
	Kind         string
	Text         string         // as the kind's flag takes it, in one form; "": the kind has none
	Name         string         // "": it has none
	Severity     alert.Severity // "": what the kind has
	Only, Except match.Matchers
}

// Applies says whether the rule is for what has these labels.
func (r Rule) Applies(labels map[string]string) bool {
	return r.Only.Match(labels) && (r.Except == nil || !r.Except.Match(labels))
}

// Silence keeps alerts back.
type Silence struct {
	Matchers    match.Matchers
	From, Until time.Time // the zero value: without a beginning, without an end
	Comment     string
}

// Holds says whether it keeps back what has these labels, at a time.
func (s Silence) Holds(labels map[string]string, at time.Time) bool {
	return !at.Before(s.From) && (s.Until.IsZero() || at.Before(s.Until)) && s.Matchers.Match(labels)
}

// Texts are the different texts of the rules of a kind.
func (c Config) Texts(kind string) (texts []string) {
	for _, r := range c.Rules {
		if r.Kind == kind && r.Text != "" && !slices.Contains(texts, r.Text) {
			texts = append(texts, r.Text)
		}
	}
	return texts
}
