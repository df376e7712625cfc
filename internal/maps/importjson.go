package maps

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bpfnet/internal/codec"
)

// plainDump is how bpftool begins a dump with types when it isn't asked for
// JSON: it looks like bpfnet's, but numbers in network order are different.
const plainDump = "[{\n        \"key\":"

// isPlainDump tells it from bpftool -p, whose keys are bytes.
func isPlainDump(text string) bool {
	rest, ok := strings.CutPrefix(text, plainDump)
	return ok && !strings.HasPrefix(strings.TrimLeft(rest, " \n"), `["0x`)
}

// readJSON reads rows, one after the other or in arrays.
func (im *importer) readJSON(ctx context.Context, w *window) (bool, error) {
	if isPlainDump(w.text) && (im.handle.key.HasNetworkOrder() || im.handle.value.HasNetworkOrder()) {
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
