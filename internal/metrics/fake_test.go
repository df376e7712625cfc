package metrics

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/counter"
	"bpfnet/internal/datapath"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/fault"
	"bpfnet/internal/peers"
	"bpfnet/internal/ports"
	"bpfnet/internal/traffic"
)

// fake is a source that tests change between scrapes.
type fake struct {
	loaded   []string // instances, called as their programs
	sample   traffic.Sample
	packets  counter.Sample
	contacts peers.Sample
	lists    fakeLists
	found    fakeEndpoints
	errors   map[string]error // by program, or "instances"
	passed   datapath.InterfaceBytes
	kinds    map[uint32]string
	hanging  []datapath.Attachment // of all instances
	set      map[string]string     // parameters of all instances
	read     func()                // is called when instances are read
}

func newFake(loaded ...string) *fake {
	return &fake{loaded: loaded, errors: map[string]error{}, sample: traffic.Sample{Pods: map[traffic.Key]traffic.Counters{}}, read: func() {}}
}

func (f *fake) Instances(context.Context, string) ([]datapath.Instance, error) {
	f.read()
	var all []datapath.Instance
	for _, name := range f.loaded {
		if f.errors["instances"] == nil {
			all = append(all, datapath.Instance{Name: name, Source: name, Builtin: true, Attachments: f.hanging, Parameters: f.set})
		}
	}
	return all, f.errors["instances"]
}

// check is the error of an instance.
func (f *fake) check(program string) error {
	if !slices.Contains(f.loaded, program) {
		return fault.New(fault.ErrNotFound, "%s isn't loaded", program)
	}
	return f.errors[program]
}

type fakeSampler[S any] struct {
	sample *S
	check  func() error
}

func (s fakeSampler[S]) Sample(context.Context) (S, error) { return *s.sample, s.check() }

func (f *fake) PodTraffic(instance string) (traffic.Sampler, error) {
	return fakeSampler[traffic.Sample]{&f.sample, func() error { return f.check(instance) }}, nil
}

func (f *fake) Peers(instance string) (peers.Sampler, error) {
	return fakeSampler[peers.Sample]{&f.contacts, func() error { return f.check(instance) }}, nil
}

func (f *fake) Counters(instance string) (counter.Sampler, error) {
	return fakeSampler[counter.Sample]{&f.packets, func() error { return f.check(instance) }}, nil
}

func (f *fake) InterfaceBytes() (datapath.InterfaceBytes, error) { return f.passed, f.errors["bytes"] }

func (f *fake) InterfaceKinds(indexes []uint32) (map[uint32]string, error) {
	kinds := map[uint32]string{}
	for _, index := range indexes {
		if kind, ok := f.kinds[index]; ok {
			kinds[index] = kind
		}
	}
	return kinds, f.errors["kinds"]
}

func (f *fake) Ports(string) (ports.API, error)             { return ports.Unloaded(), nil }
func (f *fake) Blocklist() blocklist.API                    { return &f.lists }
func (f *fake) Endpoints() endpoint.API                     { return &f.found }
func (f *fake) LostAnswers(instance string) (uint64, error) { return 2, f.check(instance) }

type fakeLists struct {
	blocklist.API
	overview blocklist.Overview
	hits     []blocklist.ListHits
}

func (f *fakeLists) Overview(context.Context) (blocklist.Overview, error) { return f.overview, nil }

func (f *fakeLists) Hits(_ context.Context, visit func(blocklist.ListHits)) error {
	for _, h := range f.hits {
		visit(h)
	}
	return nil
}

type fakeEndpoints struct {
	endpoint.API
	endpoints []endpoint.Endpoint
	gone      map[uint64]bool
	err       error
	looks     int
	hang      chan struct{} // a look waits for its end; nil: it doesn't
}

func (f *fakeEndpoints) List(ctx context.Context) (endpoint.Listing, error) {
	f.looks++
	if f.hang != nil {
		select {
		case <-f.hang:
		case <-ctx.Done():
			return endpoint.Listing{}, ctx.Err()
		}
	}
	return endpoint.Listing{Endpoints: f.endpoints}, f.err
}

func (f *fakeEndpoints) GoneCgroups([]uint64) (map[uint64]bool, error) { return f.gone, nil }

// pod is a Pod behind an interface, with one container in a cgroup.
func pod(namespace, name, uid string, index int, cgroup uint64) endpoint.Endpoint {
	container := name + "-main"
	return endpoint.Endpoint{
		Kind: endpoint.KindPod, Pod: &endpoint.Pod{UID: uid, Namespace: &namespace, Name: &name},
		Interfaces: []endpoint.Interface{{IfIndex: &index}},
		Containers: []endpoint.Container{{ID: "id-" + name, Name: &container, Cgroup: endpoint.Cgroup{ID: &cgroup}}},
	}
}

// atTC puts what an address at an interface has into the sample.
func (f *fake) atTC(address string, index uint32, c traffic.Counters) {
	f.sample.Pods[traffic.Key{Point: traffic.TC, Address: netip.MustParseAddr(address), IfIndex: index}] = c
}

func (f *fake) atCgroup(address string, id uint64, c traffic.Counters) {
	f.sample.Pods[traffic.Key{Point: traffic.Cgroup, Address: netip.MustParseAddr(address), CgroupID: id}] = c
}

// sent are counters of a Pod that only sends, 100 bytes a packet.
func sent(packets uint64) traffic.Counters {
	return traffic.Counters{TransmitBytes: 100 * packets, TransmitPackets: packets}
}

// watched is an exporter of a test.
type watched struct {
	testing.TB
	*Exporter
	notes []string
	now   time.Time
}

func watch(t testing.TB, source Source, most int) *watched {
	t.Helper()
	w := &watched{TB: t, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	w.Exporter = New(source, Options{
		Build: Build{"v1", "abc", "go1"}, Most: most,
		Now: func() time.Time { return w.now }, Note: func(text string) { w.notes = append(w.notes, text) },
	})
	return w
}

// text is what a scrape by HTTP answers.
func (w *watched) text() string {
	w.Helper()
	return scraped(w, w.Handler)
}

func scraped(t testing.TB, open func() (http.Handler, error)) string {
	t.Helper()
	handler, err := open()
	if err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatalf("%d: %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

// values are the series of a scrape whose name begins with something, by their name
// and the labels that aren't empty.
func (w *watched) values(prefix string) map[string]float64 {
	w.Helper()
	values := map[string]float64{}
	for line := range strings.Lines(w.text()) {
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		name, number, _ := strings.Cut(strings.TrimSpace(line), "} ")
		value, err := strconv.ParseFloat(number, 64)
		if err != nil {
			w.Fatalf("%s: %v", line, err)
		}
		values[strings.TrimPrefix(shorten(name), prefix)] = value
	}
	return values
}

// shorten leaves out labels without a value, and quotes.
func shorten(name string) string {
	name, labels, _ := strings.Cut(name, "{")
	var kept []string
	for _, label := range strings.Split(labels, ",") {
		if !strings.HasSuffix(label, `=""`) {
			_, value, _ := strings.Cut(label, "=")
			kept = append(kept, strings.Trim(value, `"`))
		}
	}
	return name + " " + strings.Join(kept, " ")
}
