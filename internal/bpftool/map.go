package bpftool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/holders"
	"bpfnet/internal/maps"
)

// Maps is the part of API that reads maps. A ref names a map as package maps
// describes it; "name:S" names every map that the kernel calls S.
type Maps interface {
	// MapList describes all maps, in the order of their ids. With pids it
	// says which processes have them open.
	MapList(ctx context.Context, pids bool) (MapListing, error)
	// MapShow describes the maps that ref names, at least one.
	MapShow(ctx context.Context, ref string, pids bool) (MapListing, error)
	// MapHeaders is the beginning of what MapShow tells: what bpftool puts
	// before the entries when it dumps several maps.
	MapHeaders(ctx context.Context, ref string) ([]Object, error)
	// MapNotes says what was missing in the entries that MapDump, MapLookup and
	// MapNext gave so far: types that may not be read.
	MapNotes() []string
	// MapDump calls emit with the JSON of each entry, which is overwritten by
	// the next. It stops with the first error that emit returns.
	MapDump(ctx context.Context, request maps.DumpRequest, emit func(entry []byte) error) error
	// MapLookup returns the JSON of an entry, and null with fault.ErrNotFound
	// for a key that isn't there.
	MapLookup(ctx context.Context, ref, key string) (json.RawMessage, error)
	// MapNext returns the JSON of the next element of a queue or stack, and
	// null with fault.ErrNotFound when it is empty. With take it takes the
	// element out.
	MapNext(ctx context.Context, ref string, take bool) (json.RawMessage, error)
}

// MapListing describes maps.
type MapListing struct {
	Maps  []Object
	Notes []string // what is missing and why
}

func (k *Kernel) maps() *maps.Store { return maps.New(string(k.root)) }

// MapList implements Maps.
func (k *Kernel) MapList(ctx context.Context, pids bool) (MapListing, error) {
	refs, err := k.mapRefs(ctx, func(maps.RawInfo) bool { return true })
	if err != nil {
		return MapListing{}, err
	}
	return k.describeMaps(refs, pids)
}

// MapShow implements Maps.
func (k *Kernel) MapShow(ctx context.Context, ref string, pids bool) (MapListing, error) {
	refs, err := k.named(ctx, ref)
	if err != nil {
		return MapListing{}, err
	}
	shown, err := k.describeMaps(refs, pids)
	if err == nil && len(shown.Maps) == 0 {
		return MapListing{}, fault.New(fault.ErrNotFound, "open map %s: no such map", ref)
	}
	return shown, err
}

// named returns the maps that ref names, each by a ref of its own.
func (k *Kernel) named(ctx context.Context, ref string) ([]string, error) {
	name, ok := strings.CutPrefix(ref, "name:")
	if !ok {
		return []string{ref}, nil
	}
	refs, err := k.mapRefs(ctx, func(info maps.RawInfo) bool { return info.Name == name })
	if len(refs) == 0 {
		return []string{ref}, err
	}
	return refs, err
}

// mapRefs returns the refs of those maps of the kernel that fit.
func (k *Kernel) mapRefs(ctx context.Context, fits func(maps.RawInfo) bool) ([]string, error) {
	var refs []string
	for id := ebpf.MapID(0); ctx.Err() == nil; {
		var err error
		if id, err = ebpf.MapGetNextID(id); errors.Is(err, fs.ErrNotExist) {
			return refs, nil
		} else if err != nil {
			return nil, listError(err)
		}
		ref := "id:" + strconv.FormatUint(uint64(id), 10)
		r, err := k.maps().OpenRaw(ref)
		if errors.Is(err, fault.ErrNotFound) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		if fits(r.Info) {
			refs = append(refs, ref)
		}
		r.Close()
	}
	return nil, ctx.Err()
}

func listError(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fault.New(fault.ErrPermission, "list maps: %w", err).Hint("listing maps takes CAP_SYS_ADMIN")
	}
	return fmt.Errorf("list maps: %w", err)
}

func (k *Kernel) describeMaps(refs []string, pids bool) (MapListing, error) {
	l := MapListing{Maps: []Object{}}
	var by map[uint32][]holders.Process
	if pids {
		var err error
		by, err = holders.Scan(holders.Map, nil)
		if errors.Is(err, holders.ErrIncomplete) {
			l.Notes = append(l.Notes, err.Error())
		} else if err != nil {
			return MapListing{}, err
		}
	}
	for _, ref := range refs {
		o, err := k.describeMap(ref, by)
		if errors.Is(err, fault.ErrNotFound) && len(refs) > 1 {
			continue // gone meanwhile
		}
		if err != nil {
			return MapListing{}, err
		}
		l.Maps = append(l.Maps, o)
	}
	return l, nil
}

