package bpftool

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/codec"
)

// A printer adds the JSON of a value, as bpftool writes it, to dst. b begins
// with the value.
type printer interface {
	append(dst, b []byte) []byte
}

// deepest bounds the nesting of types. The kernel takes no more than 32.
const deepest = 64

// newPrinter returns the printer for values of type t, which have size bytes;
// nil when the type is of another size, or has more parts than can be printed.
func newPrinter(t btf.Type, size int) printer {
	if n, err := btf.Sizeof(t); err != nil || n > size || !codec.Bounded(t) {
		return nil
	}
	return compile(t, 0)
}

func compile(t btf.Type, depth int) printer {
	if v, ok := t.(*btf.Var); ok {
		o := &structure{fields: []field{{name: v.Name, printer: compile(v.Type, depth+1)}}}
		return o.named()
	}
	size, err := btf.Sizeof(t)
	if err != nil || depth > deepest {
		return nothing{}
	}
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		return compileInt(t)
	case *btf.Pointer:
		return number{size, false}
	case *btf.Enum:
		return compileEnum(t)
	case *btf.Float:
		return compileFloat(size)
	case *btf.Array:
		return compileArray(t, depth)
	case *btf.Struct:
		return compileMembers(t.Members, size, depth)
	case *btf.Union:
		return compileMembers(t.Members, size, depth)
	case *btf.Datasec:
		return compileDatasec(t, depth)
	}
	return nothing{}
}

// nothing stands for what has no value: void, forward declarations, functions.
type nothing struct{}

func (nothing) append(dst, _ []byte) []byte { return append(dst, "null"...) }

// number is an integer of 1, 2, 4 or 8 bytes.
type number struct {
	size   int
	signed bool
}

func (n number) append(dst, b []byte) []byte {
	if n.signed {
		return strconv.AppendInt(dst, loadInt(b, n.size), 10)
	}
	return strconv.AppendUint(dst, loadUint(b, n.size), 10)
}

func loadUint(b []byte, size int) uint64 {
	switch size {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	}
	return binary.NativeEndian.Uint64(b)
}

func loadInt(b []byte, size int) int64 {
	shift := 64 - 8*size
	return int64(loadUint(b, size)<<shift) >> shift
}

func compileInt(t *btf.Int) printer {
	size := int(t.Size)
	switch {
	case t.Encoding == btf.Char && size == 1:
		return character{}
	case t.Encoding == btf.Bool:
		return boolean(size)
	case size == 1 || size == 2 || size == 4 || size == 8:
		return number{size, t.Encoding == btf.Signed}
	}
	return bits{0, 8 * size}
}

// character is an integer that BTF calls a character.
type character struct{}

func (character) append(dst, b []byte) []byte {
	if b[0] >= ' ' && b[0] <= '~' {
		return appendString(dst, b[:1])
	}
	dst = append(dst, `"\u00`...)
	return append(hex.AppendEncode(dst, b[:1]), '"')
}

// boolean is true when any of so many bytes is set.
type boolean int

func (n boolean) append(dst, b []byte) []byte {
	for _, c := range b[:n] {
		if c != 0 {
			return append(dst, "true"...)
		}
	}
	return append(dst, "false"...)
}

// enumeration is an enum: a word or else, whatever its sign, a signed number.
// Words of small enums are found by their signed number too.
type enumeration struct {
	size  int
	words map[int64]string // as JSON
}

func compileEnum(t *btf.Enum) printer {
	size := int(t.Size)
	if size != 1 && size != 2 && size != 4 && size != 8 {
		return bits{0, 8 * size}
	}
	n := &enumeration{size, make(map[int64]string, len(t.Values))}
	for _, v := range t.Values {
		value := int64(v.Value)
		if size < 8 {
			value = int64(int32(v.Value))
		}
		if _, taken := n.words[value]; !taken {
			n.words[value] = quoted(v.Name)
		}
	}
	return n
}

