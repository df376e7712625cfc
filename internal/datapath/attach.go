package datapath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Attach puts programs of a loaded instance on hooks, each by the best mechanism
// that works, and pins what holds them there. What is attached already stays as
// it is. Either everything that the requests, of one instance, ask for is attached
// or nothing more than before.
func (e *Engine) Attach(ctx context.Context, reqs ...AttachRequest) (Attached, error) {
	at := AttachRequest{Hook: reqs[0].Hook, Name: reqs[0].Name} // until it is known which one fails
	if len(reqs) == 1 {
		at = reqs[0]
	}
	attached := Attached{Name: at.Name}
	err := e.change(ctx, reqs[0].DryRun, func() error {
		if err := e.mustExist(at.Name); err != nil {
			return err
		}
		existing, err := e.attachments(at.Name)
		if err != nil {
			return err
		}
		var done []step
		for _, at = range reqs {
			steps, err := e.attach(at, existing)
			if err != nil && at.MayBeGone && at.gone() {
				attached.Notes = append(attached.Notes, fmt.Sprintf("%s went away before it was attached to", at.Device))
				continue
			}
			if err != nil {
				return fault.Join(err, e.undo(done))
			}
			done = append(done, steps...)
			for _, s := range steps {
				attached.Changed = attached.Changed || s.doc.Changed
				attached.Attachments = append(attached.Attachments, s.doc)
				if s.fresh {
					existing = append(existing, s.doc)
				}
			}
		}
		return nil
	})
	if err != nil {
		return Attached{}, fmt.Errorf("attach %s %q%s: %w", at.Hook, at.Name, requestTarget(at), err)
	}
	return attached, nil
}

func requestTarget(req AttachRequest) string {
	switch {
	case req.Device != "":
		return fmt.Sprintf(" to %q", req.Device)
	case req.Cgroup != "":
		return fmt.Sprintf(" to %q", req.Cgroup)
	default:
		return ""
	}
}

// gone says whether the interface that a request names isn't there.
func (r AttachRequest) gone() bool {
	_, err := r.device()
	return errors.Is(err, fault.ErrNotFound)
}

// device looks up the interface that a request names.
func (r AttachRequest) device() (device, error) {
	dev, err := resolveDevice(r.Device)
	if err == nil && r.IfIndex != 0 && r.IfIndex != dev.IfIndex {
		return dev, fault.New(fault.ErrNotFound, "the interface went away, and another one has its name")
	}
	return dev, err
}

// spot is one program on its way to one hook of one target.
type spot struct {
	candidate
	hook  string
	at    target
	dev   device
	notes []string
}

// step is a spot that was attached.
type step struct {
	doc   Attachment
	fresh bool        // it wasn't before
	from  *Attachment // whose place it took; nil: nobody's
}

// attach does what one request asks for, or nothing.
func (e *Engine) attach(req AttachRequest, existing []Attachment) ([]step, error) {
	spots, err := e.spots(req, existing)
	if err == nil {
		err = e.seed(req, existing)
	}
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, s := range spots {
		done := step{fresh: !req.DryRun && !slices.ContainsFunc(existing, s.isAt)}
		if done.fresh && req.Replace && s.hook == hookXDP {
			done.from, err = e.xdpHolder(s.dev)
		}
		if err == nil {
			done.doc, err = e.attachSpot(req, s, existing)
		}
		if err != nil {
			return nil, fault.Join(s.vanished(err), e.undo(steps))
		}
		steps = append(steps, done)
	}
	return steps, nil
}

// vanished explains an error that came because the target was removed since it
// was looked up.
func (s spot) vanished(err error) error {
	gone := false
	switch {
	case s.at.IfIndex != 0:
		gone = deviceGone(s.at.IfIndex)
	case s.at.CgroupID != 0:
		_, statErr := os.Stat(s.at.Cgroup)
		gone = isNotExist(statErr)
	}
	if !gone {
		return err
	}
	return fault.New(fault.ErrNotFound, "its target went away while it was being attached")
}

// deviceGone says whether no device of this network namespace has the index.
func deviceGone(index uint32) bool {
	var missing netlink.LinkNotFoundError
	_, err := netlink.LinkByIndex(int(index))
	return errors.As(err, &missing)
}

// undo takes off again what was attached. A filter goes with its device.
func (e *Engine) undo(steps []step) error {
	var errs []error
	for _, s := range steps {
		if !s.fresh {
			continue
		}
		err := error(nil)
		if s.from != nil {
			err = e.giveBack(s.doc, *s.from)
		} else {
			err = e.detachOne(s.doc)
		}
		if err != nil && !(s.doc.Mechanism == mechanismNetlink && deviceGone(*s.doc.IfIndex)) {
			errs = append(errs, err)
		}
	}
	return fault.Join(errs...)
}

