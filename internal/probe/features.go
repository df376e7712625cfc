package probe

import "context"

// feature is one entry of the list: a name, and how to find out.
type feature struct {
	name      string
	group     string
	mechanism string
	since     string
	needs     []Capability
	guarded   bool // hardened kernels refuse it to everybody
	probe     func(dir string) error
}

var features []feature

func lookup(name string) (feature, bool) {
	for _, f := range features {
		if f.name == name {
			return f, true
		}
	}
	return feature{}, false
}

func neededBy() map[string][]string { return nil }

func (f feature) result(context.Context, string, []string) Result { return Result{} }
