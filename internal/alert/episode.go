package alert

import (
	"strconv"
	"time"

	"bpfnet/internal/detect"
	"bpfnet/internal/sample"
)

// Endpoint is, of evidence, whose traffic it is. Where the endpoint has several
// addresses, interfaces or cgroups it is about the one that did most.
type Endpoint struct {
	Kind        string  `json:"endpoint"`
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

// ofEpisode is what the alerts of all rules have that begin and end.
func ofEpisode(rule, form string, timing detect.Timing, ep detect.Episode) Alert {
	return Alert{
		Schema: Schema, Rule: rule, Severity: Warning,
		Fingerprint: fingerprint(append([]string{rule, form}, identityOf(ep)...)...),
		StartedAt:   ep.Started.UTC(), EndedAt: Known(ep.Ended.UTC()), WindowSeconds: uint64(timing.Window / time.Second),
		K8s: K8s{Namespace: ep.Source.Namespace, Pod: ep.Source.Pod},
	}
}

func endpointOf(ep detect.Episode) Endpoint {
	who := ep.Source
	return Endpoint{
		Kind: string(ep.Kind), ObservedAt: string(ep.Point), PodUID: who.PodUID, Container: who.Container, ContainerID: who.ContainerID,
		Address: who.Address.String(), DevName: who.DevName, IfIndex: who.IfIndex, CgroupID: who.CgroupID, Sources: ep.Sources,
		EndedBy: Known(string(ep.EndedBy)),
	}
}

// identityOf is what makes the same endpoint of another episode.
func identityOf(ep detect.Episode) []string {
	switch ep.Kind {
	case detect.Pod:
		return []string{string(ep.Kind), *ep.Source.PodUID}
	case detect.Container:
		return []string{string(ep.Kind), *ep.Source.ContainerID}
	}
	index := strconv.FormatUint(uint64(sample.Value(ep.Source.IfIndex)), 10)
	return []string{string(ep.Kind), ep.Source.Address.String(), index, sample.Value(ep.Source.CgroupID)}
}

// wholeSeconds is a time in seconds, nil for none.
func wholeSeconds(d time.Duration) *uint64 { return Known(uint64(d / time.Second)) }
