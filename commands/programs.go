package commands

import (
	"strings"

	"github.com/urfave/cli/v2"

	"bpfnet/bpf"
	"bpfnet/internal/probe"
	"bpfnet/output"
)

// builtinDoc describes a built-in program.
type builtinDoc struct {
	Schema     string          `json:"schema"`
	Name       string          `json:"name"`
	Summary    string          `json:"summary"`
	Hooks      []string        `json:"hooks"`
	Parameters []bpf.Parameter `json:"parameters"`
	Maps       []bpf.Map       `json:"maps"`
	Features   []featureDoc    `json:"features"`
	Supported  *bool           `json:"supported"` // null: it couldn't be found out
}

// featureDoc is a kernel feature that a program needs.
type featureDoc struct {
	Feature string       `json:"feature"`
	Status  probe.Status `json:"status"`
	Detail  *string      `json:"detail"`
	Since   *string      `json:"since"` // kernel release that introduced it
}

func programsCommand(env *Env) *cli.Command {
	return &cli.Command{
		Name:   "programs",
		Usage:  "the built-in programs, and whether this kernel can run them",
		Action: env.programs,
	}
}

func (e *Env) programs(c *cli.Context) error {
	if err := args(c); err != nil {
		return err
	}
	p, b, err := e.open(c)
	if err != nil {
		return err
	}
	defer b.Close()
	report := b.Probe(c.Context)
	docs := []builtinDoc{}
	for _, program := range bpf.Catalogue() {
		docs = append(docs, newBuiltinDoc(program, report))
	}
	return p.List(docs, func() output.Table { return builtinTable(docs) })
}

func newBuiltinDoc(p bpf.Program, report probe.Report) builtinDoc {
	doc := builtinDoc{
		Schema:     "bpfnet.builtin/v1",
		Name:       p.Name,
		Summary:    p.Summary,
		Hooks:      list(p.Hooks),
		Parameters: list(p.Parameters),
		Maps:       list(p.Maps),
		Features:   []featureDoc{},
	}
	for _, name := range p.Features {
		feature := featureDoc{Feature: name, Status: probe.Unknown}
		if r, ok := report.Result(name); ok {
			feature = featureDoc{name, r.Status, r.Detail, &r.Since}
		}
		doc.Features = append(doc.Features, feature)
	}
	doc.Supported = supported(doc.Features)
	return doc
}

// supported sums up the features: false if one is missing, null if one couldn't
// be tried.
func supported(features []featureDoc) *bool {
	all, known := true, true
	for _, f := range features {
		switch f.Status {
		case probe.Unsupported, probe.Forbidden:
			all = false
		case probe.Available:
		default:
			known = false
		}
	}
	if all && !known {
		return nil
	}
	return &all
}

func builtinTable(docs []builtinDoc) output.Table {
	t := output.Table{Header: []string{"name", "hooks", "supported", "what it does"}}
	for _, d := range docs {
		t.Rows = append(t.Rows, []string{d.Name, strings.Join(d.Hooks, ", "), supportedWord(d), d.Summary})
	}
	return t
}

func supportedWord(d builtinDoc) string {
	switch {
	case d.Supported == nil:
		return "unknown"
	case *d.Supported:
		return "yes"
	}
	var missing []string
	for _, f := range d.Features {
		if f.Status != probe.Available {
			missing = append(missing, f.Feature)
		}
	}
	return "no: " + strings.Join(missing, ", ")
}
