package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// reload handles an instance that is loaded from the same object already. A
// replacement that was killed half-way may have left attachments on the old
// programs: they are moved on.
func (e *Engine) reload(p *loadPlan, dryRun bool) (Loaded, error) {
	stale, err := e.staleAttachments(p.name)
	if err != nil {
		return Loaded{}, err
	}
	if !dryRun {
		if err := e.moveAttachments(p.name, stale); err != nil {
			return Loaded{}, err
		}
	}
	loaded, err := e.loadedDocument(p, len(stale) > 0)
	loaded.Replaced = len(stale) > 0
	return loaded, err
}

// staleAttachments lists the attachments of an instance that run another
// program than the one pinned under their name.
func (e *Engine) staleAttachments(name string) ([]Attachment, error) {
	attachments, err := e.attachments(name)
	if err != nil {
		return nil, err
	}
	progs, err := e.programs(name)
	if err != nil {
		return nil, err
	}
	current := map[string]ObjectID{}
	for _, p := range progs {
		current[p.Name] = p.ID
	}
	var stale []Attachment
	for _, a := range attachments {
		if !a.Defunct && current[a.Program] != a.ProgID {
			stale = append(stale, a)
		}
	}
	return stale, nil
}

// replace swaps a loaded instance for the planned one. Attachments are moved
// with one atomic operation each, so that no packet passes unseen.
func (e *Engine) replace(p *loadPlan, req LoadRequest) (Loaded, error) {
	attachments, err := e.attachments(p.name)
	if err != nil {
		return Loaded{}, err
	}
	for _, a := range attachments {
		if why := p.strands(a); why != "" {
			return Loaded{}, fault.New(fault.ErrConflict, "program %s is attached to %s, and %s", a.Program, describeTarget(a), why).
				Hint("detach it first: bpfnet detach %s %s", e.group(a), p.name)
		}
	}
	reuse, err := e.reusableMaps(p, req)
	if err != nil {
		return Loaded{}, err
	}
	defer closeMaps(reuse)
	coll, err := p.newCollection(reuse)
	if err != nil {
		return Loaded{}, err
	}
	defer coll.Close()
	if req.DryRun {
		loaded := p.document(true, p.programs(coll), p.maps(coll))
		loaded.Replaced = len(attachments) > 0
		return loaded, nil
	}
	if err := e.swap(p, coll, attachments); err != nil {
		return Loaded{}, err
	}
	loaded, err := e.loadedDocument(p, true)
	if err != nil {
		return Loaded{}, fmt.Errorf("it was replaced, but can't be read back: %w", err)
	}
	loaded.Replaced = len(attachments) > 0
	return loaded, nil
}

// strands says why an attachment can't be moved to the planned programs, "" when
// it can.
func (p *loadPlan) strands(a Attachment) string {
	next := p.spec.Programs[a.Program]
	switch {
	case a.Defunct:
		return ""
	case next == nil:
		return "the new object has no program of that name"
	case hookGroup(a.Hook) == "trace":
		return "the kernel can't replace a tracing program in place"
	case !candidate{typ: next.Type, attach: next.AttachType}.fits(hookGroup(a.Hook), ""):
		return "the new program of that name is of another type: " + programType(next.Type)
	}
	return ""
}

// reusableMaps opens the maps that the new programs take over: those that they
// share with others, and on request the running maps that the new object declares
// too. Data sections are not kept: they hold the parameters of the new load. Nor
// are arrays that the object fills with its programs: those are new.
func (e *Engine) reusableMaps(p *loadPlan, req LoadRequest) (map[string]*ebpf.Map, error) {
	reuse, err := e.sharedFor(p, req.DryRun)
	if !req.ReuseMaps || err != nil {
		return reuse, err
	}
	names, err := e.root.List(p.name, pinned.Maps)
	if err != nil {
		closeMaps(reuse)
		return nil, err
	}
	if reuse == nil {
		reuse = map[string]*ebpf.Map{}
	}
	for _, name := range names {
		spec := p.spec.Maps[name]
		if spec == nil || reuse[name] != nil || isDataSection(spec) || spec.Type == ebpf.ProgramArray && len(spec.Contents) > 0 {
			continue
		}
		m, err := e.OpenMap(p.name, name, false)
		if err != nil {
			closeMaps(reuse)
			return nil, err
		}
		reuse[name] = m
	}
	return reuse, nil
}

func isDataSection(spec *ebpf.MapSpec) bool {
	return len(spec.Name) > 0 && spec.Name[0] == '.'
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

func (e *Engine) swap(p *loadPlan, coll *ebpf.Collection, attachments []Attachment) error {
	stage, err := e.stage(p, coll)
	if err != nil {
		return err
	}
	if err := e.carryLinks(stage, p.name); err != nil {
		return fault.Join(err, stage.Abort())
	}
	if err := stage.Commit(); err != nil {
		return fault.Join(err, stage.Abort())
	}
	if err := e.moveAttachments(p.name, attachments); err != nil {
		undo := stage.Rollback()
		if undo == nil {
			undo = e.moveAttachments(p.name, attachments)
		}
		return fault.Join(err, undo)
	}
	return stage.Finish()
}

// carryLinks pins the links of the running instance in the new one, too.
func (e *Engine) carryLinks(stage *pinned.Stage, name string) error {
	pins, err := e.root.List(name, pinned.Links)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		from := e.root.Path(name, pinned.Links, pin)
		err := copyLinkPin(from, stage.Path(pinned.Links, pin))
		if err != nil && replaced(from, err) {
			continue // what isn't a link goes with the old instance
		}
		if err != nil {
			return fmt.Errorf("keep link %s: %w", pin, err)
		}
		if err := stage.SetNote(pinned.Targets, pin, e.root.Note(name, pinned.Targets, pin)); err != nil {
			return err
		}
	}
	return nil
}

func copyLinkPin(from, to string) error {
	l, err := link.LoadPinnedLink(from, nil)
	if err != nil {
		return probe.Explain(probe.OpOpenPin, err)
	}
	defer l.Close()
	withFD, ok := l.(interface{ FD() int })
	if !ok {
		return fmt.Errorf("%T has no descriptor", l)
	}
	fd, err := unix.FcntlInt(uintptr(withFD.FD()), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	dup, err := link.NewFromFD(fd)
	if err != nil {
		return err
	}
	defer dup.Close()
	return dup.Pin(to)
}

// moveAttachments makes attachments run the programs that are pinned now.
func (e *Engine) moveAttachments(name string, attachments []Attachment) error {
	for _, a := range attachments {
		if a.Defunct {
			continue
		}
		if err := e.moveAttachment(name, a); err != nil {
			return fmt.Errorf("replace %s on %s: %w", a.Program, describeTarget(a), err)
		}
	}
	return nil
}

func (e *Engine) moveAttachment(name string, a Attachment) error {
	prog, err := e.openProgram(name, a.Program)
	if err != nil {
		return err
	}
	defer prog.Close()
	if a.Mechanism == mechanismNetlink {
		return replaceClsact(a, prog)
	}
	l, err := link.LoadPinnedLink(*a.Pinned, nil)
	if err != nil {
		return probe.Explain(probe.OpOpenPin, err)
	}
	defer l.Close()
	err = l.Update(prog)
	if errors.Is(err, unix.ENOLINK) {
		return nil // its interface or cgroup went away meanwhile
	}
	return probe.Explain(probe.OpUpdateLink, err)
}
