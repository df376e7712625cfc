package feed

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"bpfnet/internal/fault"
)

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// told is all that a reading says, line by line: entries, refusals, the error.
func told(input io.Reader, o Options) string {
	var b strings.Builder
	o.Now = now
	err := Read(input, o,
		func(e Entry) error { fmt.Fprintln(&b, shown(e)); return nil },
		func(e LineError) { fmt.Fprintln(&b, e) })
	if err != nil {
		fmt.Fprintln(&b, "error:", err)
	}
	for _, hint := range fault.Hints(err) {
		fmt.Fprintln(&b, "hint:", hint)
	}
	return b.String()
}

func shown(e Entry) string {
	text := fmt.Sprintf("%d:%d %s", e.Line, e.Column, e.Domain)
	if e.Prefix.IsValid() {
		text += e.Prefix.String()
	}
	if e.List != "" {
		text += " list=" + e.List
	}
	if !e.Expires.IsZero() {
		text += " until=" + e.Expires.Format(time.RFC3339)
	}
	if e.Reason != "" {
		text += fmt.Sprintf(" %q", e.Reason)
	}
	return text
}

// TestSamples reads the files of testdata; UPDATE=1 writes what is told of them.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".golden") {
			continue
		}
		for _, domains := range []bool{false, true} {
			checkSample(t, file, domains)
		}
	}
}

func checkSample(t *testing.T, file string, domains bool) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Name: filepath.Base(file), Domains: domains}
	got := told(strings.NewReader(string(text)), o)
	if bytewise := told(iotest.OneByteReader(strings.NewReader(string(text))), o); bytewise != got {
		t.Errorf("%s: read byte by byte:\n%s", file, bytewise)
	}
	golden := file + ".golden"
	if domains {
		golden = file + ".domains.golden"
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || got != string(want) {
		t.Errorf("%s: %v: got\n%s", golden, err, got)
	}
}

func TestDetect(t *testing.T) {
	for line, want := range map[string]Format{
		"":                            FormatLines,
		"192.0.2.1":                   FormatLines,
		"evil.example":                FormatLines,
		"2001:db8::":                  FormatLines,
		"192.0.2.0/24 ; SBL1, SBL2":   FormatLines,
		"192.0.2.0/24\t; SBL1":        FormatLines,
		"192.0.2.0/24\t\t# a,b":       FormatLines,
		"evil.example#a,b":            FormatLines,
		"192.0.2.1 - 192.0.2.9":       FormatLines,
		"192.0.2.1 // a, b":           FormatLines,
		"what is this":                FormatLines,
		"0.0.0.0 evil.example":        FormatHosts,
		"127.0.0.1\tlocalhost # a, b": FormatHosts,
		"fe80::1%lo0 localhost":       FormatHosts,
		"192.0.2.1,x":                 FormatCSV,
		"192.0.2.1;x":                 FormatCSV,
		"192.0.2.1\tsome text":        FormatCSV,
		"\"192.0.2.1\"":               FormatCSV,
		"first seen,ip":               FormatCSV,
		"create bad hash:ip":          FormatIPSet,
		"add bad 192.0.2.1":           FormatIPSet,
		"add table 192.0.2.1":         FormatIPSet,
		"table inet filter {":         FormatNFT,
		"add element ip a b {":        FormatNFT,
		"flush ruleset":               FormatNFT,
		"flush bad":                   FormatIPSet,
		"elements = { 192.0.2.1 }":    FormatNFT,
		"[":                           FormatJSON,
		"{":                           FormatJSON,
		`{"a": [`:                     FormatJSON,
		`{"cidr":"192.0.2.0/24"}`:     FormatNDJSON,
		"---":                         FormatYAML,
		"- 192.0.2.1":                 FormatYAML,
		"schema: bpfnet.blocklist/v1": FormatYAML,
		"entries:":                    FormatYAML,
		"dead:beef::":                 FormatLines,
		"https://evil.example/a":      FormatLines,
	} {
		if got := formatOf([]byte(line)); got != want {
			t.Errorf("%q is %v, want %v", line, got, want)
		}
	}
}

