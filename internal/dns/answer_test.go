package dns

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	wire "github.com/miekg/dns"
)

// reply is a packed response to a question about A, with records of a zone file.
func reply(t testing.TB, name string, records ...string) []byte {
	t.Helper()
	m := new(wire.Msg).SetReply(new(wire.Msg).SetQuestion(name, wire.TypeA))
	m.Answer = rrs(t, records...)
	m.Compress = true
	return packed(t, m.SetEdns0(1232, true))
}

func packed(t testing.TB, m *wire.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// said is an answer in a line.
func said(a Answer, whole bool, err error) string {
	text := fmt.Sprintf("%s %d %d", a.Name, a.Type, a.Rcode)
	for _, address := range a.Addresses {
		text += fmt.Sprintf(" %s %s", address.Addr, address.TTL)
	}
	text += " chain=" + strings.Join(a.Chain, ",")
	if !whole {
		text += " cut"
	}
	if err != nil {
		text = err.Error()
	}
	return text
}

func TestDecode(t *testing.T) {
	long := strings.Repeat("a", 63) + "."
	chain := make([]string, maxChain+2)
	for i := range chain {
		chain[i] = fmt.Sprintf("c%d. 60 CNAME c%d.", i, i+1)
	}
	change := func(m []byte, at int, b ...byte) []byte { copy(m[at:], b); return m }
	for name, c := range map[string]struct {
		message []byte
		wanted  string
	}{
		"address":       {reply(t, "X.Example.", "x.example. 60 A 192.0.2.1"), "x.example 1 0 192.0.2.1 1m0s chain=x.example"},
		"chain":         {reply(t, "a.example.", "a.example. 60 CNAME B.example.", "b.example. 30 CNAME c.example.", "c.example. 90 A 192.0.2.1", "c.example. 20 AAAA 2001:db8::1"), "a.example 1 0 192.0.2.1 30s 2001:db8::1 20s chain=a.example,b.example,c.example"},
		"other order":   {reply(t, "a.example.", "c.example. 90 A 192.0.2.1", "b.example. 30 CNAME c.example.", "a.example. 60 CNAME B.example."), "a.example 1 0 192.0.2.1 30s chain=a.example,b.example,c.example"},
		"unrelated":     {reply(t, "a.example.", "evil.example. 60 A 192.0.2.66", "a.example. 60 A 192.0.2.1"), "a.example 1 0 192.0.2.1 1m0s chain=a.example"},
		"circle":        {reply(t, "a.", "a. 60 CNAME b.", "b. 60 CNAME a."), "a 1 0 chain=a,b"},
		"alias and own": {reply(t, "a.", "a. 60 CNAME b.", "a. 60 A 192.0.2.1", "b. 60 A 192.0.2.2"), "a 1 0 192.0.2.1 1m0s 192.0.2.2 1m0s chain=a,b"},
		"too long":      {reply(t, "c0.", chain...), "c0 1 0 chain=" + "c0,c1,c2,c3,c4,c5,c6,c7,c8,c9,c10,c11,c12,c13,c14,c15,c16"},
		"others":        {reply(t, "a.", "a. 60 TXT x", "a. 60 CH A 192.0.2.1", "a. 60 A 192.0.2.2", `a. 60 HTTPS 1 . ipv4hint=192.0.2.3`), "a 1 0 192.0.2.2 1m0s chain=a"},
		"odd alias":     {reply(t, "a.", `a. 60 CNAME b\ c.`, `b\ c. 60 A 192.0.2.1`), "a 1 0 192.0.2.1 1m0s chain=a"},
		"longest":       {reply(t, strings.Repeat(long, 3)+long[2:], strings.Repeat(long, 3)+long[2:]+" 60 A 192.0.2.1"), strings.Repeat(long, 3) + long[2:63] + " 1 0 192.0.2.1 1m0s chain=" + strings.Repeat(long, 3) + long[2:63]},
		"odd name":      {reply(t, `a\.b.example.`, `a\.b.example. 60 A 192.0.2.1`), errIgnored.Error()},
		"root":          {reply(t, "."), errIgnored.Error()},
		"no name":       {change(reply(t, "a."), 3, 0x83), "a 1 3 chain=a"},
		"query":         {change(reply(t, "a."), 2, 1), errMalformed.Error()},
		"notify":        {change(reply(t, "a."), 2, 0x80|4<<3), errIgnored.Error()},
		"no question":   {change(reply(t, "a."), 4, 0, 0), errIgnored.Error()},
		"two questions": {change(reply(t, "a."), 4, 0, 2), errMalformed.Error()},
		"chaos":         {change(reply(t, "a."), 18, 3), errIgnored.Error()},
		"short":         {reply(t, "a.")[:11], errMalformed.Error()},
		"header":        {reply(t, "a.")[:12], errMalformed.Error()},
		"empty":         {nil, errMalformed.Error()},
		"a lie":         {change(reply(t, "a.", "a. 60 A 192.0.2.1"), 6, 0xff, 0xff), "a 1 0 192.0.2.1 1m0s chain=a cut"},
		"itself":        {change(reply(t, "a."), 12, 0xc0, 12), errMalformed.Error()},
		"wrong length":  {change(reply(t, "a.", "a. 60 A 192.0.2.1", "a. 60 A 192.0.2.2"), 29, 0, 200), "a 1 0 chain=a cut"},
		"bad EDNS":      {append(reply(t, "a.", "a. 60 A 192.0.2.1")[:35], 1, 2, 3), "a 1 0 192.0.2.1 1m0s chain=a"},
	} {
		if got := said(decode(c.message)); got != c.wanted {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, c.wanted)
		}
	}
}

