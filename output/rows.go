package output

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
)

// Rows writes a list whose length isn't known, an item at a time and in
// constant memory. Close completes the document.
type Rows struct {
	p     *Printer
	w     *bufio.Writer
	count int
}

// Rows begins a list.
func (p *Printer) Rows() *Rows {
	return &Rows{p: p, w: bufio.NewWriterSize(p.w, 64<<10)}
}

// Add writes one item: its compact JSON, or for tables the line, which is
// escaped.
func (r *Rows) Add(item []byte, line func() string) error {
	r.count++
	var err error
	switch r.p.format {
	case FormatTable:
		_, err = r.w.WriteString(Escape(line()) + "\n")
	case FormatNDJSON:
		err = r.line(item)
	case FormatYAML:
		err = r.yaml(item)
	case FormatCompact:
		err = r.element(printable(item), "[", ",")
	case FormatPretty:
		err = r.pretty(item)
	default:
		err = r.element(printable(item), "[\n  ", ",\n  ")
	}
	return err
}

func (r *Rows) line(item []byte) error {
	if _, err := r.w.Write(printable(item)); err != nil {
		return err
	}
	return r.w.WriteByte('\n')
}

// element writes an element of a JSON array, behind first if it is the first.
func (r *Rows) element(text []byte, first, separator string) error {
	if r.count == 1 {
		separator = first
	}
	if _, err := r.w.WriteString(separator); err != nil {
		return err
	}
	_, err := r.w.Write(text)
	return err
}

func (r *Rows) pretty(item []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, printable(item), "  ", "  "); err != nil {
		return fmt.Errorf("indent row: %w", err)
	}
	return r.element(b.Bytes(), "[\n  ", ",\n  ")
}

func (r *Rows) yaml(item []byte) error {
	text, err := yamlOf(append(append([]byte("["), item...), ']'))
	if err != nil {
		return err
	}
	_, err = r.w.Write(text)
	return err
}

// Close ends the list and writes what is still buffered.
func (r *Rows) Close() error {
	if _, err := r.w.WriteString(r.end()); err != nil {
		return err
	}
	return r.w.Flush()
}

func (r *Rows) end() string {
	empty := r.count == 0
	switch r.p.format {
	case FormatJSON, FormatPretty:
		if empty {
			return "[]\n"
		}
		return "\n]\n"
	case FormatCompact:
		if empty {
			return "[]\n"
		}
		return "]\n"
	case FormatYAML:
		if empty {
			return "[]\n"
		}
	}
	return ""
}
