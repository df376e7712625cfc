package bpftool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

// linkID returns the id of a link, which lives as long as the test.
func linkID(t testing.TB, l link.Link) uint32 {
	t.Helper()
	t.Cleanup(func() { l.Close() })
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return uint32(info.ID)
}

// sameLink compares a link with what bpftool shows of it in the network
// namespace of ns. 7.1 doesn't know the type of newer links, or prints nothing
// about it: added are the keys that newer bpftools add.
func sameLink(t *testing.T, ns string, id uint32, added ...string) Object {
	t.Helper()
	var theirs []byte
	if err := netns.Do(ns, func() (err error) {
		theirs, err = oracle(t, "link", "show", "id", fmt.Sprint(id))
		return err
	}); err != nil {
		t.Fatalf("bpftool link show id %d: %v: %s", id, err, theirs)
	}
	docs, err := New("", ns).Links(ctx, fmt.Sprintf("id:%d", id), false)
	doc := one(t, docs, err)
	sameBut(t, fmt.Sprint(doc.Get("type")), doc, theirs, added...)
	return doc
}

func TestLinksOfDevices(t *testing.T) {
	ns, other := testkit.Pair(t)
	xdp := mustProgram(t, ebpf.ProgramSpec{Name: "x", Type: ebpf.XDP})
	tc := mustProgram(t, ebpf.ProgramSpec{Name: "c", Type: ebpf.SchedCLS})
	index := deviceIn(t, ns, "a")
	var byXDP, byTCX link.Link
	if err := netns.Do(ns, func() (err error) {
		if byTCX, err = link.AttachTCX(link.TCXOptions{Program: tc, Interface: int(index), Attach: ebpf.AttachTCXEgress}); err != nil {
			return err
		}
		byXDP, err = link.AttachXDP(link.XDPOptions{Program: xdp, Interface: int(index), Flags: link.XDPGenericMode})
		return err
	}); err != nil {
		testkit.Needs(t, "TCX", err)
	}
	id := linkID(t, byXDP)
	if doc := sameLink(t, ns, id, "devname", "ifindex"); doc.Get("devname") != "a" || doc.Get("ifindex") != index {
		t.Errorf("xdp link %s", written(t, doc))
	}
	docs, err := New("", other).Links(ctx, fmt.Sprintf("id:%d", id), false)
	if doc := one(t, docs, err); doc.Get("devname") != "(unknown)" {
		t.Errorf("from another namespace the device isn't %v", doc.Get("devname"))
	}
	// 7.1 prints the number of the type, 11.
	docs, err = New("", ns).Links(ctx, fmt.Sprintf("id:%d", linkID(t, byTCX)), false)
	doc := one(t, docs, err)
	want := fmt.Sprintf(`{"id":%d,"type":"tcx","prog_id":%d,"devname":"a","ifindex":%d,"attach_type":"tcx_egress"}`, doc.Get("id"), programID(t, tc), index)
	if string(written(t, doc)) != want {
		t.Errorf("tcx link %s, want %s", written(t, doc), want)
	}
	if err := byXDP.Detach(); err != nil {
		t.Fatal(err)
	}
	docs, err = New("", ns).Links(ctx, fmt.Sprintf("id:%d", id), false)
	if doc := one(t, docs, err); doc.Get("devname") != "(detached)" || doc.Get("ifindex") != uint32(0) {
		t.Errorf("detached link %s", written(t, doc))
	}
}

func deviceIn(t testing.TB, ns, name string) (index uint32) {
	t.Helper()
	if err := netns.Do(ns, func() (err error) {
		index, err = deviceIndex(name)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return index
}

func TestLinksOfCgroups(t *testing.T) {
	cgroup := testkit.Cgroup(t)
	for attach, typ := range map[ebpf.AttachType]ebpf.ProgramType{
		ebpf.AttachCGroupInetIngress: ebpf.CGroupSKB, ebpf.AttachCGroupSockOps: ebpf.SockOps, ebpf.AttachCGroupInet6Connect: ebpf.CGroupSockAddr,
	} {
		p := mustProgram(t, ebpf.ProgramSpec{Name: "c", Type: typ, AttachType: attach})
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: attach, Program: p})
		if err != nil {
			t.Fatal(err)
		}
		doc := sameLink(t, "", linkID(t, l))
		inList(t, "link", doc)
	}
}