func TestParseFormat(t *testing.T) {
	for i, word := range Formats() {
		if f, err := ParseFormat(word); err != nil || f != Format(i) || f.String() != word {
			t.Errorf("ParseFormat(%q) = %v, %v", word, f, err)
		}
	}
	_, err := ParseFormat("jsn")
	if !errors.Is(err, fault.ErrUsage) || !slices.Equal(fault.Hints(err), []string{"did you mean json?"}) {
		t.Error(err, fault.Hints(err))
	}
}

// TestRead has what the samples don't.
func TestRead(t *testing.T) {
	for _, c := range []struct{ name, input, want string }{
		{"lines", "", ""},
		{"lines", "192.0.2.1", "1:1 192.0.2.1/32\n"},
		{"lines", "x", "f:1:1: x is not a domain: it has a single label\n"},
		{"lines", "\n  300.1.2.3 # x", "f:2:3: 300.1.2.3 is not an address\n"},
		{"lines", "192.0.2.1 198.51.100.1", "f:1:11: 198.51.100.1 stands behind an entry and is no comment\n"},
		{"lines", "192.0.2.1\t-\t192.0.2.0", "f:1:1: \"192.0.2.1\\t-\\t192.0.2.0\" is not a range: its end is before its beginning\n"},
		{"lines", "192.0.2.1 -", "f:1:1: \"\" is not an address\n"},
		{"lines", "http://evil.example/x", "f:1:1: http://evil.example/x is a URL: only addresses, prefixes and domains can be listed\n"},
		{"lines", "evil.example/x", "f:1:1: evil.example/x is neither an address, a prefix nor a domain\n"},
		{"lines", "192.0.2.1#a\x01b\xff\x1b[0m", "1:1 192.0.2.1/32 \"a b\ufffd [0m\"\n"},
		{"lines", "192.0.2.1 #" + strings.Repeat("é", 100), "1:1 192.0.2.1/32 \"" + strings.Repeat("é", 63) + "\"\n"},
		{"lines", "a\x00b", "error: f:1:2: a NUL byte: this is not text\n"},
		{"lines", "192.0.2.1\nevil.example\nbad.example", "1:1 192.0.2.1/32\n2:1 evil.example\n3:1 bad.example\n"},
		{"auto", "<!DOCTYPE html>", "error: read f: this is HTML or XML, not a list\nhint: the server may have answered with an error page\n"},
		{"auto", "\xff\xfe1\x00", "error: read f: this is UTF-16, not text in UTF-8\nhint: convert it first: iconv -f UTF-16 -t UTF-8\n"},
		{"auto", "1\x009\x002\x00", "error: read f: this is UTF-16, not text in UTF-8\nhint: convert it first: iconv -f UTF-16LE -t UTF-8\n"},
		{"auto", "\x001\x009\x002", "error: read f: this is UTF-16, not text in UTF-8\nhint: convert it first: iconv -f UTF-16BE -t UTF-8\n"},
		{"auto", "\x1f\x8b\x08", "error: read f: this is compressed by gzip, not text in UTF-8\nhint: convert it first: gzip -dc\n"},

		{"hosts", "192.0.2.7 evil.example", "1:1 192.0.2.7/32\n"},
		{"hosts", "0.0.0.0", "f:1:1: 0.0.0.0 has no name behind it\n"},
		{"hosts", "evil.example", "f:1:1: evil.example is not an address: in a hosts file each line begins with one\n"},
		{"hosts", "0.0.0.0 bad evil.example", "f:1:9: bad is not a domain: it has a single label\n1:13 evil.example\n"},

		{"ipset", "add a", "f:1:1: an element is missing: add SET ELEMENT\n"},
		{"ipset", "add a \"b", "f:1:1: a quote is not closed\n"},
		{"ipset", "add a 192.0.2.1 timeout", "f:1:17: timeout has no value\n"},
		{"ipset", "add a 192.0.2.1 timeout x", "f:1:25: x is not a number of seconds\n"},
		{"ipset", "add a evil.example", "f:1:7: evil.example is not an address\n"},
		{"ipset", "\"\" a", "f:1:2: \"\" is not a command of ipset save\n"},
		{"ipset", "swap a b", "f:1:1: swap is not a command of ipset save\n"},

		{"nft", "elements = { 192.0.2.1,", "1:14 192.0.2.1/32\nerror: f:1:12: this brace is not closed\n"},
		{"nft", "elements = { \"a\n", "error: f:1:14: a quote is not closed\n"},
		{"nft", "elements = { 192.0.2.1 timeout 1x }", "f:1:32: 1x is not a time such as 1d2h3m4s\n"},
		{"nft", "elements = { 192.0.2.1 - 192.0.2.2 expires never timeout 5, * }", "1:14 192.0.2.1/32\n1:14 192.0.2.2/32\nf:1:61: * is not an address\n"},
		{"nft", "elements = { 192.0.2.1 expires 1w1d1h1m1s1ms }", "1:14 192.0.2.1/32 until=2026-01-09T01:01:01Z\n"},
		{"nft", "elements = { 192.0.2.1 { 2 } }", "f:1:24: a brace stands within an element\n"},
		{"nft", "delete element a b { 192.0.2.1 }; elements = $x { 192.0.2.1 }", ""},

		{"csv", "a,b\nc,d\n192.0.2.1,e", "f:2:1: no column has an address, prefix or domain\n3:1 192.0.2.1/32\n"},
		{"csv", "a,192.0.2.1,evil.example", "1:3 192.0.2.1/32\n"},
		{"csv", "\"a\"b,192.0.2.1", "f:1:4: text stands behind a quote that is closed\n"},
		{"csv", "192.0.2.1, \"x\ty\"\t ,z", "1:1 192.0.2.1/32\n"},

		{"json", "[\"192.0.2.1\",\n  \"x\" \"y\"]", "1:2 192.0.2.1/32\nf:2:3: x is not a domain: it has a single label\nerror: f:2:7: '\"' is neither ',' nor ']'\n"},
		{"json", "{\"a\":\n", "error: f:2:1: the JSON ends too early\n"},
		{"json", "{\"a\" 1}", "error: f:1:6: '1' is not ':'\n"},
		{"json", "{a:1}", "error: f:1:2: 'a' is not the name of a member\n"},
		{"json", "[nul]", "error: f:1:2: \"nul\" is not a value\n"},
		{"json", "[\"\\x\"]", "error: f:1:2: a text has a wrong escape\n"},
		{"json", "[\"a\nb\"]", "error: f:1:4: a text has the control character '\\n'\n"},
		{"json", strings.Repeat("[", 101), "error: f:1:101: values are nested more than 100 deep\n"},
		{"json", "[\"192.0.2\\u002e1\"][]\"evil.example\"", "1:2 192.0.2.1/32\n1:21 evil.example\n"},
		{"json", `{"ip":"192.0.2.1","expires_at":"soon"}`, "f:1:32: soon is not a time such as 2006-01-02T15:04:05Z\n"},
		{"json", `{"address":"192.0.2.1","prefix":24}`, "f:1:33: 24 is not a text\n"},
		{"json", `{"nftables":[]}`, "error: read f: the JSON of nft is not read\nhint: use nft list without -j\n"},
		{"json", `{"entries":[]}`, ""},
		{"ndjson", "# c\n{\"ip\":\"192.0.2.1\"}\n{\"ip\":\n\n[\"192.0.2.2\"]", "2:7 192.0.2.1/32\nf:3:7: the JSON ends too early\n5:2 192.0.2.2/32\n"},

		{"yaml", "- 192.0.2.1\n- x\n-\n- [evil.example]\n", "1:3 192.0.2.1/32\nf:2:3: x is not a domain: it has a single label\nf:3:2: nothing stands where an address, prefix or domain should\n4:4 evil.example\n"},
		{"yaml", "a: b: c", "error: f:1:1: mapping values are not allowed in this context\n"},
		{"yaml", "---\n- 192.0.2.1\n---\nprefixes: [2001:db8::/32]\n", "2:3 192.0.2.1/32\n4:12 2001:db8::/32\n"},
		{"yaml", "- &a 192.0.2.1\n- *a\n", "1:3 192.0.2.1/32\nf:2:3: aliases are not read\n"},
		{"yaml", "x: 1\n", "f:1:1: the object has no member that is an entry: cidr, prefix, ip, address, network, ip_prefix, ipv6_prefix, domain or host\n"},
	} {
		format, err := ParseFormat(c.name)
		if err != nil {
			t.Fatal(err)
		}
		if got := told(strings.NewReader(c.input), Options{Name: "f", Format: format}); got != c.want {
			t.Errorf("%s %q:\n%swant\n%s", c.name, c.input, got, c.want)
		}
	}
}

