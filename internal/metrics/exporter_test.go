package metrics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"bpfnet/internal/blocklist"
	"bpfnet/internal/counter"
	"bpfnet/internal/endpoint"
	"bpfnet/internal/traffic"
)

const podsSent = "bpfnet_pod_network_io_bytes_total"

// sentBytes are the series of what Pods sent.
func (w *watched) sentBytes() map[string]float64 {
	w.Helper()
	values := w.values(podsSent)
	maps.DeleteFunc(values, func(name string, _ float64) bool { return !strings.Contains(name, " transmit ") })
	for name, value := range maps.Clone(values) {
		delete(values, name)
		name, _, _ = strings.Cut(name, " transmit ")
		values[strings.TrimSpace(name)] = value
	}
	return values
}

func (w *watched) want(when string, got, want map[string]float64) {
	w.Helper()
	if !maps.Equal(got, want) {
		w.Errorf("%s:\ngot  %v\nwant %v", when, got, want)
	}
}

// Addresses of a Pod are one series, which begins anew with another interface, and is
// told once more when its interface goes.
func TestPodAtTC(t *testing.T) {
	f := newFake("pod-traffic")
	f.sample.Devices, f.sample.Attached = map[uint32]string{4: "veth-a", 9: "eth0"}, []traffic.Point{traffic.TC}
	f.found.endpoints = []endpoint.Endpoint{pod("shop", "web", "u1", 4, 1)}
	f.atTC("10.77.0.4", 4, sent(3))
	f.atTC("fd77::4", 4, sent(2))
	f.atTC("198.51.100.7", 9, sent(1)) // of an interface that is no Pod's
	f.atTC("10.77.0.9", 8, sent(9))    // gone before the exporter started
	w := watch(t, f, 10)
	w.want("first", w.sentBytes(), map[string]float64{"shop web u1 veth-a": 500, "eth0": 100})

	f.atTC("10.77.0.4", 4, sent(5))
	delete(f.sample.Devices, 4)
	f.sample.Devices[5] = "veth-a"
	f.atTC("10.77.0.4", 5, sent(1))
	f.found.endpoints = []endpoint.Endpoint{pod("shop", "web", "u2", 5, 2)}
	w.want("made anew", w.sentBytes(), map[string]float64{"shop web u1 veth-a": 700, "shop web u2 veth-a": 100, "eth0": 100})
	w.want("after", w.sentBytes(), map[string]float64{"shop web u2 veth-a": 100, "eth0": 100})

	// The same container with another interface of that name: the new one counts.
	delete(f.sample.Devices, 5)
	f.sample.Devices[6] = "veth-a"
	f.atTC("10.77.0.4", 6, sent(4))
	f.found.endpoints = []endpoint.Endpoint{pod("shop", "web", "u2", 6, 2)}
	w.want("another interface", w.sentBytes(), map[string]float64{"shop web u2 veth-a": 400, "eth0": 100})

	f.sample.Devices = map[uint32]string{}
	f.atTC("10.77.0.4", 6, sent(6))
	w.want("detached", w.sentBytes(), map[string]float64{"shop web u2 veth-a": 600, "eth0": 100})
	w.want("after", w.sentBytes(), map[string]float64{})
	if strings.Contains(w.text(), "198.51.100.7") {
		t.Error("an address is in the labels")
	}
}

// At cgroup each cgroup has a series.
func TestPodAtCgroup(t *testing.T) {
	f := newFake("pod-traffic")
	f.sample.Attached = []traffic.Point{traffic.Cgroup}
	f.found.endpoints = []endpoint.Endpoint{pod("shop", "web", "u1", 4, 77)}
	f.atCgroup("10.77.0.4", 77, sent(3))
	f.atCgroup("10.77.0.5", 77, sent(3))
	f.atCgroup("10.77.0.4", 78, sent(1)) // nobody's
	w := watch(t, f, 10)
	first := map[string]float64{"77 id-web web-main shop web u1": 600, "78": 100}
	w.want("first", w.sentBytes(), first)
	f.found.gone = map[uint64]bool{77: true}
	w.want("gone", w.sentBytes(), first)
	w.want("after", w.sentBytes(), map[string]float64{"78": 100})
	f.sample.Attached = nil
	w.want("detached", w.sentBytes(), map[string]float64{"78": 100})
	w.want("after", w.sentBytes(), map[string]float64{})
}

