package maps

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"bpfnet/internal/fault"
	"bpfnet/pinned"
)

// shown is what bpftool says of a pinned map, without what is each map's own.
func shown(t *testing.T, path string) map[string]any {
	t.Helper()
	out, err := exec.Command("bpftool", "-j", "map", "show", "pinned", path).Output()
	if err != nil {
		t.Fatalf("bpftool shows %s: %v", path, err)
	}
	var doc map[string]any
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"id", "pids"} {
		delete(doc, own)
	}
	return doc
}

// TestCreate makes maps as bpftool makes them.
func TestCreate(t *testing.T) {
	w := newWorld(t)
	dir := w.outside(t)
	for _, test := range []CreateRequest{
		{Type: "hash", KeySize: 4, ValueSize: 8, MaxEntries: 10, Name: "h"},
		{Type: "hash", KeySize: 4, ValueSize: 8, MaxEntries: 10, Flags: 1, Name: "a_name_that_the_kernel_cuts"},
		{Type: "array", KeySize: 4, ValueSize: 3, MaxEntries: 2, Name: "a"},
		{Type: "percpu_hash", KeySize: 5, ValueSize: 9, MaxEntries: 2, Name: "p"},
		{Type: "lru_hash", KeySize: 4, ValueSize: 4, MaxEntries: 3, Flags: 2, Name: "l"},
		{Type: "lpm_trie", KeySize: 8, ValueSize: 1, MaxEntries: 9, Flags: 1, Name: "t"},
		{Type: "queue", ValueSize: 4, MaxEntries: 9, Name: "q"},
		{Type: "prog_array", KeySize: 4, ValueSize: 4, MaxEntries: 9, Name: "j"},
		{Type: "ringbuf", MaxEntries: 4096, Name: "r"},
		{Type: "array_of_maps", KeySize: 4, ValueSize: 4, MaxEntries: 2, Name: "m", Inner: dir + "/h"},
	} {
		r := test
		r.Path = dir + "/" + r.Name[:1]
		if r.Flags == 1 && r.Type == "hash" {
			r.Path = dir + "/cut"
		}
		r.DryRun = true
		if c, err := w.Create(context.Background(), r); err != nil || !c.Changed || c.MapID != nil {
			t.Errorf("dry create %+v: %+v, %v", r, c, err)
		}
		r.DryRun = false
		c, err := w.Create(context.Background(), r)
		if err != nil || !c.Changed || *c.Type != r.Type || *c.Pinned != r.Path {
			t.Errorf("create %+v: %+v, %v", r, c, err)
			continue
		}
		again, err := w.Create(context.Background(), r)
		if err != nil || again.Changed || *again.MapID != *c.MapID {
			t.Errorf("create %+v again: %+v, %v", r, again, err)
		}
		args := []string{
			"map", "create", r.Path + "_of_bpftool", "type", r.Type, "key", fmt.Sprint(r.KeySize), "value", fmt.Sprint(r.ValueSize),
			"entries", fmt.Sprint(r.MaxEntries), "name", r.Name, "flags", fmt.Sprint(r.Flags),
		}
		if r.Inner != "" {
			args = append(args, "inner_map", "pinned", r.Inner)
		}
		if out, err := exec.Command("bpftool", args...).CombinedOutput(); err != nil {
			t.Fatalf("bpftool %q: %v\n%s", args, err, out)
		}
		if own, want := fmt.Sprint(shown(t, r.Path)), fmt.Sprint(shown(t, r.Path+"_of_bpftool")); own != want {
			t.Errorf("bpftool shows %s, for its own map %s", own, want)
		}
	}
	if c, err := w.Set(context.Background(), SetRequest{Map: dir + "/m", Key: "1", Value: dir + "/h_of_bpftool"}); err != nil || !c.Changed {
		t.Errorf("put a map into the new map of maps: %+v, %v", c, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	dir := w.outside(t)
	ctx := context.Background()
	hash := func(path string) CreateRequest {
		return CreateRequest{Path: path, Type: "hash", KeySize: 4, ValueSize: 4, MaxEntries: 2}
	}
	if _, err := w.Create(ctx, hash(dir+"/with-dash")); err != nil {
		t.Fatal(err)
	}
	if m, err := w.Show(ctx, dir+"/with-dash"); err != nil || m.Name != "with_dash" {
		t.Errorf("the name is %q, %v", m.Name, err)
	}
	if err := os.Mkdir(dir+"/sub", 0o700); err != nil {
		t.Fatal(err)
	}
	change := func(path string, f func(*CreateRequest)) CreateRequest {
		r := hash(path)
		f(&r)
		return r
	}
	for _, test := range []struct {
		request CreateRequest
		kind    error
		text    string
	}{
		{change(dir+"/with-dash", func(r *CreateRequest) { r.ValueSize = 8 }), fault.ErrConflict, "its value size is 4, not 8"},
		{change(dir+"/with-dash", func(r *CreateRequest) { r.Type = "lru_hash" }), fault.ErrConflict, "its type is hash, not lru_hash"},
		{change(dir+"/with-dash", func(r *CreateRequest) { r.Name = "other" }), fault.ErrConflict, "its name is with_dash, not other"},
		{hash(dir + "/sub"), fault.ErrConflict, "no map is there already"},
		{change(dir+"/x", func(r *CreateRequest) { r.MaxEntries = 0 }), fault.ErrUsage, "at least 1 entry"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "lpm_trie" }), fault.ErrUsage, "BPF_F_NO_PREALLOC"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "array"; r.KeySize = 2 }), fault.ErrUsage, "keys have 4 bytes"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "ringbuf" }), fault.ErrUsage, "a power of 2"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "queue" }), fault.ErrUsage, "keys have 0 bytes"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "task_storage" }), fault.ErrUsage, "it needs BTF"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "prog_array"; r.ValueSize = 8 }), fault.ErrUsage, "keys and values have 4 bytes"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "nothing" }), fault.ErrUsage, `no map type "nothing"`},
		{change(dir+"/x", func(r *CreateRequest) { r.Type = "hash_of_maps" }), fault.ErrUsage, "--inner"},
		{change(dir+"/x", func(r *CreateRequest) { r.Type, r.Inner = "hash_of_maps", dir+"/none" }), fault.ErrNotFound, "no such map"},
		{change(dir+"/x", func(r *CreateRequest) { r.Inner = dir + "/with-dash" }), fault.ErrUsage, "holds no maps"},
		{change(dir+"/x", func(r *CreateRequest) { r.Name = "a b" }), fault.ErrUsage, "letters, digits"},
		{hash(dir + "/x.y"), fault.ErrUsage, dir + "/x_y"},
		{hash(dir + "/a.b/y"), fault.ErrUsage, dir + "/a_b/y"},
		{hash(dir + "/none/y"), fault.ErrNotFound, "mkdir -p " + dir + "/none"},
		{hash(t.TempDir() + "/x"), fault.ErrUsage, "not on bpffs"},
		{hash(pinned.MountPoint), fault.ErrUsage, "name the pin: " + pinned.MountPoint + "/NAME"},
		{hash(filepath.Dir(w.root.Path("mine", pinned.Maps, "x")) + "/x"), fault.ErrUsage, "belongs to bpfnet"},
	} {
		_, err := w.Create(ctx, test.request)
		fails(t, err, test.kind, test.text)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("what was refused left something: %v, %v", entries, err)
	}
}

func TestFreeze(t *testing.T) {
	w := newWorld(t)
	dir := w.outside(t)
	ctx := context.Background()
	if _, err := w.Create(ctx, CreateRequest{Path: dir + "/x", Type: "array", KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		t.Fatal(err)
	}
	for i, test := range []struct{ dry, changed bool }{{true, true}, {false, true}, {false, false}, {true, false}} {
		done, err := w.Freeze(ctx, FreezeRequest{Map: dir + "/x", DryRun: test.dry})
		if err != nil || done.Changed != test.changed {
			t.Errorf("freeze %d: %+v, %v", i, done, err)
		}
		if frozen := shown(t, dir+"/x")["frozen"]; frozen != 0.0 != (i > 0) {
			t.Errorf("freeze %d: bpftool says frozen %v", i, frozen)
		}
	}
	_, err := w.Set(ctx, SetRequest{Map: dir + "/x", Key: "0", Value: "1"})
	fails(t, err, fault.ErrConflict, "it is frozen")
}