func TestColumn(t *testing.T) {
	const rows = "IP,n,Evil name\n192.0.2.1,1,evil.example\n192.0.2.2\n"
	for column, want := range map[string]string{
		"ip":        "2:1 192.0.2.1/32\n3:1 192.0.2.2/32\n",
		"1":         "2:1 192.0.2.1/32\n3:1 192.0.2.2/32\n",
		"evil name": "2:13 evil.example\nf:3:1: the row has 1 columns, the entries are in column 3\n",
		"2":         "f:2:11: 1 is not an address\nf:3:1: the row has 1 columns, the entries are in column 2\n",
		"evilname":  "error: read f: no column \"evilname\" in its first row\nhint: did you mean \"Evil name\"?\n",
		"0":         "error: read f: no column \"0\" in its first row\nhint: a number from 1 names a column, too\n",
	} {
		if got := told(strings.NewReader(rows), Options{Name: "f", Column: column}); got != want {
			t.Errorf("%s:\n%swant\n%s", column, got, want)
		}
	}
}

// TestLongLines: what is too long is an error, wherever it begins.
func TestLongLines(t *testing.T) {
	long := strings.Repeat("a", lineBytes)
	for _, format := range []Format{FormatLines, FormatHosts, FormatIPSet, FormatCSV, FormatNDJSON, FormatYAML} {
		for _, end := range []string{"", "\n"} {
			got := told(strings.NewReader("\n#\n"+long+"a"+end), Options{Name: "f", Format: format})
			if want := "error: f:3:1: the line is longer than 65536 bytes\n"; got != want {
				t.Errorf("%v: %.200q, want %q", format, got, want)
			}
		}
	}
	for format, input := range map[Format]string{FormatJSON: "\n [\"" + long, FormatNFT: "\nelements = { " + long + "a"} {
		if got := told(strings.NewReader(input), Options{Name: "f", Format: format}); !strings.HasPrefix(got, "error: f:2:") || !strings.Contains(got, "longer than 65536 bytes") {
			t.Errorf("%v: %.200q", format, got)
		}
	}
	if got := told(strings.NewReader("192.0.2.1 #"+strings.Repeat("x", lineBytes-11)+"\n192.0.2.2"), Options{}); strings.Count(got, "\n") != 2 || strings.Contains(got, "error") {
		t.Errorf("%.200q", got)
	}
}

