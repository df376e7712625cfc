package bpftool

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/testkit"
)

// none is a size of 0 where 0 means the usual size.
const none = math.MaxUint32

func uint_(size uint32) btf.Type {
	return &btf.Int{Name: fmt.Sprintf("u%d", 8*size), Size: size}
}

func sint(size uint32) btf.Type {
	return &btf.Int{Name: fmt.Sprintf("s%d", 8*size), Size: size, Encoding: btf.Signed}
}

func list(element btf.Type, n uint32) btf.Type {
	return &btf.Array{Index: uint_(4), Type: element, Nelems: n}
}

// struct_ lays its members out one after the other, without padding.
func struct_(name string, all ...btf.Member) btf.Type {
	var size uint32
	for i := range all {
		n, err := btf.Sizeof(all[i].Type)
		if err != nil {
			panic(err)
		}
		all[i].Offset = btf.Bits(8 * size)
		size += uint32(n)
	}
	return &btf.Struct{Name: name, Size: size, Members: all}
}

func union(name string, all ...btf.Member) btf.Type {
	var size uint32
	for i := range all {
		n, err := btf.Sizeof(all[i].Type)
		if err != nil {
			panic(err)
		}
		all[i].Offset = 0
		size = max(size, uint32(n))
	}
	return &btf.Union{Name: name, Size: (size + 7) &^ 7, Members: all}
}

func member(name string, t btf.Type) btf.Member { return btf.Member{Name: name, Type: t} }

func bitfield(name string, t btf.Type, offset, width btf.Bits) btf.Member {
	return btf.Member{Name: name, Type: t, Offset: offset, BitfieldSize: width}
}

func enum(size uint32, signed bool, values ...int64) btf.Type {
	e := &btf.Enum{Name: fmt.Sprintf("e%d%t", size, signed), Size: size, Signed: signed}
	for i, v := range values {
		e.Values = append(e.Values, btf.EnumValue{Name: fmt.Sprintf("W%d", i), Value: uint64(v)})
	}
	return e
}

var (
	char     = &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	charByte = &btf.Int{Name: "letter", Size: 1, Encoding: btf.Char}
	boolType = &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	float4   = &btf.Float{Name: "float", Size: 4}
	float8   = &btf.Float{Name: "double", Size: 8}
	empty    = &btf.Struct{Name: "empty"}
)

// random makes values with all bits in use, and the extremes.
func random(size int) [][]byte {
	source := rand.NewChaCha8([32]byte{byte(size)})
	values := [][]byte{make([]byte, size), []byte(strings.Repeat("\xff", size))}
	for range 14 {
		b := make([]byte, size)
		source.Read(b)
		values = append(values, b)
	}
	return values
}

// values are numbers in the host's order, each of size bytes.
func values(size int, numbers ...int64) [][]byte {
	var all [][]byte
	for _, n := range numbers {
		b := binary.NativeEndian.AppendUint64(nil, uint64(n))
		all = append(all, b[:size])
	}
	return all
}

func texts(size int, all ...string) [][]byte {
	var values [][]byte
	for _, s := range all {
		b := make([]byte, size)
		copy(b, s)
		values = append(values, b)
	}
	return values
}

