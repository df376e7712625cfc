package maps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

// Types of every kind that BTF has.
var (
	i32   = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	char  = &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	u128  = &btf.Int{Name: "unsigned __int128", Size: 16}
	yesno = &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	color = &btf.Enum{Name: "color", Size: 4, Values: []btf.EnumValue{{Name: "RED", Value: 0}, {Name: "GREEN", Value: 1}}}
	level = &btf.Enum{Name: "level", Size: 8, Signed: true, Values: []btf.EnumValue{{Name: "LOW", Value: ^uint64(0)}, {Name: "HIGH", Value: 1 << 62}}}
	be16  = &btf.Typedef{Name: "__be16", Type: &btf.Int{Name: "unsigned short", Size: 2}}
	be32  = &btf.Typedef{Name: "__be32", Type: u32}
	inner = &btf.Union{Size: 4, Members: []btf.Member{{Name: "v4", Type: u32}, {Name: "bytes", Type: &btf.Array{Index: u32, Type: u8, Nelems: 4}}}}
	every = &btf.Struct{Name: "every", Size: 104, Members: []btf.Member{
		{Name: "a", Type: u32, BitfieldSize: 3},
		{Name: "b", Type: i32, Offset: 3, BitfieldSize: 29},
		{Type: inner, Offset: 32},
		{Name: "f", Type: float("float", i32), Offset: 64},
		{Name: "i", Type: i32, Offset: 96},
		{Name: "d", Type: float("double", u64), Offset: 128},
		{Name: "huge", Type: u128, Offset: 256},
		{Name: "text", Type: &btf.Array{Index: u32, Type: char, Nelems: 8}, Offset: 384},
		{Name: "level", Type: level, Offset: 448},
		{Name: "color", Type: color, Offset: 512},
		{Name: "port", Type: be16, Offset: 544},
		{Name: "flag", Type: u8, Offset: 560},
		{Name: "address", Type: in6, Offset: 576},
		{Name: "where", Type: be32, Offset: 704},
		{Name: "n", Type: &btf.Array{Index: u32, Type: u8, Nelems: 12}, Offset: 736},
	}}
	pair = &btf.Struct{Name: "pair", Size: 8, Members: []btf.Member{{Name: "port", Type: be16}, {Name: "pad", Type: be16, Offset: 16}, {Name: "addr", Type: be32, Offset: 32}}}
)

// float is a floating point type, on kernels that take none in BTF an integer of
// that size.
func float(name string, instead *btf.Int) btf.Type {
	if testkit.HasFloats() {
		return &btf.Float{Name: name, Size: instead.Size}
	}
	return instead
}

func (w *world) imports(name, source, input string, replace bool) (Imported, error) {
	return w.Import(context.Background(), ImportRequest{Map: "mine/" + name, Source: source, Input: strings.NewReader(input), Replace: replace})
}

func (w *world) mustImport(name, source, input string, replace bool) Imported {
	w.t.Helper()
	done, err := w.imports(name, source, input, replace)
	if err != nil {
		w.t.Fatalf("import %q: %v %q", shorten(input), err, fault.Hints(err))
	}
	return done
}

func shorten(text string) string { return text[:min(len(text), 300)] }

// counts are added, updated, unchanged, deleted, refused.
func counts(d Imported) [5]uint64 {
	return [5]uint64{d.Added, d.Updated, d.Unchanged, d.Deleted, d.Refused}
}

func (w *world) clear(name string) uint64 {
	w.t.Helper()
	done, err := w.Clear(context.Background(), ClearRequest{Map: "mine/" + name})
	if err != nil {
		w.t.Fatalf("clear %s: %v", name, err)
	}
	return *done.Removed
}

// rowsOf dumps a map as NDJSON, sorted.
func (w *world) rowsOf(name string) string {
	w.t.Helper()
	var rows []string
	_, err := w.Dump(context.Background(), DumpRequest{Map: "mine/" + name}, func(row Row) error {
		rows = append(rows, fmt.Sprintf("{\"key\":%s,\"value\":%s}\n", row.Key, row.Value))
		return nil
	})
	if err != nil {
		w.t.Fatalf("dump %s: %v", name, err)
	}
	slices.Sort(rows)
	return strings.Join(rows, "")
}

// bpftool dumps a map as bpftool -j or -p does.
func (w *world) bpftool(flag, name string) string {
	w.t.Helper()
	out, err := exec.Command("bpftool", flag, "map", "dump", "pinned", w.root.Path("mine", pinned.Maps, name)).Output()
	if err != nil {
		w.t.Fatalf("bpftool: %v", err)
	}
	return string(out)
}

