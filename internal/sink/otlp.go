package sink

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	collector "go.opentelemetry.io/proto/slim/otlp/collector/logs/v1"
	common "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logs "go.opentelemetry.io/proto/slim/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	rpc "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"bpfnet/internal/alert"
)

// otlp sends alerts as log records to what takes OTLP over HTTP, many at a time.
type otlp struct {
	*remote
	resource *resource.Resource
	note     func(string)
	name     string
	warning  string // that was told last
}

func openOTLP(s Spec, o Options) (driver, error) {
	r, err := openRemote(s, o, "v1", "logs")
	if err != nil {
		return nil, err
	}
	r.mayChange, r.said = mayChangeOTLP, statusText
	of := &resource.Resource{Attributes: []*common.KeyValue{attribute("service.name", "bpfnet"), attribute("host.name", o.Host)}}
	return &otlp{remote: r, resource: of, note: o.Note, name: s.Name()}, nil
}

func (d *otlp) most() int { return 200 }

func (d *otlp) deliver(ctx context.Context, events []Event) result {
	body, err := d.body(events)
	if err != nil {
		return result{refused: len(events), err: err}
	}
	header := http.Header{"Content-Type": {"application/x-protobuf"}, "Content-Encoding": {"gzip"}}
	answer, failed := d.post(ctx, body, header, events)
	if failed.err != nil {
		return failed
	}
	r, warning := readExport(answer, events)
	if warning != "" && warning != d.warning {
		d.warning = warning
		d.note("sink " + d.name + " takes alerts, and warns" + warning)
	}
	return r
}

func (d *otlp) body(events []Event) ([]byte, error) {
	records := &logs.ScopeLogs{Scope: &common.InstrumentationScope{Name: "bpfnet"}}
	for _, e := range events {
		records.LogRecords = append(records.LogRecords, d.record(e))
	}
	message, err := proto.Marshal(&collector.ExportLogsServiceRequest{
		ResourceLogs: []*logs.ResourceLogs{{Resource: d.resource, ScopeLogs: []*logs.ScopeLogs{records}}},
	})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	if _, err := zip.Write(message); err != nil {
		return nil, err
	}
	err = zip.Close()
	return b.Bytes(), err
}

// mayChangeOTLP says which answers the protocol wants to be tried again.
func mayChangeOTLP(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// statusText is what an answer that isn't success says.
func statusText(answer []byte) string {
	var s rpc.Status
	if err := proto.Unmarshal(answer, &s); err != nil || s.Message == "" {
		return excerpt(answer) // of a proxy
	}
	return excerpt([]byte(s.Message))
}

// readExport says what became of events, but not of which, and what the server warns of.
func readExport(answer []byte, events []Event) (r result, warning string) {
	var export collector.ExportLogsServiceResponse
	if err := proto.Unmarshal(answer, &export); err != nil {
		return result{rest: events, err: fmt.Errorf("it doesn't answer as OTLP does%s", excerpt(answer))}, ""
	}
	part := export.GetPartialSuccess()
	said := excerpt([]byte(part.GetErrorMessage()))
	if n := part.GetRejectedLogRecords(); n > 0 {
		r.refused = int(min(n, int64(len(events))))
		r.err = fmt.Errorf("it refuses alerts, %d of %d%s", r.refused, len(events), said)
		return r, ""
	}
	return r, said
}

// severities are the numbers of severities.
var severities = map[alert.Severity]logs.SeverityNumber{
	alert.Info:     logs.SeverityNumber_SEVERITY_NUMBER_INFO,
	alert.Warning:  logs.SeverityNumber_SEVERITY_NUMBER_WARN,
	alert.Critical: logs.SeverityNumber_SEVERITY_NUMBER_ERROR2, // as OpenTelemetry maps that of syslog
}

// conventions are the attributes that have names in OpenTelemetry's semantic
// conventions, and the keys of a document that they are.
var conventions = []struct{ name, key string }{
	{"k8s.namespace.name", "k8s.namespace"}, {"k8s.pod.name", "k8s.pod"}, {"k8s.pod.uid", "evidence.pod_uid"},
	{"container.id", "evidence.container_id"}, {"container.name", "evidence.container"},
	{"network.interface.name", "evidence.devname"}, {"network.transport", "evidence.network.transport"}, {"network.type", "evidence.network.type"},
	{"source.address", "evidence.network.source.address"}, {"source.port", "evidence.network.source.port"},
	{"destination.address", "evidence.network.destination.address"}, {"destination.port", "evidence.network.destination.port"},
	{"process.pid", "evidence.process.pid"}, {"process.executable.path", "evidence.process.executable"},
}

// flat are the keys of a document that are attributes below "bpfnet.alert".
var flat = []string{"schema", "rule", "rule_name", "severity", "fingerprint", "started_at", "ended_at", "window_seconds"}

// record is an alert as an event, with the document as it is.
func (d *otlp) record(e Event) *logs.LogRecord {
	a, at := e.Alert, e.Alert.StartedAt
	if a.EndedAt != nil {
		at = *a.EndedAt
	}
	r := &logs.LogRecord{
		TimeUnixNano: uint64(at.UnixNano()), ObservedTimeUnixNano: uint64(d.now().UnixNano()), EventName: "bpfnet.alert",
		SeverityNumber: severities[a.Severity], SeverityText: string(a.Severity), Body: anyValue(a.Summary()),
	}
	var keys object
	decoder := json.NewDecoder(bytes.NewReader(e.Document))
	decoder.UseNumber()
	_ = decoder.Decode(&keys) // it was made of an object
	add := func(name, key string) {
		if value := anyValue(keys.get(key)); value != nil {
			r.Attributes = append(r.Attributes, &common.KeyValue{Key: name, Value: value})
		}
	}
	for _, c := range conventions {
		add(c.name, c.key)
	}
	for _, key := range flat {
		add("bpfnet.alert."+key, key)
	}
	r.Attributes = append(r.Attributes, attribute("bpfnet.alert.document", string(e.Document)))
	return r
}

func attribute(name, value string) *common.KeyValue {
	return &common.KeyValue{Key: name, Value: anyValue(value)}
}

// anyValue is a text or a whole number of JSON, nil if it is neither.
func anyValue(value any) *common.AnyValue {
	switch v := value.(type) {
	case string:
		return &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: strings.ToValidUTF8(v, "\uFFFD")}}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: n}}
		}
	}
	return nil
}
