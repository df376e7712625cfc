package output

import (
	"bytes"
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

// printable replaces unsafe characters of a JSON text by \u escapes. Outside of
// strings JSON is ASCII, so every one of them is inside a string.
func printable(text []byte) []byte {
	if !bytes.ContainsFunc(text, unsafe) {
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
