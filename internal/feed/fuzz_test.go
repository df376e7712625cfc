package feed

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzRead: whatever the input, as whatever it is read, entries are valid and
// their places lie within it.
func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		if !strings.HasSuffix(file, ".golden") {
			f.Add(text, byte(FormatAuto), false, "")
		}
	}
	f.Add([]byte("a;b\n1;192.0.2.1"), byte(FormatCSV), true, "b")
	f.Fuzz(func(t *testing.T, text []byte, format byte, domains bool, column string) {
		o := Options{Name: "f", Format: Format(format % byte(len(formatWords))), Domains: domains, Column: column, Now: now}
		lines := countLines(string(text))
		_ = Read(bytes.NewReader(text), o,
			func(e Entry) error { checkEntry(t, e, lines); return nil },
			func(e LineError) { checkPlace(t, e.Line, e.Column, lines); _ = e.Error() })
	})
}

// countLines counts as YAML does, which has more kinds of line ends.
func countLines(text string) int {
	lines := 1
	for _, r := range text {
		if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) {
			lines++
		}
	}
	return lines
}

func checkPlace(t *testing.T, line, column, lines int) {
	t.Helper()
	if line < 1 || line > lines+1 || column < 1 {
		t.Fatalf("place %d:%d of %d lines", line, column, lines)
	}
}

func checkEntry(t *testing.T, e Entry, lines int) {
	t.Helper()
	checkPlace(t, e.Line, e.Column, lines)
	switch {
	case e.Domain == "" && (!e.Prefix.IsValid() || e.Prefix != e.Prefix.Masked() || e.Prefix.Addr().Is4In6()):
		t.Fatalf("prefix %v", e.Prefix)
	case e.Domain != "" && e.Prefix.IsValid():
		t.Fatalf("both %v and %q", e.Prefix, e.Domain)
	case e.Domain != "":
		if again, err := ParseDomain(e.Domain); err != nil || again != e.Domain {
			t.Fatalf("%q: %q, %v", e.Domain, again, err)
		}
	}
	for _, text := range []string{e.Reason, e.List} {
		if len(text) > reasonBytes || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			t.Fatalf("text %q", text)
		}
	}
}

// FuzzParseAddress: the prefixes of a text cover the range that it is, without
// gap or overlap, and no two could be one; each reads as itself.
func FuzzParseAddress(f *testing.F) {
	for _, text := range []string{"192.0.2.1", "10.1.2.3/8", "::/0", "192.0.2.1-192.0.2.200", "::1 - ::ffff", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::ffff:0:0/95", "::fffe:0:0-::1:0:0:0"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		prefixes, err := ParseAddress(text)
		if err != nil {
			_ = err.Error()
			return
		}
		for i, p := range prefixes {
			again, err := ParseAddress(p.String())
			if err != nil || len(again) != 1 || again[0] != p || p != p.Masked() {
				t.Fatalf("%q: %v: %v, %v", text, p, again, err)
			}
			if i > 0 {
				checkNeighbours(t, prefixes[i-1], p)
			}
		}
		first, last, ok := strings.Cut(text, "-")
		if !ok {
			return
		}
		from, to := prefixes[0].Addr(), lastOf(prefixes[len(prefixes)-1])
		if !same(from, strings.TrimSpace(first)) || !same(to, strings.TrimSpace(last)) {
			t.Fatalf("%q: %v to %v", text, from, to)
		}
	})
}

// same compares an address with one in text, which may be IPv4-mapped.
func same(a netip.Addr, text string) bool {
	return numberOf(a) == numberOf(netip.MustParseAddr(text))
}

// width is the length of a prefix among IPv4-mapped addresses.
func width(p netip.Prefix) int { return p.Bits() + 128 - p.Addr().BitLen() }

func lastOf(p netip.Prefix) netip.Addr {
	return numberOf(p.Addr()).withOnes(128 - width(p)).address()
}

func checkNeighbours(t *testing.T, a, b netip.Prefix) {
	t.Helper()
	if numberOf(lastOf(a)).plusOne() != numberOf(b.Addr()) {
		t.Fatalf("%v, then %v", a, b)
	}
	if width(a) == width(b) && numberOf(a.Addr()).withOnes(129-width(a)) == numberOf(b.Addr()).withOnes(129-width(b)) {
		t.Fatalf("%v and %v are one", a, b)
	}
}
