package maps

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file calls bpf(2) where cilium/ebpf offers too little: it doesn't tell
// the BTF types of a map, and it reads and writes per-CPU values and batches
// through reflection.

// enotsupp is ENOTSUPP, which the kernel returns but user space doesn't define.
const enotsupp = unix.Errno(524)

type elementAttr struct {
	fd    uint32
	_     uint32
	key   unsafe.Pointer
	value unsafe.Pointer // next key, for BPF_MAP_GET_NEXT_KEY
	flags uint64
}

type batchAttr struct {
	in, out, keys, values unsafe.Pointer
	count, fd             uint32
	elementFlags, flags   uint64
}

type infoAttr struct {
	fd, length uint32
	info       unsafe.Pointer
}

// mapInfo is the beginning of struct bpf_map_info.
type mapInfo struct {
	_           [64]byte // type to netns_ino
	btfID       uint32
	keyTypeID   uint32
	valueTypeID uint32
	_           uint32
}

func call(command int, attr unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return errno
	}
	return nil
}

// element runs one of the commands on single elements. key may be nil for the
// first key.
func element(command, fd int, key, value []byte, flags uint64) error {
	attr := elementAttr{fd: uint32(fd), key: pointer(key), value: pointer(value), flags: flags}
	return call(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// lookupBatch reads up to count elements. in is the place that out was filled
// with by the call before, nil at first. ENOENT means that the end is reached;
// the elements are valid then too.
func lookupBatch(fd int, in, out, keys, values []byte, count int) (int, error) {
	attr := batchAttr{
		in: pointer(in), out: pointer(out), keys: pointer(keys), values: pointer(values),
		count: uint32(count), fd: uint32(fd),
	}
	err := call(unix.BPF_MAP_LOOKUP_BATCH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil && err != unix.ENOENT {
		return 0, err
	}
	return int(attr.count), err
}

// typeIDs returns the ids of a map's BTF and of its types in there; 0 stands
// for none.
func typeIDs(fd int) (btfID, key, value uint32, err error) {
	var info mapInfo
	attr := infoAttr{fd: uint32(fd), length: uint32(unsafe.Sizeof(info)), info: unsafe.Pointer(&info)}
	err = call(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return info.btfID, info.keyTypeID, info.valueTypeID, err
}

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
