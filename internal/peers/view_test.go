package peers

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
)

var (
	start  = time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	web    = traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.4"), IfIndex: 4}
	db     = traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr("10.77.0.5"), IfIndex: 5}
	inside = traffic.Key{Point: traffic.Cgroup, Address: netip.MustParseAddr("10.77.0.4"), CgroupID: 1 << 60}
	far    = netip.MustParseAddr("198.51.100.7")
	far6   = netip.MustParseAddr("2001:db8::7")
)

// seconds is a time after start.
func seconds(n float64) time.Time { return start.Add(time.Duration(n * float64(time.Second))) }

func entry(attempts, answers, refusals uint64, first, last float64) Entry {
	return Entry{Counters: Counters{attempts, answers, refusals}, FirstSeen: seconds(first), LastSeen: seconds(last)}
}

// after is an entry that was there in the sample before.
func after(before Counters, e Entry) Entry {
	e.Before = &before
	return e
}

// sampleOf is a sample of the endpoints above; the first one is at the start.
func sampleOf(at float64, made uint64, entries map[Key]Entry) Sample {
	return Sample{
		Time: seconds(at), First: at == 0,
		Endpoints: map[traffic.Key]Connections{web: {8, 1}, db: {2, 0}, inside: {1, 0}},
		Peers:     entries, Made: made,
		Attached: []traffic.Point{traffic.TC},
		Devices:  map[uint32]string{4: "veth-a"},
	}
}

var (
	https = Key{Endpoint: web, Protocol: 6, Address: far, Port: 443}
	ping  = Key{Endpoint: web, Protocol: 1, Address: far}
	names = Key{Endpoint: db, Protocol: 17, Address: far6, Port: 53}
	gre   = Key{Endpoint: inside, Protocol: 47, Address: far}
)

func first() Sample {
	return sampleOf(0, 100, map[Key]Entry{
		https: entry(5, 4, 1, -60, -1), ping: entry(3, 3, 0, -50, -40), names: entry(2, 1, 0, -70, -2), gre: entry(1, 0, 0, -5, -5),
	})
}

