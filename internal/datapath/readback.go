package datapath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/maps"
	"bpfnet/internal/netns"
	"bpfnet/internal/probe"
	"bpfnet/pinned"
)

// Instances lists what is loaded, sorted by name; with a name only that one,
// ErrNotFound if there is none. With an error it lists those that can be read.
func (e *Engine) Instances(ctx context.Context, name string) ([]Instance, error) {
	if err := e.root.Check(); err != nil {
		return nil, err
	}
	instances := []Instance{}
	err := e.read(ctx, func() error {
		names := []string{name}
		if name == "" {
			var err error
			if names, err = e.root.Names(); err != nil {
				return err
			}
			e.memory.retain(names)
		} else if err := e.mustExist(name); err != nil {
			return err
		}
		var unread []error
		for _, n := range names {
			i, err := e.instance(n)
			if err != nil {
				unread = append(unread, fmt.Errorf("read %q: %w", n, err))
				continue
			}
			instances = append(instances, i)
		}
		return fault.Join(unread...)
	})
	return instances, err
}

// Attachments lists where one instance hangs; ErrNotFound if it isn't loaded.
func (e *Engine) Attachments(ctx context.Context, name string) (attachments []Attachment, err error) {
	err = e.read(ctx, func() error {
		if err := e.mustExist(name); err != nil {
			return err
		}
		if attachments, err = e.attachments(name); err != nil {
			return fmt.Errorf("read %q: %w", name, err)
		}
		return nil
	})
	return attachments, err
}

func (e *Engine) instance(name string) (Instance, error) {
	spec := e.root.Spec(name)
	i := Instance{Name: name, Source: spec.Source, Builtin: spec.Builtin, Parameters: spec.Parameters}
	if i.Parameters == nil {
		i.Parameters = map[string]string{}
	}
	var err error
	if i.Programs, err = e.programs(name); err != nil {
		return i, err
	}
	if i.Maps, err = e.mapRefs(name); err != nil {
		return i, err
	}
	i.Attachments, err = e.attachments(name)
	return i, err
}

func (e *Engine) openProgram(instance, function string) (*ebpf.Program, error) {
	path := e.root.Path(instance, pinned.Progs, function)
	prog, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open program %s/%s: %w", instance, function, e.openError(instance, path, "program", err))
	}
	return prog, nil
}

func (e *Engine) programs(instance string) ([]Program, error) {
	names, err := e.root.List(instance, pinned.Progs)
	if err != nil {
		return nil, err
	}
	docs := make([]Program, 0, len(names))
	for _, name := range names {
		doc, err := e.program(instance, name)
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
	return docs, nil
}

func (e *Engine) program(instance, name string) (Program, error) {
	prog, err := e.openProgram(instance, name)
	if err != nil {
		return Program{}, err
	}
	defer prog.Close()
	doc, err := describeProgram(prog, name)
	if err != nil {
		return Program{}, fmt.Errorf("read program %s/%s: %w", instance, name, err)
	}
	doc.Set = instance
	doc.Pinned = e.root.Path(instance, pinned.Progs, name)
	doc.Section, _ = e.section(instance, name)
	return doc, nil
}

// Missed is how often the programs of an instance weren't run, as they interrupted
// themselves; kernels before 5.12 don't count that.
func (e *Engine) Missed(instance string) (total uint64, err error) {
	names, err := e.root.List(instance, pinned.Progs)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		prog, err := e.openProgram(instance, name)
		if err != nil {
			return 0, err
		}
		n, err := missed(prog)
		prog.Close()
		if err != nil {
			return 0, fmt.Errorf("read program %s/%s: %w", instance, name, err)
		}
		total += n
	}
	return total, nil
}

func missed(prog *ebpf.Program) (uint64, error) {
	stats, err := prog.Stats()
	if err != nil {
		return 0, probe.Explain(probe.OpOpenPin, err)
	}
	return stats.RecursionMisses, nil
}

func (e *Engine) section(instance, function string) (string, ebpf.AttachType) {
	return parseSectionNote(e.root.Note(instance, pinned.Sections, function))
}

