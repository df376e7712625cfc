package output

import (
	"bytes"
	"strings"

	"github.com/olekukonko/tablewriter/pkg/twwidth"
)

// Stream writes a stream of small documents, of which several may come at once.
// What is added is kept until Flush writes it.
type Stream struct {
	p *Printer
	b bytes.Buffer
}

// Stream begins a stream.
func (p *Printer) Stream() *Stream { return &Stream{p: p} }

// Add adds one document: its compact JSON, which is a line with json and
// ndjson, or for tables the line, which is escaped.
func (s *Stream) Add(json []byte, line func() string) error {
	switch s.p.format {
	case FormatTable:
		s.b.WriteString(Escape(line()))
	case FormatYAML:
		text, err := yamlOf(json)
		if err != nil {
			return err
		}
		s.b.WriteString("---\n")
		s.b.Write(text)
		return nil
	default:
		s.b.Write(printable(json))
	}
	s.b.WriteByte('\n')
	return nil
}

// AddParts is Add of a line that consists of parts, which are as few lines as fit into
// some columns, the later ones below what follows the first part; 0: it is one line.
func (s *Stream) AddParts(json []byte, columns int, parts func() []string) error {
	if s.p.format != FormatTable {
		return s.Add(json, nil)
	}
	width, indent := 0, 0
	for i, part := range parts() {
		part = Escape(part)
		switch next := twwidth.Width(part); {
		case next == 0:
			continue
		case i == 0:
			indent = next
		case columns > 0 && width > indent && width+1+next > columns:
			s.b.WriteString("\n" + strings.Repeat(" ", indent+1))
			width = indent + 1
		default:
			s.b.WriteByte(' ')
			width++
		}
		s.b.WriteString(part)
		width += twwidth.Width(part)
	}
	s.b.WriteByte('\n')
	return nil
}

// Flush writes what was added since the last one, all at once.
func (s *Stream) Flush() error {
	defer s.b.Reset()
	if s.b.Len() == 0 {
		return nil
	}
	_, err := s.p.w.Write(s.b.Bytes())
	return err
}
