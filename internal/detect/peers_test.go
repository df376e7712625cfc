package detect

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/peers"
	"bpfnet/internal/traffic"
)

// calls makes samples of Pods that contact others. Each Pod is an address at an
// interface.
type calls struct {
	docs []peers.Document
	at   time.Duration
	pods map[byte]peers.Connections
	uids map[byte]string
	rows []peers.Peer // of the next sample
}

// newCalls begins with a sample in which every Pod has contacted somebody already.
func newCalls(pods string) *calls {
	c := &calls{pods: map[byte]peers.Connections{}, uids: map[byte]string{}}
	for i, p := range []byte(pods) {
		c.pods[p] = peers.Connections{Opened: 1e9, Received: 1e9}
		for n := range 7 {
			c.call(string(p), i*100+n)
		}
	}
	for i := range c.rows {
		c.rows[i].NewAttempts, c.rows[i].NewAnswers, c.rows[i].NewRefusals = nil, nil, nil
	}
	c.sample()
	c.docs[0].IntervalSeconds = nil
	return c
}

// far is an external address.
func far(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18 + byte(n>>16), byte(n >> 8), byte(n)})
}

// row is a Pod's row in the next sample.
func (c *calls) row(pod byte, to netip.Addr, port uint16, attempts, answers, refusals uint64) *calls {
	r := peers.Peer{
		Who: row(pod, c.uids[pod], traffic.Counters{}).Who, Transport: "tcp", Peer: peers.Remote{Address: to, Port: &port},
		NewAttempts: &attempts, NewAnswers: &answers, NewRefusals: &refusals, LastSeen: epoch.Add(c.at + 1000*time.Hour), // not before the sample
	}
	c.rows = append(c.rows, r)
	made := c.pods[pod]
	made.Opened += attempts
	c.pods[pod] = made
	return c
}

// call has each Pod contact external addresses, which answer.
func (c *calls) call(pods string, numbers ...int) *calls {
	for _, p := range []byte(pods) {
		for _, n := range numbers {
			c.row(p, far(n), 443, 1, 1, 0)
		}
	}
	return c
}

// silent has each Pod contact external addresses that don't answer.
func (c *calls) silent(pods string, numbers ...int) *calls {
	for _, p := range []byte(pods) {
		for _, n := range numbers {
			c.row(p, far(n), 443, 1, 0, 0)
		}
	}
	return c
}

// next is a sample after a time.
func (c *calls) next(after time.Duration) *calls {
	c.at += after
	c.sample()
	seconds := after.Seconds()
	c.docs[len(c.docs)-1].IntervalSeconds = &seconds
	return c
}

// quiet is n samples, a second apart, without news.
func (c *calls) quiet(n int) *calls {
	for range n {
		c.next(time.Second)
	}
	return c
}

// each has each Pod contact as many new addresses in each of n seconds, from a number
// on.
func (c *calls) each(n int, pods string, first, many int) *calls {
	for i := range n {
		c.call(pods, span(first+i*many, many)...).next(time.Second)
	}
	return c
}

func span(first, n int) (numbers []int) {
	for i := range n {
		numbers = append(numbers, first+i)
	}
	return numbers
}

func (c *calls) sample() {
	doc := peers.Document{Schema: peers.Schema, Time: epoch.Add(c.at).Truncate(time.Second), ObservedAt: traffic.TC, Endpoints: []peers.Endpoint{}, Peers: []peers.Peer{}}
	for _, p := range slices.Sorted(maps.Keys(c.pods)) {
		doc.Endpoints = append(doc.Endpoints, peers.Endpoint{Who: row(p, c.uids[p], traffic.Counters{}).Who, Connections: c.pods[p]})
	}
	doc.Peers = append(doc.Peers, c.rows...)
	c.rows = nil
	c.docs = append(c.docs, doc)
}

func newFanouts(t testing.TB, in Internal, rules ...string) *Fanouts {
	t.Helper()
	var parsed []Fanout
	for _, text := range rules {
		r, err := ParseFanout(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, r)
	}
	return NewFanouts(parsed, in)
}

// fanned tells what rules find.
func (c *calls) fanned(t *testing.T, in Internal, rules ...string) string {
	t.Helper()
	f := newFanouts(t, in, rules...)
	var lines []string
	for _, doc := range c.docs {
		for _, found := range f.Step(doc) {
			lines = append(lines, tellFanout(doc, found))
		}
	}
	return strings.Join(lines, "\n")
}

