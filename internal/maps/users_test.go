package maps

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/testkit"
	"bpfnet/pinned"
)

func TestFill(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	inner := &ebpf.MapSpec{Name: "inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 7}
	for _, spec := range []*ebpf.MapSpec{
		inner,
		{Name: "hash", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 100},
		{Name: "percpu", Type: ebpf.PerCPUHash, KeySize: 4, ValueSize: 4, MaxEntries: 100},
		{Name: "trie", Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, MaxEntries: 100, Flags: unix.BPF_F_NO_PREALLOC},
		{Name: "outer", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 100, InnerMap: inner},
		{Name: "unreadable", Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 1},
	} {
		w.make(t, spec)
	}
	w.set("hash", "hex:01000000", "hex:00000000")
	w.set("hash", "hex:02000000", "hex:00000000")
	w.set("percpu", "hex:02000000", "hex:00000000")
	w.set("trie", "10.0.0.0/8", "hex:00000000")
	w.set("outer", "5", "mine/inner")
	for name, fill := range map[string]uint64{"inner": 7, "hash": 2, "percpu": 1, "trie": 1, "outer": 1} {
		one := []Map{{Ref: "mine/" + name}}
		notes, err := w.CountEntries(ctx, one)
		if err != nil || len(notes) > 0 || one[0].Fill == nil || *one[0].Fill != fill {
			t.Errorf("%s: %+v, %q, %v", name, one[0], notes, err)
		}
		shown, err := w.Show(ctx, "mine/"+name)
		if err != nil || (shown.Fill != nil) != (name == "inner") || shown.Processes != nil {
			t.Errorf("show %s: %+v, %v", name, shown, err)
		}
	}
	one := []Map{{Ref: "mine/unreadable"}, {Ref: "mine/hash"}}
	notes, err := w.CountEntries(ctx, one)
	if err != nil || len(notes) != 1 || one[0].Fill != nil || *one[1].Fill != 2 {
		t.Errorf("unreadable: %+v, %q, %v", one, notes, err)
	}
}

// TestUsers finds the programs that use a map, and the processes that have it
// open.
func TestUsers(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := w.make(t, &ebpf.MapSpec{Name: "used", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	user := useRaw(t, m, rawMap{name: "used", key: u32, value: u32})
	listing, err := w.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(listing.Maps, func(m Map) bool { return m.Ref == "mine/used" })
	if i < 0 || !slices.Equal(listing.Maps[i].ProgIDs, []uint32{user}) {
		t.Errorf("listed: %+v", listing.Maps)
	}
	info, err := infoOf(m.FD())
	if err != nil {
		t.Fatal(err)
	}
	pid, _ := testkit.Hold(t, m.FD())
	all := []Map{{ID: info.id}, {ID: 4294967295}}
	if _, err := w.FindProcesses(ctx, all); err != nil {
		t.Fatal(err)
	}
	if p := all[0].Processes; len(p) != 1 || p[0].PID != pid || p[0].Command != "sleep" {
		t.Errorf("processes: %+v", p)
	}
	if p := all[1].Processes; p == nil || len(p) > 0 {
		t.Errorf("processes of no map: %+v", p)
	}
}

// withoutSysAdmin runs fn in a thread that may do what CAP_BPF allows, but can't
// look kernel objects up by their ids.
func withoutSysAdmin(t *testing.T, fn func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	less := all
	less[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	if err := unix.Capset(&header, &less[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &all[0]); err != nil {
			t.Fatal(err)
		}
	}()
	fn()
}

// TestWithoutSysAdmin finds pinned maps by id and by name, and types those of
// built-in programs, though the kernel gives no ids and no BTF away.
func TestWithoutSysAdmin(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	program, _ := bpf.Lookup("pod-traffic")
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	stage, err := w.root.NewStage("pods", pinned.Spec{Source: "pod-traffic", Builtin: true})
	if err != nil {
		t.Fatal(err)
	}
	refs := map[string][]string{}
	for _, name := range []string{"rows", "pods"} {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Pin(stage.Path(pinned.Maps, name)); err != nil {
			t.Fatal(err)
		}
		info, err := infoOf(m.FD())
		if err != nil {
			t.Fatal(err)
		}
		refs[name] = []string{"pods/" + name, reference(info.id), w.root.Path("pods", pinned.Maps, name)}
	}
	if err := stage.Commit(); err != nil {
		t.Fatal(err)
	}
	check := func(full bool) {
		for name, all := range refs {
			for _, ref := range all {
				shown, err := w.Show(ctx, ref)
				if err != nil || shown.Name != name || shown.KeyType == nil || shown.ValueType == nil || (shown.ProgIDs != nil) != full {
					t.Errorf("show %s: %+v, %v", ref, shown, err)
				}
			}
		}
		for _, ref := range refs["rows"] {
			if rows := w.dump(DumpRequest{Map: ref, Match: "TC_MAP_FULL"}); len(rows) != 1 || !strings.HasPrefix(rows[0], `"TC_MAP_FULL"={"per_cpu"`) {
				t.Errorf("dump %s: %q", ref, rows)
			}
		}
	}
	check(true)
	withoutSysAdmin(t, func() {
		check(false)
		listing, err := w.List(ctx)
		if err != nil || !slices.ContainsFunc(listing.Maps, func(m Map) bool { return m.Ref == "pods/rows" }) || !strings.Contains(fmt.Sprint(listing.Notes), "only pinned maps") {
			t.Errorf("list: %+v, %v", listing, err)
		}
		if err := os.Rename(w.root.Path("pods", pinned.Maps, "rows"), w.outside(t)+"/"+uniqueName()); err != nil {
			t.Fatal(err)
		}
		if shown, err := w.Show(ctx, uniqueName()); err != nil || shown.Type != "percpu_array" {
			t.Errorf("show by the name of a pin: %+v, %v", shown, err)
		}
	})
}

func uniqueName() string { return fmt.Sprintf("rows_of_%d", os.Getpid()) }