// testedKinds are maps of every type that can be imported, with every kind of BTF.
func testedKinds() []*ebpf.MapSpec {
	spec := func(name string, typ ebpf.MapType, key, value btf.Type, flags uint32) *ebpf.MapSpec {
		keySize, _ := btf.Sizeof(key)
		valueSize, _ := btf.Sizeof(value)
		entries := uint32(64)
		if typ == ebpf.LRUHash || typ == ebpf.LRUCPUHash {
			entries = 8192 // of fewer, older kernels keep less than is written: each CPU sets 128 aside
		}
		return &ebpf.MapSpec{Name: name, Type: typ, Key: key, Value: value, KeySize: uint32(keySize), ValueSize: uint32(valueSize), MaxEntries: entries, Flags: flags}
	}
	plain := func(name string, typ ebpf.MapType, key, value uint32, flags uint32) *ebpf.MapSpec {
		return &ebpf.MapSpec{Name: name, Type: typ, KeySize: key, ValueSize: value, MaxEntries: 64, Flags: flags}
	}
	return []*ebpf.MapSpec{
		spec("hash", ebpf.Hash, pair, every, 0),
		spec("noprealloc", ebpf.Hash, ip, count, unix.BPF_F_NO_PREALLOC),
		spec("lru", ebpf.LRUHash, u64, every, 0),
		spec("array", ebpf.Array, u32, every, 0),
		spec("percpu", ebpf.PerCPUHash, u32, u8, 0),
		spec("percpustruct", ebpf.PerCPUHash, level, every, 0),
		spec("lrupercpu", ebpf.LRUCPUHash, u32, count, 0),
		spec("percpuarray", ebpf.PerCPUArray, u32, count, 0),
		spec("trie", ebpf.LPMTrie, keyIP, count, unix.BPF_F_NO_PREALLOC),
		spec("flags", ebpf.Hash, u32, yesno, 0),
		plain("rawhash", ebpf.Hash, 5, 3, 0),
		plain("rawarray", ebpf.Array, 4, 12, 0),
		plain("rawpercpu", ebpf.PerCPUHash, 3, 12, 0),
		plain("rawtrie", ebpf.LPMTrie, 7, 8, unix.BPF_F_NO_PREALLOC),
	}
}

// fill writes entries of random bytes.
func fill(t *testing.T, m *ebpf.Map, entries int, random *rand.Rand) {
	t.Helper()
	h, err := newBytes(m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		key, value := make([]byte, m.KeySize()), make([]byte, h.stride*h.cpus)
		scramble(key, random)
		for cpu := range h.cpus {
			scramble(value[cpu*h.stride:][:m.ValueSize()], random)
		}
		switch {
		case h.kind.indexed:
			key = word(uint32(i))
		case m.Type() == ebpf.LPMTrie:
			copy(key, word(uint32(random.IntN(8*(len(key)-4)+1))))
			masked(key)
		}
		if err := h.put(key, value, unix.BPF_ANY); err != nil {
			t.Fatal(err)
		}
	}
}

// scramble makes every third byte string text.
func scramble(b []byte, random *rand.Rand) {
	text := random.IntN(3) == 0
	for i := range b {
		b[i] = byte(random.IntN(256))
		if text {
			b[i] = "0123456789abcdef\x00\x01"[random.IntN(18)]
		}
	}
}

// TestImportRoundTrip dumps maps of every kind in both dialects, empties them,
// and imports the dumps.
func TestImportRoundTrip(t *testing.T) {
	w := newWorld(t)
	random := rand.New(rand.NewPCG(1, 2))
	for _, spec := range testedKinds() {
		m := w.make(t, spec)
		fill(t, m, 40, random)
		rows := w.rowsOf(spec.Name)
		array := "[" + strings.ReplaceAll(strings.TrimSpace(rows), "\n", ",") + "]"
		bytewise := w.bpftool("-j", spec.Name)
		var indented bytes.Buffer
		if err := json.Indent(&indented, []byte(array), " ", "  "); err != nil {
			t.Fatal(err)
		}
		for dialect, input := range map[string]string{"ndjson": rows, "json": array, "indented": indented.String(), "bpftool": bytewise, "bpftool -p": w.bpftool("-p", spec.Name)} {
			w.clear(spec.Name)
			if left := w.clear(spec.Name); left != 0 {
				t.Errorf("%s: clear left %d", spec.Name, left)
			}
			w.mustImport(spec.Name, "rows", input, false)
			if got := w.rowsOf(spec.Name); got != rows {
				t.Errorf("%s: %s: imported\n%s, was\n%s", spec.Name, dialect, shorten(got), shorten(rows))
			}
			if d := w.mustImport(spec.Name, "rows", input, true); d.Changed {
				t.Errorf("%s: %s: again: %+v", spec.Name, dialect, d)
			}
		}
	}
}