// What has no room shares a series, which only grows, whoever goes or gets room.
func TestOther(t *testing.T) {
	f := newFake("pod-traffic")
	f.sample.Devices, f.sample.Attached = map[uint32]string{4: "a", 5: "b", 6: "c"}, []traffic.Point{traffic.TC}
	f.atTC("10.77.0.4", 4, sent(10))
	f.atTC("10.77.0.5", 5, sent(30))
	f.atTC("10.77.0.6", 6, sent(20))
	w := watch(t, f, 1)
	w.want("first", w.sentBytes(), map[string]float64{"b": 3000, "other": 0})
	f.atTC("10.77.0.4", 4, sent(11))
	f.atTC("10.77.0.6", 6, sent(99))
	w.want("grown", w.sentBytes(), map[string]float64{"b": 3000, "other": 8000})
	f.atTC("10.77.0.7", 7, sent(2)) // comes with traffic
	f.sample.Devices[7] = "d"
	w.want("new", w.sentBytes(), map[string]float64{"b": 3000, "other": 8200})
	delete(f.sample.Devices, 5)
	delete(f.sample.Devices, 7)
	f.atTC("10.77.0.7", 7, sent(3))
	w.want("gone", w.sentBytes(), map[string]float64{"b": 3000, "other": 8300})
	delete(f.sample.Pods, traffic.Key{Point: traffic.TC, Address: f.key(7).Address, IfIndex: 7})
	f.atTC("10.77.0.6", 6, sent(100))
	w.want("room", w.sentBytes(), map[string]float64{"c": 10000, "other": 8300})
	f.atTC("10.77.0.4", 4, sent(1)) // cleared
	w.want("anew", w.sentBytes(), map[string]float64{"c": 10000, "other": 8400})
}

// What was counted before a program was off an interface, or before it was on it again,
// isn't growth of those that share a series.
func TestOtherComesBack(t *testing.T) {
	f := newFake("pod-traffic")
	f.sample.Attached = []traffic.Point{traffic.TC}
	f.sample.Devices = map[uint32]string{4: "a"}
	f.atTC("10.77.0.4", 4, sent(10))
	f.atTC("10.77.0.5", 5, sent(500)) // of before
	w := watch(t, f, 0)
	w.want("first", w.sentBytes(), map[string]float64{"other": 0})
	f.atTC("10.77.0.4", 4, sent(12))
	w.want("grown", w.sentBytes(), map[string]float64{"other": 200})
	f.sample.Devices = map[uint32]string{}
	f.atTC("10.77.0.4", 4, sent(13))
	w.want("off", w.sentBytes(), map[string]float64{"other": 300})
	w.want("still off", w.sentBytes(), map[string]float64{"other": 300})
	f.sample.Devices = map[uint32]string{4: "a", 5: "b"}
	f.atTC("10.77.0.4", 4, sent(14))
	f.atTC("10.77.0.5", 5, sent(501))
	w.want("on again", w.sentBytes(), map[string]float64{"other": 500})
	f.atTC("10.77.0.6", 6, sent(7)) // since attachments were read
	w.want("early", w.sentBytes(), map[string]float64{"other": 500})
	f.sample.Devices[6] = "c"
	f.atTC("10.77.0.6", 6, sent(8))
	w.want("on", w.sentBytes(), map[string]float64{"other": 1300})
}

func (f *fake) key(index uint32) traffic.Key {
	for key := range f.sample.Pods {
		if key.IfIndex == index {
			return key
		}
	}
	return traffic.Key{}
}

