package bpftool

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestMapWithoutSysAdmin prints the bytes of a map whose types may not be read.
func TestMapWithoutSysAdmin(t *testing.T) {
	l := newLab(t)
	m, path := l.mustMake(&ebpf.MapSpec{Name: "typed", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 3, Key: uint_(4), Value: uint_(4)})
	if err := m.Put(uint32(1), uint32(2)); err != nil {
		t.Fatal(err)
	}
	whole, err := l.dump(path)
	if err != nil || !strings.Contains(string(whole), "formatted") || l.MapNotes() != nil {
		t.Errorf("as root: %s, %v, %q", whole, err, l.MapNotes())
	}
	withoutSysAdmin(t, func() {
		const entry = `{"key":["0x01","0x00","0x00","0x00"],"value":["0x02","0x00","0x00","0x00"]}`
		if bytes, err := l.dump(path); err != nil || string(bytes) != "["+entry+"]" {
			t.Errorf("dump: %s, %v", bytes, err)
		}
		if bytes, err := l.MapLookup(context.Background(), path, "hex:01000000"); err != nil || string(bytes) != entry {
			t.Errorf("lookup: %s, %v", bytes, err)
		}
	})
	if notes := l.MapNotes(); len(notes) != 2 || !strings.Contains(notes[0], "without formatted") {
		t.Errorf("notes: %q", notes)
	}
}

// withoutSysAdmin runs fn in a thread that may do what CAP_BPF allows, but can't
// read BTF by its id.
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
