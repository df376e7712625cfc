package bpftool

import (
	"testing"
	"unicode/utf8"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/maps"
	"bpfnet/internal/testkit/btfgen"
)

// FuzzEntries: whatever the types of a map, and however wrong, its entries are
// valid JSON in UTF-8, and their objects have each key once.
func FuzzEntries(f *testing.F) {
	for kind := range byte(11) {
		f.Add([]byte{kind, 3, 1, 5, 10, 2, 11, 4, 2, 12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, []byte("\xff\x00\x80text\x1b0123456789"))
	}
	f.Fuzz(func(t *testing.T, recipe, data []byte) {
		typ := btfgen.Type(recipe)
		size, err := btf.Sizeof(typ)
		if err != nil || size == 0 || size > 4096 {
			size = len(data)%64 + 1
		}
		stride := (size + 7) &^ 7
		const cpus = 2
		b := make([]byte, cpus*stride)
		copy(b, data)
		p := &entryPrinter{info: maps.RawInfo{KeySize: uint32(size), ValueSize: uint32(size), CPUs: cpus, Stride: stride}}
		p.key, p.value = newPrinter(typ, size), newPrinter(typ, size)
		for _, p.info.PerCPU = range []bool{false, true} {
			doc := p.entry(b[:size], b, nil)
			if _, err := decode(doc); err != nil || !utf8.Valid(doc) {
				t.Fatalf("%x is printed %q, which is no JSON in UTF-8: %v", b, doc, err)
			}
		}
	})
}