func TestLinksOfNamespaces(t *testing.T) {
	ns := testkit.NetNS(t)
	for attach, typ := range map[ebpf.AttachType]ebpf.ProgramType{ebpf.AttachFlowDissector: ebpf.FlowDissector, ebpf.AttachSkLookup: ebpf.SkLookup} {
		p := mustProgram(t, ebpf.ProgramSpec{Name: "n", Type: typ, AttachType: attach})
		sameLink(t, "", linkID(t, attachNetNS(t, ns, p, attach)))
	}
}

func attachNetNS(t testing.TB, ns string, p *ebpf.Program, attach ebpf.AttachType) link.Link {
	t.Helper()
	file, err := os.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(file.Fd()), Program: p, Attach: attach})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestLinksOfNetfilter(t *testing.T) {
	testkit.Needs(t, "netfilter programs", features.HaveProgramType(ebpf.Netfilter))
	ns := testkit.NetNS(t)
	p := mustProgram(t, ebpf.ProgramSpec{Name: "f", Type: ebpf.Netfilter, AttachType: ebpf.AttachNetfilter})
	l := attachNetfilter(t, ns, p)
	docs, err := New("", "").Links(ctx, fmt.Sprintf("id:%d", linkID(t, l)), false) // 7.1 doesn't know it
	doc := one(t, docs, err)
	want := fmt.Sprintf(`{"id":%d,"type":"netfilter","prog_id":%d,"pf":2,"hook":1,"prio":-128,"flags":0}`, doc.Get("id"), programID(t, p))
	if string(written(t, doc)) != want {
		t.Errorf("netfilter link %s, want %s", written(t, doc), want)
	}
}

func attachNetfilter(t testing.TB, ns string, p *ebpf.Program) (l link.Link) {
	t.Helper()
	if err := netns.Do(ns, func() (err error) {
		l, err = link.AttachNetfilter(link.NetfilterOptions{Program: p, ProtocolFamily: unix.NFPROTO_IPV4, Hook: link.NetfilterInetLocalIn, Priority: -128})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestLinksOfTracing(t *testing.T) {
	p := mustProgram(t, ebpf.ProgramSpec{Name: "r", Type: ebpf.RawTracepoint})
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_switch", Program: p})
	if err != nil {
		t.Fatal(err)
	}
	doc := sameLink(t, "", linkID(t, l), "cookie")
	if doc.Get("tp_name") != "sched_switch" {
		t.Errorf("raw tracepoint %s", written(t, doc))
	}
	typed := mustProgram(t, ebpf.ProgramSpec{Name: "t", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sched_switch", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 0), asm.Return(),
	}})
	if !testkit.HasMember("bpf_link_info", "raw_tracepoint.cookie") {
		t.Skip("this kernel has no cookies in the description of tracepoint links")
	}
	if l, err = link.AttachTracing(link.TracingOptions{Program: typed, AttachType: ebpf.AttachTraceRawTp, Cookie: 7}); err != nil {
		t.Fatal(err)
	}
	if doc = sameLink(t, "", linkID(t, l), "cookie"); doc.Get("cookie") != uint64(7) {
		t.Errorf("tp_btf %s", written(t, doc))
	}
}

// notTraceable is ENOTSUPP, the error of a kernel whose functions can't be traced;
// it isn't meant for user space and has no name there.
const notTraceable = unix.Errno(524)

// TestLinksOfFunctions tries fentry, which not every kernel has.
func TestLinksOfFunctions(t *testing.T) {
	p, err := tryProgram(t, ebpf.ProgramSpec{Name: "e", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: "vfs_read", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 0), asm.Return(),
	}})
	testkit.Needs(t, "fentry", err, unix.EPERM) // some kernels forbid it to everybody
	var cookie uint64                           // kernels that don't tell it have zero
	if testkit.HasMember("bpf_link_info", "tracing.cookie") {
		cookie = 7
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: p, AttachType: ebpf.AttachTraceFEntry, Cookie: cookie})
	testkit.Needs(t, "fentry", err, notTraceable)
	t.Cleanup(func() { l.Close() })
	doc := sameLink(t, "", linkID(t, l), "target_obj_id", "target_btf_id", "cookie")
	if doc.Get("prog_type") != "tracing" || doc.Get("attach_type") != "trace_fentry" || doc.Get("cookie") != cookie {
		t.Errorf("fentry %s", written(t, doc))
	}
}

