package ports

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

func TestParseRange(t *testing.T) {
	good := map[string]Range{
		"80/tcp":        {80, 80, TCP, Source},
		"8000-8999/udp": {8000, 8999, UDP, Source},
		"53/sctp":       {53, 53, SCTP, Source},
		"0-65535/TCP":   {0, 65535, TCP, Source},
	}
	for text, want := range good {
		if got, err := ParseRange(text, Source); err != nil || got != want {
			t.Errorf("ParseRange(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "80", "/tcp", "80/", "80/icmp", "65536/tcp", "-1/tcp", "+1/tcp", "90-80/tcp", "1-2-3/tcp", "a/tcp", "80/tcp/udp", "80-/tcp", " 80/tcp"} {
		if got, err := ParseRange(text, Source); !errors.Is(err, fault.ErrUsage) {
			t.Errorf("ParseRange(%q) = %v, %v, want a usage error", text, got, err)
		}
	}
}

func FuzzParseRange(f *testing.F) {
	f.Add("80/tcp")
	f.Add("8000-8999/udp")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRange(text, Destination)
		if err != nil {
			return
		}
		if again, err := ParseRange(r.String(), Destination); err != nil || again != r {
			t.Errorf("%q is %v, which reads as %v, %v", text, r, again, err)
		}
	})
}

func TestWith(t *testing.T) {
	web, dns := Range{80, 80, TCP, Destination}, Range{53, 53, UDP, Destination}
	p, changed, err := Policy{}.With([]Range{web, dns, web}, false)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	first := []Rule{{1, web, false}, {2, dns, false}}
	if !slices.Equal(p.Rules, first) {
		t.Errorf("rules are %v, want %v", p.Rules, first)
	}
	if _, changed, _ := p.With([]Range{dns}, false); changed {
		t.Error("a rule that is there changes something")
	}
	flipped, changed, _ := p.With([]Range{web}, true)
	if want := []Rule{{2, dns, false}, {3, web, true}}; !changed || !slices.Equal(flipped.Rules, want) {
		t.Errorf("rules are %v, want %v: another verdict is another number", flipped.Rules, want)
	}
	if !slices.Equal(p.Rules, first) {
		t.Errorf("the old policy changed: %v", p.Rules)
	}
	removed, changed := p.Without([]Range{web})
	if !changed || !slices.Equal(removed.Rules, first[1:]) {
		t.Errorf("rules are %v", removed.Rules)
	}
	if _, changed := removed.Without([]Range{web}); changed {
		t.Error("removing what isn't there changes something")
	}
}

func TestWithFull(t *testing.T) {
	var ranges []Range
	for port := range MaxRules {
		ranges = append(ranges, Range{uint16(port), uint16(port), TCP, Destination})
	}
	p, _, err := Policy{}.With(ranges, true)
	if err != nil || len(p.Rules) != MaxRules {
		t.Fatal(len(p.Rules), err)
	}
	again, err := decodeLayout(compile(p))
	if err != nil || !slices.Equal(again.Rules, p.Rules) {
		t.Errorf("a full policy reads back as %d rules, %v", len(again.Rules), err)
	}
	if _, _, err := p.With([]Range{{1, 1, UDP, Source}}, true); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("one rule too many: %v", err)
	}
}

func TestWithDefault(t *testing.T) {
	yes, no := true, false
	p, changed := Policy{}.WithDefault(DefaultChange{Drop: &yes, Established: &yes})
	if !changed || !p.DefaultDrop || !p.Established || p.Strict {
		t.Errorf("policy is %+v", p)
	}
	if _, changed := p.WithDefault(DefaultChange{Drop: &yes, Strict: &no}); changed {
		t.Error("what is already so changes something")
	}
}

// decodeLayout reads back what compile made.
func decodeLayout(l layout) (Policy, error) { return decode(l.header, l.rulePages()) }

func randomPolicy(r *rand.Rand) Policy {
	p := Policy{DefaultDrop: r.IntN(2) == 0, Established: r.IntN(2) == 0, Strict: r.IntN(2) == 0}
	for range r.IntN(80) {
		first := r.IntN(1000)
		p, _, _ = p.With([]Range{{
			First: uint16(first), Last: uint16(min(65535, first+r.IntN(1<<r.IntN(17)))),
			Protocol: Protocol(r.IntN(3)), Side: Side(r.IntN(2)),
		}}, r.IntN(2) == 0)
	}
	return p
}

func TestLayoutReadsBack(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		p := randomPolicy(random)
		again, err := decodeLayout(compile(p))
		if err != nil {
			t.Fatal(err)
		}
		same := again.DefaultDrop == p.DefaultDrop && again.Established == p.Established && again.Strict == p.Strict
		if !same || !slices.Equal(again.Rules, p.Rules) {
			t.Fatalf("%+v reads back as %+v", p, again)
		}
	}
}

// decisive is the reference for what the table says: the rule that decides.
func decisive(p Policy, side Side, protocol Protocol, port uint16) (winner Rule) {
	for _, rule := range p.Rules {
		if rule.Side != side || rule.Protocol != protocol || port < rule.First || port > rule.Last {
			continue
		}
		if winner.Number == 0 || rule.Last-rule.First <= winner.Last-winner.First {
			winner = rule
		}
	}
	return winner
}

func TestTableAgainstReference(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 10 {
		p := randomPolicy(random)
		l := compile(p)
		for range 20000 {
			side, protocol, port := Side(random.IntN(2)), Protocol(random.IntN(3)), uint16(random.IntN(1<<(10+random.IntN(7))))
			want := decisive(p, side, protocol, port)
			if got := l.verdict(side, protocol, port); got != entryOf(want) {
				t.Fatalf("%v %d/%v is %#x, want %#x by %v", side, port, protocol, got, entryOf(want), want)
			}
		}
	}
}

func entryOf(rule Rule) uint16 {
	if rule.Drop {
		return rule.Number | bpf.VerdictDrop
	}
	return rule.Number
}

func (l layout) verdict(side Side, protocol Protocol, port uint16) uint16 {
	number, entry := bpf.PolicyIndex(bpf.PortSide(side), bpf.PortProtocol(protocol), port)
	if page := l.table[number]; page != nil {
		return page.Verdict[entry]
	}
	return 0
}

func TestDecodeDamaged(t *testing.T) {
	l := compile(Policy{Rules: []Rule{{1, Range{80, 80, TCP, Destination}, false}}})
	l.rules[0][0].Protocol = 7
	if _, err := decodeLayout(l); err == nil {
		t.Error("a rule with an unknown protocol is read")
	}
	l.header.Version = layoutVersion + 1
	if _, err := decodeLayout(l); err == nil {
		t.Error("an unknown layout is read")
	}
}

func TestWordsMatchProgram(t *testing.T) {
	if bpf.PortProtocol(TCP) != bpf.PortTCP || bpf.PortProtocol(UDP) != bpf.PortUDP || bpf.PortProtocol(SCTP) != bpf.PortSCTP {
		t.Error("protocols differ from the program's")
	}
	if bpf.PortSide(Destination) != bpf.SideDestination || bpf.PortSide(Source) != bpf.SideSource {
		t.Error("sides differ from the program's")
	}
}
