package datapath

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"bpfnet/bpf"
	"bpfnet/internal/codec"
	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Load verifies an object and pins it; nothing runs yet. Loading again what is
// already loaded from the same object with the same parameters changes nothing.
// ErrConflict: the name is taken by something else and Replace isn't set.
// ErrRejected: the verifier refused a program.
func (e *Engine) Load(ctx context.Context, req LoadRequest) (Loaded, error) {
	plan, err := newLoadPlan(req)
	if err != nil {
		return Loaded{}, fmt.Errorf("load %q: %w", req.Source, err)
	}
	var loaded Loaded
	err = e.change(ctx, req.DryRun, func() error {
		loaded, err = e.load(plan, req)
		return err
	})
	if err != nil {
		return Loaded{}, fmt.Errorf("load %q: %w", req.Source, err)
	}
	return loaded, nil
}

// loadPlan is a checked LoadRequest.
type loadPlan struct {
	name       string
	spec       *ebpf.CollectionSpec
	mechanisms []bpf.Mechanism                 // of which one is to be loaded; empty: the whole object is
	others     map[string]*ebpf.CollectionSpec // of mechanisms that are in another object
	unpinned   bool                            // nothing of it is to outlive the process
	arguments  []bpf.Arguments
	notes      []string
	from       pinned.Spec
}

func newLoadPlan(req LoadRequest) (*loadPlan, error) {
	p := &loadPlan{name: req.Name}
	object := req.Object
	if builtin, ok := lookupBuiltin(req.Source); ok && object == nil {
		object, p.from.Builtin, p.arguments = builtin.Object, true, builtin.Arguments
		if len(req.Programs) == 0 {
			p.mechanisms = builtin.Mechanisms
		}
	}
	if object == nil {
		return nil, fault.New(fault.ErrNotFound, "no such built-in program or object file").Hint("bpfnet programs")
	}
	if p.name == "" {
		p.name = DefaultName(req.Source)
	}
	if err := pinned.CheckName(p.name); err != nil {
		return nil, err
	}
	spec, err := bpf.ReadObject(object)
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "not a usable BPF object: %w", err)
	}
	p.spec = spec
	for _, prepare := range []func() error{
		func() error { return p.choose(req.Programs) },
		func() error { return p.force(req.Mechanism) },
		p.readOthers,
		func() error { return p.size(req.MaxEntries) },
		func() error { return p.set(req.Set) },
		p.check,
	} {
		if err := prepare(); err != nil {
			return nil, err
		}
	}
	p.from.Source = req.Source
	p.from.Parameters = parameters(req)
	for _, m := range p.mechanisms {
		object = append(slices.Clip(object), m.Object...)
	}
	p.from.Digest = pinned.Digest(object, p.from.Parameters)
	return p, nil
}

// specs are all objects of which one is to be loaded.
func (p *loadPlan) specs() []*ebpf.CollectionSpec {
	return append(slices.Collect(maps.Values(p.others)), p.spec)
}

// lookupBuiltin finds a built-in program; a name with a path separator or an
// ending is always a file.
func lookupBuiltin(name string) (bpf.Program, bool) { return bpf.Lookup(name) }

// DefaultName is what an instance is called that is loaded without a name: the
// built-in program, or the file without its folder and ending.
func DefaultName(source string) string {
	base := filepath.Base(source)
	for _, ending := range []string{".bpf.o", ".o", ".elf"} {
		if name, ok := strings.CutSuffix(base, ending); ok && name != "" {
			return name
		}
	}
	return base
}

func parameters(req LoadRequest) map[string]string {
	all := map[string]string{}
	for k, v := range req.Set {
		all[k] = v
	}
	for k, v := range req.MaxEntries {
		all["max_entries:"+k] = strconv.FormatUint(uint64(v), 10)
	}
	for _, prog := range req.Programs {
		all["prog:"+prog] = "1"
	}
	if req.Mechanism != "" {
		all["mechanism"] = req.Mechanism
	}
	return all
}

// choose keeps only the named programs, and not the maps that only others use.
func (p *loadPlan) choose(names []string) error {
	if len(names) == 0 {
		return nil
	}
	for _, name := range names {
		if p.spec.Programs[name] == nil {
			return fault.New(fault.ErrNotFound, "the object has no program %q", name).Hint("programs: %s", join(keys(p.spec.Programs)))
		}
	}
	used, all := map[string]bool{}, map[string]bool{}
	for _, name := range names {
		p.use(used, name)
	}
	for name := range p.spec.Programs {
		p.use(all, name)
	}
	// A map that no program names is for user space: it stays.
	left := func(name string) bool { return all[name] && !used[name] }
	maps.DeleteFunc(p.spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return left(name) })
	maps.DeleteFunc(p.spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return left(name) })
	maps.DeleteFunc(p.spec.Variables, func(_ string, v *ebpf.VariableSpec) bool { return left(v.SectionName) })
	return nil
}

