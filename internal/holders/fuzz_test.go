package holders

import (
	"fmt"
	"strings"
	"testing"
)

// FuzzParseID: an id that is found in a descriptor's fdinfo is there, on a line
// of its own.
func FuzzParseID(f *testing.F) {
	for _, seed := range []string{"pos:\t0\nmap_id:\t57\n", "map_id:", "map_id:\t-1\n", "map_id:\t4294967296\n", "xmap_id:\t1\nmap_id:\t2", "map_id:\t1\x00\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, ok, err := parseID([]byte(text), "map_id:")
		if ok && (err != nil || !strings.Contains("\n"+text, "\nmap_id:") || !strings.Contains(text, fmt.Sprint(id))) {
			t.Errorf("%q has id %d, %v", text, id, err)
		}
	})
}
