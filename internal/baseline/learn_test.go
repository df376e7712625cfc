package baseline

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/traffic"
)

func TestWorkload(t *testing.T) {
	for pod, want := range map[string]string{
		"web-5d59d67564-x2x4z": "web", "web-api-7b8c9d6f4-bcdfg": "web-api", "node-agent-4kq7t": "node-agent", "backup-28391234-w8zkj": "backup",
		"db-0": "db", "db-12": "db", "kube-proxy": "kube-proxy", "web-1.2": "web-1.2", "db-007": "db-007", "web-x2x4a": "web-x2x4a", "x2x4z": "x2x4z",
		"-x2x4z": "-x2x4z", "web-123456": "web-123456", "web-3-x2x4z": "web-3", "etcd-node-1": "etcd-node", "": "",
	} {
		if got := workloadOf(pod); got != want {
			t.Errorf("%s: %s, want %s", pod, got, want)
		}
	}
}

func TestName(t *testing.T) {
	text := func(s string) *string { return &s }
	who := func(change func(*traffic.Who)) *traffic.Who {
		w := newFeed("web-5d59d67564-x2x4z").pods["web-5d59d67564-x2x4z"].who
		change(&w)
		return &w
	}
	for want, w := range map[string]*traffic.Who{
		"workload:shop/web":        who(func(*traffic.Who) {}),
		"workload:shop/web/nginx":  who(func(w *traffic.Who) { w.Container = text("nginx") }),
		"container:nginx":          who(func(w *traffic.Who) { w.Pod, w.Container = nil, text("nginx") }),
		"address:10.77.0.1@veth-a": who(func(w *traffic.Who) { w.Pod, w.DevName = nil, text("veth-a") }),
		"address:10.77.0.1@#1":     who(func(w *traffic.Who) { w.Namespace = text("") }),
		"address:10.77.0.1":        who(func(w *traffic.Who) { w.Pod, w.IfIndex = nil, nil }),
	} {
		if got := NameOf(w); got != want || checkName(got) != nil {
			t.Errorf("%s, want %s, %v", got, want, checkName(got))
		}
	}
	for _, name := range []string{"", "web", "workload:shop", "workload:/web", "workload:shop/web/", "container:", "address:web", "address:10.0.0.1@", "pod:shop/web"} {
		if checkName(name) == nil {
			t.Errorf("%s is a name", name)
		}
	}
}

// TestLearn learns of two hours of Pods of one workload: what each has had in a minute.
func TestLearn(t *testing.T) {
	f, l := newFeed("web-5d59d67564-x2x4z", "web-5d59d67564-bbbbb", "db-0"), Learn(blank(time.Minute))
	f.meet("db-0", "443/tcp", "192.0.2.1").learn(l) // contacted before
	for i := range 120 {
		for range 6 {
			f.move("web-5d59d67564-x2x4z", 10_000).move("web-5d59d67564-bbbbb", 20_000).wait(10 * time.Second)
			if i == 50 {
				f.move("db-0", 1_000_000).meet("db-0", "53/udp", "10.0.0.10", "10.0.0.11").meet("db-0", "icmp", "fd00::1")
			}
			f.learn(l)
		}
	}
	got := string(l.Document().Encode())
	want := `{
  "schema": "bpfnet.baseline/v1",
  "window_seconds": 60,
  "learned_from": "2026-01-05T00:00:00Z",
  "learned_until": "2026-01-05T02:00:00Z",
  "endpoints": [
    {
      "endpoint": "workload:shop/db",
      "peers": ["10.0.0.10", "10.0.0.11", "192.0.2.1", "fd00::1"],
      "ports": ["icmp", "443/tcp", "53/udp"],
      "volume": [
        {"hour": "mon 00", "windows": 60, "transmit_bytes": {"median": 0, "mad": 0, "most": 6000000}, "transmit_packets": {"median": 0, "mad": 0, "most": 6000}, "receive_bytes": {"median": 0, "mad": 0, "most": 600000}, "receive_packets": {"median": 0, "mad": 0, "most": 600}},
        {"hour": "mon 01", "windows": 60, "transmit_bytes": {"median": 0, "mad": 0, "most": 0}, "transmit_packets": {"median": 0, "mad": 0, "most": 0}, "receive_bytes": {"median": 0, "mad": 0, "most": 0}, "receive_packets": {"median": 0, "mad": 0, "most": 0}}
      ]
    },
    {
      "endpoint": "workload:shop/web",
      "peers": [],
      "ports": [],
      "volume": [
        {"hour": "mon 00", "windows": 120, "transmit_bytes": {"median": 90000, "mad": 30000, "most": 120000}, "transmit_packets": {"median": 90, "mad": 30, "most": 120}, "receive_bytes": {"median": 9000, "mad": 3000, "most": 12000}, "receive_packets": {"median": 9, "mad": 3, "most": 12}},
        {"hour": "mon 01", "windows": 120, "transmit_bytes": {"median": 90000, "mad": 30000, "most": 120000}, "transmit_packets": {"median": 90, "mad": 30, "most": 120}, "receive_bytes": {"median": 9000, "mad": 3000, "most": 12000}, "receive_packets": {"median": 9, "mad": 3, "most": 12}}
      ]
    }
  ]
}
`
	if got != want {
		t.Errorf("got\n%s", got)
	}
}

