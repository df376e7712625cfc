package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	"gopkg.in/yaml.v3"
)

// yamlOf turns one JSON text into a YAML document. Keys keep their order.
func yamlOf(text []byte) ([]byte, error) {
	in := json.NewDecoder(bytes.NewReader(text))
	in.UseNumber()
	node, err := yamlNode(in)
	if err != nil {
		return nil, fmt.Errorf("write yaml: %w", err)
	}
	var b bytes.Buffer
	out := yaml.NewEncoder(&b)
	out.SetIndent(2)
	if err := out.Encode(node); err != nil {
		return nil, fmt.Errorf("write yaml: %w", err)
	}
	return printableYAML(b.Bytes()), nil
}

// yamlNode reads the next value.
func yamlNode(in *json.Decoder) (*yaml.Node, error) {
	token, err := in.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		return yamlCollection(in, t)
	case json.Number:
		tag := "!!int"
		if strings.ContainsAny(t.String(), ".eE") {
			tag = "!!float"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: t.String()}, nil
	case string:
		return yamlString(t), nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(t)}, nil
	default:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
	}
}

// yamlString quotes what must be escaped for a terminal, and what readers of
// YAML 1.1 take for something else than a string: its words for booleans and for
// merging, and numbers in base 60 such as some MAC addresses.
func yamlString(text string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
	if strings.ContainsFunc(text, unsafe) || oldWord[strings.ToLower(text)] || oldSexagesimal().MatchString(text) {
		node.Style = yaml.DoubleQuotedStyle
	}
	return node
}

var (
	oldWord        = map[string]bool{"<<": true, "=": true, "y": true, "n": true, "yes": true, "no": true, "on": true, "off": true}
	oldSexagesimal = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$`)
	})
)

func yamlCollection(in *json.Decoder, open json.Delim) (*yaml.Node, error) {
	node := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	if open == '{' {
		node.Kind, node.Tag = yaml.MappingNode, "!!map"
	}
	for in.More() { // keys come as values of their own, which is how yaml keeps them
		item, err := yamlNode(in)
		if err != nil {
			return nil, err
		}
		node.Content = append(node.Content, item)
	}
	_, err := in.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return node, err
}

// printableYAML replaces the unsafe characters that are left, all of them in
// double quotes, by escapes.
func printableYAML(text []byte) []byte {
	left := func(r rune) bool { return r >= 0x80 && unsafe(r) }
	if !bytes.ContainsFunc(text, left) {
		return text
	}
	var b bytes.Buffer
	for _, r := range string(text) {
		switch {
		case !left(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}
