package maps

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

var (
	u8    = &btf.Int{Name: "unsigned char", Size: 1}
	u32   = &btf.Int{Name: "unsigned int", Size: 4}
	u64   = &btf.Int{Name: "unsigned long long", Size: 8}
	in6   = &btf.Struct{Name: "in6_addr", Size: 16, Members: []btf.Member{{Name: "u", Type: &btf.Array{Index: u32, Type: u8, Nelems: 16}}}}
	ip    = &btf.Typedef{Name: "ip_addr_t", Type: in6}
	keyIP = &btf.Struct{Name: "prefix", Size: 20, Members: []btf.Member{{Name: "prefixlen", Type: u32}, {Name: "address", Type: ip, Offset: 32}}}
	count = &btf.Struct{Name: "counter", Size: 16, Members: []btf.Member{{Name: "packets", Type: u64}, {Name: "bytes", Type: u64, Offset: 64}}}
)

// world is a store with a root of its own on bpffs.
type world struct {
	*Store
	t *testing.T
}

var worlds int

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 || pinned.Root(pinned.MountPoint).Check() != nil {
		t.Skip("needs root and bpffs on " + pinned.MountPoint)
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	worlds++
	root := fmt.Sprintf("%s/bpfnet-test-%d-%d", pinned.MountPoint, os.Getpid(), worlds)
	if err := os.MkdirAll(filepath.Join(root, "mine", pinned.Maps), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	inner, _ := t.(*testing.T)
	return &world{New(root), inner}
}

// make pins a new map as mine/NAME.
func (w *world) make(t testing.TB, spec *ebpf.MapSpec) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(spec)
	if err != nil {
		t.Fatalf("make %s: %v", spec.Name, err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.Pin(w.root.Path("mine", pinned.Maps, spec.Name)); err != nil {
		t.Fatalf("pin %s: %v", spec.Name, err)
	}
	return m
}

func (w *world) set(name, key, value string) Change {
	w.t.Helper()
	change, err := w.Set(context.Background(), SetRequest{Map: "mine/" + name, Key: key, Value: value})
	if err != nil {
		w.t.Fatalf("set %s %s %s: %v", name, key, value, err)
	}
	return change
}

func (w *world) get(name, key string) string {
	w.t.Helper()
	entry, err := w.Get(context.Background(), "mine/"+name, key)
	if err != nil {
		w.t.Fatalf("get %s %s: %v", name, key, err)
	}
	return string(entry.Value)
}

func (w *world) dump(r DumpRequest) []string {
	w.t.Helper()
	rows := []string{}
	dumped, err := w.Dump(context.Background(), r, func(row Row) error {
		rows = append(rows, string(row.Key)+"="+string(row.Value))
		return nil
	})
	if err != nil {
		w.t.Fatalf("dump %s: %v", r.Map, err)
	}
	if int(dumped.Entries) != len(rows) {
		w.t.Errorf("dump %s says %d entries, %d came", r.Map, dumped.Entries, len(rows))
	}
	slices.Sort(rows)
	return rows
}

func fails(t *testing.T, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error()+strings.Join(fault.Hints(err), "\n"), text) {
		t.Errorf("error %v %q, want %v with %q", err, fault.Hints(err), kind, text)
	}
}

// TestKinds writes, reads, dumps and deletes an entry of each type that has
// entries.
func TestKinds(t *testing.T) {
	w := newWorld(t)
	perCPU := func(one, sum string) string {
		n := ebpf.MustPossibleCPU()
		return `{"per_cpu":[` + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + `],"sum":` + fmt.Sprintf(sum, n) + `}`
	}
	for _, test := range []struct {
		typ        ebpf.MapType
		key, value btf.Type
		k, v       string
		read       string // "" for v
		flags      uint32
	}{
		{typ: ebpf.Hash, key: u32, value: count, k: "7", v: `{"packets":1,"bytes":2}`},
		{typ: ebpf.LRUHash, key: ip, value: u32, k: `"10.0.0.1"`, v: "9"},
		{typ: ebpf.Array, key: u32, value: u32, k: "1", v: "9"},
		{typ: ebpf.PerCPUHash, key: u32, value: u32, k: "7", v: "1", read: perCPU("1", "%d")},
		{typ: ebpf.LRUCPUHash, key: u32, value: u8, k: "7", v: "1", read: perCPU("1", "%d")},
		{typ: ebpf.PerCPUArray, key: u32, value: count, k: "1", v: `{"packets":1,"bytes":0}`, read: perCPU(`{"packets":1,"bytes":0}`, `{"packets":%d,"bytes":0}`)},
		{typ: ebpf.LPMTrie, key: keyIP, value: u32, k: `"10.0.0.0/8"`, v: "1", flags: unix.BPF_F_NO_PREALLOC},
	} {
		name := TypeName(test.typ)
		keySize, _ := btf.Sizeof(test.key)
		valueSize, _ := btf.Sizeof(test.value)
		w.make(t, &ebpf.MapSpec{
			Name: name, Type: test.typ, Key: test.key, Value: test.value,
			KeySize: uint32(keySize), ValueSize: uint32(valueSize), MaxEntries: 4, Flags: test.flags,
		})
		if test.read == "" {
			test.read = test.v
		}
		if c := w.set(name, test.k, test.v); !c.Changed || string(c.Key) != test.k || string(c.Value) != test.read {
			t.Errorf("%s: set %+v", name, c)
		}
		if c := w.set(name, test.k, test.v); c.Changed || string(c.Previous) != test.read {
			t.Errorf("%s: set again %+v", name, c)
		}
		if got := w.get(name, test.k); got != test.read {
			t.Errorf("%s: get %s", name, got)
		}
		if c := w.set(name, test.k, test.read); c.Changed {
			t.Errorf("%s: writing what was read changes %+v", name, c)
		}
		if rows := w.dump(DumpRequest{Map: "mine/" + name}); !slices.Contains(rows, test.k+"="+test.read) {
			t.Errorf("%s: dump %q", name, rows)
		}
		w.deletes(name, test.k, kindOf(test.typ).fixed)
	}
}

func (w *world) deletes(name, key string, fixed bool) {
	w.t.Helper()
	request := DeleteRequest{Map: "mine/" + name, Key: key, DryRun: true}
	c, err := w.Delete(context.Background(), request)
	if fixed {
		fails(w.t, err, fault.ErrUnsupported, "always there")
		return
	}
	if err != nil || !c.Changed || c.Previous == nil {
		w.t.Errorf("%s: dry delete %+v, %v", name, c, err)
	}
	w.get(name, key)
	request.DryRun = false
	if c, err := w.Delete(context.Background(), request); err != nil || !c.Changed {
		w.t.Errorf("%s: delete %+v, %v", name, c, err)
	}
	if c, err := w.Delete(context.Background(), request); err != nil || c.Changed {
		w.t.Errorf("%s: delete again %+v, %v", name, c, err)
	}
}

func TestConditions(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "small", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 2})
	ctx := context.Background()
	set := func(key, value string, condition Condition, dry bool) (Change, error) {
		return w.Set(ctx, SetRequest{Map: "mine/small", Key: key, Value: value, Condition: condition, DryRun: dry})
	}
	_, err := set("1", "1", IfPresent, false)
	fails(t, err, fault.ErrNotFound, "the map is empty")
	if c, err := set("1", "1", IfAbsent, true); err != nil || !c.Changed {
		t.Errorf("dry run: %+v, %v", c, err)
	}
	if rows := w.dump(DumpRequest{Map: "mine/small"}); len(rows) != 0 {
		t.Errorf("a dry run wrote %q", rows)
	}
	if c, err := set("1", "1", IfAbsent, false); err != nil || !c.Changed {
		t.Errorf("if absent: %+v, %v", c, err)
	}
	if c, err := set("1", "1", IfAbsent, false); err != nil || c.Changed {
		t.Errorf("if absent, the same: %+v, %v", c, err)
	}
	_, err = set("1", "2", IfAbsent, false)
	fails(t, err, fault.ErrConflict, "there already")
	_, err = w.Set(ctx, SetRequest{Map: "mine/small", Key: "1", Value: "2", Condition: IfAbsent, ConditionWord: "noexist"})
	fails(t, err, fault.ErrConflict, "without noexist the value is replaced")
	if c, err := set("1", "2", IfPresent, false); err != nil || !c.Changed {
		t.Errorf("if present: %+v, %v", c, err)
	}
	w.set("small", "2", "2")
	_, err = set("3", "3", Always, false)
	fails(t, err, fault.ErrConflict, "full: 2 entries")
	fails(t, err, fault.ErrConflict, "load the program with a greater --max-entries")
	path := filepath.Join(string(w.root), "small")
	again, err := m.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Pin(path); err != nil {
		t.Fatal(err)
	}
	_, err = w.Set(ctx, SetRequest{Map: path, Key: "3", Value: "3"})
	fails(t, err, fault.ErrConflict, "bpfnet map create --max-entries")
	id, err := pinnedID(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Set(ctx, SetRequest{Map: reference(id), Key: "3", Value: "3"})
	fails(t, err, fault.ErrConflict, "of bpfnet load or bpfnet map create")
	_, err = set("1", "300", Always, false)
	fails(t, err, fault.ErrUsage, "300 is beyond 0..255")
	_, err = set("x", "1", Always, false)
	fails(t, err, fault.ErrUsage, "a key of mine/small is written 0..4294967295")
	_, err = w.Get(ctx, "mine/small", "9")
	fails(t, err, fault.ErrNotFound, "keys: ")
}

