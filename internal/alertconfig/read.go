package alertconfig

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"bpfnet/internal/fault"
	"bpfnet/internal/nearest"
)

// Kinds are the kinds of rules that there are. The function reads a rule's text and
// returns its one form; nil: the kind has no text.
type Kinds map[string]func(text string) (string, error)

// mostProblems is how many are told.
const mostProblems = 20

// Read reads a file of that name. Errors are of kind fault.ErrUsage; they have the line
// and column of all that is wrong.
func Read(name string, text []byte, kinds Kinds) (Config, error) {
	r := reader{name: name, kinds: kinds, names: map[string]int{}}
	r.document(text)
	return r.config, r.failed()
}

// reader collects what the file says and what is wrong with it.
type reader struct {
	name     string
	kinds    Kinds
	config   Config
	names    map[string]int // of rules: their lines
	problems []problem
}

type problem struct {
	line, column int
	err          *fault.Error
}

func (r *reader) at(line, column int, err error) *fault.Error {
	e := fault.New(fault.ErrUsage, "%s:%d:%d: %w", r.name, line, column, err)
	r.problems = append(r.problems, problem{line, column, e})
	return e
}

// wrong adds a problem.
func (r *reader) wrong(n *yaml.Node, format string, args ...any) *fault.Error {
	return r.at(n.Line, n.Column, fmt.Errorf(format, args...))
}

// failed is all that is wrong, nil if nothing is.
func (r *reader) failed() error {
	slices.SortStableFunc(r.problems, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.column, b.column))
	})
	var all []error
	for i, p := range r.problems {
		if i == mostProblems {
			all = append(all, fault.New(fault.ErrUsage, "and %d more", len(r.problems)-i))
			break
		}
		all = append(all, p.err)
	}
	return fault.Join(all...)
}

func (r *reader) document(text []byte) {
	documents := yaml.NewDecoder(bytes.NewReader(text))
	var first, second yaml.Node
	switch err := documents.Decode(&first); {
	case errors.Is(err, io.EOF):
		r.at(1, 1, errors.New("nothing is in it"))
		return
	case err != nil:
		r.broken(err)
		return
	}
	switch err := documents.Decode(&second); {
	case err == nil:
		r.wrong(&second, "a second document begins here")
	case !errors.Is(err, io.EOF):
		r.broken(err)
	}
	r.file(first.Content[0])
}

var yamlError = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// broken is what isn't YAML. Its column isn't known.
func (r *reader) broken(err error) {
	message, line := err.Error(), 1
	if match := yamlError.FindStringSubmatch(message); match != nil {
		message = message[len(match[0]):]
		if n, err := strconv.Atoi(match[1]); err == nil {
			line = n
		}
	}
	r.at(line, 1, errors.New(message))
}

// fields are the keys of a mapping, with what reads their values.
type fields map[string]func(*yaml.Node)

// mapping reads a mapping, each of whose keys is known and there once.
func (r *reader) mapping(n *yaml.Node, what string, known fields) {
	if n.Kind != yaml.MappingNode {
		r.wrong(n, "%s isn't a mapping but %s", what, kindOf(n)).Hint("keys: %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read := known[key.Value]
		switch line := lines[key.Value]; {
		case key.Kind != yaml.ScalarNode || read == nil:
			r.unknown(key, known)
		case line > 0:
			r.wrong(key, "%s is given twice, first in line %d", key.Value, line)
		default:
			lines[key.Value] = key.Line
			read(value)
		}
	}
}

func (r *reader) unknown(key *yaml.Node, known fields) {
	words := slices.Sorted(maps.Keys(known))
	if key.Kind != yaml.ScalarNode {
		r.wrong(key, "a key isn't a text but %s", kindOf(key))
		return
	}
	err := r.wrong(key, "unknown key %q", key.Value)
	if near := nearest.Word(key.Value, words); near != "" {
		_ = err.Hint("did you mean %q?", near)
		return
	}
	_ = err.Hint("keys: %s", strings.Join(words, ", "))
}

// list reads each item of a list.
func (r *reader) list(n *yaml.Node, what string, item func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		r.wrong(n, "%s isn't a list but %s", what, kindOf(n))
		return
	}
	for _, inner := range n.Content {
		item(inner)
	}
}

// text reads a text, and says whether it is one.
func (r *reader) text(n *yaml.Node, what string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		r.wrong(n, "%s isn't a text but %s", what, kindOf(n))
	case n.ShortTag() == "!!null" || n.Value == "":
		r.wrong(n, "%s is empty", what)
	case strings.ContainsFunc(n.Value, unicode.IsControl):
		r.wrong(n, "%s has a control character", what)
	default:
		return n.Value, true
	}
	return "", false
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias, which isn't read"
	}
	if n.ShortTag() == "!!null" {
		return "nothing"
	}
	return "a text"
}
