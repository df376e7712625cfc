package detect

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// recorded is a document of watch pods, as far as rules need it. What has to be
// there is nil if it isn't.
type recorded struct {
	Schema     string        `json:"schema"`
	Time       *time.Time    `json:"time"`
	Interval   *float64      `json:"interval_seconds"`
	ObservedAt traffic.Point `json:"observed_at"`
	Loss       *struct {
		MapFull *uint64 `json:"map_full"`
	} `json:"loss"`
	Pods   []recordedPod `json:"pods"`
	Others *struct {
		Pods *int `json:"pods"`
	} `json:"others"`
	Total traffic.Counters `json:"total"` // zero if it isn't there
}

type recordedPod struct {
	Address         string  `json:"address"`
	Namespace       *string `json:"namespace"`
	Pod             *string `json:"pod"`
	PodUID          *string `json:"pod_uid"`
	Container       *string `json:"container"`
	ContainerID     *string `json:"container_id"`
	DevName         *string `json:"devname"`
	IfIndex         *uint32 `json:"ifindex"`
	CgroupID        *string `json:"cgroup_id"`
	TransmitBytes   *uint64 `json:"transmit_bytes"`
	TransmitPackets *uint64 `json:"transmit_packets"`
	ReceiveBytes    *uint64 `json:"receive_bytes"`
	ReceivePackets  *uint64 `json:"receive_packets"`
}

// Longest line and interval of a recording.
const (
	longestLine     = 64 << 20
	longestInterval = 1e9 // seconds
)

// recording reads documents, one a line.
type recording struct {
	name  string
	line  int
	last  time.Time // of the document before
	total traffic.Counters
	at    int // its line; 0: there was none
}

