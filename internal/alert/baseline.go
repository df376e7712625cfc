package alert

import (
	"fmt"
	"strings"

	"bpfnet/internal/baseline"
	"bpfnet/internal/detect"
	"bpfnet/internal/sample"
)

// BaselineObserved is what the rule baseline has seen.
type BaselineObserved struct {
	Deviation string   `json:"deviation"` // "volume", "peers", "ports" or "endpoint"
	Metric    *string  `json:"metric"`    // of a volume; null, as the score: it is something else
	Direction *string  `json:"direction"`
	Amount    uint64   `json:"amount"` // in the window before the alert, or how many are new
	Peak      uint64   `json:"peak"`
	Score     *float64 `json:"score"`
	New       []string `json:"new"` // some of what is new; none: it is a volume
}

// BaselineExpected is what the rule baseline compares that with. What is null doesn't
// apply.
type BaselineExpected struct {
	Baseline  string  `json:"baseline"` // the rule
	Score     float64 `json:"score"`    // that it asks for
	Threshold *uint64 `json:"threshold"`
	Median    *uint64 `json:"median"`
	MAD       *uint64 `json:"mad"`
	Most      *uint64 `json:"most"`
	Windows   *uint64 `json:"windows"` // that this is of
	Hour      *string `json:"hour"`
	Basis     *string `json:"basis"` // "hour", "three", "days" or "week"
	Known     *int    `json:"known"` // how many peers, ports or endpoints the baseline has
}

// BaselineEvidence is whose traffic it is, and why that is told.
type BaselineEvidence struct {
	Endpoint
	Name   string   `json:"baseline_endpoint"`
	Reason string   `json:"reason"`
	Sample []string `json:"sample"` // ports and peers of what is new; none: it is something else
}

// mostNew is how much of what is new an alert has.
const mostNew = 10

// OfBaseline is the alert of a deviation: one when it is noticed, and another one with
// the same fingerprint when it is over.
func OfBaseline(f baseline.Finding) Alert {
	a := ofEpisode(RuleBaseline, f.Rule.Options(), detect.Timing{Window: f.Window}, f.Episode)
	observed := BaselineObserved{Deviation: string(f.Reason), Amount: f.Amount, Peak: f.Peak, New: []string{}}
	expected := BaselineExpected{Baseline: f.Rule.String(), Score: f.Rule.Score}
	evidence := BaselineEvidence{Endpoint: endpointOf(f.Episode), Name: f.Name, Reason: baselineReason(f), Sample: []string{}}
	same := []string{RuleBaseline, f.Rule.Options(), string(f.Reason), f.Name}
	if f.Reason != baseline.Unknown { // that one is of all its Pods
		same = append(append(same, identityOf(f.Episode)...), sample.Value(f.Source.ContainerID))
	}
	if d := f.Deviation; d != nil {
		metric, direction, hour, basis := string(d.Metric), string(d.Direction), d.Hour, string(d.Basis)
		observed.Metric, observed.Direction, observed.Score = &metric, &direction, &d.Score
		expected.Threshold, expected.Median, expected.MAD, expected.Most = &f.Threshold, &d.Usual.Median, &d.Usual.MAD, &d.Usual.Most
		expected.Windows, expected.Hour, expected.Basis = &d.Windows, &hour, &basis
		same = append(same, direction)
	} else {
		observed.New, evidence.Sample, expected.Known = f.Items[:min(len(f.Items), mostNew)], append(evidence.Sample, f.Sample...), &f.Known
		same = append(same, f.Items...)
	}
	if f.Counted {
		a.Loss.MapFull = &f.Lost
	} else {
		a.Loss.Peers = &f.Lost
	}
	a.Fingerprint = fingerprint(same...)
	a.Observed, a.Expected, a.Evidence = observed, expected, evidence
	return a
}

// baselineReason is in words what deviates.
func baselineReason(f baseline.Finding) string {
	switch f.Reason {
	case baseline.Volume:
		d := f.Deviation
		at := map[baseline.Basis]string{
			baseline.OfHour: "at " + d.Hour + " UTC", baseline.OfThree: "around " + d.Hour + " UTC",
			baseline.OfDays: "at this hour of all days", baseline.OfWeek: "at all hours",
		}[d.Basis]
		direction, unit, _ := strings.Cut(string(d.Metric), "_")
		return fmt.Sprintf("it %ss up to %d %s in %s, usually %d and at most %d %s", direction, f.Peak, unit, f.Window, d.Usual.Median, d.Usual.Most, at)
	case baseline.Unknown:
		return "the baseline doesn't have it"
	}
	list := strings.Join(f.Items[:min(len(f.Items), 3)], ", ")
	if f.Amount > 3 {
		list += ", …"
	}
	if f.Reason == baseline.Peers {
		return fmt.Sprintf("it contacts whom it never has: %d, %s", f.Amount, list)
	}
	return fmt.Sprintf("it contacts ports that it never has: %d, %s", f.Amount, list)
}