// TestMapTypes compares values of every kind of BTF type with bpftool's.
func TestMapTypes(t *testing.T) {
	inner := struct_("", member("x", uint_(2)), member("y", sint(2)))
	tests := map[string]struct {
		typ    btf.Type
		values [][]byte // nil: random ones
	}{
		"pointer":        {&btf.Pointer{Target: &btf.Void{}}, nil},
		"pointer_struct": {struct_("p", member("next", &btf.Pointer{Target: inner}), member("n", uint_(4))), nil},
		"char_int":       {charByte, texts(1, "", "a", "~", "'", "\x7f", "\x80", "\xff", "\t", " ")},
		"bool":           {struct_("b", member("on", boolType), member("pad", list(uint_(1), 7))), values(8, 0, 1, 2, 0x80, 0xff, 0xff00, 0xff01)},
		"typedefs": {&btf.Typedef{Name: "a", Type: &btf.Const{Type: &btf.Typedef{Name: "b", Type: &btf.Volatile{
			Type: &btf.Typedef{Name: "c", Type: list(&btf.Const{Type: uint_(4)}, 2)}}}}}, nil},
		"array":          {list(sint(2), 3), nil},
		"array_2d":       {list(list(uint_(1), 3), 2), nil},
		"array_structs":  {list(inner, 2), nil},
		"array_none":     {struct_("z", member("none", list(uint_(4), 0)), member("n", uint_(4))), nil},
		"empty":          {struct_("e", member("nothing", empty), member("n", uint_(4))), nil},
		"union":          {union("u", member("n", uint_(8)), member("s", inner), member("b", list(uint_(1), 8))), nil},
		"anonymous":      {struct_("a", member("n", uint_(4)), member("", inner), member("m", uint_(4))), nil},
		"anonymous_deep": {struct_("a", member("", union("", member("n", uint_(4)), member("", struct_("", member("", inner)))))), nil},
		"text":           {list(char, 8), texts(8, "", "hello", "1234567", "12345678", "a\"b", "it's", "a/<&>", "tab\there", "\x7f", "\xc3\xa9", "\xff\xff", "a\x00b")},
		"text_const":     {struct_("t", member("s", list(&btf.Const{Type: &btf.Volatile{Type: char}}, 4))), texts(4, "abc", "abcd", "a")},
		"text_letters":   {list(charByte, 4), texts(4, "abc", "abcd", "a\xff")},
		"text_typedef":   {list(&btf.Typedef{Name: "mychar", Type: char}, 4), texts(4, "abc", "a")},
		"text_u8":        {list(uint_(1), 4), texts(4, "abc", "a")},
		"text_2d":        {list(list(char, 4), 2), texts(8, "abc\x00de", "abcdef")},
		"bitfields": {&btf.Struct{Name: "bits", Size: 16, Members: []btf.Member{
			bitfield("one", uint_(4), 0, 1), bitfield("crosses", sint(4), 1, 13), bitfield("zeros", uint_(4), 14, 18),
			{Name: "n", Type: uint_(4), Offset: 32}, bitfield("wide", uint_(8), 64, 61), bitfield("last", sint(8), 125, 3)}}, nil},
		"bitfields_bytes": {&btf.Struct{Name: "bits", Size: 8, Members: []btf.Member{
			bitfield("a", uint_(1), 0, 3), bitfield("b", uint_(1), 3, 5), bitfield("c", boolType, 8, 1),
			bitfield("d", enum(4, false, 1, 2), 16, 9), bitfield("e", sint(4), 32, 32)}}, nil},
		"bitfields_union":  {&btf.Union{Name: "bits", Size: 4, Members: []btf.Member{bitfield("a", uint_(4), 0, 3), bitfield("b", uint_(4), 0, 29)}}, nil},
		"bitfields_128":    {&btf.Struct{Name: "bits", Size: 16, Members: []btf.Member{bitfield("a", uint_(16), 0, 100), bitfield("b", uint_(16), 100, 28)}}, nil},
		"enum_none":        {enum(4, false), nil},
		"enum_as_unsigned": {enum(4, false, 0, 1, math.MaxUint32, 1<<31), values(4, 0, 1, 2, -1, math.MinInt32, math.MinInt32+1)},
		"enum_twice":       {enum(4, true, 1, 1), values(4, 1)},
		"enum64":           {enum(8, false, 0, math.MaxInt64, -1), values(8, 0, math.MaxInt64, -1, -2, 77)},
		"enum64_signed":    {enum(8, true, 0, math.MinInt64, -1), values(8, 0, math.MinInt64, -1, -2, 77)},
	}
	for _, size := range []uint32{1, 2, 4, 8, 16} {
		tests[fmt.Sprintf("u%d", 8*size)] = struct {
			typ    btf.Type
			values [][]byte
		}{uint_(size), append(random(int(size)), texts(int(size), "\x07")...)}
		tests[fmt.Sprintf("s%d", 8*size)] = struct {
			typ    btf.Type
			values [][]byte
		}{sint(size), nil}
		if size < 16 {
			for _, signed := range []bool{false, true} {
				tests[fmt.Sprintf("enum%d_%t", 8*size, signed)] = struct {
					typ    btf.Type
					values [][]byte
				}{enum(size, signed, 0, 1, 100), values(int(size), 0, 1, 100, 2, 127, 128, 200, 255, -1)}
			}
		}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			if test.values == nil {
				n, err := btf.Sizeof(test.typ)
				if err != nil {
					t.Fatal(err)
				}
				test.values = random(n)
			}
			path := l.holding(test.typ, test.values)
			l.sameShow(path)
			l.sameDump(path)
			l.sameLookup(path, []byte{0, 0, 0, 0})
		})
	}
}

// holding makes an array of the given values.
func (l *lab) holding(t btf.Type, values [][]byte) (path string) {
	l.t.Helper()
	m, path := l.mustMake(&ebpf.MapSpec{
		Name: "typed", Type: ebpf.Array, Key: uint_(4), Value: t,
		KeySize: 4, ValueSize: uint32(len(values[0])), MaxEntries: uint32(len(values)),
	})
	for i, v := range values {
		if err := m.Put(uint32(i), v); err != nil {
			l.t.Fatal(err)
		}
	}
	return path
}

func hasFloat(t btf.Type) bool {
	switch t := t.(type) {
	case *btf.Float:
		return true
	case *btf.Array:
		return hasFloat(t.Type)
	case *btf.Struct:
		return slices.ContainsFunc(t.Members, func(m btf.Member) bool { return hasFloat(m.Type) })
	}
	return false
}

// wrongs are what bpftool can do to a value.
const (
	notJSON   = "what it prints isn't JSON"
	losesKeys = "it writes a key twice, of which readers keep one"
	isWrong   = "it prints another value"
)

