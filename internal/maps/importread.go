package maps

import (
	"bufio"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"bpfnet/internal/codec"
)

// readInput reads the entries of the input, whose format its name or first
// characters tell. explicit is false for an input without any content.
func (im *importer) readInput(ctx context.Context) (explicit bool, err error) {
	w := &window{r: im.request.Input, source: im.request.Source, line: 1, column: 1}
	if err := w.more(); err != nil {
		return false, err
	}
	w.text = strings.TrimPrefix(w.text, "\ufeff")
	rest := io.MultiReader(strings.NewReader(w.text), w.r)
	switch {
	case strings.HasSuffix(im.request.Source, ".csv"):
		return im.readCSV(ctx, rest)
	case strings.HasPrefix(strings.TrimLeft(w.text, " \t\r\n"), "{"), strings.HasPrefix(strings.TrimLeft(w.text, " \t\r\n"), "["):
		return im.readJSON(ctx, w)
	case looksLikeCSV(w.text):
		return im.readCSV(ctx, rest)
	}
	return im.readLines(ctx, rest)
}

// looksLikeCSV says whether the first line with content has a comma before any
// white space outside of quotes.
func looksLikeCSV(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		quoted := false
		for i := range len(line) {
			switch c := line[i]; {
			case c == '"':
				quoted = !quoted
			case !quoted && c == ',':
				return true
			case !quoted && (c == ' ' || c == '\t'):
				return false
			}
		}
		return false
	}
	return false
}

// window is the part of the input that is being read.
type window struct {
	r            io.Reader
	source       string
	text         string
	ended        bool
	mark         int // the byte of text that line and column are of
	line, column uint32
}

// The sizes of a window, and of what may be one entry.
const (
	windowBytes = 256 << 10
	entryBytes  = 64 << 20
)

// more drops what was read, up to the mark, and reads on.
func (w *window) more() error {
	rest := w.text[w.mark:]
	next := make([]byte, max(windowBytes, len(rest)))
	n, err := io.ReadFull(w.r, next)
	w.ended = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !w.ended {
		return fmt.Errorf("read %s: %w", w.source, err)
	}
	w.text, w.mark = rest+string(next[:n]), 0
	return nil
}

// advance moves the mark.
func (w *window) advance(to int) {
	at := w.at(to)
	w.mark, w.line, w.column = to, at.line, at.column
}

// at returns the place of a byte at or behind the mark.
func (w *window) at(to int) place {
	passed := w.text[w.mark:to]
	if last := strings.LastIndexByte(passed, '\n'); last >= 0 {
		return place{w.line + uint32(strings.Count(passed, "\n")), uint32(len(passed) - last)}
	}
	return place{w.line, w.column + uint32(len(passed))}
}

// plainDump is how bpftool begins a dump with types when it isn't asked for
// JSON: it looks like bpfnet's, but numbers in network order are different.
const plainDump = "[{\n        \"key\":"

// readJSON reads rows, one after the other or in arrays.
func (im *importer) readJSON(ctx context.Context, w *window) (bool, error) {
	if strings.HasPrefix(w.text, plainDump) && (im.handle.key.HasNetworkOrder() || im.handle.value.HasNetworkOrder()) {
		im.problems.add(place{1, 1}, errors.New("bpftool prints numbers in network order differently without -j: use bpftool -j map dump"))
		return true, nil
	}
	rows := jsonRows{importer: im, w: w, d: codec.Decoder{Text: w.text}}
	for {
		if im.done.Entries%1024 == 0 && ctx.Err() != nil {
			return true, ctx.Err()
		}
		if more, err := rows.next(); !more || err != nil {
			return true, err
		}
	}
}

// jsonRows reads entries in JSON, and of arrays the brackets around them.
type jsonRows struct {
	*importer
	w       *window
	d       codec.Decoder
	inArray bool
	after   bool // an element of the array was read
}

// next reads one row or bracket. It returns false at the end, and when it can't
// go on.
func (j *jsonRows) next() (bool, error) {
	for {
		start := j.d.Pos
		ended, err := j.step()
		var syntax *codec.SyntaxError
		switch {
		case !errors.As(err, &syntax):
			j.w.advance(j.d.Pos)
			return !ended, nil
		case !syntax.Short || j.w.ended:
			j.problems.add(j.w.at(syntax.At), err)
			return j.resume(syntax.At), nil
		case len(j.w.text)-start > entryBytes:
			j.problems.add(j.w.at(start), fmt.Errorf("an entry is longer than %d bytes", entryBytes))
			return false, nil
		}
		j.w.advance(start)
		if err := j.w.more(); err != nil {
			return false, err
		}
		j.d = codec.Decoder{Text: j.w.text}
	}
}

