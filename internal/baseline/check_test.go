package baseline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/detect"
	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// business is what a Pod transmits in a minute: much by day, little at night and at
// weekends.
func business(at time.Time, rng *rand.Rand) uint64 {
	base := 100_000.0
	if hour := at.Hour(); hour >= 8 && hour < 18 && at.Weekday() >= time.Monday && at.Weekday() <= time.Friday {
		base = 5_000_000
	}
	return uint64(base * (1 + 0.1*max(-3, min(3, rng.NormFloat64()))))
}

// weeks is a file of two weeks of business.
func weeks(t testing.TB) Document {
	t.Helper()
	f, l, rng := newFeed("web-5d59d67564-x2x4z"), Learn(blank(time.Minute)), rand.New(rand.NewPCG(1, 2))
	f.learn(l)
	for range 2 * hours * 60 {
		f.move("web-5d59d67564-x2x4z", business(f.at, rng)).wait(time.Minute)
		if f.at.Minute() == 0 {
			f.meet("web-5d59d67564-x2x4z", "443/tcp", "192.0.2.1").meet("web-5d59d67564-x2x4z", "53/udp", "10.0.0.10")
		}
		f.learn(l)
	}
	d, err := Read(l.Document().Encode(), "learned")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func checked(t testing.TB, d Document, text string) *Check {
	t.Helper()
	r, err := ParseRule("learn.json" + text)
	if err != nil {
		t.Fatal(err)
	}
	return NewCheck(d, r)
}

func TestCheckWeeks(t *testing.T) {
	learned := weeks(t)
	const name = "web-7b8c9d6f4-bcdfg" // of another ReplicaSet
	for title, test := range map[string]struct {
		run  func(f *feed, minute int)
		want string
	}{
		"as ever": {func(*feed, int) {}, ""},
		"a spike by day": {func(f *feed, minute int) {
			if minute == 10*60 {
				f.move(name, 20_000_000)
			}
		}, "volume workload:shop/web since 10h0m0s: transmit_bytes * of *, score *, peak *, hour of 120\n" +
			"volume workload:shop/web since 10h0m0s: receive_bytes * of *, score *, peak *, hour of 120\n" +
			"volume workload:shop/web since 10h0m0s until 10h1m0s below: transmit_bytes * of *, score *, peak *, hour of 120\n" +
			"volume workload:shop/web since 10h0m0s until 10h1m0s below: receive_bytes * of *, score *, peak *, hour of 120"},
		"the day's traffic at night": {func(f *feed, minute int) {
			if minute >= 3*60 && minute < 3*60+30 {
				f.move(name, 5_000_000)
			}
		}, "volume workload:shop/web since 3h0m0s: *\nvolume workload:shop/web since 3h0m0s: *\n" +
			"volume workload:shop/web since 3h0m0s until 3h30m0s below: *\nvolume workload:shop/web since 3h0m0s until 3h30m0s below: *"},
		"on a saturday": {func(f *feed, minute int) {
			if minute == 5*24*60+12*60 {
				f.move(name, 5_000_000)
			}
		}, "volume workload:shop/web since 132h0m0s: *\n*\n*\n*"},
		"a little more": {func(f *feed, minute int) { f.move(name, 5_000) }, ""},
		"hours that are missing": {func(f *feed, minute int) {
			if minute == 4*60 {
				f.move(name, 1e9).wait(5 * time.Hour)
			}
		}, ""},
		"counters begin anew": {func(f *feed, minute int) {
			if minute%100 == 0 {
				f.pods[name].Counters = traffic.Counters{}
			}
		}, ""},
		"new peers": {func(f *feed, minute int) {
			if minute >= 60 && minute < 63 || minute == 70 {
				for i := range 250 {
					f.meet(name, "443/tcp", fmt.Sprintf("198.51.100.%d", i))
				}
			}
			f.meet(name, "443/tcp", "192.0.2.1")
		}, "peers workload:shop/web since 1h0m0s: 250 [198.51.100.0 198.51.100.1 198.51.100.2] [443/tcp 198.51.100.0 443/tcp 198.51.100.1 443/tcp 198.51.100.2]\n" +
			"peers workload:shop/web since 1h0m0s until 1h11m0s below: 250 [*"},
		"another new peer meanwhile": {func(f *feed, minute int) {
			if minute >= 60 && minute < 70 {
				f.meet(name, "443/tcp", "198.51.100.1")
			}
			if minute == 65 {
				f.meet(name, "443/tcp", "198.51.100.2")
			}
		}, "peers workload:shop/web since 1h0m0s: 1 [198.51.100.1] *\npeers workload:shop/web since 1h5m0s: 1 [198.51.100.2] *\n" +
			"peers * until 1h6m0s *\npeers * until 1h10m0s *"},
		"a new port of a known peer": {func(f *feed, minute int) {
			if minute == 60 {
				f.meet(name, "22/tcp", "192.0.2.1").meet(name, "icmp", "192.0.2.1")
			}
		}, "ports workload:shop/web since 1h0m0s: 2 [icmp 22/tcp] [icmp 192.0.2.1 22/tcp 192.0.2.1]\nports * until 1h1m0s *"},
		"the Pod is gone": {func(f *feed, minute int) {
			if minute == 60 {
				f.move(name, 50_000_000)
			}
			if minute == 61 {
				f.pods[name] = nil
			}
			if minute == 90 {
				f.begin(name)
			}
		}, "volume *\nvolume *\nvolume workload:shop/web since 1h0m0s until 1h1m0s gone: transmit_bytes 0 of *\n*"},
	} {
		f, c, rng := newFeed(name), checked(t, learned, ""), rand.New(rand.NewPCG(3, 4))
		f.check(c)
		var lines []string
		for minute := range hours * 60 {
			test.run(f, minute)
			if f.pods[name] != nil {
				f.move(name, business(f.at, rng))
			}
			lines = append(lines, f.wait(time.Minute).check(c)...)
		}
		if got := strings.Join(lines, "\n"); !like(got, test.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", title, got, test.want)
		}
	}
}

// like compares with a text in which * is anything.
func like(text, want string) bool {
	parts := strings.Split(want, "*")
	if len(parts) == 1 {
		return text == want
	}
	if !strings.HasPrefix(text, parts[0]) {
		return false
	}
	text = text[len(parts[0]):]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text = text[i+len(part):]
	}
	return strings.HasSuffix(text, parts[len(parts)-1])
}

