package bpftool

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
	"bpfnet/internal/testkit"
)

// sameCgroup compares what is attached to a cgroup with what bpftool shows.
func sameCgroup(t *testing.T, path string) Cgroup {
	t.Helper()
	theirs, err := oracle(t, "cgroup", "show", path)
	if err != nil {
		t.Fatalf("bpftool cgroup show: %v: %s", err, theirs)
	}
	c, err := New("", "").Cgroup(ctx, path, false)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "cgroup show", written(t, c.Bpftool()), theirs)
	return c
}

// cgroupPrograms attaches a program to many hooks of a cgroup.
func cgroupPrograms(t *testing.T, cgroup string) {
	t.Helper()
	for i, spec := range []ebpf.ProgramSpec{
		{Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetIngress},
		{Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress},
		{Type: ebpf.CGroupSock, AttachType: ebpf.AttachCGroupInetSockCreate},
		{Type: ebpf.CGroupSock, AttachType: ebpf.AttachCgroupInetSockRelease},
		{Type: ebpf.CGroupSock, AttachType: ebpf.AttachCGroupInet4PostBind},
		{Type: ebpf.SockOps, AttachType: ebpf.AttachCGroupSockOps},
		{Type: ebpf.CGroupDevice, AttachType: ebpf.AttachCGroupDevice},
		{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Bind},
		{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet6Connect},
		{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupUDP4Recvmsg},
		{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCgroupInet4GetPeername},
		{Type: ebpf.CGroupSysctl, AttachType: ebpf.AttachCGroupSysctl},
		{Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupGetsockopt},
		{Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupSetsockopt},
	} {
		spec.Name = fmt.Sprintf("c%d", i)
		p := mustProgram(t, spec)
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: spec.AttachType, Program: p})
		if err != nil {
			t.Fatalf("attach %v: %v", spec.AttachType, err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

// needsQueries skips a test on kernels that refuse how bpftool 7.1 asks for the
// programs of cgroups.
func needsQueries(t *testing.T) {
	t.Helper()
	if !testkit.HasMember("bpf_attr", "query.prog_attach_flags") {
		t.Skip("this kernel has no queries as bpftool 7.1 makes them")
	}
}

func TestCgroup(t *testing.T) {
	needsQueries(t)
	cgroup := testkit.Cgroup(t)
	c, err := New("", "").Cgroup(ctx, cgroup, false)
	if err != nil || string(written(t, c.Bpftool())) != "[]" {
		t.Fatalf("an empty cgroup has %s, %v", written(t, c.Bpftool()), err)
	}
	if theirs, err := oracle(t, "cgroup", "show", cgroup); err != nil || strings.TrimSpace(string(theirs)) != "" {
		t.Errorf("of an empty cgroup bpftool prints %q, %v", theirs, err)
	}
	cgroupPrograms(t, cgroup)
	if c = sameCgroup(t, cgroup); len(c.Programs) != 14 {
		t.Errorf("it has %d programs", len(c.Programs))
	}
	for _, row := range c.Rows() {
		if value(row.Mechanism) != "link" || row.LinkID == nil || *row.Flags != "multi" || !strings.HasPrefix(row.Hook, "cgroup_") {
			t.Errorf("row %s", written(t, row))
		}
	}
}

// TestCgroupFlags compares programs that were attached without a link, with each
// of the flags.
func TestCgroupFlags(t *testing.T) {
	needsQueries(t)
	for word, flags := range map[string]uint32{"exclusive": 0, "override": unix.BPF_F_ALLOW_OVERRIDE, "multi": unix.BPF_F_ALLOW_MULTI} {
		cgroup := testkit.Cgroup(t)
		p := mustProgram(t, ebpf.ProgramSpec{Name: "a_name_of_16_byt", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress})
		attachCgroup(t, cgroup, p, ebpf.AttachCGroupInetEgress, flags)
		row := sameCgroup(t, cgroup).Rows()[0]
		if *row.Flags != word || value(row.Mechanism) != "attach" || row.LinkID != nil {
			t.Errorf("%s: row %s", word, written(t, row))
		}
	}
}

// TestQueryBefore60 asks for the programs of a hook as kernels before 6.0 take it.
func TestQueryBefore60(t *testing.T) {
	cgroup := testkit.Cgroup(t)
	p := mustProgram(t, ebpf.ProgramSpec{Name: "multi", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress})
	attachCgroup(t, cgroup, p, ebpf.AttachCGroupInetEgress, unix.BPF_F_ALLOW_MULTI)
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	want := []attached{{progID: programID(t, p), progFlags: unix.BPF_F_ALLOW_MULTI}}
	for name, ask := range map[string]func() ([]attached, error){
		"in any way": func() ([]attached, error) { return query(uint32(dir.Fd()), uint32(ebpf.AttachCGroupInetEgress), 0) },
		"without flags": func() ([]attached, error) {
			return queryFlags(uint32(dir.Fd()), uint32(ebpf.AttachCGroupInetEgress), 0, false)
		},
	} {
		if got, err := ask(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, want)
		}
	}
}

func attachCgroup(t *testing.T, cgroup string, p *ebpf.Program, attach ebpf.AttachType, flags uint32) {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: p, Attach: attach, Flags: flags}); err != nil {
		t.Fatal(err)
	}
}

