package maps

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// This file finds the programs that entries of maps refer to.

// tagPrefix begins the reference of a program by the hash of its code.
const tagPrefix = "tag:"

func (s *Store) openProgram(text string) (object, uint32, error) {
	p, err := s.loadProgram(text)
	if err != nil {
		return nil, 0, err
	}
	info, err := p.Info()
	if err != nil {
		p.Close()
		return nil, 0, err
	}
	id, _ := info.ID()
	return p, uint32(id), nil
}

func (s *Store) loadProgram(text string) (*ebpf.Program, error) {
	if number, ok := strings.CutPrefix(text, idPrefix); ok {
		return programByID(text, number)
	}
	if strings.HasPrefix(text, namePrefix) || strings.HasPrefix(text, tagPrefix) {
		return programCalled(text)
	}
	path := text
	if instance, name, ok := s.split(text); ok {
		path = s.root.Path(instance, pinned.Progs, name)
	} else if !strings.HasPrefix(text, "/") {
		return nil, fault.New(fault.ErrUsage, "program %q: it must be NAME/FUNCTION, id:N, name:S, tag:HEX or the path of a pin", text)
	}
	p, err := ebpf.LoadPinnedProgram(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.ErrNotFound, "open program %s: no such program", text).
			Hint("a program is named NAME/FUNCTION, by its id, id:N, by name:S or tag:HEX, or by the path of its pin")
	case err != nil && strings.Contains(err.Error(), "is not a Program"):
		return nil, fault.New(fault.ErrUsage, "open program %s: %s is not a program", text, path)
	case err != nil:
		return nil, fmt.Errorf("open program %s: %w", text, probe.Explain(probe.OpOpenPin, err))
	}
	return p, nil
}

func programByID(text, number string) (*ebpf.Program, error) {
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "open program %q: the id is not a number", text)
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.ErrNotFound, "open program %s: no program has that id", text).Hint("bpfnet -j prog list shows all programs")
	case err != nil:
		return nil, fmt.Errorf("open program %s: %w", text, probe.Explain(probe.OpListByID, err))
	}
	return p, nil
}

// programCalled opens the one program that name:S or tag:HEX means.
func programCalled(text string) (*ebpf.Program, error) {
	match := func(fd int, info bpfsys.ProgInfo) bool {
		return isCalled(strings.TrimPrefix(text, namePrefix), fd, info)
	}
	if digits, ok := strings.CutPrefix(text, tagPrefix); ok {
		tag, err := ParseTag(digits)
		if err != nil {
			return nil, err
		}
		match = func(_ int, info bpfsys.ProgInfo) bool { return info.Tag == tag }
	}
	ids, words, err := programsWhere(match)
	switch {
	case err != nil:
		return nil, fmt.Errorf("open program %s: %w", text, probe.Explain(probe.OpListByID, err))
	case len(ids) == 0:
		return nil, fault.New(fault.ErrNotFound, "open program %s: no such program", text).Hint("bpfnet -j prog list shows all programs")
	case len(ids) > 1:
		return nil, fault.New(fault.ErrUsage, "open program %s: it means %d programs", text, len(ids)).
			Hint("name one of them: %s", strings.Join(words, ", "))
	}
	return programByID(text, strconv.FormatUint(uint64(ids[0]), 10))
}

// isCalled takes the name that the kernel keeps, 15 characters, and the one in
// full.
func isCalled(name string, fd int, info bpfsys.ProgInfo) bool {
	kept := unix.ByteSliceToString(info.Name[:])
	return kept != "" && strings.HasPrefix(name, kept) && (kept == name || ProgramName(fd, info) == name)
}

// programsWhere returns the ids of the programs that match, and what to call
// each of them.
func programsWhere(match func(fd int, info bpfsys.ProgInfo) bool) (ids []uint32, words []string, err error) {
	err = bpfsys.Programs.Each(func(id uint32, fd int) error {
		info, _, err := bpfsys.Program(fd)
		if errors.Is(err, bpfsys.ErrDeviceGone) {
			return nil // its name and tag aren't told
		}
		if err != nil || !match(fd, info) {
			return err
		}
		ids = append(ids, id)
		words = append(words, strings.Replace(fmt.Sprintf("%s (%s, %s%x)", reference(id), ProgramName(fd, info), tagPrefix, info.Tag), "(, ", "(", 1))
		return nil
	})
	return ids, words, err
}

// ParseTag reads the tag of a program.
func ParseTag(digits string) (tag [8]byte, err error) {
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(tag) {
		return tag, fault.New(fault.ErrUsage, "program tag %q: a tag is 16 hexadecimal digits", digits)
	}
	return [8]byte(b), nil
}

// ProgramName is the name of the program that is open as fd. The kernel cuts names off at 15 characters;
// the BTF of a program has the function's in full.
func ProgramName(fd int, info bpfsys.ProgInfo) string {
	name := unix.ByteSliceToString(info.Name[:])
	if len(name) < len(info.Name)-1 || info.BTFID == 0 || info.FuncInfoCount == 0 {
		return name
	}
	var function struct{ offset, typeID uint32 }
	ask := bpfsys.ProgInfo{FuncInfo: unsafe.Pointer(&function), FuncInfoSize: uint32(unsafe.Sizeof(function)), FuncInfoCount: 1}
	if err := bpfsys.Info(fd, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); err != nil {
		return name
	}
	if full, err := typeName(info.BTFID, function.typeID); err == nil {
		return full
	}
	return name
}

// typeName is the name of a type of a BTF object.
func typeName(btfID, typeID uint32) (string, error) {
	handle, err := btf.NewHandleFromID(btf.ID(btfID))
	if err != nil {
		return "", err
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return "", err
	}
	typ, err := spec.TypeByID(btf.TypeID(typeID))
	if err != nil {
		return "", err
	}
	return typ.TypeName(), nil
}
