package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Decoder reads JSON values from text, one after the other. Unlike
// encoding/json it copies no text, takes no invalid UTF-8, and refuses an
// object that names a member twice.
type Decoder struct {
	Text  string
	Pos   int // where it stands, in bytes
	depth int
}

// JSON is a value that a Decoder read.
type JSON struct{ v any }

// SyntaxError says where text isn't JSON.
type SyntaxError struct {
	At      int // byte of the text
	Message string
	Short   bool // the text ends within a value
}

func (e *SyntaxError) Error() string { return e.Message }

// What bounds the recursion, and the search for names that come twice: as many
// members as a type in BTF can have.
const (
	nestedMost  = 1000
	membersMost = 1<<16 - 1
)

func (d *Decoder) wrong(at int, format string, args ...any) error {
	return &SyntaxError{At: at, Message: fmt.Sprintf(format, args...)}
}

func (d *Decoder) short() error {
	return &SyntaxError{At: len(d.Text), Message: "the JSON ends too early", Short: true}
}

// Next moves over white space and returns the byte that follows, 0 at the end.
func (d *Decoder) Next() byte {
	for ; d.Pos < len(d.Text); d.Pos++ {
		switch c := d.Text[d.Pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// expect moves over one delimiter.
func (d *Decoder) expect(want byte) error {
	switch c := d.Next(); {
	case d.Pos == len(d.Text):
		return d.short()
	case c != want:
		return d.wrong(d.Pos, "%s is not the %q that must come here", d.shown(), want)
	}
	d.Pos++
	return nil
}

// shown is the character at Pos, for messages.
func (d *Decoder) shown() string {
	r, n := utf8.DecodeRuneInString(d.Text[d.Pos:])
	if r == utf8.RuneError && n == 1 {
		return fmt.Sprintf("byte 0x%02x", d.Text[d.Pos])
	}
	return strconv.QuoteRune(r)
}

// Value reads one value.
func (d *Decoder) Value() (JSON, error) {
	v, err := d.value()
	return JSON{v}, err
}

func (d *Decoder) value() (any, error) {
	switch c := d.Next(); {
	case d.Pos == len(d.Text):
		return nil, d.short()
	case c == '{':
		return d.object()
	case c == '[':
		return d.array()
	case c == '"':
		return d.string()
	case c == '-' || c >= '0' && c <= '9':
		return d.number()
	}
	return d.word()
}

var jsonWords = []struct {
	word  string
	value any
}{{"true", true}, {"false", false}, {"null", nil}}

func (d *Decoder) word() (any, error) {
	rest := d.Text[d.Pos:]
	for _, w := range jsonWords {
		if strings.HasPrefix(rest, w.word) {
			d.Pos += len(w.word)
			return w.value, nil
		}
		if strings.HasPrefix(w.word, rest) {
			return nil, d.short()
		}
	}
	return nil, d.wrong(d.Pos, "%s begins no JSON value", d.shown())
}

func (d *Decoder) object() (any, error) {
	o := make(object, 0, 4)
	err := d.Members(func(name string) error {
		if o.find(name) >= 0 {
			return d.wrong(d.Pos, "member %q is there twice", name)
		}
		if len(o) == membersMost {
			return d.wrong(d.Pos, "an object has more than %d members", membersMost)
		}
		value, err := d.value()
		o = append(o, member{name, value})
		return err
	})
	return o, err
}

// Members reads an object. visit is called where the value of each member
// stands, and has to move over it.
func (d *Decoder) Members(visit func(name string) error) error {
	if err := d.open('{'); err != nil {
		return err
	}
	return d.list('}', func() error {
		if c := d.Next(); c != '"' {
			return d.expect('"')
		}
		name, err := d.string()
		if err != nil {
			return err
		}
		if err := d.expect(':'); err != nil {
			return err
		}
		d.Next()
		return visit(name)
	})
}

func (d *Decoder) array() (any, error) {
	values := []any{}
	err := d.elements(func(int) error {
		value, err := d.value()
		values = append(values, value)
		return err
	})
	return values, err
}

func (d *Decoder) elements(visit func(i int) error) error {
	if err := d.open('['); err != nil {
		return err
	}
	i := -1
	return d.list(']', func() error {
		i++
		d.Next()
		return visit(i)
	})
}

func (d *Decoder) open(bracket byte) error {
	if d.depth == nestedMost {
		return d.wrong(d.Pos, "the JSON is nested too deeply")
	}
	return d.expect(bracket)
}

// list reads items up to the closing bracket.
func (d *Decoder) list(end byte, item func() error) error {
	d.depth++
	defer func() { d.depth-- }()
	if d.Next() == end {
		d.Pos++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch c := d.Next(); {
		case d.Pos == len(d.Text):
			return d.short()
		case c == end:
			d.Pos++
			return nil
		case c != ',':
			return d.wrong(d.Pos, "%s is neither %q nor %q", d.shown(), ',', end)
		}
		d.Pos++
	}
}

// string reads a string without a copy, unless it has escapes.
func (d *Decoder) string() (string, error) {
	start, escaped := d.Pos, false
	for i := start + 1; i < len(d.Text); i++ {
		switch c := d.Text[i]; {
		case c == '"':
			d.Pos = i + 1
			if escaped {
				return d.unescape(start)
			}
			return d.Text[start+1 : i], d.checkUTF8(start)
		case c == '\\':
			escaped = true
			i++
		case c < ' ':
			return "", d.wrong(i, "a control character stands in a string")
		}
	}
	return "", d.short()
}

func (d *Decoder) checkUTF8(start int) error {
	if !utf8.ValidString(d.Text[start:d.Pos]) {
		return d.wrong(start, "the string is not UTF-8")
	}
	return nil
}

func (d *Decoder) unescape(start int) (string, error) {
	if err := d.checkUTF8(start); err != nil {
		return "", err
	}
	var s string
	err := json.Unmarshal([]byte(d.Text[start:d.Pos]), &s)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return "", d.wrong(start+int(syntax.Offset)-1, "the string has a wrong escape")
	}
	return s, err
}

func (d *Decoder) number() (any, error) {
	start := d.Pos
	if d.Text[d.Pos] == '-' {
		d.Pos++
	}
	whole := d.digits()
	leading := whole > 1 && d.Text[d.Pos-whole] == '0'
	ok := whole > 0 && !leading
	if ok && d.take(".") {
		ok = d.digits() > 0
	}
	if ok && d.take("eE") {
		d.take("+-")
		ok = d.digits() > 0
	}
	switch {
	case d.Pos == len(d.Text) && !leading && !ok:
		return nil, d.short()
	case !ok:
		return nil, d.wrong(start, "the number isn't written as in JSON")
	}
	return json.Number(d.Text[start:d.Pos]), nil
}

func (d *Decoder) digits() (count int) {
	for d.Pos < len(d.Text) && d.Text[d.Pos] >= '0' && d.Text[d.Pos] <= '9' {
		d.Pos++
		count++
	}
	return count
}

// take moves over one of the characters.
func (d *Decoder) take(any string) bool {
	if d.Pos < len(d.Text) && strings.IndexByte(any, d.Text[d.Pos]) >= 0 {
		d.Pos++
		return true
	}
	return false
}

// Skip moves over a value by its brackets and strings alone: what stands
// between them need not be JSON.
func (d *Decoder) Skip() error {
	for depth := 0; ; {
		opened, err := d.skipPiece()
		if err != nil {
			return err
		}
		depth += opened
		if depth <= 0 {
			return nil
		}
	}
}

// skipPiece moves over a string, a word or one other character, and returns how
// many brackets it opened.
func (d *Decoder) skipPiece() (opened int, err error) {
	switch c := d.Next(); {
	case d.Pos == len(d.Text):
		return 0, d.short()
	case c == '"':
		return 0, d.skipString()
	case c == '{' || c == '[':
		opened = 1
	case c == '}' || c == ']':
		opened = -1
	case c != ',' && c != ':':
		d.skipWord()
		return 0, nil
	}
	d.Pos++
	return opened, nil
}

func (d *Decoder) skipString() error {
	for i := d.Pos + 1; i < len(d.Text); i++ {
		switch d.Text[i] {
		case '"':
			d.Pos = i + 1
			return nil
		case '\\':
			i++
		}
	}
	return d.short()
}

func (d *Decoder) skipWord() {
	end := strings.IndexAny(d.Text[d.Pos:], ",:{}[]\" \t\r\n")
	if end < 0 {
		end = len(d.Text) - d.Pos
	}
	d.Pos += end
}

var errFound = errors.New("found")

// Locate moves to the part of the value at Pos that the path of an error names
// (see Path), as far as the value has it.
func (d *Decoder) Locate(path string) {
	for path != "" {
		start := d.Pos
		part, rest := cutPath(path)
		err := d.find(part)
		if err != errFound {
			d.Pos = start
			return
		}
		path = rest
	}
}

func (d *Decoder) find(part string) error {
	if index, ok := strings.CutPrefix(part, "["); ok {
		return d.elements(func(i int) error {
			if strconv.Itoa(i) == index {
				return errFound
			}
			return d.Skip()
		})
	}
	return d.Members(func(name string) error {
		if name == part {
			return errFound
		}
		return d.Skip()
	})
}

// cutPath splits "a.b[3].c" into "a" and "b[3].c", "[3].c" into "[3" and "c".
func cutPath(path string) (part, rest string) {
	if path[0] == '[' {
		part, rest, _ = strings.Cut(path, "]")
		return part, strings.TrimPrefix(rest, ".")
	}
	end := strings.IndexAny(path, ".[")
	if end < 0 {
		return path, ""
	}
	return path[:end], strings.TrimPrefix(path[end:], ".")
}

// decodeJSON reads text that is one JSON value.
func decodeJSON(text string) (any, error) {
	d := Decoder{Text: text}
	v, err := d.value()
	var syntax *SyntaxError
	if errors.As(err, &syntax) {
		return nil, fmt.Errorf("%w at byte %d", err, syntax.At+1)
	}
	if err == nil && (d.Next() != 0 || d.Pos < len(text)) {
		return nil, fmt.Errorf("JSON goes on after its end at byte %d", d.Pos+1)
	}
	return v, err
}
