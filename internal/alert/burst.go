package alert

import (
	"math"

	"bpfnet/internal/detect"
	"bpfnet/internal/sample"
)

// BurstObserved is what the rule burst has added up.
type BurstObserved struct {
	Metric          string  `json:"metric"`
	Direction       string  `json:"direction"`
	Amount          uint64  `json:"amount"` // in the window before the alert
	AmountPerSecond *uint64 `json:"amount_per_second"`
	Peak            uint64  `json:"peak"` // the most in a window
}

// BurstExpected is what the rule burst compares that with.
type BurstExpected struct {
	Burst          string   `json:"burst"` // the rule
	Threshold      uint64   `json:"threshold"`
	EndsBelow      uint64   `json:"ends_below"`
	LastingSeconds *uint64  `json:"lasting_seconds"` // null: it needn't last
	Mean           *uint64  `json:"mean"`            // null, and so are the others: the threshold is fixed
	MAD            *uint64  `json:"mad"`
	Factor         *float64 `json:"factor"`
	Windows        *int     `json:"windows"`
}

// BurstEvidence is whose traffic it is.
type BurstEvidence struct{ Endpoint }

// OfBurst is the alert of a burst: one when it is noticed, and another one with the
// same fingerprint when it is over.
func OfBurst(f detect.Finding) Alert {
	a := ofEpisode(RuleBurst, f.Rule.String(), f.Rule.Timing, f.Episode)
	a.Observed = BurstObserved{
		Metric: string(f.Rule.Metric), Direction: string(f.Rule.Direction),
		Amount: f.Amount, AmountPerSecond: sample.PerSecond(f.Amount, f.Rule.Window), Peak: f.Peak,
	}
	a.Expected = burstExpected(f)
	a.Evidence = BurstEvidence{endpointOf(f.Episode)}
	a.Loss.MapFull = &f.Lost
	return a
}

func burstExpected(f detect.Finding) BurstExpected {
	e := BurstExpected{
		Burst: f.Rule.String(), Threshold: f.Threshold, EndsBelow: f.EndsBelow(),
		LastingSeconds: wholeSeconds(f.Rule.Lasting),
	}
	if f.Usual != nil {
		mean, mad := uint64(math.Round(f.Usual.Mean)), uint64(math.Round(f.Usual.MAD))
		e.Mean, e.MAD, e.Factor, e.Windows = &mean, &mad, &f.Rule.Factor, &f.Usual.Windows
	}
	return e
}
