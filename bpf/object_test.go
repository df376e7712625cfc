package bpf_test

import (
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"bpfnet/bpf"
)

// TestReadObject refuses objects that would take more memory than they are
// large.
func TestReadObject(t *testing.T) {
	program, _ := bpf.Lookup("xdp-counter")
	for _, c := range []struct {
		what   string
		change func(header *elf.Section64, content []byte)
		want   string
	}{
		{"nothing", func(*elf.Section64, []byte) {}, ""},
		{"compressed", func(h *elf.Section64, content []byte) {
			h.Flags |= uint64(elf.SHF_COMPRESSED)
			binary.LittleEndian.PutUint32(content, uint32(elf.COMPRESS_ZLIB))
		}, "is compressed"},
		{"zeros", func(h *elf.Section64, _ []byte) { h.Type, h.Size = uint32(elf.SHT_NOBITS), 1<<62 }, "take more than 64 MiB"},
	} {
		object := changed(t, program.Object, c.change)
		_, err := bpf.ReadObject(object)
		_, types := bpf.ReadTypes(object)
		for _, err := range []error{err, types} {
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.what, err, c.want)
			}
		}
	}
}

// changed is an object with a change in its first section that has a program.
func changed(t *testing.T, object []byte, change func(header *elf.Section64, content []byte)) []byte {
	t.Helper()
	object = append([]byte{}, object...)
	const sectionsAt, headerSize = 0x28, 64
	for at := binary.LittleEndian.Uint64(object[sectionsAt:]); at < uint64(len(object)); at += headerSize {
		var header elf.Section64
		if _, err := binary.Decode(object[at:], binary.LittleEndian, &header); err != nil {
			t.Fatal(err)
		}
		if elf.SectionType(header.Type) == elf.SHT_PROGBITS && header.Flags&uint64(elf.SHF_EXECINSTR) != 0 && header.Size > 0 {
			change(&header, object[header.Off:])
			if _, err := binary.Encode(object[at:], binary.LittleEndian, header); err != nil {
				t.Fatal(err)
			}
			return object
		}
	}
	t.Fatal("the object has no program")
	return nil
}
