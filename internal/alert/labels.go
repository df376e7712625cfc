package alert

import "encoding/json"

// LabelNames are the labels that an alert may have. None has a far end's address.
func LabelNames() []string {
	return []string{"rule", "rule_name", "severity", "fingerprint", "namespace", "pod", "container", "endpoint", "devname", "list"}
}

// Labels are what alerts are chosen by: the names in LabelNames, without those that
// the alert doesn't have.
func (a Alert) Labels() map[string]string {
	labels := map[string]string{"rule": a.Rule, "severity": string(a.Severity), "fingerprint": a.Fingerprint}
	var e struct{ Container, Endpoint, DevName, List *string }
	if text, err := json.Marshal(a.Evidence); err == nil {
		_ = json.Unmarshal(text, &e) // not every rule has them
	}
	for name, value := range map[string]*string{
		"rule_name": a.RuleName, "namespace": a.K8s.Namespace, "pod": a.K8s.Pod,
		"container": e.Container, "endpoint": e.Endpoint, "devname": e.DevName, "list": e.List,
	} {
		if value != nil {
			labels[name] = *value
		}
	}
	return labels
}
