package bpfsys_test

import (
	"encoding/hex"
	"errors"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/testkit"
)

// TestMap finds a map among all, and reads about it with structs that are
// shorter and longer than the kernel's.
func TestMap(t *testing.T) {
	testkit.NeedsKernel(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var short struct{ kind, id uint32 }
	var long struct {
		kind, id, keySize, valueSize uint32
		_                            [4000]byte
	}
	if err := bpfsys.Info(m.FD(), unsafe.Pointer(&short), unsafe.Sizeof(short)); err != nil || short.kind != uint32(ebpf.Array) {
		t.Errorf("%+v, %v", short, err)
	}
	found, last, enough := false, uint32(0), errors.New("enough")
	err = bpfsys.Maps.Each(func(id uint32, fd int) error {
		if id <= last {
			t.Errorf("map %d comes after map %d", id, last)
		}
		last = id
		if id != short.id {
			return nil
		}
		found = true
		if err := bpfsys.Info(fd, unsafe.Pointer(&long), unsafe.Sizeof(long)); err != nil || long.id != id || long.valueSize != 8 {
			t.Errorf("info of map %d: %v", id, err)
		}
		return enough
	})
	if !found || err != enough {
		t.Errorf("found %t, %v", found, err)
	}
}

func TestMissing(t *testing.T) {
	testkit.NeedsKernel(t)
	for _, k := range []bpfsys.Kind{bpfsys.Maps, bpfsys.Programs, bpfsys.Links} {
		if fd, err := k.Open(math.MaxUint32); err != unix.ENOENT {
			t.Errorf("%+v: %d, %v", k, fd, err)
		}
	}
}

func TestProgram(t *testing.T) {
	testkit.NeedsKernel(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "described", Type: ebpf.SocketFilter, License: "GPL",
		Instructions: asm.Instructions{asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	want, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := want.ID()
	ids, _ := want.MapIDs()
	info, maps, err := bpfsys.Program(p.FD())
	if err != nil || info.ID != uint32(id) || info.Type != uint32(ebpf.SocketFilter) || info.GPL != 1 ||
		unix.ByteSliceToString(info.Name[:]) != "described" || hex.EncodeToString(info.Tag[:]) != want.Tag ||
		!slices.Equal(maps, []uint32{uint32(ids[0])}) {
		t.Errorf("%+v, maps %d, %v; want %+v", info, maps, err, want)
	}
	code, err := bpfsys.Instructions(p.FD())
	const movR0 = 0xb7
	if err != nil || len(code) != 4*8 || code[2*8] != movR0 { // the map's address takes two
		t.Errorf("code is %x, %v", code, err)
	}
}

// TestEachWhileOthersCome lists links while others are made and closed.
func TestEachWhileOthersCome(t *testing.T) {
	testkit.NeedsKernel(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "comes", Type: ebpf.RawTracepoint, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: p}); err == nil {
				l.Close()
			}
		}
	}()
	for range 2000 {
		if err := bpfsys.Links.Each(func(uint32, int) error { return nil }); err != nil {
			t.Errorf("links: %v", err)
			break
		}
	}
	close(stop)
	<-done
}