// TestCheckSamples checks that more samples make no other alerts.
func TestCheckSamples(t *testing.T) {
	learned := weeks(t)
	var first string
	for _, every := range []time.Duration{time.Minute, 30 * time.Second, 7 * time.Second, time.Second, 250 * time.Millisecond} {
		f, c := newFeed("web"), checked(t, learned, "")
		var lines []string
		for at := time.Duration(0); at < 20*time.Minute; at += every {
			bytes := uint64(100_000 * every / time.Minute)
			if at >= 5*time.Minute && at < 8*time.Minute {
				bytes *= 100
			}
			f.move("web", bytes)
			for _, line := range f.wait(every).check(c) {
				line, _, _ = strings.Cut(line, ":")
				lines = append(lines, line[:strings.LastIndex(line, "score")+1])
			}
		}
		got := fmt.Sprint(len(lines))
		if first == "" {
			first = got
		}
		if got != first || got == "0" {
			t.Errorf("every %s: %s", every, got)
		}
	}
}

func TestCheckUnknown(t *testing.T) {
	run := func(option string) (string, *Check) {
		f, c := newFeed("web", "db-0", "db-1", "idle"), checked(t, weeks(t), option)
		var lines []string
		for range 100 {
			f.move("db-0", 100).move("db-1", 100).meet("db-0", "1/tcp", "192.0.2.9")
			lines = append(lines, f.wait(time.Minute).check(c)...)
		}
		f.pods["db-0"], f.pods["db-1"] = nil, nil
		for range 100 {
			lines = append(lines, f.wait(time.Minute).check(c)...)
		}
		return strings.Join(lines, "\n"), c
	}
	if got, c := run(""); got != "" || c.Strangers() != 2 {
		t.Errorf("%d: %s", c.Strangers(), got)
	}
	if got, c := run(",unknown"); c.Firing() != 0 || !like(got, "endpoint workload:shop/db since 0s: 1 [workload:shop/db] []\nendpoint workload:shop/db since 0s until 1h40m0s below: 1 *") {
		t.Error(got)
	}
}

