package datapath

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

// setArguments tells programs how many arguments tracepoints have in this kernel.
func setArguments(spec *ebpf.CollectionSpec, all []bpf.Arguments) error {
	for _, a := range all {
		n, err := tracepointArguments(a.Tracepoint)
		if err != nil {
			return err
		}
		if err := spec.Variables[a.Variable].Set(n); err != nil {
			return fmt.Errorf("set %s: %w", a.Variable, err)
		}
	}
	return nil
}

// tracepointArguments is how many arguments programs get at a typed tracepoint.
// ErrUnsupported if the kernel has no types, or no such tracepoint.
func tracepointArguments(name string) (uint32, error) {
	kernel, err := btf.LoadKernelSpec()
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, fs.ErrNotExist) {
		return 0, fault.New(fault.ErrUnsupported, "the kernel tells no types (BTF): %w", err).Hint("it takes one built with CONFIG_DEBUG_INFO_BTF")
	}
	if err != nil {
		return 0, fmt.Errorf("read the types of the kernel: %w", err)
	}
	var traced *btf.Typedef
	if err := kernel.TypeByName("btf_trace_"+name, &traced); err != nil {
		return 0, fault.New(fault.ErrUnsupported, "this kernel has no tracepoint %s: %w", name, err)
	}
	pointer, _ := traced.Type.(*btf.Pointer)
	if pointer == nil {
		return 0, fmt.Errorf("tracepoint %s: its type is %v", name, traced.Type)
	}
	prototype, ok := pointer.Target.(*btf.FuncProto)
	if !ok || len(prototype.Params) == 0 {
		return 0, fmt.Errorf("tracepoint %s: its type is %v", name, pointer.Target)
	}
	return uint32(len(prototype.Params) - 1), nil // the first one is the program's own
}
