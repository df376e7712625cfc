package output

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Escape makes text that came from the network or from another process safe to
// show on a terminal: control characters (ANSI sequences begin with one),
// characters that are invisible or change the direction of text, and bytes that
// aren't UTF-8 become \n, \x1b or \u202e. A backslash stays as it is.
func Escape(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, unsafe) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		writeEscaped(&b, text[:n], r)
		text = text[n:]
	}
	return b.String()
}

func writeEscaped(b *strings.Builder, raw string, r rune) {
	switch {
	case r == utf8.RuneError && len(raw) == 1:
		fmt.Fprintf(b, `\x%02x`, raw[0])
	case r == '\n':
		b.WriteString(`\n`)
	case r == '\t':
		b.WriteString(`\t`)
	case r == '\r':
		b.WriteString(`\r`)
	case !unsafe(r):
		b.WriteString(raw)
	case r < 0x100:
		fmt.Fprintf(b, `\x%02x`, r)
	default:
		b.Write(appendEscape(nil, r))
	}
}

// unsafe says whether a character must not reach a terminal: controls (Cc),
// format characters, which include those of bidirectional text (Cf), private
// use and surrogates, and the two line separators.
func unsafe(r rune) bool {
	if r < 0x7f {
		return r < 0x20
	}
	return unicode.In(r, unicode.C, unicode.Zl, unicode.Zp)
}

// appendEscape appends r as \uXXXX, or a surrogate pair of these, as JSON has it.
func appendEscape(b []byte, r rune) []byte {
	if r < 0x10000 {
		return fmt.Appendf(b, `\u%04x`, r)
	}
	high, low := utf16.EncodeRune(r)
	return fmt.Appendf(b, `\u%04x\u%04x`, high, low)
}
