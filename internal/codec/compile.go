package codec

import (
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cilium/ebpf/btf"
)

// deepest bounds the nesting of types; what lies deeper is bytes.
const deepest = 32

// compile builds the node of a type. name is that of the member it is of: some
// types only say with it what they hold.
func compile(t btf.Type, name string, depth int) node {
	size, err := btf.Sizeof(t)
	if err != nil || depth > deepest {
		return raw(max(size, 0))
	}
	if n := byTypedef(t, name); n != nil {
		return n
	}
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		return compileInt(t)
	case *btf.Pointer:
		return integer{bytes: size, pointer: true}
	case *btf.Enum:
		return compileEnum(t)
	case *btf.Float:
		if size == 4 || size == 8 {
			return float(size)
		}
	case *btf.Array:
		return compileArray(t, name, depth)
	case *btf.Struct:
		return compileStruct(t, depth)
	case *btf.Union:
		return newStructure(size, true, compileMembers(t.Members, size, depth))
	case *btf.Datasec:
		return compileDatasec(t, depth)
	case *btf.Var:
		return compile(t.Type, name, depth+1)
	}
	return raw(size)
}

// byTypedef finds the types that are told by the name of a typedef.
func byTypedef(t btf.Type, name string) node {
	for {
		td, rest := peel(t)
		if td == nil {
			return nil
		}
		switch td.Name {
		case "ip_addr_t":
			if fits(td.Type, 16) {
				return address{bytes: 16, mapped: true}
			}
		case "in_addr_t":
			if fits(td.Type, 4) {
				return address{bytes: 4}
			}
		case "__be16", "__be32", "__be64":
			return compileNetwork(td.Type, name)
		}
		t = rest
	}
}

// peel returns the outermost typedef of t below its qualifiers and what it
// stands for, nil when there is none.
func peel(t btf.Type) (*btf.Typedef, btf.Type) {
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
		case *btf.Typedef:
			return q, q.Type
		default:
			return nil, nil
		}
	}
}

func compileNetwork(t btf.Type, name string) node {
	i, ok := btf.UnderlyingType(t).(*btf.Int)
	if !ok || i.Size != 2 && i.Size != 4 && i.Size != 8 {
		return nil
	}
	number := integer{bytes: int(i.Size), network: true}
	if i.Size == 4 && !namesNumber(name) {
		return dotted{address{bytes: 4}, number}
	}
	return number
}

// numberWords are what members of type __be32 are called that are no addresses,
// in the kernel's headers and in those of protocols.
var numberWords = []string{
	"id", "spi", "vni", "teid", "tag", "index", "ifindex", "magic", "type", "version",
	"proto", "protocol", "port", "priority", "prio", "verdict", "code", "error",
	"seq", "seqno", "sequence", "ack", "acknowledgement", "mark", "flag", "flags", "label", "lse", "flowinfo",
	"len", "length", "size", "count", "counter", "num", "no", "nr", "bytes", "packets", "offset",
	"checksum", "csum", "crc", "hash", "time", "timestamp", "sec", "nsec", "word",
}

// namesNumber says whether a member of type __be32 is called something that is
// no address. The last word that says one or the other counts: "ip_id" is a
// number, "id_addr" is none.
func namesNumber(name string) bool {
	for _, word := range slices.Backward(words(name)) {
		word = strings.TrimRight(word, "0123456789")
		switch {
		case slices.Contains(numberWords, word):
			return true
		case namesAddress(word):
			return false
		}
	}
	return isPadding(name)
}

func compileInt(t *btf.Int) node {
	switch {
	case t.Encoding == btf.Bool && t.Size == 1:
		return boolean{}
	case t.Size == 1 || t.Size == 2 || t.Size == 4 || t.Size == 8 || t.Size == 16:
		return integer{bytes: int(t.Size), signed: t.Encoding == btf.Signed}
	}
	return raw(t.Size)
}

