package commands

import (
	"errors"
	"strings"
	"testing"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
)

func TestMapWords(t *testing.T) {
	full := []string{"MAP", "KEY", "VALUE"}
	for _, test := range []struct {
		in    string
		names int
		want  mapWords
	}{
		{"mine/x", 1, mapWords{ref: "mine/x"}},
		{"id 57", 1, mapWords{ref: "id:57"}},
		{"name packets", 1, mapWords{ref: "name:packets"}},
		{"pinned /sys/fs/bpf/x", 1, mapWords{ref: "/sys/fs/bpf/x"}},
		{"mine/x 7", 2, mapWords{ref: "mine/x", key: "7"}},
		{"mine/x key", 2, mapWords{ref: "mine/x", key: "key"}},
		{"id 57 key", 2, mapWords{ref: "id:57", key: "key"}},
		{"id 57 key 7", 2, mapWords{ref: "id:57", key: "7"}},
		{"id 57 key 10 0 0 0x1", 2, mapWords{ref: "id:57", key: "hex:0a000001"}},
		{"id 57 key hex 0a 00 00 1", 2, mapWords{ref: "id:57", key: "hex:0a000001"}},
		{"id 57 key hex 0x0a", 2, mapWords{ref: "id:57", key: "hex:0a"}},
		{"mine/x 7 8", 3, mapWords{ref: "mine/x", key: "7", value: "8"}},
		{"mine/x key value", 3, mapWords{ref: "mine/x", key: "key", value: "value"}},
		{"mine/x key 10.0.0.1 value 8", 3, mapWords{ref: "mine/x", key: "10.0.0.1", value: "8"}},
		{"id 5 key 1 0 value 2 0 noexist", 3, mapWords{ref: "id:5", key: "hex:0100", value: "hex:0200", condition: maps.IfAbsent, conditionWord: "noexist"}},
		{"id 5 key hex 01 value hex ff exist", 3, mapWords{ref: "id:5", key: "hex:01", value: "hex:ff", condition: maps.IfPresent, conditionWord: "exist"}},
		{"id 5 key 1 0 value id 9 any", 3, mapWords{ref: "id:5", key: "hex:0100", value: "id:9", conditionWord: "any"}},
		{"id 5 key 1 0 value pinned /sys/fs/bpf/y", 3, mapWords{ref: "id:5", key: "hex:0100", value: "/sys/fs/bpf/y"}},
		{"id 5 key 1 value 2 3", 3, mapWords{ref: "id:5", key: "1", value: "hex:0203"}},
	} {
		got, err := parseMapWords(strings.Fields(test.in), full[:test.names]...)
		if err != nil || got != test.want {
			t.Errorf("%q: %+v, %v; want %+v", test.in, got, err, test.want)
		}
	}
}

func TestMapWordsErrors(t *testing.T) {
	full := []string{"MAP", "KEY", "VALUE"}
	for _, test := range []struct {
		in    string
		names int
		text  string
	}{
		{"id", 1, `"id": the word after it is missing`},
		{"pinned", 2, `"pinned": the word after it is missing`},
		{"id 5 rest", 1, `unexpected argument "rest"`},
		{"mine/x 1 2", 2, `unexpected argument "2"`},
		{"id 5 key 300 0", 2, `key: "300" is not a byte`},
		{"id 5 key hex", 2, `key: its bytes are missing`},
		{"id 5 key hex fg 00", 2, `key: "fg" is not a byte`},
		{"id 5 key 1 0 value", 3, `value: its bytes are missing`},
		{"id 5 key value 1 0", 3, `key: its bytes are missing`},
		{"id 5 key 1 0 value 1 -1", 3, `value: "-1" is not a byte`},
	} {
		_, err := parseMapWords(strings.Fields(test.in), full[:test.names]...)
		if !errors.Is(err, fault.ErrUsage) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%q: %v; want %q", test.in, err, test.text)
		}
	}
}
