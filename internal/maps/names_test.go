package maps

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
)

// rawMap is a map as libbpf makes it: with the BTF of the whole object file.
type rawMap struct {
	name               string // in the object file
	kind               ebpf.MapType
	keySize, valueSize uint32
	entries            uint32
	key, value         btf.Type
	others             []string // maps of the same types in the same file
}

// section is the file's section ".maps".
func (r rawMap) section() *btf.Datasec {
	section := &btf.Datasec{Name: ".maps"}
	for _, name := range append([]string{r.name}, r.others...) {
		definition := &btf.Struct{Size: 16}
		if r.key != nil {
			definition.Members = append(definition.Members, btf.Member{Name: "key", Type: &btf.Pointer{Target: r.key}})
		}
		definition.Members = append(definition.Members, btf.Member{Name: "value", Type: &btf.Pointer{Target: r.value}, Offset: 64})
		section.Vars = append(section.Vars, btf.VarSecinfo{
			Type: &btf.Var{Name: name, Type: definition, Linkage: btf.GlobalVar}, Offset: section.Size, Size: 16,
		})
		section.Size += 16
	}
	return section
}

// createAttr is the beginning of union bpf_attr for BPF_MAP_CREATE.
type createAttr struct {
	kind, keySize, valueSize, entries uint32
	_                                 [3]uint32
	name                              [unix.BPF_OBJ_NAME_LEN]byte
	_, btf, key, value                uint32
}

// types builds the BTF of the file, with a function f in it.
func (r rawMap) types(t *testing.T) (builder *btf.Builder, function uint32, handle *btf.Handle) {
	t.Helper()
	f := &btf.Func{Name: "f", Type: &btf.FuncProto{Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}}, Linkage: btf.GlobalFunc}
	builder, err := btf.NewBuilder([]btf.Type{r.section(), f}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if handle, err = btf.NewHandle(builder); err != nil {
		t.Fatal(err)
	}
	return builder, typeID(t, builder, f), handle
}

func typeID(t *testing.T, builder *btf.Builder, of btf.Type) uint32 {
	t.Helper()
	id, err := builder.Add(of)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(id)
}

// newRaw makes a map, whose name the kernel cuts.
func newRaw(t *testing.T, r rawMap) *ebpf.Map {
	t.Helper()
	builder, _, handle := r.types(t)
	defer handle.Close()
	attr := createAttr{
		kind: uint32(r.kind), keySize: r.keySize, valueSize: r.valueSize, entries: r.entries,
		btf: uint32(handle.FD()), key: typeID(t, builder, r.key), value: typeID(t, builder, r.value),
	}
	copy(attr.name[:], cutName(r.name))
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		t.Fatalf("make %s: %v", r.name, errno)
	}
	m, err := ebpf.NewMapFromFD(int(fd))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// loadAttr is union bpf_attr for BPF_PROG_LOAD.
type loadAttr struct {
	kind, instructions uint32
	code, license      unsafe.Pointer
	_                  [16]byte // log_level to log_buf
	_                  [2]uint32
	_                  [unix.BPF_OBJ_NAME_LEN]byte
	_, _               uint32 // ifindex, attach type
	btf, infoSize      uint32
	info               unsafe.Pointer
	infos              uint32
	_                  [5]uint32
}