// TestExpect checks where it is looked when little is known of an hour.
func TestExpect(t *testing.T) {
	cell := func(windows, median uint64) *Cell {
		u := Usual{Median: median, MAD: median / 10, Most: median * 2}
		return &Cell{Windows: windows, TransmitBytes: u, TransmitPackets: u, ReceiveBytes: u, ReceivePackets: u}
	}
	k := &known{}
	k.cells[10] = cell(60, 100)
	k.cells[11] = cell(20, 200)
	k.cells[12] = cell(10, 300)
	k.cells[34] = cell(29, 400) // 10 o'clock on Tuesday
	k.cells[80] = cell(1, 500)
	for hour, want := range map[int]string{
		10: "hour 60 100", 11: "three 90 *", 12: "three 30 *", 34: "days 89 *", 35: "week 120 *", 58: "days 89 *", 0: "week 120 *", 100: "week 120 *",
	} {
		e, ok := k.expect(hour)
		if got := fmt.Sprintf("%s %d %d", e.Basis, e.Windows, e.TransmitBytes.Median); !ok || !like(got, want) {
			t.Errorf("%d: %s, want %s", hour, got, want)
		}
	}
	k = &known{}
	k.cells[10] = cell(29, 100)
	if e, ok := k.expect(10); ok {
		t.Errorf("29 windows are enough: %+v", e)
	}
}

