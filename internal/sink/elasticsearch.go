package sink

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"bpfnet/internal/alert"
)

// ecsVersion is the version of the Elastic Common Schema whose names are used.
const ecsVersion = "8.11.0"

// elasticsearch puts alerts into an index or data stream of Elasticsearch or
// OpenSearch, many at a time.
type elasticsearch struct {
	*remote
	host string
}

// bulkAnswer is what is wanted of an answer.
const bulkAnswer = "filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason"

func openElasticsearch(s Spec, o Options) (driver, error) {
	r, err := openRemote(s, o, "_bulk")
	if err != nil {
		return nil, err
	}
	join := "?"
	if strings.Contains(r.url, "?") {
		join = "&"
	}
	r.url += join + bulkAnswer
	return &elasticsearch{r, o.Host}, nil
}

func (d *elasticsearch) most() int { return 200 }

func (d *elasticsearch) deliver(ctx context.Context, events []Event) result {
	body, err := d.body(events)
	if err != nil {
		return result{refused: len(events), err: err}
	}
	header := http.Header{"Content-Type": {"application/x-ndjson"}, "Content-Encoding": {"gzip"}}
	answer, failed := d.post(ctx, body, header, events)
	if failed.err != nil {
		return failed
	}
	return readBulk(answer, events)
}

func (d *elasticsearch) body(events []Event) ([]byte, error) {
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	lines := json.NewEncoder(zip)
	for _, e := range events {
		id := d.id(e)
		if err := lines.Encode(map[string]any{"create": map[string]string{"_id": id}}); err != nil {
			return nil, err
		}
		if err := lines.Encode(d.document(e, id)); err != nil {
			return nil, err
		}
	}
	err := zip.Close()
	return b.Bytes(), err
}

// id is the same when an alert is sent again, so that it is there once.
func (d *elasticsearch) id(e Event) string {
	id := d.host + "-" + e.Alert.Fingerprint + "-" + strconv.FormatInt(e.Alert.StartedAt.UnixNano(), 10)
	if e.Alert.EndedAt != nil {
		id += "-ended"
	}
	return id
}

// readBulk says what became of each event.
func readBulk(answer []byte, events []Event) (r result) {
	type item struct {
		Status int
		Error  struct{ Type, Reason string }
	}
	var bulk struct {
		Errors *bool
		Items  []map[string]item
	}
	err := json.Unmarshal(answer, &bulk)
	if err != nil || bulk.Errors == nil || len(bulk.Items) != len(events) {
		return result{rest: events, err: fmt.Errorf("it doesn't answer as Elasticsearch does%s", excerpt(answer))}
	}
	for i, one := range bulk.Items {
		it := one["create"]
		switch {
		case it.Status/100 == 2, it.Status == http.StatusConflict: // it is there already
			continue
		case mayChange(it.Status):
			r.rest = append(r.rest, events[i])
		default:
			r.refused++
		}
		if r.err == nil {
			r.err = fmt.Errorf("it answers %d for an alert: %s%s", it.Status, it.Error.Type, excerpt([]byte(it.Error.Reason)))
		}
	}
	return r
}

// ecsFields are the fields that a document's keys are, too.
var ecsFields = []struct{ field, key string }{
	{"source.ip", "evidence.network.source.address"}, {"source.port", "evidence.network.source.port"},
	{"destination.ip", "evidence.network.destination.address"}, {"destination.port", "evidence.network.destination.port"},
	{"network.transport", "evidence.network.transport"}, {"network.type", "evidence.network.type"}, {"network.direction", "evidence.direction"},
	{"process.pid", "evidence.process.pid"}, {"process.name", "evidence.process.command"},
	{"process.executable", "evidence.process.executable"}, {"process.start", "evidence.process.start_time"},
	{"container.id", "evidence.container_id"}, {"container.name", "evidence.container"},
	{"destination.ip", "evidence.peer"},
	{"orchestrator.namespace", "k8s.namespace"}, {"orchestrator.resource.name", "k8s.pod"},
	{"threat.feed.name", "evidence.list"}, {"threat.indicator.description", "evidence.reason"},
}

// document has the names of ECS, and the alert as it is below "bpfnet".
func (d *elasticsearch) document(e Event, id string) object {
	a := e.Alert
	doc, at := object{}, a.StartedAt
	doc.set("event.start", a.StartedAt)
	if a.EndedAt != nil {
		at = *a.EndedAt
		doc.set("event.end", at)
		doc.set("event.duration", at.Sub(a.StartedAt)/time.Nanosecond)
	}
	doc.set("@timestamp", at)
	for field, value := range map[string]any{
		"ecs.version": ecsVersion, "message": a.Summary(), "host.name": d.host, "rule.name": ruleName(a), "rule.category": a.Rule,
		"log.level": a.Severity, "event.severity": eventSeverity(a.Severity),
		"event.id": id, "event.kind": "alert", "event.category": []string{"network"}, "event.type": []string{eventType(e)},
		"event.module": "bpfnet", "event.dataset": "bpfnet.alert", "bpfnet": json.RawMessage(e.Document),
	} {
		doc.set(field, value)
	}
	var keys object
	_ = json.Unmarshal(e.Document, &keys) // it was made of an object
	for _, f := range ecsFields {
		if value := keys.get(f.key); value != nil {
			doc.set(f.field, value)
		}
	}
	if related := relatedAddresses(keys); len(related) > 0 {
		doc.set("related.ip", related)
	}
	if a.K8s.Pod != nil {
		doc.set("orchestrator.type", "kubernetes")
		doc.set("orchestrator.resource.type", "pod")
	}
	return doc
}

// ruleName is what somebody called the rule, or else what it is.
func ruleName(a alert.Alert) string {
	if a.RuleName != nil {
		return *a.RuleName
	}
	return a.Rule
}

// eventSeverity numbers severities as Elastic's own rules do: low, medium, critical.
func eventSeverity(s alert.Severity) int {
	switch s {
	case alert.Critical:
		return 99
	case alert.Info:
		return 21
	}
	return 47
}

// relatedAddresses are the addresses that an alert about an endpoint names.
func relatedAddresses(keys object) (all []any) {
	for _, key := range []string{"evidence.address", "evidence.peer"} {
		if value := keys.get(key); value != nil {
			all = append(all, value)
		}
	}
	peers, _ := keys.get("evidence.sample_peers").([]any)
	return append(all, peers...)
}

// eventType is one of ECS's words for what happened.
func eventType(e Event) string {
	if !e.Alert.Lasts() {
		var packet struct{ Evidence struct{ Dropped bool } }
		if _ = json.Unmarshal(e.Document, &packet); packet.Evidence.Dropped {
			return "denied"
		}
		return "allowed"
	}
	if e.Alert.EndedAt != nil {
		return "end"
	}
	return "start"
}

// object is an object of JSON.
type object map[string]any

// set puts a value at a path of names with dots between them.
func (o object) set(path string, value any) {
	name, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		o[name] = value
		return
	}
	inner, ok := o[name].(object)
	if !ok {
		inner = object{}
		o[name] = inner
	}
	inner.set(rest, value)
}

// get returns the value at a path, nil if there is none.
func (o object) get(path string) any {
	var value any = map[string]any(o)
	for name := range strings.SplitSeq(path, ".") {
		inner, _ := value.(map[string]any)
		value = inner[name]
	}
	return value
}
