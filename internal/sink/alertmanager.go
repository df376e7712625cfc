package sink

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// repeatTime is how often Alertmanager is told what is still on, as Prometheus does.
	repeatTime = time.Minute
	// trustTime is how long it believes that: longer than it takes to tell it again.
	trustTime = 4 * repeatTime
)

// alertmanager posts alerts to Alertmanager, and again for as long as they are on.
type alertmanager struct {
	*remote
	host string

	mu sync.Mutex
	on map[string]Event // by fingerprint
}

func openAlertmanager(s Spec, o Options) (driver, error) {
	r, err := openRemote(s, o, "api", "v2", "alerts")
	return &alertmanager{remote: r, host: o.Host, on: map[string]Event{}}, err
}

func (d *alertmanager) most() int { return 100 }

func (d *alertmanager) every() time.Duration { return repeatTime }

// observe gives an alert its labels, and its end those that it had: what tells alerts
// apart must not change when a name becomes known. It knows what is on also if the
// queue has no room for it.
func (d *alertmanager) observe(e Event) Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, was := d.on[e.Alert.Fingerprint]
	e.labels = before.labels
	if !was || !before.Alert.StartedAt.Equal(e.Alert.StartedAt) {
		e.labels = labelsOf(e, d.host)
	}
	switch {
	case e.Alert.EndedAt != nil:
		delete(d.on, e.Alert.Fingerprint)
	case e.Alert.Lasts():
		d.on[e.Alert.Fingerprint] = e
	}
	return e
}

// postable is an alert as version 2 of the API takes it.
type postable struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      *time.Time        `json:"endsAt,omitempty"`
}

func (d *alertmanager) postable(e Event) postable {
	p := postable{
		Labels: e.labels, StartsAt: e.Alert.StartedAt, EndsAt: e.Alert.EndedAt,
		Annotations: map[string]string{"summary": e.Alert.Summary(), "description": string(e.Document)},
	}
	if p.EndsAt == nil && e.Alert.Lasts() {
		until := d.now().UTC().Add(trustTime)
		p.EndsAt = &until
	}
	return p
}

// labelsOf is what tells alerts apart, and what they are routed by.
func labelsOf(e Event, host string) map[string]string {
	labels := e.Alert.Labels()
	labels["alertname"], labels["instance"] = alertName(e.Alert.Rule), host
	delete(labels, "devname") // it may change, and so may the next one
	delete(labels, "endpoint")
	if labels["namespace"] == "" || labels["pod"] == "" {
		delete(labels, "namespace")
		delete(labels, "pod")
	}
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	return labels
}

func (d *alertmanager) deliver(ctx context.Context, events []Event) result {
	alerts := make([]postable, len(events))
	for i, e := range events {
		alerts[i] = d.postable(e)
	}
	body, err := json.Marshal(alerts)
	if err != nil {
		return result{refused: len(events), err: err}
	}
	_, failed := d.post(ctx, body, jsonHeader(), events)
	return failed
}

// repeat tells all that is on. What isn't taken is told the next time.
func (d *alertmanager) repeat(ctx context.Context) result {
	d.mu.Lock()
	events := slices.Collect(maps.Values(d.on))
	d.mu.Unlock()
	for some := range slices.Chunk(events, d.most()) {
		if r := d.deliver(ctx, some); r.err != nil {
			return result{err: r.err}
		}
	}
	return result{}
}

// alertName is the name of a rule's alerts: BpfnetBurst.
func alertName(rule string) string {
	name := "Bpfnet"
	for word := range strings.FieldsFuncSeq(rule, func(r rune) bool { return r == '-' || r == '_' }) {
		name += strings.ToUpper(word[:1]) + word[1:]
	}
	return name
}
