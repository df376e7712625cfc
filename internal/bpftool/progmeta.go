package bpftool

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/maps"
)

// metadataPrefix begins the names of the read-only variables in which programs
// tell about themselves.
const metadataPrefix = "bpf_metadata_"

// metadata is what a program tells about itself: the first of its maps that
// could be a read-only section is looked at. nil: nothing.
func metadata(store *maps.Store, mapIDs []uint32) Object {
	for _, id := range mapIDs {
		r, err := store.OpenRaw(fmt.Sprintf("id:%d", id))
		if err != nil {
			return nil
		}
		defer r.Close()
		i := r.Info
		if i.Type == ebpf.Array && i.KeySize == 4 && i.MaxEntries == 1 && i.ValueType != 0 && strings.Contains(i.Name, ".rodata") {
			return readMetadata(r)
		}
	}
	return nil
}

func readMetadata(r *maps.Raw) Object {
	_, typ, err := r.Types()
	section, ok := typ.(*btf.Datasec)
	if err != nil || !ok {
		return nil
	}
	value, err := r.Lookup(make([]byte, 4))
	if err != nil || value == nil {
		return nil
	}
	var doc Object
	for _, v := range section.Vars {
		name, tells := strings.CutPrefix(v.Type.TypeName(), metadataPrefix)
		if !tells || !inSection(v, section.Size) {
			continue
		}
		if p := newPrinter(v.Type.(*btf.Var).Type, int(section.Size)); p != nil {
			doc.add(name, json.RawMessage(p.append(nil, value[v.Offset:])))
		}
	}
	return doc
}
