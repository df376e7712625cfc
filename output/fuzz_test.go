package output

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// ours are the sequences that a Printer writes by itself.
var ours = regexp.MustCompile("\x1b\\[(1|0)m|\x1b\\[[0-9]+F\x1b\\[J|\x1b\\[\\?7[lh]")

// FuzzTerminal: whatever the text of its cells, a table is as many lines as it
// has rows, a row or event in words is one, and nothing but our own sequences
// and ends of lines controls the terminal.
func FuzzTerminal(f *testing.F) {
	for _, seed := range []string{"plain", "", "-", "12 kB", " ", "\x1b[2J\x1b]0;title\a", "\u202egpj.exe", "\u200b\u2066", "\xff\xfe", "a\r\nb\tc\v", "\u0085\u2028", "世界", "e\u0301", "\U000e0041"} {
		f.Add(seed, "other")
		f.Add("other", seed)
	}
	f.Add(" ", "  ")
	f.Fuzz(func(t *testing.T, one, two string) {
		table := Table{Header: []string{"name", "value"}, Rows: [][]string{{one, two}, {two, one}, {"x"}}, Footer: []string{one, two}}
		const lines = 5
		for _, options := range [][]Option{nil, {Terminal(false)}, {Terminal(true)}} {
			var b bytes.Buffer
			p := New(&b, FormatTable, options...)
			for _, write := range []func() error{
				func() error { return p.Object(nil, func() Table { return table }) },
				func() error { return p.List(nil, func() Table { return table }) },
				func() error { return p.Event(nil, func() Table { return table }) },
				func() error { return p.Event(nil, func() Table { return table }) },
			} {
				b.Reset()
				if err := write(); err != nil {
					t.Fatal(err)
				}
				checkTerminal(t, strings.TrimPrefix(b.String(), "\n"), lines)
			}
			b.Reset()
			checkWords(t, p, &b, one)
		}
	})
}

func checkWords(t *testing.T, p *Printer, b *bytes.Buffer, text string) {
	t.Helper()
	rows, stream := p.Rows(), p.Stream()
	line := func() string { return text }
	for _, err := range []error{rows.Add(nil, line), rows.Close(), stream.Add(nil, line), stream.Flush()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	checkTerminal(t, b.String(), 2)
}

func checkTerminal(t *testing.T, written string, lines int) {
	t.Helper()
	if n := strings.Count(written, "\n"); n != lines {
		t.Errorf("%d lines, want %d: %q", n, lines, written)
	}
	text := ours.ReplaceAllString(written, "")
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && unsafe(r) }); i >= 0 {
		t.Errorf("%q reaches the terminal in %q", text[i:min(i+4, len(text))], written)
	}
}