func compileEnum(t *btf.Enum) node {
	size := int(t.Size)
	if size != 1 && size != 2 && size != 4 && size != 8 {
		return raw(size)
	}
	n := &enumeration{
		integer: integer{bytes: size, signed: t.Signed},
		words:   make(map[uint64]string, len(t.Values)),
		values:  make(map[string]uint64, len(t.Values)),
	}
	for _, v := range t.Values {
		value := extend(v.Value<<(64-8*size)>>(64-8*size), 8*size, t.Signed)
		if _, taken := n.values[v.Name]; taken || !isIdentifier(v.Name) {
			continue
		}
		if _, taken := n.words[value]; !taken {
			n.words[value] = v.Name
		}
		n.values[v.Name] = value
		n.names = append(n.names, v.Name)
	}
	return n
}

// isIdentifier says whether a name is one that C allows. Wrong BTF may have
// others, which could be taken for numbers or bytes.
func isIdentifier(name string) bool {
	for i, r := range name {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
			return false
		}
	}
	return name != "" && utf8.ValidString(name)
}

func compileArray(t *btf.Array, name string, depth int) node {
	size, err := btf.Sizeof(t)
	if err != nil || size == 0 {
		return &array{element: raw(0)}
	}
	if i, ok := btf.UnderlyingType(t.Type).(*btf.Int); ok && i.Size == 1 && i.Encoding != btf.Bool {
		if n := compileBytes(i, name, size); n != nil {
			return n
		}
	}
	return &array{element: compile(t.Type, name, depth+1), length: int(t.Nelems)}
}

// IsChar says whether arrays of an integer type are text.
func IsChar(i *btf.Int) bool { return i.Size == 1 && (i.Name == "char" || i.Encoding == btf.Char) }

// compileBytes finds the arrays of bytes that are written as text.
func compileBytes(i *btf.Int, name string, size int) node {
	switch {
	case IsChar(i):
		return chars(size)
	case i.Encoding == btf.Signed:
		return nil
	case size == 6 && namesMAC(name):
		return mac{}
	case (size == 4 || size == 16) && namesAddress(name):
		return address{bytes: size}
	}
	return nil
}

// words splits a member's name, "src_ip4" and "srcIP4" into "src" and "ip4".
func words(name string) []string {
	var b strings.Builder
	var before rune
	for _, r := range name {
		if unicode.IsUpper(r) && unicode.IsLower(before) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
		before = r
	}
	return strings.Split(b.String(), "_")
}

func namesAddress(name string) bool {
	return strings.Contains(strings.ToLower(name), "addr") || slices.ContainsFunc(words(name), func(w string) bool {
		return slices.Contains([]string{"ip", "ip4", "ip6", "ipv4", "ipv6"}, w)
	})
}

func namesMAC(name string) bool {
	lower := strings.ToLower(name)
	return strings.Contains(lower, "mac") || strings.Contains(lower, "addr") ||
		slices.Contains([]string{"h_dest", "h_source"}, lower) || slices.Contains(words(name), "eth")
}

func compileStruct(t *btf.Struct, depth int) node {
	switch {
	case t.Name == "in_addr" && t.Size == 4:
		return address{bytes: 4}
	case t.Name == "in6_addr" && t.Size == 16:
		return address{bytes: 16}
	}
	n := newStructure(int(t.Size), false, compileMembers(t.Members, int(t.Size), depth))
	if p, ok := asPort(n); ok {
		return p
	}
	return n
}

func newStructure(size int, union bool, fields []field) *structure {
	n := &structure{bytes: size, union: union, fields: fields}
	n.distinguish(make(map[string]bool), 0)
	return n
}

// distinguish adds to a name that came before, as only in wrong BTF, the byte
// where its field begins. at is where n begins.
func (n *structure) distinguish(taken map[string]bool, at int) {
	for i := range n.fields {
		f := &n.fields[i]
		if f.name == "" {
			f.node.(*structure).distinguish(taken, at+f.offset)
			continue
		}
		for taken[f.name] {
			f.rename(f.name + "@" + strconv.Itoa(at+f.offset))
		}
		taken[f.name] = true
	}
}

// compileMembers leaves out what has no name to write it under, and what
// wrong BTF places beyond the end.
func compileMembers(members []btf.Member, size, depth int) []field {
	var fields []field
	for _, m := range members {
		if f, ok := compileMember(m, depth); ok && f.offset+f.node.size() <= size {
			fields = append(fields, f)
		}
	}
	return fields
}

