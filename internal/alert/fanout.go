package alert

import "bpfnet/internal/detect"

// FanoutObserved is what the rule fanout has counted in the window before the alert.
type FanoutObserved struct {
	DistinctPeers  uint64   `json:"distinct_peers"` // that the rule counts
	AttemptedPeers uint64   `json:"attempted_peers"`
	AnsweredPeers  uint64   `json:"answered_peers"`
	Peak           uint64   `json:"peak"` // the most in a window
	Estimated      bool     `json:"estimated"`
	StandardError  *float64 `json:"standard_error"` // null: it is exact
}

// FanoutExpected is what the rule fanout compares that with.
type FanoutExpected struct {
	Fanout         string  `json:"fanout"` // the rule
	Contact        string  `json:"contact"`
	Threshold      uint64  `json:"threshold"`
	EndsBelow      uint64  `json:"ends_below"`
	LastingSeconds *uint64 `json:"lasting_seconds"` // null: it needn't last
}

// FanoutEvidence is who contacted whom.
type FanoutEvidence struct {
	Endpoint
	SamplePeers []string `json:"sample_peers"`
}

// OfFanout is the alert of a fan-out, as OfBurst is that of a burst.
func OfFanout(f detect.FanoutFinding) Alert {
	a := ofEpisode(RuleFanout, f.Rule.String(), f.Rule.Timing, f.Episode)
	observed := FanoutObserved{
		DistinctPeers: f.Amount, AttemptedPeers: f.Attempted, AnsweredPeers: f.Answered, Peak: f.Peak, Estimated: f.Estimated,
	}
	if f.Estimated {
		e := detect.StandardError
		observed.StandardError = &e
	}
	a.Observed = observed
	a.Expected = FanoutExpected{
		Fanout: f.Rule.String(), Contact: string(f.Rule.Contact), Threshold: f.Threshold, EndsBelow: f.EndsBelow(),
		LastingSeconds: wholeSeconds(f.Rule.Lasting),
	}
	evidence := FanoutEvidence{Endpoint: endpointOf(f.Episode), SamplePeers: []string{}}
	for _, peer := range f.Peers {
		evidence.SamplePeers = append(evidence.SamplePeers, peer.String())
	}
	a.Evidence = evidence
	a.Loss.Peers = &f.Lost
	return a
}