// TestImportObjects round-trips maps that hold maps and programs.
func TestImportObjects(t *testing.T) {
	w := newWorld(t)
	spec := &ebpf.MapSpec{Name: "inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	w.make(t, spec)
	w.make(t, &ebpf.MapSpec{Name: "outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 3, InnerMap: spec})
	w.make(t, &ebpf.MapSpec{Name: "outerhash", Type: ebpf.HashOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 3, InnerMap: spec})
	w.make(t, &ebpf.MapSpec{Name: "progs", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 3})
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	for name, object := range map[string]string{"outer": "mine/inner", "outerhash": "mine/inner", "progs": fmt.Sprint(id)} {
		one, two := "1", "2"
		if name == "outerhash" { // the kernel keeps no types of maps of maps
			one, two = `"hex:01000000"`, `"hex:02000000"`
		}
		w.mustImport(name, "lines", one+" "+object+"\n"+two+" "+object, false)
		rows, bytewise := w.rowsOf(name), w.bpftool("-j", name)
		if strings.Count(rows, "\n") != 2 {
			t.Errorf("%s: %s", name, rows)
		}
		for _, input := range []string{rows, bytewise} {
			if n := w.clear(name); n != 2 {
				t.Errorf("%s: %d cleared", name, n)
			}
			w.mustImport(name, "rows", input, false)
			if got := w.rowsOf(name); got != rows {
				t.Errorf("%s: imported %s, was %s", name, got, rows)
			}
		}
		d := w.mustImport(name, "rows", `{"key":`+one+`,"value":"`+object+`"}`, true)
		if counts(d) != [5]uint64{0, 0, 1, 1, 0} {
			t.Errorf("%s: replace: %+v", name, d)
		}
		_, err := w.imports(name, "rows", `{"value":4294967294,"key":`+one+`}`, false)
		fails(t, err, fault.ErrUsage, "rows:1:10: ")
	}
}

// TestImportDevices round-trips maps that packets are redirected by.
func TestImportDevices(t *testing.T) {
	w := newWorld(t)
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDPDevMap, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	for _, typ := range []ebpf.MapType{ebpf.DevMap, ebpf.DevMapHash} {
		name := TypeName(typ)
		w.make(t, &ebpf.MapSpec{Name: name, Type: typ, KeySize: 4, ValueSize: 8, MaxEntries: 4})
		key := func(n int) string {
			if typ == ebpf.DevMap {
				return fmt.Sprint(n)
			}
			return fmt.Sprintf(`"hex:%02x000000"`, n)
		}
		input := fmt.Sprintf(`{"key":%s,"value":{"ifindex":1,"prog_id":%d}}{"key":%s,"value":{"ifindex":1,"prog_id":0}}`, key(1), id, key(2))
		w.mustImport(name, "f", input, false)
		rows, bytewise := w.rowsOf(name), w.bpftool("-j", name)
		for _, input := range []string{rows, bytewise} {
			if n := w.clear(name); n != 2 {
				t.Errorf("%s: %d removed", name, n)
			}
			if w.mustImport(name, "f", input, true); w.rowsOf(name) != rows {
				t.Errorf("%s: %s became %s", name, rows, w.rowsOf(name))
			}
		}
		_, err := w.imports(name, "f", `{"key":`+key(1)+`,"value":{"ifindex":1,"prog_id":4294967294}}`, false)
		fails(t, err, fault.ErrUsage, "f:1:")
		done, err := w.imports(name, "f", `{"key":`+key(0)+`,"value":{"ifindex":4294967,"prog_id":0}}`, false)
		fails(t, err, fault.ErrPartial, "no interface has that ifindex")
		if counts(done) != [5]uint64{0, 0, 0, 0, 1} || done.Changed {
			t.Errorf("%s: %+v", name, done)
		}
	}
	w.make(t, &ebpf.MapSpec{Name: "sockets", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	_, err = w.imports("sockets", "f", "[]", true)
	fails(t, err, fault.ErrUnsupported, "socket")
}

// TestImportDenied ends at once when the map can't be written any more.
func TestImportDenied(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "bytes", Type: ebpf.Array, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 4})
	im := w.steps("bytes", "1 1\n2 2", false)
	if err := m.Freeze(); err != nil {
		t.Fatal(err)
	}
	fails(t, im.write(context.Background()), fault.ErrPermission, "change map mine/bytes")
	if im.done.Changed {
		t.Errorf("%+v", im.done)
	}
}

// TestImportLarge reads more than fits into the buffer, also in one entry, and
// knows where it is.
func TestImportLarge(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "counts", Type: ebpf.Hash, Key: u32, Value: count, KeySize: 4, ValueSize: 16, MaxEntries: 50_000})
	w.make(t, &ebpf.MapSpec{Name: "large", Type: ebpf.Array, Key: u32, Value: &btf.Array{Index: u32, Type: u8, Nelems: 300_000}, KeySize: 4, ValueSize: 300_000, MaxEntries: 2})
	var rows strings.Builder
	rows.WriteString("[\n")
	for n := range 50_000 {
		fmt.Fprintf(&rows, " {\"key\": %d, \"value\": {\"packets\": %d, \"bytes\": 1}},\n", n, n)
	}
	good := strings.TrimSuffix(rows.String(), ",\n") + "]"
	if d := w.mustImport("counts", "f", good, false); d.Added != 50_000 {
		t.Errorf("%+v", d)
	}
	_, err := w.Import(context.Background(), ImportRequest{Map: "mine/counts", Source: "f", Input: iotest.HalfReader(strings.NewReader(rows.String() + ` {"key": 1, "value": {"packets": -1, "bytes": 1}}]`))})
	fails(t, err, fault.ErrUsage, "f:50002:34: value: member \"packets\": -1")
	one := strings.Repeat("7, ", 299_999)
	if d := w.mustImport("large", "f", `{"key":0,"value":[`+one+`7]}{"key":1,"value":[`+one+`8]}`, false); d.Updated != 2 {
		t.Errorf("%+v", d)
	}
	_, err = w.imports("large", "f", `{"key":0,"value":[`+one+`300]}`, false)
	fails(t, err, fault.ErrUsage, fmt.Sprintf("f:1:%d: value: member \"[299999]\": 300", 19+len(one)))
}

// TestImportErrors checks what is said of input that is wrong, and that it
// changes nothing.
func TestImportErrors(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "bytes", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "counts", Type: ebpf.Hash, Key: pair, Value: count, KeySize: 8, ValueSize: 16, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "array", Type: ebpf.Array, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "percpu", Type: ebpf.PerCPUHash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "trie", Type: ebpf.LPMTrie, Key: keyIP, Value: u8, KeySize: 20, ValueSize: 1, MaxEntries: 4, Flags: unix.BPF_F_NO_PREALLOC})
	w.make(t, &ebpf.MapSpec{Name: "words", Type: ebpf.Hash, Key: u32, Value: &btf.Array{Index: u32, Type: char, Nelems: 4}, KeySize: 4, ValueSize: 4, MaxEntries: 4})
	w.set("bytes", "1", "1")
	many := strings.Repeat("1 300\n", 30)
	for _, test := range []struct{ name, source, input, want string }{
		// JSON
		{"bytes", "f", `{"key":1,"value":300}`, "f:1:18: value: 300 is beyond 0..255"},
		{"bytes", "f", "{\"key\":1,\"value\":2}\n {\"key\":\"x\",\"value\":3}", `f:2:9: key: "x" is not an integer`},
		{"bytes", "f", "[\n  {\"key\":1,\"value\":2},\n  {\"key\":1,\"value\":3}\n]", "f:3:10: key 1 has another value on line 2"},
		{"bytes", "f", "[{\"key\":1,\"value\":2}", "f:1:21: the JSON ends too early"},
		{"bytes", "f", "[{\"key\":1,\"value\":2},\n", "f:2:1: the JSON ends too early"},
		{"bytes", "f", "[{\"key\":1,\"va", "f:1:14: the JSON ends too early"},
		{"bytes", "f", "[{\"key\":1 \"value\":2}]", `f:1:11: '"' is neither ',' nor '}'`},
		{"bytes", "f", "{\"key\":1,\"value\":2}\n{\"key\":tru,\"value\":2}\n{\"key\":2,\"value\":256}", "f:2:8: 't' begins no JSON value"},
		{"bytes", "f", "{\"key\":1,\"value\":2}\n{\"key\":tru,\"value\":2}\n{\"key\":2,\"value\":256}", "f:3:18: value: 256 is beyond"},
		{"bytes", "f", "{\"key\":1,\"value\":01}", "f:1:18: the number isn't written as in JSON"},
		{"bytes", "f", "{\"key\":\"\\q\",\"value\":1}", "f:1:10: the string has a wrong escape"},
		{"bytes", "f", "{\"key\":\"\xff\",\"value\":1}", "f:1:8: the string is not UTF-8"},
		{"bytes", "f", "[1]", `f:1:2: '1' is not the '{' that must come here`},
		{"bytes", "f", "{\"value\":1}", `f:1:1: the entry has no member "key"`},
		{"bytes", "f", "{\"key\":1}", `f:1:1: the entry has no member "value"`},
		{"bytes", "f", "{\"key\":1,\"value\":1,\"other\":1}", `f:1:28: an entry has no member "other"`},
		{"bytes", "f", "{\"key\":1,\"key\":1}", `f:1:16: member "key" is there twice`},
		{"bytes", "f", `{"key":["0x01","0x00","0x1ff","0x00"],"value":["0x01"]}`, `f:1:23: key: member "[2]": "0x1ff" is not a byte`},
		{"bytes", "f", `{"key":["0x01","0x00"],"value":["0x01"]}`, "f:1:8: key: 2 bytes, 4 needed"},
		{"bytes", "f", `{"key":"hex:01","value":1}`, "is 1 byte, 4 needed"},
		{"counts", "f", "{\"key\":{\"port\":80,\n  \"addr\":\"10.0.0.1\"},\n \"value\":{\"packets\":1,\"bytes\":-2}}", `f:3:31: value: member "bytes": -2 is beyond`},
		{"counts", "f", "{\"key\":{\"port\":80},\"value\":{\"packets\":1,\"bytes\":2}}", `f:1:8: key: "addr" is missing`},
		{"array", "f", `{"key":4,"value":1}`, "f:1:8: key 4 is beyond the end: keys are 0..3"},
		{"percpu", "f", `{"key":4,"value":{"per_cpu":[1,2,3,4,5,6,7,8,9,10,11,12,13],"sum":3}}`, "per_cpu has 13 values"},
		{"percpu", "f", `{"key":4,"values":[{"cpu":0,"value":["0x01","0x01"]},{"cpu":1,"value":["0x01"]}]}`, "2 bytes, 1 needed"},
		{"percpu", "f", `{"key":4,"values":[{"cpu":0,"value":1},{"cpu":0,"value":1}]}`, "f:1:47: value: member \"[1].cpu\": 0 is not a CPU that is missing"},
		{"trie", "f", `{"key":"hex:8100000000000000000000000000000000000000","value":1}`, "f:1:8: prefix length 129"},
		{"trie", "f", "{\"key\":\"10.1.2.3/8\",\"value\":1}\n{\"key\":\"10.0.0.0/8\",\"value\":2}", "f:2:8: key 10.0.0.0/8 has another value on line 1"},
		{"counts", "f", "[{\n        \"key\": {", "f:1:1: bpftool prints numbers in network order differently"},
		// lines
		{"bytes", "f", "# comment\n\n1 1\n  2\t 300", "f:4:6: value: 300 is beyond 0..255"},
		{"bytes", "f", "# comment\nx", `f:2:1: key: "x" is not an integer`},
		{"counts", "f", "hex:0000000000000000", "f:1:1: the value is missing"},
		{"words", "f", "1 abcde", `f:1:3: value: "abcde" is longer than 4 bytes`},
		{"bytes", "f", "1 1\n1 2", "f:2:1: key 1 has another value on line 1"},
		{"bytes", "f", many, "30 errors: f:1:3: value: 300"},
		{"bytes", "f", many, "f:20:3: value: 300"},
		{"bytes", "f", many, "10 more"},
		// CSV
		{"bytes", "f.csv", "1,1\n2,300\n", "f.csv:2:3: value: 300 is beyond 0..255"},
		{"bytes", "f", "key,value\n1,1\n2,300\n", "f:3:3: value: 300 is beyond 0..255"},
		{"bytes", "f", "1,1\n2,\"3\n", "f:2:6: extraneous or missing"},
		{"bytes", "f", "1,1\n2,3\"\n", `f:2:4: bare "`},
		{"bytes", "f", "1,1,1\n", "f:1:5: more than two columns take a header that names them, like key,value"},
		{"counts", "f", "port,addr,packets,bytes\n80,10.0.0.1,1,2\n80,10.0.0,3,4\n", `f:3:4: key: member "addr": "10.0.0" is not`},
		{"counts", "f", "port,addr,packets,bytes\n80,10.0.0.1,1,x\n", `f:2:15: value: member "bytes": "x" is not an integer`},
		{"counts", "f", "port,addr,packets,bytes\n80,10.0.0.1,1\n", "f:2:1: 3 columns, the header has 4"},
		{"counts", "f", "port,addr,packets\n80,10.0.0.1,1\n", `f:2:13: value: "bytes" is missing`},
		{"trie", "f", "prefix,value\n10.0.0.0/33,1\n", "f:2:1: key: "},
	} {
		before := w.rowsOf(test.name)
		_, err := w.imports(test.name, test.source, test.input, true)
		fails(t, err, fault.ErrUsage, test.want)
		if after := w.rowsOf(test.name); after != before {
			t.Errorf("%q changed %s to %s", test.input, before, after)
		}
	}
}