// spots resolves a request: which programs go where.
func (e *Engine) spots(req AttachRequest, existing []Attachment) ([]spot, error) {
	switch req.Hook {
	case "xdp", "tc":
		return e.deviceSpots(req, existing)
	case "sockops", "cgroup":
		if e.atRoot(req.Name) {
			return nil, fault.New(fault.ErrUsage, "its programs at the root of cgroup2 belong to those that trace").Hint("bpfnet attach trace %s", req.Name)
		}
		return e.cgroupSpots(req)
	case "trace":
		return e.traceSpots(req)
	default:
		return nil, fault.New(fault.ErrUsage, "unknown hook %q", req.Hook)
	}
}

func (e *Engine) deviceSpots(req AttachRequest, existing []Attachment) ([]spot, error) {
	dev, err := req.device()
	if err != nil {
		return nil, err
	}
	if err := e.checkPerInterface(req.Name, dev, existing); err != nil {
		return nil, err
	}
	directions := []Direction{""}
	switch {
	case req.Hook == "tc" && req.Direction == Both:
		directions = []Direction{Ingress, Egress}
	case req.Hook == "tc":
		directions = []Direction{req.Direction}
	}
	var spots []spot
	for _, direction := range directions {
		fitting, err := e.pick(req.Name, req.Hook, req.Program, direction)
		if err != nil {
			return nil, err
		}
		s := spot{dev: dev, at: dev.target, hook: hookXDP}
		if req.Hook == "tc" {
			s.hook = "tcx_" + string(direction)
		}
		if s.candidate, err = one(req.Name, fitting, dev, &s.notes); err != nil {
			return nil, err
		}
		spots = append(spots, s)
	}
	return spots, nil
}

// checkPerInterface refuses an attachment that would mix the counters of two
// interfaces with one index.
func (e *Engine) checkPerInterface(instance string, dev device, existing []Attachment) error {
	builtin, ok := lookupBuiltin(e.root.Spec(instance).Source)
	if !ok || !builtin.PerInterface {
		return nil
	}
	for _, a := range existing {
		if a.IfIndex != nil && *a.IfIndex == dev.IfIndex && *a.NetNS != dev.NetNS && !a.Defunct {
			return fault.New(fault.ErrConflict, "it counts interface %d of another network namespace (%s) already, and couldn't tell the two apart", dev.IfIndex, *a.DevName).
				Hint("load a second instance: bpfnet load %s --name NAME", builtin.Name)
		}
	}
	return nil
}

func (e *Engine) attachSpot(req AttachRequest, s spot, existing []Attachment) (Attachment, error) {
	for _, a := range existing {
		if s.isAt(a) {
			return e.alreadyAttached(req, s, a)
		}
	}
	if req.DryRun {
		return planned(req, s), e.checkFree(req, s)
	}
	prog, err := e.openProgram(req.Name, s.name)
	if err != nil {
		return Attachment{}, err
	}
	defer prog.Close()
	switch hookGroup(s.hook) {
	case "xdp":
		return e.attachXDP(req, s, prog)
	case "tc":
		return e.attachTC(req, s, prog)
	case "trace":
		return e.attachTrace(req, s, prog)
	default:
		return e.attachCgroup(req, s, prog)
	}
}

// isAt says whether an attachment is the one that the spot asks for, whatever
// mechanism holds it.
func (s spot) isAt(a Attachment) bool {
	if a.Defunct || a.Program != s.name || hookGroup(a.Hook) != hookGroup(s.hook) || hookDirection(a.Hook) != hookDirection(s.hook) {
		return false
	}
	switch {
	case s.at.IfIndex != 0:
		return a.IfIndex != nil && *a.IfIndex == s.at.IfIndex && *a.NetNS == s.at.NetNS
	case s.at.CgroupID != 0:
		return a.Hook == s.hook && a.CgroupID != nil && *a.CgroupID == fmt.Sprint(s.at.CgroupID)
	default:
		return a.Target != nil && *a.Target == s.at.Trace
	}
}

// alreadyAttached checks that what is there is what the request asks for.
func (e *Engine) alreadyAttached(req AttachRequest, s spot, a Attachment) (Attachment, error) {
	if s.dev.link != nil && !runs(s.dev.link, a) {
		return Attachment{}, fault.New(fault.ErrConflict, "it is attached to %q, which had the index of %q before it was moved to another network namespace", *a.DevName, s.at.DevName).
			Hint("detach it from there: bpfnet detach %s %s", req.Hook, req.Name)
	}
	if err := checkMode(req, a); err != nil {
		return Attachment{}, err
	}
	if req.Hook == "tc" {
		if err := e.checkPosition(req, a); err != nil {
			return Attachment{}, err
		}
	}
	prog, err := e.program(req.Name, a.Program)
	if err != nil || prog.ID == a.ProgID {
		return a, err
	}
	if a.Changed = true; req.DryRun {
		return a, nil
	}
	if err := e.moveAttachment(req.Name, a); err != nil {
		return Attachment{}, err
	}
	s.hook = a.Hook
	return e.readBack(req.Name, s, a)
}

