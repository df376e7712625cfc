package output

import "testing"

func TestIsPlain(t *testing.T) {
	const plain = `{"key": "~ !"}, 1234567890`
	for c := range 256 {
		for at := range len(plain) {
			text := []byte(plain)
			text[at] = byte(c)
			if got, want := isPlain(text), c >= 0x20 && c < 0x7f; got != want {
				t.Fatalf("%q: %t, want %t", text, got, want)
			}
		}
	}
}
