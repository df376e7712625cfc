// Package alert has the document that every rule reports with, and what each
// rule puts into it. It doesn't touch the kernel.
package alert

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// Schema names the document.
const Schema = "bpfnet.alert/v1"

// The rules.
const (
	RuleBlocklist = "blocklist" // packets that meet an entry of a list that alerts
	RuleBurst     = "burst"     // endpoints that move much in little time
	RuleFanout    = "fanout"    // endpoints that contact many others in little time
	RuleScan      = "scan"      // endpoints that try many ports, or fail often to connect
	RuleBaseline  = "baseline"  // endpoints that do what they normally don't
)

// Rules lists the rules.
func Rules() []string {
	return []string{RuleBlocklist, RuleBurst, RuleFanout, RuleScan, RuleBaseline}
}

// Severity is how bad it is.
type Severity string

// The severities.
const (
	Info     Severity = "info"     // good to know
	Warning  Severity = "warning"  // somebody should look at it; what a rule has unless it says otherwise
	Critical Severity = "critical" // at once
)

// Severities lists them.
func Severities() []string { return []string{string(Info), string(Warning), string(Critical)} }

// Alert is one thing that a rule has noticed.
type Alert struct {
	Schema        string     `json:"schema"`
	Rule          string     `json:"rule"`
	RuleName      *string    `json:"rule_name"` // that somebody gave it
	Severity      Severity   `json:"severity"`
	Fingerprint   string     `json:"fingerprint"` // the same for the same thing
	StartedAt     time.Time  `json:"started_at"`
	EndedAt       *time.Time `json:"ended_at"` // null: it isn't over, or the rule doesn't tell
	K8s           K8s        `json:"k8s"`
	WindowSeconds uint64     `json:"window_seconds"`
	Observed      any        `json:"observed"`
	Expected      any        `json:"expected"` // null: the rule has no threshold
	Evidence      any        `json:"evidence"`
	Loss          Loss       `json:"loss"`
}

// K8s is the Pod that it is about; null: not known.
type K8s struct {
	Namespace *string `json:"namespace"`
	Pod       *string `json:"pod"`
}

// Loss is what no alert tells of, since the watch began.
type Loss struct {
	Events  uint64  `json:"events"`   // of packets that programs tell of
	MapFull *uint64 `json:"map_full"` // packets, or connections, that no endpoint's counters have; null: the rule doesn't look at any
	Peers   *uint64 `json:"peers"`    // peers that made room for others before they were read, and of a baseline connections that found none; null: the rule doesn't look at any
}

// fingerprint is a hash of what makes two alerts the same: 16 hexadecimal digits,
// as Alertmanager has them.
func fingerprint(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}