// TestDeviations names every difference from bpftool in how values are printed
// (docs/output.md lists them), and what is printed here.
func TestDeviations(t *testing.T) {
	point := func(a, b string) btf.Type { return struct_("", member(a, uint_(1)), member(b, uint_(1))) }
	floats := append(values(8, 0, int64(math.Float64bits(-1.5e300))), values(8, int64(math.Float64bits(math.Inf(1))), int64(math.Float64bits(math.Inf(-1))), int64(math.Float64bits(math.NaN())))...)
	for _, test := range []struct {
		name, wrong string
		typ         btf.Type
		values      [][]byte
		ours        []string
	}{
		{"float", notJSON, float4, values(4, 0, int64(math.Float32bits(0.1)), int64(math.Float32bits(float32(math.NaN())))), []string{"0", "0.1", `"NaN"`}},
		{"double", notJSON, float8, floats, []string{"0", "-1.5e+300", `"Infinity"`, `"-Infinity"`, `"NaN"`}},
		{"after a float", notJSON, struct_("f", member("f", float4), member("n", uint_(4))), texts(8, "\x00\x00\x00\x00\x05"), []string{`{"f":0,"n":5}`}},
		{"long double", notJSON, &btf.Float{Name: "long double", Size: 16}, texts(16, "\x01"), []string{`"0x1"`}},
		{"two anonymous members", losesKeys, struct_("a", member("", point("a", "b")), member("n", uint_(2)), member("", point("c", "d"))),
			texts(6, "\x01\x02\x03\x00\x04\x05"), []string{`{"":{"a":1,"b":2,"c":4,"d":5},"n":3}`}},
		{"anonymous members in anonymous ones", losesKeys,
			struct_("a", member("", struct_("", member("", point("a", "b")))), member("", struct_("", member("", point("c", "d"))))),
			texts(4, "\x01\x02\x03\x04"), []string{`{"":{"":{"a":1,"b":2,"c":3,"d":4}}}`}},
		{"a name twice", losesKeys, struct_("a", member("a", uint_(1)), member("a", uint_(1))), texts(2, "\x01\x02"), []string{`{"a":1,"a@8":2}`}},
		{"backslash in text", isWrong, list(char, 8), texts(8, `a\b`), []string{`"a\\b"`}},
		{"quote as a character", notJSON, charByte, texts(1, `"`), []string{`"\""`}},
		{"backslash as a character", notJSON, charByte, texts(1, `\`), []string{`"\\"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if hasFloat(test.typ) && !testkit.HasFloats() {
				t.Skip("this kernel has no floats in BTF")
			}
			l := newLab(t)
			path := l.holding(test.typ, test.values)
			theirs, _ := oracle(t, "map", "dump", "pinned", path)
			ours, err := l.dump(path)
			if err != nil {
				t.Fatal(err)
			}
			checkWrong(t, test.wrong, theirs)
			if _, err := decode(ours); err != nil {
				t.Errorf("this isn't JSON: %v\n%s", err, ours)
			}
			var rows []struct {
				Formatted struct{ Value json.RawMessage }
			}
			if err := json.Unmarshal(ours, &rows); err != nil {
				t.Fatal(err)
			}
			for i, row := range rows {
				if string(row.Formatted.Value) != test.ours[i] {
					t.Errorf("value %x is %s, want %s", test.values[i], row.Formatted.Value, test.ours[i])
				}
			}
			if test.wrong == isWrong {
				if want, _ := decode(theirs); fmt.Sprint(want) == fmt.Sprint(must(decode(ours))) {
					t.Errorf("bpftool prints the same: %s", theirs)
				}
			}
		})
	}
}

// checkWrong fails when bpftool isn't wrong any more in that way: then the
// difference has to go.
func checkWrong(t *testing.T, wrong string, theirs []byte) {
	t.Helper()
	_, err := decode(theirs)
	switch wrong {
	case notJSON:
		if json.Valid(theirs) {
			t.Errorf("bpftool prints JSON: %s", theirs)
		}
	case losesKeys:
		if !json.Valid(theirs) || err == nil || !strings.Contains(err.Error(), "twice") {
			t.Errorf("bpftool prints every key once: %s", theirs)
		}
	case isWrong:
		if err != nil {
			t.Errorf("bpftool: %v: %s", err, theirs)
		}
	}
}

func must(v any, err error) any {
	if err != nil {
		panic(err)
	}
	return v
}

// TestManyNothings bounds what is printed of elements without a size, of which
// a value of 4 bytes may have any number.
func TestManyNothings(t *testing.T) {
	text := newPrinter(struct_("s", member("nothings", list(empty, math.MaxUint32)), member("n", uint_(4))), 4).append(nil, make([]byte, 4))
	if got := len(must(decode(text)).(map[string]any)["nothings"].([]any)); got != emptyMost {
		t.Errorf("%d elements", got)
	}
}
