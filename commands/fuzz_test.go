package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"bpfnet/internal/fault"
	"bpfnet/output"
)

// hostile seeds the targets for text that others choose.
var hostile = []string{
	"plain", "\x1b[2J\x1b]0;title\a", "\u202egpj.exe", "a\nb\tc\r", "tab\t\x1b[31mred", "\xff", "\u200b", "\u0085\u009b31m", "世界", ":", "-x", "a b", "",
}

// controls says whether text has a character that must not reach a terminal, but
// for those that are allowed.
func controls(text, allowed string) bool {
	return !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune(allowed, r) && unicode.In(r, unicode.C, unicode.Zl, unicode.Zp)
	})
}

// refusal is an error of the verifier, whose log quotes the object.
type refusal struct {
	error
	log []string
}

func (r refusal) Unwrap() error         { return r.error }
func (r refusal) VerifierLog() []string { return r.log }

// FuzzReport: an error is one line and one for each hint and, if asked for, the
// log, whatever is quoted in it; as a document it is JSON on one line.
func FuzzReport(f *testing.F) {
	for _, seed := range hostile {
		f.Add(seed, "hint")
		f.Add("message", seed)
	}
	f.Fuzz(func(t *testing.T, message, hint string) {
		err := refusal{fault.New(fault.ErrRejected, "open map %s: %w", message, errors.New(message)).Hint("%s", hint), []string{message, hint}}
		var b bytes.Buffer
		if exit := report(&b, err, output.FormatTable, true); exit != 7 {
			t.Errorf("exit %d", exit)
		}
		if text := b.String(); controls(text, "\n") || strings.Count(text, "\n") != 4 {
			t.Errorf("wrote %q", text)
		}
		b.Reset()
		report(&b, err, output.FormatJSON, false)
		if text := b.String(); controls(text, "\n") || strings.Count(text, "\n") != 1 || !json.Valid(b.Bytes()) {
			t.Errorf("wrote %q", text)
		}
	})
}

// FuzzComplete: whatever things are called, what the shells are given is a line
// for each candidate with at most a tab in it.
func FuzzComplete(f *testing.F) {
	for _, seed := range hostile {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		var none bytes.Buffer
		env := newFake().env(&none, &none)
		env.State = func(string) State { return oneName(name) }
		env.Interfaces = func() ([]string, error) { return []string{name}, nil }
		for _, line := range []string{"attach xdp ", "attach tc x --dev ", "unload ", "map dump ", "status ", "attach tc x --before "} {
			got := complete(env, strings.Split(line, " "))
			if controls(got, "\n\t") || strings.Count(got, "\n") > 1 && !strings.HasPrefix(line, "map") || strings.Count(got, "\t") > strings.Count(got, "\n") {
				t.Errorf("%q completes to %q", line, got)
			}
		}
	})
}

// oneName is a state in which everything is called the same.
type oneName string

func (n oneName) Names() ([]string, error)           { return []string{string(n)}, nil }
func (n oneName) List(_, _ string) ([]string, error) { return []string{string(n)}, nil }

// FuzzWords: the words for objects and data are understood or refused as usage,
// and bytes that are written out read as those bytes.
func FuzzWords(f *testing.F) {
	for _, seed := range []string{
		"id 57 key hex 0a 00 value 1 0 0 0 noexist", "pinned /sys/fs/bpf/x key 1 2", "name x", "tag", "id", "pods/map 10.0.0.1 1",
		"id 1 key value", "id 1 key hex value hex any", "x key 256 1 value id 3", "id:4 key 0x1 0777 value pinned p exist", "hex hex", "x key 1 value value value",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		words := strings.Fields(text)
		ref := parseRef(text)
		if ref.id != 0 && ref.text != fmt.Sprintf("id:%d", ref.id) && strings.TrimLeft(strings.TrimPrefix(ref.text, "id:"), "0") != fmt.Sprint(ref.id) {
			t.Errorf("%q is taken for %+v", text, ref)
		}
		for _, names := range [][]string{{"MAP"}, {"MAP", "KEY"}, {"MAP", "KEY", "VALUE"}} {
			w, err := parseMapWords(words, names...)
			if err != nil && !errors.Is(err, fault.ErrUsage) {
				t.Errorf("%q: %v is no usage error", words, err)
			}
			if err == nil && len(names) < 3 && w.value != "" || len(names) < 2 && w.key != "" && err == nil {
				t.Errorf("%q read as %+v for %q", words, w, names)
			}
		}
	})
}

// FuzzSize reads sizes of maps: digits, and nothing else.
func FuzzSize(f *testing.F) {
	for _, text := range []string{"1", "0", "4294967295", "4294967296", "-1", "+1", "0x10", "1_000", " 1", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if n := parseSize(text); n != 0 && strings.TrimLeft(text, "0") != fmt.Sprint(n) {
			t.Errorf("%q is %d", text, n)
		}
	})
}
