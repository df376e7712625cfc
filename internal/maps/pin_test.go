package maps

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// outside makes a directory on bpffs that isn't below the root.
func (w *world) outside(t *testing.T) string {
	t.Helper()
	dir := string(w.root) + "-outside"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestPin(t *testing.T) {
	w := newWorld(t)
	dir := w.outside(t)
	ctx := context.Background()
	for _, name := range []string{"one", "two"} {
		w.make(t, &ebpf.MapSpec{Name: name, Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	}
	kept := fmt.Sprintf("kept%d", os.Getpid())
	path := dir + "/" + kept
	pin := func(ref, path string, dry bool) (PinChange, error) {
		return w.Pin(ctx, PinRequest{Map: ref, Path: path, DryRun: dry})
	}
	if c, err := pin("mine/one", path, true); err != nil || !c.Changed {
		t.Errorf("dry pin: %+v, %v", c, err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("a dry run pinned")
	}
	if c, err := pin("mine/one", path, false); err != nil || !c.Changed || *c.Pinned != path || *c.Type != "hash" {
		t.Errorf("pin: %+v, %v", c, err)
	}
	if c, err := pin("mine/one", path, false); err != nil || c.Changed {
		t.Errorf("pin again: %+v, %v", c, err)
	}
	for _, ref := range []string{"mine/one", path, "name:" + kept} {
		if m, err := w.Show(ctx, ref); err != nil || m.Name != "one" || len(m.Pinned) != 2 {
			t.Errorf("show %s: %+v, %v", ref, m, err)
		}
	}
	for _, test := range []struct {
		ref, path string
		kind      error
		text      string
	}{
		{"mine/two", path, fault.ErrConflict, "is there already"},
		{"mine/two", dir, fault.ErrConflict, "no map is there"},
		{"mine/two", dir + "/not/there", fault.ErrNotFound, "mkdir -p " + dir + "/not"},
		{"mine/two", dir + "/" + strings.Repeat("x", 256), fault.ErrUsage, "at most 255 bytes"},
		{"mine/two", symlink(t, filepath.Dir(w.root.Path("mine", pinned.Maps, "own"))) + "/copy", fault.ErrUsage, "belongs to bpfnet"},
		{"mine/two", dir + "/two.old", fault.ErrUsage, dir + "/two_old"},
		{"mine/two", dir + "/a.b/y", fault.ErrUsage, dir + "/a_b/y"},
		{"mine/two", pinned.MountPoint, fault.ErrUsage, "name the pin: " + pinned.MountPoint + "/NAME"},
		{"mine/two", t.TempDir() + "/two.old", fault.ErrUsage, "not on bpffs"},
		{"mine/two", t.TempDir() + "/two", fault.ErrUsage, "not on bpffs"},
		{"mine/two", w.root.Path("mine", pinned.Maps, "copy"), fault.ErrUsage, "belongs to bpfnet"},
		{"mine/two", path + "/below", fault.ErrUsage, ""},
		{"mine/three", path, fault.ErrNotFound, ""},
	} {
		_, err := pin(test.ref, test.path, false)
		fails(t, err, test.kind, test.text)
	}
}

func TestUnpin(t *testing.T) {
	w := newWorld(t)
	dir := w.outside(t)
	ctx := context.Background()
	unpin := func(ref string) (PinChange, error) { return w.Unpin(ctx, UnpinRequest{Map: ref}) }
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "loose", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	info, err := infoOf(m.FD())
	if err != nil {
		t.Fatal(err)
	}
	id, path := reference(info.id), dir+"/loose"
	if c, err := unpin(id); err != nil || c.Changed {
		t.Errorf("unpin what has no pin: %+v, %v", c, err)
	}
	for _, p := range []string{path, path + "2"} {
		if _, err := w.Pin(ctx, PinRequest{Map: id, Path: p}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = unpin(id)
	fails(t, err, fault.ErrUsage, path+", "+path+"2")
	if c, err := w.Unpin(ctx, UnpinRequest{Map: path, DryRun: true}); err != nil || !c.Changed {
		t.Errorf("dry unpin: %+v, %v", c, err)
	}
	if c, err := unpin(path); err != nil || !c.Changed || *c.MapID != info.id {
		t.Errorf("unpin: %+v, %v", c, err)
	}
	if c, err := unpin(path); err != nil || c.Changed || c.Pinned != nil {
		t.Errorf("unpin again: %+v, %v", c, err)
	}
	if c, err := unpin(id); err != nil || !c.Changed || *c.Pinned != path+"2" {
		t.Errorf("unpin by id: %+v, %v", c, err)
	}
	w.refusesToUnpin(t, dir)
}

// refusesToUnpin tries what mustn't be unpinned.
func (w *world) refusesToUnpin(t *testing.T, dir string) {
	t.Helper()
	w.make(t, &ebpf.MapSpec{Name: "own", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	stage, err := w.root.NewStage("loaded", pinned.Spec{Source: "x.o"})
	if err != nil {
		t.Fatal(err)
	}
	if err := stage.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(w.root.Path("mine", pinned.Maps, "own"), w.root.Path("loaded", pinned.Maps, "own")); err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if err := program.Pin(dir + "/program"); err != nil {
		t.Fatal(err)
	}
	foreign := New(filepath.Dir(dir)) // another root, to which the instance is as foreign as can be
	for _, test := range []struct {
		s    *Store
		ref  string
		kind error
		text string
	}{
		{w.Store, "mine/own", fault.ErrConflict, "below bpfnet's directory"},
		{w.Store, "loaded/own", fault.ErrConflict, "unload loaded"},
		{w.Store, w.root.Path("loaded", pinned.Maps, "own"), fault.ErrConflict, "--bpffs " + string(w.root) + " unload loaded"},
		{foreign, w.root.Path("loaded", pinned.Maps, "own"), fault.ErrConflict, "unload loaded"},
		{w.Store, dir + "/program", fault.ErrUsage, "is not a map"},
		{w.Store, symlink(t, filepath.Dir(w.root.Path("loaded", pinned.Maps, "own"))) + "/own", fault.ErrConflict, "unload loaded"},
		{w.Store, symlink(t, w.root.Path("mine", pinned.Maps, "own")), fault.ErrUsage, "not the pin"},
		{w.Store, dir, fault.ErrUsage, "is not a map"},
		{w.Store, "/etc/passwd", fault.ErrUsage, "is not on bpffs"},
	} {
		_, err := test.s.Unpin(context.Background(), UnpinRequest{Map: test.ref})
		fails(t, err, test.kind, test.text)
	}
}

// symlink returns a link outside of bpffs.
func symlink(t *testing.T, to string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(to, link); err != nil {
		t.Fatal(err)
	}
	return link
}