// TestLearnGoesOn checks that two files of a week each, the second going on from the
// first, are the file of two weeks.
func TestLearnGoesOn(t *testing.T) {
	weeks := func(l *Learner, f *feed, from, to int) *Learner {
		rng := rand.New(rand.NewPCG(1, uint64(from)))
		f.interval = nil
		f.learn(l)
		for range (to - from) * hours * 6 {
			f.move("web", uint64(50_000*math.Exp(rng.NormFloat64()))).meet("web", "443/tcp", fmt.Sprintf("192.0.%d.%d", rng.IntN(3), rng.IntN(200))).wait(10 * time.Minute).learn(l)
		}
		return l
	}
	window := 10 * time.Minute
	one, f := Learn(blank(window)), newFeed("web")
	weeks(one, f, 0, 1)
	first, err := Read(one.Document().Encode(), "first")
	if err != nil {
		t.Fatal(err)
	}
	two := weeks(Learn(first), f, 1, 2).Document().Encode()
	same := newFeed("web")
	all := Learn(blank(window))
	weeks(all, same, 0, 1)
	if got := weeks(all, same, 1, 2).Document().Encode(); string(got) != string(two) {
		t.Errorf("in two files\n%.4000s\nin one\n%.4000s", two, got)
	}
}

// TestFold checks how far what is learned of eight weeks, hour by hour, is from what all
// values give: never far, and by more as often as by less.
func TestFold(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		name string
		next func(week int) float64
		bias float64
	}{
		{"same", func(int) float64 { return 5e5 }, 0.01},
		{"normal", func(int) float64 { return max(0, 1e6+2e5*rng.NormFloat64()) }, 0.01},
		{"lognormal", func(int) float64 { return 1e5 * math.Exp(rng.NormFloat64()) }, 0.02},
		{"uniform", func(int) float64 { return 1e6 * rng.Float64() }, 0.02},
		{"drift", func(week int) float64 { return 1e6 + 1e5*float64(week) + 1e5*rng.NormFloat64() }, 0.1},
	} {
		const trials = 200
		var bias, worst [2]float64
		for range trials {
			got, exact := eightWeeks(test.next)
			for i, ratio := range []float64{ratio(got.Median, exact.Median), ratio(got.MAD, exact.MAD)} {
				bias[i] += (ratio - 1) / trials
				worst[i] = max(worst[i], math.Abs(ratio-1))
			}
		}
		t.Logf("%s: median and MAD differ by %.3f on average, by %.2f at most", test.name, bias, worst)
		if max(math.Abs(bias[0]), math.Abs(bias[1])) > test.bias || worst[0] > 0.12 || worst[1] > 0.25 {
			t.Errorf("%s: %.3f, %.2f", test.name, bias, worst)
		}
	}
}

func eightWeeks(next func(week int) float64) (got, exact Usual) {
	var c Cell
	var all []weighted
	for week := range 8 {
		var values [len(metrics)][]weighted
		for range 60 {
			values[0] = append(values[0], weighted{math.Round(next(week)), 1})
		}
		for i := range values {
			values[i] = slices.Clone(values[0])
		}
		all = append(all, values[0]...)
		c.fold(60, values, [len(metrics)]uint64{})
	}
	return c.TransmitBytes, usualOf(all, 0)
}

func ratio(a, b uint64) float64 { return max(1, float64(a)) / max(1, float64(b)) }

// TestFoldAlone checks that what is usual stays that when it is taken apart.
func TestFoldAlone(t *testing.T) {
	for _, u := range []Usual{{0, 0, 0}, {100, 0, 7}, {100, 200, 7}, {1e12, 3e9, 1e13}} {
		if got := usualOf(u.values(60), u.Most); got != u {
			t.Errorf("%+v, want %+v", got, u)
		}
	}
}