// TestImportLong checks that what never ends is refused before it fills the
// memory.
func TestImportLong(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "words", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 4})
	for start, want := range map[string]string{
		"1 1\n":              "f:2:1: a line is longer than",
		"{\"key\":\"":        "f:1:1: an entry is longer than",
		"key,value\n1,1\n\"": "f:3:1: a record is longer than",
		"1,\"1\n\n\"\n\"":    "f:4:1: a record is longer than",
	} {
		endless := io.MultiReader(strings.NewReader(start), letters{})
		_, err := w.Import(context.Background(), ImportRequest{Map: "mine/words", Source: "f", Input: endless})
		fails(t, err, fault.ErrUsage, want)
	}
}

// letters is a reader that never ends.
type letters struct{}

func (letters) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte("a"), len(p))), nil }

// TestImportReplacePrefix checks that bits beyond the length of a prefix in the
// map don't make it another one, which would be deleted after it was written.
func TestImportReplacePrefix(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "trie", Type: ebpf.LPMTrie, Key: keyIP, Value: u8, KeySize: 20, ValueSize: 1, MaxEntries: 4, Flags: unix.BPF_F_NO_PREALLOC})
	w.set("trie", "10.0.0.1/8", "1")
	if done := w.mustImport("trie", "f", "10.0.0.0/8 1", true); done.Changed || done.Unchanged != 1 {
		t.Errorf("the same prefix: %+v", done)
	}
	if done := w.mustImport("trie", "f", "10.0.0.0/8 2", true); done.Updated != 1 || done.Deleted != 0 {
		t.Errorf("another value: %+v", done)
	}
	if rows := w.rowsOf("trie"); !strings.Contains(rows, `/8","value":2}`) {
		t.Errorf("the map has %s", rows)
	}
}