// use marks a program or map and all that it needs: the maps of a program, the
// programs and maps that the object puts into a map.
func (p *loadPlan) use(used map[string]bool, name string) {
	if used[name] {
		return
	}
	used[name] = true
	if prog := p.spec.Programs[name]; prog != nil {
		for _, ins := range prog.Instructions {
			if ref := ins.Reference(); p.spec.Maps[ref] != nil {
				p.use(used, ref)
			}
		}
	}
	if m := p.spec.Maps[name]; m != nil {
		for _, entry := range m.Contents {
			if inside, ok := entry.Value.(string); ok {
				p.use(used, inside)
			}
		}
	}
}

func (p *loadPlan) size(entries map[string]uint32) error {
	for name, n := range entries {
		all := map[string]*ebpf.MapSpec{}
		for _, spec := range p.specs() {
			maps.Copy(all, spec.Maps)
			if m := spec.Maps[name]; m != nil {
				m.MaxEntries = n
			}
		}
		if all[name] == nil {
			return fault.New(fault.ErrUsage, "--max-entries %s: the object has no such map", name).Hint("maps: %s", join(keys(all)))
		}
		if n == 0 {
			return fault.New(fault.ErrUsage, "--max-entries %s: must be at least 1", name)
		}
	}
	return nil
}

func (p *loadPlan) set(values map[string]string) error {
	for name, text := range values {
		if slices.ContainsFunc(p.arguments, func(a bpf.Arguments) bool { return a.Variable == name }) {
			return fault.New(fault.ErrUsage, "--set %s: the kernel decides it", name)
		}
		for _, spec := range p.specs() {
			if err := setVariable(spec, name, text); err != nil {
				return err
			}
		}
	}
	return nil
}

func setVariable(spec *ebpf.CollectionSpec, name, text string) error {
	v := spec.Variables[name]
	if v == nil {
		return fault.New(fault.ErrUsage, "--set %s: the object has no such global variable", name).Hint("variables: %s", join(keys(spec.Variables)))
	}
	if v.Type == nil {
		return fault.New(fault.ErrUsage, "--set %s: the object has no type information (BTF) for it", name).Hint("compile it with clang -g")
	}
	raw, err := codec.New(v.Type.Type, int(v.Size())).Parse(text)
	if err == nil {
		err = v.Set(raw)
	}
	if err != nil {
		return fault.New(fault.ErrUsage, "--set %s=%s: %w", name, text, err)
	}
	return nil
}

// check finds what the kernel would refuse with a message nobody understands,
// and prepares the object for being pinned by us.
func (p *loadPlan) check() error {
	if len(p.spec.Programs) == 0 && len(p.spec.Maps) == 0 {
		return fault.New(fault.ErrUsage, "the object has no programs and no maps")
	}
	for _, prog := range p.spec.Programs {
		if prog.Type == ebpf.UnspecifiedProgram {
			prog.Type = guessType(prog.SectionName)
		}
		if prog.Type == ebpf.UnspecifiedProgram {
			return fault.New(fault.ErrUsage, "program %s: section %q names no known program type", prog.Name, prog.SectionName).
				Hint(`use a section name that libbpf knows, such as SEC("tc") or SEC("xdp")`)
		}
	}
	for name, m := range p.spec.Maps {
		if m.Pinning != ebpf.PinNone {
			m.Pinning = ebpf.PinNone
			p.notes = append(p.notes, fmt.Sprintf("map %s asks to be pinned by name: it is pinned with the rest of %s", name, p.name))
		}
		if m.Extra != nil && m.Extra.Len() > 0 {
			m.Extra = nil
			p.notes = append(p.notes, fmt.Sprintf("map %s: what its definition says beyond type, sizes and flags (iproute2's id and pinning) is ignored", name))
		}
	}
	sort.Strings(p.notes)
	return nil
}

// guessType knows the section names of objects made for iproute2 and for
// loaders of their own.
func guessType(section string) ebpf.ProgramType {
	for _, guess := range []struct {
		prefix string
		typ    ebpf.ProgramType
	}{
		{"xdp", ebpf.XDP}, {"classifier", ebpf.SchedCLS}, {"cls", ebpf.SchedCLS}, {"tc", ebpf.SchedCLS},
		{"prog", ebpf.XDP}, {"ingress", ebpf.SchedCLS}, {"egress", ebpf.SchedCLS}, {"act", ebpf.SchedACT}, {"sockops", ebpf.SockOps},
		{"sock_ops", ebpf.SockOps}, {"cgroup_skb", ebpf.CGroupSKB},
	} {
		if strings.HasPrefix(section, guess.prefix) {
			return guess.typ
		}
	}
	return ebpf.UnspecifiedProgram
}