// Who can't be found is looked for ever more rarely, and a newcomer at once.
func TestNames(t *testing.T) {
	f := newFake("pod-traffic")
	f.sample.Devices, f.sample.Attached = map[uint32]string{4: "a", 5: "b"}, []traffic.Point{traffic.TC}
	f.atTC("10.77.0.4", 4, sent(1))
	w := watch(t, f, 10)
	scrapes := func(n int, every time.Duration) {
		for range n {
			w.text()
			w.now = w.now.Add(every)
			time.Sleep(0)
		}
	}
	scrapes(1, time.Second)
	scrapes(4, time.Second)
	if f.found.looks != 1 {
		t.Errorf("looked %d times at first", f.found.looks)
	}
	f.atTC("10.77.0.5", 5, sent(1))
	f.found.endpoints = []endpoint.Endpoint{pod("shop", "web", "u1", 5, 1)}
	w.want("newcomer", w.sentBytes(), map[string]float64{"a": 100, "shop web u1 b": 100})
	if f.found.looks != 2 {
		t.Errorf("looked %d times for a newcomer", f.found.looks)
	}
	if n := w.names.wait; n != firstWait {
		t.Errorf("the next look is after %v", n)
	}
	for range 20 {
		w.now = w.now.Add(mostWait)
		w.text()
	}
	if w.names.wait != mostWait {
		t.Errorf("looks are %v apart at last", w.names.wait)
	}
	f.found.err = errors.New("no /proc")
	w.now = w.now.Add(mostWait)
	w.names.owners = endpoint.NewOwners(&f.found)
	if got := w.values("bpfnet_scrape_success"); got[" pods"] != 0 || got[" instances"] != 1 {
		t.Errorf("%v", got)
	}
}

// An engine that hangs takes no scrape the time to read all else, and what it says
// after the scrape is known to a later one.
func TestSlowLook(t *testing.T) {
	f := newFake("pod-traffic")
	f.sample.Devices, f.sample.Attached = map[uint32]string{4: "a"}, []traffic.Point{traffic.TC}
	f.atTC("10.77.0.4", 4, sent(1))
	f.found.endpoints = []endpoint.Endpoint{pod("shop", "web", "u1", 4, 1)}
	f.found.hang = make(chan struct{})
	w := watch(t, f, 10)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	s, err := w.scrape(ctx)
	cancel()
	if err != nil {
		t.Fatal(err)
	}
	for source, one := range s.families[scrapeSuccess].live {
		if one.value != 1 {
			t.Errorf("%s: success %v", source, one.value)
		}
	}
	close(f.found.hang)
	want, got := map[string]float64{"shop web u1 a": 100}, map[string]float64(nil)
	for end := time.Now().Add(10 * time.Second); !maps.Equal(got, want) && time.Now().Before(end); time.Sleep(time.Millisecond) {
		w.now = w.now.Add(mostWait)
		got = w.sentBytes()
	}
	w.want("found since", got, want)
	if f.found.looks != 1 {
		t.Errorf("looked %d times", f.found.looks)
	}
}

// Hits of entries that go stay counted, those of before the exporter don't count.
func TestBlocklistHits(t *testing.T) {
	f := newFake()
	hit := func(id blocklist.HitsID, list string, action blocklist.Action, packets uint64) blocklist.ListHits {
		return blocklist.ListHits{ID: id, List: list, Action: action, Packets: packets, Bytes: 10 * packets}
	}
	ids := []blocklist.HitsID{{List: 1}, {List: 2}, {List: 3}}
	bad := blocklist.List{Name: "bad", Action: blocklist.Drop, Entries: 3}
	f.lists.overview = blocklist.Overview{Lists: []blocklist.List{bad, {Name: "allow", Action: blocklist.Allow}},
		Packets: map[string]blocklist.Counter{"dropped": {Packets: 7}, "hits_full": {Packets: 1}, "events_lost": {Packets: 2}}}
	f.lists.hits = []blocklist.ListHits{hit(ids[0], "bad", blocklist.Drop, 1000), hit(ids[1], "bad", blocklist.Drop, 5)}
	w := watch(t, f, 10)
	hits := func() map[string]float64 { return w.values("bpfnet_blocklist_hits_total") }
	w.want("first", hits(), map[string]float64{" drop bad": 0, " allow allow": 0})
	f.lists.hits = []blocklist.ListHits{hit(ids[1], "bad", blocklist.Drop, 8), hit(ids[2], "bad", blocklist.Drop, 4)}
	w.want("one gone, one new", hits(), map[string]float64{" drop bad": 7, " allow allow": 0})
	f.lists.hits = []blocklist.ListHits{hit(ids[1], "bad", blocklist.Drop, 2), hit(ids[2], "bad", blocklist.Drop, 4)}
	w.want("one anew", hits(), map[string]float64{" drop bad": 9, " allow allow": 0})
	bad.Action = blocklist.Alert
	f.lists.overview.Lists[0] = bad
	f.lists.hits = []blocklist.ListHits{hit(ids[1], "bad", blocklist.Alert, 3)}
	w.want("other action", hits(), map[string]float64{" alert bad": 1, " allow allow": 0})
	w.want("drops", w.values("bpfnet_packet_drops_total"), map[string]float64{" blocklist listed": 7})
	w.want("losses", w.values("bpfnet_lost_events_total"), map[string]float64{" blocklist hits": 1, " blocklist block_events": 2})
}

