package probe

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
)

// load loads a program that does nothing but return verdict. The kernel checks
// the program type first, so that EINVAL means that it doesn't know the type.
func load(spec ebpf.ProgramSpec, verdict int32) (*ebpf.Program, error) {
	spec.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}
	return loadProgram(&spec)
}

func loadProgram(spec *ebpf.ProgramSpec) (*ebpf.Program, error) {
	if spec.Name == "" {
		spec.Name = "bpfnet_probe"
	}
	spec.License = "Dual BSD/GPL"
	program, err := ebpf.NewProgramWithOptions(spec, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return nil, unknownToKernel(err)
	}
	return program, nil
}

// errNotSupp is the kernel's internal ENOTSUPP, which leaks out of bpf(2).
const errNotSupp = unix.Errno(524)

// unknownToKernel marks the errors with which a kernel answers a valid request
// that it doesn't understand.
func unknownToKernel(err error) error {
	for _, errno := range []error{unix.EINVAL, unix.E2BIG, unix.ENOSYS, unix.EOPNOTSUPP, errNotSupp} {
		if errors.Is(err, errno) && !errors.Is(err, ErrNotSupported) {
			return fmt.Errorf("%w: %w", ErrNotSupported, err)
		}
	}
	return err
}

// The commands of bpf(2) that attach. cilium/ebpf has them in its link package,
// which quietly falls back to older mechanisms; a probe mustn't.
const (
	cmdRawTracepointOpen = 17
	cmdLinkCreate        = 28
	cmdLinkUpdate        = 29
	cmdIterCreate        = 33
)

// attributes is union bpf_attr; probes fill the first words of it.
type attributes [128]byte

func (a *attributes) put32(offset int, value uint32) {
	*(*uint32)(unsafe.Pointer(&a[offset])) = value
}

func (a *attributes) put64(offset int, value uint64) {
	for i := range 2 {
		a.put32(offset+4*i, uint32(value>>(32*i)))
	}
}

// call calls bpf(2) with the first size bytes of a and returns the descriptor.
func call(command int, a *attributes, size int) (int, error) {
	return bpfsys.Call(command, unsafe.Pointer(a), uintptr(size))
}

// createLink attaches by bpf_link; the link lives as long as the descriptor.
func createLink(program *ebpf.Program, target int, attach ebpf.AttachType, flags uint32) (int, error) {
	var a attributes
	a.put32(0, uint32(program.FD()))
	a.put32(4, uint32(target))
	a.put32(8, uint32(attach))
	a.put32(12, flags)
	fd, err := call(cmdLinkCreate, &a, 16)
	runtime.KeepAlive(program)
	if err != nil {
		return -1, unknownToKernel(fmt.Errorf("create link: %w", err))
	}
	return fd, nil
}

func updateLink(link int, program *ebpf.Program) error {
	var a attributes
	a.put32(0, uint32(link))
	a.put32(4, uint32(program.FD()))
	_, err := call(cmdLinkUpdate, &a, 16)
	runtime.KeepAlive(program)
	if err != nil {
		return unknownToKernel(fmt.Errorf("update link: %w", err))
	}
	return nil
}

// openTracepoint attaches to a raw tracepoint by name; programs whose target
// was fixed at load time (tp_btf, fentry, LSM) take no name.
func openTracepoint(program *ebpf.Program, name string) (int, error) {
	var a attributes
	text := append([]byte(name), 0)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	if name != "" {
		pinner.Pin(&text[0])
		a.put64(0, uint64(uintptr(unsafe.Pointer(&text[0]))))
	}
	a.put32(8, uint32(program.FD()))
	fd, err := call(cmdRawTracepointOpen, &a, 16)
	runtime.KeepAlive(program)
	if err != nil {
		return -1, unknownToKernel(fmt.Errorf("attach: %w", err))
	}
	return fd, nil
}

// createIterator makes the descriptor that an iterator is read from.
func createIterator(link int) (int, error) {
	var a attributes
	a.put32(0, uint32(link))
	fd, err := call(cmdIterCreate, &a, 8)
	if err != nil {
		return -1, unknownToKernel(fmt.Errorf("create iterator: %w", err))
	}
	return fd, nil
}
