package bpftool

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	bpfmaps "bpfnet/internal/maps"
	"bpfnet/internal/testkit"
)

// oracle runs the real bpftool and returns what it prints. Its exit status is
// only 0 when it is content.
func oracle(t testing.TB, args ...string) ([]byte, error) {
	t.Helper()
	path, err := exec.LookPath("bpftool")
	if err != nil {
		path = "/usr/sbin/bpftool"
	}
	out, err := exec.Command(path, append([]string{"-j"}, args...)...).Output()
	if failed := new(exec.ExitError); err != nil && !errors.As(err, &failed) {
		t.Fatalf("bpftool is what these tests compare with; scripts/deps test installs it: %v", err)
	}
	return out, err
}

// decode reads one JSON document with its numbers as they are written. It
// refuses what isn't JSON and an object that has a key twice.
func decode(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := decodeNext(d)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more after the document: %v", err)
	}
	return v, nil
}

func decodeNext(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	delimiter, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	list, object := []any{}, map[string]any{}
	for d.More() {
		var key string
		if delimiter == '{' {
			token, err := d.Token()
			if err != nil {
				return nil, err
			}
			key = token.(string)
			if _, twice := object[key]; twice {
				return nil, fmt.Errorf("key %q twice", key)
			}
		}
		v, err := decodeNext(d)
		if err != nil {
			return nil, err
		}
		list, object[key] = append(list, v), v
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if delimiter == '{' {
		return object, nil
	}
	return list, nil
}

// equal compares two documents like jq -S does.
func equal(t *testing.T, what string, ours, theirs []byte) {
	t.Helper()
	want, err := decode(theirs)
	if err != nil {
		t.Errorf("%s: bpftool prints what isn't JSON: %v\n%s", what, err, theirs)
		return
	}
	got, err := decode(ours)
	if err != nil {
		t.Errorf("%s: this isn't JSON: %v\n%s", what, err, ours)
		return
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n   ours %s\nbpftool %s", what, ours, theirs)
	}
}

// lab makes maps and asks for them in both ways.
type lab struct {
	*Kernel
	t    *testing.T
	root string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	root := testkit.Root(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	return &lab{New(filepath.Join(root, "state"), ""), t, root}
}

// make pins a new map and returns its path. ok is false when the kernel
// doesn't have such maps.
func (l *lab) make(spec *ebpf.MapSpec) (m *ebpf.Map, path string, err error) {
	m, err = ebpf.NewMap(spec)
	if err != nil {
		return nil, "", err
	}
	l.t.Cleanup(func() { m.Close() })
	path = filepath.Join(l.root, spec.Name)
	return m, path, m.Pin(path)
}

func (l *lab) mustMake(spec *ebpf.MapSpec) (*ebpf.Map, string) {
	l.t.Helper()
	m, path, err := l.make(spec)
	if err != nil {
		l.t.Fatalf("make %s: %v", spec.Name, err)
	}
	return m, path
}

// dump is the whole dump of a map.
func (l *lab) dump(ref string) ([]byte, error) {
	var rows [][]byte
	err := l.MapDump(context.Background(), bpfmaps.DumpRequest{Map: ref}, func(row []byte) error {
		rows = append(rows, slices.Clone(row))
		return nil
	})
	return append(append([]byte("["), bytes.Join(rows, []byte(","))...), ']'), err
}

func (l *lab) show(ref string) []byte {
	l.t.Helper()
	shown, err := l.MapShow(context.Background(), ref, false)
	if err != nil || len(shown.Maps) != 1 {
		l.t.Fatalf("show %s: %d, %v", ref, len(shown.Maps), err)
	}
	text, err := json.Marshal(shown.Maps[0])
	if err != nil {
		l.t.Fatal(err)
	}
	return text
}

// newTypes are map types that some bpftools know by their number only.
var newTypes = map[string]string{`"type":32,`: `"type":"cgrp_storage",`}

// sameShow compares what is told of a map.
func (l *lab) sameShow(path string) {
	l.t.Helper()
	theirs, err := oracle(l.t, "map", "show", "pinned", path)
	for number, word := range newTypes { // if this bpftool has no word yet
		theirs = bytes.Replace(theirs, []byte(number), []byte(word), 1)
	}
	if err != nil {
		l.t.Errorf("bpftool map show: %v: %s", err, theirs)
	}
	equal(l.t, "show "+filepath.Base(path), l.show(path), theirs)
}

// sameDump compares all entries of a map.
func (l *lab) sameDump(path string) {
	l.t.Helper()
	theirs, refused := oracle(l.t, "map", "dump", "pinned", path)
	ours, err := l.dump(path)
	if (err == nil) != (refused == nil) {
		l.t.Errorf("dump %s: %v, bpftool: %v", path, err, refused)
	}
	equal(l.t, "dump "+filepath.Base(path), ours, theirs)
}

// sameLookup compares the entry of one key.
func (l *lab) sameLookup(path string, key []byte) {
	l.t.Helper()
	args := []string{"map", "lookup", "pinned", path}
	if len(key) > 0 {
		args = append(args, "key")
	}
	for _, b := range key {
		args = append(args, strconv.Itoa(int(b)))
	}
	theirs, refused := oracle(l.t, args...)
	ours, err := l.MapLookup(context.Background(), path, fmt.Sprintf("hex:%x", key))
	if (err == nil) != (refused == nil) {
		l.t.Errorf("lookup %x in %s: %v, bpftool: %v: %s", key, path, err, refused, theirs)
	}
	switch {
	case errors.Is(err, fault.ErrNotFound):
		equal(l.t, "lookup "+filepath.Base(path), []byte("null"), theirs)
	case err == nil:
		equal(l.t, "lookup "+filepath.Base(path), ours, theirs)
	}
}

// TestMapKinds compares maps of every type, filled and empty.
func TestMapKinds(t *testing.T) {
	l := newLab(t)
	inner, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	innerSpec := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	program := anyProgram(t)
	value := []byte{1, 2, 0xff, 0x80}
	const lpm = unix.BPF_F_NO_PREALLOC
	for _, test := range []struct {
		spec  ebpf.MapSpec
		key   []byte // of the entry that is written
		value any    // nil: none is
	}{
		{ebpf.MapSpec{Type: ebpf.Hash}, []byte{9, 0, 0, 1}, value},
		{ebpf.MapSpec{Type: ebpf.LRUHash}, []byte{9, 0, 0, 1}, value},
		{ebpf.MapSpec{Type: ebpf.PerCPUHash}, []byte{9, 0, 0, 1}, perCPU(value)},
		{ebpf.MapSpec{Type: ebpf.LRUCPUHash}, []byte{9, 0, 0, 1}, perCPU(value)},
		{ebpf.MapSpec{Type: ebpf.Array}, []byte{2, 0, 0, 0}, value},
		{ebpf.MapSpec{Type: ebpf.PerCPUArray}, []byte{2, 0, 0, 0}, perCPU(value)},
		{ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 8, Flags: lpm}, []byte{16, 0, 0, 0, 10, 1, 0, 0}, value},
		{ebpf.MapSpec{Type: ebpf.ArrayOfMaps, InnerMap: innerSpec}, []byte{1, 0, 0, 0}, inner},
		{ebpf.MapSpec{Type: ebpf.HashOfMaps, InnerMap: innerSpec}, []byte{1, 0, 0, 7}, inner},
		{ebpf.MapSpec{Type: ebpf.ProgramArray}, []byte{1, 0, 0, 0}, program},
		{ebpf.MapSpec{Type: ebpf.Queue, KeySize: none}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.Stack, KeySize: none}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.BloomFilter, KeySize: none}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.RingBuf, KeySize: none, ValueSize: none, MaxEntries: 4096}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.UserRingbuf, KeySize: none, ValueSize: none, MaxEntries: 4096}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.PerfEventArray}, []byte{1, 0, 0, 0}, nil},
		{ebpf.MapSpec{Type: ebpf.CGroupArray}, []byte{1, 0, 0, 0}, nil},
		{ebpf.MapSpec{Type: ebpf.DevMap}, []byte{1, 0, 0, 0}, uint32(1)},
		{ebpf.MapSpec{Type: ebpf.DevMapHash}, []byte{1, 0, 0, 9}, uint32(1)},
		{ebpf.MapSpec{Type: ebpf.CPUMap}, []byte{0, 0, 0, 0}, uint32(192)},
		{ebpf.MapSpec{Type: ebpf.SockMap, ValueSize: 8}, []byte{0, 0, 0, 0}, nil},
		{ebpf.MapSpec{Type: ebpf.SockHash, ValueSize: 8}, []byte{0, 0, 0, 0}, nil},
		{ebpf.MapSpec{Type: ebpf.ReusePortSockArray, ValueSize: 8}, []byte{0, 0, 0, 0}, nil},
		{ebpf.MapSpec{Type: ebpf.XSKMap}, []byte{0, 0, 0, 0}, nil},
		{ebpf.MapSpec{Type: ebpf.StackTrace, ValueSize: 8 * 4}, []byte{0, 0, 0, 0}, nil},
		{ebpf.MapSpec{Type: ebpf.CGroupStorage, KeySize: 16, MaxEntries: none}, make([]byte, 16), nil},
		{ebpf.MapSpec{Type: ebpf.PerCPUCGroupStorage, KeySize: 16, MaxEntries: none}, make([]byte, 16), nil},
		{ebpf.MapSpec{Type: ebpf.SkStorage, Flags: lpm, MaxEntries: none, Key: sint(4), Value: sint(4)}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.InodeStorage, Flags: lpm, MaxEntries: none, Key: sint(4), Value: sint(4)}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.TaskStorage, Flags: lpm, MaxEntries: none, Key: sint(4), Value: sint(4)}, nil, nil},
		{ebpf.MapSpec{Type: ebpf.CgroupStorage, Flags: lpm, MaxEntries: none, Key: sint(4), Value: sint(4)}, nil, nil},
	} {
		spec := test.spec
		spec.Name = fmt.Sprintf("type%d", spec.Type)
		t.Run(spec.Type.String(), func(t *testing.T) {
			testkit.NeedsMap(t, spec.Type)
			l := &lab{l.Kernel, t, l.root}
			m, path := l.mustMake(sized(&spec))
			l.sameShow(path)
			l.sameDump(path)
			if test.value != nil {
				if err := m.Put(test.key, test.value); err != nil {
					t.Fatalf("put: %v", err)
				}
				l.sameDump(path)
				l.sameShow(path) // a prog_array has an owner now
			}
			if test.key != nil {
				l.sameLookup(path, test.key)
				l.sameLookup(path, slices.Repeat([]byte{5}, len(test.key)))
			}
		})
	}
}

