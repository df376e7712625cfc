package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"bpfnet/internal/fault"
)

type sampleDoc struct {
	Schema string   `json:"schema"`
	Count  uint64   `json:"count"`
	Words  []string `json:"words"`
	Inner  *inner   `json:"inner"`
}

type inner struct {
	Name  string `json:"name"`
	Items []any  `json:"items"`
}

var (
	first  = sampleDoc{"a/v1", 18446744073709551615, []string{"x", "yes", "<&>"}, &inner{"n: 1", []any{}}}
	second = sampleDoc{"a/v1", 2, nil, nil}
)

func sampleTable() Table {
	return Table{
		Header: []string{"name", "rate", "note"},
		Rows:   [][]string{{"a", "1.2 kB", ""}, {"b\x1b[31m", "12 MB", "q"}},
		Footer: []string{"others", "-"},
	}
}

const sampleText = "" +
	"NAME         RATE  NOTE\n" +
	"a          1.2 kB  -\n" +
	"b\\x1b[31m   12 MB  q\n" +
	"others          -  -\n"

func TestFormats(t *testing.T) {
	object := func(p *Printer) error { return p.Object(first, sampleTable) }
	list := func(p *Printer) error { return p.List([]sampleDoc{first, second}, sampleTable) }
	none := func(p *Printer) error {
		return p.List([]sampleDoc(nil), func() Table { return Table{Header: []string{"name"}} })
	}
	stream := func(p *Printer) error {
		return errors.Join(p.Event(second, sampleTable), p.Event(second, sampleTable))
	}
	one := `{"schema":"a/v1","count":18446744073709551615,"words":["x","yes","<&>"],"inner":{"name":"n: 1","items":[]}}` + "\n"
	two := `{"schema":"a/v1","count":2,"words":null,"inner":null}` + "\n"
	for _, test := range []struct {
		name   string
		format Format
		write  func(*Printer) error
		want   string
	}{
		{"table", FormatTable, object, sampleText},
		{"table of nothing", FormatTable, none, "NAME\n"},
		{"table of no object", FormatTable, func(p *Printer) error {
			return p.Object(first, func() Table { return Table{Header: []string{"name"}} })
		}, ""},
		{"table of a sum of nothing", FormatTable, func(p *Printer) error {
			return p.Object(first, func() Table { return Table{Header: []string{"name", "n"}, Footer: []string{"total", "0"}} })
		}, "NAME   N\ntotal  0\n"},
		{"tables of a stream", FormatTable, stream, sampleText + "\n" + sampleText},
		{"json", FormatJSON, object, `{
  "schema": "a/v1",
  "count": 18446744073709551615,
  "words": [
    "x",
    "yes",
    "<&>"
  ],
  "inner": {
    "name": "n: 1",
    "items": []
  }
}
`},
		{"json list", FormatJSON, func(p *Printer) error { return p.List([]int{1, 2}, nil) }, "[\n  1,\n  2\n]\n"},
		{"json list of nothing", FormatJSON, none, "[]\n"},
		{"json stream", FormatJSON, stream, two + two},
		{"compact", FormatCompact, object, one},
		{"compact list", FormatCompact, func(p *Printer) error { return p.List([]int{1, 2}, nil) }, "[1,2]\n"},
		{"compact stream", FormatCompact, stream, two + two},
		{"ndjson", FormatNDJSON, object, one},
		{"ndjson list", FormatNDJSON, list, one + two},
		{"ndjson list of nothing", FormatNDJSON, none, ""},
		{"ndjson stream", FormatNDJSON, stream, two + two},
		{"yaml", FormatYAML, object, `schema: a/v1
count: 18446744073709551615
words:
  - x
  - "yes"
  - <&>
inner:
  name: 'n: 1'
  items: []
`},
		{"yaml list", FormatYAML, func(p *Printer) error { return p.List([]sampleDoc{second, second}, nil) },
			"- schema: a/v1\n  count: 2\n  words: null\n  inner: null\n- schema: a/v1\n  count: 2\n  words: null\n  inner: null\n"},
		{"yaml list of nothing", FormatYAML, none, "[]\n"},
		{"yaml stream", FormatYAML, stream, strings.Repeat("---\nschema: a/v1\ncount: 2\nwords: null\ninner: null\n", 2)},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := test.write(New(&b, test.format)); err != nil || b.String() != test.want {
				t.Errorf("got\n%s%v\nwant\n%s", b.String(), err, test.want)
			}
		})
	}
}