func TestReferences(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: ".bss", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	ctx := context.Background()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	path := w.root.Path("mine", pinned.Maps, ".bss")
	for _, ref := range []string{"mine/.bss", path, fmt.Sprintf("id:%d", id)} {
		shown, err := w.Show(ctx, ref)
		if err != nil || shown.ID != uint32(id) || shown.Name != ".bss" || shown.Type != "array" || !slices.Equal(shown.Pinned, []string{path}) {
			t.Errorf("show %s: %+v, %v", ref, shown, err)
		}
	}
	if got := w.get(".bss", "0"); got != `"hex:00000000"` {
		t.Errorf("a value without a type is %s", got)
	}
	for ref, kind := range map[string]error{
		"mine/nothing": fault.ErrNotFound, "other/.bss": fault.ErrNotFound, "bss": fault.ErrNotFound, "name:bss": fault.ErrNotFound, "name:": fault.ErrUsage, "id:4294967295": fault.ErrNotFound,
		"id:x": fault.ErrUsage, "/etc/passwd": fault.ErrUsage, filepath.Dir(path): fault.ErrUsage, "": fault.ErrUsage, "../x": fault.ErrNotFound,
	} {
		_, err := w.Show(ctx, ref)
		fails(t, err, kind, "")
	}
	_, err = w.Show(ctx, "mine/nothing")
	fails(t, err, fault.ErrNotFound, "maps: mine/.bss")
	_, err = w.Get(ctx, "mine/.bss", "1")
	fails(t, err, fault.ErrNotFound, "keys are 0..0")
	_, err = w.Set(ctx, SetRequest{Map: "mine/.bss", Key: "1", Value: "hex:00000000"})
	fails(t, err, fault.ErrNotFound, "keys are 0..0")
	listing, err := w.List(ctx)
	if err != nil || !slices.ContainsFunc(listing.Maps, func(m Map) bool { return m.Ref == "mine/.bss" && m.ID == uint32(id) }) {
		t.Errorf("list: %+v, %v", listing, err)
	}
}

