package feed

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"bpfnet/internal/fault"
)

// jsonReader reads values as they come: of none more is kept than a token.
type jsonReader struct {
	*reader
	in    *input // hides the reader's
	text  []byte // of the token
	depth int
	mute  bool // what is read is nothing that holds entries
}

// jsonDepth is how deep values may be nested.
const jsonDepth = 100

// readJSON reads documents, of which there may be many.
func (r *reader) readJSON() error {
	return (&jsonReader{reader: r, in: r.in}).documents()
}

// readNDJSON reads a document from each line. One that is broken is refused.
func (r *reader) readNDJSON() error {
	j := jsonReader{reader: r}
	return r.lines(func(line []byte, _ int) error {
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte{'#'}) {
			return nil
		}
		j.in, j.depth, j.mute = r.in.openLine(line), 0, false
		err := j.documents()
		if broken, ok := err.(LineError); ok {
			r.refuse(broken)
			return nil
		}
		return err
	})
}

func (j *jsonReader) documents() error {
	for {
		c, err := j.in.space()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := j.value(c); err != nil {
			return err
		}
	}
}

// next returns the next byte that isn't white space. There has to be one.
func (j *jsonReader) next() (byte, error) {
	c, err := j.in.space()
	return c, j.ended(err)
}

// ended tells what the end of the input means within a value.
func (j *jsonReader) ended(err error) error {
	if errors.Is(err, io.EOF) {
		return j.in.wrong(j.in.here(), "the JSON ends too early")
	}
	return err
}

// value reads one that begins with c.
func (j *jsonReader) value(c byte) error {
	switch c {
	case '{':
		return j.nested(j.object)
	case '[':
		return j.nested(j.array)
	}
	v, err := j.scalar(c)
	switch {
	case err != nil || j.mute:
		return err
	case !v.isText:
		j.wrong(v.at, wrong(string(v.text), "is not a text"))
		return nil
	}
	return j.entry(v.text, v.at, Entry{})
}

func (j *jsonReader) nested(read func() error) error {
	if j.depth == jsonDepth {
		return j.in.wrong(j.in.here(), "values are nested more than %d deep", jsonDepth)
	}
	j.depth++
	err := read()
	j.depth--
	return err
}

// list reads what stands between two brackets.
func (j *jsonReader) list(closing byte, each func(c byte) error) error {
	j.in.pos++
	c, err := j.next()
	for first := true; err == nil && c != closing; first = false {
		if !first {
			if c, err = j.comma(c, closing); err != nil {
				return err
			}
		}
		if err := each(c); err != nil {
			return err
		}
		c, err = j.next()
	}
	if err == nil {
		j.in.pos++
	}
	return err
}

// comma reads the one that c should be, and returns what is behind it.
func (j *jsonReader) comma(c, closing byte) (byte, error) {
	if c != ',' {
		return 0, j.in.wrong(j.in.here(), "%q is neither ',' nor %q", c, closing)
	}
	j.in.pos++
	return j.next()
}

func (j *jsonReader) array() error { return j.list(']', j.value) }

func (j *jsonReader) object() error {
	it := item{at: j.in.here()}
	if err := j.list('}', func(c byte) error { return j.member(&it, c) }); err != nil || j.mute {
		return err
	}
	return j.finish(&it)
}

func (j *jsonReader) member(it *item, c byte) error {
	if c != '"' {
		return j.in.wrong(j.in.here(), "%q is not the name of a member", c)
	}
	text, err := j.quoted()
	if err != nil {
		return err
	}
	name := string(text)
	if c, err = j.colon(); err != nil {
		return err
	}
	if c == '{' || c == '[' {
		return j.container(it, name, c)
	}
	v, err := j.scalar(c)
	if err != nil {
		return err
	}
	it.member(name, v)
	return nil
}

// colon reads the one behind a name, and returns what is behind it.
func (j *jsonReader) colon() (byte, error) {
	c, err := j.next()
	if err != nil {
		return 0, err
	}
	if c != ':' {
		return 0, j.in.wrong(j.in.here(), "%q is not ':'", c)
	}
	j.in.pos++
	return j.next()
}

// container reads a member that may hold entries.
func (j *jsonReader) container(it *item, name string, c byte) error {
	if name == "nftables" {
		return fault.New(fault.ErrUsage, "read %s: the JSON of nft is not read", j.Name).Hint("use nft list without -j")
	}
	mute := j.mute
	j.mute = mute || !containers[name]
	it.holds = it.holds || !j.mute
	err := j.value(c)
	j.mute = mute
	return err
}

// scalar reads a value that is neither an object nor an array.
func (j *jsonReader) scalar(c byte) (scalar, error) {
	at := j.in.here()
	if c == '"' {
		text, err := j.quoted()
		return scalar{text: text, isText: true, at: at}, err
	}
	if err := j.literal(); err != nil {
		return scalar{}, err
	}
	if !json.Valid(j.text) {
		return scalar{}, j.in.wrong(at, "%q is not a value", j.text)
	}
	return scalar{text: j.text, null: string(j.text) == "null", at: at}, nil
}

// literal reads a number or word, or else one byte.
func (j *jsonReader) literal() error {
	const longest = 1024
	j.text = append(j.text[:0], j.in.buf[j.in.pos])
	j.in.pos++
	for len(j.text) < longest {
		c, err := j.in.peek()
		if errors.Is(err, io.EOF) || err == nil && !isLiteral(c) {
			return nil
		}
		if err != nil {
			return err
		}
		j.text = append(j.text, c)
		j.in.pos++
	}
	return nil
}

func isLiteral(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '+'
}

// quoted reads a text and returns what it means, valid until the next token.
func (j *jsonReader) quoted() ([]byte, error) {
	at := j.in.here()
	j.in.pos++
	j.text = append(j.text[:0], '"')
	plain := true
	for escaped := false; ; {
		c, err := j.in.peek()
		switch {
		case err != nil:
			return nil, j.ended(err)
		case c < ' ':
			return nil, j.in.wrong(j.in.here(), "a text has the control character %q", c)
		case len(j.text) == lineBytes:
			return nil, j.in.wrong(at, "a text is longer than %d bytes", lineBytes)
		}
		j.in.pos++
		j.text = append(j.text, c)
		if c == '"' && !escaped {
			return j.unquoted(at, plain)
		}
		escaped = c == '\\' && !escaped
		plain = plain && c != '\\' && c < 0x80
	}
}

// unquoted returns what the token means.
func (j *jsonReader) unquoted(at place, plain bool) ([]byte, error) {
	if plain {
		return j.text[1 : len(j.text)-1], nil
	}
	var text string
	if err := json.Unmarshal(j.text, &text); err != nil {
		return nil, j.in.wrong(at, "a text has a wrong escape")
	}
	return []byte(text), nil
}
