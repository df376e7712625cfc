package feed

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
)

// csvReader reads rows. A row is a line: texts in quotes end on it.
type csvReader struct {
	*reader
	separator byte // 0 until the first row
	cells     []cell
	column    int // where the entries are; -1 as long as that isn't known
	reasons   int // where comments are; -1 for nowhere
}

// cell is a field of a row, where it begins, and what is wrong with it.
type cell struct {
	text   []byte
	column int
}

func (r *reader) readCSV() error {
	c := &csvReader{reader: r, column: -1, reasons: -1}
	return r.lines(c.line)
}

func (c *csvReader) line(line []byte, number int) error {
	if text := bytes.TrimSpace(line); len(text) == 0 || text[0] == '#' {
		return nil
	}
	first := c.separator == 0
	if first {
		c.separator = separatorOf(line)
	}
	if at, err := c.split(line); err != nil {
		c.wrong(place{number, at + 1}, err)
		return nil
	}
	if first {
		header, err := c.header(number)
		if header || err != nil {
			return err
		}
	}
	return c.row(number)
}

// separatorOf returns the separator that a row has most often outside of quotes.
func separatorOf(line []byte) byte {
	var counts [256]int
	quoted := false
	for _, c := range line {
		quoted = quoted != (c == '"')
		if !quoted {
			counts[c]++
		}
	}
	best := byte(',')
	for _, c := range []byte(";\t") {
		if counts[c] > counts[best] {
			best = c
		}
	}
	return best
}

// split fills the cells. It returns where a quote is wrong.
func (c *csvReader) split(line []byte) (int, error) {
	c.cells = c.cells[:0]
	for pos := 0; ; {
		start := pos
		for start < len(line) && isBlank(line[start]) && line[start] != c.separator {
			start++
		}
		text, end, err := c.cell(line, start)
		if err != nil {
			return end, err
		}
		c.cells = append(c.cells, cell{text, start + 1})
		if end == len(line) {
			return 0, nil
		}
		pos = end + 1
	}
}

// cell returns a field and where the separator behind it is, or its quote that is
// wrong.
func (c *csvReader) cell(line []byte, start int) (text []byte, end int, err error) {
	if start == len(line) || line[start] != '"' {
		end = len(line)
		if i := bytes.IndexByte(line[start:], c.separator); i >= 0 {
			end = start + i
		}
		return bytes.TrimRight(line[start:end], " \t\r"), end, nil
	}
	closing := closingQuote(line, start+1)
	if closing < 0 {
		return nil, start, errors.New("a quote is not closed on its line")
	}
	end = closing + 1
	for end < len(line) && isBlank(line[end]) && line[end] != c.separator {
		end++
	}
	if end < len(line) && line[end] != c.separator {
		return nil, end, errors.New("text stands behind a quote that is closed")
	}
	return bytes.TrimSpace(bytes.ReplaceAll(line[start+1:closing], []byte(`""`), []byte(`"`))), end, nil
}

// closingQuote returns where the quotes around a field end; two of them are one
// within it.
func closingQuote(line []byte, from int) int {
	for i := from; i < len(line); i++ {
		if line[i] != '"' {
			continue
		}
		if i+1 == len(line) || line[i+1] != '"' {
			return i
		}
		i++
	}
	return -1
}

// header looks at the first row, which is a header if it has no entry where it
// should, and finds the column that was asked for.
func (c *csvReader) header(number int) (bool, error) {
	if c.Column != "" {
		if err := c.asked(); err != nil {
			return false, err
		}
	} else if c.column = c.find(); c.column >= 0 {
		return false, nil
	}
	if c.column >= 0 && c.column < len(c.cells) && c.isData(c.cells[c.column].text) {
		return false, nil
	}
	c.reasons = slices.IndexFunc(c.cells, func(cell cell) bool {
		return slices.Contains([]string{"reason", "comment", "sblid"}, strings.ToLower(string(cell.text)))
	})
	return true, nil
}

func (c *csvReader) isData(text []byte) bool {
	address, domain := isEntry(text)
	return address || domain
}

// asked finds the column of the options.
func (c *csvReader) asked() error {
	if n, err := strconv.Atoi(c.Column); err == nil && n > 0 {
		c.column = n - 1
		return nil
	}
	names := make([]string, len(c.cells))
	for i, cell := range c.cells {
		names[i] = string(cell.text)
	}
	if c.column = slices.IndexFunc(names, func(name string) bool { return strings.EqualFold(name, c.Column) }); c.column >= 0 {
		return nil
	}
	err := fault.New(fault.ErrUsage, "read %s: no column %q in its first row", c.Name, c.Column)
	if near := nearest.Word(c.Column, names); near != "" {
		return err.Hint("did you mean %q?", near)
	}
	return err.Hint("a number from 1 names a column, too")
}

// find returns the column of the first entry in a row, -1 if there is none. An
// address goes before a domain, or the other way round.
func (c *csvReader) find() int {
	address, domain := -1, -1
	for i := len(c.cells) - 1; i >= 0; i-- {
		isAddress, isDomain := isEntry(c.cells[i].text)
		if isAddress {
			address = i
		}
		if isDomain {
			domain = i
		}
	}
	if domain >= 0 && (c.Domains || address < 0) {
		return domain
	}
	return address
}

func (c *csvReader) row(number int) error {
	if c.column < 0 {
		c.column = c.find()
	}
	switch {
	case c.column < 0:
		c.wrong(place{number, 1}, errors.New("no column has an address, prefix or domain"))
		return nil
	case c.column >= len(c.cells):
		c.wrong(place{number, 1}, fmt.Errorf("the row has %d columns, the entries are in column %d", len(c.cells), c.column+1))
		return nil
	}
	e := Entry{}
	if c.reasons >= 0 && c.reasons < len(c.cells) {
		e.Reason = reason(c.cells[c.reasons].text)
	}
	return c.entry(c.cells[c.column].text, place{number, c.cells[c.column].column}, e)
}
