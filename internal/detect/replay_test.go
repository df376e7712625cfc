package detect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"bpfnet/internal/fault"
	"bpfnet/internal/traffic"
)

// recorded writes samples as watch pods does.
func (f *feed) recorded(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	for _, doc := range f.docs {
		if err := json.NewEncoder(&b).Encode(doc); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// replayed is feed.found of a recording.
func replayed(text string, d *Detector) (string, error) {
	var lines []string
	err := Replay(strings.NewReader(text), "in", func(s Sample) error {
		if s.Pods == nil {
			return nil
		}
		for _, found := range d.Step(*s.Pods) {
			lines = append(lines, tell(*s.Pods, found))
		}
		return nil
	})
	return strings.Join(lines, "\n"), err
}

// TestReplay checks that a recording gives what the samples did.
func TestReplay(t *testing.T) {
	f := newFeed("ab")
	f.uids['a'] = "u"
	f.send(1234*time.Millisecond, "ab", 10_000).steadily(30, "b", 5).send(time.Second, "b", 20_000)
	want := f.found(t, "10kB/10s")
	text := f.recorded(t)
	for _, input := range []string{text, "\n" + strings.ReplaceAll(text, "\n", "\r\n\n"), strings.TrimSuffix(text, "\n")} {
		if got, err := replayed(input, newDetector(t, "10kB/10s")); got != want || err != nil || want == "" {
			t.Errorf("got\n%s\nwant\n%s, %v", got, want, err)
		}
	}
}

// recorded writes samples as watch peers does.
func (c *calls) recorded(t testing.TB) string {
	t.Helper()
	var b bytes.Buffer
	for _, doc := range c.docs {
		if err := json.NewEncoder(&b).Encode(doc); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// replayedPeers is fanned and scanned of a recording, and the bursts of connections.
func replayedPeers(t testing.TB, text string) (string, error) {
	t.Helper()
	fanouts := newFanouts(t, Internal{Endpoints: true}, "5/10s", "50/60s,answered", "6000/24h,for=48h")
	scans := newScans(t, "3ports/10s", "2failed/2s,for=4s")
	bursts := newDetector(t, "5connections/10s,mad=2", "10connections/10s,transmit")
	var lines []string
	err := Replay(strings.NewReader(text), "in", func(s Sample) error {
		if s.Peers == nil {
			return nil
		}
		for _, f := range fanouts.Step(*s.Peers) {
			lines = append(lines, tellFanout(*s.Peers, f), fmt.Sprint(f.Peers, f.Estimated))
		}
		for _, f := range scans.Step(*s.Peers) {
			lines = append(lines, tellScan(*s.Peers, f))
		}
		for _, f := range bursts.StepPeers(*s.Peers) {
			lines = append(lines, tell(traffic.Document{Time: s.Peers.Time}, f))
		}
		return nil
	})
	return strings.Join(lines, "\n"), err
}

// TestReplayPeers checks that a recording of peers gives what the samples did, also
// with one of Pods before, behind or between its lines.
func TestReplayPeers(t *testing.T) {
	c := newCalls("ab").call("a", span(0, 20)...).next(time.Second).knock('b', 1, 1, 20).silent("b", 8).next(time.Second).quiet(40)
	want := c.fanned(t, Internal{Endpoints: true}, "5/10s")
	text := c.recorded(t)
	pods := strings.SplitAfter(newFeed("a").steadily(60, "a", 9).recorded(t), "\n")
	all := strings.Join(pods, "")
	mixed := ""
	for i, line := range strings.SplitAfter(text, "\n") {
		mixed += pods[i] + line
	}
	alone, err := replayedPeers(t, text)
	if err != nil || want == "" || !strings.HasPrefix(alone, strings.SplitAfter(want, "\n")[0][:10]) {
		t.Fatalf("got\n%s\nwant\n%s, %v", alone, want, err)
	}
	for _, input := range []string{text + all, all + text, mixed} {
		if got, err := replayedPeers(t, input); got != alone || err != nil {
			t.Errorf("got\n%s\nwant\n%s, %v", got, alone, err)
		}
	}
	lines := strings.SplitAfter(text, "\n")
	lines[1], lines[2] = lines[2], lines[1]
	if _, err := replayedPeers(t, all+strings.Join(lines, "")); err == nil || !strings.Contains(err.Error(), "it is of before line") {
		t.Errorf("peers out of order: %v", err)
	}
}

func TestReplayPeersWrong(t *testing.T) {
	good := strings.TrimSuffix(newCalls("").call("a", 1).next(time.Second).recorded(t), "\n")
	good = good[strings.Index(good, "\n")+1:]
	for _, test := range []struct{ old, new, want string }{
		{`"endpoints":[`, `"x":[`, "in:1:1: endpoints is missing"},
		{`"peers":[`, `"x":[`, "in:1:1: peers is missing"},
		{`"loss":{"peers":0`, `"loss":{"x":0`, "in:1:1: loss.peers or loss.endpoints is missing"},
		{`"others":{"peers":0,"endpoints":0}`, `"others":{}`, "in:1:1: others.endpoints is missing"},
		{`"connections_opened"`, `"x"`, `in:1:1: endpoints\[0\]: a counter is missing`},
		{`"address":"198.18.0.1"`, `"address":"far"`, `in:1:1: peers\[0\]: peer.address "far" isn't one`},
		{`"port":443`, `"port":65536`, `in:1:[0-9]+: peers.*port can't be a JSON number 65536`},
		{`"transport":"tcp",`, "", `in:1:1: peers\[0\]: transport is missing`},
		{`"last_seen"`, `"x"`, `in:1:1: peers\[0\]: last_seen is missing`},
		{`"peers":[{"address":"10.77.0.97"`, `"peers":[{"address":""`, `in:1:1: peers\[0\]: address "" isn't one`},
	} {
		text := strings.Replace(good, test.old, test.new, 1)
		if _, err := replayedPeers(t, text); err == nil || !regexp.MustCompile("^"+test.want).MatchString(err.Error()) {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
}

// TestReplayMissing checks that traffic of lines that are missing doesn't count as
// that of one interval.
func TestReplayMissing(t *testing.T) {
	lines := strings.SplitAfter(newFeed("a").steadily(300, "a", 900).recorded(t), "\n")
	thinned := ""
	for i := 0; i < len(lines); i += 7 {
		thinned += lines[i]
	}
	if got, err := replayed(thinned, newDetector(t, "10kB/10s")); got != "" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	two := newFeed("a").steadily(3, "a", 1).recorded(t)
	if got, err := replayed(two+two, newDetector(t, "10kB/10s")); err == nil || !strings.Contains(err.Error(), "in:5:1: it begins a recording, at a time before that of line 4") {
		t.Errorf("%s, %v", got, err)
	}
}

// TestReplayOutOfOrder checks that lines that were swapped are no burst, while a clock
// that was set back is neither a burst nor an error.
func TestReplayOutOfOrder(t *testing.T) {
	f := newFeed("a").steadily(5, "a", 1)
	for i := range f.docs {
		f.docs[i].Total = f.docs[i].Pods[0].Traffic
	}
	lines := strings.SplitAfter(f.recorded(t), "\n")
	lines[3], lines[4] = lines[4], lines[3]
	got, err := replayed(strings.Join(lines, ""), newDetector(t, "10kB/10s"))
	if got != "" || !errors.Is(err, fault.ErrUsage) || !strings.HasPrefix(err.Error(), "in:5:1: it is of before line 4") {
		t.Errorf("%s, %v", got, err)
	}
	for i := range f.docs[3:] {
		f.docs[3+i].Time = f.docs[3+i].Time.Add(-time.Hour)
	}
	if got, err := replayed(f.recorded(t), newDetector(t, "10kB/10s")); got != "" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

func TestReplayWrong(t *testing.T) {
	good := strings.TrimSuffix(newFeed("a").recorded(t), "\n")
	for _, test := range []struct{ old, new, want string }{
		{good, "POD CONTAINER", "in:1:1: invalid character 'P'"},
		{good, good[:50], "in:1:50: unexpected end of JSON input"},
		{good, good + "{}", fmt.Sprintf("in:1:%d: invalid character '{' after top-level value", len(good)+1)},
		{good, good + "\n\n[]", "in:3:1: a document can't be a JSON array"},
		{traffic.Schema, "bpfnet.pods/v2", `in:1:1: the schema is "bpfnet.pods/v2"`},
		{`"time":"2026-01-02T03:04:05Z",`, "", "in:1:1: time is missing"},
		{`2026-01-02T`, "2026-13-02T", "in:1:1: .*month"},
		{`"observed_at":"tc"`, `"observed_at":"xdp"`, "in:1:1: observed_at is .xdp., neither"},
		{`"interval_seconds":null`, `"interval_seconds":-1`, "in:1:1: interval_seconds is -1"},
		{`"interval_seconds":null`, `"interval_seconds":"1"`, "in:1:[0-9]+: interval_seconds can't be a JSON string"},
		{`"transmit_bytes":1000000000000`, `"transmit_bytes":-1`, "in:1:[0-9]+: pods.*transmit_bytes can't be a JSON number -1"},
		{`"transmit_bytes"`, `"transmitted"`, `in:1:1: pods\[0\]: a counter is missing`},
		{`"ifindex":97`, `"ifindex":null`, `in:1:1: pods\[0\]: ifindex is missing`},
		{`"observed_at":"tc"`, `"observed_at":"cgroup"`, `in:1:1: pods\[0\]: cgroup_id "" isn't one`},
		{"10.77.0.97", "web", `in:1:1: pods\[0\]: address "web" isn't one`},
		{`"loss":{"map_full":0}`, `"loss":{}`, "in:1:1: loss.map_full is missing"},
		{`,"others":{`, `,"x":{`, "in:1:1: others.pods is missing"},
		{`"pods":[`, `"x":[`, "in:1:1: pods is missing"},
	} {
		text := strings.Replace(good, test.old, test.new, 1)
		_, err := replayed(text, newDetector(t, "1B/1s"))
		if !errors.Is(err, fault.ErrUsage) || !regexp.MustCompile("^"+test.want).MatchString(err.Error()) {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
	if err := Replay(iotest.ErrReader(io.ErrUnexpectedEOF), "in", nil); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fault.ErrUsage) {
		t.Error(err)
	}
	long := io.MultiReader(strings.NewReader(good+"\n"), io.LimitReader(spaces{}, longestLine+1))
	if err := Replay(long, "in", func(Sample) error { return nil }); err == nil || !strings.HasPrefix(err.Error(), "in:2:67108864: a line is longer") {
		t.Error(err)
	}
}

type spaces struct{}

func (spaces) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

// FuzzReplay: whatever a recording has, it is refused by line and column or gives
// the same each time, and what is found is what the rules say.
func FuzzReplay(f *testing.F) {
	feed := newFeed("ab").steadily(3, "a", 3000)
	feed.uids['b'] = "u"
	text := feed.send(30*time.Second, "ab", 90_000).steadily(5, "b", 1).recorded(f)
	for _, seed := range []string{
		text, text[:900], strings.ReplaceAll(text, `"interval_seconds":1,`, `"interval_seconds":0,`), strings.ReplaceAll(text, "2026", "9999"),
		strings.ReplaceAll(text, "1000000000000", "18446744073709551615"), strings.ReplaceAll(text, `"interval_seconds":1,`, `"interval_seconds":1e9,`),
		strings.ReplaceAll(text, `"tc"`, `"cgroup"`), "{}", "\n\n[", strings.ReplaceAll(text, "T03:04:1", "T02:04:1"),
	} {
		f.Add(seed)
	}
	calls := newCalls("ab").call("a", span(0, 20)...).next(time.Second).knock('b', 1, 1, 20).silent("b", 8, 9).next(time.Second).quiet(12).recorded(f)
	for _, seed := range []string{
		calls, text + calls, calls[:3000], strings.ReplaceAll(calls, `"new_answers":1`, `"new_answers":18446744073709551615`), strings.ReplaceAll(calls, `"tc"`, `"cgroup"`),
		strings.ReplaceAll(calls, `"interval_seconds":1,`, `"interval_seconds":1e9,`), strings.ReplaceAll(calls, `"last_seen":"2026`, `"last_seen":"0001`), strings.ReplaceAll(calls, "198.18.0", "fe80::"),
	} {
		f.Add(seed)
	}
	place := regexp.MustCompile(`^in:[0-9]+:[0-9]+: `)
	f.Fuzz(func(t *testing.T, text string) {
		rules := []string{"2kB/1s", "10kB/10s,transmit,for=20s", "1B/24h,mad=0.1", "3packets/1s,receive,mad=3"}
		first, err := replayed(text, newDetector(t, rules...))
		second, again := replayed(text, newDetector(t, rules...))
		firstPeers, _ := replayedPeers(t, text)
		if secondPeers, _ := replayedPeers(t, text); firstPeers != secondPeers {
			t.Errorf("%s\nand\n%s", firstPeers, secondPeers)
		}
		if first != second || (err == nil) != (again == nil) {
			t.Errorf("%s, %v\nand\n%s, %v", first, err, second, again)
		}
		if err != nil && (!errors.Is(err, fault.ErrUsage) || !place.MatchString(err.Error())) {
			t.Error(err)
		}
	})
}
