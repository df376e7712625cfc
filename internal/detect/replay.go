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
	"bpfnet/internal/peers"
	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// Sample is a document of one of the two kinds.
type Sample struct {
	Pods  *traffic.Document
	Peers *peers.Document
}

// recorded is a document, as far as rules need it. What has to be there is nil if it
// isn't.
type recorded struct {
	Schema     string        `json:"schema"`
	Time       *time.Time    `json:"time"`
	Interval   *float64      `json:"interval_seconds"`
	ObservedAt traffic.Point `json:"observed_at"`
	Loss       struct {
		MapFull   *uint64 `json:"map_full"`
		Peers     *uint64 `json:"peers"`
		Endpoints *uint64 `json:"endpoints"`
	} `json:"loss"`
	Pods      []recordedPod      `json:"pods"`
	Endpoints []recordedEndpoint `json:"endpoints"`
	Peers     []recordedPeer     `json:"peers"`
	Others    struct {
		Pods      *int `json:"pods"`
		Endpoints *int `json:"endpoints"`
	} `json:"others"`
	Total traffic.Counters `json:"total"` // zero if it isn't there
}

type recordedWho struct {
	Address     string  `json:"address"`
	Namespace   *string `json:"namespace"`
	Pod         *string `json:"pod"`
	PodUID      *string `json:"pod_uid"`
	Container   *string `json:"container"`
	ContainerID *string `json:"container_id"`
	DevName     *string `json:"devname"`
	IfIndex     *uint32 `json:"ifindex"`
	CgroupID    *string `json:"cgroup_id"`
}

type recordedPod struct {
	recordedWho
	TransmitBytes   *uint64 `json:"transmit_bytes"`
	TransmitPackets *uint64 `json:"transmit_packets"`
	ReceiveBytes    *uint64 `json:"receive_bytes"`
	ReceivePackets  *uint64 `json:"receive_packets"`
}

type recordedEndpoint struct {
	recordedWho
	Opened   *uint64 `json:"connections_opened"`
	Received *uint64 `json:"connections_received"`
}

type recordedPeer struct {
	recordedWho
	Transport string `json:"transport"`
	Peer      struct {
		Address string  `json:"address"`
		Port    *uint16 `json:"port"`
	} `json:"peer"`
	NewAttempts *uint64    `json:"new_attempts"`
	NewAnswers  *uint64    `json:"new_answers"`
	NewRefusals *uint64    `json:"new_refusals"`
	LastSeen    *time.Time `json:"last_seen"`
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
	kinds map[string]*before // by schema
}

// before is the document before of a kind.
type before struct {
	time   time.Time
	counts counts // of all endpoints
	line   int    // 0: there was none
}

