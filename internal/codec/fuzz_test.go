package codec

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/testkit/btfgen"
)

// FuzzCodec: whatever the type, and however wrong, bytes print as JSON in UTF-8,
// which reads as bytes that print the same: what has a name survives.
func FuzzCodec(f *testing.F) {
	for kind := range byte(11) {
		f.Add([]byte{kind, 3, 1, 5, 10, 2, 11, 4, 2, 12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, []byte("\xff\x00\x80hex:\x1b0123456789"))
	}
	f.Fuzz(func(t *testing.T, recipe, data []byte) {
		typ := btfgen.Type(recipe)
		size, err := btf.Sizeof(typ)
		if err != nil || size > 4096 {
			size = len(data) % 64
		}
		for _, c := range []*Codec{New(typ, size), NewKey(typ, size), NewPrefix(typ, size), NewIndex(typ)} {
			b := make([]byte, c.Size())
			copy(b, data)
			checkPrintsAgain(t, c, b)
			checkPerCPU(t, c, data)
			_ = c.Form()
		}
	})
}

func checkPrintsAgain(t *testing.T, c *Codec, b []byte) {
	t.Helper()
	doc := c.Append(nil, b)
	checkJSON(t, doc)
	again, err := c.Parse(string(doc))
	if err != nil {
		t.Fatalf("%x is printed %s, which isn't read: %v", b, doc, err)
	}
	if got := c.Append(nil, again); string(got) != string(doc) {
		t.Fatalf("%x is printed %s, which reads as what prints %s", b, doc, got)
	}
}

// checkPerCPU is the same for a value of three CPUs, padded as the kernel does.
func checkPerCPU(t *testing.T, c *Codec, data []byte) {
	t.Helper()
	const cpus = 3
	stride := (c.Size() + 7) &^ 7
	if stride == 0 {
		return // the kernel has no empty values
	}
	b := make([]byte, cpus*stride)
	copy(b, data)
	doc, sum := c.AppendPerCPU(nil, b, stride)
	checkJSON(t, doc)
	checkJSON(t, doc[sum:len(doc)-1])
	again, same, err := c.ParsePerCPU(string(doc), stride, cpus)
	if err != nil || same {
		t.Fatalf("%x is printed %s, which isn't read: %v", b, doc, err)
	}
	if got, _ := c.AppendPerCPU(nil, again, stride); string(got) != string(doc) {
		t.Fatalf("%x is printed %s, which reads as what prints %s", b, doc, got)
	}
}

func checkJSON(t *testing.T, doc []byte) {
	t.Helper()
	if !json.Valid(doc) || !utf8.Valid(doc) {
		t.Fatalf("%q is no JSON in UTF-8", doc)
	}
}
