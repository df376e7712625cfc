package output

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/olekukonko/tablewriter"
	"github.com/olekukonko/tablewriter/pkg/twwidth"
	"github.com/olekukonko/tablewriter/renderer"
	"github.com/olekukonko/tablewriter/tw"
)

// Table is what people see of a document. Cells are escaped when they are
// written; an empty cell is shown as "-".
type Table struct {
	Header []string
	Rows   [][]string
	Footer []string // totals, below the rows; may be nil
	Below  string   // a line below a table that is redrawn, such as which keys do what
}

// render writes the table: header in capitals, columns of numbers to the right,
// no trailing blanks. A table without rows is its header.
func (t Table) render(w io.Writer, color bool) error {
	var b bytes.Buffer
	table := tablewriter.NewTable(&b, tableOptions()...)
	header, lines := capitals(t.Header), t.lines()
	for column := range header {
		if numeric(t.Rows, column) {
			alignRight(append([][]string{header}, lines...), column)
		}
	}
	table.Header(header)
	for _, row := range lines {
		if err := table.Append(row); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
	}
	if err := table.Render(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return trimBlanks(w, &b, color)
}

// Fit makes a table one that isn't wider than a terminal. It drops columns in an order,
// those first that are empty, and then shortens the widest.
func (t Table) Fit(columns int, drop ...string) Table {
	for _, empty := range []bool{true, false} {
		for _, name := range drop {
			at := slices.Index(t.Header, name)
			if at >= 0 && (empty && t.isEmpty(at) || !empty && t.width() > columns) {
				t = t.without(at)
			}
		}
	}
	for range t.Header {
		widths := t.widths()
		widest := slices.Index(widths, slices.Max(widths))
		if t.width() <= columns || widths[widest] <= leastCell {
			break
		}
		t = t.shortened(widest, max(leastCell, widths[widest]-(t.width()-columns)))
	}
	return t
}

// leastCell is how short a cell may become, in columns of the terminal.
const leastCell = 8

// between is what stands between two columns.
const between = "  "

func (t Table) isEmpty(column int) bool {
	return !slices.ContainsFunc(t.Rows, func(row []string) bool { return cell(row, column) != "-" })
}

func (t Table) widths() []int {
	widths := make([]int, len(t.Header))
	for _, line := range append(t.lines(), t.Header) {
		for i, text := range line {
			widths[i] = max(widths[i], twwidth.Width(text))
		}
	}
	return widths
}

func (t Table) width() int {
	sum := len(between) * (len(t.Header) - 1)
	for _, width := range t.widths() {
		sum += width
	}
	return sum
}

func (t Table) without(column int) Table {
	cut := func(row []string) []string {
		if column >= len(row) {
			return row
		}
		return slices.Delete(slices.Clone(row), column, column+1)
	}
	t.Header, t.Footer = cut(t.Header), cut(t.Footer)
	rows := make([][]string, len(t.Rows))
	for i, row := range t.Rows {
		rows[i] = cut(row)
	}
	t.Rows = rows
	return t
}

// shortened leaves the beginnings and ends of a column's cells.
func (t Table) shortened(column, most int) Table {
	t.Rows = slices.Clone(t.Rows)
	for i, row := range t.Rows {
		text := []rune(cell(row, column))
		if twwidth.Width(string(text)) <= most {
			continue
		}
		begin, end := len(text)/2, len(text)/2
		for twwidth.Width(string(text[:begin]))+1+twwidth.Width(string(text[end:])) > most {
			if begin > len(text)-end {
				begin--
			} else {
				end++
			}
		}
		t.Rows[i] = slices.Clone(row)
		t.Rows[i][column] = string(text[:begin]) + "…" + string(text[end:])
	}
	return t
}

// lines returns the escaped rows with the footer below.
func (t Table) lines() [][]string {
	rows := t.Rows
	if len(t.Footer) > 0 {
		rows = append(rows[:len(rows):len(rows)], t.Footer)
	}
	lines := make([][]string, len(rows))
	for i, row := range rows {
		lines[i] = make([]string, len(t.Header))
		for j := range lines[i] {
			lines[i][j] = cell(row, j)
		}
	}
	return lines
}

func cell(row []string, column int) string {
	if column >= len(row) || row[column] == "" {
		return "-"
	}
	text := Escape(row[column])
	if strings.Trim(text, " ") == "" {
		return strconv.Quote(text) // or nobody sees it
	}
	return text
}

func capitals(header []string) []string {
	upper := make([]string, len(header))
	for i, h := range header {
		upper[i] = strings.ToUpper(h)
	}
	return upper
}

func tableOptions() []tablewriter.Option {
	cells := tw.CellConfig{
		Formatting: tw.CellFormatting{AutoWrap: tw.WrapNone, AutoFormat: tw.Off},
		Alignment:  tw.CellAlignment{Global: tw.AlignLeft},
		Padding:    tw.CellPadding{Global: tw.Padding{Right: between, Overwrite: true}},
	}
	return []tablewriter.Option{
		tablewriter.WithConfig(tablewriter.Config{Header: cells, Row: cells, Behavior: tw.Behavior{TrimSpace: tw.Off}}),
		tablewriter.WithRenderer(renderer.NewBlueprint(tw.Rendition{
			Borders: tw.BorderNone,
			Settings: tw.Settings{
				Separators: tw.SeparatorsNone,
				Lines:      tw.LinesNone,
			},
		})),
	}
}

// alignRight pads the cells of a column on the left. The library would do so with
// what stands before a cell, which is nothing here.
func alignRight(lines [][]string, column int) {
	widest := 0
	for _, line := range lines {
		widest = max(widest, twwidth.Width(line[column]))
	}
	for _, line := range lines {
		line[column] = strings.Repeat(" ", widest-twwidth.Width(line[column])) + line[column]
	}
}

// numeric says whether every cell of a column is empty or a number, with a unit
// perhaps, and at least one is.
func numeric(rows [][]string, column int) bool {
	found := false
	for _, row := range rows {
		if column >= len(row) || row[column] == "" || row[column] == "-" {
			continue
		}
		if !number(row[column]) {
			return false
		}
		found = true
	}
	return found
}

// number accepts "12", "-1", "1.2 kB", "5%", and not "10.0.0.1" or "2 links".
func number(text string) bool {
	digits, unit, _ := strings.Cut(text, " ")
	digits = strings.TrimSuffix(strings.TrimPrefix(digits, "-"), "%")
	if digits == "" || strings.Count(digits, ".") > 1 || strings.Trim(digits, "0123456789.") != "" {
		return false
	}
	return isUnit(unit)
}

// trimBlanks copies a table without trailing blanks and empty lines, its header
// bold when color is set.
func trimBlanks(w io.Writer, table io.Reader, color bool) error {
	var b bytes.Buffer
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 16<<20)
	for header := true; lines.Scan(); {
		line := strings.TrimRight(lines.Text(), " ")
		switch {
		case line == "":
			continue
		case header && color:
			line = "\x1b[1m" + line + "\x1b[0m"
		}
		header = false
		b.WriteString(line + "\n")
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}
