package feed

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"

	"gopkg.in/yaml.v3"

	"bpfnet/internal/fault"
)

// yamlBytes is the most that is read: unlike the other formats, YAML is read
// whole.
const yamlBytes = 16 << 20

func (r *reader) readYAML() error {
	text, err := r.wholeText()
	if err != nil {
		return err
	}
	for documents := yaml.NewDecoder(text); ; {
		var document yaml.Node
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return r.brokenYAML(err)
		}
		if err := r.yamlValue(&document); err != nil {
			return err
		}
	}
}

func (r *reader) wholeText() (*bytes.Buffer, error) {
	var text bytes.Buffer
	err := r.lines(func(line []byte, _ int) error {
		if text.Len() > yamlBytes {
			return fault.New(fault.ErrUsage, "read %s: YAML is read only up to %d MiB", r.Name, yamlBytes>>20).
				Hint("write it as NDJSON")
		}
		text.Write(line)
		return text.WriteByte('\n')
	})
	return &text, err
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// brokenYAML moves the line that an error is about to its front. Its column isn't
// known.
func (r *reader) brokenYAML(err error) error {
	message, line := err.Error(), 1
	if match := yamlError.FindStringSubmatch(message); match != nil {
		message = message[len(match[0]):]
		if n, err := strconv.Atoi(match[1]); err == nil {
			line = n
		}
	}
	return r.in.wrong(place{line, 1}, "%s", message)
}

// yamlValue reads what JSON has as a value.
func (r *reader) yamlValue(n *yaml.Node) error {
	at := place{n.Line, n.Column}
	switch n.Kind {
	case yaml.DocumentNode, yaml.SequenceNode:
		for _, inner := range n.Content {
			if err := r.yamlValue(inner); err != nil {
				return err
			}
		}
		return nil
	case yaml.MappingNode:
		return r.yamlObject(n)
	case yaml.AliasNode:
		r.wrong(at, errors.New("aliases are not read"))
		return nil
	}
	return r.entry([]byte(n.Value), at, Entry{})
}

func (r *reader) yamlObject(n *yaml.Node) error {
	it := item{at: place{n.Line, n.Column}}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, v := n.Content[i].Value, n.Content[i+1]
		switch {
		case v.Kind == yaml.ScalarNode:
			it.member(name, yamlScalar(v))
		case containers[name]:
			it.holds = true
			if err := r.yamlValue(v); err != nil {
				return err
			}
		}
	}
	return r.finish(&it)
}

func yamlScalar(n *yaml.Node) scalar {
	tag := n.ShortTag()
	number := tag == "!!int" || tag == "!!float" || tag == "!!bool"
	return scalar{text: []byte(n.Value), isText: !number, null: tag == "!!null", at: place{n.Line, n.Column}}
}
