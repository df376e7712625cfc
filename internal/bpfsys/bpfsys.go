// Package bpfsys calls bpf(2) where cilium/ebpf tells or takes too little.
package bpfsys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call runs a command with an attribute of size bytes and returns what it
// returns, mostly a descriptor. An error is a unix.Errno.
func Call(command int, attr unsafe.Pointer, size uintptr) (int, error) {
	result, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(result), nil
}

type infoAttr struct {
	fd, length uint32
	info       unsafe.Pointer
}

// Info fills the struct of size bytes at info with what the kernel tells about
// the object that is open as fd. What it doesn't know it leaves as it is, unless
// that isn't zero: then the error is E2BIG.
func Info(fd int, info unsafe.Pointer, size uintptr) error {
	attr := infoAttr{fd: uint32(fd), length: uint32(size), info: info}
	_, err := Call(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// ErrDeviceGone is the error of Program for a program whose device, which it was
// offloaded to, is gone: the kernel tells nothing about it any more.
const ErrDeviceGone = unix.ENODEV

// ProgInfo is struct bpf_prog_info.
type ProgInfo struct {
	Type, ID                             uint32
	Tag                                  [8]byte
	JITedLen, XlatedLen                  uint32 // bytes
	_                                    uint64 // the machine's code
	xlated                               unsafe.Pointer
	LoadTime                             uint64 // ns since boot
	UID, MapCount                        uint32
	mapIDs                               unsafe.Pointer
	Name                                 [unix.BPF_OBJ_NAME_LEN]byte
	Ifindex, GPL                         uint32
	NetNSDev, NetNSIno                   uint64
	_, _                                 uint32 // jited symbols and function lengths
	_, _                                 uint64
	BTFID, FuncInfoSize                  uint32
	FuncInfo                             unsafe.Pointer
	FuncInfoCount, _                     uint32
	_, _                                 uint64 // line info
	_, _, _, _                           uint32
	_                                    uint64 // tags of functions
	RunTime, RunCount, Recursions        uint64 // RunTime in ns
	Verified, AttachBTFObject, AttachBTF uint32
	_                                    uint32
}

// mostMaps is how many maps a program can use (MAX_USED_MAPS).
const mostMaps = 64

// Program returns what the kernel tells about the program that is open as fd,
// and the ids of the maps that it uses.
func Program(fd int) (info ProgInfo, maps []uint32, err error) {
	maps = make([]uint32, mostMaps)
	info = ProgInfo{MapCount: mostMaps, mapIDs: unsafe.Pointer(unsafe.SliceData(maps))}
	err = Info(fd, unsafe.Pointer(&info), unsafe.Sizeof(info))
	return info, maps[:min(int(info.MapCount), mostMaps)], err
}

// Instructions returns the code of the program that is open as fd, as the
// verifier left it; none if this process may not read it.
func Instructions(fd int) ([]byte, error) {
	info, _, err := Program(fd)
	if err != nil || info.XlatedLen == 0 {
		return nil, err
	}
	code := make([]byte, info.XlatedLen)
	info = ProgInfo{XlatedLen: info.XlatedLen, xlated: unsafe.Pointer(unsafe.SliceData(code))}
	err = Info(fd, unsafe.Pointer(&info), unsafe.Sizeof(info))
	if info.xlated == nil {
		code = nil
	}
	return code, err
}

// Kind is a kind of object that has ids.
type Kind struct{ next, get int } // commands: the id after an id, the descriptor of an id

// The kinds.
var (
	Maps     = Kind{unix.BPF_MAP_GET_NEXT_ID, unix.BPF_MAP_GET_FD_BY_ID}
	Programs = Kind{unix.BPF_PROG_GET_NEXT_ID, unix.BPF_PROG_GET_FD_BY_ID}
	Links    = Kind{unix.BPF_LINK_GET_NEXT_ID, unix.BPF_LINK_GET_FD_BY_ID}
)

type idAttr struct{ id, next, flags uint32 }

// Open returns a descriptor of the object with that id; ENOENT says that there
// is none.
func (k Kind) Open(id uint32) (int, error) {
	attr := idAttr{id: id}
	return Call(k.get, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// Next returns the lowest id of an object above id; ENOENT says that there is
// none. Unlike Open it takes no hold of anything.
func (k Kind) Next(id uint32) (uint32, error) {
	attr := idAttr{id: id}
	_, err := Call(k.next, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return attr.next, err
}

// Each visits all objects in the order of their ids, each with a descriptor that
// is closed afterwards, until visit returns an error. Objects that come or vanish
// meanwhile are left out: EAGAIN is for links that aren't complete yet.
func (k Kind) Each(visit func(id uint32, fd int) error) error {
	var id uint32
	for {
		next, err := k.Next(id)
		if err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return err
		}
		id = next
		fd, err := k.Open(id)
		if err == unix.ENOENT || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			return err
		}
		err = visit(id, fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
}