// Replay reads what `watch pods -o ndjson` and `watch peers -o ndjson` printed, for
// step. Each of the two has a time of its own, so that they may stand in any order.
// Lines that are missing, to judge by the time of day, make the interval longer. An
// error of kind fault.ErrUsage has the line and column of what isn't such a document.
func Replay(input io.Reader, name string, step func(Sample) error) error {
	r := recording{name: name, kinds: map[string]*before{traffic.Schema: {}, peers.Schema: {}}}
	lines := bufio.NewScanner(input)
	lines.Buffer(make([]byte, 0, 1<<16), longestLine)
	for lines.Scan() {
		r.line++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		s, err := r.read(lines.Bytes())
		if err != nil {
			return err
		}
		if err := step(s); err != nil {
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
		Hint("bpfnet watch pods --interval 1s -o ndjson   and watch peers print what can be replayed")
}

func (r *recording) read(line []byte) (s Sample, err error) {
	var rec recorded
	if err := json.Unmarshal(line, &rec); err != nil {
		return s, r.wrong(offset(err), "%s", reason(err))
	}
	if err = rec.check(); err == nil {
		err = r.place(&rec)
	}
	if err == nil {
		s, err = rec.sample()
	}
	if err != nil {
		return s, r.wrong(1, "%v", err)
	}
	return s, nil
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

func (rec *recorded) check() error {
	switch {
	case rec.Schema != traffic.Schema && rec.Schema != peers.Schema:
		return fmt.Errorf("the schema is %q, neither %s nor %s", rec.Schema, traffic.Schema, peers.Schema)
	case rec.Time == nil:
		return errors.New("time is missing")
	case rec.Interval != nil && (*rec.Interval < 0 || *rec.Interval > longestInterval):
		return fmt.Errorf("interval_seconds is %g", *rec.Interval)
	case rec.ObservedAt != traffic.TC && rec.ObservedAt != traffic.Cgroup:
		return fmt.Errorf("observed_at is %q, neither tc nor cgroup", string(rec.ObservedAt))
	case rec.Schema == peers.Schema:
		return rec.checkPeers()
	case rec.Pods == nil:
		return errors.New("pods is missing")
	case rec.Loss.MapFull == nil:
		return errors.New("loss.map_full is missing")
	case rec.Others.Pods == nil:
		return errors.New("others.pods is missing")
	}
	return nil
}

func (rec *recorded) checkPeers() error {
	switch {
	case rec.Endpoints == nil:
		return errors.New("endpoints is missing")
	case rec.Peers == nil:
		return errors.New("peers is missing")
	case rec.Loss.Peers == nil || rec.Loss.Endpoints == nil:
		return errors.New("loss.peers or loss.endpoints is missing")
	case rec.Others.Endpoints == nil:
		return errors.New("others.endpoints is missing")
	}
	return nil
}

func (rec *recorded) sample() (s Sample, err error) {
	at := rec.Time.UTC()
	if rec.Schema == traffic.Schema {
		s.Pods = &traffic.Document{
			Schema: rec.Schema, Time: at, IntervalSeconds: rec.Interval, ObservedAt: rec.ObservedAt,
			Loss: traffic.Loss{MapFull: *rec.Loss.MapFull}, Others: traffic.Others{Pods: *rec.Others.Pods},
		}
		s.Pods.Pods, err = rows("pods", rec.Pods, rec.ObservedAt, recordedPod.row)
		return s, err
	}
	s.Peers = &peers.Document{
		Schema: rec.Schema, Time: at, IntervalSeconds: rec.Interval, ObservedAt: rec.ObservedAt,
		Loss: peers.Loss{Peers: *rec.Loss.Peers, Endpoints: *rec.Loss.Endpoints}, Others: peers.Others{Endpoints: *rec.Others.Endpoints},
	}
	if s.Peers.Endpoints, err = rows("endpoints", rec.Endpoints, rec.ObservedAt, recordedEndpoint.row); err != nil {
		return s, err
	}
	s.Peers.Peers, err = rows("peers", rec.Peers, rec.ObservedAt, recordedPeer.row)
	return s, err
}

// rows makes the rows of a document of recorded ones.
func rows[R, T any](name string, recorded []R, point traffic.Point, row func(R, traffic.Point) (T, error)) (all []T, err error) {
	all = make([]T, len(recorded))
	for i, r := range recorded {
		if all[i], err = row(r, point); err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", name, i, err)
		}
	}
	return all, nil
}

var errCounter = errors.New("a counter is missing")

func (p recordedPod) row(point traffic.Point) (pod traffic.Pod, err error) {
	if p.TransmitBytes == nil || p.TransmitPackets == nil || p.ReceiveBytes == nil || p.ReceivePackets == nil {
		return pod, errCounter
	}
	pod.Counters = traffic.Counters{
		TransmitBytes: *p.TransmitBytes, TransmitPackets: *p.TransmitPackets, ReceiveBytes: *p.ReceiveBytes, ReceivePackets: *p.ReceivePackets,
	}
	pod.Who, err = p.who(point)
	return pod, err
}

func (e recordedEndpoint) row(point traffic.Point) (row peers.Endpoint, err error) {
	if e.Opened == nil || e.Received == nil {
		return row, errCounter
	}
	row.Connections = peers.Connections{Opened: *e.Opened, Received: *e.Received}
	row.Who, err = e.who(point)
	return row, err
}

func (p recordedPeer) row(point traffic.Point) (row peers.Peer, err error) {
	row = peers.Peer{
		Transport: p.Transport, Peer: peers.Remote{Port: p.Peer.Port},
		NewAttempts: p.NewAttempts, NewAnswers: p.NewAnswers, NewRefusals: p.NewRefusals,
	}
	if row.Peer.Address, err = netip.ParseAddr(p.Peer.Address); err != nil {
		return row, fmt.Errorf("peer.address %q isn't one", p.Peer.Address)
	}
	switch {
	case p.Transport == "":
		return row, errors.New("transport is missing")
	case p.LastSeen == nil:
		return row, errors.New("last_seen is missing")
	}
	row.LastSeen = *p.LastSeen
	row.Who, err = p.who(point)
	return row, err
}

func (w recordedWho) who(point traffic.Point) (traffic.Who, error) {
	address, err := netip.ParseAddr(w.Address)
	if err != nil {
		return traffic.Who{}, fmt.Errorf("address %q isn't one", w.Address)
	}
	if point == traffic.TC && w.IfIndex == nil {
		return traffic.Who{}, errors.New("ifindex is missing")
	}
	if point == traffic.Cgroup {
		if _, err := strconv.ParseUint(sample.Value(w.CgroupID), 10, 64); err != nil {
			return traffic.Who{}, fmt.Errorf("cgroup_id %q isn't one", sample.Value(w.CgroupID))
		}
	}
	return traffic.Who{
		Address: address, Namespace: w.Namespace, Pod: w.Pod, PodUID: w.PodUID, Container: w.Container, ContainerID: w.ContainerID,
		DevName: w.DevName, IfIndex: w.IfIndex, CgroupID: w.CgroupID,
	}, nil
}

// place compares the time of a document with that of the one before of its kind. Times
// are whole seconds, intervals are exact. A clock may have been set back, and counters
// may begin anew; both at once are lines out of order.
func (r *recording) place(rec *recorded) error {
	last, sum := r.kinds[rec.Schema], rec.sum()
	apart := rec.Time.Sub(last.time)
	switch {
	case last.line == 0:
	case rec.Interval == nil && apart < 0:
		return fmt.Errorf("it begins a recording, at a time before that of line %d", last.line)
	case apart < 0 && sum.less(last.counts):
		return fmt.Errorf("it is of before line %d, by its time and its counters", last.line)
	case rec.Interval != nil && apart.Seconds() > *rec.Interval+1:
		longer := apart.Seconds()
		rec.Interval = &longer
	}
	*last = before{*rec.Time, sum, r.line}
	return nil
}

// sum is what all endpoints have counted.
func (rec *recorded) sum() (c counts) {
	c.bytes = [2]uint64{rec.Total.TransmitBytes, rec.Total.ReceiveBytes}
	c.packets = [2]uint64{rec.Total.TransmitPackets, rec.Total.ReceivePackets}
	for _, e := range rec.Endpoints {
		c.connections[0] = plus(c.connections[0], sample.Value(e.Opened))
		c.connections[1] = plus(c.connections[1], sample.Value(e.Received))
	}
	return c
}