// sized fills in the sizes that weren't given; negative ones mean 0.
func sized(spec *ebpf.MapSpec) *ebpf.MapSpec {
	for size, normal := range map[*uint32]uint32{&spec.KeySize: 4, &spec.ValueSize: 4, &spec.MaxEntries: 3} {
		switch *size {
		case 0:
			*size = normal
		case none:
			*size = 0
		}
	}
	return spec
}

// perCPU gives each CPU a value of its own.
func perCPU(value []byte) [][]byte {
	values := make([][]byte, ebpf.MustPossibleCPU())
	for cpu := range values {
		values[cpu] = slices.Clone(value)
		values[cpu][0] += byte(cpu)
	}
	return values
}

func anyProgram(t *testing.T) *ebpf.Program {
	t.Helper()
	program, ok := bpf.Lookup("xdp-counter")
	if !ok {
		t.Fatal("xdp-counter is gone")
	}
	spec, err := program.Spec()
	if err != nil {
		t.Fatal(err)
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(collection.Close)
	names := slices.Sorted(maps.Keys(collection.Programs))
	return collection.Programs[names[0]]
}

// TestObjects compares the maps of compiled objects, among them data sections
// and types as the compiler writes them.
func TestObjects(t *testing.T) {
	specs := map[string]*ebpf.CollectionSpec{}
	for _, program := range bpf.Catalogue() {
		spec, err := program.Spec()
		if err != nil {
			t.Fatal(err)
		}
		specs[program.Name] = spec
	}
	spec, err := ebpf.LoadCollectionSpec("../datapath/testdata/limits.o")
	if err != nil {
		t.Fatal(err)
	}
	specs["limits"] = spec
	var sections []string
	for name, spec := range specs {
		for _, m := range spec.Maps {
			t.Run(name+"/"+m.Name, func(t *testing.T) {
				newLab(t).sameObject(m)
			})
			if strings.HasPrefix(m.Name, ".") {
				sections = append(sections, m.Name)
			}
		}
	}
	slices.Sort(sections)
	if got := slices.Compact(sections); !slices.Equal(got, []string{".bss", ".data", ".rodata"}) {
		t.Errorf("the data sections that were compared are %q", got)
	}
}

// sameObject compares one map of an object with its initial contents.
func (l *lab) sameObject(spec *ebpf.MapSpec) {
	l.t.Helper()
	spec = spec.Copy()
	spec.Name = strings.ReplaceAll(spec.Name, ".", "_")
	if spec.Type != ebpf.RingBuf {
		spec.MaxEntries = min(spec.MaxEntries, 8) // large ones take seconds
	}
	if spec.InnerMap != nil {
		spec.Contents = nil
	}
	m, path, err := l.make(spec)
	if err != nil {
		spec.Key, spec.Value = nil, nil // the kernel takes no types there
		m, path = l.mustMake(spec)
	}
	if spec.Name == "_rodata" {
		if err := m.Freeze(); err != nil {
			l.t.Fatal(err)
		}
	}
	l.sameShow(path)
	l.sameDump(path)
}

// TestMapNames compares what a name stands for: each map that the kernel calls
// so, and in bpfnet also the map whose full name it is.
func TestMapNames(t *testing.T) {
	l := newLab(t)
	name := fmt.Sprintf("bn%d", os.Getpid())
	for _, pin := range []string{"one", "two"} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: ebpf.Array, KeySize: 4, ValueSize: 1, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Pin(filepath.Join(l.root, pin)); err != nil {
			t.Fatal(err)
		}
	}
	theirs, err := oracle(t, "map", "show", "name", name)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := l.MapShow(context.Background(), "name:"+name, false)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := json.Marshal(shown.Maps)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "show name "+name, ours, theirs)
	headers, err := l.MapHeaders(context.Background(), "name:"+name)
	if err != nil || len(headers) != 2 || headers[0].Get("id") != shown.Maps[0].Get("id") {
		t.Errorf("headers: %v, %v", headers, err)
	}
	for _, ref := range []string{"name:" + name + "x", "id:0"} {
		if _, err := l.MapShow(context.Background(), ref, false); !errors.Is(err, fault.ErrNotFound) {
			t.Errorf("show %s: %v", ref, err)
		}
	}
}

