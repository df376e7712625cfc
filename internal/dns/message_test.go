package dns

import (
	"strings"
	"testing"

	wire "github.com/miekg/dns"
)

// TestWords: what is told is understood, in any case, and nothing else is.
func TestWords(t *testing.T) {
	for code, word := range map[int]string{0: "noerror", 3: "nxdomain", 16: "badvers", 23: "badcookie", 4000: "rcode4000"} {
		if got := RcodeWord(code); got != word || !IsRcodeWord(word) {
			t.Errorf("%d is %s, want %s", code, got, word)
		}
	}
	for _, word := range []string{"", "rcode", "rcode4096", "code 3", "NXDOMAIN"} {
		if IsRcodeWord(word) {
			t.Errorf("%q is a code", word)
		}
	}
	for given, word := range map[string]string{"a": "A", "Aaaa": "AAAA", "type1": "A", "TYPE65280": "TYPE65280", "type65536": "", "b": "", "": ""} {
		if got := TypeWord(given); got != word {
			t.Errorf("%s is %q, want %q", given, got, word)
		}
	}
}

// TestMoreRecordsThanThereAre: a message has those that it consists of.
func TestMoreRecordsThanThereAre(t *testing.T) {
	packed := reply(t, "a.example.", "a.example. 60 A 192.0.2.1")
	packed[6], packed[7] = 0xff, 0xff
	m, err := readMessage(packed, true)
	if err != nil || len(m.answers) != 2 || m.whole { // the second is the one behind, of EDNS
		t.Errorf("%d answers, whole: %v, %v", len(m.answers), m.whole, err)
	}
}

// FuzzMessage: whatever a message is, what is told is printable, and bounded.
func FuzzMessage(f *testing.F) {
	f.Add(reply(f, "a.example.", "a.example. 60 CNAME b.example.", "b.example. 30 A 192.0.2.1", `b.example. 30 TXT "\027[31m"`))
	f.Add(reply(f, `a\000b.`, "a. 60 CAA 0 issue x", `a. 60 HTTPS 1 . alpn=h2 ipv4hint=192.0.2.3`, "a. 60 TYPE65280 \\# 2 0a0b", `a. 60 NAPTR 1 1 "a" "b" "c" .`))
	f.Add(packed(f, new(wire.Msg).SetQuestion("a.", wire.TypeANY)))
	f.Fuzz(func(t *testing.T, packed []byte) {
		m, err := readMessage(packed, true)
		if err != nil {
			return
		}
		if len(m.answers)*recordTail > len(packed) {
			t.Errorf("%d answers in %d bytes", len(m.answers), len(packed))
		}
		texts := []string{m.question.name, RcodeWord(m.rcode)}
		for _, r := range m.answers {
			texts = append(texts, r.Name, r.Type, r.Data)
		}
		for _, text := range texts {
			if strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%q", text)
			}
		}
		if short, err := readMessage(packed, false); err != nil || short.question != m.question || short.response != m.response {
			t.Errorf("%v, %+v and %+v", err, short, m)
		}
	})
}
