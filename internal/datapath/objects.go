package datapath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"bpfnet/bpf"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Objects are the maps and iterators of a program that counts.
type Objects interface {
	// Map returns a map, which Close closes.
	Map(name string) (*ebpf.Map, error)
	// Iterate runs an iterator over the elements of a map; reading to the end gives
	// what it writes, closing ends it.
	Iterate(program, over string) (io.ReadCloser, error)
	// Programs are the functions that are loaded.
	Programs() []string
	// Missed is how often a program wasn't run since it was loaded, as it interrupted
	// itself. Kernels before 5.12 don't tell, which is 0.
	Missed(program string) (uint64, error)
	// Notes are what people should know of how it was started.
	Notes() []string
	Close() error
}

// opened implements Objects on descriptors.
type opened struct {
	maps  map[string]*ebpf.Map
	progs map[string]*ebpf.Program
	links []io.Closer
	iters map[string]*link.Iter
	notes []string
}

// Open opens what a loaded instance counts in. ErrNotFound: it isn't loaded.
func (e *Engine) Open(_ context.Context, instance string) (Objects, error) {
	if err := e.mustExist(instance); err != nil {
		return nil, err
	}
	o := &opened{maps: map[string]*ebpf.Map{}, progs: map[string]*ebpf.Program{}}
	if err := e.openObjects(instance, o); err != nil {
		return nil, fault.Join(err, o.Close())
	}
	return o, nil
}

func (e *Engine) openObjects(instance string, o *opened) error {
	names, err := e.root.List(instance, pinned.Maps)
	if err != nil {
		return err
	}
	for _, name := range names {
		written := name == bpf.FlowWalks
		m, err := e.OpenMap(instance, name, !written)
		if err != nil && written { // bpffs may be mounted to be read only
			m, err = e.OpenMap(instance, name, true)
		}
		if err != nil {
			return err
		}
		o.maps[name] = m
	}
	if names, err = e.root.List(instance, pinned.Progs); err != nil {
		return err
	}
	for _, name := range names {
		if o.progs[name], err = e.openProgram(instance, name); err != nil {
			return err
		}
	}
	return nil
}

// Start loads and attaches a program that traces, for as long as this process keeps
// it open: nothing is pinned. It needs no bpffs and no lock.
func (e *Engine) Start(_ context.Context, req LoadRequest) (Objects, error) {
	plan, err := newLoadPlan(req)
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", req.Source, err)
	}
	plan.unpinned = true
	coll, err := plan.newCollection(nil)
	if err != nil {
		return nil, fmt.Errorf("start %q: %w", req.Source, err)
	}
	o := &opened{maps: coll.Maps, progs: coll.Programs, notes: plan.notes}
	if err := o.attach(plan); err != nil {
		return nil, fault.Join(fmt.Errorf("start %q: %w", req.Source, err), o.Close())
	}
	return o, nil
}

// attach puts programs on their hooks, after the seed has run.
func (o *opened) attach(plan *loadPlan) error {
	builtin, _ := lookupBuiltin(plan.from.Source)
	if builtin.Seed != "" {
		if err := runIterator(o.progs[builtin.Seed]); err != nil {
			return err
		}
	}
	names := keys(o.progs)
	slices.SortStableFunc(names, func(a, b string) int {
		return returnsFirst(plan.spec.Programs[a].SectionName, plan.spec.Programs[b].SectionName)
	})
	for _, name := range names {
		spec := plan.spec.Programs[name]
		c := candidate{name: name, section: spec.SectionName, typ: spec.Type, attach: spec.AttachType}
		l, err := c.start(builtin, o.progs[name])
		if err != nil && c.atRoot() {
			o.notes = append(o.notes, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if l != nil {
			o.links = append(o.links, l)
		}
	}
	return nil
}

// start attaches a program that belongs to those that trace; nil if it is none.
func (c candidate) start(builtin bpf.Program, prog *ebpf.Program) (link.Link, error) {
	switch {
	case c.runsAlone(builtin):
		return nil, nil
	case builtin.AtRoot && c.atRoot():
		root, err := probe.Cgroup2Mount()
		if err != nil {
			return nil, err
		}
		return cgroupLink(root, c, prog)
	}
	_, what, _ := strings.Cut(c.section, "/")
	l, err := traceLink(spot{candidate: c, at: target{Trace: c.section}}, prog)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, explainTrace(c.typ, err))
	}
	return l, nil
}

// runsAlone says whether a program is run by whoever reads, and attached by nobody: the
// seed, and iterators over a map.
func (c candidate) runsAlone(builtin bpf.Program) bool {
	return c.name == builtin.Seed || strings.HasPrefix(c.section, "iter/bpf_")
}

// runIterator runs an iterator once for what it does.
func runIterator(prog *ebpf.Program) error {
	iter, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return fmt.Errorf("run an iterator: %w", probe.Explain(probe.OpAttachTracing, err))
	}
	defer iter.Close()
	reader, err := iter.Open()
	if err != nil {
		return fmt.Errorf("run an iterator: %w", err)
	}
	defer reader.Close()
	if _, err := io.Copy(io.Discard, reader); err != nil {
		return fmt.Errorf("run an iterator: %w", err)
	}
	return nil
}

// Map implements Objects.
func (o *opened) Map(name string) (*ebpf.Map, error) {
	if m := o.maps[name]; m != nil {
		return m, nil
	}
	return nil, fault.New(fault.ErrNotFound, "it has no map %q", name)
}

// Iterate implements Objects.
func (o *opened) Iterate(program, over string) (io.ReadCloser, error) {
	iter := o.iters[program]
	if iter == nil {
		prog, m := o.progs[program], o.maps[over]
		if prog == nil || m == nil {
			return nil, fault.New(fault.ErrNotFound, "it has no iterator %q over %q", program, over)
		}
		var err error
		if iter, err = link.AttachIter(link.IterOptions{Program: prog, Map: m}); err != nil {
			return nil, fmt.Errorf("run %s: %w", program, probe.Explain(probe.OpAttachTracing, err))
		}
		if o.iters == nil {
			o.iters = map[string]*link.Iter{}
		}
		o.iters[program] = iter
	}
	return iter.Open()
}

// Programs implements Objects.
func (o *opened) Programs() []string { return keys(o.progs) }

// Missed implements Objects.
func (o *opened) Missed(program string) (uint64, error) {
	n, err := missed(o.progs[program])
	if err != nil {
		return 0, fmt.Errorf("read program %s: %w", program, err)
	}
	return n, nil
}

// Notes implements Objects.
func (o *opened) Notes() []string { return o.notes }

// Close implements Objects.
func (o *opened) Close() error {
	var errs []error
	for _, l := range o.links {
		errs = append(errs, l.Close())
	}
	for _, iter := range o.iters {
		errs = append(errs, iter.Close())
	}
	for _, prog := range o.progs {
		errs = append(errs, prog.Close())
	}
	closeMaps(o.maps)
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, os.ErrClosed) })...)
}
