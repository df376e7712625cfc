package maps

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// TestWithoutEntries checks that a map without entries names what to do instead.
func TestWithoutEntries(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	for _, test := range []struct {
		spec *ebpf.MapSpec
		hint string
	}{
		{&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 4096}, "bpfnet map events mine/ringbuf reads them"},
		{&ebpf.MapSpec{Type: ebpf.PerfEventArray, KeySize: 4, ValueSize: 4, MaxEntries: 2}, "bpfnet map events mine/perf_event_array"},
		{&ebpf.MapSpec{Type: ebpf.UserRingbuf, MaxEntries: 4096}, "bpfnet map show mine/user_ringbuf"},
		{&ebpf.MapSpec{Type: ebpf.Queue, ValueSize: 4, MaxEntries: 4}, "bpfnet map peek mine/queue shows its next element, bpfnet map pop mine/queue"},
		{&ebpf.MapSpec{Type: ebpf.Stack, ValueSize: 4, MaxEntries: 4}, "bpfnet map pop mine/stack"},
		{&ebpf.MapSpec{Type: ebpf.BloomFilter, ValueSize: 4, MaxEntries: 4}, "bpfnet map peek mine/bloom_filter VALUE"},
		{&ebpf.MapSpec{Type: ebpf.CGroupArray, KeySize: 4, ValueSize: 4, MaxEntries: 4}, "bpfnet map show mine/cgroup_array --pids"},
		{&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 4}, "bpfnet map show mine/xskmap --pids"},
		{&ebpf.MapSpec{Type: ebpf.SkStorage, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC, Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: u32}, "ss --all --bpf-map-id={id} "},
		{&ebpf.MapSpec{Type: ebpf.TaskStorage, KeySize: 4, ValueSize: 4, Flags: unix.BPF_F_NO_PREALLOC, Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: u32}, "bpftool iter pin ITERATOR.o PATH map id {id} "},
	} {
		test.spec.Name = TypeName(test.spec.Type)
		if errors.Is(features.HaveMapType(test.spec.Type), ebpf.ErrNotSupported) {
			t.Logf("this kernel has no %s", test.spec.Name)
			continue
		}
		info, err := infoOf(w.make(t, test.spec).FD())
		if err != nil {
			t.Fatal(err)
		}
		hint := strings.ReplaceAll(test.hint, "{id}", fmt.Sprint(info.id))
		ref := "mine/" + test.spec.Name
		_, err = w.Dump(ctx, DumpRequest{Map: ref}, func(Row) error { return nil })
		fails(t, err, fault.ErrUnsupported, hint)
		_, err = w.Get(ctx, ref, "0")
		fails(t, err, fault.ErrUnsupported, hint)
		_, err = w.Set(ctx, SetRequest{Map: ref, Key: "0", Value: "0"})
		fails(t, err, fault.ErrUnsupported, hint)
		if strings.Contains(test.hint, "{id}") {
			fails(t, w.walkRaw(t, ref), fault.ErrUnsupported, hint)
		}
		one := []Map{{Ref: ref}}
		if notes, err := w.CountEntries(ctx, one); err != nil || one[0].Fill != nil || len(notes) > 0 {
			t.Errorf("%s: fill %v, %q, %v", ref, one[0].Fill, notes, err)
		}
	}
}

