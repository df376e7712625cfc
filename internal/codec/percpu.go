package codec

import (
	"math/big"
	"strconv"

	"bpfnet/internal/fault"
)

// AppendPerCPU adds the JSON of a per-CPU value,
// {"per_cpu":[…],"sum":…}, to dst. b holds one value for each CPU, every stride
// bytes. It returns where in the result the sum begins; it ends before the last
// byte. In the sum integers are added up, also those within structs and arrays;
// what can't be added up is null.
func (c *Codec) AppendPerCPU(dst, b []byte, stride int) (out []byte, sum int) {
	size := c.Size()
	dst = append(dst, `{"per_cpu":[`...)
	for at := 0; at+size <= len(b); at += stride {
		if at > 0 {
			dst = append(dst, ',')
		}
		dst = c.root.append(dst, b[at:at+size])
	}
	dst = append(dst, `],"sum":`...)
	sum = len(dst)
	dst = appendSum(c.root, dst, column{b, 0, stride})
	return append(dst, '}'), sum
}

// ParsePerCPU reads a value for each of cpus CPUs: the form that AppendPerCPU
// prints, whose sum is ignored, or one value for all of them. The result has a
// value every stride bytes; same says that it is one value for all.
func (c *Codec) ParsePerCPU(text string, stride, cpus int) (b []byte, same bool, err error) {
	b = make([]byte, stride*cpus)
	if values, ok := perCPUForm(text); ok {
		return b, false, c.parseEach(b, values, stride, cpus)
	}
	one, err := c.Parse(text)
	if err != nil {
		return nil, false, err
	}
	for i := range cpus {
		copy(b[i*stride:], one)
	}
	return b, true, nil
}

func perCPUForm(text string) ([]any, bool) {
	v, err := decodeJSON(text)
	if err != nil {
		return nil, false
	}
	return perCPUValues(v)
}

func (c *Codec) parseEach(b []byte, values []any, stride, cpus int) error {
	if len(values) != cpus {
		return fault.New(fault.ErrUsage, "per_cpu has %s, this machine has %s",
			plural(len(values), "value"), plural(cpus, "CPU"))
	}
	for i, v := range values {
		at := i * stride
		if err := parse(c.root, b[at:at+c.Size()], v, ""); err != nil {
			return fault.New(fault.ErrUsage, "CPU %d: %w", i, &wrongPart{"per_cpu[" + strconv.Itoa(i) + "]", err})
		}
	}
	return nil
}

// column is the same part of the value of each CPU.
type column struct {
	b      []byte
	offset int // of the part in a value
	stride int
}

func (c column) each(size int, visit func(b []byte)) {
	for at := c.offset; at+size <= len(c.b); at += c.stride {
		visit(c.b[at : at+size])
	}
}

func (c column) move(by int) column { return column{c.b, c.offset + by, c.stride} }

func appendSum(n node, dst []byte, c column) []byte {
	switch n := n.(type) {
	case integer:
		if !n.pointer {
			return n.appendSum(dst, c)
		}
	case bits:
		return n.appendSum(dst, c)
	case *array:
		return n.appendSum(dst, c)
	case *structure:
		if !n.union {
			dst = n.appendSums(append(dst, '{'), c, false)
			return closeObject(dst)
		}
	}
	return append(dst, "null"...)
}

func (n integer) appendSum(dst []byte, c column) []byte {
	if n.bytes > 8 {
		total := new(big.Int)
		c.each(n.bytes, func(b []byte) { total.Add(total, n.loadBig(b)) })
		return appendBig(dst, total)
	}
	return appendTotal(dst, c, n.bytes, n.signed, n.load)
}

func (n bits) appendSum(dst []byte, c column) []byte {
	return appendTotal(dst, c, n.size(), n.signed, n.load)
}

// appendTotal adds up numbers of up to 64 bits; only a total that doesn't fit
// costs more than that.
func appendTotal(dst []byte, c column, size int, signed bool, load func([]byte) uint64) []byte {
	var total uint64
	overflow := false
	c.each(size, func(b []byte) {
		v := load(b)
		before := total
		total += v
		if signed {
			overflow = overflow || (int64(v) > 0) != (int64(total) > int64(before)) && v != 0
			return
		}
		overflow = overflow || total < before
	})
	switch {
	case overflow:
		return appendBigTotal(dst, c, size, signed, load)
	case signed:
		return appendInt(dst, int64(total))
	}
	return appendUint(dst, total)
}

func appendBigTotal(dst []byte, c column, size int, signed bool, load func([]byte) uint64) []byte {
	total, number := new(big.Int), new(big.Int)
	c.each(size, func(b []byte) {
		if signed {
			number.SetInt64(int64(load(b)))
		} else {
			number.SetUint64(load(b))
		}
		total.Add(total, number)
	})
	return appendBig(dst, total)
}

func (n *array) appendSum(dst []byte, c column) []byte {
	dst = append(dst, '[')
	for i := range n.length {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendSum(n.element, dst, c.move(i*n.element.size()))
	}
	return append(dst, ']')
}

// appendSums adds `"name":sum,` for each field; lost says that the fields are
// those of a union, which can't be added up.
func (n *structure) appendSums(dst []byte, c column, lost bool) []byte {
	for i := range n.fields {
		f := &n.fields[i]
		if f.name == "" {
			inner := f.node.(*structure)
			dst = inner.appendSums(dst, c.move(f.offset), lost || inner.union)
			continue
		}
		dst = append(dst, f.key...)
		if lost {
			dst = append(dst, "null"...)
		} else {
			dst = appendSum(f.node, dst, c.move(f.offset))
		}
		dst = append(dst, ',')
	}
	return dst
}