func (e *Engine) load(p *loadPlan, req LoadRequest) (Loaded, error) {
	exists := e.root.Exists(p.name)
	same := exists && e.root.Spec(p.name).Digest == p.from.Digest
	switch {
	case same:
		return e.reload(p, req.DryRun)
	case exists && !req.Replace:
		return Loaded{}, fault.New(fault.ErrConflict, "%q is already loaded from another object or with other parameters", p.name).
			Hint("add --replace to swap it in place, or --name for a second instance")
	case exists:
		return e.replace(p, req)
	default:
		return e.create(p, req.DryRun)
	}
}

// create loads an instance under a name that is free.
func (e *Engine) create(p *loadPlan, dryRun bool) (Loaded, error) {
	shared, err := e.sharedFor(p, dryRun)
	if err != nil {
		return Loaded{}, err
	}
	defer closeMaps(shared)
	coll, err := p.newCollection(shared)
	if err != nil {
		return Loaded{}, err
	}
	defer coll.Close()
	if dryRun {
		return p.document(true, p.programs(coll), p.maps(coll)), nil
	}
	stage, err := e.stage(p, coll)
	if err != nil {
		return Loaded{}, err
	}
	if err := stage.Commit(); err != nil {
		return Loaded{}, fault.Join(err, stage.Abort())
	}
	loaded, err := e.loadedDocument(p, true)
	if err != nil {
		return Loaded{}, fault.Join(err, stage.Rollback())
	}
	return loaded, nil
}

// newCollection loads maps and programs into the kernel, with reuse in place of
// the maps of those names.
func (p *loadPlan) newCollection(reuse map[string]*ebpf.Map) (*ebpf.Collection, error) {
	liftMemlock()
	if len(p.mechanisms) > 0 {
		return p.climb(reuse)
	}
	return p.newCollectionOf(p.spec.Copy(), reuse)
}

func (p *loadPlan) newCollectionOf(spec *ebpf.CollectionSpec, reuse map[string]*ebpf.Map) (*ebpf.Collection, error) {
	if err := setArguments(spec, p.arguments); err != nil {
		return nil, err
	}
	for name := range reuse {
		spec.Maps[name].Contents = nil // maps of maps would be filled again
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: reuse})
	if err == nil {
		return coll, nil
	}
	if few := fewFiles(spec, err); few != nil {
		return nil, fmt.Errorf("%s: %w", operation(spec), few)
	}
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return nil, fault.New(fault.ErrConflict, "the running maps can't be kept: %w", err).
			Hint("without --reuse-maps the maps start empty; lists that another bpfnet made start anew after: bpfnet blocklist clear")
	}
	explained := probe.Explain(operation(spec), err)
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) && lacksAtomics(verifier.Log) {
		return nil, fault.New(fault.ErrUnsupported, "this kernel has no atomic operations that return a value").Hint("Linux 5.12 and later have them")
	}
	if errors.As(err, &verifier) && len(verifier.Log) > 0 && !errors.Is(explained, fault.ErrPermission) && !exhausted(err) {
		return nil, &rejection{program: refused(spec, err), cause: err, log: verifier.Log}
	}
	return nil, explained
}

// lacksAtomics says whether the verifier met an operation that older ones call this.
func lacksAtomics(log []string) bool {
	return slices.ContainsFunc(log, func(line string) bool { return strings.TrimSpace(line) == "BPF_STX uses reserved fields" })
}

// collectionFiles is how many descriptors a collection takes beside those of its
// maps and programs, at most: its BTF, inner maps, and what is tried out.
const collectionFiles = 8

// fewFiles is the error of a collection for which there are not enough descriptors.
// When cilium/ebpf finds that out while it tries a feature, it takes the feature for
// missing.
func fewFiles(spec *ebpf.CollectionSpec, err error) error {
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return nil
	}
	var open []int
	defer func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}()
	for range len(spec.Maps) + len(spec.Programs) + collectionFiles {
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			return err
		}
		if err == nil {
			open = append(open, fd)
		}
	}
	return nil
}

// exhausted says that the machine, not the verifier, was the reason: of memory
// or descriptors the kernel runs out with a log, too.
func exhausted(err error) bool {
	return slices.ContainsFunc([]error{unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EAGAIN, unix.EINTR}, func(errno error) bool { return errors.Is(err, errno) })
}

