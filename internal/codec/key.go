package codec

import (
	"bytes"

	"github.com/cilium/ebpf/btf"
)

// NewKey returns the codec of a map's keys: that of New, but a key with bits
// set in its padding is written as bytes. To the kernel it isn't the key without
// them.
func NewKey(t btf.Type, size int) *Codec {
	c := New(t, size)
	if c.name != nil {
		c.padding = padding(t, size)
	}
	return c
}

// padding returns the bits that belong to no member, nil when there are none.
func padding(t btf.Type, size int) []byte {
	unused := bytes.Repeat([]byte{0xff}, size)
	use(unused, t, 0)
	if len(bytes.Trim(unused, "\x00")) == 0 {
		return nil
	}
	return unused
}

// use clears the bits that a type takes, the first of which is at.
func use(unused []byte, t btf.Type, at int) {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		useMembers(unused, t.Members, at)
	case *btf.Union:
		useMembers(unused, t.Members, at)
	case *btf.Array:
		size, _ := btf.Sizeof(t.Type)
		for i := 0; size > 0 && i < int(t.Nelems); i++ {
			use(unused, t.Type, at+8*size*i)
		}
	default:
		size, _ := btf.Sizeof(t)
		clearBits(unused, at, 8*size)
	}
}

func useMembers(unused []byte, members []btf.Member, at int) {
	for _, m := range members {
		if m.BitfieldSize > 0 {
			clearBits(unused, at+int(m.Offset), int(m.BitfieldSize))
			continue
		}
		use(unused, m.Type, at+int(m.Offset))
	}
}

func clearBits(b []byte, at, count int) {
	for i := at; i < min(at+count, 8*len(b)); i++ {
		b[i/8] &^= 1 << (i % 8)
	}
}

// padded says whether b has bits set in its padding.
func (c *Codec) padded(b []byte) bool {
	for i, unused := range c.padding {
		if b[i]&unused != 0 {
			return true
		}
	}
	return false
}
