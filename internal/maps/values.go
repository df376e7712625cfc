package maps

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// Types that the kernel itself gives to what is in some maps
// (include/uapi/linux/bpf.h), whatever the program declares.
var (
	number  = &btf.Typedef{Name: "__u32", Type: &btf.Int{Name: "unsigned int", Size: 4}}
	address = &btf.Typedef{Name: "__u64", Type: &btf.Int{Name: "unsigned long long", Size: 8}}
	cookie  = address
	buildID = &btf.Struct{Name: "bpf_stack_build_id", Size: 32, Members: []btf.Member{
		{Name: "status", Type: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}},
		{Name: "build_id", Type: &btf.Array{Type: &btf.Int{Name: "unsigned char", Size: 1}, Nelems: 20}, Offset: 4 * 8},
		{Name: "offset", Type: address, Offset: 24 * 8}, // or the address where there is no build id
	}}
)

// given returns the types that the kernel gives to the entries of a map.
func (h *handle) given() (key, value btf.Type, ok bool) {
	switch {
	case h.kind.target != "" && h.ValueSize() == 4:
		return number, number, true
	case h.endsWithProgram():
		return number, redirection(h.Type(), h.kind.target), true
	case h.Type() == ebpf.StackTrace && h.Flags()&unix.BPF_F_STACK_BUILD_ID != 0 && h.ValueSize()%32 == 0:
		return number, &btf.Array{Type: buildID, Nelems: h.ValueSize() / 32}, true
	case h.Type() == ebpf.StackTrace && h.ValueSize()%8 == 0:
		return number, &btf.Array{Type: address, Nelems: h.ValueSize() / 8}, true
	}
	return nil, nil, false
}

// redirection is struct bpf_devmap_val or bpf_cpumap_val, as it is read.
func redirection(t ebpf.MapType, target string) *btf.Struct {
	name := "bpf_devmap_val"
	if t == ebpf.CPUMap {
		name = "bpf_cpumap_val"
	}
	return &btf.Struct{Name: name, Size: 8, Members: []btf.Member{
		{Name: target, Type: number}, {Name: "prog_id", Type: number, Offset: 4 * 8},
	}}
}

// endsWithProgram says whether a program may follow what packets are redirected
// by.
func (h *handle) endsWithProgram() bool { return h.kind.target != "" && h.ValueSize() == 8 }

// withProgram opens the program whose id a value ends with; 0 stands for none.
func (s *Store) withProgram(h *handle, v newValue) (newValue, func(), error) {
	id := binary.NativeEndian.Uint32(v.read[4:])
	if id == 0 {
		return v, func() {}, nil
	}
	p, _, err := s.openProgram(reference(id))
	if err != nil {
		return v, func() {}, fmt.Errorf("value of map %s: %w", h.about.Ref, err)
	}
	v.write = append(bytes.Clone(v.read[:4]), word(uint32(p.FD()))...)
	return v, func() { p.Close() }, nil
}
