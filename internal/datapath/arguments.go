package datapath

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
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
	kernel, err := probe.KernelTypes()
	if err != nil {
		return 0, err
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
