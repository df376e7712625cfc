package codec

import "github.com/cilium/ebpf/btf"

// mostParts is how many members, each with all that is in it, a type may have.
// Structs that stand in one place, in a union or in wrong BTF, double them with
// each level: 32 levels, which the kernel takes, are billions in a few bytes.
const mostParts = 1 << 18

// Bounded says whether a type has so few parts that they can all be told. What
// isn't bounded is written as bytes.
func Bounded(t btf.Type) bool { return parts(t, map[btf.Type]int{}) <= mostParts }

// parts counts the parts of a type, at the most mostParts+1. Elements of an
// array count once.
func parts(t btf.Type, known map[btf.Type]int) int {
	t = btf.UnderlyingType(t)
	if count, ok := known[t]; ok {
		return count
	}
	known[t] = mostParts + 1 // of a type within itself, which only wrong BTF has
	count := 1
	add := func(inner btf.Type) { count = min(count+parts(inner, known), mostParts+1) }
	switch t := t.(type) {
	case *btf.Array:
		add(t.Type)
	case *btf.Struct:
		for _, m := range t.Members {
			add(m.Type)
		}
	case *btf.Union:
		for _, m := range t.Members {
			add(m.Type)
		}
	case *btf.Datasec:
		for _, v := range t.Vars {
			add(v.Type)
		}
	case *btf.Var:
		add(t.Type)
	}
	known[t] = count
	return count
}
