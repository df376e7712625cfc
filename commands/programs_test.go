package commands

import (
	"testing"

	"bpfnet/bpf"
	"bpfnet/internal/probe"
)

// TestSupportedByHook: a kernel without one hook runs a program at the other.
func TestSupportedByHook(t *testing.T) {
	p := bpf.Program{
		Hooks:    []bpf.Hook{{Name: "tc", Feature: "tc"}, {Name: "cgroup", Feature: "cgroup_skb"}},
		Features: []string{"map_hash"},
	}
	yes, no := probe.Available, probe.Unsupported
	for _, test := range []struct {
		tc, cgroup, hash probe.Status
		want, word       string
	}{
		{yes, yes, yes, "true", "tc yes; cgroup yes"},
		{yes, no, yes, "true", "tc yes; cgroup no: cgroup_skb"},
		{yes, probe.Unknown, yes, "true", "tc yes; cgroup unknown"},
		{no, probe.NoPermission, yes, "null", "tc no: tc; cgroup unknown"},
		{no, no, yes, "false", "tc no: tc; cgroup no: cgroup_skb"},
		{yes, no, no, "false", "tc no: map_hash; cgroup no: cgroup_skb, map_hash"},
	} {
		doc := newBuiltinDoc(p, probe.Report{Features: []probe.Result{
			{Feature: "tc", Status: test.tc}, {Feature: "cgroup_skb", Status: test.cgroup}, {Feature: "map_hash", Status: test.hash},
		}})
		got := "null"
		if doc.Supported != nil {
			got = map[bool]string{true: "true", false: "false"}[*doc.Supported]
		}
		if got != test.want {
			t.Errorf("%+v is %s", test, got)
		}
		if word := builtinTable([]builtinDoc{doc}).Rows[0][1]; word != test.word {
			t.Errorf("%+v shows %q", test, word)
		}
	}
}
