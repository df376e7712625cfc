package alert

import (
	"fmt"
	"net/netip"

	"bpfnet/internal/sample"
)

// Lasts says whether a second alert comes when it is over.
func (a Alert) Lasts() bool { return a.Rule != RuleBlocklist }

// Summary is the alert in one line for people. It has what others have sent, like names,
// as it is.
func (a Alert) Summary() string {
	switch evidence := a.Evidence.(type) {
	case BlocklistEvidence:
		return a.ofPacket(evidence)
	case BurstEvidence:
		return a.ofBurst(evidence)
	case FanoutEvidence:
		return a.ofFanout(evidence)
	case ScanEvidence:
		return a.ofScan(evidence)
	case BaselineEvidence:
		return a.ofBaseline(evidence)
	}
	if a.K8s.Pod == nil {
		return a.Rule
	}
	return a.Rule + ": " + a.pod()
}

func (a Alert) pod() string { return sample.Value(a.K8s.Namespace) + "/" + sample.Value(a.K8s.Pod) }

func (a Alert) ofPacket(e BlocklistEvidence) string {
	fate, list := "went on", "a list that is gone"
	if e.Dropped {
		fate = "dropped"
	}
	if e.List != nil {
		list = "list " + *e.List
	}
	line := fmt.Sprintf("packet %s -> %s met %s of %s, %s", e.Network.Source, e.Network.Destination, e.Prefix, list, fate)
	if e.Process != nil {
		line += ", process " + e.Process.String()
	}
	if e.Reason != nil {
		line += ": " + *e.Reason
	}
	return line
}

// who is an endpoint for people.
func (a Alert) who(e Endpoint) string {
	switch {
	case a.K8s.Pod != nil:
		return a.pod()
	case e.PodUID != nil:
		return "Pod " + *e.PodUID
	case e.Container != nil:
		return "container " + *e.Container
	case e.ContainerID != nil:
		return "container " + *e.ContainerID
	}
	return e.Address
}

func (a Alert) ofBurst(e BurstEvidence) string {
	seen, _ := a.Observed.(BurstObserved)
	wanted, _ := a.Expected.(BurstExpected)
	return a.ofEpisode(wanted.Burst, a.who(e.Endpoint), seen.Amount, seen.Peak, wanted.Threshold, seen.Metric)
}

// ofEpisode tells how much of something there is, or was if it is over.
func (a Alert) ofEpisode(form, who string, amount, peak, threshold uint64, what string) string {
	if a.EndedAt != nil {
		return fmt.Sprintf("%s %s of %s is over: at most %d %s in %ds", a.Rule, form, who, peak, what, a.WindowSeconds)
	}
	return fmt.Sprintf("%s %s of %s: %d %s in %ds, threshold %d", a.Rule, form, who, amount, what, a.WindowSeconds, threshold)
}

func (a Alert) ofFanout(e FanoutEvidence) string {
	seen, _ := a.Observed.(FanoutObserved)
	wanted, _ := a.Expected.(FanoutExpected)
	return a.ofEpisode(wanted.Fanout, a.who(e.Endpoint), seen.DistinctPeers, seen.Peak, wanted.Threshold, "external peers")
}

func (a Alert) ofScan(e ScanEvidence) string {
	seen, _ := a.Observed.(ScanObserved)
	wanted, _ := a.Expected.(ScanExpected)
	what := "failed connections"
	if e.Peer != nil {
		what = "ports of " + *e.Peer
	}
	return a.ofEpisode(wanted.Scan, a.who(e.Endpoint), seen.Amount, seen.Peak, wanted.Threshold, what)
}

func (a Alert) ofBaseline(e BaselineEvidence) string {
	over := ""
	if a.EndedAt != nil {
		over = " is over"
	}
	return fmt.Sprintf("deviation of %s%s: %s", a.who(e.Endpoint), over, e.Reason)
}

// String is the address, and the port if there is one.
func (e End) String() string {
	if e.Port == nil {
		return e.Address.String()
	}
	return netip.AddrPortFrom(e.Address, *e.Port).String()
}