func TestParseFormat(t *testing.T) {
	for _, name := range Formats() {
		if f, err := ParseFormat(name); err != nil || string(f) != name {
			t.Errorf("ParseFormat(%q) = %q, %v", name, f, err)
		}
	}
	if _, err := ParseFormat("xml"); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("ParseFormat(xml): %v", err)
	}
}

func TestTerminal(t *testing.T) {
	var b bytes.Buffer
	p := New(&b, FormatTable, Terminal(true))
	for _, want := range []string{
		"\x1b[?7l\x1b[1mNAME         RATE  NOTE\x1b[0m\n",              // leaves what is above
		"\x1b[4F\x1b[J\x1b[?7l\x1b[1mNAME         RATE  NOTE\x1b[0m\n", // replaces the first
	} {
		b.Reset()
		if err := p.Event(nil, sampleTable); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(b.String(), want) || !strings.HasSuffix(b.String(), "-\n\x1b[?7h") {
			t.Errorf("frame is %q", b.String())
		}
	}
	b.Reset()
	if err := New(&b, FormatTable, Terminal(false)).Object(nil, sampleTable); err != nil || b.String() != sampleText {
		t.Errorf("table without colour is %q, %v", b.String(), err)
	}
}

// TestFit has tables narrower terminals.
func TestFit(t *testing.T) {
	wide := Table{
		Header: []string{"process", "pod", "state", "peer", "rate"},
		Rows: [][]string{
			{"curl/812", "", "established", "[2001:db8:1111:2222:3333:4444:5555:6666]:443", "1.2 MB/s"},
			{"日本語/7", "", "close", "10.0.0.1:80"},
		},
	}
	for columns, want := range map[int]string{
		200: "PROCESS   STATE        PEER                                              RATE\n" +
			"curl/812  established  [2001:db8:1111:2222:3333:4444:5555:6666]:443  1.2 MB/s\n" +
			"日本語/7  close        10.0.0.1:80                                          -\n",
		70: "PROCESS   PEER                                              RATE\n" +
			"curl/812  [2001:db8:1111:2222:3333:4444:5555:6666]:443  1.2 MB/s\n" +
			"日本語/7  10.0.0.1:80                                          -\n",
		40: "PROCESS   PEER                      RATE\n" +
			"curl/812  [2001:db8:…6666]:443  1.2 MB/s\n" +
			"日本語/7  10.0.0.1:80                  -\n",
		10: "PROCESS   PEER          RATE\n" +
			"curl/812  [200…443  1.2 MB/s\n" +
			"日本語/7  10.0…:80         -\n",
	} {
		var b bytes.Buffer
		if err := New(&b, FormatTable).Object(nil, func() Table { return wide.Fit(columns, "pod", "state") }); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%d columns:\n%s\nwant\n%s", columns, b.String(), want)
		}
	}
	if len(wide.Header) != 5 || wide.Rows[0][3][0] != '[' || len(wide.Rows[0]) != 5 {
		t.Errorf("the table is another one: %q", wide)
	}
	if empty := (Table{Header: []string{"a", "b"}}).Fit(1, "b"); len(empty.Header) != 1 {
		t.Errorf("%q", empty.Header)
	}
}

