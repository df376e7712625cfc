// Package codec turns the keys and values of BPF maps into JSON and text, and
// text into keys and values, guided by BTF. It knows nothing of the kernel: it
// is built from a type and works on bytes in the host's byte order.
//
// A type is written as follows.
//
//	integers          300, -1, 0x12c; beyond 2^53 as a string, which jq doesn't round
//	bool              true, false; 1 and 0 are taken too; any other byte as "hex:02"
//	enums             the word; a value without one as a number
//	floats            1.5; "NaN", "Infinity", "-Infinity"
//	char[n]           a string; bytes that aren't text as "hex:…"
//	__be16, __be64    the number in host order
//	__be32            "10.0.0.1", the number if it is called one: "seq", "flow_label"
//	in_addr, in6_addr "10.0.0.1", "2001:db8::1"
//	ip_addr_t         either family: "10.0.0.1" is stored as ::ffff:10.0.0.1
//	__u8[6] mac       "aa:bb:cc:dd:ee:ff"
//	LPM trie keys     "10.0.0.0/8", "2001:db8::/32"
//	port and protocol "80/tcp": a struct of a 16-bit port and a protocol's number
//	arrays            [1,2,3]
//	structs, unions   {"member":…}, anonymous members merged into their parent
//	no BTF            "hex:0a000001"
//
// The form "hex:…" is accepted in place of everything but bitfields.
package codec

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/fault"
)

// Codec encodes and decodes one type. It is immutable and safe for concurrent
// use.
type Codec struct {
	root    node
	name    *string
	padding []byte // of keys: the bits that must be zero to write it by its type
}

// node is one type in a tree of them. The slices that a node is given have
// exactly size() bytes.
type node interface {
	size() int
	// append adds the JSON of b to dst.
	append(dst, b []byte) []byte
	// parse overwrites b with v, which a Decoder made. path is where v stands.
	parse(b []byte, v any, path string) error
	// form says what parse takes, for people.
	form() string
}

// New returns the codec of a type that takes size bytes. Without a type (nil,
// void), or with one of another size or that isn't Bounded, it handles bytes as
// hexadecimal text.
func New(t btf.Type, size int) *Codec {
	if !fits(t, size) || !Bounded(t) {
		return &Codec{root: raw(size)}
	}
	name := TypeName(t)
	return &Codec{root: compile(t, "", 0), name: &name}
}

// NewIndex returns the codec of array indices, 4 bytes: numbers, also without
// BTF.
func NewIndex(t btf.Type) *Codec {
	if !fits(t, 4) {
		return &Codec{root: integer{bytes: 4}}
	}
	return New(t, 4)
}

// NewPrefix returns the codec of LPM trie keys: a 32-bit prefix length and
// size-4 bytes of data. Where the data is an address, or may be one as far as
// is known without BTF, the key is written as a prefix.
func NewPrefix(t btf.Type, size int) *Codec {
	if !fits(t, size) {
		if size == 8 || size == 20 {
			return &Codec{root: &prefix{address: address{bytes: size - 4}}}
		}
		return &Codec{root: raw(size)}
	}
	c := New(t, size)
	if a, ok := prefixAddress(t); ok {
		c.root = &prefix{address: a, object: c.root}
	}
	return c
}

func fits(t btf.Type, size int) bool {
	if t == nil {
		return false
	}
	if _, void := btf.UnderlyingType(t).(*btf.Void); void {
		return false
	}
	n, err := btf.Sizeof(t)
	return err == nil && n == size
}

// TypeName returns the C name of the type, nil when the codec has none.
func (c *Codec) TypeName() *string { return c.name }

// Size is the number of bytes of a value.
func (c *Codec) Size() int { return c.root.size() }

// Form says what Parse takes, as in {"address":ADDRESS,"ifindex":0..4294967295}.
func (c *Codec) Form() string { return c.root.form() }

// Append adds the JSON of b, which has Size bytes, to dst.
func (c *Codec) Append(dst, b []byte) []byte {
	if c.padded(b) {
		return raw(len(b)).append(dst, b)
	}
	return c.root.append(dst, b)
}

// Text returns the text of a JSON document: a string that needs no escapes
// without its quotes, everything else as it is.
func Text(doc []byte) []byte {
	if len(doc) >= 2 && doc[0] == '"' && bytes.IndexByte(doc, '\\') < 0 {
		return doc[1 : len(doc)-1]
	}
	return doc
}

// Parse returns the bytes of a value that is written as text: what Append
// prints, or a string without its quotes. Errors are of kind fault.ErrUsage and
// name the member that is wrong.
func (c *Codec) Parse(text string) ([]byte, error) {
	v, err := textValue(c.root, text)
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "%w", err)
	}
	b := make([]byte, c.Size())
	if err := parse(c.root, b, v, ""); err != nil {
		return nil, fault.New(fault.ErrUsage, "%w", err)
	}
	return b, nil
}

// textValue decides whether text is JSON or a bare string.
func textValue(n node, text string) (any, error) {
	_, isText := n.(chars)
	if !isText {
		text = strings.TrimSpace(text)
	}
	if text == "" {
		return text, nil
	}
	switch text[0] {
	case '"':
		var s string
		if json.Unmarshal([]byte(text), &s) == nil {
			return s, nil
		}
	case '{', '[':
		if !isText {
			return decodeJSON(text)
		}
	}
	return text, nil
}

const hexPrefix = "hex:"

// parse is what every node is parsed through: it takes "hex:…" anywhere.
func parse(n node, b []byte, v any, path string) error {
	text, ok := v.(string)
	if _, isBits := n.(bits); !ok || isBits || !strings.HasPrefix(text, hexPrefix) {
		return n.parse(b, v, path)
	}
	return parseHex(b, text, path)
}

func parseHex(b []byte, text, path string) error {
	data, err := hex.DecodeString(text[len(hexPrefix):])
	if err != nil {
		return wrong(path, "%s is not hexadecimal", quote(text))
	}
	if len(data) != len(b) {
		return wrong(path, "%s is %s, %d needed", quote(text), plural(len(data), "byte"), len(b))
	}
	copy(b, data)
	return nil
}

// raw is a number of bytes without a type.
type raw int

func (r raw) size() int { return int(r) }

func (raw) append(dst, b []byte) []byte {
	dst = append(dst, '"')
	dst = append(dst, hexPrefix...)
	dst = hex.AppendEncode(dst, b)
	return append(dst, '"')
}

func (r raw) parse(_ []byte, v any, path string) error {
	return wrong(path, "%s has no type here: write its bytes as %s", show(v), r.form())
}

func (r raw) form() string {
	if r > 16 {
		return hexPrefix + "00… (" + plural(int(r), "byte") + ")"
	}
	return hexPrefix + strings.Repeat("00", int(r))
}