// TestLinksOfPerfEvents checks what newer bpftools print; 7.1 prints nothing
// about such links.
func TestLinksOfPerfEvents(t *testing.T) {
	needsProbeDetails(t)
	event := mustProgram(t, ebpf.ProgramSpec{Name: "pe", Type: ebpf.PerfEvent})
	l := attachEvent(t, event, unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_PAGE_FAULTS, Sample: 1e9})
	doc := sameLink(t, "", linkID(t, l), "event_type", "event_config", "cookie")
	if doc.Get("event_type") != "software" || doc.Get("event_config") != "page-faults" {
		t.Errorf("perf event %s", written(t, doc))
	}
	id, err := tracepointID(t, "sched/sched_switch")
	if err != nil {
		t.Skipf("this machine has no tracefs: %v", err)
	}
	p := mustProgram(t, ebpf.ProgramSpec{Name: "tp", Type: ebpf.TracePoint})
	l = attachEvent(t, p, unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Sample: 1})
	if doc := sameLink(t, "", linkID(t, l), "tracepoint", "cookie"); doc.Get("tracepoint") != "sched_switch" {
		t.Errorf("tracepoint %s", written(t, doc))
	}
}

// needsProbeDetails skips a test on kernels that say of links on perf events only
// that there are some.
func needsProbeDetails(t *testing.T) {
	t.Helper()
	if !testkit.HasMember("bpf_link_info", "perf_event") {
		t.Skip("this kernel has no details of links on perf events")
	}
}

func attachEvent(t *testing.T, p *ebpf.Program, attr unix.PerfEventAttr) link.Link {
	t.Helper()
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: fd, Program: p, Attach: ebpf.AttachPerfEvent})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tracepointID reads the number of a tracepoint from a tracefs of its own.
func tracepointID(t *testing.T, name string) (uint64, error) {
	dir := t.TempDir()
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		return 0, err
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	text, err := os.ReadFile(filepath.Join(dir, "events", name, "id"))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// TestUprobesUntold describes a link as kernels before 6.8 tell of it: nothing.
func TestUprobesUntold(t *testing.T) {
	var doc Object
	err := describeUprobes(&doc, &linkInfo{linkHeader: linkHeader{typ: linkUprobeMulti}}, -1)
	if want := `{"retprobe":false,"path":"","func_cnt":0,"pid":0,"funcs":[]}`; err != nil || string(written(t, doc)) != want {
		t.Errorf("%s, %v, want %s", written(t, doc), err, want)
	}
}

// TestLinksOfProbes tries kprobes and uprobes, which not every kernel has.
func TestLinksOfProbes(t *testing.T) {
	needsProbeDetails(t)
	self, err := link.OpenExecutable("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	const offset = 0x1000
	for name, attach := range map[string]func(p *ebpf.Program) (link.Link, error){
		"kprobe": func(p *ebpf.Program) (link.Link, error) {
			return link.Kprobe("vfs_read", p, &link.KprobeOptions{Cookie: 3})
		},
		"uprobe": func(p *ebpf.Program) (link.Link, error) {
			return self.Uprobe("", p, &link.UprobeOptions{Address: offset, Cookie: 3})
		},
		"kprobe_multi": func(p *ebpf.Program) (link.Link, error) {
			return link.KprobeMulti(p, link.KprobeMultiOptions{Symbols: []string{"vfs_write", "vfs_read"}, Cookies: []uint64{2, 1}})
		},
		"uprobe_multi": func(p *ebpf.Program) (link.Link, error) {
			return self.UprobeMulti(nil, p, &link.UprobeMultiOptions{Addresses: []uint64{offset}, Cookies: []uint64{5}})
		},
	} {
		spec := ebpf.ProgramSpec{Name: "p", Type: ebpf.Kprobe}
		switch name {
		case "kprobe_multi":
			spec.AttachType = ebpf.AttachTraceKprobeMulti
		case "uprobe_multi":
			spec.AttachType = ebpf.AttachTraceUprobeMulti
		}
		p, err := tryProgram(t, spec)
		if err != nil {
			t.Logf("%s: this kernel has no such programs: %v", name, err)
			continue
		}
		l, err := attach(p)
		if err != nil {
			t.Logf("%s: this kernel has no such links: %v", name, err)
			continue
		}
		docs, err := New("", "").Links(ctx, fmt.Sprintf("id:%d", linkID(t, l)), false)
		text := string(written(t, one(t, docs, err)))
		t.Log(text)
		for _, want := range map[string][]string{
			"kprobe":       {`"type":"perf_event"`, `"retprobe":false`, `"func":"vfs_read"`, `"offset":0`, `"cookie":3`, `"missed":`},
			"uprobe":       {`"type":"perf_event"`, `"retprobe":false`, `"file":"/`, `"cookie":3`, `"ref_ctr_offset":0`},
			"kprobe_multi": {`"type":"kprobe_multi"`, `"func_cnt":2`, `"func":"vfs_read","module":null,"cookie":1`, `"func":"vfs_write"`},
			"uprobe_multi": {`"type":"uprobe_multi"`, `"func_cnt":1`, `"cookie":5`, `"path":"/`},
		}[name] {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %s lacks %s", name, text, want)
			}
		}
	}
}

func TestLinksOfIterators(t *testing.T) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "i", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for target, iterated := range map[string]*ebpf.Map{"task": nil, "bpf_map_elem": m} {
		p, err := tryProgram(t, ebpf.ProgramSpec{Name: "i", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: target, Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0), asm.Return(),
		}})
		if err != nil {
			t.Logf("this kernel has no iterators of %s: %v", target, err)
			continue
		}
		l, err := link.AttachIter(link.IterOptions{Program: p, Map: iterated})
		if err != nil {
			t.Fatal(err)
		}
		sameLink(t, "", linkID(t, l))
	}
}

