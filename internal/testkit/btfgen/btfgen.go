// Package btfgen makes BTF types out of bytes, for fuzz targets: any type that
// BTF can describe, also those that no compiler would write.
package btfgen

import "github.com/cilium/ebpf/btf"

const (
	deepest = 5
	// most is the largest size in bytes that structs claim.
	most = 64
)

// Type returns the type that a recipe describes. Sizes and offsets may
// contradict each other, and names may be anything.
func Type(recipe []byte) btf.Type {
	c := cook{recipe}
	return c.make(0)
}

type cook struct{ recipe []byte }

// next returns a number below n, 0 when the recipe is at its end.
func (c *cook) next(n int) int {
	if len(c.recipe) == 0 {
		return 0
	}
	b := c.recipe[0]
	c.recipe = c.recipe[1:]
	return int(b) % n
}

func (c *cook) make(depth int) btf.Type {
	makers := []func(int) btf.Type{c.integer, c.enum, c.float, c.known, c.odd, c.structure, c.union, c.array, c.typedef, c.qualifier, c.datasec}
	if depth >= deepest {
		makers = makers[:5]
	}
	return makers[c.next(len(makers))](depth + 1)
}

var names = []string{"", "a", "b", "c", "mac", "saddr", "ip4", "pad", "reserved", "s_addr", "port", "proto", "hex:00", "5", "a@0", `"\`, "\xff\xfe", "\u2028", "ünï", "A"}

func (c *cook) name() string { return names[c.next(len(names))] }

func (c *cook) integer(int) btf.Type {
	sizes := []uint32{1, 2, 4, 8, 16, 0, 3, 5, 32}
	return &btf.Int{
		Name:     []string{"unsigned int", "char", "_Bool"}[c.next(3)],
		Size:     sizes[c.next(len(sizes))],
		Encoding: []btf.IntEncoding{btf.Unsigned, btf.Signed, btf.Char, btf.Bool, 7}[c.next(5)],
	}
}

func (c *cook) enum(int) btf.Type {
	e := &btf.Enum{Name: c.name(), Size: []uint32{4, 8, 1, 2, 3}[c.next(5)], Signed: c.next(2) == 1}
	for range c.next(6) {
		value := uint64(c.next(256))
		if c.next(3) == 0 {
			value = -value << c.next(64)
		}
		e.Values = append(e.Values, btf.EnumValue{Name: c.name(), Value: value})
	}
	return e
}

func (c *cook) float(int) btf.Type {
	return &btf.Float{Name: "float", Size: []uint32{4, 8, 2, 16, 0}[c.next(5)]}
}

func (c *cook) sign() btf.IntEncoding { return []btf.IntEncoding{btf.Unsigned, btf.Signed}[c.next(2)] }

// known are the types that programs know by their name.
func (c *cook) known(int) btf.Type {
	u8, u32 := &btf.Int{Size: 1}, &btf.Int{Size: 4}
	in6 := &btf.Struct{Name: "in6_addr", Size: 16, Members: []btf.Member{{Name: "u", Type: &btf.Array{Index: u32, Type: u8, Nelems: 16}}}}
	be32 := &btf.Typedef{Name: "__be32", Type: u32}
	all := []btf.Type{
		in6, be32,
		&btf.Typedef{Name: "ip_addr_t", Type: in6},
		&btf.Typedef{Name: "in_addr_t", Type: be32},
		&btf.Typedef{Name: "__be16", Type: &btf.Int{Size: 2}},
		&btf.Typedef{Name: "__be64", Type: &btf.Int{Size: 8, Encoding: btf.Signed}},
		&btf.Struct{Name: "in_addr", Size: 4, Members: []btf.Member{{Name: "s_addr", Type: be32}}},
		&btf.Array{Index: u32, Type: &btf.Int{Name: "char", Size: 1}, Nelems: uint32(c.next(20))},
		&btf.Array{Index: u32, Type: u8, Nelems: 6},
		&btf.Array{Index: u32, Type: u8, Nelems: 4},
		&btf.Array{Index: u32, Type: u8, Nelems: 16},
		&btf.Struct{Name: "port", Size: 4, Members: []btf.Member{{Name: "port", Type: &btf.Int{Size: 2, Encoding: c.sign()}}, {Name: "protocol", Type: u8, Offset: 16}, {Name: "pad", Type: u8, Offset: 24}}},
		&btf.Struct{Name: "prefix", Size: 20, Members: []btf.Member{{Name: "prefixlen", Type: u32}, {Name: "data", Type: in6, Offset: 32}}},
	}
	return all[c.next(len(all))]
}

// odd are the types without a size, or without a value.
func (c *cook) odd(int) btf.Type {
	u8 := &btf.Int{Size: 1}
	all := []btf.Type{&btf.Void{}, &btf.Pointer{Target: u8}, &btf.Fwd{Name: "gone"}, &btf.Func{Name: "f", Type: &btf.FuncProto{Return: u8}}, &btf.FuncProto{Return: u8}}
	return all[c.next(len(all))]
}

func (c *cook) structure(depth int) btf.Type {
	return &btf.Struct{Name: c.name(), Size: uint32(c.next(most)), Members: c.members(depth)}
}

func (c *cook) union(depth int) btf.Type {
	return &btf.Union{Name: c.name(), Size: uint32(c.next(most)), Members: c.members(depth)}
}

// members are bitfields, one after the other or anywhere, and whole bytes.
func (c *cook) members(depth int) []btf.Member {
	var members []btf.Member
	var at btf.Bits
	for range c.next(6) {
		m := btf.Member{Name: c.name(), Type: c.make(depth), Offset: at}
		switch c.next(4) {
		case 0:
			m.Offset = btf.Bits(c.next(256) * 3)
		case 1:
			m.BitfieldSize = btf.Bits(c.next(130))
		}
		size, _ := btf.Sizeof(m.Type)
		at = m.Offset + btf.Bits(8*max(size, 0))
		if m.BitfieldSize > 0 {
			at = m.Offset + m.BitfieldSize
		}
		members = append(members, m)
	}
	return members
}

func (c *cook) array(depth int) btf.Type {
	return &btf.Array{Index: &btf.Int{Size: 4}, Type: c.make(depth), Nelems: uint32(c.next(9))}
}

func (c *cook) typedef(depth int) btf.Type {
	names := []string{"t", "ip_addr_t", "in_addr_t", "__be16", "__be32", "__be64"}
	return &btf.Typedef{Name: names[c.next(len(names))], Type: c.make(depth)}
}

func (c *cook) qualifier(depth int) btf.Type {
	inner := c.make(depth)
	return []btf.Type{&btf.Const{Type: inner}, &btf.Volatile{Type: inner}, &btf.Restrict{Type: inner}, &btf.TypeTag{Type: inner, Value: "tag"}}[c.next(4)]
}

func (c *cook) datasec(depth int) btf.Type {
	d := &btf.Datasec{Name: ".data", Size: uint32(c.next(most))}
	for range c.next(4) {
		var v btf.Type = &btf.Var{Name: c.name(), Type: c.make(depth)}
		if c.next(8) == 0 {
			v = c.make(depth)
		}
		d.Vars = append(d.Vars, btf.VarSecinfo{Type: v, Offset: uint32(c.next(most)), Size: uint32(c.next(most))})
	}
	return d
}
