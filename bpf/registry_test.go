package bpf_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
)

func TestCatalogueSorted(t *testing.T) {
	sorted := slices.IsSortedFunc(bpf.Catalogue(), func(a, b bpf.Program) int { return strings.Compare(a.Name, b.Name) })
	if !sorted {
		t.Error("the catalogue isn't sorted by name")
	}
}

// What the catalogue says about an object is what the object holds.
func TestCatalogueMatchesObjects(t *testing.T) {
	for _, program := range bpf.Catalogue() {
		t.Run(program.Name, func(t *testing.T) {
			spec, err := program.Spec()
			if err != nil {
				t.Fatal(err)
			}
			checkMaps(t, program, spec)
			checkParameters(t, program, spec)
			checkHooks(t, program, spec)
			if spec.ByteOrder.String() != "LittleEndian" {
				t.Errorf("byte order %v", spec.ByteOrder)
			}
		})
	}
}

func checkMaps(t *testing.T, program bpf.Program, spec *ebpf.CollectionSpec) {
	t.Helper()
	var said, held []string
	for _, m := range program.Maps {
		said = append(said, m.Name)
	}
	all := maps.Clone(spec.Maps)
	for _, mechanism := range program.Mechanisms {
		if mechanism.Object == nil {
			continue
		}
		other, err := bpf.ReadObject(mechanism.Object)
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, other.Maps)
	}
	for name := range all {
		if strings.HasPrefix(name, ".") {
			continue // of global variables
		}
		if len(name) > 15 {
			t.Errorf("the kernel cuts the name of map %s", name)
		}
		held = append(held, name)
	}
	slices.Sort(said)
	slices.Sort(held)
	if !slices.Equal(said, held) {
		t.Errorf("catalogue has maps %v, object %v", said, held)
	}
}

func checkParameters(t *testing.T, program bpf.Program, spec *ebpf.CollectionSpec) {
	t.Helper()
	var said, held []string
	for _, parameter := range program.Parameters {
		said = append(said, parameter.Name)
	}
	for _, arguments := range program.Arguments {
		said = append(said, arguments.Variable)
	}
	for name, variable := range spec.Variables {
		if variable.Constant() {
			held = append(held, name)
		}
	}
	slices.Sort(said)
	slices.Sort(held)
	if !slices.Equal(said, held) {
		t.Errorf("catalogue has parameters %v, object %v", said, held)
	}
}

func checkHooks(t *testing.T, program bpf.Program, spec *ebpf.CollectionSpec) {
	t.Helper()
	hooks := map[ebpf.ProgramType]string{ebpf.XDP: "xdp", ebpf.SchedCLS: "tc", ebpf.CGroupSKB: "cgroup", ebpf.Tracing: "trace"}
	held := map[string]bool{}
	for _, p := range spec.Programs {
		if !program.AtRoot || p.Type == ebpf.Tracing {
			held[hooks[p.Type]] = true
		}
		if p.License != "Dual BSD/GPL" {
			t.Errorf("%s has licence %q", p.Name, p.License)
		}
	}
	for _, hook := range program.Hooks {
		if !held[hook.Name] {
			t.Errorf("no program for hook %s", hook.Name)
		}
		delete(held, hook.Name)
	}
	if len(held) != 0 {
		t.Errorf("hooks %v aren't in the catalogue", held)
	}
}
