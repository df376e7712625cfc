// Package match reads label matchers as Prometheus and Alertmanager write them, and
// compares labels with them.
package match

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/alertmanager/matcher/parse"
	"github.com/prometheus/alertmanager/pkg/labels"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
)

// Matchers have all to hold. None hold always.
type Matchers []*labels.Matcher

// form is what people are told.
const form = `matchers are LABEL="VALUE", with =, !=, =~ or !~ (regular expressions of RE2, for the whole value) and commas between them`

// Parse reads `namespace="shop",pod=~"web-.*"` of labels that are known. Errors are
// of kind fault.ErrUsage.
func Parse(text string, known []string) (Matchers, error) {
	if !utf8.ValidString(text) {
		return nil, fault.New(fault.ErrUsage, "read matchers %q: it isn't UTF-8", text).Hint("%s", form)
	}
	parsed, err := parse.Matchers(text)
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "read matchers %q: %w", text, err).Hint("%s", form)
	}
	if len(parsed) == 0 {
		return nil, fault.New(fault.ErrUsage, "read matchers %q: there are none", text).Hint("%s", form)
	}
	for _, m := range parsed {
		if slices.Contains(known, m.Name) {
			continue
		}
		err := fault.New(fault.ErrUsage, "read matchers %q: no label %q", text, m.Name)
		if near := nearest.Word(m.Name, known); near != "" {
			return nil, err.Hint("did you mean %q?", near)
		}
		return nil, err.Hint("labels: %s", strings.Join(known, ", "))
	}
	return Matchers(parsed), nil
}

// Match says whether all matchers hold for labels; one that isn't there is "".
func (ms Matchers) Match(values map[string]string) bool {
	for _, m := range ms {
		if !m.Matches(values[m.Name]) {
			return false
		}
	}
	return true
}

// String writes matchers so that Parse reads them.
func (ms Matchers) String() string {
	texts := make([]string, len(ms))
	for i, m := range ms {
		texts[i] = m.String()
	}
	return strings.Join(texts, ",")
}
