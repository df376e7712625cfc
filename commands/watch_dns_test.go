package commands

import "testing"

// TestNamePattern: a name means those below it, a pattern whatever fits, and no name is
// too odd.
func TestNamePattern(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		fits          bool
	}{
		{"example.com", "example.com", true},
		{"Example.com.", "www.example.com", true},
		{"example.com", "badexample.com", false},
		{"example.com", "example.com.evil", false},
		{"example?com", "exampleXcom", true},
		{"*.example.com", "a.b.example.com", true},
		{"*.example.com", "example.com", false},
		{"a|b", "b", false},
		{`a\.b`, `a\.b`, true},
		{"\xff(", "x", false},
		{".", ".", true},
		{".", "com", false},
	} {
		if got := namePattern(c.pattern).MatchString(c.name); got != c.fits {
			t.Errorf("%q fits %q: %t", c.pattern, c.name, got)
		}
	}
}