// resume goes on after a row that is wrong, when each has a line of its own.
func (j *jsonRows) resume(wrong int) bool {
	end := strings.IndexByte(j.w.text[wrong:], '\n')
	if j.inArray || end < 0 || strings.IndexByte(j.w.text[j.w.mark:wrong], '\n') > 0 {
		return false
	}
	j.w.advance(wrong + end)
	j.d = codec.Decoder{Text: j.w.text, Pos: wrong + end}
	return true
}

// step reads one bracket, comma or row.
func (j *jsonRows) step() (ended bool, err error) {
	c := j.d.Next()
	switch {
	case j.d.Pos == len(j.d.Text):
		if j.inArray || !j.w.ended {
			return false, &codec.SyntaxError{At: j.d.Pos, Message: "the JSON ends too early", Short: true}
		}
		return true, nil
	case !j.inArray && c == '[':
		j.inArray, j.after = true, false
		j.d.Pos++
		return false, nil
	case j.inArray && c == ']':
		j.inArray = false
		j.d.Pos++
		return false, nil
	case j.inArray && j.after:
		if c != ',' {
			return false, &codec.SyntaxError{At: j.d.Pos, Message: fmt.Sprintf("%q is neither ',' nor ']'", c)}
		}
		j.d.Pos++
		j.d.Next()
	}
	if err := j.row(); err != nil {
		return false, err
	}
	j.after = j.inArray
	return false, nil
}

// row reads an entry: {"key":…,"value":…} in the words of bpfnet or bpftool.
func (j *jsonRows) row() error {
	start := j.d.Pos
	r := jsonRow{keyAt: -1, valueAt: -1}
	if err := j.d.Members(func(name string) error { return r.member(&j.d, name) }); err != nil {
		return err
	}
	switch {
	case r.keyAt < 0:
		j.problems.add(j.w.at(start), errors.New(`the entry has no member "key"`))
	case r.valueAt < 0:
		j.problems.add(j.w.at(start), errors.New(`the entry has no member "value"`))
	default:
		j.take(r)
	}
	return nil
}

// jsonRow is an entry and where its parts stand.
type jsonRow struct {
	key, value     codec.JSON
	keyAt, valueAt int
}

func (r *jsonRow) member(d *codec.Decoder, name string) (err error) {
	at := d.Pos
	switch name {
	case "key":
		return r.set(d, name, &r.key, &r.keyAt)
	case "value", "values":
		return r.set(d, name, &r.value, &r.valueAt)
	case "formatted", "inner_map_id", "schema", "map", "map_id":
		return d.Skip() // what bpftool says twice, and what map get adds
	}
	return &codec.SyntaxError{At: at, Message: fmt.Sprintf("an entry has no member %q", name)}
}

// isAbsent says that the row is what bpftool prints for an empty slot.
func (r *jsonRow) isAbsent() bool {
	message, ok := r.value.Only("error")
	_, bytewise := r.key.Bytes()
	text, _ := message.Scalar()
	return ok && bytewise && text == "No such file or directory"
}

func (r *jsonRow) set(d *codec.Decoder, name string, to *codec.JSON, at *int) (err error) {
	if *at >= 0 {
		return &codec.SyntaxError{At: d.Pos, Message: fmt.Sprintf("member %q is there twice", name)}
	}
	*at = d.Pos
	*to, err = d.Value()
	return err
}

// take reads key and value of a row.
func (j *jsonRows) take(r jsonRow) {
	if r.isAbsent() {
		return
	}
	keyErr := j.handle.key.ParseJSON(j.key, r.key)
	if keyErr != nil {
		j.wrong("key", r.keyAt, keyErr)
	}
	valueErr := j.parseValueJSON(r.value)
	if valueErr != nil {
		j.wrong("value", r.valueAt, valueErr)
	}
	if keyErr == nil && valueErr == nil {
		j.entry(j.w.at(r.keyAt))
	} else {
		j.done.Entries++
	}
}

// wrong notes that a part of the value at at doesn't fit.
func (j *jsonRows) wrong(what string, at int, err error) {
	d := codec.Decoder{Text: j.d.Text, Pos: at}
	d.Locate(codec.Path(err))
	j.problems.add(j.w.at(d.Pos), fmt.Errorf("%s: %w", what, err))
}

// parseValueJSON reads a value into im.value.
func (im *importer) parseValueJSON(v codec.JSON) error {
	switch {
	case im.kind.holds != "":
		return im.objectJSON(v)
	case im.kind.perCPU:
		return im.handle.value.ParsePerCPUJSON(im.value, v, im.stride, im.cpus)
	}
	if err := im.handle.value.ParseJSON(im.value, v); err != nil {
		return err
	}
	return im.checkProgram()
}

// checkProgram looks for the program that a value ends with, if it does.
func (im *importer) checkProgram() error {
	if !im.endsWithProgram() {
		return nil
	}
	_, release, err := im.openValue(im.value)
	if err == nil {
		release()
	}
	return err
}

