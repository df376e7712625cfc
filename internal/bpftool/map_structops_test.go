package bpftool

import (
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/testkit"
)

// createStructOps is union bpf_attr of BPF_MAP_CREATE up to the type of values
// in the kernel's BTF, which cilium/ebpf sets only for maps of objects.
type createStructOps struct {
	kind, keySize, valueSize, maxEntries, flags, innerFD, node uint32
	name                                                       [unix.BPF_OBJ_NAME_LEN]byte
	ifindex, btfFD, keyType, valueType, kernelValueType        uint32
}

// TestStructOps compares a map whose type is the kernel's own.
func TestStructOps(t *testing.T) {
	l := newLab(t)
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var value *btf.Struct
	testkit.Needs(t, "struct_ops for congestion control", spec.TypeByName("bpf_struct_ops_tcp_congestion_ops", &value), btf.ErrNotFound)
	id, err := spec.TypeID(value)
	if err != nil {
		t.Fatal(err)
	}
	builder, err := btf.NewBuilder([]btf.Type{uint_(4)}, nil) // some BTF has to come with it
	if err != nil {
		t.Fatal(err)
	}
	own, err := btf.NewHandle(builder)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	attr := createStructOps{btfFD: uint32(own.FD()), kind: uint32(ebpf.StructOpsMap), keySize: 4, valueSize: value.Size, maxEntries: 1, kernelValueType: uint32(id)}
	copy(attr.name[:], "congestion")
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&attr)
	if errno != 0 {
		t.Fatalf("make a struct_ops map: %v", errno)
	}
	m, err := ebpf.NewMapFromFD(int(fd))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	path := filepath.Join(l.root, "congestion")
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
	l.sameShow(path)
	l.sameDump(path)
	l.sameLookup(path, []byte{0, 0, 0, 0})
}
