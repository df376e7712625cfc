package output

import "bytes"

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

// Flush writes what was added since the last one, all at once.
func (s *Stream) Flush() error {
	defer s.b.Reset()
	if s.b.Len() == 0 {
		return nil
	}
	_, err := s.p.w.Write(s.b.Bytes())
	return err
}