func (k *Kernel) describeMap(ref string, by map[uint32][]holders.Process) (Object, error) {
	r, err := k.maps().OpenRaw(ref)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	o, err := describe(r)
	if err != nil {
		return nil, err
	}
	if open := by[r.Info.ID]; len(open) > 0 {
		o.add("pids", open)
	}
	return o, nil
}

func mapHeader(info maps.RawInfo) Object {
	o := Object{{"id", info.ID}, {"type", mapType(info.Type)}}
	if info.Name != "" {
		o.add("name", info.Name)
	}
	o.add("flags", int32(info.Flags))
	return o
}

// mapType is the word for a map type, the number of one without a word.
func mapType(t ebpf.MapType) any {
	if word, ok := maps.TypeWord(t); ok {
		return word
	}
	return uint32(t)
}

func describe(r *maps.Raw) (Object, error) {
	o := mapHeader(r.Info)
	o.add("bytes_key", r.Info.KeySize)
	o.add("bytes_value", r.Info.ValueSize)
	o.add("max_entries", r.Info.MaxEntries)
	more, err := fdinfo(r.FD())
	if err != nil {
		return nil, err
	}
	if memlock, ok := more["memlock"]; ok {
		o.add("bytes_memlock", memlock)
	}
	if r.Info.Type == ebpf.ProgramArray {
		addOwner(&o, more)
	}
	o.add("frozen", more["frozen"])
	if r.Info.BTF != 0 {
		o.add("btf_id", r.Info.BTF)
	}
	return o, nil
}

// addOwner says which programs fit into a prog_array, once one has used it.
func addOwner(o *Object, fdinfo map[string]uint64) {
	if owner, ok := fdinfo["owner_prog_type"]; ok {
		o.add("owner_prog_type", worded(programTypes, uint32(owner)))
	}
	if jited, ok := fdinfo["owner_jited"]; ok {
		o.add("owner_jited", jited != 0)
	}
}

// fdinfo reads the numbers that the kernel tells about a descriptor.
func fdinfo(fd int) (map[string]uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("read about descriptor %d: %w", fd, err)
	}
	numbers := map[string]uint64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 0, 64); err == nil {
			numbers[name] = n
		}
	}
	return numbers, nil
}

// MapHeaders implements Maps.
func (k *Kernel) MapHeaders(ctx context.Context, ref string) ([]Object, error) {
	refs, err := k.named(ctx, ref)
	if err != nil {
		return nil, err
	}
	var headers []Object
	for _, ref := range refs {
		r, err := k.maps().OpenRaw(ref)
		if err != nil {
			return nil, err
		}
		headers = append(headers, mapHeader(r.Info))
		r.Close()
	}
	return headers, nil
}

// MapNotes implements Maps.
func (k *Kernel) MapNotes() []string { return k.mapNotes }

// MapDump implements Maps.
func (k *Kernel) MapDump(ctx context.Context, request maps.DumpRequest, emit func(entry []byte) error) error {
	r, p, err := k.printable(k.maps().OpenRaw(request.Map))
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Walk(ctx, request, func(key, value []byte, refused error) error {
		entry := p.entry(key, value, refused)
		if entry == nil {
			return nil
		}
		return emit(entry)
	})
}

// MapLookup implements Maps.
func (k *Kernel) MapLookup(_ context.Context, ref, key string) (json.RawMessage, error) {
	r, p, err := k.printable(k.maps().OpenRaw(ref))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	bytes, err := r.ParseKey(key)
	if err != nil {
		return nil, err
	}
	value, err := r.Lookup(bytes)
	if err != nil {
		return nil, err
	}
	if value == nil {
		return json.RawMessage("null"), fault.New(fault.ErrNotFound, "find key %s in map %s: no such key", key, ref)
	}
	return p.append(nil, bytes, value), nil
}

// MapNext implements Maps.
func (k *Kernel) MapNext(_ context.Context, ref string, take bool) (json.RawMessage, error) {
	r, p, err := k.printable(k.maps().OpenRawQueue(ref, take))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	value, err := r.Next(take)
	switch {
	case errors.Is(err, fault.ErrNotFound):
		return json.RawMessage("null"), err
	case err != nil:
		return nil, err
	}
	return p.append(nil, nil, value), nil
}
