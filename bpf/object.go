package bpf

import (
	"bytes"
	"debug/elf"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// mostZeros bounds what an object may ask for beyond its own size, in bytes: the
// variables that begin as zero.
const mostZeros = 64 << 20

// ReadObject reads an object file, whoever made it: an error says that it can't
// be used, and it takes memory in proportion to its size.
func ReadObject(object []byte) (spec *ebpf.CollectionSpec, err error) {
	err = guarded(object, func() error {
		spec, err = ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
		return err
	})
	return spec, err
}

// ReadTypes reads the types of an object file, or BTF alone, with the same care.
func ReadTypes(object []byte) (spec *btf.Spec, err error) {
	err = guarded(object, func() error {
		spec, err = btf.LoadSpecFromReader(bytes.NewReader(object))
		return err
	})
	return spec, err
}

// guarded reads an object unless it would take too much memory. What a library
// doesn't expect of it is an error.
func guarded(object []byte, read func() error) (err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("malformed: %v", reason)
		}
	}()
	if bytes.HasPrefix(object, []byte(elf.ELFMAG)) {
		if err := checkSections(object); err != nil {
			return err
		}
	}
	return read()
}

func checkSections(object []byte) error {
	file, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return err
	}
	zeros := uint64(0)
	for _, s := range file.Sections {
		if s.Flags&elf.SHF_COMPRESSED != 0 {
			return fmt.Errorf("section %q is compressed", s.Name)
		}
		if s.Type == elf.SHT_NOBITS {
			zeros += min(s.Size, mostZeros+1)
		}
		if zeros > mostZeros {
			return fmt.Errorf("section %q: its variables take more than %d MiB", s.Name, mostZeros>>20)
		}
	}
	return nil
}
