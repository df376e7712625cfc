package ports

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"bpfnet/bpf"
)

// layoutVersion is the version of the layout that compile makes. Version 0 is
// the empty policy that the program is loaded with.
const layoutVersion = 1

// layoutUnfinished is the version of a policy while it is being laid out.
const layoutUnfinished = math.MaxUint32

// rulePage is a page of rules as they were given. The program doesn't read
// them; a policy is read back from them.
type rulePage [bpf.RulesPerPage]bpf.PolicyRule

// layout is a policy in the form that the program reads. Pages of the table
// that are missing are zero.
type layout struct {
	table  map[uint32]*bpf.PolicyPage
	header bpf.PolicyHeader
	rules  []rulePage // the first rule whose number is 0 ends them
}

// compile lays a policy out.
func compile(policy Policy) layout {
	l := layout{table: map[uint32]*bpf.PolicyPage{}, header: bpf.PolicyHeader{
		Version:     layoutVersion,
		DefaultDrop: flag(policy.DefaultDrop),
		Established: flag(policy.Established),
		Strict:      flag(policy.Strict),
		NoSource:    flag(!slices.ContainsFunc(policy.Rules, func(r Rule) bool { return r.Side == Source })),
	}}
	for rules := range slices.Chunk(policy.Rules, bpf.RulesPerPage) {
		l.rules = append(l.rules, newRulePage(rules))
	}
	for _, rule := range byPrecedence(policy.Rules) {
		l.add(rule)
	}
	return l
}

func flag(set bool) uint8 {
	if set {
		return 1
	}
	return 0
}

func newRulePage(rules []Rule) rulePage {
	var page rulePage
	for i, rule := range rules {
		page[i] = bpf.PolicyRule{
			Number:    rule.Number,
			FirstPort: rule.First,
			LastPort:  rule.Last,
			Protocol:  bpf.PortProtocol(rule.Protocol),
			Side:      bpf.PortSide(rule.Side),
			Drop:      flag(rule.Drop),
		}
	}
	return page
}

// byPrecedence sorts rules so that each one overrules those in front of it.
func byPrecedence(rules []Rule) []Rule {
	sorted := slices.Clone(rules)
	slices.SortStableFunc(sorted, func(a, b Rule) int { return cmp.Compare(b.width(), a.width()) })
	return sorted
}

func (r Range) width() int { return int(r.Last) - int(r.First) }

// add writes a rule to the table, over what is there.
func (l layout) add(rule Rule) {
	verdict := rule.Number
	if rule.Drop {
		verdict |= bpf.VerdictDrop
	}
	for port := int(rule.First); port <= int(rule.Last); port++ {
		number, entry := bpf.PolicyIndex(bpf.PortSide(rule.Side), bpf.PortProtocol(rule.Protocol), uint16(port))
		if l.table[number] == nil {
			l.table[number] = new(bpf.PolicyPage)
		}
		l.table[number].Verdict[entry] = verdict
	}
}

// tablePages returns all pages of the table.
func (l layout) tablePages() []bpf.PolicyPage {
	pages := make([]bpf.PolicyPage, bpf.PolicyHeaderPage)
	for number, page := range l.table {
		pages[number] = *page
	}
	return pages
}

// rulePages returns all pages of rules.
func (l layout) rulePages() []rulePage {
	pages := make([]rulePage, rulePages)
	copy(pages, l.rules)
	return pages
}

// decode reads a policy back from its header and its pages of rules.
func decode(header bpf.PolicyHeader, rules []rulePage) (Policy, error) {
	if header.Version > layoutVersion {
		return Policy{}, fmt.Errorf("layout %d is unknown", header.Version)
	}
	policy := Policy{
		DefaultDrop: header.DefaultDrop != 0,
		Established: header.Established != 0,
		Strict:      header.Strict != 0,
	}
	for _, page := range rules {
		last, err := policy.read(page)
		if last || err != nil {
			return policy, err
		}
	}
	return policy, nil
}

// How many pages of rules a policy has, and how many pages in all.
const (
	rulePages   = (MaxRules + 1) / bpf.RulesPerPage
	policyPages = bpf.PolicyRulesPage + rulePages
)

// read adds the rules of a page; last says that there are no more.
func (p *Policy) read(page rulePage) (last bool, err error) {
	for _, r := range page {
		if r.Number == 0 {
			return true, nil
		}
		rule := Rule{
			Number: r.Number,
			Range:  Range{First: r.FirstPort, Last: r.LastPort, Protocol: Protocol(r.Protocol), Side: Side(r.Side)},
			Drop:   r.Drop != 0,
		}
		if !rule.valid() {
			return true, fmt.Errorf("rule %d is damaged", rule.Number)
		}
		p.Rules = append(p.Rules, rule)
	}
	return false, nil
}

func (r Rule) valid() bool {
	return r.Number <= MaxRules && r.First <= r.Last && int(r.Protocol) < len(protocols) && r.Side <= Source
}
