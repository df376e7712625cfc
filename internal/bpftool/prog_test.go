package bpftool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

var ctx = context.Background()

// written is a document as JSON.
func written(t testing.TB, doc any) []byte {
	t.Helper()
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// sameBut compares a document with bpftool's. added are the keys that bpftool
// 7.1 doesn't have and newer ones do: ours must have them.
func sameBut(t *testing.T, what string, ours Object, theirs []byte, added ...string) {
	t.Helper()
	var kept Object
	for _, f := range ours {
		if at := indexOf(added, f.Name); at >= 0 {
			added = append(added[:at:at], added[at+1:]...)
			continue
		}
		kept = append(kept, f)
	}
	if len(added) > 0 {
		t.Errorf("%s: %s lacks %q", what, written(t, ours), added)
	}
	equal(t, what, written(t, kept), theirs)
}

func indexOf(words []string, word string) int {
	for i, w := range words {
		if w == word {
			return i
		}
	}
	return -1
}

// mustProgram loads a program that does nothing.
func mustProgram(t testing.TB, spec ebpf.ProgramSpec) *ebpf.Program {
	t.Helper()
	p, err := tryProgram(t, spec)
	if err != nil {
		t.Fatalf("load %s: %v", spec.Name, err)
	}
	return p
}

func tryProgram(t testing.TB, spec ebpf.ProgramSpec) (*ebpf.Program, error) {
	testkit.NeedsKernel(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	if spec.Instructions == nil {
		spec.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
	}
	if spec.License == "" {
		spec.License = "GPL"
	}
	p, err := ebpf.NewProgram(&spec)
	if err == nil {
		t.Cleanup(func() { p.Close() })
	}
	return p, err
}

func programID(t testing.TB, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return uint32(id)
}

// one returns the only document of several.
func one(t testing.TB, docs []Object, err error) Object {
	t.Helper()
	if err != nil || len(docs) != 1 {
		t.Fatalf("%d documents, %v: %s", len(docs), err, written(t, docs))
	}
	return docs[0]
}

// sameProgram compares a program with what bpftool shows of it. The time of
// loading is rounded by two clocks that aren't read at once, so it may take a
// second attempt.
func sameProgram(t *testing.T, id uint32) {
	t.Helper()
	var ours Object
	var theirs []byte
	for range 3 {
		var err error
		if theirs, err = oracle(t, "prog", "show", "id", fmt.Sprint(id)); err != nil {
			t.Fatalf("bpftool prog show id %d: %v: %s", id, err, theirs)
		}
		docs, err := New("", "").Programs(ctx, fmt.Sprintf("id:%d", id), false)
		ours = one(t, docs, err)
		if strings.Contains(string(theirs), fmt.Sprintf(`"loaded_at":%d`, ours.Get("loaded_at"))) {
			break
		}
	}
	sameBut(t, fmt.Sprint(ours.Get("type"), " ", ours.Get("name")), ours, theirs, "orphaned")
}

// TestProgramTypes compares a program of every type that this kernel has.
func TestProgramTypes(t *testing.T) {
	cgroup := func(typ ebpf.ProgramType, attach ebpf.AttachType) ebpf.ProgramSpec {
		return ebpf.ProgramSpec{Type: typ, AttachType: attach}
	}
	missing := map[string]bool{}
	for _, spec := range []ebpf.ProgramSpec{
		{Type: ebpf.SocketFilter}, {Type: ebpf.SchedCLS}, {Type: ebpf.SchedACT}, {Type: ebpf.XDP}, {Type: ebpf.Kprobe},
		{Type: ebpf.TracePoint}, {Type: ebpf.PerfEvent}, {Type: ebpf.RawTracepoint}, {Type: ebpf.RawTracepointWritable},
		{Type: ebpf.LWTIn}, {Type: ebpf.LWTOut}, {Type: ebpf.LWTXmit}, {Type: ebpf.LWTSeg6Local}, {Type: ebpf.SockOps},
		{Type: ebpf.SkSKB}, {Type: ebpf.SkMsg}, {Type: ebpf.FlowDissector}, {Type: ebpf.SkReuseport},
		{Type: ebpf.CGroupDevice}, {Type: ebpf.CGroupSysctl}, {Type: ebpf.Netfilter}, {Type: ebpf.LircMode2},
		{Type: ebpf.Syscall, Flags: 16}, // BPF_F_SLEEPABLE
		cgroup(ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress),
		cgroup(ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate),
		cgroup(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect),
		cgroup(ebpf.CGroupSockopt, ebpf.AttachCGroupGetsockopt),
		cgroup(ebpf.SkLookup, ebpf.AttachSkLookup),
	} {
		spec.Name = "n_" + strings.ToLower(spec.Type.String())
		if len(spec.Name) > 14 {
			spec.Name = spec.Name[:14]
		}
		if spec.Type == ebpf.Netfilter {
			spec.AttachType = ebpf.AttachNetfilter
		}
		p, err := tryProgram(t, spec)
		if errors.Is(err, ebpf.ErrNotSupported) || err != nil && strings.Contains(err.Error(), "invalid argument") {
			missing[spec.Name] = true
			continue
		}
		if err != nil {
			t.Fatalf("load %s: %v", spec.Type, err)
		}
		if spec.Type == ebpf.Netfilter { // bpftool 7.1 has no word for it
			docs, err := New("", "").Programs(ctx, fmt.Sprintf("id:%d", programID(t, p)), false)
			if got := one(t, docs, err).Get("type"); got != "netfilter" {
				t.Errorf("type of a netfilter program is %v", got)
			}
			continue
		}
		sameProgram(t, programID(t, p))
	}
	t.Logf("this kernel doesn't have %v", missing)
}

// TestBuiltinPrograms compares the built-in programs: long names, maps, BTF, and
// what they tell about themselves.
func TestBuiltinPrograms(t *testing.T) {
	testkit.NeedsKernel(t)
	for _, program := range bpf.Catalogue() {
		spec, err := program.Spec()
		if err != nil {
			t.Fatal(err)
		}
		collection, err := newCollection(program, spec)
		if err != nil && len(program.Mechanisms) > 0 {
			t.Logf("load %s: %v", program.Name, err) // this kernel has none of them
			continue
		}
		if err != nil {
			t.Fatalf("load %s: %v", program.Name, err)
		}
		for _, p := range collection.Programs {
			sameProgram(t, programID(t, p))
		}
		collection.Close()
	}
}

// newCollection loads a program by the first of its mechanisms that works.
func newCollection(program bpf.Program, spec *ebpf.CollectionSpec) (collection *ebpf.Collection, err error) {
	if len(program.Mechanisms) == 0 {
		return ebpf.NewCollection(spec)
	}
	for _, mechanism := range program.Mechanisms {
		some := spec.Copy()
		for _, name := range mechanism.Without {
			delete(some.Programs, name)
		}
		if collection, err = ebpf.NewCollection(some); err == nil {
			return collection, nil
		}
	}
	return nil, err
}

func TestProgramThatRan(t *testing.T) {
	p := mustProgram(t, ebpf.ProgramSpec{Name: "ran", Type: ebpf.SchedCLS, License: "none"})
	stats, err := ebpf.EnableStats(0)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	if _, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 1000}); err != nil {
		t.Fatal(err)
	}
	id := programID(t, p)
	docs, err := New("", "").Programs(ctx, fmt.Sprintf("id:%d", id), false)
	if doc := one(t, docs, err); doc.Get("run_cnt") != uint64(1000) || doc.Get("gpl_compatible") != false {
		t.Errorf("it ran 1000 times: %s", written(t, doc))
	}
	sameProgram(t, id)
}