// TestImportFormats reads the same entries in every format.
func TestImportFormats(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "counts", Type: ebpf.Hash, Key: pair, Value: count, KeySize: 8, ValueSize: 16, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "limits", Type: ebpf.LPMTrie, Key: keyIP, Value: count, KeySize: 20, ValueSize: 16, MaxEntries: 4, Flags: unix.BPF_F_NO_PREALLOC})
	w.make(t, &ebpf.MapSpec{Name: "allow", Type: ebpf.Hash, Key: ip, Value: u8, KeySize: 16, ValueSize: 1, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "percpu", Type: ebpf.PerCPUHash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 4})
	countRow := `{"key":{"port":80,"pad":0,"addr":"10.0.0.1"},"value":{"packets":1,"bytes":2}}` + "\n"
	w.mustImport("counts", "f", countRow, true)
	countRow = w.rowsOf("counts")
	for _, test := range []struct{ name, source, input, want string }{
		{"counts", "f", "\ufeff" + countRow, countRow},
		{"counts", "f", strings.ReplaceAll(countRow, "\n", "\r\n"), countRow},
		{"counts", "f", "port,addr,packets,bytes\r\n80,10.0.0.1,1,2\r\n", countRow},
		{"counts", "f", "bytes,key.addr,packets,port\n2,10.0.0.1,1,80\n", countRow},
		{"counts", "f", "port,addr,value\n80,10.0.0.1,\"{\"\"packets\"\":1,\"\"bytes\"\":2}\"\n", countRow},
		{"counts", "f", "flow,packets,bytes\n\"{\"\"port\"\":80,\"\"addr\"\":\"\"10.0.0.1\"\"}\",1,2\n", countRow},
		{"limits", "f", "address,packets,bytes\n10.0.0.0/8,1,2\n", `{"key":"10.0.0.0/8","value":{"packets":1,"bytes":2}}` + "\n"},
		{"limits", "f", "10.1.2.3/8 {\"packets\": 1, \"bytes\": 2}", `{"key":"10.0.0.0/8","value":{"packets":1,"bytes":2}}` + "\n"},
		{"allow", "f", "# hosts\n10.0.0.1\n\n 10.0.0.1 1\r\n", `{"key":"10.0.0.1","value":1}` + "\n"},
		{"allow", "f", `"10.0.0.1" 1`, `{"key":"10.0.0.1","value":1}` + "\n"},
		{"allow", "f.csv", "key\n10.0.0.1\n", `{"key":"10.0.0.1","value":1}` + "\n"},
		{"allow", "f.csv", "10.0.0.1\n", `{"key":"10.0.0.1","value":1}` + "\n"},
		{"allow", "f", "[]", ""},
		{"allow", "f", `{"schema":"bpfnet.map_entry/v1","map":"m","map_id":4,"key":"10.0.0.1","value":1}`, `{"key":"10.0.0.1","value":1}` + "\n"},
		{"allow", "f", `[{"key":"10.0.0.1","value":1,"formatted":{"a":(unsupported-kind),"b":0x1}}]`, `{"key":"10.0.0.1","value":1}` + "\n"},
	} {
		w.mustImport(test.name, test.source, test.input, true)
		if got := w.rowsOf(test.name); got != test.want {
			t.Errorf("%q: %s, want %s", test.input, got, test.want)
		}
	}
	w.mustImport("percpu", "f", "1 7", false)
	if got := w.rowsOf("percpu"); !strings.Contains(got, `"per_cpu":[7`) || strings.Contains(got, "0,") {
		t.Errorf("one value for all CPUs: %s", got)
	}
}

