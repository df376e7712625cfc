package flow

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"
)

// stateNames are the running kernel's names of the states of sockets, from its BTF;
// empty where it has none.
var stateNames = sync.OnceValue(func() map[uint64]string {
	names := map[uint64]string{}
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return names
	}
	const first = "TCP_ESTABLISHED" // the enum has no name
	for t, err := range kernel.All() {
		enum, ok := t.(*btf.Enum)
		if err != nil || !ok || !slices.ContainsFunc(enum.Values, func(v btf.EnumValue) bool { return v.Name == first }) {
			continue
		}
		for _, v := range enum.Values {
			names[v.Value] = strings.ToLower(strings.TrimPrefix(v.Name, "TCP_"))
		}
		break
	}
	return names
})

// StateName is the running kernel's name of a state of sockets in lower case, such as
// "established", or its number where the kernel tells no names.
func StateName(state uint8) string {
	if name, ok := stateNames()[uint64(state)]; ok {
		return name
	}
	return strconv.Itoa(int(state))
}

// States lists the names that StateName may give, sorted.
func States() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Values(stateNames())), func(name string) bool { return name == "max_states" })
}
