package commands

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"bpfnet/internal/detect"
	"bpfnet/internal/fault"
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

// ofThreshold is how much of the threshold there is, in as many columns as episodeLine
// wants.
func ofThreshold(ep detect.Episode, number func(uint64) string) string {
	return fmt.Sprintf("%8s of %-8s", number(ep.Amount), number(ep.Threshold))
}

// episodeLine is the beginning or the end of an episode for people. more is what else
// there is to say.
func episodeLine(rule, form string, ep detect.Episode, amount, more string) string {
	at, fate := ep.Started, "began"
	if !ep.Ended.IsZero() {
		at, fate = ep.Ended, "ended"
	}
	s := ep.Source
	who := cmp.Or(podName(s.Namespace, s.Pod, s.PodUID), podContainer(s))
	line := fmt.Sprintf("%s  %-10s  %-18s  %-7s  %s  %-39s  %-10s  %s  %s",
		at.Local().Format("15:04:05.000"), rule, form, fate, amount, s.Address, podPlace(s), who, more)
	return strings.TrimRight(line, " ")
}