// refused is the program that an error of loading is about, "" if it doesn't
// say: cilium/ebpf names it only in the text.
func refused(spec *ebpf.CollectionSpec, err error) string {
	for name := range spec.Programs {
		if strings.HasPrefix(err.Error(), "program "+name+":") {
			return name
		}
	}
	return ""
}

// operation is what loading needs the capabilities for: those of the program
// type that asks for most.
func operation(spec *ebpf.CollectionSpec) probe.Op {
	rank := []probe.Op{probe.OpCreateMap, probe.OpLoadCgroup, probe.OpLoadTC, probe.OpLoadXDP, probe.OpLoadTracing, probe.OpLoadTrampoline}
	most := 0
	for _, prog := range spec.Programs {
		most = max(most, slices.Index(rank, loadOperation(prog)))
	}
	return rank[most]
}

func loadOperation(prog *ebpf.ProgramSpec) probe.Op {
	switch {
	case prog.Type == ebpf.LSM, prog.Type == ebpf.Tracing && !strings.HasPrefix(prog.SectionName, "tp_btf") && !strings.HasPrefix(prog.SectionName, "iter"):
		return probe.OpLoadTrampoline
	case isTrace(prog.Type):
		return probe.OpLoadTracing
	case prog.Type == ebpf.XDP:
		return probe.OpLoadXDP
	case prog.Type == ebpf.SchedCLS, prog.Type == ebpf.SchedACT:
		return probe.OpLoadTC
	default:
		return probe.OpLoadCgroup
	}
}

// stage pins a collection beside the instance, and closes it: its descriptors
// may be what reading back and undoing lack.
func (e *Engine) stage(p *loadPlan, coll *ebpf.Collection) (*pinned.Stage, error) {
	defer coll.Close()
	stage, err := e.root.NewStage(p.name, p.from)
	if err != nil {
		return nil, err
	}
	if err := pinAll(stage, p.spec, coll); err != nil {
		coll.Close()
		return nil, fault.Join(err, stage.Abort())
	}
	return stage, nil
}

func pinAll(stage *pinned.Stage, spec *ebpf.CollectionSpec, coll *ebpf.Collection) error {
	for name, m := range coll.Maps {
		if err := pinCopy(m, stage.Path(pinned.Maps, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for name, prog := range coll.Programs {
		if err := prog.Pin(stage.Path(pinned.Progs, name)); err != nil {
			return fmt.Errorf("pin program %s: %w", name, probe.Explain(probe.OpPin, err))
		}
		s := spec.Programs[name]
		if err := stage.SetNote(pinned.Sections, name, sectionNote(s.SectionName, s.AttachType)); err != nil {
			return err
		}
	}
	return nil
}

// sectionNote is what is remembered of a program: the ELF section and the
// attach type, which the kernel doesn't report.
func sectionNote(section string, attach ebpf.AttachType) string {
	return fmt.Sprintf("%d %s", attach, section)
}

func parseSectionNote(text string) (section string, attach ebpf.AttachType) {
	number, section, _ := strings.Cut(text, " ")
	n, _ := strconv.ParseUint(number, 10, 32)
	return section, ebpf.AttachType(n)
}

func (p *loadPlan) document(changed bool, progs []Program, maps []MapRef) Loaded {
	return Loaded{
		Changed: changed, Name: p.name, Source: p.from.Source, Builtin: p.from.Builtin,
		Programs: progs, Maps: maps, Notes: append([]string{}, p.notes...),
	}
}

func (e *Engine) loadedDocument(p *loadPlan, changed bool) (Loaded, error) {
	progs, err := e.programs(p.name)
	if err != nil {
		return Loaded{}, err
	}
	maps, err := e.mapRefs(p.name)
	if err != nil {
		return Loaded{}, err
	}
	return p.document(changed, progs, maps), nil
}

func (p *loadPlan) programs(coll *ebpf.Collection) []Program {
	docs := []Program{}
	for _, name := range keys(coll.Programs) {
		doc, err := describeProgram(coll.Programs[name], name)
		if err != nil {
			continue
		}
		doc.Set, doc.Section = p.name, p.spec.Programs[name].SectionName
		doc.ID, doc.MapIDs = 0, []uint32{} // those of the trial are gone
		docs = append(docs, doc)
	}
	return docs
}

func (p *loadPlan) maps(coll *ebpf.Collection) []MapRef {
	docs := []MapRef{}
	for _, name := range keys(coll.Maps) {
		if doc, err := describeMap(coll.Maps[name], name); err == nil {
			doc.ID = 0
			docs = append(docs, doc)
		}
	}
	return docs
}

func keys[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for k := range m {
		names = append(names, k)
	}
	sort.Strings(names)
	return names
}

func join(names []string) string { return strings.Join(names, ", ") }
