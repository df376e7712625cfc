package pinned

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// FuzzSpec reads notes of instances: what is written of one is read again.
func FuzzSpec(f *testing.F) {
	for _, text := range []string{
		`{"source":"pod-traffic","builtin":true,"digest":"00","parameters":{"match_prefixes":"1"}}`,
		`{"source":1}`, `{"parameters":null}`, `[]`, `{`, "",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		spec := parseSpec(text)
		written, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		if len(spec.Parameters) == 0 {
			spec.Parameters = nil // none are not written
		}
		if again := parseSpec(string(written)); !reflect.DeepEqual(again, spec) {
			t.Errorf("%q: %+v, again %+v", text, spec, again)
		}
	})
}

// FuzzLocks finds a holder among the lines of /proc/locks.
func FuzzLocks(f *testing.F) {
	const file = "00:13:22"
	for _, lines := range []string{
		"1: FLOCK  ADVISORY  WRITE 708 00:13:22 0 EOF\n",
		"1: -> FLOCK  ADVISORY  WRITE 708 00:13:22 0 EOF\n",
		"1: POSIX  ADVISORY  READ 1 00:13:22 0 EOF\n2: FLOCK\n", "",
	} {
		f.Add(lines)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		holder := lockHolder(strings.NewReader(lines), file)
		if holder != "another process" && !strings.Contains(lines, file) {
			t.Errorf("%q: %s", lines, holder)
		}
	})
}
