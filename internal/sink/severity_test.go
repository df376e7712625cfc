package sink

import (
	"encoding/json"
	"slices"
	"testing"

	"bpfnet/internal/alert"
)

// TestSeverity checks what each kind of sink makes of an alert's severity and of its
// rule's name.
func TestSeverity(t *testing.T) {
	name := "exfil"
	for severity, want := range map[alert.Severity]struct{ priority, number, otlp int }{
		alert.Info: {30, 21, 9}, alert.Warning: {28, 47, 13}, alert.Critical: {26, 99, 18},
	} {
		a := hit(t, "a reason").Alert
		a.RuleName, a.Severity = &name, severity
		e := event(t, a)
		if got := logPriority(severity); got != want.priority {
			t.Errorf("%s: syslog has %d", severity, got)
		}
		if got := severities[severity]; int(got) != want.otlp {
			t.Errorf("%s: OpenTelemetry has %d", severity, got)
		}
		var doc object
		text, err := json.Marshal((&elasticsearch{}).document(e, "id"))
		if err != nil || json.Unmarshal(text, &doc) != nil {
			t.Fatal(err)
		}
		for field, value := range map[string]any{
			"event.severity": float64(want.number), "log.level": string(severity), "rule.name": name, "rule.category": "blocklist", "bpfnet.rule_name": name,
		} {
			if got := doc.get(field); got != value {
				t.Errorf("%s: Elasticsearch has %s %v", severity, field, got)
			}
		}
		if labels := labelsOf(e, "node-1"); labels["severity"] != string(severity) || labels["rule_name"] != name || labels["devname"] != "" {
			t.Errorf("%s: Alertmanager has %v", severity, labels)
		}
		fields := fieldsOf(a)
		if !slices.Contains(fields, "BPFNET_ALERT_RULE_NAME="+name) || !slices.Contains(fields, "BPFNET_ALERT_SEVERITY="+string(severity)) {
			t.Errorf("%s: a command has %q", severity, fields)
		}
	}
}