// TestCheckEdited checks that what people change in a file does what they expect.
func TestCheckEdited(t *testing.T) {
	text := string(weeks(t).Encode())
	i := strings.Index(text, `"hour": "mon 03"`)
	line := text[i : i+strings.Index(text[i:], "\n")]
	edit := func(old, new string) string { return strings.Replace(text, old, new, 1) }
	for name, test := range map[string]struct {
		text string
		want int
	}{
		"nothing":     {text, 4},
		"a prefix":    {edit(`"192.0.2.1"`, `"192.0.2.1", "198.51.0.0/16"`), 3},
		"a port":      {edit(`"443/tcp"`, `"443/tcp", "22/tcp"`), 3},
		"all ports":   {edit(`"443/tcp"`, `"tcp"`), 3},
		"no peers":    {edit(`["10.0.0.10", "192.0.2.1"]`, `null`), 3},
		"no endpoint": {text[:strings.Index(text, `"endpoints"`)] + `"endpoints": []}`, 0},
		"no hour":     {edit("        {"+line+"\n", ""), 4}, // those beside it are known
		"no volume":   {text[:strings.Index(text, `"volume"`)] + `"volume": []}]}`, 2},
		"a median":    {edit(line, strings.NewReplacer(`"median": 1`, `"median": 1000`, `"median": 9`, `"median": 9000`).Replace(line)), 2},
	} {
		d, err := Read([]byte(test.text), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f, c := newFeed("web"), checked(t, d, "")
		f.wait(3 * time.Hour)
		f.check(c)
		f.move("web", 5_000_000).meet("web", "22/tcp", "198.51.100.7")
		if found := f.wait(time.Minute).check(c); len(found) != test.want {
			t.Errorf("%s: %d, want %d\n%s", name, len(found), test.want, strings.Join(found, "\n"))
		}
	}
}

// TestCheckFlood checks that what is kept is bounded.
func TestCheckFlood(t *testing.T) {
	f, c := newFeed("web"), checked(t, weeks(t), "")
	f.check(c)
	total := 0
	for i := range 8 {
		for j := range 2000 {
			f.meet("web", "443/tcp", fmt.Sprintf("203.%d.%d.%d", i, j/250, j%250))
		}
		total += len(f.wait(time.Minute).check(c))
	}
	if total != 3 || len(c.news[source{instanceOf(keyOf(traffic.TC, &f.pods["web"].who), &f.pods["web"].who), Peers}].of) != mostNews {
		t.Errorf("%d alerts", total)
	}
}

// TestCheckFloodAmount checks that what is new in a window and not remembered, because it
// is too much, isn't counted again in each that follows.
func TestCheckFloodAmount(t *testing.T) {
	f, c := newFeed("web"), checked(t, weeks(t), "")
	f.check(c)
	for range 5 {
		for i := range mostNews + 1000 {
			f.meet("web", "443/tcp", fmt.Sprintf("203.0.%d.%d", i/250, i%250))
		}
		f.wait(time.Minute).check(c)
	}
	for _, n := range c.news {
		if e := n.episodes[0]; len(n.episodes) != 1 || e.Amount != mostNews+1000 || len(e.Items) != mostNews {
			t.Errorf("%d episodes, %d items, amount %d", len(n.episodes), len(e.Items), e.Amount)
		}
	}
}

// TestForgedSources checks that who sends from as many addresses as it likes, or contacts
// many, fills no memory, and that what is left out is counted.
func TestForgedSources(t *testing.T) {
	f, c := newFeed("web"), checked(t, weeks(t), ",unknown")
	f.check(c)
	told, forged := 0, 0
	for range 3 {
		f.wait(time.Minute)
		doc := f.peers()
		one, index := uint64(1), uint32(1)
		for range mostPlaces {
			forged++
			doc.Peers = append(doc.Peers, peers.Peer{
				Who:       traffic.Who{Address: netip.AddrFrom4([4]byte{100, byte(forged >> 16), byte(forged >> 8), byte(forged)}), IfIndex: &index},
				Transport: "icmp", Peer: peers.Remote{Address: netip.MustParseAddr("198.51.100.1")}, NewAttempts: &one,
			})
		}
		told += len(c.Peers(doc))
	}
	if _, lost := c.Lost(); told != mostUnknown || len(c.news) != mostUnknown || lost != uint64(forged-told) {
		t.Errorf("told %d of %d, lost %d", told, forged, lost)
	}
	l := newContacts(time.Hour)
	for range 9 {
		f.wait(time.Minute)
		for range mostPlaces {
			forged++
			f.pods["web"].met = append(f.pods["web"].met, remote{netip.AddrFrom4([4]byte{100, byte(forged >> 16), byte(forged >> 8), byte(forged)}), "icmp"})
		}
		l.step(f.peers(), false)
	}
	if l.remotes != mostRemotes || l.lost != mostPlaces {
		t.Errorf("%d peers, lost %d", l.remotes, l.lost)
	}
}

func TestParseRule(t *testing.T) {
	for text, want := range map[string]Rule{
		"learn.json": {"learn.json", 6, false}, "a,score=8.5": {"a", 8.5, false}, "a,unknown": {"a", 6, true}, "a=b,unknown,score=1": {"a=b", 1, true},
	} {
		got, err := ParseRule(text)
		again, _ := ParseRule(got.String())
		if err != nil || got != want || again != want {
			t.Errorf("%s: %+v, %v, %s", text, got, err, got)
		}
	}
	for _, text := range []string{"", ",score=6", "a,", "a,score", "a,score=", "a,score=0.9", "a,score=NaN", "a,score=1e7", "a,score=6,score=6", "a,unknown,unknown", "a,mad=3"} {
		if got, err := ParseRule(text); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

// FuzzReplay: whatever a recording has, what is learned from it can be read again, and
// it gives the same each time.
func FuzzReplay(f *testing.F) {
	recording, err := os.ReadFile("../../test/testdata/deviating.ndjson")
	if err != nil {
		f.Fatal(err)
	}
	text := string(recording)
	for _, seed := range []string{
		text, text[:3000], strings.ReplaceAll(text, "2026", "9999"), strings.ReplaceAll(text, `"shop"`, `"a/\u0000"`), strings.ReplaceAll(text, `"tcp"`, `"T/c"`),
		strings.ReplaceAll(text, "203.0.113.9", "fe80::1%1"), strings.ReplaceAll(text, `"interval_seconds":10.0`, `"interval_seconds":0`),
		strings.ReplaceAll(text, "184000", "18446744073709551615"), strings.ReplaceAll(text, `"tc"`, `"cgroup"`), strings.ReplaceAll(text, "T10:02", "T09:02"),
	} {
		f.Add(seed)
	}
	known, err := Read([]byte(example), "known")
	if err != nil {
		f.Fatal(err)
	}
	run := func(text string) (learned, told string) {
		l, c := Learn(blank(10*time.Second)), NewCheck(known, Rule{Score: 1, Unknown: true})
		var lines []string
		_ = detect.Replay(strings.NewReader(text), "f", func(s detect.Sample) error { // up to what is wrong
			var found []Finding
			if s.Pods != nil {
				l.Pods(*s.Pods)
				found = c.Pods(*s.Pods)
			} else {
				l.Peers(*s.Peers)
				found = c.Peers(*s.Peers)
			}
			for _, f := range found {
				lines = append(lines, tell(f))
			}
			return nil
		})
		return string(l.Document().Encode()), strings.Join(lines, "\n")
	}
	f.Fuzz(func(t *testing.T, text string) {
		learned, told := run(text)
		if again, toldAgain := run(text); again != learned || toldAgain != told {
			t.Errorf("%s\n%s\nand\n%s\n%s", learned, told, again, toldAgain)
		}
		if _, err := Read([]byte(learned), "learned"); err != nil {
			t.Errorf("%v in\n%s", err, learned)
		}
	})
}
