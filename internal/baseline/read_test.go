package baseline

import (
	"bytes"
	"errors"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"bpfnet/internal/fault"
)

// example is a file as somebody may have edited it.
const example = `{
  "schema": "bpfnet.baseline/v1",
  "window_seconds": 60,
  "learned_from": null,
  "learned_until": "2026-01-19T01:00:00+01:00",
  "endpoints": [
    {
      "endpoint": "workload:shop/web",
      "peers": ["192.0.2.1", "10.0.0.0/8"],
      "ports": ["443/tcp", "udp"],
      "volume": [
        {"hour": "tue 08", "windows": 60, "transmit_bytes": {"median": 1, "mad": 2, "most": 3}, "transmit_packets": {"median": 4, "mad": 5, "most": 6}, "receive_bytes": {"median": 7, "mad": 8, "most": 9}, "receive_packets": {"median": 10, "mad": 11, "most": 12}},
        {"hour": "mon 08", "windows": 60, "transmit_bytes": {"median": 1, "mad": 2, "most": 3}, "transmit_packets": {"median": 4, "mad": 5, "most": 6}, "receive_bytes": {"median": 7, "mad": 8, "most": 9}, "receive_packets": {"median": 10, "mad": 11, "most": 12}}
      ]
    },
    {"endpoint": "container:db", "peers": null}
  ]
}
`

func TestRead(t *testing.T) {
	d, err := Read([]byte(example), "f")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(d.Names(), " "); got != "container:db workload:shop/web" || d.Endpoints[0].Ports != nil || d.Endpoints[1].Volume[0].Hour != "mon 08" ||
		d.LearnedUntil.String() != "2026-01-19 00:00:00 +0000 UTC" || d.Endpoints[1].Volume[1].ReceivePackets != (Usual{10, 11, 12}) {
		t.Errorf("%s: %+v", got, d)
	}
	again, err := Read(d.Encode(), "f")
	if err != nil || !reflect.DeepEqual(again, d) {
		t.Errorf("%v\n%s", err, again.Encode())
	}
	one, ok := d.Find("container:db")
	if _, none := d.Find("db"); !ok || none || len(one.Endpoints) != 1 || len(d.Endpoints) != 2 {
		t.Errorf("%v: %+v", ok, one)
	}
}

func TestReadWrong(t *testing.T) {
	for _, test := range []struct{ old, new, want string }{
		{example, "", "1:1: the file ends in the middle"},
		{example, "\n  ", "2:3: the file ends in the middle"},
		{example, "POD  CONTAINER", "1:1: invalid character 'P'"},
		{example, "[]", "1:1: the baseline isn't an object"},
		{example, example[:120], "5:37: the file ends in the middle"},
		{example, example + "{}", "19:1: there is more behind the baseline"},
		{"bpfnet.baseline/v1", "bpfnet.pods/v1", `2:13: the schema is "bpfnet.pods/v1", not bpfnet.baseline/v1`},
		{`"schema"`, `"scheme"`, `2:3: the baseline has no "scheme"`},
		{`  "window_seconds": 60,`, "", "1:1: the baseline: window_seconds is missing"},
		{`: 60,`, ": 7,", "3:21: a window of 7s isn't a whole part of an hour"},
		{`: 60,`, ": 60.5,", "3:21: window_seconds isn't an integer from 1 to 3600"},
		{`: 60,`, `: "60",`, "3:21: window_seconds isn't an integer"},
		{`+01:00"`, `"`, "5:20: learned_until isn't a time"},
		{`2026-01-19T01:00:00+01:00`, "9999-12-31T23:59:59-01:00", "5:20: learned_until isn't a time"},
		{`"learned_from": null`, `"learned_until": null`, `5:3: the baseline has "learned_until" twice`},
		{`"workload:shop/web"`, `"shop/web"`, `8:19: endpoint "shop/web" doesn't begin with workload:`},
		{`"workload:shop/web"`, `"container:db"`, `16:18: endpoint "container:db" is there twice`},
		{`"endpoint": "container:db", `, ``, "16:5: an endpoint: endpoint is missing"},
		{`"192.0.2.1"`, `"192.0.2.1/33"`, `9:17: peer "192.0.2.1/33" is neither an address nor a prefix`},
		{`"10.0.0.0/8"`, `"10.0.0.1/8"`, `9:30: peer "10.0.0.1/8" has bits behind its length: 10.0.0.0/8`},
		{`"10.0.0.0/8"`, `8`, `9:30: one of peers isn't a string`},
		{`["192.0.2.1", "10.0.0.0/8"]`, `"192.0.2.1"`, `9:16: peers isn't an array`},
		{`"443/tcp"`, `"tcp/443"`, `10:17: port "tcp/443" isn't like 443/tcp`},
		{`"443/tcp"`, `"65536/tcp"`, `10:17: port "65536/tcp" isn't`},
		{`"tue 08"`, `"tue 24"`, `12:18: hour "tue 24" isn't like "mon 08"`},
		{`"tue 08"`, `"mon 08"`, `13:18: hour "mon 08" is there twice`},
		{`"windows": 60, `, ``, "12:9: a volume: windows is missing"},
		{`"windows": 60`, `"windows": 0`, "12:39: windows isn't an integer from 1"},
		{`"median": 1,`, `"median": -1,`, "12:72: median isn't an integer from 0"},
		{`"median": 1,`, `"median": 1e3,`, "12:72: median isn't an integer from 0"},
		{`"median": 1,`, `"mean": 1,`, `12:62: transmit_bytes has no "mean"`},
		{`"mad": 2, `, ``, "12:61: transmit_bytes: mad is missing"},
		{`"peers": null}`, `"peers": null},`, "17:2: invalid character ']'"},
	} {
		text := strings.Replace(example, test.old, test.new, 1)
		_, err := Read([]byte(text), "f")
		if !errors.Is(err, fault.ErrUsage) || !strings.HasPrefix(err.Error(), "f:"+test.want) {
			t.Errorf("%v, want %s", err, test.want)
		}
	}
}

// FuzzRead: whatever a file has, it is refused by line and column, or it is written so
// that it is read as the same, and rules can be applied to it.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{example, "", "{}", example[:500], strings.ReplaceAll(example, "60", "4611686018427387904"), strings.ReplaceAll(example, "shop", `\u202e`)} {
		f.Add([]byte(seed))
	}
	place := regexp.MustCompile(`^f:[0-9]+:[0-9]+: `)
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Read(text, "f")
		if err != nil {
			if !errors.Is(err, fault.ErrUsage) || !place.MatchString(err.Error()) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		written := d.Encode()
		again, err := Read(written, "f")
		if err != nil || !reflect.DeepEqual(again, d) || bytes.ContainsFunc(written, func(r rune) bool { return r >= 0x7f || r < ' ' && r != '\n' }) {
			t.Errorf("%q: %v\n%s", text, err, written)
		}
		feed, check := newFeed("web", "db-0"), NewCheck(d, Rule{Score: 1})
		learner := Learn(d)
		for range 4 {
			feed.move("web", 1e9).meet("web", "443/tcp", "192.0.2.1", "fd00::1").learn(learner)
			feed.check(check)
			feed.wait(check.window)
		}
		if _, err := Read(learner.Document().Encode(), "learned"); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if changes := Diff(d, d, 1); len(changes) != 0 {
			t.Errorf("it differs from itself: %+v", changes)
		}
	})
}
