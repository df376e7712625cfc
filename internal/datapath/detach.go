package datapath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf/link"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Detach takes attachments of an instance off their hooks, those that any of the
// requests selects. Nothing that matches is success without a change; an instance,
// device or cgroup that doesn't exist is noted.
func (e *Engine) Detach(ctx context.Context, reqs ...DetachRequest) (Attached, error) {
	var detached Attached
	err := e.change(ctx, reqs[0].DryRun, func() error {
		var err error
		detached, err = e.detach(reqs)
		return err
	})
	if detached.Changed && !reqs[0].DryRun {
		dropEvents()
	}
	if err != nil {
		return detached, fmt.Errorf("%s: %w", reqs[0].describe(), err)
	}
	return detached, nil
}

func (r DetachRequest) describe() string {
	text := "detach"
	if r.Hook != "" {
		text += " " + r.Hook
	}
	if r.Name != "" {
		text += fmt.Sprintf(" %q", r.Name)
	}
	return text
}

func (e *Engine) detach(reqs []DetachRequest) (Attached, error) {
	req := reqs[0]
	names := []string{req.Name}
	if req.Name == "" {
		if !req.Defunct {
			return Attached{}, fault.New(fault.ErrUsage, "which one? give the NAME of a loaded program")
		}
		var err error
		if names, err = e.root.Names(); err != nil {
			return Attached{}, err
		}
	} else if err := e.root.Check(); err != nil {
		return Attached{}, err
	}
	result := Attached{Name: req.Name, Attachments: []Attachment{}}
	if req.Name != "" && !e.root.Exists(req.Name) {
		result.Notes = []string{e.notLoaded(req.Name).Error()}
		return result, nil
	}
	for _, name := range names {
		if err := e.detachMatching(name, reqs, &result); err != nil {
			return result, partly(err, result.Attachments)
		}
	}
	if !result.Changed && !req.Defunct {
		for _, r := range reqs {
			result.Notes = append(result.Notes, missingTargets(r)...)
		}
	}
	return result, nil
}

// partly adds to an error what was detached before it: putting that back could
// fail as well.
func partly(err error, detached []Attachment) error {
	if len(detached) == 0 {
		return err
	}
	var targets []string
	for _, a := range detached {
		targets = append(targets, describeTarget(a))
	}
	return fmt.Errorf("%w; detached before that: %s", err, join(targets))
}

func (e *Engine) detachMatching(name string, reqs []DetachRequest, result *Attached) error {
	docs, err := e.attachments(name)
	if err != nil {
		return err
	}
	for _, a := range docs {
		group := e.group(a)
		if !slices.ContainsFunc(reqs, func(r DetachRequest) bool { return r.matches(a, group) }) {
			continue
		}
		if !reqs[0].DryRun {
			if err := e.detachOne(a); err != nil {
				return fmt.Errorf("%s from %s: %w", a.Program, describeTarget(a), err)
			}
		}
		a.Changed = true
		result.Changed = true
		result.Attachments = append(result.Attachments, a)
	}
	return nil
}

// group returns the group of commands that an attachment belongs to.
func (e *Engine) group(a Attachment) string {
	if e.atRoot(a.Name) {
		return hookTrace
	}
	return hookGroup(a.Hook)
}

// matches says whether the request selects an attachment of a group of commands.
func (r DetachRequest) matches(a Attachment, group string) bool {
	switch {
	case r.Hook != "" && r.Hook != group,
		r.Program != "" && r.Program != a.Program,
		r.Defunct && !a.Defunct,
		r.Direction != "" && r.Direction != Both && r.Direction != hookDirection(a.Hook),
		r.IfIndex != 0 && (a.IfIndex == nil || r.IfIndex != *a.IfIndex):
		return false
	case r.Device != "":
		return a.DevName != nil && (a.Defunct && *a.DevName == r.Device || !a.Defunct && isOn(r.Device, a))
	case r.Cgroup != "":
		return a.Cgroup != nil && sameCgroup(r.Cgroup, a)
	default:
		return true
	}
}

// isOn says whether an attachment is on the device of that name, or alternative
// name, in the namespace of the command: names repeat between namespaces.
func isOn(name string, a Attachment) bool {
	dev, err := resolveDevice(name)
	return err == nil && dev.NetNS == *a.NetNS && dev.IfIndex == *a.IfIndex && runs(dev.link, a)
}

func sameCgroup(path string, a Attachment) bool {
	abs, err := filepath.Abs(path)
	if err == nil && abs == *a.Cgroup {
		return true
	}
	at, err := resolveCgroup(path)
	return err == nil && fmt.Sprint(at.CgroupID) == *a.CgroupID
}