// objectJSON reads the id, or the name, of a map or program.
func (im *importer) objectJSON(v codec.JSON) error {
	if id, ok := v.Bytes(); ok && len(id) == 4 {
		return im.objectText(strconv.FormatUint(uint64(prefixLength(id)), 10))
	}
	text, ok := v.Scalar()
	if !ok {
		return fmt.Errorf("%s is not the id of a %s", v, im.kind.holds)
	}
	return im.objectText(text)
}

// objectText finds the map or program that text names, as map set does.
func (im *importer) objectText(text string) error {
	id, known := im.objects[text]
	if !known {
		v, release, err := im.store.parseObject(im.handle, text)
		if err != nil {
			return err
		}
		release()
		id = prefixLength(v.read)
		im.objects[text] = id
	}
	copy(im.value, word(id))
	return nil
}

// valueText reads a value that is written as map set takes it.
func (im *importer) valueText(text string) error {
	if im.kind.holds != "" {
		return im.objectText(text)
	}
	if im.kind.perCPU {
		value, _, err := im.handle.value.ParsePerCPU(text, im.stride, im.cpus)
		copy(im.value, value)
		return err
	}
	value, err := im.handle.value.Parse(text)
	if err != nil {
		return err
	}
	copy(im.value, value)
	return im.checkProgram()
}

// noValue is the value of a line that has only a key: a set's members are 1.
func (im *importer) noValue() error {
	if im.kind.holds == "" && im.handle.value.IsNumber() {
		return im.valueText("1")
	}
	return fmt.Errorf("the value is missing: %s", im.handle.value.Form())
}

// part is a field of a line and where it stands.
type part struct {
	text string
	at   place
}

// texts takes over the entry that two texts are; value is nil when there is
// none.
func (im *importer) texts(key part, value *part) {
	count := im.problems.count
	data, err := im.handle.key.Parse(key.text)
	if err != nil {
		im.problems.add(key.at, fmt.Errorf("key: %w", err))
	}
	copy(im.key, data)
	if value == nil {
		if err := im.noValue(); err != nil {
			im.problems.add(key.at, err)
		}
	} else if err := im.valueText(value.text); err != nil {
		im.problems.add(value.at, fmt.Errorf("value: %w", err))
	}
	im.finish(count, key.at)
}

// finish takes over an entry, unless there are more problems than before it.
func (im *importer) finish(before int, at place) {
	if im.problems.count > before {
		im.done.Entries++
		return
	}
	im.entry(at)
}

// readLines reads "KEY VALUE" lines. What begins with # is a comment.
func (im *importer) readLines(ctx context.Context, r io.Reader) (explicit bool, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), entryBytes)
	number := uint32(1)
	for ; lines.Scan(); number++ {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		line := strings.TrimRight(lines.Text(), " \t\r")
		text := strings.TrimLeft(line, " \t")
		if text == "" || text[0] == '#' {
			continue
		}
		im.line(text, place{number, uint32(len(line)-len(text)) + 1})
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		im.problems.add(place{number, 1}, fmt.Errorf("a line is longer than %d bytes", entryBytes))
	case err != nil:
		return false, fmt.Errorf("read %s: %w", im.request.Source, err)
	}
	return false, nil
}

func (im *importer) line(text string, at place) {
	end := keyEnd(text)
	key := part{text[:end], at}
	rest := strings.TrimLeft(text[end:], " \t")
	if rest == "" {
		im.texts(key, nil)
		return
	}
	im.texts(key, &part{rest, place{at.line, at.column + uint32(len(text)-len(rest))}})
}

// keyEnd is where the first word of a line ends; one in quotes may have spaces.
func keyEnd(text string) int {
	if text[0] == '"' {
		d := codec.Decoder{Text: text}
		if d.Skip() == nil {
			return d.Pos
		}
	}
	if end := strings.IndexAny(text, " \t"); end >= 0 {
		return end
	}
	return len(text)
}

// readCSV reads RFC 4180.
func (im *importer) readCSV(ctx context.Context, r io.Reader) (explicit bool, err error) {
	records := csv.NewReader(r)
	records.FieldsPerRecord, records.ReuseRecord = -1, true
	c := csvRows{importer: im, r: records}
	for first := true; ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		fields, err := records.Read()
		var syntax *csv.ParseError
		switch {
		case errors.Is(err, io.EOF):
			return explicit, nil
		case errors.As(err, &syntax):
			im.problems.add(place{uint32(syntax.Line), uint32(syntax.Column)}, syntax.Err)
		case err != nil:
			return false, fmt.Errorf("read %s: %w", im.request.Source, err)
		case first && c.header(fields):
			explicit, first = true, false
		default:
			first = false
			c.row(fields)
		}
	}
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
