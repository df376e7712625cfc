package probe

import "bpfnet/bpf"

// neededBy returns the names of the built-in programs by the feature that they
// depend on, at every hook or at one of them.
func neededBy() map[string][]string {
	needed := map[string][]string{}
	for _, program := range bpf.Catalogue() {
		for _, hook := range program.Hooks {
			needed[hook.Feature] = append(needed[hook.Feature], program.Name)
		}
		for _, name := range program.Features {
			needed[name] = append(needed[name], program.Name)
		}
	}
	return needed
}
