package commands

import (
	"slices"
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
	Hooks      []hookDoc       `json:"hooks"`
	Parameters []bpf.Parameter `json:"parameters"`
	Maps       []bpf.Map       `json:"maps"`
	Mechanisms []string        `json:"mechanisms"` // ways to do its work, best first; empty: there is one
	Features   []featureDoc    `json:"features"`   // needed at every hook
	Supported  *bool           `json:"supported"`  // at one of the hooks at least; null: it couldn't be found out
}

// hookDoc is a hook of a program.
type hookDoc struct {
	Hook      string       `json:"hook"`
	Features  []featureDoc `json:"features"`  // needed at this hook
	Supported *bool        `json:"supported"` // with all that the program needs; null: it couldn't be found out
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
		Hooks:      []hookDoc{},
		Parameters: list(p.Parameters),
		Maps:       list(p.Maps),
		Mechanisms: bpf.MechanismNames(p.Mechanisms),
		Features:   featureDocs(report, p.Features...),
	}
	for _, h := range p.Hooks {
		features := featureDocs(report, h.Feature)
		doc.Hooks = append(doc.Hooks, hookDoc{h.Name, features, supported(slices.Concat(features, doc.Features))})
	}
	doc.Supported = supportedSomewhere(doc.Hooks)
	return doc
}

func featureDocs(report probe.Report, names ...string) []featureDoc {
	docs := []featureDoc{}
	for _, name := range names {
		feature := featureDoc{Feature: name, Status: probe.Unknown}
		if r, ok := report.Result(name); ok {
			feature = featureDoc{name, r.Status, r.Detail, &r.Since}
		}
		docs = append(docs, feature)
	}
	return docs
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

// supportedSomewhere sums up the hooks: true if one is supported, null if none
// is but one couldn't be tried.
func supportedSomewhere(hooks []hookDoc) *bool {
	one, known := false, true
	for _, h := range hooks {
		one = one || h.Supported != nil && *h.Supported
		known = known && h.Supported != nil
	}
	if !one && !known {
		return nil
	}
	return &one
}

func builtinTable(docs []builtinDoc) output.Table {
	t := output.Table{Header: []string{"name", "supported", "what it does"}}
	for _, d := range docs {
		var words []string
		for _, h := range d.Hooks {
			words = append(words, supportedWord(h, d.Features))
		}
		t.Rows = append(t.Rows, []string{d.Name, strings.Join(words, "; "), d.Summary})
	}
	return t
}

// supportedWord says whether a program that needs these features runs at a hook.
func supportedWord(h hookDoc, features []featureDoc) string {
	switch {
	case h.Supported == nil:
		return h.Hook + " unknown"
	case *h.Supported:
		return h.Hook + " yes"
	}
	var missing []string
	for _, f := range slices.Concat(h.Features, features) {
		if f.Status == probe.Unsupported || f.Status == probe.Forbidden {
			missing = append(missing, f.Feature)
		}
	}
	return h.Hook + " no: " + strings.Join(missing, ", ")
}
