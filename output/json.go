package output

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// Marshal returns doc as compact JSON without a newline. Characters that
// Escape would not let through to a terminal are \u escapes in it, so that the
// text is safe to look at and still means the same.
func Marshal(doc any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(doc); err != nil {
		return nil, fmt.Errorf("encode document: %w", err)
	}
	return printable(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}

// isPlain says whether text is ASCII without control characters, as most of a
// dump is: it looks at eight bytes at a time.
func isPlain(text []byte) bool {
	const ones = 0x0101010101010101
	for ; len(text) >= 8; text = text[8:] {
		w := binary.NativeEndian.Uint64(text)
		// The high bit of a byte comes up when it was there, when the byte is
		// below 0x20, and when it is 0x7f.
		if (w|(w-0x20*ones)|(w+ones))&(0x80*ones) != 0 {
			return false
		}
	}
	for _, c := range text {
		if c < 0x20 || c >= 0x7f {
			return false
		}
	}
	return true
}

// printable replaces unsafe characters of a JSON text by \u escapes. Outside of
// strings JSON is ASCII, so every one of them is inside a string.
func printable(text []byte) []byte {
	if isPlain(text) || !bytes.ContainsFunc(text, unsafe) {
		return text
	}
	safe := make([]byte, 0, len(text)+16)
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if unsafe(r) {
			safe = appendEscape(safe, r)
		} else {
			safe = append(safe, text[:n]...)
		}
		text = text[n:]
	}
	return safe
}
