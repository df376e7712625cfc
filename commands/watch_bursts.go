package commands

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"bpfnet/internal/alert"
	"bpfnet/internal/detect"
)

// burstRule looks for bursts of bytes and packets.
type burstRule struct{ *detect.Detector }

func (r burstRule) step(s samples) []found {
	if s.pods == nil {
		return nil
	}
	return burstsFound(r.Step(*s.pods))
}

func (r burstRule) conclude(note func(string)) error {
	r.concludeBursts("bursts", note)
	return lossOf(r.Lost(), "packets that no endpoint's counters have, because the map was full", "packets of no endpoint's counters", moreRoom, note)
}

// concludeBursts says what there is to know of bursts in the end.
func (r burstRule) concludeBursts(what string, note func(string)) {
	concludeEpisodes(r, what, note)
	if n := r.Learning(); n > 0 {
		note(fmt.Sprintf("what is usual isn't known yet for endpoints, once for each rule that wants it: %d", n))
	}
}

// connectionsRule looks for bursts of connections.
type connectionsRule struct{ burstRule }

func (r connectionsRule) step(s samples) []found {
	if s.peers == nil {
		return nil
	}
	return burstsFound(r.StepPeers(*s.peers))
}

func (r connectionsRule) conclude(note func(string)) error {
	r.concludeBursts("bursts of connections", note)
	return lossOf(r.Lost(), "connections that no endpoint's counters have, because the map was full", "connections of no endpoint's counters", moreEndpoints, note)
}

func burstsFound(bursts []detect.Finding) (all []found) {
	for _, f := range bursts {
		all = append(all, foundAs(alert.OfBurst(f), f.Rule.String(), func() string {
			return episodeLine(alert.RuleBurst, f.Rule, f.Episode, volumeNumber(string(f.Rule.Metric)), "")
		}))
	}
	return all
}

// noteLearning says of which rules there won't be alerts at once.
func (e *Env) noteLearning(c *cli.Context, rules []detect.Burst) {
	for _, r := range rules {
		if r.Factor > 0 {
			e.note(c, "note: --burst %s is learning: it tells nothing of an endpoint that was watched for less than %s", r, r.Learning())
		}
	}
}
