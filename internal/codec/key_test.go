package codec

import (
	"encoding/hex"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// TestKeyPadding checks that keys that differ only in their padding are written
// differently, and read back as they were.
func TestKeyPadding(t *testing.T) {
	byteType, word := &btf.Int{Name: "__u8", Size: 1}, &btf.Int{Name: "__u32", Size: 4}
	pair := &btf.Struct{Name: "pair", Size: 8, Members: []btf.Member{
		{Name: "a", Type: byteType}, {Name: "b", Type: word, Offset: 32},
	}}
	bitfield := &btf.Struct{Name: "bitfield", Size: 4, Members: []btf.Member{{Name: "a", Type: word, BitfieldSize: 3}}}
	either := &btf.Union{Name: "either", Size: 4, Members: []btf.Member{{Name: "a", Type: byteType}, {Name: "b", Type: word}}}
	for _, test := range []struct {
		t         btf.Type
		key, want string
	}{
		{pair, "0100000002000000", `{"a":1,"b":2}`},
		{pair, "0109000002000000", `"hex:0109000002000000"`},
		{&btf.Array{Type: pair, Nelems: 2}, "01000000020000000100000902000000", `"hex:01000000020000000100000902000000"`},
		{bitfield, "07000000", `{"a":7}`},
		{bitfield, "08000000", `"hex:08000000"`},
		{either, "01020304", `{"a":1,"b":67305985}`},
	} {
		key, _ := hex.DecodeString(test.key)
		c := NewKey(test.t, len(key))
		doc := c.Append(nil, key)
		if string(doc) != test.want {
			t.Errorf("%s is written %s, want %s", test.key, doc, test.want)
		}
		if back, err := c.Parse(string(Text(doc))); err != nil || hex.EncodeToString(back) != test.key {
			t.Errorf("%s is read as %x, %v", doc, back, err)
		}
	}
}