// Replay reads what `watch pods -o ndjson` printed, for step. Lines that are
// missing, to judge by the time of day, make the interval longer. An error of kind
// fault.ErrUsage has the line and column of what isn't such a document.
func Replay(input io.Reader, name string, step func(traffic.Document) error) error {
	r := recording{name: name}
	lines := bufio.NewScanner(input)
	lines.Buffer(make([]byte, 0, 1<<16), longestLine)
	for lines.Scan() {
		r.line++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		doc, err := r.read(lines.Bytes())
		if err != nil {
			return err
		}
		if err := step(doc); err != nil {
			return err
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		r.line++
		return r.wrong(longestLine, "a line is longer than %d MiB", longestLine>>20)
	case err != nil:
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

func (r *recording) wrong(column int64, format string, args ...any) error {
	return fault.New(fault.ErrUsage, "%s:%d:%d: %s", r.name, r.line, max(column, 1), fmt.Sprintf(format, args...)).
		Hint("bpfnet watch pods --interval 1s -o ndjson   prints what can be replayed")
}

func (r *recording) read(line []byte) (traffic.Document, error) {
	var rec recorded
	if err := json.Unmarshal(line, &rec); err != nil {
		return traffic.Document{}, r.wrong(offset(err), "%s", reason(err))
	}
	if err := rec.check(); err != nil {
		return traffic.Document{}, r.wrong(1, "%v", err)
	}
	doc, err := rec.document()
	if err != nil {
		return traffic.Document{}, r.wrong(1, "%v", err)
	}
	if err := r.place(&doc, rec.Total); err != nil {
		return traffic.Document{}, r.wrong(1, "%v", err)
	}
	return doc, nil
}

// offset is the column of what an error of encoding/json is about.
func offset(err error) int64 {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return syntax.Offset
	case errors.As(err, &kind):
		return kind.Offset
	}
	return 1 // a time, of which it isn't told
}

func reason(err error) string {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		return fmt.Sprintf("%s can't be a JSON %s", cmp.Or(kind.Field, "a document"), kind.Value)
	}
	return err.Error()
}

func (rec recorded) check() error {
	switch {
	case rec.Schema != traffic.Schema:
		return fmt.Errorf("the schema is %q, not %s", rec.Schema, traffic.Schema)
	case rec.Time == nil:
		return errors.New("time is missing")
	case rec.Interval != nil && (*rec.Interval < 0 || *rec.Interval > longestInterval):
		return fmt.Errorf("interval_seconds is %g", *rec.Interval)
	case rec.ObservedAt != traffic.TC && rec.ObservedAt != traffic.Cgroup:
		return fmt.Errorf("observed_at is %q, neither tc nor cgroup", string(rec.ObservedAt))
	case rec.Pods == nil:
		return errors.New("pods is missing")
	case rec.Loss == nil || rec.Loss.MapFull == nil:
		return errors.New("loss.map_full is missing")
	case rec.Others == nil || rec.Others.Pods == nil:
		return errors.New("others.pods is missing")
	}
	return nil
}

func (rec recorded) document() (traffic.Document, error) {
	doc := traffic.Document{
		Schema: rec.Schema, Time: rec.Time.UTC(), IntervalSeconds: rec.Interval, ObservedAt: rec.ObservedAt,
		Loss: traffic.Loss{MapFull: *rec.Loss.MapFull}, Pods: make([]traffic.Pod, len(rec.Pods)), Others: traffic.Others{Pods: *rec.Others.Pods},
	}
	for i, p := range rec.Pods {
		var err error
		if doc.Pods[i], err = p.row(rec.ObservedAt); err != nil {
			return doc, fmt.Errorf("pods[%d]: %w", i, err)
		}
	}
	return doc, nil
}

func (p recordedPod) row(point traffic.Point) (traffic.Pod, error) {
	address, err := netip.ParseAddr(p.Address)
	if err != nil {
		return traffic.Pod{}, fmt.Errorf("address %q isn't one", p.Address)
	}
	if point == traffic.TC && p.IfIndex == nil {
		return traffic.Pod{}, errors.New("ifindex is missing")
	}
	if point == traffic.Cgroup {
		if _, err := strconv.ParseUint(sample.Value(p.CgroupID), 10, 64); err != nil {
			return traffic.Pod{}, fmt.Errorf("cgroup_id %q isn't one", sample.Value(p.CgroupID))
		}
	}
	if p.TransmitBytes == nil || p.TransmitPackets == nil || p.ReceiveBytes == nil || p.ReceivePackets == nil {
		return traffic.Pod{}, errors.New("a counter is missing")
	}
	return traffic.Pod{
		Who: traffic.Who{
			Address: address, Namespace: p.Namespace, Pod: p.Pod, PodUID: p.PodUID, Container: p.Container, ContainerID: p.ContainerID,
			DevName: p.DevName, IfIndex: p.IfIndex, CgroupID: p.CgroupID,
		},
		Traffic: traffic.Traffic{Counters: traffic.Counters{
			TransmitBytes: *p.TransmitBytes, TransmitPackets: *p.TransmitPackets, ReceiveBytes: *p.ReceiveBytes, ReceivePackets: *p.ReceivePackets,
		}},
	}, nil
}

// place compares the time of a document with that of the one before. Times are whole
// seconds, intervals are exact. A clock may have been set back, and counters may begin
// anew; both at once are lines out of order.
func (r *recording) place(doc *traffic.Document, total traffic.Counters) error {
	apart := doc.Time.Sub(r.last)
	switch {
	case r.at == 0:
	case doc.IntervalSeconds == nil && apart < 0:
		return fmt.Errorf("it begins a recording, at a time before that of line %d", r.at)
	case apart < 0 && anew(r.total, total):
		return fmt.Errorf("it is of before line %d, by its time and its total", r.at)
	case doc.IntervalSeconds != nil && apart.Seconds() > *doc.IntervalSeconds+1:
		longer := apart.Seconds()
		doc.IntervalSeconds = &longer
	}
	r.last, r.total, r.at = doc.Time, total, r.line
	return nil
}

// anew says whether counters have begun anew: one is less than it was.
func anew(before, now traffic.Counters) bool {
	return now.TransmitBytes < before.TransmitBytes || now.TransmitPackets < before.TransmitPackets ||
		now.ReceiveBytes < before.ReceiveBytes || now.ReceivePackets < before.ReceivePackets
}