func TestFrozen(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	frozen := w.make(t, &ebpf.MapSpec{Name: "frozen", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err := frozen.Freeze(); err != nil {
		t.Fatal(err)
	}
	_, err := w.Set(ctx, SetRequest{Map: "mine/frozen", Key: "0", Value: "hex:00000001"})
	fails(t, err, fault.ErrConflict, "frozen")
	if m, err := w.Show(ctx, "mine/frozen"); err != nil || !m.Frozen {
		t.Errorf("show: %+v, %v", m, err)
	}
}

func TestMapInMap(t *testing.T) {
	w := newWorld(t)
	inner := &ebpf.MapSpec{Name: "inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	w.make(t, inner)
	w.make(t, &ebpf.MapSpec{Name: "outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 3, InnerMap: inner})
	w.make(t, &ebpf.MapSpec{Name: "outerhash", Type: ebpf.HashOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 3, InnerMap: inner})
	shown, err := w.Show(context.Background(), "mine/inner")
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprint(shown.ID)
	for name, key := range map[string]string{"outer": "2", "outerhash": `"hex:02000000"`} {
		if c := w.set(name, key, "mine/inner"); !c.Changed || string(c.Value) != id {
			t.Errorf("%s: set %+v", name, c)
		}
		if c := w.set(name, key, id); c.Changed {
			t.Errorf("%s: set by id %+v", name, c)
		}
		if rows := w.dump(DumpRequest{Map: "mine/" + name}); !slices.Equal(rows, []string{key + "=" + id}) {
			t.Errorf("%s: dump %q", name, rows)
		}
		w.deletes(name, key, false)
	}
}

func TestLPM(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "trie", Type: ebpf.LPMTrie, Key: keyIP, Value: u32, KeySize: 20, ValueSize: 4, MaxEntries: 100, Flags: unix.BPF_F_NO_PREALLOC})
	ctx := context.Background()
	_, err := w.Get(ctx, "mine/trie", "10.0.0.0/8")
	fails(t, err, fault.ErrNotFound, "the map is empty")
	for i, prefix := range []string{"10.0.0.0/8", "10.1.0.0/16", "::/0", "2001:db8::/32", "10.1.2.3/32"} {
		if c := w.set("trie", prefix, fmt.Sprint(i)); !c.Changed || c.Previous != nil {
			t.Errorf("set %s: %+v", prefix, c)
		}
	}
	for _, prefix := range []string{"10.1.0.0/24", "10.0.0.0/9", "0.0.0.0/0", "2001:db8::/33", "10.2.0.0/16"} {
		_, err := w.Get(ctx, "mine/trie", prefix)
		fails(t, err, fault.ErrNotFound, "no such key")
	}
	for address, want := range map[string]string{"10.1.2.4": `"10.1.0.0/16"=1`, "10.2.0.0": `"10.0.0.0/8"=0`, "2001:db8::5": `"2001:db8::/32"=3`, "10.1.2.3": `"10.1.2.3/32"=4`, "192.0.2.1": `"::/0"=2`} {
		entry, err := w.Get(ctx, "mine/trie", address)
		if got := string(entry.Key) + "=" + string(entry.Value); err != nil || got != want {
			t.Errorf("get %s: %s, %v", address, got, err)
		}
	}
	if c := w.set("trie", "10.9.8.7/16", "5"); string(c.Key) != `"10.9.0.0/16"` {
		t.Errorf("set with host bits: %+v", c)
	}
	if rows := w.dump(DumpRequest{Map: "mine/trie", Match: "10.9"}); !slices.Equal(rows, []string{`"10.9.0.0/16"=5`}) {
		t.Errorf("dump of a prefix that was set with host bits: %q", rows)
	}
	if c := w.set("trie", "10.9.1.1/16", "5"); c.Changed {
		t.Errorf("set with other host bits: %+v", c)
	}
	if c, err := w.Delete(ctx, DeleteRequest{Map: "mine/trie", Key: "10.9.3.3/16"}); err != nil || !c.Changed {
		t.Errorf("delete with host bits: %+v, %v", c, err)
	}
	if c, err := w.Delete(ctx, DeleteRequest{Map: "mine/trie", Key: "10.1.0.0/24"}); err != nil || c.Changed {
		t.Errorf("delete of a longer prefix: %+v, %v", c, err)
	}
	_, err = w.Get(ctx, "mine/trie", "hex:81000000"+strings.Repeat("00", 16))
	fails(t, err, fault.ErrUsage, "prefix length 129: it must be 0..128")
}

// TestLPMOrder checks that after is the order of the kernel's walk: otherwise
// onlyForward would lose entries.
func TestLPMOrder(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "trie", Type: ebpf.LPMTrie, KeySize: 6, ValueSize: 4, MaxEntries: 5000, Flags: unix.BPF_F_NO_PREALLOC})
	random := rand.New(rand.NewPCG(1, 2))
	want := map[string]bool{}
	for range 4000 {
		key := append(word(uint32(random.IntN(17))), byte(random.IntN(256)), byte(random.IntN(256)))
		masked(key)
		if err := m.Put(key, uint32(1)); err != nil {
			t.Fatal(err)
		}
		want[string(key)] = true
	}
	rows := w.dump(DumpRequest{Map: "mine/trie"})
	if len(rows) != len(want) {
		t.Errorf("%d entries came of %d", len(rows), len(want))
	}
	for key := range want {
		h, err := w.open("mine/trie", true)
		if err != nil {
			t.Fatal(err)
		}
		there, err := h.hasPrefix([]byte(key))
		h.Close()
		if err != nil || !there {
			t.Fatalf("prefix %x isn't found: %v", key, err)
		}
	}
}

func TestDumpOptions(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "hosts", Type: ebpf.Hash, Key: ip, Value: u32, KeySize: 16, ValueSize: 4, MaxEntries: 100})
	for _, address := range []string{"10.0.0.1", "10.0.0.2", "10.1.0.1", "2001:db8::1"} {
		w.set("hosts", address, "1")
	}
	for match, n := range map[string]int{"": 4, "10.": 3, "10.0.": 2, "2001:": 1, "x": 0, "hex:00": 3, "hex:2001": 1} {
		if rows := w.dump(DumpRequest{Map: "mine/hosts", Match: match}); len(rows) != n {
			t.Errorf("match %q: %q", match, rows)
		}
	}
	if rows := w.dump(DumpRequest{Map: "mine/hosts", Match: "10.", Limit: 2}); len(rows) != 2 {
		t.Errorf("limit: %q", rows)
	}
	_, err := w.Dump(context.Background(), DumpRequest{Map: "mine/hosts", Match: "hex:0"}, nil)
	fails(t, err, fault.ErrUsage, "not hexadecimal")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := w.Dump(ctx, DumpRequest{Map: "mine/hosts"}, func(Row) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestWithoutBatches walks the ways that old kernels need.
func TestWithoutBatches(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "hash", Type: ebpf.Hash, Key: u32, KeySize: 4, Value: u32, ValueSize: 4, MaxEntries: 100})
	for n := range 50 {
		w.set("hash", fmt.Sprint(n), "1")
	}
	h, err := w.open("mine/hash", true)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	h.kind.batch = false
	seen := map[string]bool{}
	err = h.walk(context.Background(), func(key, _ []byte) error {
		if seen[string(key)] {
			return fmt.Errorf("%x came twice", key)
		}
		seen[string(key)] = true
		// Deleting where the walk stands makes the kernel begin again.
		if len(seen)%10 == 0 {
			return element(unix.BPF_MAP_DELETE_ELEM, m.FD(), key, nil, 0)
		}
		return nil
	})
	if err != nil || len(seen) != 50 {
		t.Errorf("%d entries came of 50: %v", len(seen), err)
	}
}

