package codec

import (
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"

	"bpfnet/internal/fault"
)

// ParseJSON overwrites b, which has Size bytes, with a decoded value: what
// Append prints, or the bytes as bpftool prints them, ["0x0a","0x00"]. Errors
// are of kind fault.ErrUsage; Path says where in the value they are.
func (c *Codec) ParseJSON(b []byte, v JSON) error {
	if err := c.parseJSON(b, v.v); err != nil {
		return fault.New(fault.ErrUsage, "%w", err)
	}
	return nil
}

func (c *Codec) parseJSON(b []byte, v any) error {
	clear(b)
	if data, ok := hexBytes(v); ok && (len(data) == len(b) || !c.isArray()) {
		if len(data) != len(b) {
			return wrong("", "%s, %d needed", plural(len(data), "byte"), len(b))
		}
		copy(b, data)
		return nil
	}
	err := parse(c.root, b, v, "")
	if i, text, ok := noByte(v); ok && err != nil && !c.isArray() {
		return wrong("["+strconv.Itoa(i)+"]", "%s is not a byte: 0x00..0xff", quote(text))
	}
	return err
}

// noByte finds what is no byte in an array that otherwise looks like bpftool's
// of bytes.
func noByte(v any) (index int, text string, found bool) {
	values, _ := v.([]any)
	for i, value := range values {
		element, ok := value.(string)
		if !ok || !strings.HasPrefix(element, "0x") {
			return 0, "", false
		}
		if _, isByte := hexBytes([]any{element}); !isByte && !found {
			index, text, found = i, element, true
		}
	}
	return index, text, found
}

func (c *Codec) isArray() bool {
	_, ok := c.root.(*array)
	return ok
}

// Bytes returns the bytes that bpftool prints as ["0x0a","0x00"].
func (v JSON) Bytes() ([]byte, bool) { return hexBytes(v.v) }

// Scalar returns the text of a string or number.
func (v JSON) Scalar() (string, bool) { return scalar(v.v) }

// Only returns the member of an object that has just this one.
func (v JSON) Only(name string) (JSON, bool) {
	o, ok := v.v.(object)
	if !ok || len(o) != 1 || o[0].name != name {
		return JSON{}, false
	}
	return JSON{o[0].value}, true
}

// String describes the value in a message.
func (v JSON) String() string { return show(v.v) }

func hexBytes(v any) ([]byte, bool) {
	values, ok := v.([]any)
	if !ok || len(values) == 0 {
		return nil, false
	}
	data := make([]byte, len(values))
	for i, value := range values {
		text, ok := value.(string)
		if !ok || len(text) != 4 || text[:2] != "0x" {
			return nil, false
		}
		if _, err := hex.Decode(data[i:i+1], []byte(text[2:])); err != nil {
			return nil, false
		}
	}
	return data, true
}

// ParsePerCPUJSON overwrites b, which has a value for each of cpus CPUs every
// stride bytes, with a decoded one: what AppendPerCPU prints, bpftool's
// [{"cpu":0,"value":…}], or one value for all CPUs.
func (c *Codec) ParsePerCPUJSON(b []byte, v JSON, stride, cpus int) error {
	clear(b)
	if values, ok := perCPUValues(v.v); ok {
		return c.parseEach(b, values, stride, cpus)
	}
	if values, ok := cpuList(v.v); ok {
		return c.parseCPUs(b, values, stride, cpus)
	}
	if err := c.ParseJSON(b[:c.Size()], v); err != nil {
		return err
	}
	for i := 1; i < cpus; i++ {
		copy(b[i*stride:], b[:c.Size()])
	}
	return nil
}

func perCPUValues(v any) ([]any, bool) {
	o, ok := v.(object)
	if !ok || len(o) == 0 || o[0].name != "per_cpu" {
		return nil, false
	}
	values, ok := o[0].value.([]any)
	return values, ok
}

// cpuList returns the objects of bpftool's list.
func cpuList(v any) ([]object, bool) {
	values, ok := v.([]any)
	if !ok || len(values) == 0 {
		return nil, false
	}
	list := make([]object, len(values))
	for i, value := range values {
		list[i], ok = value.(object)
		if !ok || list[i].find("cpu") < 0 || list[i].find("value") < 0 {
			return nil, false
		}
	}
	return list, true
}

func (c *Codec) parseCPUs(b []byte, list []object, stride, cpus int) error {
	if len(list) != cpus {
		return fault.New(fault.ErrUsage, "values of %s, this machine has %d", plural(len(list), "CPU"), cpus)
	}
	seen := make([]bool, cpus)
	for i, o := range list {
		path := "[" + strconv.Itoa(i) + "]"
		number, _ := o[o.find("cpu")].value.(json.Number)
		cpu, err := strconv.Atoi(string(number))
		if err != nil || cpu < 0 || cpu >= cpus || seen[cpu] {
			return fault.New(fault.ErrUsage, "%w", wrong(path+".cpu", "%s is not a CPU that is missing, of 0..%d", show(o[o.find("cpu")].value), cpus-1))
		}
		seen[cpu] = true
		at := cpu * stride
		if err := c.parseJSON(b[at:at+c.Size()], o[o.find("value")].value); err != nil {
			return fault.New(fault.ErrUsage, "CPU %d: %w", cpu, &wrongPart{path + ".value", err})
		}
	}
	return nil
}

// Members lists the members of a struct or union, those of anonymous members
// too; nil for other types, also for those that are written as one text.
func (c *Codec) Members() []string {
	s, ok := c.root.(*structure)
	if !ok {
		return nil
	}
	return s.names(nil)
}

func (n *structure) names(list []string) []string {
	for _, f := range n.fields {
		if f.name == "" {
			list = f.node.(*structure).names(list)
			continue
		}
		list = append(list, f.name)
	}
	return list
}

// ParseMembers overwrites b with a struct whose members, some of Members, are
// given as text, as Parse takes it. The error's Path begins with the member that
// is wrong.
func (c *Codec) ParseMembers(b []byte, names, texts []string) error {
	clear(b)
	s := c.root.(*structure)
	o := make(object, len(names))
	for i, name := range names {
		value, err := textValue(s.member(name), texts[i])
		if err != nil {
			return fault.New(fault.ErrUsage, "%w", wrong(name, "%s", err))
		}
		o[i] = member{name, value}
	}
	if err := s.parse(b, o, ""); err != nil {
		return fault.New(fault.ErrUsage, "%w", err)
	}
	return nil
}

// member returns the node of a member that the structure has.
func (n *structure) member(name string) node {
	for _, f := range n.fields {
		if inner, ok := f.node.(*structure); ok && f.name == "" && inner.has(name) {
			return inner.member(name)
		}
		if f.name == name {
			return f.node
		}
	}
	return raw(0)
}

// IsNumber says whether the type is an integer or a bool.
func (c *Codec) IsNumber() bool {
	switch c.root.(type) {
	case integer, dotted, boolean:
		return c.name != nil
	}
	return false
}

// HasNetworkOrder says whether numbers of the type are in network order: bpftool
// prints them as they lie in memory, Append as they are meant.
func (c *Codec) HasNetworkOrder() bool { return hasNetworkOrder(c.root) }

func hasNetworkOrder(n node) bool {
	switch n := n.(type) {
	case integer:
		return n.network
	case dotted:
		return true
	case *port:
		return hasNetworkOrder(n.structure)
	case *array:
		return hasNetworkOrder(n.element)
	case *structure:
		for _, f := range n.fields {
			if hasNetworkOrder(f.node) {
				return true
			}
		}
	}
	return false
}
