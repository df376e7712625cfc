package bypass

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/internal/probe"
)

const redirectPeer = "bpf_redirect_peer"

// redirects are the helpers that take a packet away.
var redirects = []struct {
	name   string
	helper asm.BuiltinFunc
}{
	{"bpf_redirect", asm.FnRedirect},
	{"bpf_redirect_neigh", asm.FnRedirectNeigh},
	{redirectPeer, asm.FnRedirectPeer},
}

// errHidden is the error for code in which calls have no targets.
var errHidden = fault.New(fault.ErrPermission, "the kernel hides which functions a program calls: it takes CAP_SYSLOG, and kernel.kptr_restrict below 2")

// reader finds out which of the redirects programs call. In the code that the
// kernel shows, the number of a helper is replaced by where it is; so each helper
// is looked up in a program made for that.
type reader struct {
	helpers  map[int32]string // by where they are; nil: not looked up yet
	programs map[uint32]program
	arrays   map[uint32][]uint32 // the programs in a program array
}

// program is what a program calls itself, and the programs that it may go on in.
type program struct {
	calls []string
	next  []uint32
}

func newReader() *reader {
	return &reader{programs: map[uint32]program{}, arrays: map[uint32][]uint32{}}
}

// calls returns the redirects, in their order, that a program calls, or another
// one that it may go on in by tail calls.
func (r *reader) calls(ctx context.Context, id uint32) ([]string, error) {
	found := map[string]bool{}
	seen, queue := map[uint32]bool{id: true}, []uint32{id}
	for len(queue) > 0 {
		p, err := r.read(ctx, queue[0])
		if err != nil {
			return nil, err
		}
		for _, name := range p.calls {
			found[name] = true
		}
		queue = queue[1:]
		for _, next := range p.next {
			if !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	names := []string{}
	for _, f := range redirects {
		if found[f.name] {
			names = append(names, f.name)
		}
	}
	return names, nil
}

// read reads one program; one that is gone calls nothing.
func (r *reader) read(ctx context.Context, id uint32) (program, error) {
	if p, ok := r.programs[id]; ok {
		return p, ctx.Err()
	}
	fd, err := bpfsys.Programs.Open(id)
	if errors.Is(err, unix.ENOENT) {
		return program{}, nil
	}
	if err != nil {
		return program{}, probe.Explain(probe.OpListByID, err)
	}
	defer unix.Close(fd)
	var p program
	if p.calls, err = r.direct(fd); err != nil {
		return p, err
	}
	if p.next, err = r.following(ctx, fd); err != nil {
		return p, err
	}
	r.programs[id] = p
	return p, nil
}

// direct returns the redirects that one program calls itself.
func (r *reader) direct(fd int) ([]string, error) {
	if err := r.lookUp(); err != nil {
		return nil, err
	}
	code, err := bpfsys.Instructions(fd)
	if err != nil {
		return nil, fmt.Errorf("read code: %w", err)
	}
	list, err := targets(code)
	if err != nil {
		return nil, err
	}
	var calls []string
	for _, target := range list {
		if name, ok := r.helpers[target]; ok {
			calls = append(calls, name)
		}
	}
	return calls, nil
}

// following returns the programs in the program arrays of one program.
func (r *reader) following(ctx context.Context, fd int) ([]uint32, error) {
	_, ids, err := bpfsys.Program(fd)
	if err != nil {
		return nil, err
	}
	var next []uint32
	for _, id := range ids {
		list, err := r.array(ctx, id)
		if err != nil {
			return nil, err
		}
		next = append(next, list...)
	}
	return next, nil
}

// array returns the programs in a map, none if it isn't a program array.
func (r *reader) array(ctx context.Context, id uint32) ([]uint32, error) {
	if list, ok := r.arrays[id]; ok {
		return list, nil
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, probe.Explain(probe.OpListByID, err)
	}
	defer m.Close()
	var list []uint32
	if m.Type() == ebpf.ProgramArray {
		err = maps.Walk(ctx, m, func(_, value []byte) error {
			list = append(list, binary.NativeEndian.Uint32(value))
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read program array %d: %w", id, err)
		}
	}
	r.arrays[id] = list
	return list, nil
}

// lookUp finds out where the redirects are.
func (r *reader) lookUp() error {
	if r.helpers != nil {
		return nil
	}
	helpers := map[int32]string{}
	for _, f := range redirects {
		target, err := where(f.helper)
		if errors.Is(err, unix.EINVAL) {
			continue // this kernel has no such helper
		}
		if err != nil {
			return err
		}
		helpers[target] = f.name
	}
	r.helpers = helpers
	return nil
}

// where returns the target that calls of a helper have.
func where(helper asm.BuiltinFunc) (int32, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, 1), asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R3, 0), asm.Mov.Imm(asm.R4, 0),
		helper.Call(), asm.Return(),
	}})
	if err != nil {
		return 0, fmt.Errorf("look up a helper: %w", probe.Explain(probe.OpLoadTC, err))
	}
	defer p.Close()
	code, err := bpfsys.Instructions(p.FD())
	if err != nil {
		return 0, fmt.Errorf("read code: %w", err)
	}
	list, err := targets(code)
	if err == nil && len(list) == 0 {
		err = errHidden
	}
	if err != nil {
		return 0, err
	}
	return list[0], nil
}

// sizeofInstruction is the size of a struct bpf_insn: the opcode, registers, an
// offset, and a constant, which is the target of a call.
const sizeofInstruction = 8

// callHelper is the opcode of a call; of a helper if no register is named.
const callHelper = 0x85

// targets returns the targets of the calls of helpers in the code of a program.
func targets(code []byte) ([]int32, error) {
	if len(code) == 0 {
		return nil, errHidden
	}
	var list []int32
	for i := range slices.Chunk(code, sizeofInstruction) {
		if i[0] != callHelper || i[1] != 0 {
			continue
		}
		target := int32(binary.NativeEndian.Uint32(i[4:]))
		if target == 0 {
			return nil, errHidden
		}
		list = append(list, target)
	}
	return list, nil
}
