package alert

import (
	"math"
	"strconv"
	"time"

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

// BurstEvidence is whose traffic it is. Where the endpoint has several addresses,
// interfaces or cgroups it is about the one that grew most.
type BurstEvidence struct {
	Endpoint    string  `json:"endpoint"`
	ObservedAt  string  `json:"observed_at"`
	PodUID      *string `json:"pod_uid"`
	Container   *string `json:"container"`
	ContainerID *string `json:"container_id"`
	Address     string  `json:"address"`
	DevName     *string `json:"devname"`
	IfIndex     *uint32 `json:"ifindex"`
	CgroupID    *string `json:"cgroup_id"`
	Sources     int     `json:"sources"`
	EndedBy     *string `json:"ended_by"` // null: it isn't over
}

// OfBurst is the alert of a burst: one when it is noticed, and another one with the
// same fingerprint when it is over.
func OfBurst(f detect.Finding) Alert {
	who := f.Source
	return Alert{
		Schema: Schema, Rule: RuleBurst, Severity: Warning,
		Fingerprint: fingerprint(append([]string{RuleBurst, f.Rule.String()}, endpointOf(f)...)...),
		StartedAt:   f.Started.UTC(), EndedAt: Known(f.Ended.UTC()), WindowSeconds: uint64(f.Rule.Window / time.Second),
		K8s: K8s{Namespace: who.Namespace, Pod: who.Pod},
		Observed: BurstObserved{
			Metric: string(f.Rule.Metric), Direction: string(f.Rule.Direction),
			Amount: f.Amount, AmountPerSecond: sample.PerSecond(f.Amount, f.Rule.Window), Peak: f.Peak,
		},
		Expected: burstExpected(f),
		Evidence: BurstEvidence{
			Endpoint: string(f.Kind), ObservedAt: string(f.Point), PodUID: who.PodUID, Container: who.Container, ContainerID: who.ContainerID,
			Address: who.Address.String(), DevName: who.DevName, IfIndex: who.IfIndex, CgroupID: who.CgroupID, Sources: f.Sources,
			EndedBy: Known(string(f.EndedBy)),
		},
		Loss: Loss{MapFull: &f.MapFull},
	}
}

// endpointOf is what makes the same endpoint of another finding.
func endpointOf(f detect.Finding) []string {
	switch f.Kind {
	case detect.Pod:
		return []string{string(f.Kind), *f.Source.PodUID}
	case detect.Container:
		return []string{string(f.Kind), *f.Source.ContainerID}
	}
	index := strconv.FormatUint(uint64(sample.Value(f.Source.IfIndex)), 10)
	return []string{string(f.Kind), f.Source.Address.String(), index, sample.Value(f.Source.CgroupID)}
}

func burstExpected(f detect.Finding) BurstExpected {
	e := BurstExpected{
		Burst: f.Rule.String(), Threshold: f.Threshold, EndsBelow: f.EndsBelow(),
		LastingSeconds: Known(uint64(f.Rule.Lasting / time.Second)),
	}
	if f.Usual != nil {
		mean, mad := uint64(math.Round(f.Usual.Mean)), uint64(math.Round(f.Usual.MAD))
		e.Mean, e.MAD, e.Factor, e.Windows = &mean, &mad, &f.Rule.Factor, &f.Usual.Windows
	}
	return e
}