// TestLearnOnlyWhole checks that what isn't known of a window isn't learned.
func TestLearnOnlyWhole(t *testing.T) {
	for name, test := range map[string]struct {
		run     func(f *feed, l *Learner)
		windows uint64 // in the first hour
		most    uint64
	}{
		"steady": {func(*feed, *Learner) {}, 20, 60_000},
		"late": {func(f *feed, l *Learner) { // samples are missing: of windows in between nothing is known
			f.move("web", 1e9).wait(5 * time.Minute).learn(l)
		}, 20, 60_000},
		"reset": {func(f *feed, l *Learner) { // counters begin anew
			f.pods["web"].Counters = traffic.Counters{}
			f.move("web", 10_000).wait(10 * time.Second).learn(l)
		}, 20, 60_000},
		"recreated": {func(f *feed, l *Learner) { // another Pod of the same workload
			f.pods["web"].who.PodUID = nil
			f.move("web", 10_000).wait(10 * time.Second).learn(l)
		}, 20, 60_000},
		"again": {func(f *feed, l *Learner) { // another recording
			f.interval = nil
			f.move("web", 1e9).learn(l)
		}, 20, 60_000},
		"set": {func(f *feed, l *Learner) { // a clock is set back
			f.move("web", 10_000).wait(10 * time.Second)
			f.at = f.at.Add(-5 * time.Minute)
			f.learn(l)
		}, 19, 60_000},
		"gone": {func(f *feed, l *Learner) { // and new
			p := f.pods["web"]
			f.pods["web"] = nil
			f.wait(10 * time.Second).learn(l)
			f.pods["web"] = p
			f.move("web", 10_000).wait(10 * time.Second).learn(l)
		}, 19, 60_000},
		"new": {func(f *feed, l *Learner) { // a second one in the middle of a window
			f.begin("web-0")
			f.move("web", 10_000).move("web-0", 1e6).wait(10 * time.Second).learn(l)
		}, 29, 60_000},
	} {
		f, l := newFeed("web"), Learn(blank(time.Minute))
		steadily := func(n int) {
			for range n {
				f.move("web", 10_000).wait(10 * time.Second).learn(l)
			}
		}
		f.learn(l)
		steadily(60)
		test.run(f, l)
		steadily(60)
		d := l.Document()
		c := d.Endpoints[len(d.Endpoints)-1].Volume[0]
		if c.Windows != test.windows || c.TransmitBytes.Most != test.most {
			t.Errorf("%s: %+v, want %d windows", name, c, test.windows)
		}
	}
}

// TestLearnNames checks that what is known of an endpoint only later counts as known,
// and that something is written in any case.
func TestLearnNames(t *testing.T) {
	f, l := newFeed("web-5d59d67564-x2x4z").wait(time.Second), Learn(blank(time.Minute))
	f.interval = nil
	p := f.pods["web-5d59d67564-x2x4z"]
	who := p.who
	p.who.Namespace, p.who.Pod, p.who.PodUID = nil, nil, nil
	f.meet("web-5d59d67564-x2x4z", "53/udp", "10.0.0.10").learn(l).wait(time.Second)
	p.who = who
	f.learn(l)
	if d := l.Document(); fmt.Sprint(d.Names()) != "[workload:shop/web]" || fmt.Sprint(d.Endpoints[0].Peers) != "[10.0.0.10]" || len(d.Endpoints[0].Volume) != 0 {
		t.Errorf("%+v", d)
	}
	if d := Learn(blank(time.Minute)).Document(); string(d.Encode()) == "" || d.LearnedFrom != nil {
		t.Errorf("%+v", d)
	} else if again, err := Read(d.Encode(), "x"); err != nil || string(again.Encode()) != string(d.Encode()) {
		t.Errorf("%v: %s", err, d.Encode())
	}
}

// TestLearnMany checks that many peers and ports are put together, whatever comes first.
func TestLearnMany(t *testing.T) {
	f, l := newFeed("web"), Learn(blank(time.Minute))
	f.learn(l)
	for i := range 300 {
		f.meet("web", fmt.Sprintf("%d/udp", 30000+i), fmt.Sprintf("192.0.2.%d", i%256), fmt.Sprintf("fd00::%x", i+1), fmt.Sprintf("10.%d.0.1", i%100))
	}
	f.meet("web", "443/tcp", "198.51.100.1").wait(time.Minute).learn(l)
	e := l.Document().Endpoints[0]
	if len(e.Peers) > mostPeers || !slices.Contains(e.Peers, "10.7.0.1") || !slices.Contains(e.Peers, "198.51.100.1") || !slices.Contains(e.Peers, "fd00::/64") {
		t.Errorf("%d: %v", len(e.Peers), e.Peers)
	}
	if got := strings.Join(e.Ports, " "); got != "443/tcp udp" {
		t.Error(got)
	}
	scattered := peerSet{}
	for i := range 70_000 {
		p, err := parsePeer(fmt.Sprintf("%d.%d.%d.%d", 1+i%223, i/7%256, i/3%256, i%251))
		if err != nil {
			t.Fatal(err)
		}
		scattered.add(p)
		if i%1000 == 0 {
			scattered.bound()
		}
	}
	scattered.bound()
	if len(scattered) > mostPeers || len(scattered) < mostPeers/2 {
		t.Errorf("%d prefixes", len(scattered))
	}
}

// TestBoundAtOnce checks that peers that have hardly anything in common are put together
// in time: a crawler meets so many in a window.
func TestBoundAtOnce(t *testing.T) {
	scattered, random, began := peerSet{}, rand.New(rand.NewPCG(1, 2)), time.Now()
	for range 70_000 {
		a := random.Uint32()
		scattered.add(netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}), 32))
	}
	scattered.bound()
	if took := time.Since(began); len(scattered) != mostPeers || took > 20*time.Second {
		t.Errorf("%d prefixes after %s", len(scattered), took)
	}
}
