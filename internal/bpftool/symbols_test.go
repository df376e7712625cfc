package bpftool

import (
	"strings"
	"testing"
)

// FuzzSymbols reads what /proc/kallsyms may have: only what was asked for is found,
// under a name that is there.
func FuzzSymbols(f *testing.F) {
	for _, lines := range []string{
		"ffffffff81000000 T vfs_read\n", "ffffffffc0000000 t probe\t[veth]\n",
		"0000000000000000 T hidden\n", "ffffffff80fffffc T vfs_read\n", "x\n", "ffffffff81000000 T\n", "",
	} {
		f.Add(lines, uint64(0xffffffff81000000))
	}
	f.Fuzz(func(t *testing.T, lines string, address uint64) {
		for at, s := range readSymbols(strings.NewReader(lines), map[uint64]uint64{address: 0}) {
			if at != address || s.name == "" || !strings.Contains(lines, s.name) {
				t.Errorf("%q: %x is %q", lines, at, s.name)
			}
		}
	})
}