func TestDocument(t *testing.T) {
	pod := &endpoint.Pod{UID: "u", Namespace: text("shop"), Name: text("web")}
	w := Watch{View: View{Owner: func(k traffic.Key) (endpoint.Owner, bool) { return endpoint.Owner{Pod: pod}, k == web }}}
	w.Take(first())
	w.Take(sampleOf(2, 103, map[Key]Entry{ // names made room for ping, which had for it
		https: after(Counters{5, 4, 1}, entry(6, 4, 1, -60, 1)), ping: entry(1, 1, 0, 1.5, 1.5),
	}))
	got, err := json.Marshal(w.Document())
	if err != nil {
		t.Fatal(err)
	}
	whoWeb := `"address":"10.77.0.4","namespace":"shop","pod":"web","pod_uid":"u","container":null,"container_id":null,"devname":"veth-a","ifindex":4,"cgroup_id":null`
	whoDB := `"address":"10.77.0.5","namespace":null,"pod":null,"pod_uid":null,"container":null,"container_id":null,"devname":null,"ifindex":5,"cgroup_id":null`
	want := `{"schema":"bpfnet.peers/v1","time":"2026-01-02T03:04:07Z","interval_seconds":2,"observed_at":"tc","loss":{"peers":2,"endpoints":0},` +
		`"endpoints":[{` + whoWeb + `,"connections_opened":8,"connections_received":1},{` + whoDB + `,"connections_opened":2,"connections_received":0}],` +
		`"peers":[{` + whoWeb + `,"transport":"icmp","peer":{"address":"198.51.100.7","port":null},"attempts":1,"answers":1,"refusals":0,` +
		`"new_attempts":1,"new_answers":1,"new_refusals":0,"first_seen":"2026-01-02T03:04:06.5000006Z","last_seen":"2026-01-02T03:04:06.5000006Z"},` +
		`{` + whoWeb + `,"transport":"tcp","peer":{"address":"198.51.100.7","port":443},"attempts":6,"answers":4,"refusals":1,` +
		`"new_attempts":1,"new_answers":0,"new_refusals":0,"first_seen":"2026-01-02T03:03:05.0000006Z","last_seen":"2026-01-02T03:04:06.0000006Z"}],` +
		`"others":{"peers":0,"endpoints":0}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func text(s string) *string { return &s }

func TestDocumentFirst(t *testing.T) {
	var w Watch
	w.Take(Sample{First: true})
	empty, err := json.Marshal(w.Document())
	if err != nil || !strings.Contains(string(empty), `"endpoints":[],"peers":[],"others"`) || !strings.Contains(string(empty), `"interval_seconds":null`) {
		t.Errorf("nothing is %s, %v", empty, err)
	}
	w = Watch{}
	w.Take(first())
	d := w.Document()
	if len(d.Peers) != 3 || d.Peers[0].NewAttempts != nil || d.Peers[0].NewAnswers != nil || d.Peers[0].NewRefusals != nil || d.Loss != (Loss{}) {
		t.Errorf("at first: %+v", d)
	}
}

func TestDocumentChoice(t *testing.T) {
	for _, c := range []struct {
		view             View
		want             string
		peers, endpoints int
	}{
		{View{}, "https names ping", 0, 0},
		{View{Sort: "first_seen"}, "names https ping", 0, 0},
		{View{Sort: "-attempts"}, "https ping names", 0, 0},
		{View{Sort: "transport"}, "ping https names", 0, 0},
		{View{Sort: "peer"}, "ping https names", 0, 0},
		{View{Sort: "-port", Limit: 1}, "https", 2, 0},
		{View{Device: "veth-a"}, "https ping", 1, 1},
		{View{Address: netip.MustParsePrefix("10.77.0.5/32")}, "names", 2, 1},
		{View{Match: func(k traffic.Key) bool { return k.IfIndex == 5 }}, "names", 2, 1},
		{View{Peer: netip.MustParsePrefix("2001:db8::/32")}, "names", 2, 0},
		{View{Failed: true}, "https names", 1, 0},
		{View{Failed: true, Limit: 1, Device: "veth-a"}, "https", 2, 1},
		{View{Point: traffic.Cgroup}, "gre", 0, 0},
	} {
		w := Watch{View: c.view}
		w.Take(first())
		d := w.Document()
		var got []string
		for _, p := range d.Peers {
			for name, key := range map[string]Key{"https": https, "ping": ping, "names": names, "gre": gre} {
				if p.Address == key.Endpoint.Address && p.Transport == traffic.Transport(key.Protocol) {
					got = append(got, name)
				}
			}
		}
		if strings.Join(got, " ") != c.want || d.Others != (Others{c.peers, c.endpoints}) {
			t.Errorf("%+v shows %v and %+v, want %s", c.view, got, d.Others, c.want)
		}
	}
	w := Watch{View: View{Point: traffic.Cgroup}}
	w.Take(first())
	if p := w.Document().Peers[0]; *p.CgroupID != "1152921504606846976" || p.IfIndex != nil || p.Peer.Port != nil || p.Transport != "47" {
		t.Errorf("at cgroup: %+v", p)
	}
}

func TestCheck(t *testing.T) {
	for _, bad := range []View{{Sort: "colour"}, {Sort: "--peer"}, {Point: "xdp"}, {Limit: -1}} {
		if err := bad.Check(); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, field := range SortFields() {
		if err := (View{Sort: "-" + field}).Check(); err != nil {
			t.Error(err)
		}
	}
}

// TestLoss checks what is counted as lost, sample by sample: how many entries were
// ever made, and when those were made that are there.
func TestLoss(t *testing.T) {
	type step struct {
		made    uint64
		entries []float64 // when those were made that the sample before hasn't
		lost    uint64
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"nothing", []step{{100, []float64{-1, -2}, 0}, {100, nil, 0}}},
		{"before the watch", []step{{100, []float64{-1}, 0}, {101, []float64{0.5}, 0}}},
		{"all new ones are seen", []step{{2, []float64{-1, -2}, 0}, {4, []float64{0.1, 0.2}, 0}, {5, []float64{1.1}, 0}}},
		{"some aren't", []step{{2, []float64{-1, -2}, 0}, {5, []float64{0.1, 0.2}, 1}, {5, nil, 1}, {15, []float64{2.1}, 10}}},
		{"made during the first sample", []step{{2, []float64{-1, -2, 0.001}, 0}, {3, nil, 0}, {5, []float64{2.5}, 1}}},
		{"made during a sample", []step{{1, []float64{-1}, 0}, {1, []float64{1.1}, 0}, {3, []float64{1.5}, 0}, {5, nil, 2}}},
		{"made and not met by the sample", []step{{1, []float64{-1}, 0}, {2, nil, 1}, {3, []float64{1.1, 1.2}, 1}}},
		{"another instance", []step{{10, []float64{-1}, 0}, {3, []float64{0.5, 0.6}, 1}, {4, []float64{1.5}, 1}}},
	} {
		var w Watch
		for i, s := range c.steps {
			entries := map[Key]Entry{}
			for n, at := range s.entries {
				key := https
				key.Port = uint16(n)
				entries[key] = entry(1, 0, 0, at, at)
			}
			w.Take(sampleOf(float64(i), s.made, entries))
			if got := w.Document().Loss.Peers; got != s.lost {
				t.Errorf("%s: lost %d after %d samples, want %d", c.name, got, i+1, s.lost)
			}
		}
	}
}

func TestLossOfEndpoints(t *testing.T) {
	var w Watch
	for i, c := range []struct{ noRoom, want uint64 }{{7, 0}, {7, 0}, {9, 2}, {1, 3}} {
		s := sampleOf(float64(i), 0, nil)
		s.NoRoom = c.noRoom
		w.Take(s)
		if got := w.Document().Loss.Endpoints; got != c.want {
			t.Errorf("%d after %d samples, want %d", got, i+1, c.want)
		}
	}
}