func (n *enumeration) append(dst, b []byte) []byte {
	value := loadInt(b, n.size)
	if word, ok := n.words[value]; ok {
		return append(dst, word...)
	}
	return strconv.AppendInt(dst, value, 10)
}

// float is a number of 4 or 8 bytes, which bpftool can't print.
type float int

func compileFloat(size int) printer {
	if size != 4 && size != 8 {
		return bits{0, 8 * size}
	}
	return float(size)
}

func (n float) append(dst, b []byte) []byte {
	v := math.Float64frombits(loadUint(b, int(n)))
	if n == 4 {
		v = float64(math.Float32frombits(uint32(loadUint(b, 4))))
	}
	switch {
	case math.IsNaN(v):
		return append(dst, `"NaN"`...)
	case math.IsInf(v, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(v, -1):
		return append(dst, `"-Infinity"`...)
	}
	return strconv.AppendFloat(dst, v, 'g', -1, int(n)*8)
}

// bits is a bitfield, or an integer that isn't of 1, 2, 4 or 8 bytes: a string
// with a hexadecimal number of up to 128 bits, never with a sign. Its slice
// begins with the byte of its first bit.
type bits struct{ shift, width int } // shift < 8

func (n bits) append(dst, b []byte) []byte {
	high, low := n.load(b[:(n.shift+n.width+7)/8])
	dst = append(dst, `"0x`...)
	if high == 0 {
		dst = strconv.AppendUint(dst, low, 16)
		return append(dst, '"')
	}
	dst = strconv.AppendUint(dst, high, 16)
	dst = hex.AppendEncode(dst, binary.BigEndian.AppendUint64(nil, low))
	return append(dst, '"')
}

func (n bits) load(b []byte) (high, low uint64) {
	skip := n.shift
	if codec.HostIsBigEndian {
		skip = 8*len(b) - n.shift - n.width
	}
	for i := n.width - 1; i >= 0; i-- { // from the most significant bit
		place := skip + i
		index := place / 8
		if codec.HostIsBigEndian {
			index = len(b) - 1 - index
		}
		high, low = high<<1|low>>63, low<<1|uint64(b[index]>>(place%8)&1)
	}
	return high, low
}

// array is an array; of characters, it is a string when it is one.
type array struct {
	element printer
	size    int // bytes of an element
	length  int
	text    bool
}

// emptyMost is how many elements without a size are printed: there may be
// billions in a value of no bytes.
const emptyMost = 1024

func compileArray(t *btf.Array, depth int) printer {
	size, err := btf.Sizeof(t.Type)
	if err != nil {
		return nothing{}
	}
	length := int(t.Nelems)
	if size == 0 {
		length = min(length, emptyMost)
	}
	return &array{compile(t.Type, depth+1), size, length, isChar(t.Type)}
}

// isChar says whether arrays of t may be text. To bpftool a typedef of char is
// no char.
func isChar(t btf.Type) bool {
	for {
		switch q := t.(type) {
		case *btf.Const:
			t = q.Type
		case *btf.Volatile:
			t = q.Type
		case *btf.Restrict:
			t = q.Type
		case *btf.TypeTag:
			t = q.Type
		case *btf.Int:
			return codec.IsChar(q)
		default:
			return false
		}
	}
}

func (n *array) append(dst, b []byte) []byte {
	if n.text {
		if end := textEnd(b[:n.length]); end >= 0 {
			return appendString(dst, b[:end])
		}
	}
	dst = append(dst, '[')
	for i := range n.length {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = n.element.append(dst, b[i*n.size:])
	}
	return append(dst, ']')
}

// textEnd returns where the NUL is that ends printable ASCII, -1 when b isn't
// such text.
func textEnd(b []byte) int {
	for i, c := range b {
		switch {
		case c == 0:
			return i
		case c < ' ' || c > '~':
			return -1
		}
	}
	return -1
}

// structure is a struct, union or variable.
type structure struct{ fields []field }

type field struct {
	name    string
	key     string // `"name":`, behind a comma unless it is the first
	offset  int    // bytes
	bit     uint32 // from the beginning of the object
	printer printer
}

func compileMembers(members []btf.Member, size, depth int) printer {
	o := &structure{}
	for _, m := range members {
		f := field{name: m.Name, offset: int(m.Offset / 8), bit: uint32(m.Offset)}
		end := f.offset
		if width := int(m.BitfieldSize); width > 0 {
			n := bits{int(m.Offset % 8), width}
			f.printer, end = n, end+(n.shift+n.width+7)/8
		} else if n, err := btf.Sizeof(m.Type); err == nil {
			f.printer, end = compile(m.Type, depth+1), end+n
		}
		if f.printer == nil || end > size { // wrong BTF
			f.printer, f.offset = nothing{}, 0
		}
		o.fields = append(o.fields, f)
	}
	return o.named()
}

// named gives each field a key of its own. bpftool writes anonymous members as
// "", several times if there are several. Here one "" has what is in all of
// them, and a name that still comes twice is told apart by its bit.
func (o *structure) named() *structure {
	o.fields = mergeAnonymous(o.fields)
	taken := map[string]bool{}
	for i := range o.fields {
		f := &o.fields[i]
		f.name = strings.ToValidUTF8(f.name, "?")
		for taken[f.name] {
			f.name += "@" + strconv.FormatUint(uint64(f.bit), 10)
		}
		taken[f.name] = true
		f.key = quoted(f.name) + ":"
		if i > 0 {
			f.key = "," + f.key
		}
	}
	return o
}

// mergeAnonymous puts the fields of all anonymous structs and unions into the
// first of them, when there are several.
func mergeAnonymous(fields []field) []field {
	var kept []field
	var merged *structure
	first := 0
	for _, f := range fields {
		inner, ok := f.printer.(*structure)
		switch {
		case f.name != "" || !ok:
			kept = append(kept, f)
			continue
		case merged == nil:
			merged, first = &structure{}, len(kept)
			kept = append(kept, field{printer: merged})
		}
		for _, g := range inner.fields {
			g.offset += f.offset
			g.bit += f.bit
			merged.fields = append(merged.fields, g)
		}
	}
	if merged != nil {
		kept[first].printer = merged.named()
	}
	return kept
}

func (o *structure) append(dst, b []byte) []byte {
	dst = append(dst, '{')
	for i := range o.fields {
		f := &o.fields[i]
		dst = append(dst, f.key...)
		dst = f.printer.append(dst, b[f.offset:])
	}
	return append(dst, '}')
}

// section is a data section: one object for each variable.
type section struct {
	key       string
	variables []field
}

func compileDatasec(t *btf.Datasec, depth int) printer {
	n := &section{key: quoted(t.Name) + ":"}
	for _, v := range t.Vars {
		f := field{printer: nothing{}}
		if inSection(v, t.Size) {
			f = field{offset: int(v.Offset), printer: compile(v.Type, depth+1)}
		}
		n.variables = append(n.variables, f)
	}
	return n
}

// inSection says whether what a section has at v is a variable that lies in it.
func inSection(v btf.VarSecinfo, size uint32) bool {
	variable, ok := v.Type.(*btf.Var)
	if !ok {
		return false
	}
	n, err := btf.Sizeof(variable.Type)
	return err == nil && int(v.Offset)+n <= int(size)
}

func (n *section) append(dst, b []byte) []byte {
	dst = append(append(append(dst, '{'), n.key...), '[')
	for i, v := range n.variables {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = v.printer.append(dst, b[v.offset:])
	}
	return append(dst, "]}"...)
}

func quoted(s string) string {
	return string(appendString(nil, []byte(strings.ToValidUTF8(s, "?"))))
}

// appendString adds s, which is valid UTF-8, as a JSON string.
func appendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ' || c == 0x7f:
			dst = append(dst, `\u00`...)
			dst = hex.AppendEncode(dst, []byte{c})
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
