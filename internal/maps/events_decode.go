package maps

import (
	"fmt"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/codec"
)

// decoder turns records into JSON.
type decoder struct {
	codec  *codec.Codec // nil: there is no type
	name   *string
	size   int // of the type
	padded int // of a record of that size, as it arrives
	short  uint64
}

func newDecoder(t btf.Type, perf bool) decoder {
	if t == nil {
		return decoder{}
	}
	size, err := btf.Sizeof(t)
	if err != nil || size == 0 {
		return decoder{}
	}
	c := codec.New(t, size)
	if c.TypeName() == nil {
		return decoder{} // it isn't one that can be told
	}
	d := decoder{codec: c, name: c.TypeName(), size: size, padded: size}
	if perf {
		d.padded = perfPadded(size)
	}
	return d
}

// perfPadded is the size that the kernel gives a record of n bytes in a perf
// buffer: with the 4 bytes of its length it takes a multiple of 8 bytes. What
// fills it up is whatever was in the buffer.
func perfPadded(n int) int { return (n+4+7)&^7 - 4 }

// split divides a record into what the type describes and the rest; the rest is
// nil when it says nothing.
func (d *decoder) split(b []byte) (data, trailing []byte) {
	if d.codec == nil || len(b) <= d.size || len(b) == d.padded {
		return b[:d.known(len(b))], nil
	}
	for _, c := range b[d.size:] {
		if c != 0 {
			return b[:d.size], b[d.size:]
		}
	}
	return b[:d.size], nil
}

// known is how many bytes of a record of n are its data.
func (d *decoder) known(n int) int {
	if d.codec == nil {
		return n
	}
	return min(n, d.size)
}

// append adds the JSON of a record's data. One that is too short for the type
// is bytes.
func (d *decoder) append(dst, data []byte) []byte {
	if d.codec == nil {
		return appendBytes(dst, data)
	}
	if len(data) < d.size {
		d.short++
		return appendBytes(dst, data)
	}
	return d.codec.Append(dst, data)
}

// appendBytes adds "hex:…".
func appendBytes(dst, b []byte) []byte { return codec.New(nil, len(b)).Append(dst, b) }

func (d *decoder) notes() []string {
	if d.short == 0 {
		return nil
	}
	return []string{fmt.Sprintf("records shorter than %s, %d bytes, that were printed as bytes: %d", *d.name, d.size, d.short)}
}