func TestLinkReferences(t *testing.T) {
	root := testkit.Root(t)
	dir := filepath.Join(root, "mine", pinned.Links)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p := mustProgram(t, ebpf.ProgramSpec{Name: "r", Type: ebpf.RawTracepoint})
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_switch", Program: p})
	if err != nil {
		t.Fatal(err)
	}
	pin := filepath.Join(dir, "trace:r:x")
	if err := l.Pin(pin); err != nil {
		t.Fatal(err)
	}
	k := New(root, "")
	for ref, n := range map[string]int{"mine": 1, "mine/trace": 1, "mine/tr": 0} {
		if docs, err := k.Links(ctx, ref, false); len(docs) != n || (err == nil) != (n > 0) {
			t.Errorf("%s: %d links, %v", ref, len(docs), err)
		}
	}
	docs, err := k.Links(ctx, pin, false)
	doc := one(t, docs, err)
	theirs, err := oracle(t, "link", "show", "pinned", pin)
	if err != nil {
		t.Fatal(err)
	}
	sameBut(t, "pinned", doc, theirs, "cookie")
	if doc.Get("id") != linkID(t, l) {
		t.Errorf("%s is %s", pin, written(t, doc))
	}
	all, err := k.Links(ctx, "", false)
	if err != nil || !slices.ContainsFunc(all, func(d Object) bool { return d.Get("id") == doc.Get("id") }) {
		t.Errorf("it isn't among %d links, %v", len(all), err)
	}
	progPin := filepath.Join(root, "prog")
	if err := p.Pin(progPin); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]error{
		"id:4294967295": fault.ErrNotFound, "id:x": fault.ErrUsage, "name:x": fault.ErrUsage, "x": fault.ErrNotFound, pin + "x": fault.ErrNotFound, progPin: fault.ErrUsage, "/etc/passwd": fault.ErrUsage,
	} {
		if _, err := k.Links(ctx, ref, false); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", ref, err, want)
		}
	}
	runtime.KeepAlive(p)
}

