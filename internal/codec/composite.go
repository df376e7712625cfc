package codec

import (
	"bytes"
	"strconv"
	"strings"
)

// array is a fixed number of elements of one type.
type array struct {
	element node
	length  int
}

func (n *array) size() int { return n.length * n.element.size() }

func (n *array) at(b []byte, i int) []byte {
	size := n.element.size()
	return b[i*size : (i+1)*size]
}

func (n *array) append(dst, b []byte) []byte {
	dst = append(dst, '[')
	for i := range n.length {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = n.element.append(dst, n.at(b, i))
	}
	return append(dst, ']')
}

func (n *array) parse(b []byte, v any, path string) error {
	values, ok := v.([]any)
	if !ok {
		return wrong(path, "%s is not a JSON array", show(v))
	}
	if len(values) != n.length {
		return wrong(path, "an array of %s, %d needed", plural(len(values), "element"), n.length)
	}
	for i, value := range values {
		if err := parse(n.element, n.at(b, i), value, ""); err != nil {
			return within(path+"["+strconv.Itoa(i)+"]", err)
		}
	}
	return nil
}

func (n *array) form() string {
	return "[" + n.element.form() + ", …] (" + plural(n.length, "element") + ")"
}

// structure is a struct, a union or a data section.
type structure struct {
	bytes  int
	union  bool
	fields []field
}

type field struct {
	name     string // "" for an anonymous struct or union, whose fields are the parent's
	key      []byte // `"name":`
	offset   int    // bytes
	node     node
	optional bool // padding: may be left out when parsed
}

func (f *field) slice(b []byte) []byte { return b[f.offset : f.offset+f.node.size()] }

func (n *structure) size() int { return n.bytes }

func (n *structure) append(dst, b []byte) []byte {
	dst = append(dst, '{')
	dst = n.appendFields(dst, b, func(f *field, dst []byte, b []byte) []byte {
		return f.node.append(dst, b)
	})
	return closeObject(dst)
}

// closeObject ends an object whose fields each added a comma.
func closeObject(dst []byte) []byte {
	if last := len(dst) - 1; dst[last] == ',' {
		dst = dst[:last]
	}
	return append(dst, '}')
}

// appendFields adds `"name":…,` for each field, those of anonymous members too.
func (n *structure) appendFields(dst, b []byte, each func(*field, []byte, []byte) []byte) []byte {
	for i := range n.fields {
		f := &n.fields[i]
		if f.name == "" {
			dst = f.node.(*structure).appendFields(dst, f.slice(b), each)
			continue
		}
		dst = append(dst, f.key...)
		dst = each(f, dst, f.slice(b))
		dst = append(dst, ',')
	}
	return dst
}

func (n *structure) parse(b []byte, v any, path string) error {
	o, ok := v.(object)
	if !ok {
		return wrong(path, "%s is not a JSON object", show(v))
	}
	if unknown := n.unknown(o); unknown != "" {
		return wrong(path, "no member is called %s", unknown)
	}
	_, missing, err := n.fill(b, o, path)
	if err == nil && len(missing) > 0 {
		return wrong(path, "%s %s missing", strings.Join(missing, ", "), isOrAre(len(missing)))
	}
	return err
}

func isOrAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// unknown returns, in quotes, the name of a member of o that there is no field
// for; "" when all are known.
func (n *structure) unknown(o object) string {
	for _, m := range o {
		if m.name == "" || !n.has(m.name) {
			return strconv.Quote(m.name)
		}
	}
	return ""
}

func (n *structure) has(name string) bool {
	for i := range n.fields {
		f := &n.fields[i]
		if f.name == name || f.name == "" && f.node.(*structure).has(name) {
			return true
		}
	}
	return false
}

// fill writes the members of o into b. It reports how many of its fields o has,
// and which of those that must be there it hasn't.
func (n *structure) fill(b []byte, o object, path string) (given int, missing []string, err error) {
	var absent []string
	for i := range n.fields {
		count, lacks, err := n.fields[i].fill(b, o, path)
		if err != nil {
			return 0, nil, err
		}
		given += count
		if n.union && count == 0 {
			absent = append(absent, lacks...)
			continue
		}
		missing = append(missing, lacks...)
	}
	if !n.union {
		return given, missing, nil
	}
	if given == 0 && len(absent) > 0 {
		return 0, []string{strings.Join(absent, " or ")}, nil
	}
	return given, missing, n.agree(b, o, path)
}

func (f *field) fill(b []byte, o object, path string) (given int, missing []string, err error) {
	if f.name == "" {
		return f.node.(*structure).fill(f.slice(b), o, path)
	}
	at := o.find(f.name)
	if at < 0 {
		if f.optional {
			return 0, nil, nil
		}
		return 0, []string{strconv.Quote(f.name)}, nil
	}
	return 1, nil, parse(f.node, f.slice(b), o[at].value, join(path, f.name))
}

func join(path, name string) string {
	if path == "" || name == "" || name[0] == '[' {
		return path + name
	}
	return path + "." + name
}

// agree checks that the members given for a union don't contradict each other:
// writing any of them again must change nothing.
func (n *structure) agree(b []byte, o object, path string) error {
	for i := range n.fields {
		again := append([]byte(nil), b...)
		if _, _, err := n.fields[i].fill(again, o, path); err != nil {
			return err
		}
		if !bytes.Equal(again, b) {
			return wrong(path, "members of a union contradict each other: give one of them")
		}
	}
	return nil
}

func (n *structure) form() string {
	out := n.appendFields([]byte{'{'}, make([]byte, n.bytes), func(f *field, dst, _ []byte) []byte {
		return append(dst, f.node.form()...)
	})
	return string(closeObject(out))
}