func compileMember(m btf.Member, depth int) (field, bool) {
	f := named(m.Name, int(m.Offset/8))
	if m.BitfieldSize > 0 {
		f.node = bits{shift: int(m.Offset % 8), width: int(m.BitfieldSize), signed: isSigned(m.Type)}
		return f, m.Name != "" && m.BitfieldSize <= 64
	}
	f.node = compile(m.Type, m.Name, depth+1)
	if p, ok := f.node.(*port); ok && m.Name == "" {
		f.node = p.structure
	}
	_, merges := f.node.(*structure)
	return f, merges || m.Name != ""
}

func isSigned(t btf.Type) bool {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		return t.Encoding == btf.Signed
	case *btf.Enum:
		return t.Signed
	}
	return false
}

func named(name string, offset int) field {
	f := field{offset: offset, optional: isPadding(name)}
	f.rename(strings.ToValidUTF8(name, "?"))
	return f
}

func (f *field) rename(name string) {
	f.name, f.key = name, append(appendString(nil, []byte(name)), ':')
}

// isPadding says whether a member is called what C programmers call padding.
func isPadding(name string) bool {
	bare := strings.TrimLeft(strings.TrimRight(name, "_0123456789"), "_")
	return slices.Contains([]string{"pad", "padding", "reserved", "unused"}, bare)
}

func compileDatasec(t *btf.Datasec, depth int) node {
	var fields []field
	for _, v := range t.Vars {
		variable, ok := v.Type.(*btf.Var)
		if !ok {
			continue
		}
		f := named(variable.Name, int(v.Offset))
		f.node = compile(variable.Type, variable.Name, depth+1)
		if f.offset+f.node.size() <= int(t.Size) && f.name != "" {
			fields = append(fields, f)
		}
	}
	return newStructure(int(t.Size), false, fields)
}

// prefixAddress says whether the key of an LPM trie is a length and one IP
// address.
func prefixAddress(t btf.Type) (address, bool) {
	s, ok := btf.UnderlyingType(t).(*btf.Struct)
	if !ok {
		return address{}, false
	}
	var parts []btf.Member
	for _, m := range s.Members {
		if size, err := btf.Sizeof(m.Type); err == nil && size > 0 {
			parts = append(parts, m)
		}
	}
	if len(parts) != 2 || parts[1].Offset != 32 || parts[1].BitfieldSize > 0 {
		return address{}, false
	}
	return dataAddress(parts[1].Type)
}

func dataAddress(t btf.Type) (address, bool) {
	if a, ok := byTypedef(t, "").(address); ok {
		return a, true
	}
	size, err := btf.Sizeof(t)
	if err != nil || size != 4 && size != 16 {
		return address{}, false
	}
	if s, ok := btf.UnderlyingType(t).(*btf.Struct); ok && s.Name != "in_addr" && s.Name != "in6_addr" {
		return address{}, false
	}
	return address{bytes: size}, true
}

// TypeName writes a type as C does: "struct pod_key", "__u32", "char[16]".
func TypeName(t btf.Type) string {
	switch t := t.(type) {
	case *btf.Const:
		return "const " + TypeName(t.Type)
	case *btf.Volatile:
		return "volatile " + TypeName(t.Type)
	case *btf.Restrict:
		return TypeName(t.Type)
	case *btf.TypeTag:
		return TypeName(t.Type)
	case *btf.Pointer:
		return "pointer"
	case *btf.Array:
		return arrayName(t)
	case *btf.Struct:
		return strings.TrimSpace("struct " + t.Name)
	case *btf.Union:
		return strings.TrimSpace("union " + t.Name)
	case *btf.Enum:
		return strings.TrimSpace("enum " + t.Name)
	}
	return t.TypeName()
}

func arrayName(t *btf.Array) string {
	var lengths string
	var element btf.Type = t
	for {
		a, ok := element.(*btf.Array)
		if !ok {
			return TypeName(element) + lengths
		}
		lengths += "[" + strconv.FormatUint(uint64(a.Nelems), 10) + "]"
		element = a.Type
	}
}