// TestMetadata compares what a program tells about itself in .rodata.
func TestMetadata(t *testing.T) {
	testkit.NeedsKernel(t)
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Char}
	variables := []btf.VarSecinfo{
		{Type: &btf.Var{Name: "bpf_metadata_a", Type: &btf.Array{Type: char, Index: &btf.Int{Size: 4}, Nelems: 4}}, Offset: 0, Size: 4},
		{Type: &btf.Var{Name: "other", Type: &btf.Int{Name: "int", Size: 4}}, Offset: 4, Size: 4},
		{Type: &btf.Var{Name: "bpf_metadata_b", Type: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}}, Offset: 8, Size: 4},
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "x.rodata", Type: ebpf.Array, KeySize: 4, ValueSize: 12, MaxEntries: 1,
		Key: &btf.Void{}, Value: &btf.Datasec{Name: ".rodata", Size: 12, Vars: variables},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), []byte("foo\x00\x01\x00\x00\x00\xff\xff\xff\xff")); err != nil {
		t.Fatal(err)
	}
	p := mustProgram(t, ebpf.ProgramSpec{Name: "tells", Type: ebpf.SocketFilter, Instructions: asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Imm(asm.R0, 0), asm.Return(),
	}})
	docs, err := New("", "").Programs(ctx, "name:tells", false)
	if doc := one(t, docs, err); string(written(t, doc.Get("metadata"))) != `{"a":"foo","b":-1}` {
		t.Errorf("it tells %s", written(t, doc))
	}
	sameProgram(t, programID(t, p))
}