// A message that is cut says what is in front of the cut.
func TestDecodeCut(t *testing.T) {
	whole := reply(t, "a.example.", "a.example. 60 A 192.0.2.1", "a.example. 60 A 192.0.2.2")
	for size := range len(whole) {
		a, complete, err := decode(whole[:size])
		addresses := max(0, (size-(12+11+4))/16)
		if err == nil && (len(a.Addresses) != min(addresses, 2) || complete != (addresses >= 2)) {
			t.Errorf("%d bytes: %s", size, said(a, complete, err))
		}
	}
}

// FuzzDecode: whatever a message is, what is told has valid names, and the same
// addresses as another reader of messages finds.
func FuzzDecode(f *testing.F) {
	f.Add(reply(f, "a.example.", "a.example. 60 CNAME b.example.", "b.example. 30 A 192.0.2.1", "b.example. 30 AAAA 2001:db8::1"))
	f.Add(reply(f, "a.", "a. 60 TXT x", `a. 60 HTTPS 1 . ipv4hint=192.0.2.3`))
	f.Add(reply(f, "a.", "a. 60 CNAME b.", "b. 60 CNAME a."))
	f.Add([]byte{0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, message []byte) {
		a, whole, err := decode(message)
		if err != nil {
			if a.Name != "" || whole {
				t.Errorf("%v, and %v", err, a)
			}
			return
		}
		for _, name := range append(a.Chain, a.Name) {
			if name == "" || hostName(name) != name {
				t.Errorf("name %q", name)
			}
		}
		if len(a.Chain) > maxChain+1 {
			t.Errorf("chain of %d", len(a.Chain))
		}
		for i, address := range a.Addresses {
			if !address.Addr.IsValid() || address.Addr.Zone() != "" || address.TTL < 0 || i > 0 && !a.Addresses[i-1].Addr.Less(address.Addr) {
				t.Errorf("addresses %v", a.Addresses)
			}
		}
		var other wire.Msg
		if other.Unpack(message) != nil || len(other.Question) != 1 || len(other.Answer) != int(binary.BigEndian.Uint16(message[6:])) {
			return
		}
		found, _ := follow(other.Answer, other.Question[0].Name)
		if got, want := fmt.Sprint(a.Addresses), fmt.Sprint(merge(found.addresses)); got != want {
			t.Errorf("addresses %s, want %s", got, want)
		}
	})
}