// TestImportEmpty checks that an empty input, which a broken pipeline leaves,
// doesn't empty a map.
func TestImportEmpty(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "bytes", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 4})
	w.set("bytes", "1", "1")
	for _, input := range []string{"", "\n", "# nothing\n"} {
		_, err := w.imports("bytes", "f", input, true)
		fails(t, err, fault.ErrUsage, "f is empty")
		w.mustImport("bytes", "f", input, false)
	}
	for i, input := range []string{"[]", "key,value\n"} {
		if d := w.mustImport("bytes", "f", input, true); d.Deleted != uint64(1-i) {
			t.Errorf("%q: %+v", input, d)
		}
	}
	_, err := w.Import(context.Background(), ImportRequest{Map: "mine/bytes", Source: "f", Input: iotest.ErrReader(io.ErrClosedPipe)})
	if !errors.Is(err, io.ErrClosedPipe) || !strings.HasPrefix(err.Error(), "read f: ") {
		t.Errorf("a reader that fails: %v", err)
	}
}

// TestImportFull fills a map: what fits is in, the rest is told.
func TestImportFull(t *testing.T) {
	w := newWorld(t)
	for _, spec := range []*ebpf.MapSpec{
		{Name: "hash", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 100},
		{Name: "percpu", Type: ebpf.PerCPUHash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 100},
		{Name: "trie", Type: ebpf.LPMTrie, KeySize: 8, Value: u8, ValueSize: 1, MaxEntries: 100, Flags: unix.BPF_F_NO_PREALLOC},
	} {
		w.make(t, spec)
		key := func(n int) string {
			if spec.KeySize == 8 {
				return fmt.Sprintf("10.0.0.%d/32", n)
			}
			return fmt.Sprint(n)
		}
		lines := func(from, to int) string {
			var b strings.Builder
			for n := from; n < to; n++ {
				fmt.Fprintf(&b, "%s hex:01\n", key(n))
			}
			return b.String()
		}
		w.mustImport(spec.Name, "f", lines(0, 70), false)
		done, err := w.imports(spec.Name, "f", lines(50, 120), false)
		fails(t, err, fault.ErrPartial, "refused 20 of 50 changes: the map is full: it holds 100 entries")
		if counts(done) != [5]uint64{30, 0, 20, 0, 20} || len(done.Errors) != 20 || !done.Changed {
			t.Fatalf("%s: %+v", spec.Name, done)
		}
		first := done.Errors[0]
		if *first.Line != 51 || *first.Column != 1 || strings.Trim(string(first.Key), `"`) != key(100) {
			t.Errorf("%s: %d:%d %s", spec.Name, *first.Line, *first.Column, first.Key)
		}
		before := w.rowsOf(spec.Name)
		_, err = w.imports(spec.Name, "f", lines(0, 101), true)
		fails(t, err, fault.ErrConflict, "more keys than the 100 that fit")
		if w.rowsOf(spec.Name) != before {
			t.Errorf("%s: an input that is too long changed the map", spec.Name)
		}
		// The map is full: what goes has to make room for what comes.
		if d := w.mustImport(spec.Name, "f", lines(60, 160), true); counts(d) != [5]uint64{60, 0, 40, 60, 0} {
			t.Errorf("%s: replace: %+v", spec.Name, d)
		}
		if d := w.mustImport(spec.Name, "f", lines(150, 155), true); counts(d) != [5]uint64{0, 0, 5, 95, 0} {
			t.Errorf("%s: replace: %+v", spec.Name, d)
		}
	}
}

// TestImportTooLongForLRU refuses an input of which an LRU map would drop keys
// as soon as it has them.
func TestImportTooLongForLRU(t *testing.T) {
	w := newWorld(t)
	for _, typ := range []ebpf.MapType{ebpf.LRUHash, ebpf.LRUCPUHash} {
		name := TypeName(typ)
		m := w.make(t, &ebpf.MapSpec{Name: name, Type: typ, Key: u32, Value: u32, KeySize: 4, ValueSize: 4, MaxEntries: 16})
		var input strings.Builder
		for n := range m.MaxEntries() + 1 {
			fmt.Fprintf(&input, "%d 1\n", n)
		}
		_, err := w.imports(name, "f", input.String(), false)
		fails(t, err, fault.ErrConflict, fmt.Sprintf("more keys than the %d that fit", m.MaxEntries()))
		if rows := w.rowsOf(name); rows != "" {
			t.Errorf("%s: %s", name, rows)
		}
	}
}

