package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// yamlOf turns one JSON text into a YAML document. Keys keep their order. A
// JSON scalar is a YAML scalar already; strings lose their quotes only where
// every YAML reader, those of YAML 1.1 included, still sees a string.
func yamlOf(text []byte) ([]byte, error) {
	y := yamlWriter{in: json.NewDecoder(bytes.NewReader(text))}
	y.in.UseNumber()
	if err := y.value(0, ""); err != nil {
		return nil, fmt.Errorf("write yaml: %w", err)
	}
	return y.out.Bytes(), nil
}

type yamlWriter struct {
	in  *json.Decoder
	out bytes.Buffer
}

// value writes the next value of the input. lead is what the line has already:
// nothing, "-" or "key:".
func (y *yamlWriter) value(indent int, lead string) error {
	token, err := y.in.Token()
	if err != nil {
		return err
	}
	switch t := token.(type) {
	case json.Delim:
		return y.collection(t, indent, lead)
	case string:
		y.scalar(lead, yamlString(t))
	case nil:
		y.scalar(lead, "null")
	default:
		y.scalar(lead, fmt.Sprint(t))
	}
	return nil
}

func (y *yamlWriter) scalar(lead, text string) {
	if lead != "" {
		y.out.WriteByte(' ')
	}
	y.out.WriteString(text + "\n")
}

func (y *yamlWriter) collection(open json.Delim, indent int, lead string) error {
	if !y.in.More() {
		y.scalar(lead, map[json.Delim]string{'{': "{}", '[': "[]"}[open])
		return y.skip()
	}
	inline := lead == "" // the first item begins on this line
	switch {
	case lead == "-":
		y.out.WriteByte(' ')
		inline = true
	case lead != "":
		y.out.WriteByte('\n')
	}
	for y.in.More() {
		if !inline {
			y.out.WriteString(strings.Repeat(" ", indent))
		}
		inline = false
		if err := y.item(open, indent); err != nil {
			return err
		}
	}
	return y.skip()
}

// item writes one "key: value" or "- value".
func (y *yamlWriter) item(open json.Delim, indent int) error {
	lead := "-"
	if open == '{' {
		key, err := y.in.Token()
		if err != nil {
			return err
		}
		lead = yamlString(key.(string)) + ":"
	}
	y.out.WriteString(lead)
	return y.value(indent+2, lead)
}

// skip reads the end of a collection.
func (y *yamlWriter) skip() error {
	if _, err := y.in.Token(); err != nil && err != io.EOF {
		return err
	}
	return nil
}

// yamlString returns text plain when it can't be taken for anything else, and
// in double quotes otherwise.
func yamlString(text string) string {
	if plain(text) {
		return text
	}
	quoted, err := json.Marshal(text)
	if err != nil { // a string always has JSON
		panic(err)
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range unquoteHTML(string(quoted[1 : len(quoted)-1])) {
		if r > 0xffff && unsafe(r) {
			fmt.Fprintf(&b, `\U%08x`, r) // YAML has no surrogate pairs
		} else if unsafe(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// unquoteHTML takes back the escapes that json.Marshal adds for HTML.
func unquoteHTML(text string) string {
	return strings.NewReplacer(`\\`, `\\`, `\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(text)
}

// plain says whether a string needs no quotes in YAML: it begins with a letter,
// has only harmless characters and isn't a word that YAML 1.1 reads as a
// boolean or null.
func plain(text string) bool {
	if text == "" || !letter(text[0]) {
		return false
	}
	for i := range len(text) {
		if c := text[i]; !letter(c) && (c < '0' || c > '9') && !strings.ContainsRune("_-./", rune(c)) {
			return false
		}
	}
	switch strings.ToLower(text) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		return false
	}
	return true
}

func letter(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