func describeProgram(prog *ebpf.Program, name string) (Program, error) {
	info, err := prog.Info()
	if err != nil {
		return Program{}, probe.Explain(probe.OpOpenPin, err)
	}
	doc := Program{Name: name, Type: programType(info.Type), Tag: info.Tag, MapIDs: []uint32{}}
	if id, ok := info.ID(); ok {
		doc.ID = ObjectID(id)
	}
	if uid, ok := info.CreatedByUID(); ok {
		doc.UID = &uid
	}
	if id, ok := info.BTFID(); ok && id != 0 {
		doc.BTFID = ptr(uint32(id))
	}
	if size, err := info.TranslatedSize(); err == nil {
		doc.BytesXlated = ptr(uint32(size))
	}
	if size, err := info.JitedSize(); err == nil {
		doc.BytesJited = &size
	}
	if since, ok := info.LoadTime(); ok {
		doc.LoadedAt = ptr(bootTime().Add(since).UTC().Truncate(time.Second))
	}
	if ids, ok := info.MapIDs(); ok {
		for _, id := range ids {
			doc.MapIDs = append(doc.MapIDs, uint32(id))
		}
	}
	if stats, err := prog.Stats(); err == nil {
		doc.RunCount, doc.RunTimeNS = ptr(stats.RunCount), ptr(uint64(stats.Runtime.Nanoseconds()))
	}
	return doc, nil
}

// bootTime is when CLOCK_BOOTTIME was zero: what load times count from.
func bootTime() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(ts.Nano()))
}

func (e *Engine) mapRefs(instance string) ([]MapRef, error) {
	names, err := e.root.List(instance, pinned.Maps)
	if err != nil {
		return nil, err
	}
	docs := make([]MapRef, 0, len(names))
	for _, name := range names {
		m, err := e.OpenMap(instance, name, true)
		if err != nil {
			return nil, err
		}
		doc, err := describeMap(m, name)
		doc.Entries = maps.Entries(m)
		m.Close()
		if err != nil {
			return nil, fmt.Errorf("read map %s/%s: %w", instance, name, err)
		}
		doc.Pinned = e.root.Path(instance, pinned.Maps, name)
		docs = append(docs, doc)
	}
	return docs, nil
}

func describeMap(m *ebpf.Map, name string) (MapRef, error) {
	info, err := m.Info()
	if err != nil {
		return MapRef{}, probe.Explain(probe.OpOpenPin, err)
	}
	doc := MapRef{Name: name, Type: maps.TypeName(info.Type), MaxEntries: info.MaxEntries}
	if id, ok := info.ID(); ok {
		doc.ID = ObjectID(id)
	}
	return doc, nil
}

// target is what is remembered of what a link was attached to, so that a
// defunct one can still be named.
type target struct {
	DevName  string `json:"devname,omitempty"`
	IfIndex  uint32 `json:"ifindex,omitempty"`
	NetNS    uint64 `json:"netns,omitempty"`
	Cgroup   string `json:"cgroup,omitempty"`
	CgroupID uint64 `json:"cgroup_id,omitempty"`
	Trace    string `json:"trace,omitempty"`
	Mode     string `json:"mode,omitempty"` // xdp
}

// key tells targets apart within one hook and program: names and indices of
// interfaces repeat between namespaces.
func (t target) key() string {
	switch {
	case t.IfIndex != 0:
		return fmt.Sprintf("%d-%d", t.NetNS, t.IfIndex)
	case t.CgroupID != 0:
		return strconv.FormatUint(t.CgroupID, 10)
	default:
		return t.Trace
	}
}

// linkPin names the pin of a link: what hangs where.
func linkPin(hook, function string, t target) string {
	return strings.Join([]string{hook, function, t.key()}, ":")
}

// attachments reads back every attachment of an instance: pinned links first,
// then clsact filters of this network namespace.
func (e *Engine) attachments(instance string) ([]Attachment, error) {
	here, err := netns.Inode("")
	if err != nil {
		return nil, err
	}
	links, err := e.linkAttachments(instance, here)
	if err != nil {
		return nil, err
	}
	filters, err := e.clsactAttachments(instance, here)
	return append(links, filters...), err
}

// linkAttachments reads back pinned links: what is known of them stays known.
func (e *Engine) linkAttachments(instance string, here uint64) ([]Attachment, error) {
	pins, err := e.root.Objects(instance, pinned.Links)
	if err != nil {
		return nil, err
	}
	devices, done, err := lookUpOnce()
	if err != nil {
		return nil, err
	}
	defer done()
	name, done, err := nameOnce()
	if err != nil {
		return nil, err
	}
	defer done()
	docs := make([]Attachment, 0, len(pins))
	before, now := e.memory.of(instance), make(map[string]knownLink, len(pins))
	for _, pin := range pins {
		doc, ok := before[pin.Name].again(pin, here, name)
		if !ok {
			if doc, err = e.linkAttachment(instance, pin.Name, here, devices); err != nil {
				return nil, err
			}
		}
		docs = append(docs, doc)
		now[pin.Name] = knownLink{pin.Inode, doc}
	}
	e.memory.set(instance, now)
	return docs, nil
}

