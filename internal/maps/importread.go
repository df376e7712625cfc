package maps

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