// missingTargets tells a mistyped target from one that is simply free.
func missingTargets(req DetachRequest) []string {
	var err error
	target := req.Device
	if target != "" {
		_, err = resolveDevice(target)
	} else if target = req.Cgroup; target != "" {
		_, err = resolveCgroup(target)
	}
	if err == nil {
		return nil
	}
	return []string{fmt.Sprintf("%s: %v", target, err)}
}

// detachOne takes one attachment off. When it returns, no packet meets the
// program any more.
func (e *Engine) detachOne(a Attachment) error {
	if a.Mechanism == mechanismNetlink {
		return detachClsact(a)
	}
	if err := detachLink(a); err != nil {
		return err
	}
	_ = os.Remove(e.root.Path(a.Name, pinned.Targets, pinName(a))) // or the next writer does
	return nil
}

// detachLink removes the pin first: a link whose pin can't go stays attached.
func detachLink(a Attachment) error {
	l, err := link.LoadPinnedLink(*a.Pinned, nil)
	if err != nil {
		if !replaced(*a.Pinned, err) {
			return probe.Explain(probe.OpOpenPin, err)
		}
		return os.RemoveAll(*a.Pinned)
	}
	defer l.Close()
	if err := l.Unpin(); err != nil {
		return fmt.Errorf("remove the pin: %w", err)
	}
	// Detaching is explicit because the kernel frees a link whose pin goes some
	// time later; tracing links have no detach, and closing the last descriptor
	// does it.
	err = l.Detach()
	if err == nil || errors.Is(err, link.ErrNotSupported) || a.Defunct {
		return nil
	}
	return fault.Join(probe.Explain(probe.OpUpdateLink, err), l.Pin(*a.Pinned))
}

// pinName returns the name that an attachment is pinned under.
func pinName(a Attachment) string { return pinned.Decode(filepath.Base(*a.Pinned)) }

// Unload removes instances from bpffs. While attached, an instance is a
// conflict unless Detach asks to detach it first.
func (e *Engine) Unload(ctx context.Context, req UnloadRequest) (Unloaded, error) {
	unloaded := Unloaded{Names: []string{}}
	err := e.change(ctx, req.DryRun, func() error { return e.unload(req, &unloaded) })
	if unloaded.Detached > 0 && !req.DryRun {
		dropEvents()
	}
	if err != nil && req.Name != "" {
		err = fmt.Errorf("unload %q: %w", req.Name, err)
	} else if err != nil {
		err = fmt.Errorf("unload: %w", err)
	}
	return unloaded, err
}

func (e *Engine) unload(req UnloadRequest, result *Unloaded) error {
	names := []string{req.Name}
	if req.All {
		var err error
		if names, err = e.loaded(); err != nil {
			return err
		}
	} else if err := pinned.CheckName(req.Name); err != nil {
		return err
	}
	attached, err := e.attachedTo(names, req.Detach)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !e.root.Exists(name) && len(attached[name]) == 0 {
			continue // already so
		}
		if !req.DryRun {
			if err := e.unloadOne(name, attached[name]); err != nil {
				return err
			}
		}
		result.Changed = true
		result.Names = append(result.Names, name)
		result.Detached += len(attached[name])
	}
	return nil
}

// loaded names the instances that bpfnet made: a root that others use too, such
// as the mount point of bpffs, has more directories.
func (e *Engine) loaded() ([]string, error) {
	names, err := e.root.Names()
	return slices.DeleteFunc(names, func(name string) bool { return e.root.Spec(name).Digest == "" }), err
}

// attachedTo lists the attachments of instances. Without leave to detach, live
// ones are a conflict, found before anything is changed.
func (e *Engine) attachedTo(names []string, detach bool) (map[string][]Attachment, error) {
	all := map[string][]Attachment{}
	for _, name := range names {
		docs, err := e.attachments(name)
		if err != nil {
			return nil, err
		}
		for _, a := range docs {
			if !a.Defunct && !detach {
				return nil, fault.New(fault.ErrConflict, "%s is attached to %s", name, describeTarget(a)).
					Hint("add --detach, or first: bpfnet detach %s %s", e.group(a), name)
			}
		}
		all[name] = docs
	}
	return all, nil
}

func (e *Engine) unloadOne(name string, attachments []Attachment) error {
	for i, a := range attachments {
		if err := e.detachOne(a); err != nil {
			return partly(fmt.Errorf("detach %s from %s: %w", a.Program, describeTarget(a), err), attachments[:i])
		}
	}
	if !e.root.Exists(name) {
		return nil // only filters were left, which an unload in another namespace doesn't see
	}
	return e.root.Remove(name)
}
