package maps

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
)

// variable is one of those in a map that holds a data section. Its name stands
// for the section's only key, 0.
type variable struct {
	name   string
	codec  *codec.Codec
	offset int
}

// isSection says whether a map of that value type is a program's .data, .bss or
// .rodata.
func (h *handle) isSection(value btf.Type) bool {
	_, ok := value.(*btf.Datasec)
	return ok && h.Type() == ebpf.Array && h.MaxEntries() == 1
}

// variable finds the variable that a key names.
func (h *handle) variable(key string) (variable, bool) {
	if !h.section {
		return variable{}, false
	}
	part, offset, ok := h.value.Part(key)
	return variable{key, part, offset}, ok
}

func (v variable) slice(section []byte) []byte {
	return section[v.offset : v.offset+v.codec.Size()]
}

// variableForm says how a key is written, for maps that have variables.
func (h *handle) variableForm() string {
	const most = 10
	names := h.value.Members()
	if !h.section || len(names) == 0 {
		return ""
	}
	more := ""
	if len(names) > most {
		names, more = names[:most], ", …"
	}
	return ", or as the name of a variable: " + strings.Join(names, ", ") + more
}

func (h *handle) getVariable(v variable) (Entry, error) {
	section, err := h.lookup(word(0))
	if err != nil {
		return Entry{}, err
	}
	key, _ := json.Marshal(v.name) // names are identifiers
	return Entry{Map: h.about.Ref, MapID: h.about.ID, Key: key, Value: v.codec.Append(nil, v.slice(section)), Notes: h.notes}, nil
}

// setVariable writes nothing but the variable, so that a program may write the
// others meanwhile.
func (h *handle) setVariable(r SetRequest, v variable) (Change, error) {
	value, err := v.codec.Parse(r.Value)
	if err != nil {
		return Change{}, fault.New(fault.ErrUsage, "value of %s in map %s: %w", v.name, h.about.Ref, err).
			Hint("a value of %s is written %s", v.name, v.codec.Form())
	}
	was, err := h.getVariable(v)
	if err != nil {
		return Change{}, err
	}
	change := Change{Map: was.Map, MapID: was.MapID, Key: was.Key, Value: v.codec.Append(nil, value), Previous: was.Value, Notes: append([]string{}, h.notes...)}
	change.Changed = !bytes.Equal(change.Value, change.Previous)
	if r.Condition == IfAbsent && change.Changed {
		return change, h.keyExists(r, v.name)
	}
	if !change.Changed || r.DryRun {
		return change, nil
	}
	return change, h.writeVariable(v, value)
}

// writeVariable writes into the section's memory; where the kernel doesn't map
// that (before Linux 5.5), it writes the section back with the new value in it.
func (h *handle) writeVariable(v variable, value []byte) error {
	if h.Flags()&unix.BPF_F_MMAPABLE != 0 {
		memory, err := h.Memory()
		if err == nil {
			_, err = memory.WriteAt(value, int64(v.offset))
		}
		if err != nil {
			return fmt.Errorf("change map %s: %w", h.about.Ref, err)
		}
		return nil
	}
	section, err := h.lookup(word(0))
	if err != nil {
		return err
	}
	copy(v.slice(section), value)
	if err := h.put(word(0), section, unix.BPF_ANY); err != nil {
		return h.explain("change", err)
	}
	return nil
}
