// Package output writes result documents as tables for people or as JSON, YAML
// and NDJSON for programs. It is the only place that knows formats: what is
// written is a plain value with JSON tags, and a function that makes a table of
// it.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"bpfnet/internal/fault"
)

// Format is the value of --output.
type Format string

// The formats.
const (
	FormatTable  Format = "table"
	FormatJSON   Format = "json"
	FormatYAML   Format = "yaml"
	FormatNDJSON Format = "ndjson"
	// FormatCompact is JSON on one line, what --json asks for.
	FormatCompact Format = "compact"
	// FormatPretty is JSON with every key on a line of its own, what --pretty
	// asks for. Only rows differ from FormatJSON.
	FormatPretty Format = "pretty"
)

// Formats lists the values of --output in the order in which help shows them.
func Formats() []string {
	return []string{string(FormatTable), string(FormatJSON), string(FormatYAML), string(FormatNDJSON)}
}

// ParseFormat returns the format of that name, or fault.ErrUsage.
func ParseFormat(name string) (Format, error) {
	for _, f := range Formats() {
		if f == name {
			return Format(f), nil
		}
	}
	return "", fault.New(fault.ErrUsage, "parse output format %q: no such format", name).
		Hint("the formats are %s", strings.Join(Formats(), ", "))
}

// Printer writes documents in one format. It is not safe for concurrent use.
type Printer struct {
	w        io.Writer
	format   Format
	terminal bool
	color    bool
	events   int // written so far
	height   int // in lines, of the frame that the next one replaces
}

// Option changes how a Printer writes.
type Option func(*Printer)

// Terminal makes tables of a stream redraw in place instead of following each
// other, with colour when color is set.
func Terminal(color bool) Option {
	return func(p *Printer) { p.terminal, p.color = true, color }
}

// New returns a Printer that writes to w.
func New(w io.Writer, format Format, options ...Option) *Printer {
	p := &Printer{w: w, format: format}
	for _, option := range options {
		option(p)
	}
	return p
}

// Format returns the format that p writes.
func (p *Printer) Format() Format { return p.format }

// Redraws says whether tables of a stream are redrawn in place.
func (p *Printer) Redraws() bool { return p.terminal && p.format == FormatTable }

// Object writes one document. A table with neither rows nor a footer is not written: the
// answer isn't a list, and there is nothing to show.
func (p *Printer) Object(doc any, table func() Table) error {
	switch p.format {
	case FormatJSON, FormatPretty:
		return p.indented(doc)
	case FormatNDJSON, FormatCompact:
		return p.line(doc)
	case FormatYAML:
		return p.yaml(doc)
	}
	if t := table(); len(t.Rows) > 0 || len(t.Footer) > 0 {
		return p.table(t)
	}
	return nil
}

// List writes a slice of documents: an array, or a line for each with ndjson.
// A nil slice is an empty array.
func (p *Printer) List(docs any, table func() Table) error {
	switch p.format {
	case FormatTable:
		return p.table(table())
	case FormatNDJSON:
		return p.lines(docs)
	}
	array, err := Marshal(docs)
	if err != nil {
		return err
	}
	if bytes.Equal(array, []byte("null")) {
		array = []byte("[]")
	}
	return p.Object(json.RawMessage(array), nil)
}

// Event writes one document of a stream: a line with json and ndjson, a
// document after "---" with yaml. Tables are redrawn on a terminal and follow
// each other, an empty line between, elsewhere.
func (p *Printer) Event(doc any, table func() Table) error {
	first := p.events == 0
	p.events++
	switch p.format {
	case FormatJSON, FormatPretty, FormatNDJSON, FormatCompact:
		return p.line(doc)
	case FormatYAML:
		if _, err := io.WriteString(p.w, "---\n"); err != nil {
			return err
		}
		return p.yaml(doc)
	}
	if p.Redraws() {
		return p.redraw(table())
	}
	return p.frame(table(), first)
}

// frame writes one table of a stream.
func (p *Printer) frame(t Table, first bool) error {
	var b bytes.Buffer
	if !first {
		b.WriteByte('\n')
	}
	if err := t.render(&b, p.color); err != nil {
		return err
	}
	_, err := p.w.Write(b.Bytes())
	return err
}

// redraw writes one table of a stream over the one before. What stands above
// the first one, notes perhaps, stays.
func (p *Printer) redraw(t Table) error {
	var frame, b bytes.Buffer
	if err := t.render(&frame, p.color); err != nil {
		return err
	}
	if t.Below != "" {
		fmt.Fprintln(&frame, Escape(t.Below))
	}
	if p.height > 0 {
		fmt.Fprintf(&b, upAndClear, p.height)
	}
	p.height = bytes.Count(frame.Bytes(), []byte{'\n'})
	b.WriteString(noWrap)
	b.Write(frame.Bytes())
	b.WriteString(wrap)
	_, err := p.w.Write(b.Bytes())
	return err
}

// What a terminal is told.
const (
	upAndClear = "\x1b[%dF\x1b[J" // go to the start of the line so many above, clear from there on
	noWrap     = "\x1b[?7l"       // cut long lines off, so that each takes one line of the screen
	wrap       = "\x1b[?7h"
)

func (p *Printer) table(t Table) error {
	var b bytes.Buffer
	if err := t.render(&b, p.color); err != nil {
		return err
	}
	_, err := p.w.Write(b.Bytes())
	return err
}

func (p *Printer) indented(doc any) error {
	compact, err := Marshal(doc)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		return fmt.Errorf("indent document: %w", err)
	}
	b.WriteByte('\n')
	_, err = p.w.Write(b.Bytes())
	return err
}

func (p *Printer) line(doc any) error {
	b, err := Marshal(doc)
	if err != nil {
		return err
	}
	_, err = p.w.Write(append(b, '\n'))
	return err
}

func (p *Printer) lines(docs any) error {
	array, err := Marshal(docs)
	if err != nil {
		return err
	}
	var items []json.RawMessage
	if err := json.Unmarshal(array, &items); err != nil {
		return fmt.Errorf("split list of documents: %w", err)
	}
	for _, item := range items {
		if err := p.line(item); err != nil {
			return err
		}
	}
	return nil
}

func (p *Printer) yaml(doc any) error {
	b, err := Marshal(doc)
	if err != nil {
		return err
	}
	text, err := yamlOf(b)
	if err != nil {
		return err
	}
	_, err = p.w.Write(text)
	return err
}