// TestImportDryRun compares what a dry run says with what is done then.
func TestImportDryRun(t *testing.T) {
	w := newWorld(t)
	for _, spec := range testedKinds() {
		m := w.make(t, spec)
		random := rand.New(rand.NewPCG(3, 4))
		fill(t, m, 20, random)
		wanted := w.rowsOf(spec.Name)
		w.clear(spec.Name)
		fill(t, m, 10, random)
		before := w.rowsOf(spec.Name)
		for _, replace := range []bool{false, true} {
			r := ImportRequest{Map: "mine/" + spec.Name, Source: "f", Input: strings.NewReader(wanted), Replace: replace, DryRun: true}
			planned, err := w.Import(context.Background(), r)
			if err != nil {
				t.Fatal(err)
			}
			if w.rowsOf(spec.Name) != before {
				t.Errorf("%s: a dry run changed the map", spec.Name)
			}
			done := w.mustImport(spec.Name, "f", wanted, replace)
			if counts(done) != counts(planned) || !done.Changed || done.Entries != planned.Entries {
				t.Errorf("%s: planned %+v, done %+v", spec.Name, planned, done)
			}
			if replace && w.rowsOf(spec.Name) != wanted {
				t.Errorf("%s: replace: %s, want %s", spec.Name, shorten(w.rowsOf(spec.Name)), shorten(wanted))
			}
			w.clear(spec.Name)
			w.mustImport(spec.Name, "f", before, false)
		}
	}
}

// steps opens an import so that a test can do something between its steps.
func (w *world) steps(name, input string, replace bool) *importer {
	w.t.Helper()
	h, err := w.open("mine/"+name, false)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { h.Close() })
	im := w.newImporter(h, ImportRequest{Map: "mine/" + name, Source: "f", Input: strings.NewReader(input), Replace: replace})
	if err := im.read(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	if err := im.compare(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	return im
}

// TestImportTouchesOnlyDifferences counts on, as a program does, in entries that
// the input has as they were: that must not be overwritten.
func TestImportTouchesOnlyDifferences(t *testing.T) {
	w := newWorld(t)
	for _, typ := range []ebpf.MapType{ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash, ebpf.PerCPUArray, ebpf.Array, ebpf.Hash} {
		name := TypeName(typ)
		m := w.make(t, &ebpf.MapSpec{Name: name, Type: typ, Key: u32, Value: u64, KeySize: 4, ValueSize: 8, MaxEntries: 1000})
		var input strings.Builder
		for n := range 600 {
			fmt.Fprintf(&input, "%d 5\n", n)
		}
		w.mustImport(name, "f", input.String(), true)
		im := w.steps(name, input.String()+"700 5", true)
		h, err := newBytes(m)
		if err != nil {
			t.Fatal(err)
		}
		counted := bytes.Repeat(append(word(77), word(0)...), h.cpus)
		for n := range uint32(600) {
			if err := h.put(word(n), counted, unix.BPF_EXIST); err != nil {
				t.Fatal(err)
			}
		}
		if err := im.write(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := im.done.Added + im.done.Updated; got != 1 || im.done.Unchanged != 600 {
			t.Errorf("%s: %+v", name, im.done)
		}
		for n := range uint32(600) {
			if value, err := h.lookup(word(n)); err != nil || !bytes.Equal(value, counted) {
				t.Fatalf("%s: key %d was overwritten: %x, %v", name, n, value, err)
			}
		}
	}
}

// TestImportInterrupted checks that an interrupted import says how far it came.
func TestImportInterrupted(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "bytes", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 20_000})
	var input strings.Builder
	for n := range 20_000 {
		fmt.Fprintf(&input, "%d 5\n", n)
	}
	im := w.steps("bytes", input.String(), false)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := im.write(ctx)
	if !errors.Is(err, context.Canceled) || !slices.Contains(fault.Hints(err), "0 of 20000 changes were made; the same import again makes the rest") {
		t.Errorf("%v %q", err, fault.Hints(err))
	}
	_, err = w.Import(ctx, ImportRequest{Map: "mine/bytes", Source: "f", Input: strings.NewReader(input.String())})
	if !errors.Is(err, context.Canceled) || w.rowsOf("bytes") != "" {
		t.Errorf("cancelled before: %v", err)
	}
}

// TestImportReaders replaces entries while others read those that stay.
func TestImportReaders(t *testing.T) {
	w := newWorld(t)
	m := w.make(t, &ebpf.MapSpec{Name: "bytes", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 1000})
	w.mustImport("bytes", "f", "1 1\n2 1", true)
	stop, missed := make(chan struct{}), make(chan int)
	go func() {
		count := 0
		for {
			select {
			case <-stop:
				missed <- count
				return
			default:
			}
			var value uint8
			if m.Lookup(uint32(1), &value) != nil {
				count++
			}
		}
	}()
	for n := range 200 {
		w.mustImport("bytes", "f", fmt.Sprintf("1 %d\n%d 1\n", n, n+2), true)
	}
	close(stop)
	if n := <-missed; n > 0 {
		t.Errorf("readers missed an entry that stays %d times", n)
	}
}

// TestImportWithoutBatches writes as kernels without batches need it.
func TestImportWithoutBatches(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "bytes", Type: ebpf.Hash, Key: u32, Value: u8, KeySize: 4, ValueSize: 1, MaxEntries: 10})
	h, err := w.open("mine/bytes", false)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, noBatch := range []bool{false, true} {
		b := h.bulk()
		b.noBatch = noBatch
		var keys []byte
		for n := range uint32(12) {
			keys = append(keys, word(n)...)
		}
		tell := func(want ...error) func(int, error) {
			return func(i int, err error) {
				if wanted := want[min(i/10, len(want)-1)]; !errors.Is(err, wanted) {
					t.Errorf("without batches %v: entry %d: %v, want %v", noBatch, i, err, wanted)
				}
			}
		}
		b.apply(keys, bytes.Repeat([]byte{1}, 12), tell(nil, unix.E2BIG))
		b.apply(keys, nil, tell(nil, unix.ENOENT))
		if b.noBatch != noBatch {
			t.Errorf("refused entries are taken for missing batches")
		}
	}
}

