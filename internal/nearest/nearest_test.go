package nearest

import (
	"slices"
	"testing"
)

func TestWord(t *testing.T) {
	words := []string{"attach", "detach", "load", "unload", "map"}
	for in, want := range map[string]string{"atach": "attach", "detahc": "detach", "laod": "load", "mpa": "map", "x": "", "zebra": ""} {
		if got := Word(in, words); got != want {
			t.Errorf("Word(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestHint(t *testing.T) {
	words := []string{"no_socket", "tcp_csum"}
	for in, want := range map[string]string{
		"no_sokcet": `did you mean "no_socket"?`, "TCP_CSUM": `did you mean "tcp_csum"?`, "bogus": "one of: no_socket, tcp_csum",
	} {
		if got := Hint(in, words); got != want {
			t.Errorf("Hint(%q) = %s, want %s", in, got, want)
		}
	}
}

func TestFirst(t *testing.T) {
	last := func(word string) string { return word[2:] }
	words := []string{"a/packets", "b/limits", "c/limit", "d/packets"}
	if got := First("limit", words, last); !slices.Equal(got, []string{"c/limit", "b/limits", "a/packets", "d/packets"}) {
		t.Errorf("First = %q", got)
	}
	if words[0] != "a/packets" {
		t.Error("the words themselves were sorted")
	}
}
