package datapath

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"unicode/utf8"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

// objects are those that FuzzObject breaks: the built-in ones and the tests'.
func objects(tb testing.TB) [][]byte {
	tb.Helper()
	var all [][]byte
	for _, p := range bpf.Catalogue() {
		all = append(all, p.Object)
	}
	files, err := filepath.Glob("testdata/*.o")
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range files {
		object, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, object)
	}
	return all
}

// broken is an object that was cut, and changed by patches of five bytes: where,
// in three, how many bytes, and what is written there over and over.
func broken(object []byte, cut uint32, patches []byte) []byte {
	b := append([]byte{}, object...)
	if cut != 0 {
		b = b[:int(cut)%(len(b)+1)]
	}
	for ; len(patches) >= 5 && len(b) > 0; patches = patches[5:] {
		at := int(binary.LittleEndian.Uint32(patches)&0xffffff) % len(b)
		for i := range min(int(patches[3])%16+1, len(b)-at) {
			b[at+i] = patches[4]
		}
	}
	return b
}

// Where a 64-bit ELF file says where its section headers are and how many, and
// the size of one.
const (
	sectionsAt    = 0x28
	sectionsCount = 0x3c
	sectionSize   = 64
)

func sections(object []byte) int { return int(binary.LittleEndian.Uint16(object[sectionsCount:])) }

// FuzzObject: an object that is cut, changed or made up is refused as unusable,
// or can be loaded as far as the kernel; it takes no memory out of proportion.
func FuzzObject(f *testing.F) {
	all := objects(f)
	for i, object := range all {
		f.Add(uint8(i), uint32(0), []byte{})
		f.Add(uint8(i), uint32(len(object)/2), []byte{})
	}
	for i := range sections(all[0]) { // what a section header says of type, flags, offset, size, …
		for _, field := range []int{4, 8, 24, 32, 40, 56} {
			at := int(binary.LittleEndian.Uint64(all[0][sectionsAt:])) + i*sectionSize + field
			f.Add(uint8(0), uint32(0), []byte{byte(at), byte(at >> 8), byte(at >> 16), 7, 0xff})
			f.Add(uint8(0), uint32(0), []byte{byte(at), byte(at >> 8), byte(at >> 16), 0, 8})
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, cut uint32, patches []byte) {
		object := broken(all[int(which)%len(all)], cut, patches)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		plan, err := newLoadPlan(LoadRequest{Source: "some.o", Object: object})
		if err == nil {
			readPlan(plan)
		}
		_, _ = bpf.ReadTypes(object)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 256<<20 {
			t.Errorf("%d bytes took %d MiB", len(object), took>>20)
		}
		if err != nil && !errors.Is(err, fault.ErrUsage) {
			t.Errorf("refused as %v", err)
		}
	})
}

// FuzzLoad: what can be read of a broken object is loaded into the kernel or
// refused. Nothing runs. Maps are made small: how large they may be is the
// kernel's business.
func FuzzLoad(f *testing.F) {
	all := objects(f)
	for i := range all {
		f.Add(uint8(i), []byte{})
	}
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		plan, err := newLoadPlan(LoadRequest{Source: "some.o", Object: broken(all[int(which)%len(all)], 0, patches)})
		if err != nil {
			return
		}
		const most = 1 << 12
		for _, m := range plan.spec.Maps {
			m.MaxEntries = min(m.MaxEntries, most)
			if m.KeySize > most || m.ValueSize > most {
				return
			}
		}
		if coll, err := plan.newCollection(nil); err == nil {
			coll.Close()
		}
	})
}

// readPlan does what is done with a plan before the kernel sees it.
func readPlan(p *loadPlan) {
	for name, v := range p.spec.Variables {
		_ = p.set(map[string]string{name: "1"})
		_ = v.Size()
	}
	_ = operation(p.spec)
	copied := p.spec.Copy()
	names := keys(copied.Programs)
	if len(names) > 0 {
		_ = p.choose(names[:1])
	}
}

// FuzzNotes: whatever text somebody put into the symbolic links of an instance,
// reading it neither fails nor makes documents that aren't UTF-8.
func FuzzNotes(f *testing.F) {
	f.Add("6 xdp", `{"devname":"eth0","ifindex":3,"netns":4026531840,"mode":"native"}`)
	f.Add("46 tcx/ingress", `{"cgroup":"/sys/fs/cgroup/a","cgroup_id":18446744073709551615}`)
	f.Add("-1 \x1b", `{"trace":"\u202e"}`)
	f.Fuzz(func(t *testing.T, section, targetText string) {
		name, attach := parseSectionNote(section)
		if again, at := parseSectionNote(sectionNote(name, attach)); again != name || at != attach {
			t.Errorf("%q, %d reads back as %q, %d", name, attach, again, at)
		}
		_ = guessType(name)
		var at target
		_ = json.Unmarshal([]byte(targetText), &at)
		var doc Attachment
		describeRemembered(&doc, at)
		_ = linkPin(name, targetText, at)
		_ = describeTarget(doc)
		if text, err := json.Marshal(doc); err != nil || !utf8.Valid(text) {
			t.Errorf("%q, %v", text, err)
		}
	})
}

// FuzzSet sets variables of each size: what isn't a value of theirs is a usage
// error, never another value.
func FuzzSet(f *testing.F) {
	for _, text := range []string{"1", "-1", "256", "true", "0x10", "010", "1e3", "", " 1", "9223372036854775808"} {
		f.Add("small", text)
		f.Add("step", text)
		f.Add("enabled", text)
	}
	f.Add("nothing", "1")
	object, err := os.ReadFile("testdata/several.o")
	if err != nil {
		f.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, text string) {
		p := loadPlan{spec: spec.Copy()}
		if err := p.set(map[string]string{name: text}); err != nil {
			if !errors.Is(err, fault.ErrUsage) {
				t.Errorf("%s=%q: %v", name, text, err)
			}
			return
		}
		var got int64
		if name == "step" && p.spec.Variables[name].Get(&got) == nil {
			if want, err := strconv.ParseInt(text, 10, 64); err == nil && got != want {
				t.Errorf("%s=%q is %d", name, text, got)
			}
		}
	})
}
