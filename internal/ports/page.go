package ports

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// The layout of a policy for the program: an array of pages. The first ones are
// the table, an entry for each side, protocol and port; then comes a header;
// then the rules as they were given, from which a policy is read back.
const (
	pageSize       = 512
	entriesPerPage = pageSize / 2
	tablePages     = 2 * len(protocols) * 65536 / entriesPerPage
	headerPage     = tablePages
	firstRulePage  = headerPage + 1
	ruleSize       = 16
	rulesPerPage   = pageSize / ruleSize
	rulePages      = (MaxRules + 1) / rulesPerPage
	pageCount      = firstRulePage + rulePages

	layoutVersion = 1 // 0 is the empty policy that the program is loaded with
	dropBit       = 1 << 15
)

type page [pageSize]byte

// pages is a laid out policy by page number; pages that are missing are zero.
type pages map[int]*page

// at returns a page to write to.
func (p pages) at(number int) *page {
	if p[number] == nil {
		p[number] = new(page)
	}
	return p[number]
}

// compile lays a policy out.
func compile(policy Policy) pages {
	p := pages{}
	p.setHeader(policy)
	for i, rule := range policy.Rules {
		p.setRule(i, rule)
	}
	for _, rule := range byPrecedence(policy.Rules) {
		p.setEntries(rule)
	}
	return p
}

// byPrecedence sorts rules so that each one overrules those in front of it.
func byPrecedence(rules []Rule) []Rule {
	sorted := slices.Clone(rules)
	slices.SortStableFunc(sorted, func(a, b Rule) int { return cmp.Compare(b.width(), a.width()) })
	return sorted
}

func (r Range) width() int { return int(r.Last) - int(r.First) }

// setEntries writes a rule to the table.
func (p pages) setEntries(rule Rule) {
	entry := rule.Number
	if rule.Drop {
		entry |= dropBit
	}
	for port := int(rule.First); port <= int(rule.Last); port++ {
		number, offset := place(rule.Side, rule.Protocol, uint16(port))
		binary.NativeEndian.PutUint16(p.at(number)[offset:], entry)
	}
}

// place returns the page of a table entry and its offset there in bytes.
func place(side Side, protocol Protocol, port uint16) (number, offset int) {
	table := int(side)*len(protocols) + int(protocol)
	entry := table<<16 + int(port)
	return entry / entriesPerPage, entry % entriesPerPage * 2
}

// setHeader writes struct policy_header.
func (p pages) setHeader(policy Policy) {
	header := p.at(headerPage)
	binary.NativeEndian.PutUint32(header[0:], layoutVersion)
	header[4] = flag(policy.DefaultDrop)
	header[5] = flag(policy.Established)
	header[6] = flag(policy.Strict)
}

// setRule writes struct policy_rule.
func (p pages) setRule(index int, rule Rule) {
	b := p.at(firstRulePage + index/rulesPerPage)[index%rulesPerPage*ruleSize:]
	binary.NativeEndian.PutUint16(b[0:], rule.Number)
	binary.NativeEndian.PutUint16(b[2:], rule.First)
	binary.NativeEndian.PutUint16(b[4:], rule.Last)
	b[6], b[7], b[8] = uint8(rule.Protocol), uint8(rule.Side), flag(rule.Drop)
}

func flag(set bool) uint8 {
	if set {
		return 1
	}
	return 0
}

// decode reads a policy back. read returns a page by its number.
func decode(read func(number int) (*page, error)) (Policy, error) {
	header, err := read(headerPage)
	if err != nil {
		return Policy{}, err
	}
	if version := binary.NativeEndian.Uint32(header[:]); version > layoutVersion {
		return Policy{}, fmt.Errorf("layout %d is unknown", version)
	}
	policy := Policy{DefaultDrop: header[4] != 0, Established: header[5] != 0, Strict: header[6] != 0}
	for number := firstRulePage; number < pageCount; number++ {
		rules, err := read(number)
		if err != nil {
			return Policy{}, err
		}
		last, err := policy.addRules(rules)
		if last || err != nil {
			return policy, err
		}
	}
	return policy, nil
}

// addRules adds the rules of a page; last says that it wasn't full.
func (p *Policy) addRules(rules *page) (last bool, err error) {
	for b := range slices.Chunk(rules[:], ruleSize) {
		rule := Rule{
			Number: binary.NativeEndian.Uint16(b[0:]),
			Range: Range{
				First: binary.NativeEndian.Uint16(b[2:]), Last: binary.NativeEndian.Uint16(b[4:]),
				Protocol: Protocol(b[6]), Side: Side(b[7]),
			},
			Drop: b[8] != 0,
		}
		if rule.Number == 0 {
			return true, nil
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
