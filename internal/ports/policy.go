package ports

import (
	"slices"
	"strconv"
	"strings"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

// Side is which port of a packet a rule looks at.
type Side uint8

// The sides of a packet.
const (
	Destination Side = iota
	Source
)

// String returns the word that documents use.
func (s Side) String() string { return [...]string{"destination", "source"}[s] }

// Protocol is a transport protocol that has ports.
type Protocol uint8

// The protocols that rules can name.
const (
	TCP Protocol = iota
	UDP
	SCTP
)

var protocols = [...]string{"tcp", "udp", "sctp"}

// String returns the word that documents use.
func (p Protocol) String() string { return protocols[p] }

// Range is a range of ports of one protocol on one side of a packet.
type Range struct {
	First, Last uint16
	Protocol    Protocol
	Side        Side
}

// String returns the range as ParseRange takes it, without its side.
func (r Range) String() string {
	text := strconv.Itoa(int(r.First))
	if r.Last != r.First {
		text += "-" + strconv.Itoa(int(r.Last))
	}
	return text + "/" + r.Protocol.String()
}

// ParseRange reads "80/tcp", "8000-8999/udp" or "53/sctp". Errors are of kind
// fault.ErrUsage.
func ParseRange(text string, side Side) (Range, error) {
	numbers, word, found := strings.Cut(text, "/")
	if !found {
		return Range{}, parseError(text, "no protocol").Hint("write the protocol after the port: %s/tcp", numbers)
	}
	protocol := slices.Index(protocols[:], strings.ToLower(word))
	if protocol < 0 {
		return Range{}, parseError(text, "unknown protocol").Hint("protocols are tcp, udp and sctp")
	}
	low, high, isRange := strings.Cut(numbers, "-")
	if !isRange {
		high = low
	}
	first, err := parsePort(text, low)
	if err != nil {
		return Range{}, err
	}
	last, err := parsePort(text, high)
	if err != nil {
		return Range{}, err
	}
	if last < first {
		return Range{}, parseError(text, "the range ends before it starts")
	}
	return Range{First: first, Last: last, Protocol: Protocol(protocol), Side: side}, nil
}

func parsePort(text, number string) (uint16, error) {
	port, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return 0, parseError(text, "ports are numbers from 0 to 65535")
	}
	return uint16(port), nil
}

func parseError(text, cause string) *fault.Error {
	return fault.New(fault.ErrUsage, "read port %q: %s", text, cause)
}

// Rule is what happens to packets with a port in a range. Among rules that
// match the same port the one with the smallest range decides, among ranges of
// the same size the later rule.
type Rule struct {
	Number uint16 // 1 to MaxRules, the rule's place among the counters
	Range
	Drop bool
}

// MaxRules is how many rules a policy can have.
const MaxRules = bpf.MaxRules

// Policy is what port-filter does with packets. The destination port is looked
// up first, then the source port; a drop by either wins over a pass.
type Policy struct {
	DefaultDrop bool // what no rule matches is dropped
	Established bool // TCP segments that don't open a connection pass
	Strict      bool // ARP, ICMP, ND, DHCP and non-IP follow the policy too
	Rules       []Rule
}

// DefaultChange is a change to the part of a policy that isn't rules; nil keeps
// a field.
type DefaultChange struct {
	Drop, Established, Strict *bool
}

// WithDefault returns the policy with a change applied.
func (p Policy) WithDefault(change DefaultChange) (Policy, bool) {
	next := p
	set(&next.DefaultDrop, change.Drop)
	set(&next.Established, change.Established)
	set(&next.Strict, change.Strict)
	return next, next.DefaultDrop != p.DefaultDrop || next.Established != p.Established || next.Strict != p.Strict
}

func set(field, value *bool) {
	if value != nil {
		*field = *value
	}
}

// With returns the policy with rules for the ranges. Rules that are there
// already keep their number; a rule whose verdict changes gets a new one, so
// that a counter never mixes drops and passes. fault.ErrUsage if there are too
// many rules.
func (p Policy) With(ranges []Range, drop bool) (Policy, bool, error) {
	next := Policy{p.DefaultDrop, p.Established, p.Strict, slices.Clone(p.Rules)}
	taken := numbers(p.Rules)
	changed := false
	for _, r := range ranges {
		at := slices.IndexFunc(next.Rules, func(rule Rule) bool { return rule.Range == r })
		if at >= 0 && next.Rules[at].Drop == drop {
			continue
		}
		if at >= 0 {
			next.Rules = slices.Delete(next.Rules, at, at+1)
		}
		number, ok := free(&taken)
		if !ok {
			return p, false, fault.New(fault.ErrUsage, "add rule %s: the policy is full with %d rules", r, MaxRules)
		}
		next.Rules = append(next.Rules, Rule{Number: number, Range: r, Drop: drop})
		changed = true
	}
	return next, changed, nil
}

// Without returns the policy without the rules for exactly these ranges.
func (p Policy) Without(ranges []Range) (Policy, bool) {
	next := p
	next.Rules = slices.DeleteFunc(slices.Clone(p.Rules), func(rule Rule) bool {
		return slices.Contains(ranges, rule.Range)
	})
	return next, len(next.Rules) != len(p.Rules)
}

type numberSet [MaxRules + 1]bool

func numbers(rules []Rule) numberSet {
	var taken numberSet
	for _, rule := range rules {
		taken[rule.Number] = true
	}
	return taken
}

// free takes the lowest number that isn't taken.
func free(taken *numberSet) (uint16, bool) {
	for number := 1; number <= MaxRules; number++ {
		if !taken[number] {
			taken[number] = true
			return uint16(number), true
		}
	}
	return 0, false
}
