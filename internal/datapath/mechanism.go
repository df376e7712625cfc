package datapath

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
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

// readOthers reads the objects that hold other mechanisms.
func (p *loadPlan) readOthers() error {
	p.others = map[string]*ebpf.CollectionSpec{}
	for _, m := range p.mechanisms {
		if m.Object == nil || p.others[m.Name] != nil {
			continue
		}
		spec, err := bpf.ReadObject(m.Object)
		if err != nil {
			return fault.New(fault.ErrUsage, "not a usable BPF object: %w", err)
		}
		p.others[m.Name] = spec
	}
	return nil
}

// tryKprobes attaches those of a collection for a moment: that the verifier takes them
// doesn't say that the kernel has their functions, nor that it can pin them. If it can't,
// the collection is closed.
func (p *loadPlan) tryKprobes(spec *ebpf.CollectionSpec, coll *ebpf.Collection) error {
	for name, prog := range coll.Programs {
		of := spec.Programs[name]
		if of.Type != ebpf.Kprobe {
			continue
		}
		_, what, _ := strings.Cut(of.SectionName, "/")
		l, err := traceLink(spot{candidate: candidate{name: name, section: of.SectionName, typ: of.Type}, at: target{Trace: of.SectionName}}, prog)
		if err != nil {
			coll.Close()
			return fmt.Errorf("%s: %w", what, explainTrace(of.Type, err))
		}
		if !p.unpinned && errors.Is(l.Pin(""), link.ErrNotSupported) { // the empty path is refused otherwise
			err = errNoPins("kprobes")
		}
		if err := fault.Join(err, l.Close()); err != nil {
			coll.Close()
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}

// climb loads the first mechanism that the kernel takes, and leaves in the plan what
// belongs to it. That the machine runs out of something is no reason to take another.
func (p *loadPlan) climb(reuse map[string]*ebpf.Map) (*ebpf.Collection, error) {
	if _, err := probe.KernelTypes(); err != nil {
		return nil, err // which all of them read
	}
	var refused []error // the last of each mechanism
	var names []string
	for _, m := range p.mechanisms {
		of := p.spec
		if m.Object != nil {
			of = p.others[m.Name]
		}
		spec := of.Copy()
		maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return slices.Contains(m.Without, name) })
		coll, err := p.newCollectionOf(spec, reuse)
		if err == nil {
			err = p.tryKprobes(spec, coll)
		}
		if err == nil {
			of.Programs = spec.Programs
			p.spec = of
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
		if last := len(names) - 1; last >= 0 && names[last] == m.Name {
			refused, names = refused[:last], names[:last]
		}
		refused, names = append(refused, fmt.Errorf("%s: %w", m.Name, err)), append(names, m.Name)
	}
	return nil, fault.Join(refused...)
}
