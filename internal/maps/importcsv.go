package maps

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"bpfnet/internal/codec"
)

// readCSV reads RFC 4180.
func (im *importer) readCSV(ctx context.Context, r io.Reader) (explicit bool, err error) {
	limited := &recordReader{Reader: r}
	records := csv.NewReader(limited)
	records.FieldsPerRecord, records.ReuseRecord = -1, true
	c := csvRows{importer: im, r: records}
	next := place{1, 1}
	for first := true; ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		limited.left = entryBytes
		fields, err := records.Read()
		var syntax *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			return explicit, nil
		case errors.Is(err, errRecordTooLong):
			im.problems.add(next, err)
			return explicit, nil
		case errors.As(err, &syntax):
			im.problems.add(place{uint32(syntax.Line), uint32(syntax.Column)}, quoteError(syntax))
		case err != nil:
			return false, fmt.Errorf("read %s: %w", im.request.Source, err)
		case first && c.header(fields):
			explicit, first = true, false
		default:
			first = false
			c.row(fields)
		}
		if err == nil {
			next = c.after(fields)
		}
	}
}

var errRecordTooLong = fmt.Errorf("a record is longer than %d bytes", entryBytes)

// recordReader ends with errRecordTooLong when a record takes more than what is
// left: a quote that is never closed would else fill the memory.
type recordReader struct {
	io.Reader
	left int
}

func (r *recordReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errRecordTooLong
	}
	n, err := r.Reader.Read(p)
	r.left -= n
	return n, err
}

// quoteError says where a record began whose quotes are wrong lines later.
func quoteError(err *csv.ParseError) error {
	if err.StartLine == err.Line {
		return err.Err
	}
	return fmt.Errorf("%w, of the record that begins on line %d", err.Err, err.StartLine)
}

// csvRows reads records, whose columns a header may name.
type csvRows struct {
	*importer
	r          *csv.Reader
	columns    int // 0: there is no header
	key, value columns
}

// columns are those that make up a key or a value: one with its text, or one
// for each of the members that are named.
type columns struct {
	numbers []int
	members []string // nil: the one column has all of it
}

func (c *csvRows) at(column int) place {
	line, at := c.r.FieldPos(column)
	return place{uint32(line), uint32(at)}
}

// after is where the record behind these fields begins.
func (c *csvRows) after(fields []string) place {
	last := len(fields) - 1
	return place{c.at(last).line + uint32(strings.Count(fields[last], "\n")) + 1, 1}
}

func (c *csvRows) part(fields []string, column int) part {
	return part{fields[column], c.at(column)}
}

// header reads the names of the columns: key, value, and members of either. The
// first column may have any other name, and is the key then. A name that both
// have is the key's, value.NAME the value's. It returns false when the record is
// an entry.
func (c *csvRows) header(fields []string) bool {
	var key, value columns
	for i, field := range fields {
		switch name := strings.TrimSpace(field); {
		case name == "key" || name == "value":
			side := map[string]*columns{"key": &key, "value": &value}[name]
			side.numbers = append(side.numbers, i)
		case c.names(&key, c.handle.key, "key.", name, i), c.names(&value, c.handle.value, "value.", name, i):
		case i > 0 || len(fields) == 1:
			return false
		default:
			key.numbers = append(key.numbers, i)
		}
	}
	if !key.whole() || len(value.numbers) > 0 && !value.whole() {
		return false
	}
	c.columns, c.key, c.value = len(fields), key, value
	return true
}

// whole says that the columns are either one for all or each for a member.
func (c columns) whole() bool {
	return len(c.members) == len(c.numbers) && len(c.numbers) > 0 || len(c.members) == 0 && len(c.numbers) == 1
}

// names adds a column if it is called like a member.
func (c *csvRows) names(to *columns, of *codec.Codec, prefix, name string, i int) bool {
	member := strings.TrimPrefix(name, prefix)
	if c.kind.perCPU && prefix == "value." || !slices.Contains(of.Members(), member) || slices.Contains(to.members, member) {
		return false
	}
	to.numbers, to.members = append(to.numbers, i), append(to.members, member)
	return true
}

func (c *csvRows) row(fields []string) {
	switch {
	case c.columns > 0 && len(fields) != c.columns:
		c.done.Entries++
		c.problems.add(c.at(0), fmt.Errorf("%d columns, the header has %d", len(fields), c.columns))
	case c.columns > 0:
		c.named(fields)
	case len(fields) > 2:
		c.done.Entries++
		c.problems.add(c.at(2), fmt.Errorf("more than two columns take a header that names them, like %s", c.exampleHeader()))
	case len(fields) == 1:
		c.texts(c.part(fields, 0), nil)
	default:
		value := c.part(fields, 1)
		c.texts(c.part(fields, 0), &value)
	}
}

func (c *csvRows) exampleHeader() string {
	if members := c.handle.value.Members(); members != nil {
		return "key," + strings.Join(members, ",")
	}
	return "key,value"
}

// named takes over a record below a header.
func (c *csvRows) named(fields []string) {
	count := c.problems.count
	c.side(fields, c.key, "key", c.handle.key, c.importer.key, func(text string) error {
		data, err := c.handle.key.Parse(text)
		copy(c.importer.key, data)
		return err
	})
	if len(c.value.numbers) == 0 {
		if err := c.noValue(); err != nil {
			c.problems.add(c.at(c.key.numbers[0]), err)
		}
	} else {
		c.side(fields, c.value, "value", c.handle.value, c.importer.value, c.valueText)
	}
	c.finish(count, c.at(c.key.numbers[0]))
}

// side reads a key or a value from its columns.
func (c *csvRows) side(fields []string, from columns, what string, of *codec.Codec, to []byte, parse func(string) error) {
	if from.members == nil {
		if err := parse(fields[from.numbers[0]]); err != nil {
			c.problems.add(c.at(from.numbers[0]), fmt.Errorf("%s: %w", what, err))
		}
		return
	}
	texts := make([]string, len(from.numbers))
	for i, column := range from.numbers {
		texts[i] = fields[column]
	}
	if err := of.ParseMembers(to, from.members, texts); err != nil {
		c.problems.add(c.at(from.column(codec.Path(err))), fmt.Errorf("%s: %w", what, err))
	}
}

// column is the one of the member that the path of an error begins with.
func (c columns) column(path string) int {
	if end := strings.IndexAny(path, ".["); end >= 0 {
		path = path[:end]
	}
	return c.numbers[max(0, slices.Index(c.members, path))]
}
