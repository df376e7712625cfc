package detect

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/sample"
	"bpfnet/internal/traffic"
)

// feed makes samples of Pods that send. Each Pod is an address at an interface.
type feed struct {
	docs   []traffic.Document
	at     time.Duration
	pods   map[byte]traffic.Counters
	uids   map[byte]string
	hidden int
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// newFeed begins with a sample of Pods that have sent much already.
func newFeed(pods string) *feed {
	f := &feed{pods: map[byte]traffic.Counters{}, uids: map[byte]string{}}
	for _, p := range []byte(pods) {
		f.pods[p] = traffic.Counters{TransmitBytes: 1e12, TransmitPackets: 1e9, ReceiveBytes: 1e12, ReceivePackets: 1e9}
	}
	f.sample()
	f.docs[0].IntervalSeconds = nil
	return f
}

// send is a sample after a time in which each Pod sent so many bytes.
func (f *feed) send(after time.Duration, pods string, bytes uint64) *feed {
	for _, p := range []byte(pods) {
		c := f.pods[p]
		c.Add(traffic.Counters{TransmitBytes: bytes, TransmitPackets: bytes / 1000})
		f.pods[p] = c
	}
	f.at += after
	f.sample()
	seconds := after.Seconds()
	f.docs[len(f.docs)-1].IntervalSeconds = &seconds
	return f
}

// steadily sends so many bytes in each of n seconds.
func (f *feed) steadily(n int, pods string, bytes uint64) *feed {
	for range n {
		f.send(time.Second, pods, bytes)
	}
	return f
}

func (f *feed) sample() {
	doc := traffic.Document{Schema: traffic.Schema, Time: epoch.Add(f.at).Truncate(time.Second), ObservedAt: traffic.TC, Pods: []traffic.Pod{}}
	doc.Others.Pods = f.hidden
	for _, p := range slices.Sorted(maps.Keys(f.pods)) {
		doc.Pods = append(doc.Pods, row(p, f.uids[p], f.pods[p]))
	}
	f.docs = append(f.docs, doc)
}

func row(pod byte, uid string, c traffic.Counters) traffic.Pod {
	index := uint32(pod)
	r := traffic.Pod{Who: traffic.Who{Address: netip.AddrFrom4([4]byte{10, 77, 0, pod}), IfIndex: &index}, Traffic: traffic.Traffic{Counters: c}}
	if uid != "" {
		r.PodUID = &uid
	}
	return r
}

// found tells what rules find: when, in seconds, whose, how much, and when it began
// and ended.
func (f *feed) found(t *testing.T, rules ...string) string {
	t.Helper()
	d := newDetector(t, rules...)
	var lines []string
	for _, doc := range f.docs {
		for _, found := range d.Step(doc) {
			lines = append(lines, tell(doc, found))
		}
	}
	return strings.Join(lines, "\n")
}

func newDetector(t testing.TB, rules ...string) *Detector {
	t.Helper()
	var parsed []Burst
	for _, text := range rules {
		b, err := ParseBurst(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, b)
	}
	return New(parsed)
}

func tell(doc traffic.Document, f Finding) string {
	line := fmt.Sprintf("%v %c %d", doc.Time.Sub(epoch).Seconds(), f.Source.Address.As4()[3], f.Amount)
	if f.Ended.IsZero() {
		return line + fmt.Sprintf(" since %v", f.Started.Sub(epoch).Seconds())
	}
	return line + fmt.Sprintf(" from %v to %v, %s, peak %d", f.Started.Sub(epoch).Seconds(), f.Ended.Sub(epoch).Seconds(), f.EndedBy, f.Peak)
}

func TestBurst(t *testing.T) {
	gone := newFeed("ab").steadily(5, "ab", 2000)
	delete(gone.pods, 'a')
	gone.steadily(30, "b", 1)

	reset := newFeed("a").steadily(20, "a", 10)
	reset.pods['a'] = traffic.Counters{TransmitBytes: 3}
	reset.steadily(20, "a", 10)

	replaced := newFeed("a").steadily(3, "a", 10)
	replaced.pods['a'] = traffic.Counters{}
	replaced.send(time.Second, "a", 20_000).steadily(25, "a", 0)

	fresh := newFeed("a")
	fresh.pods['b'] = traffic.Counters{}
	fresh.send(time.Second, "b", 15_000)

	limited := newFeed("a")
	limited.hidden = 1
	limited.steadily(3, "a", 1)
	limited.pods['b'] = traffic.Counters{TransmitBytes: 1e15}
	limited.steadily(5, "b", 1)

	missed := newFeed("ab").steadily(3, "ab", 100)
	kept := missed.pods['b']
	delete(missed.pods, 'b')
	missed.steadily(3, "a", 100)
	missed.pods['b'] = kept
	missed.steadily(10, "ab", 100)

	switched := newFeed("a").steadily(3, "a", 100)
	for i := range switched.docs[2:] {
		switched.docs[2+i].ObservedAt = traffic.Cgroup
		switched.docs[2+i].Pods[0].IfIndex, switched.docs[2+i].Pods[0].CgroupID = nil, &[]string{"77"}[0]
	}
	back := newFeed("a").steadily(1, "a", 100)
	switched.docs = append(switched.docs, back.docs...)

	again := newFeed("a").steadily(3, "a", 100)
	again.at += time.Hour
	again.pods['a'] = traffic.Counters{TransmitBytes: 1e15}
	again.send(time.Second, "a", 100).docs[4].IntervalSeconds = nil
	again.steadily(3, "a", 100)

	twice := newFeed("a").steadily(2, "a", 600)
	last := &twice.docs[2]
	last.Pods = append(last.Pods, last.Pods[0], last.Pods[0])

	two := newFeed("ab")
	two.uids['a'], two.uids['b'] = "u", "u"
	two.steadily(3, "ab", 2000)

	named := newFeed("a").steadily(3, "a", 2000)
	named.uids['a'] = "u"
	named.steadily(3, "a", 2000)

	for _, test := range []struct {
		name, rule string
		feed       *feed
		want       string
	}{
		{"nothing", "10kB/10s", newFeed("a").steadily(30, "a", 999), ""},
		{"what was before the first sample", "1B/10s", newFeed("a").steadily(30, "a", 0), ""},
		{"a spike", "10kB/10s", newFeed("a").steadily(3, "a", 1).send(time.Second, "a", 12_000).steadily(30, "a", 0),
			"4 a 12003 since 4\n24 a 0 from 4 to 14, below, peak 12003"},
		{"exactly the threshold", "10kB/10s", newFeed("a").send(time.Second, "a", 10_000), "1 a 10000 since 1"},
		{"one less", "10kB/10s", newFeed("a").send(time.Second, "a", 9_999), ""},
		{"a spike isn't sustained", "10kB/10s,for=20s", newFeed("a").send(time.Second, "a", 1_000_000_000).steadily(40, "a", 0), ""},
		{"sustained", "10kB/10s,for=20s", newFeed("a").steadily(40, "a", 2000).steadily(30, "a", 0),
			"25 a 20000 since 5\n57 a 0 from 5 to 47, below, peak 20000"},
		{"sustained, ticks as long as the window", "10kB/10s,for=20s", newFeed("a").send(10040*time.Millisecond, "a", 20_000).send(10040*time.Millisecond, "a", 20_000).send(10040*time.Millisecond, "a", 20_000),
			"30 a 19920 since 10"},
		{"sustained, with a break", "10kB/10s,for=20s", newFeed("a").steadily(19, "a", 2000).steadily(8, "a", 0).steadily(20, "a", 2000), ""},
		{"once for all of an episode", "10kB/10s", newFeed("a").steadily(500, "a", 2000), "5 a 10000 since 5"},
		{"between end and threshold it goes on", "10kB/10s", newFeed("a").steadily(10, "a", 1000).steadily(60, "a", 800).steadily(40, "a", 1000).steadily(40, "a", 799),
			"10 a 10000 since 10\n130 a 7990 from 10 to 120, below, peak 10000"},
		{"armed again when it is over", "10kB/10s", newFeed("a").send(time.Second, "a", 10_000).steadily(20, "a", 0).send(time.Second, "a", 11_000).steadily(2, "a", 0),
			"1 a 10000 since 1\n21 a 0 from 1 to 11, below, peak 10000\n22 a 11000 since 22"},
		{"a break shorter than a window", "10kB/10s", newFeed("a").send(time.Second, "a", 10_000).steadily(17, "a", 0).send(time.Second, "a", 11_000),
			"1 a 10000 since 1"},
		{"gone in an episode", "10kB/10s", gone,
			"5 a 10000 since 5\n5 b 10000 since 5\n22 a 0 from 5 to 12, gone, peak 10000\n22 b 10 from 5 to 12, below, peak 10005"},
		{"counters that begin anew", "200B/10s", reset, ""},
		{"a burst of counters that begin anew", "20kB/10s", replaced, "4 a 20030 since 4\n24 a 0 from 4 to 14, below, peak 20030"},
		{"a new endpoint", "10kB/10s", fresh, "1 b 15000 since 1"},
		{"one that wasn't shown", "10kB/10s", limited, ""},
		{"one that a sample missed", "2kB/10s", missed, ""},
		{"another point", "2kB/10s", switched, ""},
		{"another recording", "2kB/10s", again, ""},
		{"twice in a document", "2kB/10s", twice, ""},
		{"two addresses of a Pod", "10kB/10s", two, "3 a 12000 since 3"},
		{"known only later", "10kB/10s", named, "5 a 10000 since 5"},
		{"a late sample", "10kB/10s", newFeed("a").steadily(5, "a", 900).send(5*time.Minute, "a", 300*900).steadily(15, "a", 900), ""},
		{"a late sample of a burst", "10kB/10s", newFeed("a").steadily(5, "a", 900).send(20*time.Second, "a", 21_000), "25 a 10500 since 25"},
		{"a late sample doesn't last", "10kB/10s,for=20s", newFeed("a").steadily(10, "a", 1500).send(60*time.Second, "a", 1e9).steadily(15, "a", 1500), ""},
		{"uneven ticks", "10kB/10s", newFeed("a").send(100*time.Millisecond, "a", 90).send(3700*time.Millisecond, "a", 3330).send(50*time.Millisecond, "a", 45).
			send(7*time.Second, "a", 6300).send(900*time.Millisecond, "a", 810).send(9*time.Second, "a", 8100), ""},
		{"received", "1B/10s,receive", newFeed("a").steadily(20, "a", 1000), ""},
		{"packets", "50packets/10s,transmit", newFeed("a").steadily(5, "a", 10_000), "5 a 50 since 5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.feed.found(t, test.rule); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// TestNamedInSilence checks that an alert of an endpoint that sends nothing any more has
// the names that became known since.
func TestNamedInSilence(t *testing.T) {
	f := newFeed("a").steadily(20, "a", 2000)
	f.uids['a'] = "u"
	f.steadily(5, "a", 0)
	d := newDetector(t, "10kB/10s,for=20s")
	var got []string
	for _, doc := range f.docs {
		for _, found := range d.Step(doc) {
			got = append(got, fmt.Sprintf("%s %s %q", tell(doc, found), found.Kind, sample.Value(found.Source.PodUID)))
		}
	}
	if want := []string{`25 a 10000 since 5 pod "u"`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// learned has sent bytes with some spread for as long as it takes to learn that.
func learned(windows int) *feed {
	f := newFeed("a")
	for i := range windows {
		f.send(10*time.Second, "a", uint64(100_000+1000*(i%11-5)))
	}
	return f
}

// TestUsual checks thresholds made of an endpoint's own history. The mean is 100,000,
// the MAD 3,000, which is less than the least.
func TestUsual(t *testing.T) {
	for _, test := range []struct {
		name, rule string
		feed       *feed
		want       string
	}{
		{"while it learns", "1kB/10s,mad=8", learned(30).send(10*time.Second, "a", 1e9), ""},
		{"when it has learned", "1kB/10s,mad=8", learned(34).send(10*time.Second, "a", 141_000), "350 a 141000 since 350"},
		{"below", "1kB/10s,mad=8", learned(34).send(10*time.Second, "a", 139_000), ""},
		{"the least", "1MB/10s,mad=8", learned(33).send(10*time.Second, "a", 999_999), ""},
		{"no spread", "1kB/10s,mad=8", newFeed("a").steadily(330, "a", 100).send(10*time.Second, "a", 1400), "340 a 1400 since 340"},
		{"no spread, one less", "1kB/10s,mad=8", newFeed("a").steadily(330, "a", 100).send(10*time.Second, "a", 1399), ""},
		{"nothing is usual", "1kB/10s,mad=8", newFeed("a").steadily(330, "a", 0).send(time.Second, "a", 999).steadily(20, "a", 0).send(time.Second, "a", 1000), "352 a 1000 since 352"},
		{"what isn't usual isn't learned", "1kB/10s,mad=2", newFeed("a").steadily(330, "a", 100).steadily(2000, "a", 1000).steadily(20, "a", 100),
			"331 a 1900 since 331\n2350 a 1000 from 331 to 2340, below, peak 10000"},
		{"ticks as long as the window", "1kB/10s,mad=8", func() *feed {
			f := newFeed("a")
			for range 33 {
				f.send(10040*time.Millisecond, "a", 1004)
			}
			return f.send(10*time.Second, "a", 1e6)
		}(), "341 a 988491 since 341"},
		{"windows of gaps aren't learned", "1kB/10s,mad=8", func() *feed {
			f := newFeed("a")
			for range 40 {
				f.send(16*time.Second, "a", 1000)
			}
			return f.send(10*time.Second, "a", 1e6)
		}(), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.feed.found(t, test.rule); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// TestUsualOf checks the statistics.
func TestUsualOf(t *testing.T) {
	for _, test := range []struct {
		sums      []uint64
		mean, mad float64
	}{
		{[]uint64{1, 2, 3, 4, 100}, 22, 1.1},
		{[]uint64{1, 1, 2, 2, 4, 6, 9}, 25. / 7, 1},
		{[]uint64{7, 7, 7}, 7, 0.35},
		{[]uint64{0, 0}, 0, 0},
	} {
		u := usualOf(test.sums)
		if math.Abs(u.Mean-test.mean) > 1e-9 || math.Abs(u.MAD-test.mad) > 1e-9 || u.Windows != len(test.sums) {
			t.Errorf("%v: %+v", test.sums, u)
		}
	}
	if got := (Usual{Mean: 1e30}).threshold(1, 1); got != math.MaxUint64 {
		t.Errorf("threshold %d", got)
	}
}

// TestHistory checks that the windows of a history add up to what passed, whatever
// the ticks are.
func TestHistory(t *testing.T) {
	const width = 1000
	h, random := history{}, rand.New(rand.NewPCG(1, 2))
	var total, early uint64
	now := clock(1_000_000)
	for len(h.sums) < historyWindows {
		before, n := now, random.Uint64N(1000)
		now += 1 + clock(random.Int64N(width))
		h.add(before, before, now, n, width)
		h.roll(before, now, width, true, true)
		total += n
	}
	for _, sum := range h.sums {
		early += sum
	}
	if rest := h.sum; early+rest != total {
		t.Errorf("%d in windows, %d since then, of %d", early, rest, total)
	}
}

// TestWindow checks that windows, one after the other, add up to what passed, and
// that no window has more than passed between the samples that it touches.
func TestWindow(t *testing.T) {
	const width = 50
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		var w window
		var total, sum, recent uint64
		now := clock(100_000)
		for range 400 {
			end := (now/(buckets*width) + 1) * buckets * width
			next := min(end, now+1+clock(random.Int64N(2*buckets*width)))
			n := random.Uint64N(1 << random.IntN(60))
			w.add(now, next, n, width)
			now, total, recent = next, total+n, recent+n
			if got := w.sum(now, width); now == end && got != recent {
				t.Fatalf("seed %d: %d in a window, %d passed", seed, got, recent)
			} else if now == end {
				sum, recent = sum+got, 0
			}
		}
		if sum+recent != total {
			t.Fatalf("seed %d: %d in windows, %d since then, of %d", seed, sum, recent, total)
		}
	}
}

// TestSpike checks that what comes at once never fires a rule that wants it to last,
// whenever the samples are taken.
func TestSpike(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 2))
		f := newFeed("a")
		for i := range 60 {
			bytes := uint64(0)
			if i == 20 {
				bytes = 1e15
			}
			f.send(time.Duration(1+random.IntN(19_999))*time.Millisecond, "a", bytes)
		}
		if got := f.found(t, "10kB/10s,for=20s"); got != "" {
			t.Fatalf("seed %d: %s", seed, got)
		}
	}
}

// TestSteady checks that traffic a little below the threshold never fires, and a
// little above it does once, whenever the samples are taken.
func TestSteady(t *testing.T) {
	for seed := range uint64(300) {
		for rate, want := range map[uint64]int{990: 0, 1020: 1} { // a second
			random := rand.New(rand.NewPCG(seed, 3))
			f := newFeed("a")
			for range 200 {
				after := time.Duration(1+random.IntN(3000)) * time.Millisecond
				f.send(after, "a", rate*uint64(after.Milliseconds())/1000)
			}
			if got := f.found(t, "10kB/10s"); strings.Count(got+"\n", "\n")-1+min(1, len(got)) != want {
				t.Fatalf("seed %d, %d a second: %q", seed, rate, got)
			}
		}
	}
}

// TestForget checks that nothing stays of endpoints that come and go, whatever they
// are called.
func TestForget(t *testing.T) {
	d := newDetector(t, "1B/10s", "1kB/5s,mad=3")
	f := newFeed("a")
	for i := range 200 {
		delete(f.pods, byte(i))
		f.pods[byte(i+1)], f.uids[byte(i+1)] = traffic.Counters{}, fmt.Sprint(i)
		f.send(time.Second, string([]byte{byte(i + 1)}), 5)
	}
	most := 0
	for _, doc := range f.docs {
		d.Step(doc)
		most = max(most, len(d.entries), len(d.endpoints))
	}
	if most > 45 { // remembered for 20 s, and until the episode is over
		t.Errorf("%d endpoints", most)
	}
}

// TestLost counts what found no room.
func TestLost(t *testing.T) {
	f := newFeed("a").steadily(5, "a", 1)
	for i, lost := range []uint64{100, 100, 104, 3, 5, 5} { // an instance began anew
		f.docs[i].Loss.MapFull = lost
	}
	d := newDetector(t, "1B/10s")
	for _, doc := range f.docs {
		d.Step(doc)
	}
	if d.Lost() != 9 {
		t.Errorf("%d lost", d.Lost())
	}
}

// TestReady says when a watch may end that was to look once.
func TestReady(t *testing.T) {
	for rule, want := range map[string]int{"1B/10s": 10, "1B/10s,for=20s": 30, "1B/1s,mad=3": 32} {
		d, n := newDetector(t, rule), 0
		for _, doc := range newFeed("a").steadily(100, "a", 0).docs {
			d.Step(doc)
			if d.Ready() {
				break
			}
			n++
		}
		if n != want {
			t.Errorf("%s: after %d s", rule, n)
		}
	}
}
