package testkit

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Tests that are skipped because of the kernel say so in one form, "this kernel
// has no …": test/vm/tests takes every other reason for a fault.

// Needs skips a test when err, of something that was tried, means that the
// kernel doesn't have it: ErrNotSupported, or one of lacking. It fails the test
// on any other error.
func Needs(t testing.TB, what string, err error, lacking ...error) {
	t.Helper()
	if slices.ContainsFunc(append(lacking, ebpf.ErrNotSupported), func(lack error) bool { return errors.Is(err, lack) }) {
		t.Skipf("this kernel has no %s: %.100v", what, err)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// NeedsMap skips a test on kernels without maps of a type.
func NeedsMap(t testing.TB, typ ebpf.MapType) {
	t.Helper()
	Needs(t, typ.String(), features.HaveMapType(typ))
}

// HasFloats says whether the kernel takes BTF with floats (Linux 5.13).
var HasFloats = sync.OnceValue(func() bool {
	var types btf.Builder
	if _, err := types.Add(&btf.Float{Name: "float", Size: 4}); err != nil {
		return false
	}
	handle, err := btf.NewHandle(&types)
	if err != nil {
		return !errors.Is(err, unix.EINVAL) && !errors.Is(err, ebpf.ErrNotSupported)
	}
	handle.Close()
	return true
})

// HasMember says whether a struct or union of the kernel has a member, which may lie in
// others: "raw_tracepoint.cookie" of "bpf_link_info".
func HasMember(name, path string) bool {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return false
	}
	found, err := spec.AnyTypeByName(name)
	return err == nil && hasMember(found, strings.Split(path, "."))
}

// HasEnumerator says whether an enum of the kernel has a value of that name.
func HasEnumerator(enum, value string) bool {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return false
	}
	var found *btf.Enum
	return spec.TypeByName(enum, &found) == nil &&
		slices.ContainsFunc(found.Values, func(v btf.EnumValue) bool { return v.Name == value })
}

func hasMember(t btf.Type, path []string) bool {
	if len(path) == 0 {
		return true
	}
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	return slices.ContainsFunc(members, func(m btf.Member) bool {
		return m.Name == "" && hasMember(m.Type, path) || m.Name == path[0] && hasMember(m.Type, path[1:])
	})
}