// checkMode refuses a request for a mode of XDP that an attachment doesn't have.
func checkMode(req AttachRequest, a Attachment) error {
	if req.Hook != "xdp" || req.Mode == "" || req.Mode == ModeAuto || a.Mode == nil || *a.Mode == string(req.Mode) {
		return nil
	}
	return fault.New(fault.ErrConflict, "%s is attached in mode %s", a.Name, *a.Mode).Hint("bpfnet detach xdp %s --dev %s", a.Name, req.Device)
}

// readBack describes what was attached at a spot just now.
func (e *Engine) readBack(instance string, s spot, doc Attachment) (Attachment, error) {
	here, err := netns.Inode("")
	if err != nil {
		return Attachment{}, err
	}
	var docs []Attachment
	if strings.HasPrefix(s.hook, "clsact_") {
		docs, err = e.clsactAttachments(instance, here)
	} else {
		docs = make([]Attachment, 1)
		docs[0], err = e.linkAttachment(instance, linkPin(s.hook, s.name, s.at), here, netlink.LinkByIndex)
	}
	if err != nil {
		return Attachment{}, err
	}
	for _, a := range docs {
		if s.isAt(a) {
			a.Changed = true
			a.RefusedWhy, a.Notes = doc.RefusedWhy, doc.Notes
			return a, nil
		}
	}
	return Attachment{}, fault.New(fault.ErrNotFound, "its target went away while it was being attached")
}

// planned is the document of an attachment that a dry run would make.
func planned(req AttachRequest, s spot) Attachment {
	doc := Attachment{
		Changed: true, Name: req.Name, Program: s.name, Hook: s.hook,
		Mechanism: mechanismLink, RefusedWhy: []string{}, Notes: append([]string{}, s.notes...),
	}
	if hookGroup(s.hook) == "tc" && noTCX() {
		doc.Hook, doc.Mechanism = clsactHook(hookDirection(s.hook)), mechanismNetlink
		doc.RefusedWhy = []string{tcxMissing}
	}
	describeRemembered(&doc, s.at)
	return doc
}

// pinLink pins a fresh link in its instance and reads it back. On error the link
// is gone again.
func (e *Engine) pinLink(req AttachRequest, s spot, l link.Link, refused []string) (Attachment, error) {
	defer l.Close() // the pin holds it, if there is one
	text, err := json.Marshal(s.at)
	if err != nil {
		return Attachment{}, err
	}
	pin := linkPin(s.hook, s.name, s.at)
	if err := e.dropDefunct(req.Name, pin); err != nil {
		return Attachment{}, err
	}
	if err := e.root.SetNote(req.Name, pinned.Targets, pin, string(text)); err != nil {
		return Attachment{}, err
	}
	path := e.root.Path(req.Name, pinned.Links, pin)
	if err := l.Pin(path); errors.Is(err, link.ErrNotSupported) {
		return Attachment{}, errNoPins("programs on " + s.at.Trace)
	} else if err != nil {
		return Attachment{}, fmt.Errorf("pin link: %w", probe.Explain(probe.OpPin, err))
	}
	doc, err := e.readBack(req.Name, s, Attachment{RefusedWhy: append([]string{}, refused...), Notes: append([]string{}, s.notes...)})
	if err != nil {
		return Attachment{}, fault.Join(err, os.Remove(path))
	}
	return doc, nil
}

// errNoPins is the answer where links on perf events can't be pinned.
func errNoPins(what string) error {
	return fault.New(fault.ErrUnsupported, "this kernel can't pin %s, so they would end with the command", what).
		Hint("Linux 5.15 and later can; watch commands count by themselves where nothing is loaded")
}

// dropDefunct removes a pin whose target is gone, so that a new one can take its
// name: indices of interfaces are used again.
func (e *Engine) dropDefunct(instance, pin string) error {
	err := os.Remove(e.root.Path(instance, pinned.Links, pin))
	if err != nil && !isNotExist(err) {
		return fmt.Errorf("remove defunct link %s: %w", pin, err)
	}
	return nil
}

// checkFree says for a dry run whether the hook can be taken.
func (e *Engine) checkFree(req AttachRequest, s spot) (err error) {
	switch hookGroup(s.hook) {
	case "tc":
		if _, err = e.anchor(req.Position, s); err == nil && noTCX() && (req.Position.Before != "" || req.Position.After != "") {
			err = errNoNeighbours()
		}
	case "xdp":
		if x := s.dev.link.Attrs().Xdp; x != nil && x.Attached {
			_, err = e.replaceableXDP(req, s.dev)
		}
	}
	return err
}

