package alert

import "bpfnet/internal/detect"

// ScanObserved is what the rule scan has counted in the window before the alert.
type ScanObserved struct {
	Metric string `json:"metric"`
	Amount uint64 `json:"amount"`
	Peak   uint64 `json:"peak"` // the most in a window
}

// ScanExpected is what the rule scan compares that with.
type ScanExpected struct {
	Scan           string  `json:"scan"` // the rule
	Threshold      uint64  `json:"threshold"`
	EndsBelow      uint64  `json:"ends_below"`
	LastingSeconds *uint64 `json:"lasting_seconds"` // null: it needn't last
}

// ScanEvidence is who has tried what.
type ScanEvidence struct {
	Endpoint
	Peer           *string  `json:"peer"`            // that has the ports; null: the rule counts failed attempts
	SamplePorts    []uint16 `json:"sample_ports"`    // of the peer
	SampleAttempts []End    `json:"sample_attempts"` // some that failed
}

// OfScan is the alert of a scan, as OfBurst is that of a burst.
func OfScan(f detect.ScanFinding) Alert {
	a := ofEpisode(RuleScan, f.Rule.String(), f.Rule.Timing, f.Episode)
	a.Observed = ScanObserved{Metric: string(f.Rule.Sign), Amount: f.Amount, Peak: f.Peak}
	a.Expected = ScanExpected{
		Scan: f.Rule.String(), Threshold: f.Threshold, EndsBelow: f.EndsBelow(), LastingSeconds: wholeSeconds(f.Rule.Lasting),
	}
	evidence := ScanEvidence{Endpoint: endpointOf(f.Episode), SamplePorts: []uint16{}, SampleAttempts: []End{}}
	for _, p := range f.Ports {
		if f.Rule.Sign == detect.Ports {
			evidence.Peer = Known(p.Address.String())
			evidence.SamplePorts = append(evidence.SamplePorts, p.Port)
		} else {
			evidence.SampleAttempts = append(evidence.SampleAttempts, End{p.Address, Known(p.Port)})
		}
	}
	a.Evidence = evidence
	a.Loss.Peers = &f.Lost
	return a
}
