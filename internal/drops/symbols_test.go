package drops

import (
	"strings"
	"testing"
)

func TestLocate(t *testing.T) {
	symbols := "ffffffff81000100 T udp_rcv\nffffffff81000000 t first\nffffffff81000150 D data\nffffffffc0000000 t probe\t[veth]\n0000000000000000 T hidden\nx\n\n"
	found, err := locateIn(strings.NewReader(symbols), []uint64{0xffffffff81000000, 0xffffffff810000ff, 0xffffffff810001ba, 0xffffffffc0000010, 0xffffffff80ffffff})
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[uint64]string{
		0xffffffff81000000: "first+0x0", 0xffffffff810000ff: "first+0xff", 0xffffffff810001ba: "udp_rcv+0xba", 0xffffffffc0000010: "probe+0x10", 0xffffffff80ffffff: "",
	} {
		if got := found[address]; got != want {
			t.Errorf("%x is %q, want %q", address, got, want)
		}
	}
}

// FuzzLocate reads what /proc/kallsyms may have: addresses get names that are there.
func FuzzLocate(f *testing.F) {
	for _, lines := range []string{"ffffffff81000000 T vfs_read\n", "ffffffffc0000000 t probe\t[veth]\n", "0000000000000000 T hidden\n", "x\n", "ffffffff81000000 T\n", ""} {
		f.Add(lines, uint64(0xffffffff81000000))
	}
	f.Fuzz(func(t *testing.T, lines string, address uint64) {
		found, err := locateIn(strings.NewReader(lines), []uint64{address})
		for at, text := range found {
			name := text[:strings.LastIndexByte(text, '+')]
			if at != address || err != nil || !strings.Contains(lines, name) {
				t.Errorf("%q: %x is %q, %v", lines, at, text, err)
			}
		}
	})
}
