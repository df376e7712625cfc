// Package bpf holds the BPF programs: their C sources, the objects compiled
// from them, and the catalogue that says what each is for.
package bpf

import "github.com/cilium/ebpf"

// Program is one entry of the catalogue: a built-in program and what a user
// needs to know to choose it.
type Program struct {
	Name       string      // as on the command line, "pod-traffic"
	Summary    string      // one sentence
	Hooks      []string    // where it can be attached: "xdp", "tc", "cgroup"
	Parameters []Parameter // what --set takes
	Maps       []Map       // what it pins
	Features   []string    // names of the probes (package probe) it depends on

	// PerInterface says that its counters are told apart by interface index
	// alone, so that one loaded instance can't serve two network namespaces in
	// which the same index is in use.
	PerInterface bool

	// Object is the compiled ELF object.
	Object []byte
	// Spec parses Object; each call returns a fresh copy.
	Spec func() (*ebpf.CollectionSpec, error)
}

// Parameter is a tunable global variable of a program.
type Parameter struct {
	Name    string `json:"name"`
	Type    string `json:"type"`    // the C type, "u32"
	Default string `json:"default"` // as --set would take it
	Unit    string `json:"unit"`    // "" when it has none
	Summary string `json:"summary"`
}

// Map is a map that users may read.
type Map struct {
	Name    string `json:"name"`
	Summary string `json:"summary"`
}

// Lookup returns the built-in program of that name.
func Lookup(name string) (Program, bool) {
	for _, p := range Catalogue() {
		if p.Name == name {
			return p, true
		}
	}
	return Program{}, false
}
