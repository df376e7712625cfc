package codec

import (
	"math"
	"strconv"
)

// Number is a part of a type that counts or measures: an integer of up to 8
// bytes in host order, a bitfield or a floating-point number. Enums, pointers,
// addresses, ports and what is in a union are none.
type Number struct {
	Path   string // "bytes", "tcp.bytes", "limits[2]"; "" when it is the whole type
	offset int
	node   node
}

// mostNumbers bounds how many numbers of a type are told apart.
const mostNumbers = 1024

// Numbers lists the numbers of the type in the order of their declaration, the
// first 1024 of them.
func (c *Codec) Numbers() []Number { return numbers(c.root, Number{}, nil) }

// numbers adds the numbers of a node; at says where it stands.
func numbers(n node, at Number, found []Number) []Number {
	if len(found) == mostNumbers {
		return found
	}
	if counts(n) {
		at.node = n
		return append(found, at)
	}
	switch n := n.(type) {
	case *array:
		for i := range n.length {
			if len(found) == mostNumbers {
				break
			}
			found = numbers(n.element, Number{Path: at.Path + "[" + strconv.Itoa(i) + "]", offset: at.offset + i*n.element.size()}, found)
		}
	case *structure:
		for i := range n.fields {
			if f := &n.fields[i]; !n.union {
				found = numbers(f.node, Number{Path: f.path(at.Path), offset: at.offset + f.offset}, found)
			}
		}
	}
	return found
}

// path is where a field of the structure at path stands.
func (f *field) path(path string) string {
	if f.name == "" {
		return path
	}
	return join(path, f.name)
}

func counts(n node) bool {
	switch n := n.(type) {
	case integer:
		return n.bytes <= 8 && !n.network && !n.pointer
	case bits, float:
		return true
	}
	return false
}

// Growth is how much greater the number is in after than in before, each with a
// value every stride bytes that are added up; a nil before stands for zeros. An
// integer that wrapped around has grown.
func (n Number) Growth(before, after []byte, stride int) float64 {
	if f, ok := n.node.(float); ok {
		return n.add(after, stride, f.load) - n.add(before, stride, f.load)
	}
	load := n.node.(interface{ load([]byte) uint64 }).load
	var grown uint64
	column{after, n.offset, stride}.each(n.node.size(), func(b []byte) { grown += load(b) })
	column{before, n.offset, stride}.each(n.node.size(), func(b []byte) { grown -= load(b) })
	return float64(int64(grown))
}

func (n Number) add(b []byte, stride int, load func([]byte) float64) (sum float64) {
	column{b, n.offset, stride}.each(n.node.size(), func(b []byte) { sum += load(b) })
	return sum
}

// AppendRates adds the JSON of rates to dst, one for each of Numbers, in the
// shape of a value: whole numbers for integers, and null for what isn't a
// number.
func (c *Codec) AppendRates(dst []byte, rates []float64) []byte {
	if len(rates) == 0 {
		return append(dst, "null"...)
	}
	return appendRates(c.root, dst, &rates, false)
}

// appendRates takes the rates of the node from the front; lost says that it is
// in a union.
func appendRates(n node, dst []byte, rates *[]float64, lost bool) []byte {
	switch inner := n.(type) {
	case *array:
		dst = append(dst, '[')
		for i := range inner.length {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendRates(inner.element, dst, rates, lost)
		}
		return append(dst, ']')
	case *structure:
		return closeObject(inner.appendRates(append(dst, '{'), rates, lost))
	}
	if lost || !counts(n) || len(*rates) == 0 {
		return append(dst, "null"...)
	}
	rate := (*rates)[0]
	*rates = (*rates)[1:]
	return appendRate(dst, n, rate)
}

func (n *structure) appendRates(dst []byte, rates *[]float64, lost bool) []byte {
	lost = lost || n.union
	for i := range n.fields {
		f := &n.fields[i]
		if f.name == "" {
			dst = f.node.(*structure).appendRates(dst, rates, lost)
			continue
		}
		dst = append(dst, f.key...)
		dst = append(appendRates(f.node, dst, rates, lost), ',')
	}
	return dst
}

func appendRate(dst []byte, n node, rate float64) []byte {
	_, isFloat := n.(float)
	switch {
	case math.IsNaN(rate) || math.IsInf(rate, 0):
		return append(dst, "null"...)
	case isFloat:
		return strconv.AppendFloat(dst, rate, 'g', -1, 64)
	}
	return strconv.AppendFloat(dst, math.Round(rate), 'f', -1, 64)
}
