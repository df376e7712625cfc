package maps

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
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

// mapInfo is the beginning of struct bpf_map_info.
type mapInfo struct {
	kind         uint32
	id           uint32
	keySize      uint32
	valueSize    uint32
	maxEntries   uint32
	flags        uint32
	name         [unix.BPF_OBJ_NAME_LEN]byte
	_            uint32 // ifindex
	kernelTypeID uint32 // of values, in the kernel's own BTF
	_            [16]byte
	btfID        uint32
	keyTypeID    uint32
	valueTypeID  uint32
	_            uint32
}

func call(command int, attr unsafe.Pointer, size uintptr) error {
	_, err := bpfsys.Call(command, attr, size)
	return err
}

// element runs one of the commands on single elements. key may be nil for the
// first key.
func element(command, fd int, key, value []byte, flags uint64) error {
	attr := elementAttr{fd: uint32(fd), key: pointer(key), value: pointer(value), flags: flags}
	return call(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// lookupBatch reads up to count elements. in is the place that out was filled
// with by the call before, nil at first. ENOENT means that the end is reached,
// EINTR (before Linux 6.14) that others deleted where the kernel was reading;
// the elements are valid then too, and out is where they end if there are any.
func lookupBatch(fd int, in, out, keys, values []byte, count int) (int, error) {
	attr := batchAttr{
		in: pointer(in), out: pointer(out), keys: pointer(keys), values: pointer(values),
		count: uint32(count), fd: uint32(fd),
	}
	err := call(unix.BPF_MAP_LOOKUP_BATCH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil && err != unix.ENOENT && err != unix.EINTR {
		return 0, err
	}
	return int(attr.count), err
}

// writeBatch updates entries, or with values nil deletes them, until one is
// refused, and returns how many it did.
func writeBatch(fd int, keys, values []byte, count int) (int, error) {
	command := unix.BPF_MAP_UPDATE_BATCH
	if values == nil {
		command = unix.BPF_MAP_DELETE_BATCH
	}
	attr := batchAttr{keys: pointer(keys), values: pointer(values), count: uint32(count), fd: uint32(fd)}
	err := call(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil && int(attr.count) >= count {
		return 0, err // what never began leaves the count as it was
	}
	return min(int(attr.count), count), err
}

// newMapAttr is the beginning of union bpf_attr for BPF_MAP_CREATE.
type newMapAttr struct {
	kind, keySize, valueSize, maxEntries, flags uint32
	innerFD, _                                  uint32
	name                                        [unix.BPF_OBJ_NAME_LEN]byte
}

// createMap makes a map and returns its descriptor. Kernels before 5.11 count it
// against RLIMIT_MEMLOCK, which is lifted if that is permitted.
func createMap(attr *newMapAttr) (int, error) {
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	return bpfsys.Call(unix.BPF_MAP_CREATE, unsafe.Pointer(attr), unsafe.Sizeof(*attr))
}

// freezeMap keeps processes from changing a map any more.
func freezeMap(fd int) error {
	number := uint32(fd)
	return call(unix.BPF_MAP_FREEZE, unsafe.Pointer(&number), unsafe.Sizeof(number))
}

// infoOf returns what the kernel tells of a map. The BTF ids are 0 where there
// is none.
func infoOf(fd int) (mapInfo, error) {
	var info mapInfo
	err := bpfsys.Info(fd, unsafe.Pointer(&info), unsafe.Sizeof(info))
	return info, err
}

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