func TestRows(t *testing.T) {
	for _, test := range []struct {
		format Format
		rows   int
		want   string
	}{
		{FormatJSON, 0, "[]\n"},
		{FormatJSON, 2, "[\n  {\"n\":0},\n  {\"n\":1}\n]\n"},
		{FormatCompact, 0, "[]\n"},
		{FormatCompact, 2, "[{\"n\":0},{\"n\":1}]\n"},
		{FormatPretty, 0, "[]\n"},
		{FormatPretty, 2, "[\n  {\n    \"n\": 0\n  },\n  {\n    \"n\": 1\n  }\n]\n"},
		{FormatNDJSON, 0, ""},
		{FormatNDJSON, 2, "{\"n\":0}\n{\"n\":1}\n"},
		{FormatYAML, 0, "[]\n"},
		{FormatYAML, 2, "- \"n\": 0\n- \"n\": 1\n"},
		{FormatTable, 2, "row 0\\x1b\nrow 1\\x1b\n"},
	} {
		var b bytes.Buffer
		rows := New(&b, test.format).Rows()
		for i := range test.rows {
			line := func() string { return fmt.Sprintf("row %d\x1b", i) }
			if err := rows.Add(fmt.Appendf(nil, `{"n":%d}`, i), line); err != nil {
				t.Fatal(err)
			}
		}
		if err := rows.Close(); err != nil || b.String() != test.want {
			t.Errorf("%s, %d rows: %q, %v; want %q", test.format, test.rows, b.String(), err, test.want)
		}
	}
}

