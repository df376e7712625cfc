package holders

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"bpfnet/internal/testkit"
)

// tree makes files below a directory: text that begins with "->" is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if len(text) > 2 && text[:2] == "->" {
			err = os.Symlink(text[2:], path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestScanTree(t *testing.T) {
	mapID := func(id string) string { return "pos:\t0\nmap_type:\t27\nmap_id:\t" + id + "\nfrozen:\t0\n" }
	root := tree(t, map[string]string{
		"self/ns/pid": "",
		"20/comm":     "reader\n", "20/fd/3": "->anon_inode:bpf-map", "20/fdinfo/3": mapID("7"),
		"20/fd/4": "->anon_inode:bpf-map", "20/fdinfo/4": mapID("7"),
		"20/fd/5": "->anon_inode:bpf-map", "20/fdinfo/5": mapID("9"),
		"20/fd/6": "->anon_inode:bpf-map", // closed meanwhile
		"9/comm":  "other\n", "9/fd/3": "->anon_inode:bpf-map", "9/fdinfo/3": mapID("7"),
		"9/fd/4": "->anon_inode:bpf-prog", "9/fdinfo/4": "prog_id:\t70\n",
		"9/fd/5": "->anon_inode:bpf_link", "9/fdinfo/5": "link_id:\t71\nprog_id:\t70\n",
		"9/fd/7": "->anon_inode:bpf-link", "9/fdinfo/7": "link_id:\t72\nprog_id:\t70\n",
		"9/fd/6":  "->/etc/hostname",
		"30/comm": "ended\n", // no descriptors any more
	})
	reader, other := Process{20, "reader"}, Process{9, "other"}
	for _, test := range []struct {
		kind Kind
		ids  []uint32
		want map[uint32][]Process
	}{
		{Map, nil, map[uint32][]Process{7: {other, reader}, 9: {reader}}},
		{Map, []uint32{9, 1}, map[uint32][]Process{9: {reader}}},
		{Map, []uint32{}, map[uint32][]Process{}},
		{Prog, nil, map[uint32][]Process{70: {other}}},
		{Link, nil, map[uint32][]Process{71: {other}, 72: {other}}},
	} {
		found, err := scan(root, test.kind, test.ids)
		if !errors.Is(err, ErrBlind) || !errors.Is(err, ErrIncomplete) { // it isn't the machine's /proc
			t.Errorf("%s: error %v", test.kind, err)
		}
		if !reflect.DeepEqual(found, test.want) {
			t.Errorf("%s %v: %v, want %v", test.kind, test.ids, found, test.want)
		}
	}
	if _, err := scan(root, "cat", nil); err == nil {
		t.Error("an unknown kind is no error")
	}
	if _, err := scan(filepath.Join(root, "nowhere"), Map, nil); err == nil {
		t.Error("a /proc that isn't there is no error")
	}
}

// TestScanDenied tells a scan that missed a process from one that missed most.
func TestScanDenied(t *testing.T) {
	if err := seesAll("/proc"); err != nil {
		t.Skipf("needs the machine's /proc: %v", err)
	}
	files := map[string]string{"self/ns/pid": "->/proc/self/ns/pid", "20/fd/0": "->/dev/null", "21/fd/0": "->/dev/null", "22/fd": "closed"}
	if _, err := scan(tree(t, files), Map, nil); !errors.Is(err, ErrIncomplete) || errors.Is(err, ErrBlind) {
		t.Errorf("one of three is closed: %v", err)
	}
	files["23/fd"], files["24/fd"] = "closed", "closed"
	if _, err := scan(tree(t, files), Map, nil); !errors.Is(err, ErrBlind) || !strings.Contains(err.Error(), "3 of 5") {
		t.Errorf("three of five are closed: %v", err)
	}
}

func TestScanKernel(t *testing.T) {
	testkit.NeedsKernel(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	ids := []uint32{uint32(id)}
	if found, err := Scan(Map, ids); len(found) > 0 || err != nil && !errors.Is(err, ErrIncomplete) {
		t.Errorf("our own descriptor counts: %v, %v", found, err)
	}
	child, _ := testkit.Hold(t, m.FD())
	found, err := Scan(Map, ids)
	if err != nil && !errors.Is(err, ErrIncomplete) {
		t.Fatal(err)
	}
	if want := []Process{{child, "sleep"}}; !slices.Equal(found[ids[0]], want) {
		t.Errorf("found %v, want %v", found, want)
	}
}