func TestPerfConfig(t *testing.T) {
	for _, test := range []struct {
		typ    uint32
		config uint64
		want   any
	}{
		{0, 1, "instructions"}, {1, 9, "dummy"}, {1, 99, uint64(99)}, {4, 5, uint64(5)},
		{3, 0x10002, "LLC-load-misses"}, {3, 0x000063, "99-load-refs"}, {0, 1 << 32, uint64(1 << 32)},
	} {
		if got := perfConfig(test.typ, test.config); got != test.want {
			t.Errorf("event %d of type %d is %v, want %v", test.config, test.typ, got, test.want)
		}
	}
}

// TestKernelSymbols reads symbols as /proc/kallsyms has them.
func TestKernelSymbols(t *testing.T) {
	const text = "0000000000000000 A fixed\n0000000000001000 T first\n0000000000001000 t alias\n0000000000002000 t second\t[mod]\n"
	found := readSymbols(strings.NewReader(text), map[uint64]uint64{0x1000: 0, 0x2004: 0, 0x3000: 0})
	if len(found) != 2 || found[0x1000].name != "first" || found[0x1000].module != nil || found[0x2004].name != "second" || *found[0x2004].module != "mod" {
		t.Errorf("%+v", found)
	}
}

// TestLinksOfMaps checks a program on a sockmap; 7.1 doesn't know such links.
func TestLinksOfMaps(t *testing.T) {
	testkit.NeedsKernel(t)
	if !testkit.HasMember("bpf_link_info", "sockmap") {
		t.Skip("this kernel has no links on sockmaps")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "s", Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	mapID, _ := info.ID()
	p := mustProgram(t, ebpf.ProgramSpec{Name: "v", Type: ebpf.SkMsg, AttachType: ebpf.AttachSkMsgVerdict})
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: m.FD(), Program: p, Attach: ebpf.AttachSkMsgVerdict})
	if err != nil {
		t.Fatal(err)
	}
	docs, err := New("", "").Links(ctx, fmt.Sprintf("id:%d", linkID(t, l)), false)
	doc := one(t, docs, err)
	want := fmt.Sprintf(`{"id":%d,"type":"sockmap","prog_id":%d,"map_id":%d,"attach_type":"sk_msg_verdict"}`, doc.Get("id"), programID(t, p), mapID)
	if string(written(t, doc)) != want {
		t.Errorf("sockmap link %s, want %s", written(t, doc), want)
	}
}

// TestLinkDetails describes links of types that this machine may not have.
func TestLinkDetails(t *testing.T) {
	info := func(typ uint32, words ...uint32) *linkInfo {
		i := &linkInfo{linkHeader: linkHeader{typ: typ}}
		for at, word := range words {
			binary.NativeEndian.PutUint32(i.rest[4*at:], word)
		}
		return i
	}
	for _, test := range []struct {
		info *linkInfo
		want string
	}{
		{info(linkStructOps, 57), `{"map_id":57}`},
		{info(linkNetkit, 0, attachNetkitPeer), `{"devname":"(detached)","ifindex":0,"attach_type":"netkit_peer"}`},
		{info(linkTCX, 0, 200), `{"devname":"(detached)","ifindex":0,"attach_type":200}`},
		{info(linkKprobeMulti, 0, 0, 0, 1, 5), `{"retprobe":true,"func_cnt":0,"missed":5,"funcs":[]}`},
		{info(linkPerfEvent, 99), `{}`},
	} {
		var doc Object
		if err := linkDetails[test.info.typ](&doc, test.info, -1); err != nil || string(written(t, doc)) != test.want {
			t.Errorf("link of type %d is %s, %v, want %s", test.info.typ, written(t, doc), err, test.want)
		}
	}
	for config, want := range map[uint64]any{0: "cpu-cycles", 9: "ref-cycles", 10: uint64(10), 1 << 32: uint64(1 << 32)} {
		if got := perfConfig(0, config); got != want {
			t.Errorf("event %d is %v, want %v", config, got, want)
		}
	}
	if got := worded(netfilterFamilies, 4); got != uint32(4) {
		t.Errorf("a number between words is %v", got)
	}
	kprobe := probeFields(perfKretprobe, "vfs_read", perfInfo{offset: 4, values: [3]uint64{1 << 63, 2, 3}})
	if text := string(written(t, kprobe)); text != `{"retprobe":true,"addr":9223372036854775808,"func":"vfs_read","offset":4,"missed":2,"cookie":3}` {
		t.Errorf("kretprobe is %s", text)
	}
}