// traceSpots resolves what the programs of an instance trace.
func (e *Engine) traceSpots(req AttachRequest) ([]spot, error) {
	fitting, err := e.pick(req.Name, req.Hook, req.Program, "")
	if err != nil {
		return nil, err
	}
	builtin, _ := lookupBuiltin(e.root.Spec(req.Name).Source)
	var spots []spot
	if builtin.AtRoot && req.Program == "" {
		if spots, err = e.rootSpots(req); err != nil {
			return nil, err
		}
	}
	for _, c := range fitting {
		if c.runsAlone(builtin) && req.Program == "" {
			continue
		}
		if c.runsAlone(builtin) {
			return nil, fault.New(fault.ErrUsage, "program %s is run when it is needed, and attached to nothing", c.name)
		}
		kind, what, ok := strings.Cut(c.section, "/")
		if !ok || what == "" {
			return nil, fault.New(fault.ErrUsage, "program %s: section %q doesn't say what to trace", c.name, c.section).
				Hint(`name it in the object, such as SEC("tp_btf/sched_switch")`)
		}
		spots = append(spots, spot{candidate: c, hook: hookTrace, at: target{Trace: kind + "/" + what}})
	}
	slices.SortStableFunc(spots, func(a, b spot) int { return returnsFirst(a.section, b.section) })
	return spots, nil
}

// atRoot says whether cgroup programs of an instance belong to those that trace.
func (e *Engine) atRoot(instance string) bool {
	builtin, _ := lookupBuiltin(e.root.Spec(instance).Source)
	return builtin.AtRoot
}

// rootSpots are those of cgroup programs that belong to those that trace.
func (e *Engine) rootSpots(req AttachRequest) (spots []spot, err error) {
	req.Hook = hookRoot
	if req.Cgroup, err = probe.Cgroup2Mount(); err != nil {
		return nil, fault.New(fault.ErrUnsupported, "%w", err).Hint("mount -t cgroup2 none /sys/fs/cgroup")
	}
	return e.cgroupSpots(req)
}

// seed runs the iterator that is to run before the first program of an instance traces.
func (e *Engine) seed(req AttachRequest, existing []Attachment) error {
	builtin, _ := lookupBuiltin(e.root.Spec(req.Name).Source)
	if req.Hook != "trace" || req.DryRun || builtin.Seed == "" || len(existing) > 0 {
		return nil
	}
	prog, err := e.openProgram(req.Name, builtin.Seed)
	if err != nil {
		return err
	}
	defer prog.Close()
	return runIterator(prog)
}

func (e *Engine) attachTrace(req AttachRequest, s spot, prog *ebpf.Program) (Attachment, error) {
	l, err := traceLink(s, prog)
	if err != nil {
		return Attachment{}, fmt.Errorf("%s: %w", s.at.Trace, explainTrace(s.typ, err))
	}
	return e.pinLink(req, s, l, nil)
}

func explainTrace(typ ebpf.ProgramType, err error) error {
	op := probe.OpAttachTracing
	if typ == ebpf.TracePoint || typ == ebpf.Kprobe {
		op = probe.OpAttachPerf
		if _, statErr := os.Stat("/sys/kernel/tracing/events"); statErr != nil {
			return fault.New(fault.ErrUnsupported, "tracefs is not mounted: %w", err).Hint("mount -t tracefs nodev /sys/kernel/tracing")
		}
	}
	if _, statErr := os.Stat(kprobeEvents); typ == ebpf.Kprobe && isNotExist(statErr) {
		return fault.New(fault.ErrUnsupported, "this kernel has no kprobes: it was built without CONFIG_KPROBE_EVENTS").Hint("bpfnet doctor lists what it has instead")
	}
	if isNotExist(err) {
		return fault.New(fault.ErrNotFound, "the kernel has nothing of that name: %w", err)
	}
	return probe.Explain(op, err)
}

func traceLink(s spot, prog *ebpf.Program) (link.Link, error) {
	kind, what, _ := strings.Cut(s.at.Trace, "/")
	switch s.typ {
	case ebpf.RawTracepoint, ebpf.RawTracepointWritable:
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: what, Program: prog})
	case ebpf.TracePoint:
		group, name, ok := strings.Cut(what, "/")
		if !ok {
			return nil, fault.New(fault.ErrUsage, "section %q: want tracepoint/GROUP/NAME", s.section)
		}
		return link.Tracepoint(group, name, prog, nil)
	case ebpf.Kprobe:
		if strings.HasPrefix(kind, "kret") {
			return kretprobe(what, prog)
		}
		return link.Kprobe(what, prog, nil)
	case ebpf.LSM:
		return link.AttachLSM(link.LSMOptions{Program: prog})
	default:
		return link.AttachTracing(link.TracingOptions{Program: prog})
	}
}