// only keeps the programs of a name: others may have theirs at the root meanwhile.
func only(t *testing.T, list []byte, name string) []byte {
	t.Helper()
	var all []map[string]any
	if err := json.Unmarshal(list, &all); err != nil {
		t.Fatalf("%v in %s", err, list)
	}
	return written(t, slices.DeleteFunc(all, func(p map[string]any) bool { return p["name"] != name }))
}

// TestCgroupEffective compares what runs, inherited programs too.
func TestCgroupEffective(t *testing.T) {
	above := testkit.Cgroup(t)
	below := filepath.Join(above, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(below) })
	p := mustProgram(t, ebpf.ProgramSpec{Name: "above", Type: ebpf.CGroupSKB, AttachType: ebpf.AttachCGroupInetEgress})
	l, err := link.AttachCgroup(link.CgroupOptions{Path: above, Attach: ebpf.AttachCGroupInetEgress, Program: p})
	if err != nil {
		t.Fatal(err)
	}
	id := linkID(t, l)
	c, err := New("", "").Cgroup(ctx, below, true)
	c.Programs = slices.DeleteFunc(c.Programs, func(p CgroupProgram) bool { return value(p.ProgName) != "above" })
	if err != nil || len(c.Programs) != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	theirs, err := oracle(t, "cgroup", "show", below, "effective")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "effective", written(t, c.Bpftool()), only(t, theirs, "above"))
	if rows := c.Rows(); len(rows) != 1 || rows[0].Flags != nil || value(rows[0].LinkID) != id {
		t.Errorf("rows %s, want link %d", written(t, rows), id)
	}
	if c, err := New("", "").Cgroup(ctx, below, false); err != nil || len(c.Programs) != 0 {
		t.Errorf("attached: %s, %v", written(t, c.Bpftool()), err)
	}
}

// loadLSM is union bpf_attr of BPF_PROG_LOAD up to the function that a program is
// for, which cilium/ebpf doesn't set for security hooks of cgroups.
type loadLSM struct {
	kind, count                              uint32
	instructions, license                    unsafe.Pointer
	logLevel, logSize                        uint32
	log                                      uint64
	kernVersion, flags                       uint32
	name                                     [unix.BPF_OBJ_NAME_LEN]byte
	ifindex, attachType, btfFD, funcInfoSize uint32
	funcInfo                                 uint64
	funcInfoCount, lineInfoSize              uint32
	lineInfo                                 uint64
	lineInfoCount, attachBTF                 uint32
}

// lsmOfCgroups loads a program that allows everything on a security hook, or
// skips the test.
func lsmOfCgroups(t *testing.T, hook string) *ebpf.Program {
	t.Helper()
	const what = "LSM programs of cgroups"
	if !testkit.HasEnumerator("bpf_attach_type", "BPF_LSM_CGROUP") {
		t.Skip("this kernel has no " + what)
	}
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var function *btf.Func
	testkit.Needs(t, what, spec.TypeByName(hook, &function), btf.ErrNotFound)
	id, err := spec.TypeID(function)
	if err != nil {
		t.Fatal(err)
	}
	code := []struct {
		op, registers uint8
		offset        int16
		constant      int32
	}{{op: unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K, constant: 1}, {op: unix.BPF_JMP | unix.BPF_EXIT}}
	attr := loadLSM{
		kind: uint32(ebpf.LSM), attachType: uint32(ebpf.AttachLSMCgroup), attachBTF: uint32(id), name: [unix.BPF_OBJ_NAME_LEN]byte{'l'},
		count: uint32(len(code)), instructions: unsafe.Pointer(&code[0]), license: unsafe.Pointer(&[]byte("GPL\x00")[0]),
	}
	fd, err := bpfsys.Call(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	testkit.Needs(t, what, err, unix.EPERM) // some kernels forbid it to everybody
	p, err := ebpf.NewProgramFromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestCgroupLSM tries a program on a security hook, which not every kernel has.
func TestCgroupLSM(t *testing.T) {
	cgroup := testkit.Cgroup(t)
	p := lsmOfCgroups(t, "bpf_lsm_socket_create")
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachLSMCgroup, Program: p})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c := sameCgroup(t, cgroup); value(c.Programs[0].BTFName) != "bpf_lsm_socket_create" {
		t.Errorf("it is attached to %v", value(c.Programs[0].BTFName))
	}
}

func TestCgroupErrors(t *testing.T) {
	for path, want := range map[string]error{"/sys/fs/cgroup-that-is-not-there": fault.ErrNotFound, t.TempDir(): fault.ErrUsage} {
		if _, err := New("", "").Cgroup(ctx, path, false); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}