// useRaw loads a program that uses the map, with the BTF of the whole object
// file, and returns its id.
func useRaw(t *testing.T, m *ebpf.Map, r rawMap) uint32 {
	t.Helper()
	_, function, handle := r.types(t)
	defer handle.Close()
	var code bytes.Buffer
	if err := (asm.Instructions{asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Imm(asm.R0, 0), asm.Return()}).Marshal(&code, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	license, info := []byte("GPL\x00"), [2]uint32{0, function}
	attr := loadAttr{
		kind: uint32(ebpf.SocketFilter), instructions: uint32(code.Len() / 8), code: pointer(code.Bytes()), license: pointer(license),
		btf: uint32(handle.FD()), infoSize: 8, info: unsafe.Pointer(&info), infos: 1,
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		t.Fatalf("load a program that uses %s: %v", r.name, errno)
	}
	t.Cleanup(func() { unix.Close(int(fd)) })
	about, _, err := bpfsys.Program(int(fd))
	if err != nil {
		t.Fatal(err)
	}
	return about.ID
}

// TestNames finds maps by names that the kernel cuts.
func TestNames(t *testing.T) {
	w := newWorld(t)
	dir := w.outside(t)
	ctx := context.Background()
	spec := rawMap{kind: ebpf.Hash, keySize: 4, valueSize: 4, entries: 1, key: u32, value: u32}
	ref := func(m *ebpf.Map) string {
		info, err := infoOf(m.FD())
		if err != nil {
			t.Fatal(err)
		}
		return reference(info.id)
	}
	spec.name = fmt.Sprintf("t%d_connections_by_pod", os.Getpid()%1000)
	byPod := newRaw(t, spec)
	spec.name = fmt.Sprintf("t%d_connections_by_node", os.Getpid()%1000)
	byNode := newRaw(t, spec)
	for m, name := range map[*ebpf.Map]string{byPod: "pod", byNode: "node"} {
		full := strings.TrimSuffix(spec.name, "node") + name
		for _, r := range []string{full, "name:" + full, ref(m)} {
			if shown, err := w.Show(ctx, r); err != nil || reference(shown.ID) != ref(m) || shown.Name != full || shown.Ref != ref(m) {
				t.Errorf("show %s: %+v, %v", r, shown, err)
			}
		}
	}
	_, err := w.Show(ctx, cutName(spec.name))
	fails(t, err, fault.ErrUsage, ref(byPod)+" (hash)")
	fails(t, err, fault.ErrUsage, ref(byNode)+" (hash)")
	_, err = w.Show(ctx, cutName(spec.name)+"_other")
	fails(t, err, fault.ErrNotFound, "no map is called that")
	_, err = w.Show(ctx, "57")
	fails(t, err, fault.ErrNotFound, "the map with that id is id:57")

	// Nothing tells the name of this one, until a pin does.
	spec.name = cutName(spec.name)
	silent, err := ebpf.NewMap(&ebpf.MapSpec{Name: spec.name, Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if shown, err := w.Show(ctx, spec.name+"_other"); err != nil || reference(shown.ID) != ref(silent) || shown.Name != spec.name {
		t.Errorf("show: %+v, %v", shown, err)
	}
	if err := silent.Pin(dir + "/" + spec.name + "_this"); err != nil {
		t.Fatal(err)
	}
	_, err = w.Show(ctx, spec.name+"_other")
	fails(t, err, fault.ErrNotFound, "no map is called that")
	if shown, err := w.Show(ctx, spec.name+"_this"); err != nil || shown.Name != spec.name+"_this" || shown.Ref != dir+"/"+spec.name+"_this" {
		t.Errorf("show: %+v, %v", shown, err)
	}
}

// TestAmbiguousFullNames shows that two definitions that differ in nothing but
// the end of their names leave open which map is which.
func TestAmbiguousFullNames(t *testing.T) {
	w := newWorld(t)
	spec := rawMap{kind: ebpf.Hash, keySize: 4, valueSize: 4, entries: 1, key: u32, value: u32}
	prefix := fmt.Sprintf("u%d_requests_of_", os.Getpid()%1000)
	spec.name, spec.others = prefix+"pods", []string{prefix + "nodes"}
	newRaw(t, spec)
	newRaw(t, spec)
	_, err := w.Show(context.Background(), prefix+"nodes")
	fails(t, err, fault.ErrUsage, "2 maps are called that")
}

// TestTypesOfUsers types a map that the kernel takes no BTF for by the program
// that uses it.
func TestTypesOfUsers(t *testing.T) {
	w := newWorld(t)
	inner := &ebpf.MapSpec{Name: "inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	w.make(t, inner)
	outer := w.make(t, &ebpf.MapSpec{Name: "outer", Type: ebpf.HashOfMaps, KeySize: 16, ValueSize: 4, MaxEntries: 3, InnerMap: inner})
	user := useRaw(t, outer, rawMap{name: "outer", key: ip, value: u64})
	shown, err := w.Show(context.Background(), "mine/inner")
	if err != nil || len(shown.ProgIDs) > 0 || shown.ProgIDs == nil {
		t.Fatal(shown, err)
	}
	id := fmt.Sprint(shown.ID)
	w.set("outer", "10.0.0.1", "mine/inner")
	if rows := w.dump(DumpRequest{Map: "mine/outer"}); !slices.Equal(rows, []string{`"10.0.0.1"=` + id}) {
		t.Errorf("dump %q", rows)
	}
	shown, err = w.Show(context.Background(), "mine/outer")
	if err != nil || !slices.Equal(shown.ProgIDs, []uint32{user}) || shown.KeyType == nil || *shown.KeyType != "ip_addr_t" {
		t.Errorf("show %+v, %v", shown, err)
	}
	raw, err := w.OpenRaw(reference(shown.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if key, err := raw.ParseKey("10.0.0.1"); err != nil || len(key) != 16 {
		t.Errorf("key %x, %v", key, err)
	}
}

// TestNearestNames lists what is most like a name that nothing has first.
func TestNearestNames(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"counters", "limits", "packets"} {
		w.make(t, &ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	}
	for ref, hint := range map[string]string{"limitz": "maps: mine/limits, ", "mine/packet": "maps: mine/packets, "} {
		_, err := w.Show(context.Background(), ref)
		fails(t, err, fault.ErrNotFound, hint)
	}
}
