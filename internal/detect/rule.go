package detect

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The limits of all rules.
const (
	longestWindow  = 24 * time.Hour
	longestLasting = 7 * 24 * time.Hour
)

// parseRule reads AMOUNT/TIME and options with commas between them, each kind once:
// "for=TIME", and those that option knows.
func parseRule(text string, longest time.Duration, amount func(string) error, option func(name, value string, valued bool) (known, twice bool, err error)) (t Timing, err error) {
	first, rest, more := strings.Cut(text, ",")
	much, window, ok := strings.Cut(first, "/")
	if !ok {
		return t, fmt.Errorf("no /TIME behind the amount")
	}
	if err := amount(much); err != nil {
		return t, err
	}
	if t.Window, err = parseTime(window, longest); err != nil {
		return t, err
	}
	for more {
		var part string
		part, rest, more = strings.Cut(rest, ",")
		name, value, valued := strings.Cut(part, "=")
		known, twice, err := option(name, value, valued)
		if valued && name == "for" {
			known, twice = true, t.Lasting > 0
			t.Lasting, err = parseTime(value, longestLasting)
		}
		switch {
		case !known:
			return t, fmt.Errorf("no option %q", part)
		case twice:
			return t, fmt.Errorf("%q: there is one such option already", part)
		case err != nil:
			return t, err
		}
	}
	if t.Lasting > 0 && t.Lasting < 2*t.Window {
		return t, fmt.Errorf("for=%s is shorter than two windows: what comes at once stays in a window as long as that is", seconds(t.Lasting))
	}
	return t, nil
}

func parseTime(text string, longest time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is no time like 10s or 5m", text)
	}
	if d < time.Second || d > longest || d%time.Second != 0 {
		return 0, fmt.Errorf("%s isn't a number of seconds from 1 to %d", text, longest/time.Second)
	}
	return d, nil
}

// lasting is the option "for=TIME".
func (t Timing) lasting() string {
	if t.Lasting == 0 {
		return ""
	}
	return ",for=" + seconds(t.Lasting)
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) + "s" }
