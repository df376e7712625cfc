package datapath

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
)

// force leaves one mechanism to choose from.
func (p *loadPlan) force(name string) error {
	if name == "" {
		return nil
	}
	names := bpf.MechanismNames(p.mechanisms)
	if !slices.Contains(names, name) {
		err := fault.New(fault.ErrUsage, "it has no mechanism %q", name)
		if len(names) > 0 {
			return err.Hint("it has %s", join(names))
		}
		return err
	}
	p.mechanisms = slices.DeleteFunc(slices.Clone(p.mechanisms), func(m bpf.Mechanism) bool { return m.Name != name })
	return nil
}

// climb loads the first mechanism that the kernel takes, and leaves in the plan what
// belongs to it. That the machine runs out of something is no reason to take another.
func (p *loadPlan) climb(reuse map[string]*ebpf.Map) (*ebpf.Collection, error) {
	var refused []error
	var names []string // of mechanisms, as refused has them
	for _, m := range p.mechanisms {
		spec := p.spec.Copy()
		maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return slices.Contains(m.Without, name) })
		coll, err := p.newCollectionOf(spec, reuse)
		if err == nil {
			p.spec.Programs = spec.Programs
			for i, err := range refused {
				if names[i] != m.Name {
					p.notes = append(p.notes, err.Error())
				}
			}
			return coll, nil
		}
		if exhausted(err) || errors.Is(err, fault.ErrConflict) || errors.Is(err, fault.ErrPermission) {
			return nil, err
		}
		err = fmt.Errorf("%s: %w", m.Name, err)
		if !slices.ContainsFunc(refused, func(known error) bool { return known.Error() == err.Error() }) {
			refused, names = append(refused, err), append(names, m.Name)
		}
	}
	return nil, fault.Join(refused...)
}