// walkRaw is the error of walking the bytes of a map.
func (w *world) walkRaw(t *testing.T, ref string) error {
	t.Helper()
	r, err := w.OpenRaw(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return r.Walk(context.Background(), DumpRequest{}, func(_, _ []byte, _ error) error { return nil })
}

// TestRedirects reads and writes maps whose values the kernel defines.
func TestRedirects(t *testing.T) {
	w := newWorld(t)
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	program := func(attach ebpf.AttachType) string {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "redirected", Type: ebpf.XDP, AttachType: attach, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		return fmt.Sprint(id)
	}
	device, cpu := program(ebpf.AttachXDPDevMap), program(ebpf.AttachXDPCPUMap)
	for _, test := range []struct {
		typ  ebpf.MapType
		size uint32
		v    string
	}{
		{ebpf.DevMap, 4, fmt.Sprint(lo.Index)},
		{ebpf.DevMap, 8, fmt.Sprintf(`{"ifindex":%d,"prog_id":%s}`, lo.Index, device)},
		{ebpf.DevMapHash, 4, fmt.Sprint(lo.Index)},
		{ebpf.DevMapHash, 8, fmt.Sprintf(`{"ifindex":%d,"prog_id":0}`, lo.Index)},
		{ebpf.CPUMap, 4, "192"},
		{ebpf.CPUMap, 8, fmt.Sprintf(`{"qsize":192,"prog_id":%s}`, cpu)},
	} {
		name := fmt.Sprint(TypeName(test.typ), test.size)
		w.make(t, &ebpf.MapSpec{Name: name, Type: test.typ, KeySize: 4, ValueSize: test.size, MaxEntries: 2})
		if c := w.set(name, "1", test.v); !c.Changed || string(c.Value) != test.v {
			t.Errorf("%s: set %+v", name, c)
		}
		if c := w.set(name, "1", test.v); c.Changed {
			t.Errorf("%s: set again %+v", name, c)
		}
		if rows := w.dump(DumpRequest{Map: "mine/" + name}); !slices.Equal(rows, []string{"1=" + test.v}) {
			t.Errorf("%s: dump %q", name, rows)
		}
		w.deletes(name, "1", false)
	}
	_, err = w.Set(context.Background(), SetRequest{Map: "mine/devmap8", Key: "0", Value: `{"ifindex":1,"prog_id":4294967295}`})
	fails(t, err, fault.ErrNotFound, "open program id:4294967295: no program has that id")
	_, err = w.Set(context.Background(), SetRequest{Map: "mine/devmap4", Key: "0", Value: "2147483647"})
	fails(t, err, fault.ErrUsage, "no interface has that ifindex")
}

// TestEmptyText writes the text without characters, which is no missing one.
func TestEmptyText(t *testing.T) {
	w := newWorld(t)
	name := &btf.Array{Index: u32, Type: &btf.Int{Name: "char", Size: 1, Encoding: btf.Char}, Nelems: 8}
	w.make(t, &ebpf.MapSpec{Name: "names", Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 2, Key: name, Value: name})
	if c := w.set("names", `""`, `""`); string(c.Key) != `""` || string(c.Value) != `""` {
		t.Errorf("set: %+v", c)
	}
	if value := w.get("names", `""`); value != `""` {
		t.Errorf("get: %s", value)
	}
	w.make(t, &ebpf.MapSpec{Name: "numbers", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 2, Key: u32, Value: u32})
	_, err := w.Get(context.Background(), "mine/numbers", `""`)
	fails(t, err, fault.ErrUsage, "")
}

func TestArticle(t *testing.T) {
	for kind, want := range map[ebpf.MapType]string{ebpf.XSKMap: "an xskmap", ebpf.Queue: "a queue", ebpf.Array: "an array", ebpf.LPMTrie: "an lpm_trie", ebpf.Hash: "a hash"} {
		if got := kinds[kind].a(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestPrograms puts programs into a map by each of their names.
func TestPrograms(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "calls", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 9})
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	path := w.root.Path("mine", pinned.Progs, "count")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := p.Pin(path); err != nil {
		t.Fatal(err)
	}
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	for i, value := range []string{"mine/count", path, fmt.Sprint(id), fmt.Sprintf("id:%d", id)} {
		if c := w.set("calls", fmt.Sprint(i), value); string(c.Value) != fmt.Sprint(id) {
			t.Errorf("set %s: %+v", value, c)
		}
	}
	lone, twins := w.programs(t)
	for i, value := range []string{"name:" + lone.name, "tag:" + lone.tag, "name:" + lone.name[:15]} {
		if c := w.set("calls", fmt.Sprint(4+i), value); string(c.Value) != fmt.Sprint(lone.id) {
			t.Errorf("set %s: %+v", value, c)
		}
	}
	list := fmt.Sprintf("name one of them: id:%d (%s, tag:%s), id:%d (%s, tag:%s)", twins[0].id, twins[0].name, twins[0].tag, twins[1].id, twins[1].name, twins[1].tag)
	for _, test := range []struct {
		value string
		kind  error
		text  string
	}{
		{"name:" + twins[0].name, fault.ErrUsage, list},
		{"tag:" + twins[0].tag, fault.ErrUsage, list},
		{"name:" + lone.name + "_more", fault.ErrNotFound, "no such program"},
		{"tag:0000000000000000", fault.ErrNotFound, "no such program"},
		{"tag:12", fault.ErrUsage, "16 hexadecimal digits"},
		{"4294967295", fault.ErrNotFound, "open program id:4294967295: no program has that id"},
		{"id:x", fault.ErrUsage, "the id is not a number"},
		{"mine/nothing", fault.ErrNotFound, "NAME/FUNCTION"},
		{"count", fault.ErrUsage, "it must be NAME/FUNCTION"},
		{w.root.Path("mine", pinned.Maps, "calls"), fault.ErrUsage, "is not a program"},
	} {
		_, err := w.Set(context.Background(), SetRequest{Map: "mine/calls", Key: "8", Value: test.value})
		fails(t, err, test.kind, test.text)
	}
}

// known is a program as the kernel tells it.
type known struct {
	id        ebpf.ProgramID
	name, tag string
}

// programs loads a program whose name the kernel cuts, and two that are the
// same. What is in them is found in no other process's programs.
func (w *world) programs(t *testing.T) (lone known, twins [2]known) {
	load := func(name string, result int32) known {
		function := &btf.Func{Name: name, Type: &btf.FuncProto{Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}}, Linkage: btf.StaticFunc}
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SocketFilter, License: "MIT", Instructions: asm.Instructions{
			btf.WithFuncMetadata(asm.Mov.Imm(asm.R0, result).WithSymbol(name), function), asm.Return(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		return known{id, name, info.Tag}
	}
	own := int32(os.Getpid())
	lone = load(fmt.Sprintf("lone_called_%d_in_full", own), own)
	name := fmt.Sprintf("twin%d", own)
	return lone, [2]known{load(name, -own), load(name, -own)}
}

// TestSockets reads the cookie of a socket; nobody else can put it there.
func TestSockets(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "socks", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	w.make(t, &ebpf.MapSpec{Name: "blind", Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	var config net.ListenConfig
	config.SetMultipathTCP(false) // a sockmap takes none of that
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	raw, err := listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var socketCookie uint64
	if err := raw.Control(func(fd uintptr) {
		socketCookie, _ = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
		err = m.Put(uint32(1), uint64(fd))
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := w.get("socks", "1"); got != fmt.Sprint(socketCookie) {
		t.Errorf("cookie %s, want %d", got, socketCookie)
	}
	_, err = w.Set(context.Background(), SetRequest{Map: "mine/socks", Key: "0", Value: "5"})
	fails(t, err, fault.ErrUnsupported, "only the process that has a socket open")
	_, err = w.Get(context.Background(), "mine/blind", "1")
	fails(t, err, fault.ErrUnsupported, "only if they have 8 bytes")
}

// TestStackTrace shows the addresses of a stack.
func TestStackTrace(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "stacks", Type: ebpf.StackTrace, KeySize: 4, ValueSize: 16, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "builds", Type: ebpf.StackTrace, KeySize: 4, ValueSize: 64, MaxEntries: 4, Flags: unix.BPF_F_STACK_BUILD_ID})
	for name, value := range map[string]string{"stacks": "__u64[2]", "builds": "struct bpf_stack_build_id[2]"} {
		m, err := w.Show(context.Background(), "mine/"+name)
		if err != nil || m.ValueType == nil || *m.ValueType != value || *m.KeyType != "__u32" {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// section pins an array that holds a data section, as loaders do; the library
// freezes constants.
func (w *world) section(t *testing.T, name string, flags uint32) {
	t.Helper()
	integer := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	section := &btf.Datasec{Name: name, Size: 8, Vars: []btf.VarSecinfo{
		{Type: &btf.Var{Name: "limit", Type: integer, Linkage: btf.GlobalVar}, Size: 4},
		{Type: &btf.Var{Name: "verbose", Type: &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}, Linkage: btf.GlobalVar}, Offset: 4, Size: 1},
	}}
	w.make(t, &ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Key: &btf.Void{}, Value: section, Flags: flags})
}

// TestSections reads and writes variables by their names. The dot in the name of
// a section is one that bpffs doesn't take.
func TestSections(t *testing.T) {
	w := newWorld(t)
	w.section(t, ".bss", unix.BPF_F_MMAPABLE)
	w.section(t, ".data", 0) // as before Linux 5.5
	w.section(t, ".rodata", unix.BPF_F_MMAPABLE)
	const zero, other = `{"limit":0,"verbose":false}`, `{"limit":-5,"verbose":true}`
	for _, name := range []string{".bss", ".rodata"} {
		if rows := w.dump(DumpRequest{Map: "mine/" + name}); !slices.Equal(rows, []string{"0=" + zero}) {
			t.Errorf("dump %s: %q", name, rows)
		}
	}
	if c := w.set(".bss", "0", other); !c.Changed || w.get(".bss", "0") != other {
		t.Errorf("set: %+v", c)
	}
	_, err := w.Set(context.Background(), SetRequest{Map: "mine/.bss", Key: "0", Value: `{"limit":3}`})
	fails(t, err, fault.ErrUsage, `"verbose" is missing`)
	_, err = w.Set(context.Background(), SetRequest{Map: "mine/.rodata", Key: "0", Value: other})
	fails(t, err, fault.ErrConflict, "frozen")
	w.variables(t)
	listing, err := w.List(context.Background())
	if err != nil || !slices.ContainsFunc(listing.Maps, func(m Map) bool {
		return m.Ref == "mine/.rodata" && m.Name == ".rodata" && m.Frozen && strings.HasSuffix(m.Pinned[0], "/maps/%2Erodata")
	}) {
		t.Errorf("list: %+v, %v", listing, err)
	}
}

// variables reads and writes variables one by one.
func (w *world) variables(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	for _, name := range []string{".bss", ".data"} {
		w.set(name, "0", `{"limit":-5,"verbose":true}`)
		if c := w.set(name, "limit", "7"); !c.Changed || string(c.Key) != `"limit"` || string(c.Value) != "7" || string(c.Previous) != "-5" {
			t.Errorf("%s: set %+v", name, c)
		}
		if c := w.set(name, "limit", "7"); c.Changed {
			t.Errorf("%s: set again %+v", name, c)
		}
		if got := w.get(name, "0"); got != `{"limit":7,"verbose":true}` {
			t.Errorf("%s is %s", name, got)
		}
	}
	if got := w.get(".rodata", "verbose"); got != "false" {
		t.Errorf("a constant is %s", got)
	}
	if c, err := w.Set(ctx, SetRequest{Map: "mine/.bss", Key: "verbose", Value: "false", DryRun: true}); err != nil || !c.Changed || w.get(".bss", "verbose") != "true" {
		t.Errorf("dry set: %+v, %v", c, err)
	}
	for _, test := range []struct {
		r    SetRequest
		kind error
		text string
	}{
		{SetRequest{Map: "mine/.rodata", Key: "limit", Value: "1"}, fault.ErrConflict, "frozen"},
		{SetRequest{Map: "mine/.bss", Key: "limit", Value: "x"}, fault.ErrUsage, "a value of limit is written -2147483648..2147483647"},
		{SetRequest{Map: "mine/.bss", Key: "limits", Value: "1"}, fault.ErrUsage, "or as the name of a variable: limit, verbose"},
		{SetRequest{Map: "mine/.bss", Key: "limit", Value: "1", Condition: IfAbsent}, fault.ErrConflict, "there already"},
	} {
		_, err := w.Set(ctx, test.r)
		fails(t, err, test.kind, test.text)
	}
}