func tellFanout(doc peers.Document, f FanoutFinding) string {
	return tellEpisode(doc, f.Episode) + fmt.Sprintf(", %d answered", f.Answered)
}

func tellEpisode(doc peers.Document, e Episode) string {
	return tell(traffic.Document{Time: doc.Time}, Finding{Episode: e})
}

func TestFanout(t *testing.T) {
	gone := newCalls("ab").call("ab", span(0, 5)...).next(time.Second)
	delete(gone.pods, 'a')
	gone.quiet(30)

	two := newCalls("ab")
	two.uids['a'], two.uids['b'] = "u", "u"
	two.call("a", 1, 2, 3).call("b", 3, 4, 5).next(time.Second)

	named := newCalls("a").call("a", 1, 2, 3).next(time.Second)
	named.uids['a'] = "u"
	named.call("a", 4, 5).next(time.Second).quiet(3)

	namedLater := newCalls("ab")
	namedLater.uids['b'] = "u"
	namedLater.call("ab", 1, 2, 3).next(time.Second)
	namedLater.uids['a'] = "u" // who is known by now
	namedLater.call("a", 4, 5).next(time.Second)

	evicted := newCalls("a")
	for range 20 { // the same peer, of whom there is nothing any more each time
		evicted.call("a", 7).call("a", 7).next(time.Second)
	}

	late := newCalls("a").quiet(3)
	for n := range 300 { // one a second, of which one sample tells
		late.call("a", n)
		late.rows[n].LastSeen = epoch.Add(late.at + time.Duration(n+1)*time.Second)
	}
	late.next(300 * time.Second)

	again := newCalls("a").call("a", 1, 2, 3).next(time.Second)
	again.call("a", 4, 5).next(time.Second).docs[2].IntervalSeconds = nil
	again.call("a", 6, 7).next(time.Second)

	switched := newCalls("a").call("a", 1, 2, 3).next(time.Second).call("a", 4, 5, 6).next(time.Second)
	switched.docs[2].ObservedAt = traffic.Cgroup

	missing := newCalls("a").call("a", 1, 2, 3, 4).next(time.Second)
	missing.docs[1].Endpoints = nil // its connections found no room
	missing.call("a", 5).next(time.Second)

	answerLater := newCalls("a").silent("a", span(0, 5)...).next(time.Second)
	for n := range 5 {
		answerLater.row('a', far(n), 443, 0, 1, 0)
	}
	answerLater.next(time.Second)

	mapped := newCalls("a")
	for n := range 5 {
		mapped.row('a', netip.AddrFrom16(far(n).As16()), 443, 1, 1, 0).call("a", n)
	}
	mapped.next(time.Second)

	for _, test := range []struct {
		name, rule string
		calls      *calls
		want       string
	}{
		{"nothing", "1/10s", newCalls("a").quiet(30), ""},
		{"exactly the threshold", "5/10s", newCalls("a").call("a", span(0, 5)...).next(time.Second), "1 a 5 since 1, 5 answered"},
		{"one less", "5/10s", newCalls("a").call("a", span(0, 4)...).next(time.Second), ""},
		{"the same again and again", "5/10s", newCalls("a").each(30, "a", 0, 0).call("a", 1, 1, 2, 2, 3, 3, 4, 4).next(time.Second), ""},
		{"the window slides", "5/10s", newCalls("a").call("a", 1).next(time.Second).quiet(8).call("a", 2, 3, 4).next(time.Second).call("a", 5).next(time.Second), ""},
		{"the window has it just yet", "5/10s", newCalls("a").call("a", 1).next(time.Second).quiet(7).call("a", 2, 3, 4).next(time.Second).call("a", 5).next(time.Second), "10 a 5 since 10, 5 answered"},
		{"contacted again", "5/10s", newCalls("a").call("a", 1).next(time.Second).quiet(8).call("a", 1, 2, 3, 4).next(time.Second).call("a", 5).next(time.Second), "11 a 5 since 11, 5 answered"},
		{"once for all of an episode", "50/10s", newCalls("a").each(500, "a", 0, 10), "5 a 50 since 5, 50 answered"},
		{"it ends", "50/10s", newCalls("a").each(5, "a", 0, 10).quiet(30), "5 a 50 since 5, 50 answered\n22 a 0 from 5 to 12, below, peak 50, 0 answered"},
		{"between end and threshold it goes on", "5/1s", newCalls("a").each(1, "a", 0, 5).each(60, "a", 0, 4).each(3, "a", 0, 3), "1 a 5 since 1, 5 answered\n63 a 3 from 1 to 62, below, peak 5, 3 answered"},
		{"armed again", "5/10s", newCalls("a").call("a", span(0, 5)...).next(time.Second).quiet(20).call("a", span(0, 6)...).next(time.Second),
			"1 a 5 since 1, 5 answered\n21 a 0 from 1 to 11, below, peak 5, 0 answered\n22 a 6 since 22, 6 answered"},
		{"a break shorter than a window", "5/10s", newCalls("a").call("a", span(0, 5)...).next(time.Second).quiet(17).call("a", span(0, 5)...).next(time.Second), "1 a 5 since 1, 5 answered"},
		{"gone in an episode", "5/10s", gone,
			"1 a 5 since 1, 5 answered\n1 b 5 since 1, 5 answered\n21 a 0 from 1 to 11, gone, peak 5, 0 answered\n21 b 0 from 1 to 11, below, peak 5, 0 answered"},
		{"sustained", "5/2s,for=4s", newCalls("a").each(20, "a", 0, 5), "5 a 10 since 1, 10 answered"},
		{"not sustained", "5/2s,for=4s", newCalls("a").call("a", span(0, 5000)...).next(time.Second).quiet(10), ""},
		{"two addresses of a Pod, the same peer once", "5/10s", two, "1 a 5 since 1, 5 answered"},
		{"known only later", "5/10s", named, "2 a 5 since 2, 5 answered"},
		{"a Pod that has been met keeps what it had", "5/10s", namedLater, "2 a 5 since 2, 5 answered"},
		{"evicted and begun anew", "2/60s", evicted, ""},
		{"a late sample", "61/60s", late, ""},
		{"a late sample of a fan-out", "60/60s", late, "303 a 60 since 303, 60 answered"},
		{"another recording", "3/60s", again, "1 a 3 since 1, 3 answered"},
		{"another recording, not across it", "6/60s", again, ""},
		{"another point", "4/60s", switched, ""},
		{"an endpoint that found no room", "5/10s", missing, "2 a 5 since 2, 5 answered"},
		{"nobody answers", "5/10s", newCalls("a").silent("a", span(0, 5)...).next(time.Second), "1 a 5 since 1, 0 answered"},
		{"answered, nobody does", "1/10s,answered", newCalls("a").silent("a", span(0, 5)...).next(time.Second), ""},
		{"answered, some do", "3/10s,answered", newCalls("a").silent("a", span(0, 5)...).call("a", span(5, 3)...).next(time.Second), "1 a 3 since 1, 3 answered"},
		{"answered later", "5/10s,answered", answerLater, "2 a 5 since 2, 5 answered"},
		{"refused", "5/10s", newCalls("a").row('a', far(1), 1, 1, 0, 1).row('a', far(2), 1, 1, 0, 1).next(time.Second), ""},
		{"mapped addresses are the same", "6/10s", mapped, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.calls.fanned(t, Internal{Endpoints: true}, test.rule); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// TestExternal checks which peers don't count.
func TestExternal(t *testing.T) {
	cluster := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("192.0.2.53/32"), netip.MustParsePrefix("2001:db8::/32")}
	c := newCalls("ab")
	for _, to := range []string{"127.0.0.1", "169.254.169.254", "224.0.0.251", "255.255.255.255", "0.0.0.0", "::1", "::", "fe80::1", "ff02::fb", "10.96.0.10", "192.0.2.53", "2001:db8:7::1", "::ffff:10.96.0.10", "10.77.0.98"} {
		c.row('a', netip.MustParseAddr(to), 53, 1, 1, 0)
	}
	c.row('a', netip.MustParseAddr("192.0.2.54"), 53, 1, 1, 0).row('a', netip.MustParseAddr("10.0.0.1"), 53, 1, 1, 0).next(time.Second)
	for _, test := range []struct {
		in   Internal
		want int
	}{
		{Internal{Prefixes: cluster, Endpoints: true}, 2},
		{Internal{Prefixes: cluster}, 3}, // and the other Pod
		{Internal{Endpoints: true}, 5},
		{Internal{}, 6},
	} {
		f := newFanouts(t, test.in, "1/10s")
		f.Step(c.docs[0])
		if found := f.Step(c.docs[1]); len(found) != 1 || found[0].Amount != uint64(test.want) || len(found[0].Peers) != test.want {
			t.Errorf("%+v: %+v", test.in, found)
		}
	}
}

// TestFanoutEstimated checks that an alert says that its numbers are estimated, and so
// does its end, when they are exact again.
func TestFanoutEstimated(t *testing.T) {
	c := newCalls("a").each(5, "a", 0, 2000).quiet(30)
	f := newFanouts(t, Internal{}, "9000/10s")
	var got []string
	for _, doc := range c.docs {
		for _, found := range f.Step(doc) {
			got = append(got, fmt.Sprint(found.Estimated, len(found.Peers)))
			if off := float64(found.Peak)/10_000 - 1; math.Abs(off) > 4*StandardError || found.Ended.IsZero() != (found.Amount > 0) {
				t.Errorf("%+v", found.Episode)
			}
		}
	}
	if want := []string{"true 10", "true 10"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestForgedSource checks that a Pod can't make peers endpoints by sending from their
// addresses, while others' may be.
func TestForgedSource(t *testing.T) {
	c := newCalls("ab").call("a", 1, 2, 3).next(time.Second)
	for i, at := range []byte{'a', 'a', 'b'} { // 1 and 2 are forged, 3 is behind the other one
		forged := row(at, "", traffic.Counters{}).Who
		forged.Address = far(i + 1)
		c.docs[1].Endpoints = append(c.docs[1].Endpoints, peers.Endpoint{Who: forged})
	}
	if got := c.fanned(t, Internal{Endpoints: true}, "2/10s"); got != "1 a 2 since 1, 2 answered" {
		t.Error(got)
	}
}

// TestFanoutPeers checks which peers an alert names: the same in its end.
// TestForgedSources: who sends from as many addresses as it likes fills no memory, and
// nobody who has counters is forgotten for it.
func TestForgedSources(t *testing.T) {
	f, s, c := newFanouts(t, Internal{}, "50/60s"), newScans(t, "50failed/60s"), newCalls("a")
	f.Step(c.docs[0])
	s.Step(c.docs[0])
	for n := range 3 {
		c.call("a", span(100*n, 100)...).next(time.Second)
		doc := &c.docs[len(c.docs)-1]
		forged := doc.Peers[0]
		for i := range mostPlaces / 2 {
			forged.Address = netip.AddrFrom4([4]byte{100, 64 + byte(n), byte(i >> 8), byte(i)})
			doc.Peers = append(doc.Peers, forged)
		}
		_ = f.Step(*doc)
		_ = s.Step(*doc)
	}
	const rest = mostPlaces/2 + 1 // with the Pod's own place
	if len(f.entries) != mostPlaces || len(s.entries) != mostPlaces || f.Lost() != rest || s.Lost() != rest || f.Firing() != 1 {
		t.Errorf("%d and %d places, lost %d and %d, firing %d", len(f.entries), len(s.entries), f.Lost(), s.Lost(), f.Firing())
	}
}

func TestFanoutPeers(t *testing.T) {
	c := newCalls("a").call("a", 40, 41).next(time.Second).call("a", span(0, 9)...).silent("a", 99).next(time.Second).quiet(30)
	for rule, want := range map[string]string{
		"10/10s":          "[198.18.0.0 198.18.0.1 198.18.0.2 198.18.0.3 198.18.0.4 198.18.0.5 198.18.0.6 198.18.0.7 198.18.0.8 198.18.0.99]",
		"11/10s,answered": "[198.18.0.0 198.18.0.1 198.18.0.2 198.18.0.3 198.18.0.4 198.18.0.5 198.18.0.6 198.18.0.7 198.18.0.8 198.18.0.40]",
	} {
		f, n := newFanouts(t, Internal{}, rule), 0
		for _, doc := range c.docs {
			for _, found := range f.Step(doc) {
				if n++; fmt.Sprint(found.Peers) != want {
					t.Errorf("%s: %v", rule, found.Peers)
				}
			}
		}
		if n != 2 {
			t.Errorf("%s: %d alerts", rule, n)
		}
	}
}

// TestEstimate checks that a window is exact up to the limit, and within its error
// above; and that it becomes exact again.
func TestEstimate(t *testing.T) {
	const window = 10_000
	for _, many := range []int{1, 100, mostExact, mostExact + 1, 10_000, 100_000, 1_000_000} {
		c, now := contacts{since: 1e6, pruned: 1e6}, clock(1e6)
		perStep := (many + 9) / 10
		for n := range many {
			if n%perStep == 0 {
				now += 900
			}
			for kind := range 2 {
				if n%(1+kind) == 0 { // half of them answer
					c.add(far(n).As16(), kind, now, now, window)
				}
			}
		}
		n, partly := c.count(1, now, window)
		for kind, want := range []int{many, (many + 1) / 2} {
			if partly {
				n[kind] = c.sketches[kind].estimate(now, window)
			}
			off := float64(n[kind])/float64(want) - 1
			if partly != (many > mostExact) || !partly && off != 0 || math.Abs(off) > 4*StandardError {
				t.Errorf("%d of kind %d: %d, estimated %v", want, kind, n[kind], partly)
			}
		}
		if len(c.last) > mostExact {
			t.Errorf("%d in memory", len(c.last))
		}
		for later := range 8 { // a window later
			now += 2 * window / buckets * 5
			for i := range 10 {
				c.add(far(later*10+i).As16(), attempted, now, now, window)
			}
			n, partly = c.count(0, now, window)
		}
		if partly || n[attempted] != 20 || c.sketches != nil { // the last two steps are in it
			t.Errorf("afterwards: %d, estimated %v", n, partly)
		}
	}
}

// TestEstimateSlides checks that an estimated window has what came in it and in a
// twentieth before.
func TestEstimateSlides(t *testing.T) {
	const window = 20_000
	c, now := contacts{since: 1e6, pruned: 1e6}, clock(1e6)
	for step := range 200 {
		now += 500
		for i := range 500 { // 1,000 a second
			c.add(far(step*500+i).As16(), attempted, now, now, window)
		}
		count, partly := c.count(1, now, window)
		if partly {
			count[attempted] = c.sketches[attempted].estimate(now, window)
		}
		want := min(float64(step+1)*500, 20_000)
		if n := float64(count[attempted]); n < want*(1-4*StandardError) || n > want*1.05*(1+4*StandardError) {
			t.Errorf("step %d: %v of %v", step, n, want)
		}
	}
}

func TestParseFanout(t *testing.T) {
	for text, want := range map[string]string{"50/60s": "", "50/1m": "50/60s", "1/1s,answered": "", "16777216/24h,attempted,for=48h": "16777216/86400s,for=172800s"} {
		f, err := ParseFanout(text)
		if want == "" {
			want = text
		}
		if err != nil || f.String() != want {
			t.Errorf("%s: %s, %v", text, f, err)
		}
	}
	for text, want := range map[string]string{
		"": "no /TIME", "50": "no /TIME", "0/1s": "from 1 to 16777216", "16777217/1s": "from 1 to", "-1/1s": "from 1", "5peers/1s": "from 1 to", "5/1s,": "no option", "5/1s,refused": "no option",
		"5/1s,answered,attempted": "already", "5/1s,answered=1": "no option", "5/10s,for=10s": "shorter than two", "5/10s,for=20s,for=20s": "already", "5/10s,mad=3": "no option", "5/s": "no time",
	} {
		if _, err := ParseFanout(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

func newScans(t testing.TB, rules ...string) *Scans {
	t.Helper()
	var parsed []Scan
	for _, text := range rules {
		r, err := ParseScan(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, r)
	}
	return NewScans(parsed)
}

// scanned tells what rules find, and of what.
func (c *calls) scanned(t *testing.T, rules ...string) string {
	t.Helper()
	s := newScans(t, rules...)
	var lines []string
	for _, doc := range c.docs {
		for _, found := range s.Step(doc) {
			lines = append(lines, tellScan(doc, found))
		}
	}
	return strings.Join(lines, "\n")
}

func tellScan(doc peers.Document, f ScanFinding) string {
	line := tellEpisode(doc, f.Episode)
	if f.Ended.IsZero() {
		line += fmt.Sprintf(" %v", f.Ports)
	}
	return line
}

// knock has a Pod try ports of an address, from one on.
func (c *calls) knock(pod byte, to int, first, many int) *calls {
	for i := range many {
		c.row(pod, far(to), uint16(first+i), 1, 0, 1)
	}
	return c
}

func TestScan(t *testing.T) {
	const ten = "[{198.18.0.1 1} {198.18.0.1 2} {198.18.0.1 3}]"

	overTwo := newCalls("ab")
	overTwo.uids['a'], overTwo.uids['b'] = "u", "u"
	overTwo.knock('a', 1, 1, 2).knock('b', 1, 3, 1).next(time.Second)

	icmp := newCalls("a")
	for n := range 5 {
		icmp.row('a', far(1), 0, 1, 0, 1)
		icmp.rows[n].Peer.Port, icmp.rows[n].Transport = nil, "icmp"
	}
	icmp.next(time.Second)

	udp := newCalls("a")
	for n := range 5 {
		udp.row('a', far(n), 53, 1, 0, 0)
		udp.rows[n].Transport = "udp"
	}
	udp.next(time.Second).quiet(30)

	slow := newCalls("a").silent("a", span(0, 3)...).next(time.Second).quiet(4)
	for n := range 3 {
		slow.row('a', far(n), 443, 0, 1, 0)
	}
	slow.next(time.Second).quiet(30)

	tooSlow := newCalls("a").silent("a", span(0, 3)...).next(time.Second).quiet(6)
	for n := range 3 {
		tooSlow.row('a', far(n), 443, 0, 1, 1)
	}
	tooSlow.next(time.Second).quiet(3)

	older := newCalls("a")
	for n := range 5 { // of attempts before the first sample
		older.row('a', far(n), 443, 0, 0, 1)
	}
	older.next(time.Second)

	busy := newCalls("a")
	for range 100 { // always one on its way
		busy.row('a', far(1), 443, 10, 10, 0).next(time.Second)
	}
	behind := newCalls("a").row('a', far(1), 443, 3, 0, 0).next(time.Second)
	for range 30 {
		behind.row('a', far(1), 443, 3, 3, 0).next(time.Second)
	}

	unknown := newCalls("a").silent("a", span(0, 5)...).next(time.Second).next(time.Second).quiet(20)
	unknown.docs[2].IntervalSeconds = nil

	gone := newCalls("a").silent("a", span(0, 3)...).next(time.Second)
	delete(gone.pods, 'a')
	gone.quiet(10)

	late := newCalls("a").quiet(2)
	for n := range 100 { // one a second, of which one sample tells
		late.row('a', far(1), uint16(n+1), 1, 0, 1)
		late.rows[n].LastSeen = epoch.Add(late.at + time.Duration(n+1)*time.Second)
	}
	late.next(100 * time.Second)

	for _, test := range []struct {
		name, rule string
		calls      *calls
		want       string
	}{
		{"nothing", "1ports/10s", newCalls("a").quiet(20), ""},
		{"exactly the threshold", "3ports/10s", newCalls("a").knock('a', 1, 1, 3).next(time.Second), "1 a 3 since 1 " + ten},
		{"one less", "4ports/10s", newCalls("a").knock('a', 1, 1, 3).next(time.Second), ""},
		{"ports of several peers", "3ports/10s", newCalls("a").knock('a', 1, 1, 2).knock('a', 2, 3, 2).knock('a', 3, 5, 2).next(time.Second), ""},
		{"the same ports again", "3ports/10s", newCalls("a").knock('a', 1, 1, 2).next(time.Second).knock('a', 1, 1, 2).next(time.Second), ""},
		{"the window slides", "3ports/10s", newCalls("a").knock('a', 1, 1, 2).next(time.Second).quiet(9).knock('a', 1, 3, 1).next(time.Second), ""},
		{"within the window", "3ports/10s", newCalls("a").knock('a', 1, 1, 2).next(time.Second).quiet(8).knock('a', 1, 3, 1).next(time.Second), "10 a 3 since 10 " + ten},
		{"two addresses of a Pod", "3ports/10s", overTwo, "1 a 3 since 1 " + ten},
		{"it ends, and begins again", "3ports/10s", newCalls("a").knock('a', 1, 1, 9).next(time.Second).quiet(25).knock('a', 1, 1, 3).next(time.Second),
			"1 a 9 since 1 [{198.18.0.1 1} {198.18.0.1 2} {198.18.0.1 3} {198.18.0.1 4} {198.18.0.1 5} {198.18.0.1 6} {198.18.0.1 7} {198.18.0.1 8} {198.18.0.1 9}]\n21 a 0 from 1 to 11, below, peak 9\n27 a 3 since 27 " + ten},
		{"no ports", "1ports/10s", icmp, ""},
		{"a late sample", "11ports/10s", late, ""},
		{"a late sample of a scan", "10ports/10s", late, "102 a 10 since 102 [{198.18.0.1 91} {198.18.0.1 92} {198.18.0.1 93} {198.18.0.1 94} {198.18.0.1 95} {198.18.0.1 96} {198.18.0.1 97} {198.18.0.1 98} {198.18.0.1 99} {198.18.0.1 100}]"},

		{"refused", "3failed/10s", newCalls("a").knock('a', 1, 1, 3).next(time.Second), "1 a 3 since 1 [{198.18.0.1 3} {198.18.0.1 2} {198.18.0.1 1}]"},
		{"one less refused", "4failed/10s", newCalls("a").knock('a', 1, 1, 3).next(time.Second).quiet(20), ""},
		{"answered", "1failed/10s", newCalls("a").call("a", span(0, 50)...).next(time.Second).quiet(20), ""},
		{"not answered", "3failed/10s", newCalls("a").silent("a", span(0, 3)...).next(time.Second).quiet(10), "6 a 3 since 6 [{198.18.0.2 443} {198.18.0.1 443} {198.18.0.0 443}]"},
		{"answered late", "1failed/10s", slow, ""},
		{"answered too late counts once", "4failed/10s", tooSlow, ""},
		{"what was before the first sample", "1failed/10s", older, ""},
		{"datagrams needn't be answered", "1failed/10s", udp, ""},
		{"what isn't TCP is refused, too", "5failed/10s", icmp, "1 a 5 since 1 [{198.18.0.1 0}]"},
		{"a busy connection", "1failed/10s", busy, ""},
		{"answers a sample later, but for the last", "1failed/10s", behind.quiet(10), "36 a 3 since 36 [{198.18.0.1 443}]"},
		{"another recording", "1failed/10s", unknown, ""},
		{"gone before it has failed", "3failed/1s", gone, "6 a 3 since 6 [{198.18.0.2 443} {198.18.0.1 443} {198.18.0.0 443}]\n8 a 0 from 6 to 7, gone, peak 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.calls.scanned(t, test.rule); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// TestScanRoom checks that memory has a limit, and that what it can't have is counted.
func TestScanRoom(t *testing.T) {
	c := newCalls("a")
	for peer := range 100 {
		c.knock('a', peer, 1, 99).next(time.Second)
	}
	s := newScans(t, "100ports/1h")
	for _, doc := range c.docs {
		if found := s.Step(doc); len(found) > 0 {
			t.Errorf("%+v", found)
		}
		for _, e := range s.endpoints {
			if len(e.states[0].ports.last) > mostPorts {
				t.Fatal("more than there should be")
			}
		}
	}
	if s.Forgot() != 2*mostPorts {
		t.Errorf("%d forgotten", s.Forgot())
	}

	f := newScans(t, "1failed/1s")
	all := newCalls("a")
	for peer := range 3 {
		for port := range 50_000 {
			all.row('a', far(peer), uint16(port), 1, 0, 0)
		}
	}
	all.next(time.Second)
	for _, doc := range all.docs {
		f.Step(doc)
	}
	if f.Forgot() != 150_000-mostAttempts || len(f.attempts.waiting) != mostAttempts {
		t.Errorf("%d forgotten, %d wait", f.Forgot(), len(f.attempts.waiting))
	}
	for _, doc := range all.quiet(6).docs[2:] {
		f.Step(doc)
	}
	if len(f.attempts.waiting) != 0 || len(f.attempts.queue) != 0 {
		t.Errorf("%d wait for ever", len(f.attempts.waiting))
	}
}

func TestParseScan(t *testing.T) {
	for text, want := range map[string]string{"100ports/60s": "", "50failed/1m": "50failed/60s", "1024ports/24h,for=48h": "1024ports/86400s,for=172800s", "16777216failed/1s": ""} {
		s, err := ParseScan(text)
		if want == "" {
			want = text
		}
		if err != nil || s.String() != want {
			t.Errorf("%s: %s, %v", text, s, err)
		}
	}
	for text, want := range map[string]string{
		"": "no /TIME", "100ports": "no /TIME", "100/60s": "neither of ports nor", "1025ports/1s": "from 1 to 1024", "0failed/1s": "from 1 to 16777216", "ports/1s": "from 1", "5 ports/1s": "from 1",
		"5hosts/1s": "neither", "5ports/1s,transmit": "no option", "5ports/0s": "from 1 to 86400", "5PORTS/1s": "neither",
	} {
		if _, err := ParseScan(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// TestConnections checks that connections make bursts as bytes do.
func TestConnections(t *testing.T) {
	c := newCalls("ab").call("a", span(0, 9)...).next(time.Second)
	c.pods['b'] = peers.Connections{Opened: 3, Received: 20} // begun anew
	c.next(time.Second).quiet(30)
	for rule, want := range map[string]string{
		"10connections/10s":          "2 b 23 since 2\n22 b 0 from 2 to 12, below, peak 23",
		"9connections/10s,transmit":  "1 a 9 since 1\n21 a 0 from 1 to 11, below, peak 9",
		"20connections/10s,receive":  "2 b 20 since 2\n22 b 0 from 2 to 12, below, peak 20",
		"21connections/10s,receive":  "",
		"10connections/10s,transmit": "",
		"1B/10s":                     "",
	} {
		d := newDetector(t, rule)
		var lines []string
		for _, doc := range c.docs {
			for _, found := range d.StepPeers(doc) {
				lines = append(lines, tell(traffic.Document{Time: doc.Time}, found))
			}
		}
		if got := strings.Join(lines, "\n"); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", rule, got, want)
		}
	}
}

// TestForgetPeers checks that nothing stays of endpoints that come and go, nor of
// peers whose window is over.
func TestForgetPeers(t *testing.T) {
	c := newCalls("a")
	for i := range 200 {
		delete(c.pods, byte(i))
		c.pods[byte(i+1)], c.uids[byte(i+1)] = peers.Connections{}, fmt.Sprint(i)
		c.silent(string([]byte{byte(i + 1)}), span(i*50, 50)...).next(time.Second)
	}
	f, s := newFanouts(t, Internal{}, "60/10s", "1/5s,for=20s"), newScans(t, "2ports/10s", "100failed/5s")
	most := 0
	for _, doc := range append(c.docs, newCalls("a").quiet(60).docs...) {
		f.Step(doc)
		s.Step(doc)
		most = max(most, len(f.entries), len(f.endpoints), len(s.entries), len(s.endpoints))
	}
	if most > 45 || len(f.endpoints) != 1 || len(s.endpoints) != 1 || len(s.attempts.waiting) != 0 {
		t.Errorf("%d endpoints, in the end %d and %d, %d wait", most, len(f.endpoints), len(s.endpoints), len(s.attempts.waiting))
	}
	for _, e := range f.endpoints {
		if len(e.states[0].last)+len(e.states[1].last) != 0 {
			t.Errorf("peers stay: %d", len(e.states[0].last))
		}
	}
}

// FuzzParsePeers: what is understood is written so that it is understood again, as
// the same rule.
func FuzzParsePeers(f *testing.F) {
	for _, text := range []string{"50/60s", "1/24h,answered,for=48h", "100ports/60s", "50failed/1m,for=2m", "9/", ",/=,"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := ParseFanout(text); err == nil {
			if again, err := ParseFanout(r.String()); err != nil || again != r || r.Peers == 0 || r.Window == 0 {
				t.Errorf("%q is %+v, %q is %+v, %v", text, r, r, again, err)
			}
		}
		if r, err := ParseScan(text); err == nil {
			if again, err := ParseScan(r.String()); err != nil || again != r || r.Amount == 0 || r.Window == 0 {
				t.Errorf("%q is %+v, %q is %+v, %v", text, r, r, again, err)
			}
		}
	})
}
