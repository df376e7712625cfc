package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The values that a Decoder makes are string, json.Number, bool, nil, []any
// and object.
type object []member

type member struct {
	name  string
	value any
}

func (o object) find(name string) int {
	for i := range o {
		if o[i].name == name {
			return i
		}
	}
	return -1
}

// scalar returns the text of a string or number.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return string(v), true
	}
	return "", false
}

// show describes a value in a message.
func show(v any) string {
	switch v := v.(type) {
	case string:
		return quote(v)
	case json.Number:
		return string(v)
	case bool:
		return strconv.FormatBool(v)
	case object:
		return "a JSON object"
	case []any:
		return "a JSON array"
	}
	return "null"
}

// quote quotes text in a message, shortened to what fits on a line.
func quote(text string) string {
	const most = 60
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return strconv.Quote(text)
}

// wrongValue is an error about the value at path.
type wrongValue struct{ path, message string }

func (e *wrongValue) Error() string {
	if e.path == "" {
		return e.message
	}
	return fmt.Sprintf("member %q: %s", e.path, e.message)
}

func wrong(path, format string, args ...any) error {
	return &wrongValue{path, fmt.Sprintf(format, args...)}
}

// within puts the path of what an error's value is a part of before its own.
func within(path string, err error) error {
	var e *wrongValue
	if errors.As(err, &e) {
		return &wrongValue{join(path, e.path), e.message}
	}
	return err
}

// Path returns where in a value the error of a Codec is: "member.inner[3]", or
// "" for the value as a whole.
func Path(err error) string {
	var p *wrongPart
	if errors.As(err, &p) {
		return join(p.path, Path(p.err))
	}
	var e *wrongValue
	if errors.As(err, &e) {
		return e.path
	}
	return ""
}

// wrongPart is an error about the part of a value at path, whose own Path is
// relative to it.
type wrongPart struct {
	path string
	err  error
}

func (e *wrongPart) Error() string { return e.err.Error() }

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// appendString adds s, which is valid UTF-8, as a JSON string. Control
// characters are escaped, those of C1 too: they steer terminals.
func appendString(dst []byte, s []byte) []byte {
	dst = append(dst, '"')
	for len(s) > 0 {
		r, n := utf8.DecodeRune(s)
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', byte(r))
		case r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029':
			dst = fmt.Appendf(dst, `\u%04x`, r)
		default:
			dst = append(dst, s[:n]...)
		}
		s = s[n:]
	}
	return append(dst, '"')
}
