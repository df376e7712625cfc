package feed

import (
	"bytes"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"bpfnet/internal/fault"
)

// problem is what is wrong with a text. A list of garbage has millions, so that
// it is worded only when somebody reads it.
type problem struct{ text, cause string }

func (p *problem) Error() string {
	if p.text == "" || strings.ContainsFunc(p.text, odd) {
		return strconv.Quote(p.text) + " " + p.cause
	}
	return p.text + " " + p.cause
}

// Unwrap makes it an error of kind fault.ErrUsage.
func (p *problem) Unwrap() error { return fault.ErrUsage }

// problemBytes is how much of a text is shown.
const problemBytes = 80

func wrong(text, cause string) *problem {
	return &problem{strings.Clone(text[:min(len(text), problemBytes)]), cause}
}

// odd says which characters make a text hard to recognize without quotes.
func odd(r rune) bool { return r <= ' ' || r == '"' || r > '~' }

// notAnEntry words what is wrong with a text that isn't a domain and doesn't
// look like an address.
func notAnEntry(text []byte, err error) error {
	switch {
	case len(text) == 0:
		return errEmpty
	case bytes.Contains(text, []byte("://")):
		return wrong(string(text), "is a URL: only addresses, prefixes and domains can be listed")
	case bytes.IndexByte(text, '/') >= 0:
		return wrong(string(text), "is neither an address, a prefix nor a domain")
	}
	return err
}

var errEmpty = fault.New(fault.ErrUsage, "nothing stands where an address, prefix or domain should")

// reasonBytes is the most that is kept of a comment.
const reasonBytes = 127

// reason makes a comment fit for keeping and showing.
func reason(text []byte) string {
	text = bytes.TrimSpace(text)
	if len(text) > 4*reasonBytes {
		text = text[:4*reasonBytes]
	}
	clean := strings.ToValidUTF8(string(text), "\ufffd")
	if strings.ContainsFunc(clean, unicode.IsControl) {
		clean = strings.Map(blankControl, clean)
	}
	return strings.TrimSpace(cutText(clean, reasonBytes))
}

func blankControl(r rune) rune {
	if unicode.IsControl(r) {
		return ' '
	}
	return r
}

// cutText returns the first bytes of text, and no part of a rune.
func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}