// Interfaces are told once more when the program is off them.
func TestInterfaces(t *testing.T) {
	f := newFake("xdp-counter")
	f.packets = counter.Sample{Interfaces: map[uint32]counter.Classes{
		0: {11: {Packets: 1, Bytes: 60}}, 4: {0: {Packets: 2, Bytes: 200}, 12: {Packets: 1, Bytes: 9}}, 8: {0: {Packets: 9}},
	}, Devices: map[uint32]string{4: "eth0"}}
	w := watch(t, f, 10)
	seen := func() map[string]float64 {
		values := w.values("bpfnet_interface_network_io_packets_total")
		maps.DeleteFunc(values, func(_ string, value float64) bool { return value == 0 })
		return values
	}
	all := map[string]float64{
		" receive other xdp-counter": 1, " eth0 receive tcp ipv4 xdp-counter": 2, " eth0 receive truncated xdp-counter": 1,
	}
	w.want("first", seen(), all)
	f.packets.Devices = map[uint32]string{}
	w.want("detached", seen(), all)
	w.want("after", seen(), map[string]float64{" receive other xdp-counter": 1})
}

// What is loaded meanwhile is shown, and what can't be read is left out and counted.
func TestErrors(t *testing.T) {
	f := newFake()
	w := watch(t, f, 10)
	if got := w.sentBytes(); len(got) != 0 {
		t.Errorf("without a program: %v", got)
	}
	f.loaded = []string{"pod-traffic", "dns"}
	f.sample.Devices, f.sample.Attached = map[uint32]string{4: "veth-a"}, []traffic.Point{traffic.TC}
	f.atTC("10.77.0.4", 4, sent(1))
	one := map[string]float64{"veth-a": 100}
	w.want("loaded", w.sentBytes(), one)
	f.errors["pod-traffic"] = errors.New("read pod-traffic/pods: no memory")
	w.want("unread", w.sentBytes(), map[string]float64{})
	w.text()
	w.want("success", w.values("bpfnet_scrape_success"), map[string]float64{" instances": 1, " pods": 0, " interfaces": 1, " peers": 1, " ports": 1, " blocklist": 1, " dns": 1})
	if got := w.values("bpfnet_scrape_errors_total"); got[" pods"] != 4 || got[" dns"] != 0 {
		t.Errorf("errors %v", got)
	}
	if !slices.Equal(w.notes, []string{"pods: read pod-traffic/pods: no memory"}) {
		t.Errorf("notes %q", w.notes)
	}
	delete(f.errors, "pod-traffic")
	w.want("read again", w.sentBytes(), one)
	f.errors["instances"] = errors.New("read bpffs: no")
	w.want("instances unread", w.sentBytes(), map[string]float64{})
	delete(f.errors, "instances")
	w.want("instances read again", w.sentBytes(), one)
	f.loaded = nil
	w.want("unloaded", w.sentBytes(), map[string]float64{})
	if len(w.pods.places)+len(w.pods.read) != 0 {
		t.Error("an unloaded program is remembered")
	}
}