// TestMapList looks for a map among all of them: other tests' maps come and
// go, so that the whole list can't be compared.
func TestMapList(t *testing.T) {
	l := newLab(t)
	_, path := l.mustMake(&ebpf.MapSpec{Name: "listed", Type: ebpf.Array, KeySize: 4, ValueSize: 1, MaxEntries: 1})
	want, err := decode(l.show(path))
	if err != nil {
		t.Fatal(err)
	}
	listing, err := l.MapList(context.Background(), false)
	if err != nil {
		t.Fatal(err)
	}
	var last uint32
	found := false
	for _, o := range listing.Maps {
		id := o.Get("id").(uint32)
		if id <= last {
			t.Errorf("map %d comes after map %d", id, last)
		}
		last = id
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decode(text)
		if err != nil {
			t.Fatal(err)
		}
		found = found || reflect.DeepEqual(got, want)
	}
	if !found {
		t.Errorf("map %v isn't in the list", want)
	}
}

// TestMapPIDs looks for the holder of a map: a process of its own, as the
// caller doesn't count.
func TestMapPIDs(t *testing.T) {
	l := newLab(t)
	m, path := l.mustMake(&ebpf.MapSpec{Name: "held", Type: ebpf.Array, KeySize: 4, ValueSize: 1, MaxEntries: 1})
	pid, _ := testkit.Hold(t, m.FD())
	shown, err := l.MapShow(context.Background(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(shown.Maps[0].Get("pids"))
	if want := fmt.Sprintf(`[{"pid":%d,"comm":"sleep"}]`, pid); err != nil || string(text) != want {
		t.Errorf("pids are %s, want %s", text, want)
	}
}

func TestMapDumpChoice(t *testing.T) {
	l := newLab(t)
	for _, kind := range []ebpf.MapType{ebpf.Hash, ebpf.DevMapHash} { // with batches and without
		m, path := l.mustMake(&ebpf.MapSpec{Name: fmt.Sprintf("type%d", kind), Type: kind, KeySize: 4, ValueSize: 4, MaxEntries: 9})
		for _, key := range [][]byte{{1, 1, 0, 0}, {1, 2, 0, 0}, {2, 1, 0, 0}} {
			if err := m.Put(key, uint32(1)); err != nil {
				t.Fatal(err)
			}
		}
		for request, want := range map[bpfmaps.DumpRequest]int{{}: 3, {Match: "hex:01"}: 2, {Match: "hex:01", Limit: 1}: 1, {Limit: 2}: 2, {Match: "hex:0102"}: 1} {
			request.Map = path
			count := 0
			err := l.MapDump(context.Background(), request, func([]byte) error {
				count++
				return nil
			})
			if err != nil || count != want {
				t.Errorf("dump %+v: %d entries, want %d; %v", request, count, want, err)
			}
		}
		stop := errors.New("stop")
		if err := l.MapDump(context.Background(), bpfmaps.DumpRequest{Map: path}, func([]byte) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("an error of emit comes back as %v", err)
		}
	}
}

// TestMapQueues compares what is read and taken out of maps without keys.
func TestMapQueues(t *testing.T) {
	l := newLab(t)
	for _, kind := range []ebpf.MapType{ebpf.Queue, ebpf.Stack} {
		m, path := l.mustMake(&ebpf.MapSpec{Name: fmt.Sprintf("type%d", kind), Type: kind, ValueSize: 4, MaxEntries: 4})
		fill := func() {
			for n := range uint32(2) {
				if err := m.Put(nil, n+1); err != nil {
					t.Fatal(err)
				}
			}
		}
		fill()
		l.samePeek(path)
		var theirs [][]byte
		for range 3 {
			text, _ := oracle(t, "map", "pop", "pinned", path)
			theirs = append(theirs, text)
		}
		fill()
		for i, want := range theirs {
			ours, err := l.MapNext(context.Background(), path, true)
			if (err != nil) != (i == 2) {
				t.Errorf("pop %d: %v", i, err)
			}
			equal(t, "pop "+kind.String(), ours, want)
		}
	}
	_, path := l.mustMake(&ebpf.MapSpec{Name: "hash", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 4})
	if _, err := l.MapNext(context.Background(), path, false); !errors.Is(err, fault.ErrUnsupported) {
		t.Errorf("peek into a hash: %v", err)
	}
}

func (l *lab) samePeek(path string) {
	l.t.Helper()
	theirs, refused := oracle(l.t, "map", "peek", "pinned", path)
	ours, err := l.MapNext(context.Background(), path, false)
	if err != nil || refused != nil {
		l.t.Errorf("peek: %v, bpftool: %v", err, refused)
	}
	equal(l.t, "peek "+filepath.Base(path), ours, theirs)
}
