package baseline

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"bpfnet/internal/fault"
)

// Rule is how what deviates from a baseline is noticed.
type Rule struct {
	File    string  // that has the baseline
	Score   float64 // that a volume has to reach
	Unknown bool    // endpoints that the baseline doesn't have are told of
}

// DefaultScore is far from what is usual.
const DefaultScore = 6

// The limits of a score.
const (
	leastScore   = 1
	largestScore = 1e6
)

// ruleForm is what people are told.
const ruleForm = "a baseline is FILE[,score=NUMBER][,unknown], as in learn.json,score=8"

// ParseRule reads "learn.json,score=6,unknown". Errors are of kind fault.ErrUsage.
func ParseRule(text string) (Rule, error) {
	file, rest, more := strings.Cut(text, ",")
	r := Rule{File: file}
	wrong := func(format string, args ...any) (Rule, error) {
		return Rule{}, fault.New(fault.ErrUsage, "read baseline %q: %s", text, fmt.Sprintf(format, args...)).Hint("%s", ruleForm)
	}
	if file == "" {
		return wrong("no file")
	}
	for more {
		var option string
		option, rest, more = strings.Cut(rest, ",")
		value, scored := strings.CutPrefix(option, "score=")
		switch {
		case scored && r.Score > 0, option == "unknown" && r.Unknown:
			return wrong("%q: there is one such option already", option)
		case scored:
			score, err := ParseScore(value)
			if err != nil {
				return wrong("%v", err)
			}
			r.Score = score
		case option == "unknown":
			r.Unknown = true
		default:
			return wrong("no option %q", option)
		}
	}
	if r.Score == 0 {
		r.Score = DefaultScore
	}
	return r, nil
}

// String writes the rule so that ParseRule reads it, and the same one always the same.
func (r Rule) String() string { return r.File + "," + r.Options() }

// Options is the rule without its file.
func (r Rule) Options() string {
	text := "score=" + strconv.FormatFloat(r.Score, 'g', -1, 64)
	if r.Unknown {
		text += ",unknown"
	}
	return text
}

// ParseScore reads a number of robust standard deviations.
func ParseScore(text string) (float64, error) {
	score, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(score) || score < leastScore || score > largestScore {
		return 0, fmt.Errorf("score %s isn't a number from %d to %d", text, leastScore, int(largestScore))
	}
	return score, nil
}
