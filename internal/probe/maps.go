package probe

import (
	"errors"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

func createsMap(spec ebpf.MapSpec) func(string) error {
	return func(string) error {
		m, err := newMap(spec)
		if err != nil {
			return err
		}
		return m.Close()
	}
}

func newMap(spec ebpf.MapSpec) (*ebpf.Map, error) {
	spec.Name = "bpfnet_probe"
	m, err := ebpf.NewMap(&spec)
	if err != nil {
		return nil, unknownToKernel(err)
	}
	return m, nil
}

// words is a map with keys and values of 4 and 8 bytes.
func words(kind ebpf.MapType) ebpf.MapSpec {
	return ebpf.MapSpec{Type: kind, KeySize: 4, ValueSize: 8, MaxEntries: 2}
}

var (
	lpmTrie   = ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, MaxEntries: 1, Flags: unix.BPF_F_NO_PREALLOC}
	ringBuf   = ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())}
	sockStore = ebpf.MapSpec{
		Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC,
		Key: &btf.Int{Size: 4, Encoding: btf.Signed}, Value: &btf.Int{Size: 4},
	}
	mapInMap = ebpf.MapSpec{
		Type: ebpf.ArrayOfMaps, KeySize: 4, MaxEntries: 1,
		InnerMap: &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2},
	}
)

// probeBatch writes and reads two entries in one call each.
func probeBatch(kind ebpf.MapType, values any, read any) func(string) error {
	return func(string) error {
		m, err := newMap(words(kind))
		if err != nil {
			return err
		}
		defer m.Close()
		if _, err := m.BatchUpdate([]uint32{0, 1}, values, nil); err != nil {
			return unknownToKernel(err)
		}
		var cursor ebpf.MapBatchCursor
		if _, err := m.BatchLookup(&cursor, make([]uint32, 2), read, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return unknownToKernel(err)
		}
		return nil
	}
}

func probeBatchHash(dir string) error {
	return probeBatch(ebpf.Hash, make([]uint64, 2), make([]uint64, 2))(dir)
}

func probeBatchPerCPU(dir string) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return probeBatch(ebpf.PerCPUArray, make([]uint64, 2*cpus), make([]uint64, 2*cpus))(dir)
}

// probePerfBuffer also opens the event that the buffer is read from, which is
// what asks for more rights than the map.
func probePerfBuffer(string) error {
	m, err := newMap(ebpf.MapSpec{Type: ebpf.PerfEventArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	defer m.Close()
	return closeAfter(openPerfEvent(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_BPF_OUTPUT}))
}