// TestImportPlainDump refuses bpftool's dump without -j only where it would be
// misread.
func TestImportPlainDump(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "counts", Type: ebpf.Hash, Key: u32, Value: count, KeySize: 4, ValueSize: 16, MaxEntries: 4})
	w.make(t, &ebpf.MapSpec{Name: "pairs", Type: ebpf.Hash, Key: u32, Value: pair, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	w.set("counts", "7", `{"packets":1,"bytes":2}`)
	w.set("pairs", "7", `{"port":80,"addr":"10.0.0.1"}`)
	for name, kind := range map[string]error{"counts": nil, "pairs": fault.ErrUsage} {
		before := w.rowsOf(name)
		dump, err := exec.Command("bpftool", "map", "dump", "pinned", w.root.Path("mine", pinned.Maps, name)).Output()
		if err != nil {
			t.Fatal(err)
		}
		w.clear(name)
		_, err = w.imports(name, "f", string(dump), false)
		if !errors.Is(err, kind) {
			t.Errorf("%s: %s: %v", name, dump, err)
		}
		if kind == nil && w.rowsOf(name) != before {
			t.Errorf("%s: %s became %s", name, dump, w.rowsOf(name))
		}
	}
}

// FuzzImport feeds the reader of imports anything. What it accepts, written as
// rows, it has to read again as the same; what it refuses has to have a place.
func FuzzImport(f *testing.F) {
	w := newWorld(f)
	specs := testedKinds()
	var handles []*handle
	for _, spec := range specs {
		w.make(f, spec)
		h, err := w.open("mine/"+spec.Name, false)
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { h.Close() })
		handles = append(handles, h)
	}
	for i, seed := range []string{
		`[{"key":1,"value":2}]`, "1 2\n# x\n", "key,value\n1,2\n", `{"key":["0x01","0x00","0x00","0x00"],"values":[{"cpu":0,"value":["0x01"]}]}`,
		`{"key":"10.0.0.0/8","value":{"packets":1,"bytes":2}}`, "prefix,packets,bytes\n10.0.0.0/8,1,2", `{"key":1,"value":{"per_cpu":[1,2],"sum":3}}`,
		"\"1\" \"\\u0031\"", "[{\n        \"key\":1,\"value\":{}}]", `hex:0000000000 hex:000000`,
	} {
		f.Add(uint(i), false, seed)
	}
	f.Fuzz(func(t *testing.T, kind uint, csv bool, input string) {
		h := handles[kind%uint(len(handles))]
		source := map[bool]string{true: "f.csv", false: "f"}[csv]
		im := readOnly(t, w, h, source, input)
		if im.problems.count > 0 {
			checkPlaces(t, im.problems.first, source, input)
			return
		}
		var rows bytes.Buffer
		for i := range im.table.count {
			fmt.Fprintf(&rows, "{\"key\":%s,\"value\":%s}\n", h.keyJSON(im.table.key(i)), h.valueJSON(im.table.value(i)))
		}
		again := readOnly(t, w, h, "f", rows.String())
		if again.problems.count > 0 || again.table.count > im.table.count {
			t.Fatalf("%q became %q, which is refused: %q", input, rows.String(), again.problems.first)
		}
	})
}

func readOnly(t *testing.T, w *world, h *handle, source, input string) *importer {
	im := w.newImporter(h, ImportRequest{Source: source, Input: strings.NewReader(input)})
	if _, err := im.readInput(context.Background()); err != nil {
		t.Fatal(err)
	}
	return im
}

func checkPlaces(t *testing.T, problems []string, source, input string) {
	t.Helper()
	lines := strings.Split(strings.TrimPrefix(input, "\ufeff"), "\n")
	for _, problem := range problems {
		var line, column int
		if _, err := fmt.Sscanf(strings.TrimPrefix(problem, source), ":%d:%d: ", &line, &column); err != nil {
			t.Fatalf("%q has no place: %v", problem, err)
		}
		if line < 1 || line > len(lines)+1 || column < 1 || line <= len(lines) && column > len(lines[line-1])+2 {
			t.Fatalf("%q of %q is nowhere", problem, input)
		}
	}
}

// TestNetworkAddresses writes a __be32 key and value as people do.
func TestNetworkAddresses(t *testing.T) {
	w := newWorld(t)
	w.make(t, &ebpf.MapSpec{Name: "lru", Type: ebpf.LRUHash, KeySize: 4, ValueSize: 4, MaxEntries: 8, Key: be32, Value: be32})
	for _, key := range []string{"10.0.0.1", "167772161", "hex:0a000001"} {
		if c := w.set("lru", key, "5"); string(c.Key) != `"10.0.0.1"` || string(c.Value) != `"0.0.0.5"` {
			t.Errorf("set %s: %s %s", key, c.Key, c.Value)
		}
	}
	rows := w.rowsOf("lru")
	if want := "{\"key\":\"10.0.0.1\",\"value\":\"0.0.0.5\"}\n"; rows != want {
		t.Errorf("dump %s, want %s", rows, want)
	}
	w.clear("lru")
	w.mustImport("lru", "f", rows, true)
	if again := w.rowsOf("lru"); again != rows {
		t.Errorf("after dump and import %s, not %s", again, rows)
	}
}
