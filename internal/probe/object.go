package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
)

const kernelBTF = "/sys/kernel/btf/vmlinux"

// KernelTypes returns the running kernel's types. ErrUnsupported if it tells none.
func KernelTypes() (*btf.Spec, error) {
	kernel, err := btf.LoadKernelSpec()
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.ErrUnsupported, "the kernel tells no types (BTF): %w", err).Hint("it takes one built with CONFIG_DEBUG_INFO_BTF")
	}
	if err != nil {
		return nil, fmt.Errorf("read the types of the kernel: %w", err)
	}
	return kernel, nil
}

func probeBTF(string) error {
	file, err := os.Open(kernelBTF)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no %s: %w", kernelBTF, ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("open types of the kernel: %w", err)
	}
	return file.Close()
}

func probeBPFFS(dir string) error {
	_, err := bpffsOf(dir)
	return err
}

func probeSymlink(dir string) error {
	base, err := bpffsOf(dir)
	if err != nil {
		return err
	}
	return withSymlink(base)
}

// probeAtomics tries one of the atomic operations that return what was there before.
func probeAtomics(string) error {
	fetchAdd := asm.FetchAdd.Mem(asm.RFP, asm.R0, asm.DWord, -8)
	fetchAdd.Constant = 1 // BPF_FETCH, which cilium/ebpf leaves out
	program, err := loadProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 1),
		asm.StoreMem(asm.RFP, -8, asm.R0, asm.DWord),
		fetchAdd,
		asm.Return(),
	}})
	if err != nil {
		return err
	}
	return program.Close()
}

func probeTestRun(string) error {
	program, err := load(ebpf.ProgramSpec{Type: ebpf.SchedCLS}, 0)
	if err != nil {
		return err
	}
	defer program.Close()
	if _, err := program.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
		return unknownToKernel(err)
	}
	return nil
}

func probeStats(string) error {
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return unknownToKernel(err)
	}
	return stats.Close()
}
