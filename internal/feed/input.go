package feed

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"bpfnet/internal/fault"
)

// lineBytes is the longest that a line, or a token of what isn't made of lines,
// may be.
const lineBytes = 64 << 10

// headBytes is what tells the encoding of an input.
const headBytes = 64

// input is text that is read line by line (next) or byte by byte (peek).
type input struct {
	r        io.Reader
	name     string
	buf      []byte
	pos, end int   // what of buf is to be read
	begin    int   // where in buf the line of pos begins; negative when that is gone
	line     int   // lines that were read whole
	err      error // why r gives no more
}

// open begins to read and refuses what isn't text.
func open(r io.Reader, name string) (*input, error) {
	in := &input{r: r, name: name, buf: make([]byte, 4*lineBytes)}
	for in.end < headBytes && in.err == nil {
		in.read()
	}
	if err := in.refuseSignature(in.buf[:min(in.end, headBytes)]); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(in.buf[:in.end], []byte("\ufeff")) {
		in.pos, in.begin = 3, 3
	}
	return in, in.refuseNUL(in.pos)
}

// openLine reads one line, the one that in has read last, byte by byte.
func (in *input) openLine(line []byte) *input {
	return &input{name: in.name, buf: line, end: len(line), line: in.line - 1, err: io.EOF}
}

// read adds to buf what r has next.
func (in *input) read() {
	const patience = 100
	for range patience {
		n, err := in.r.Read(in.buf[in.end:])
		in.end += n
		if in.err = err; n > 0 || err != nil {
			return
		}
	}
	in.err = io.ErrNoProgress
}

// more makes room in buf and reads on. It returns io.EOF at the end.
func (in *input) more() error {
	switch {
	case errors.Is(in.err, io.EOF):
		return io.EOF
	case in.err != nil:
		return fmt.Errorf("read %s: %w", in.name, in.err)
	}
	copy(in.buf, in.buf[in.pos:in.end])
	in.begin -= in.pos
	in.end -= in.pos
	in.pos = 0
	fresh := in.end
	if in.read(); in.end == fresh {
		return in.more()
	}
	return in.refuseNUL(fresh)
}

// refuseNUL looks for what no text has, from a byte of buf on.
func (in *input) refuseNUL(from int) error {
	at := bytes.IndexByte(in.buf[from:in.end], 0)
	if at < 0 {
		return nil
	}
	passed := in.buf[in.pos : from+at]
	line, column := in.line+1+bytes.Count(passed, []byte{'\n'}), from+at-in.begin+1
	if last := bytes.LastIndexByte(passed, '\n'); last >= 0 {
		column = len(passed) - last
	}
	return LineError{in.name, line, column, errors.New("a NUL byte: this is not text")}
}

// next returns the next line without its end, valid until the next call, or
// io.EOF. Its number is in.line.
func (in *input) next() ([]byte, error) {
	for searched := 0; ; {
		rest := in.buf[in.pos:in.end]
		if i := bytes.IndexByte(rest[searched:], '\n'); i >= 0 {
			return in.take(rest[:searched+i], 1)
		}
		if searched = len(rest); searched > lineBytes {
			return in.take(rest, 0)
		}
		err := in.more()
		if errors.Is(err, io.EOF) && searched > 0 {
			return in.take(rest, 0)
		}
		if err != nil {
			return nil, err
		}
	}
}

// take moves on behind a line and its end.
func (in *input) take(line []byte, end int) ([]byte, error) {
	in.pos += len(line) + end
	in.begin = in.pos
	in.line++
	if len(line) > lineBytes {
		return nil, LineError{in.name, in.line, 1, fmt.Errorf("the line is longer than %d bytes", lineBytes)}
	}
	return bytes.TrimSuffix(line, []byte{'\r'}), nil
}

// peek returns the next byte without moving on, or io.EOF.
func (in *input) peek() (byte, error) {
	if in.pos == in.end {
		if err := in.more(); err != nil {
			return 0, err
		}
	}
	return in.buf[in.pos], nil
}

// here is the place of the next byte.
func (in *input) here() place { return place{in.line + 1, in.pos - in.begin + 1} }

// wrong is an error about a place.
func (in *input) wrong(at place, format string, args ...any) error {
	return LineError{in.name, at.line, at.column, fmt.Errorf(format, args...)}
}

// space moves on to the next byte that isn't white space and returns it, or
// io.EOF.
func (in *input) space() (byte, error) {
	for {
		c, err := in.peek()
		if err != nil || c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c, err
		}
		in.pos++
		if c == '\n' {
			in.line++
			in.begin = in.pos
		}
	}
}

// firstContent returns the first line that is neither blank nor a comment,
// without white space around it, and moves nowhere. It is empty when there is
// none near the beginning.
func (in *input) firstContent() ([]byte, error) {
	for {
		line, ended := content(in.buf[in.pos:in.end])
		if ended || in.end-in.pos > lineBytes {
			return line, nil
		}
		if err := in.more(); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		} else if err != nil {
			return line, nil
		}
	}
}

// content returns the first line of text that has any, and whether all of it is
// there.
func content(text []byte) (line []byte, ended bool) {
	for line := range bytes.Lines(text) {
		trimmed := bytes.TrimSpace(line)
		if len(trimmed) > 0 && !isComment(trimmed) {
			return trimmed, bytes.HasSuffix(line, []byte{'\n'})
		}
	}
	return nil, false
}

// signatures are how files begin that aren't UTF-8, and how to make them so.
var signatures = []struct{ start, what, command string }{
	{"\xff\xfe\x00\x00", "UTF-32", "iconv -f UTF-32 -t UTF-8"},
	{"\x00\x00\xfe\xff", "UTF-32", "iconv -f UTF-32 -t UTF-8"},
	{"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8"},
	{"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8"},
	{"\x1f\x8b", "compressed by gzip", "gzip -dc"},
	{"\xfd7zXZ\x00", "compressed by xz", "xz -dc"},
	{"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd -dc"},
	{"PK\x03\x04", "a zip archive", "unzip -p"},
}

// refuseSignature looks at the beginning of a file.
func (in *input) refuseSignature(head []byte) error {
	for _, s := range signatures {
		if bytes.HasPrefix(head, []byte(s.start)) {
			return in.notUTF8(s.what, s.command)
		}
	}
	if order := alternatingZeros(head); order != "" {
		return in.notUTF8("UTF-16", "iconv -f UTF-16"+order+" -t UTF-8")
	}
	return nil
}

func (in *input) notUTF8(what, command string) error {
	return fault.New(fault.ErrUsage, "read %s: this is %s, not text in UTF-8", in.name, what).
		Hint("convert it first: %s", command)
}

// alternatingZeros says in which order UTF-16 without a mark has its bytes: "LE"
// or "BE", "" if it isn't that.
func alternatingZeros(head []byte) string {
	var zeros [2]int
	for i, c := range head {
		if c == 0 {
			zeros[i%2]++
		}
	}
	switch few := max(1, len(head)/4); {
	case zeros[1] > few && zeros[0] == 0:
		return "LE"
	case zeros[0] > few && zeros[1] == 0:
		return "BE"
	}
	return ""
}