func (e *Engine) linkAttachment(instance, pin string, here uint64, device byIndex) (Attachment, error) {
	hook, rest, _ := strings.Cut(pin, ":")
	function, _, _ := strings.Cut(rest, ":")
	path := e.root.Path(instance, pinned.Links, pin)
	doc := Attachment{
		Name: instance, Program: function, Hook: hook, Mechanism: mechanismLink, Pinned: &path,
		RefusedWhy: []string{}, Notes: []string{},
	}
	var t target
	_ = json.Unmarshal([]byte(e.root.Note(instance, pinned.Targets, pin)), &t)
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil && !replaced(path, err) {
		return doc, fmt.Errorf("open link %s: %w", path, probe.Explain(probe.OpOpenPin, err))
	}
	if err != nil {
		doc.Defunct = true
		doc.Notes = append(doc.Notes, fmt.Sprintf("%s is not a link any more", path))
		describeRemembered(&doc, t)
		return doc, nil
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return doc, fmt.Errorf("read link %s: %w", path, probe.Explain(probe.OpOpenPin, err))
	}
	doc.ProgID, doc.LinkID = ObjectID(info.Program), ptr(uint32(info.ID))
	describeRemembered(&doc, t)
	describeLive(&doc, info, here, device)
	return doc, nil
}

// replaced says whether a pin couldn't be opened because it is gone, or because
// somebody put something else in its place; of objects of another type
// cilium/ebpf says so only in the text.
func replaced(path string, err error) bool {
	info, statErr := os.Lstat(path)
	return isNotExist(err) || strings.Contains(err.Error(), path+" is not a ") || statErr == nil && !info.Mode().IsRegular()
}

// openError explains why a pinned program or map couldn't be opened.
func (e *Engine) openError(instance, path, kind string, err error) error {
	if !isNotExist(err) && replaced(path, err) {
		return fault.New(fault.ErrConflict, "%s is not a %s: something else was put in its place", path, kind).
			Hint("bpfnet unload %s --detach, and load it again", instance)
	}
	return probe.Explain(probe.OpOpenPin, err)
}

func describeRemembered(doc *Attachment, t target) {
	if t.IfIndex != 0 {
		doc.DevName, doc.IfIndex, doc.NetNS = &t.DevName, &t.IfIndex, &t.NetNS
	}
	if t.Mode != "" {
		doc.Mode = &t.Mode
	}
	if t.CgroupID != 0 {
		doc.Cgroup, doc.CgroupID = &t.Cgroup, ptr(strconv.FormatUint(t.CgroupID, 10))
	}
	if t.Trace != "" {
		doc.Target = &t.Trace
	}
}

// describeLive corrects what is remembered by what the kernel says now.
func describeLive(doc *Attachment, info *link.Info, here uint64, device byIndex) {
	switch {
	case doc.IfIndex != nil:
		doc.Defunct = linkIfIndex(info) == 0
		if !doc.Defunct && doc.NetNS != nil && *doc.NetNS == here {
			describeDevice(doc, device)
		}
	case doc.CgroupID != nil:
		if c := info.Cgroup(); c != nil {
			doc.Defunct = c.CgroupId == 0
		}
	}
}

func linkIfIndex(info *link.Info) uint32 {
	if x := info.XDP(); x != nil {
		return x.Ifindex
	}
	if t := info.TCX(); t != nil {
		return t.Ifindex
	}
	return 0
}

// describeTarget names where an attachment hangs, for messages.
func describeTarget(a Attachment) string {
	switch {
	case a.DevName != nil:
		return fmt.Sprintf("%s of %s", a.Hook, *a.DevName)
	case a.Cgroup != nil:
		return fmt.Sprintf("%s of %s", a.Hook, *a.Cgroup)
	case a.Target != nil:
		return *a.Target
	default:
		return a.Hook
	}
}

func ptr[T any](v T) *T { return &v }

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