func TestBigYAML(t *testing.T) {
	got := told(io.LimitReader(endless("- 192.0.2.1 # "+strings.Repeat("x", 1000)+"\n"), 2*yamlBytes), Options{Name: "f"})
	if !strings.HasPrefix(got, "error: read f: YAML is read only up to 16 MiB\n") {
		t.Errorf("%.200q", got)
	}
}

// endless repeats itself.
type endless string

func (e endless) Read(p []byte) (int, error) {
	n := 0
	for n+len(e) <= len(p) {
		n += copy(p[n:], e)
	}
	return n, nil
}

// TestGarbage: much of it takes little memory, whatever it is read as.
func TestGarbage(t *testing.T) {
	const size, most = 8 << 20, 32 << 20
	runtime.GC() // what tests before it left
	for format := FormatAuto; format <= FormatNDJSON; format++ {
		for _, text := range []string{"{[\"}] = ,;\n", "elements = { a:\xff\n", "999.1.1.1;\xc3\xa4 }\n", "add x y timeout\n", "[", "{\"a\":", "0"} {
			w := &watched{Reader: io.LimitReader(endless(text), size)}
			_ = Read(w, Options{Format: format}, func(Entry) error { return nil }, func(LineError) {})
			if w.heap > most {
				t.Errorf("%v %q: %d bytes of heap", format, text, w.heap)
			}
		}
	}
}