// TestStream checks that a stream writes what was added when it is flushed, in
// one piece.
func TestStream(t *testing.T) {
	for format, want := range map[Format]string{
		FormatJSON:    "{\"n\":0}\n{\"n\":1}\n",
		FormatCompact: "{\"n\":0}\n{\"n\":1}\n",
		FormatNDJSON:  "{\"n\":0}\n{\"n\":1}\n",
		FormatYAML:    "---\n\"n\": 0\n---\n\"n\": 1\n",
		FormatTable:   "event 0\\x1b\nevent 1\\x1b\n",
	} {
		var w pieces
		stream := New(&w, format).Stream()
		for range 2 {
			for i := range 2 {
				line := func() string { return fmt.Sprintf("event %d\x1b", i) }
				if err := stream.Add(fmt.Appendf(nil, `{"n":%d}`, i), line); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := stream.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !slices.Equal(w, pieces{want, want}) {
			t.Errorf("%s: wrote %q, want %q twice", format, w, want)
		}
	}
}

// pieces is a writer that keeps each write apart.
type pieces []string

func (p *pieces) Write(b []byte) (int, error) {
	*p = append(*p, string(b))
	return len(b), nil
}

// TestRowsLeaveTheirInput checks that what follows an item in the caller's
// buffer stays as it is.
func TestRowsLeaveTheirInput(t *testing.T) {
	for _, format := range Formats() {
		buffer := []byte("12345")
		rows := New(io.Discard, Format(format)).Rows()
		if err := rows.Add(buffer[:2], func() string { return "" }); err != nil || string(buffer) != "12345" {
			t.Errorf("%s: buffer is %q, %v", format, buffer, err)
		}
	}
}

// TestRowsMemory checks that writing a row keeps nothing of it.
func TestRowsMemory(t *testing.T) {
	for _, format := range []Format{FormatJSON, FormatNDJSON, FormatTable} {
		rows := New(io.Discard, format).Rows()
		item := []byte(`{"key":"10.0.0.1","value":1}`)
		line := func() string { return "10.0.0.1 1" }
		perRow := testing.AllocsPerRun(10000, func() {
			if err := rows.Add(item, line); err != nil {
				t.Fatal(err)
			}
		})
		if perRow > 2 {
			t.Errorf("%s: %.1f allocations a row", format, perRow)
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "",
		"veth-a":                "veth-a",
		"grüße, 世界":             "grüße, 世界",
		"a\nb\tc\rd":            `a\nb\tc\rd`,
		"\x1b[31mred\x1b[0m":    `\x1b[31mred\x1b[0m`,
		"\x00\x7f\u0085\u009b1": `\x00\x7f\x85\x9b1`,
		"abc\u202egpj.exe":      `abc\u202egpj.exe`,
		"\u2066x\u2069\u200b":   `\u2066x\u2069\u200b`,
		"a\xffb":                `a\xffb`,
		"\u2028":                `\u2028`,
		"\U000e0041":            `\udb40\udc41`,
		`back\slash`:            `back\slash`,
		"\ufffd":                "\ufffd",
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzEscape(f *testing.F) {
	for _, seed := range []string{"plain", "\x1b]0;x\a", "\u202e", "\xf0\x9f", "a\nb"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := Escape(text)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, unsafe) {
			t.Fatalf("Escape(%q) = %q is not safe", text, got)
		}
		if Escape(got) != got {
			t.Fatalf("Escape(%q) = %q changes when it is escaped again", text, got)
		}
	})
}

// FuzzDocuments checks that every format says the same, safely, whatever the
// text and the number.
func FuzzDocuments(f *testing.F) {
	for _, seed := range []string{"", "yes", "10:20:30", "0x1f", "1e3", "~", "- a", "a: b", "# c", "a\nb\n", "\u202e\x1b\U000e0041", "'\"\\", "<&>", "\\u003c", "null", ".inf", "é"} {
		f.Add(seed, int64(-5))
	}
	f.Fuzz(func(t *testing.T, text string, n int64) {
		if !utf8.ValidString(text) || len(text) > 100 {
			return // JSON replaces what isn't UTF-8; YAML has no long keys, and we have none
		}
		doc := map[string]any{"text": text, text: []any{text, n, nil, true, map[string]any{}, []any{map[string]any{"k": text}}}}
		var fromJSON, fromYAML any
		decode(t, doc, FormatJSON, json.Unmarshal, &fromJSON)
		decode(t, doc, FormatYAML, yaml.Unmarshal, &fromYAML)
		want, err := json.Marshal(fromJSON)
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(fromYAML)
		if err != nil || !bytes.Equal(got, want) && !reflect.DeepEqual(fromJSON, fromYAML) {
			t.Fatalf("YAML says %s, JSON %s, %v", got, want, err)
		}
	})
}

func decode(t *testing.T, doc any, format Format, unmarshal func([]byte, any) error, into any) {
	t.Helper()
	var b bytes.Buffer
	if err := New(&b, format).Object(doc, nil); err != nil {
		t.Fatal(err)
	}
	if i := strings.IndexFunc(b.String(), func(r rune) bool { return r != '\n' && unsafe(r) }); i >= 0 {
		t.Fatalf("%s has an unsafe character at %d: %q", format, i, b.String())
	}
	if err := unmarshal(b.Bytes(), into); err != nil {
		t.Fatalf("%s %q: %v", format, b.String(), err)
	}
}

func TestUnits(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{Bytes(0), "0 B"},
		{Bytes(999), "999 B"},
		{Bytes(1000), "1.0 kB"},
		{Bytes(9949), "9.9 kB"},
		{Bytes(12345), "12 kB"},
		{Bytes(999499), "999 kB"},
		{Bytes(999500), "1.0 MB"},
		{Bytes(1 << 63), "9.2 EB"},
		{Bytes(1<<64 - 1), "18 EB"},
		{Rate(0), "0 B/s"},
		{Rate(1.25), "1.2 B/s"},
		{Rate(1.25e6), "1.2 MB/s"},
		{Rate(-1), "0 B/s"},
		{Count(9999), "9999"},
		{Count(10000), "10 k"},
		{Count(1234567), "1.2 M"},
		{PerSecond(0), "0 /s"},
		{PerSecond(0.5), "0.5 /s"},
		{PerSecond(14_880_952), "15 M/s"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}

func TestNumber(t *testing.T) {
	for text, want := range map[string]bool{
		"0": true, "-1": true, "1.5": true, "5%": true, "1.2 kB": true, "3 M/s": true, "57 ns": true, "12 k": true,
		"": false, "-": false, "10.0.0.1": false, "2 links": false, "1a": false, "eth0": false, "80/tcp": false,
	} {
		if number(text) != want {
			t.Errorf("number(%q) = %v", text, !want)
		}
	}
}