// TestBuiltinTypes reads a map whose BTF the kernel refuses, because an enum
// indexes it.
func TestBuiltinTypes(t *testing.T) {
	w := newWorld(t)
	program, ok := bpf.Lookup("pod-traffic")
	if !ok {
		t.Fatal("pod-traffic is gone")
	}
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	stage, err := w.root.NewStage("pods", pinned.Spec{Source: "pod-traffic", Builtin: true})
	if err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(spec.Maps["rows"])
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(stage.Path(pinned.Maps, "rows")); err != nil {
		t.Fatal(err)
	}
	if err := stage.Commit(); err != nil {
		t.Fatal(err)
	}
	entry, err := w.Get(context.Background(), "pods/rows", "tc_map_full")
	if err != nil || string(entry.Key) != `"TC_MAP_FULL"` || !strings.Contains(string(entry.Sum), `"transmit_bytes":0`) {
		t.Errorf("get: %+v, %v", entry, err)
	}
}

func TestEntries(t *testing.T) {
	w := newWorld(t)
	hash := w.make(t, &ebpf.MapSpec{Name: "hash", Type: ebpf.Hash, Key: u32, KeySize: 4, Value: u32, ValueSize: 4, MaxEntries: 100})
	array := w.make(t, &ebpf.MapSpec{Name: "array", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 100})
	w.set("hash", "1", "1")
	if n := Entries(hash); n == nil || *n != 1 {
		t.Errorf("entries of a hash: %v", n)
	}
	if n := Entries(array); n != nil {
		t.Errorf("entries of an array: %d", *n)
	}
}

// BenchmarkDump reads a hash of a million entries as JSON.
func BenchmarkDump(b *testing.B) {
	w := newWorld(b)
	const entries = 1_000_000
	m := w.make(b, &ebpf.MapSpec{Name: "million", Type: ebpf.Hash, Key: ip, KeySize: 16, Value: count, ValueSize: 16, MaxEntries: entries})
	keys, values := make([]byte, 16*entries), make([]byte, 16*entries)
	for i := range entries {
		copy(keys[16*i+12:], word(uint32(i)))
		copy(values[16*i:], word(uint32(i)))
	}
	if _, err := m.BatchUpdate(sliceOf(keys), sliceOf(values), nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		var size int
		dumped, err := w.Dump(context.Background(), DumpRequest{Map: "mine/million"}, func(row Row) error {
			size += len(row.Key) + len(row.Value)
			return nil
		})
		if err != nil || dumped.Entries != entries {
			b.Fatal(dumped.Entries, err)
		}
	}
	b.ReportMetric(float64(entries)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func sliceOf(b []byte) [][16]byte {
	out := make([][16]byte, len(b)/16)
	for i := range out {
		copy(out[i][:], b[16*i:])
	}
	return out
}
