package commands

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"bpfnet/internal/detect"
	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
)

// episodes are what a rule has noticed that isn't over.
type episodes interface {
	Firing() int
	TooFar() (apart, window time.Duration, tell bool)
}

// concludeEpisodes says what there is to know of episodes in the end.
func concludeEpisodes(e episodes, what string, note func(string)) {
	if n := e.Firing(); n > 0 {
		note(fmt.Sprintf("%s that aren't over: %d", what, n))
	}
	if apart, window, tell := e.TooFar(); tell {
		note(fmt.Sprintf("samples were up to %s apart, longer than a window of %s: %s in between may not be seen", apart, window, what))
	}
}

// How what found no room comes to have some.
const (
	moreRoom      = "bpfnet load pod-traffic --max-entries pods=N   makes room for more addresses"
	moreEndpoints = "bpfnet load peers --max-entries peer_endpoints=N   makes room for more addresses"
	morePeers     = "bpfnet load peers --max-entries peer_entries=N   makes room for more peers"
)

// lossOf says that something wasn't seen, and returns an error of kind fault.ErrLossy
// if so.
func lossOf(n uint64, what, short, hint string, note func(string)) error {
	if n == 0 {
		return nil
	}
	note(fmt.Sprintf("%s: %d", what, n))
	return fault.New(fault.ErrLossy, "watch alerts: %s: %d", short, n).Hint("%s", hint)
}

// episodeLine is the beginning or the end of an episode for people. more is what else
// there is to say.
func episodeLine(rule string, form fmt.Stringer, ep detect.Episode, amount func(uint64) string, more string) string {
	return lineOf(rule, form.String(), ep.Started, ep.Ended, muchOf(amount(ep.Amount), "of "+amount(ep.Threshold)), ep.Source, more)
}

// muchOf has two columns.
func muchOf(amount, than string) string { return fmt.Sprintf("%6s %-9s", amount, than) }

// lineOf is a line for people of who did something, the name before the address. What
// is usual fits into 120 columns.
func lineOf(rule, what string, started, ended time.Time, much string, s traffic.Who, more string) string {
	at, fate := started, "began"
	if !ended.IsZero() {
		at, fate = ended, "ended"
	}
	who := cmp.Or(podName(s.Namespace, s.Pod, s.PodUID), podContainer(s), s.Address.String())
	line := fmt.Sprintf("%s  %-9s  %-16s  %s  %s  %-16s  %-6s  %s", at.Local().Format("15:04:05.000"), rule, what, fate, much, who, podPlace(s), more)
	return strings.TrimRight(line, " ")
}