// TestProgramReferences asks for programs in every way that bpftool knows, and
// by the names of loaded instances.
func TestProgramReferences(t *testing.T) {
	root := testkit.Root(t)
	dir := filepath.Join(root, "mine", pinned.Progs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("hb%d", os.Getpid()%100000)
	for _, pin := range []string{"first", "second"} {
		p := mustProgram(t, ebpf.ProgramSpec{Name: name, Type: ebpf.SocketFilter, Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, int32(os.Getpid())), asm.Return(), // a tag of its own
		}})
		if err := p.Pin(filepath.Join(dir, pin)); err != nil {
			t.Fatal(err)
		}
	}
	k := New(root, "")
	pin := filepath.Join(dir, "first")
	docs, err := k.Programs(ctx, pin, false)
	first := one(t, docs, err)
	tag := first.Get("tag").(string)
	for ref, words := range map[string][]string{
		"name:" + name: {"name", name},
		"tag:" + tag:   {"tag", tag},
		pin:            {"pinned", pin},
	} {
		docs, err := k.Programs(ctx, ref, false)
		if err != nil {
			t.Fatal(err)
		}
		var theirs []byte
		for range 10 { // it gives up when another program goes while it looks
			if theirs, err = oracle(t, append([]string{"prog", "show"}, words...)...); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatalf("bpftool prog show %q: %v", words, err)
		}
		sameList(t, strings.Join(words, " "), docs, theirs, "orphaned")
	}
	for ref, n := range map[string]int{"mine": 2, "mine/second": 1} {
		if docs, err := k.Programs(ctx, ref, false); err != nil || len(docs) != n {
			t.Errorf("%s: %d programs, %v", ref, len(docs), err)
		}
	}
	for ref, want := range map[string]error{
		"id:4294967295": fault.ErrNotFound, "id:x": fault.ErrUsage, "tag:12": fault.ErrUsage, "name:none-such": fault.ErrNotFound,
		"mine/third": fault.ErrNotFound, "none": fault.ErrNotFound, filepath.Join(dir, "third"): fault.ErrNotFound, dir: fault.ErrUsage,
	} {
		if docs, err := k.Programs(ctx, ref, false); !errors.Is(err, want) {
			t.Errorf("%s: %d programs, %v, want %v", ref, len(docs), err, want)
		}
	}
	inList(t, "prog", first, "orphaned")
}

// sameList compares documents with bpftool's answer, in which one isn't an
// array.
func sameList(t *testing.T, what string, docs []Object, theirs []byte, added ...string) {
	t.Helper()
	if len(docs) == 1 {
		sameBut(t, what, docs[0], theirs, added...)
		return
	}
	var list []json.RawMessage
	if err := json.Unmarshal(theirs, &list); err != nil || len(list) != len(docs) {
		t.Errorf("%s: ours has %d, bpftool: %s", what, len(docs), theirs)
		return
	}
	for i, doc := range docs {
		sameBut(t, what, doc, list[i], added...)
	}
}

// inList looks for a document in bpftool's list of all.
func inList(t *testing.T, kind string, doc Object, added ...string) {
	t.Helper()
	theirs, err := oracle(t, kind, "list")
	for tries := 0; err != nil && strings.Contains(string(theirs), "temporarily unavailable") && tries < 10; tries++ {
		theirs, err = oracle(t, kind, "list") // it met a link that another test was making
	}
	var list []json.RawMessage
	if err != nil || json.Unmarshal(theirs, &list) != nil {
		t.Fatalf("bpftool %s list: %v: %s", kind, err, theirs)
	}
	for _, item := range list {
		if strings.HasPrefix(string(item), fmt.Sprintf(`{"id":%d,`, doc.Get("id"))) {
			sameBut(t, kind+" list", doc, item, added...)
			return
		}
	}
	t.Errorf("bpftool %s list lacks %v", kind, doc.Get("id"))
}

// TestHolders checks that the document of a program or link names a process that
// has it open, however it was opened.
func TestHolders(t *testing.T) {
	p := mustProgram(t, ebpf.ProgramSpec{Name: "held", Type: ebpf.RawTracepoint})
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_switch", Program: p})
	if err != nil {
		t.Fatal(err)
	}
	id := linkID(t, l)
	again, err := linkKind.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(again)
	for kind, fd := range map[string]int{"program": p.FD(), "link": again} {
		pid, end := testkit.Hold(t, fd)
		docs, err := New("", "").Programs(ctx, fmt.Sprintf("id:%d", programID(t, p)), true)
		if kind == "link" {
			docs, err = New("", "").Links(ctx, fmt.Sprintf("id:%d", id), true)
		}
		end()
		want := fmt.Sprintf(`[{"pid":%d,"comm":"sleep"}]`, pid)
		if doc := one(t, docs, err); string(written(t, doc.Get("pids"))) != want {
			t.Errorf("the %s is held by %s: %s", kind, want, written(t, doc))
		}
	}
}

// TestObjectOrder checks that keys stay in their order.
func TestObjectOrder(t *testing.T) {
	o := Object{{"b", 1}, {"a", []int{}}}
	if text := string(written(t, o)); text != `{"b":1,"a":[]}` || !reflect.DeepEqual(o.Get("b"), 1) || o.Get("c") != nil {
		t.Error(text)
	}
}