// watched notes how much memory is in use while it is read.
type watched struct {
	io.Reader
	reads int
	heap  uint64
}

func (w *watched) Read(p []byte) (int, error) {
	if w.reads++; w.reads%16 == 0 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		w.heap = max(w.heap, m.HeapAlloc)
	}
	return w.Reader.Read(p)
}

// TestStops: the errors of the reader and of add come back.
func TestStops(t *testing.T) {
	broken := errors.New("broken")
	none := func(LineError) {}
	add := func(Entry) error { return broken }
	for format := FormatLines; format <= FormatYAML; format++ {
		r := iotest.ErrReader(broken)
		if err := Read(r, Options{Name: "f", Format: format}, add, none); !errors.Is(err, broken) || err.Error() != "read f: broken" {
			t.Errorf("%v: %v", format, err)
		}
	}
	for format, input := range map[Format]string{
		FormatLines: "192.0.2.1 # x", FormatHosts: "::1 a.example", FormatIPSet: "add a 192.0.2.1", FormatNFT: "elements = { ::1 }",
		FormatCSV: "192.0.2.1", FormatJSON: `["192.0.2.1"]`, FormatNDJSON: `{"entries":["192.0.2.1"]}`, FormatYAML: "prefixes: [192.0.2.1]",
	} {
		if err := Read(strings.NewReader(input), Options{Format: format}, add, none); err != broken {
			t.Errorf("%v: %v", format, err)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1":               "[192.0.2.1/32]",
		"10.1.2.3/8":              "[10.0.0.0/8]",
		"0.0.0.0/0":               "[0.0.0.0/0]",
		"2001:DB8::1/32":          "[2001:db8::/32]",
		"::ffff:192.0.2.1":        "[192.0.2.1/32]",
		"::ffff:192.0.2.1/120":    "[192.0.2.0/24]",
		"::ffff:0:0/96":           "[0.0.0.0/0]",
		"::ffff:0:0/95":           "[::fffe:0:0/95]",
		"0.0.0.0-255.255.255.255": "[0.0.0.0/0]",
		"192.0.2.1-192.0.2.6":     "[192.0.2.1/32 192.0.2.2/31 192.0.2.4/31 192.0.2.6/32]",
		"192.0.2.1 - 192.0.2.1":   "[192.0.2.1/32]",
		"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": "[::/0]",
		"2001:db8::ffff-2001:db8::1:0":               "[2001:db8::ffff/128 2001:db8::1:0/128]",
		"::ffff:192.0.2.0-::ffff:192.0.2.3":          "[192.0.2.0/30]",
		"1.2.3":                                      "1.2.3 is not an address",
		"":                                           "\"\" is not an address",
		"1.2.3.4/":                                   "1.2.3.4/ is not a prefix: no such length",
		"1.2.3.4/33":                                 "1.2.3.4/33 is not a prefix: no such length",
		"1.2.3.4/08":                                 "1.2.3.4/08 is not a prefix: no such length",
		"::/129":                                     "::/129 is not a prefix: no such length",
		"::/1280":                                    "::/1280 is not a prefix: no such length",
		"01.2.3.4":                                   "01.2.3.4 is not an address: leading zeros are octal to some programs",
		"fe80::1%eth0":                               "fe80::1%eth0 has a zone, which only this machine knows",
		"192.0.2.1-::1":                              "192.0.2.1-::1 is not a range: one end is IPv4, the other is IPv6",
		"192.0.2.2-192.0.2.1":                        "192.0.2.2-192.0.2.1 is not a range: its end is before its beginning",
		"192.0.2.0/24-192.0.3.0":                     "192.0.2.0/24 is not an address",
	} {
		got, err := ParseAddress(text)
		if shown := fmt.Sprint(got); err == nil && shown != want || err != nil && (err.Error() != want || !errors.Is(err, fault.ErrUsage)) {
			t.Errorf("ParseAddress(%q) = %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestParseDomain(t *testing.T) {
	label := strings.Repeat("a", 63)
	for text, want := range map[string]string{
		"Evil.Example.":                    "evil.example",
		"*.evil.example":                   "*.evil.example",
		"_dmarc.evil.example":              "_dmarc.evil.example",
		"xn--bcher-kva.example":            "xn--bcher-kva.example",
		"1-2-3-4.dyn.example":              "1-2-3-4.dyn.example",
		label + ".example":                 label + ".example",
		"example":                          "example is not a domain: it has a single label",
		"*.example":                        "*.example is not a domain: it has a single label",
		"a..example":                       "a..example is not a domain: one of its labels is empty",
		".example":                         ".example is not a domain: one of its labels is empty",
		"":                                 "\"\" is not a domain: one of its labels is empty",
		"a.*.example":                      "a.*.example is neither an address nor a domain",
		"-a.example":                       "-a.example is not a domain: one of its labels begins or ends with a hyphen",
		"a-.example":                       "a-.example is not a domain: one of its labels begins or ends with a hyphen",
		"bücher.example":                   "\"bücher.example\" is not ASCII: write it as a browser sends it, with labels that begin with xn--",
		"evil.\u212a":                      "\"evil.\u212a\" is not ASCII: write it as a browser sends it, with labels that begin with xn--",
		"evil.1":                           "evil.1 is not a domain: its last label is a number",
		"a" + label + ".example":           "a" + label + ".example is not a domain: one of its labels is longer than 63 bytes",
		strings.Repeat(label+".", 4) + "a": strings.Repeat(label+".", 4)[:80] + " is not a domain: it is longer than 253 bytes",
	} {
		got, err := ParseDomain(text)
		if err == nil && got != want || err != nil && (err.Error() != want || !errors.Is(err, fault.ErrUsage)) {
			t.Errorf("ParseDomain(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
}

// TestPrefix4 compares the fast way with the other.
func TestPrefix4(t *testing.T) {
	for _, text := range []string{"1.2.3.4", "255.255.255.255/0", "1.2.3.4/32", "1.2.3.4/7", "256.1.1.1", "1.2.3", "1.2.3.4.", "1.2.3.4/33", "1.2.3.04", "1.2.3.4/01", "1..2.3", "1.2.3.4567"} {
		prefix, n := prefix4([]byte(text))
		want, err := ParseAddress(text)
		if got := n == len(text) && n > 0; got != (err == nil) || got && prefix != want[0] {
			t.Errorf("%q: %v, %d; %v, %v", text, prefix, n, want, err)
		}
	}
	if p, n := prefix4([]byte("10.1.2.3/8")); p != netip.MustParsePrefix("10.0.0.0/8") || n != 10 {
		t.Error(p, n)
	}
}