// Scrapes read one after the other; one that waits for too long gets an error, and one
// whose time is up tells what it couldn't read.
func TestScrapesAtOnce(t *testing.T) {
	f := newFake("pod-traffic")
	var reading, most atomic.Int32
	f.read = func() {
		most.Store(max(most.Load(), reading.Add(1)))
		time.Sleep(10 * time.Millisecond)
		reading.Add(-1)
	}
	w := watch(t, f, 10)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() { w.text() })
	}
	all.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at once", most.Load())
	}
	hold, held := make(chan struct{}), make(chan struct{})
	f.read = func() { close(held); <-hold }
	all.Go(func() { w.text() })
	<-held
	handler, err := w.Handler()
	if err != nil {
		t.Fatal(err)
	}
	answer, request := httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil)
	request.Header.Set(timeoutHeader, "0.1")
	handler.ServeHTTP(answer, request)
	if answer.Code != http.StatusServiceUnavailable {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
	close(hold)
	all.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	f.read = cancel
	s, err := w.scrape(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]float64{"instances": 1, "pods": 0, "blocklist": 0} {
		if got := s.families[scrapeSuccess].live[source].value; got != want {
			t.Errorf("%s: success %v", source, got)
		}
	}
}

func TestTimeoutOf(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": 9500 * time.Millisecond, "5": 4500 * time.Millisecond, "0.6": 300 * time.Millisecond,
		"60": 9500 * time.Millisecond, "-1": 9500 * time.Millisecond, "NaN": 9500 * time.Millisecond, "x": 9500 * time.Millisecond,
	} {
		request := httptest.NewRequest("GET", "/metrics", nil)
		request.Header.Set(timeoutHeader, header)
		if got := timeoutOf(request); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

// All metrics that there are follow Prometheus' rules, and what a scrape has is among
// them.
func TestLint(t *testing.T) {
	f := newFake("pod-traffic", "xdp-counter", "port-filter", "dns")
	f.sample.Devices, f.sample.Attached = map[uint32]string{4: "veth\xff\"a"}, []traffic.Point{traffic.TC}
	f.sample.Rows = map[traffic.Row]traffic.Counters{{Point: traffic.TC, Name: "non_ip"}: sent(1)}
	f.atTC("10.77.0.4", 4, sent(1))
	w := watch(t, f, 10)
	text := w.text()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) != 0 {
		t.Errorf("%v %v", problems, err)
	}
	known := map[string]bool{}
	for _, m := range All() {
		known[m.Name] = true
	}
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE bpfnet_"); ok {
			name, _, _ = strings.Cut("bpfnet_"+name, " ")
			if !known[name] {
				t.Errorf("%s isn't in All", name)
			}
		}
	}
	if !strings.Contains(text, `network_interface_name="veth`+"\uFFFD"+`\"a"`) {
		t.Error(fmt.Sprint("a name of an interface isn't made text: ", text))
	}
}

// The guide has each metric in a table, with its labels, and no other.
func TestGuide(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var want, got, before []string
	for _, m := range All() {
		want = append(want, m.Name+" "+strings.Join(m.Labels, " "))
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(bpfnet_[a-z_]+)` \\|(.*)\\|$").FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(row[2], "the same") {
			before = strings.Fields(strings.NewReplacer("`", "", ",", "").Replace(row[2]))
		}
		got = append(got, row[1]+" "+strings.Join(before, " "))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("docs/metrics.md has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Alerts and the dashboard are about metrics that there are.
func TestDeployed(t *testing.T) {
	known := map[string]bool{}
	for _, m := range All() {
		known[m.Name] = true
	}
	for _, file := range []string{"prometheus/alerts.yml", "prometheus/alerts.test.yml", "grafana/bpfnet.json"} {
		text, err := os.ReadFile("../../deploy/" + file)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`\bbpfnet_[a-z_]+`).FindAllString(string(text), -1)
		if len(names) < 5 {
			t.Errorf("%s: %q", file, names)
		}
		for _, name := range names {
			if !known[name] {
				t.Errorf("%s: there is no %s", file, name)
			}
		}
	}
}
