package bpftool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
	"bpfnet/internal/holders"
	"bpfnet/internal/maps"
	"bpfnet/internal/netns"
	"bpfnet/pinned"
)

// Programs describes the kernel's programs, anybody's.
type Programs interface {
	// Programs describes the programs that ref means, in the order of their ids:
	// all of them with "", or "id:N", "tag:HEX", "name:S", the path of a pin,
	// NAME or NAME/FUNCTION of a loaded instance. ErrNotFound if there is none,
	// ErrUsage if ref is none of these.
	Programs(ctx context.Context, ref string, pids bool) ([]Object, error)
}

func programInfo(fd int) (bpfsys.ProgInfo, error) {
	info, _, err := bpfsys.Program(fd)
	if err != nil {
		err = fmt.Errorf("read program: %w", err)
	}
	return info, err
}

// Programs implements API.
func (k *Kernel) Programs(_ context.Context, ref string, pids bool) ([]Object, error) {
	var docs []Object
	err := netns.Do(k.netns, func() error {
		return k.eachProgram(ref, func(fd int) error {
			doc, err := describeProgram(fd)
			docs = append(docs, doc)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 && ref != "" {
		return nil, fault.New(fault.ErrNotFound, "show program %q: no such program", ref).
			Hint("bpfnet -j prog show   shows all programs of the kernel")
	}
	if pids {
		docs = addHolders(holders.Prog, docs)
	}
	for i := range docs {
		ids, _ := docs[i].Get("map_ids").([]uint32)
		if tells := metadata(k.maps(), ids); tells != nil {
			docs[i].add("metadata", tells)
		}
	}
	return docs, nil
}

// eachProgram calls fn with a descriptor of every program that ref means.
func (k *Kernel) eachProgram(ref string, fn func(fd int) error) error {
	word, rest, _ := strings.Cut(ref, ":")
	switch {
	case ref == "":
		return progKind.each(fn)
	case strings.HasPrefix(ref, "/"), word == "id":
		return progKind.with(ref, fn)
	case word == "tag":
		tag, err := maps.ParseTag(rest)
		if err != nil {
			return err
		}
		return matching(fn, func(_ int, info bpfsys.ProgInfo) bool { return info.Tag == tag })
	case word == "name":
		return matching(fn, func(fd int, info bpfsys.ProgInfo) bool { return maps.ProgramName(fd, info) == rest })
	}
	return k.eachOfInstance(progKind, pinned.Progs, ref, func(name, function string) bool { return name == function }, fn)
}

// eachOfInstance calls fn for the objects that NAME or NAME/PART means: those
// pinned in a directory of the instance whose pins match the part.
func (k *Kernel) eachOfInstance(kind kind, dir, ref string, match func(pin, part string) bool, fn func(fd int) error) error {
	if err := k.root.Check(); err != nil {
		return err
	}
	instance, part, one := strings.Cut(ref, "/")
	if instance == "" || !k.root.Exists(instance) {
		return nil
	}
	pins, err := k.root.List(instance, dir)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		if one && !match(pin, part) {
			continue
		}
		if err := kind.with(k.root.Path(instance, dir, pin), fn); err != nil {
			return err
		}
	}
	return nil
}

func matching(fn func(int) error, match func(int, bpfsys.ProgInfo) bool) error {
	return progKind.each(func(fd int) error {
		info, err := programInfo(fd)
		if errors.Is(err, bpfsys.ErrDeviceGone) {
			return nil // its name and tag aren't told
		}
		if err != nil || !match(fd, info) {
			return err
		}
		return fn(fd)
	})
}

// describeProgram is bpftool's document of a program.
func describeProgram(fd int) (Object, error) {
	info, err := programInfo(fd)
	orphaned := errors.Is(err, bpfsys.ErrDeviceGone)
	if err != nil && !orphaned {
		return nil, err
	}
	doc := programHeader(fd, info)
	if info.Ifindex != 0 {
		doc.add("dev", offloadDevice(info))
	}
	if info.LoadTime != 0 {
		doc.add("loaded_at", loadedAt(info.LoadTime))
		doc.add("uid", info.UID)
	}
	doc.add("orphaned", orphaned)
	doc.add("bytes_xlated", info.XlatedLen)
	doc.add("jited", info.JITedLen != 0)
	if info.JITedLen != 0 {
		doc.add("bytes_jited", info.JITedLen)
	}
	return programReferences(doc, fd, info), nil
}

// programHeader is what a program is, and how it ran while that was counted.
func programHeader(fd int, info bpfsys.ProgInfo) Object {
	doc := Object{{"id", info.ID}, {"type", worded(programTypes, info.Type)}}
	if info.Name[0] != 0 {
		doc.add("name", maps.ProgramName(fd, info))
	}
	doc.add("tag", hex.EncodeToString(info.Tag[:]))
	doc.add("gpl_compatible", info.GPL&1 != 0)
	if info.RunTime != 0 {
		doc.add("run_time_ns", info.RunTime)
		doc.add("run_cnt", info.RunCount)
	}
	if info.Recursions != 0 {
		doc.add("recursion_misses", info.Recursions)
	}
	return doc
}

// programReferences adds what a program uses.
func programReferences(doc Object, fd int, info bpfsys.ProgInfo) Object {
	if numbers, err := fdinfo(fd); err == nil {
		if memlock, ok := numbers["memlock"]; ok {
			doc.add("bytes_memlock", memlock)
		}
	}
	if _, ids, err := bpfsys.Program(fd); err == nil && len(ids) > 0 {
		doc.add("map_ids", ids)
	}
	if info.BTFID != 0 {
		doc.add("btf_id", info.BTFID)
	}
	return doc
}

// offloadDevice names the device that a program is bound to, if it is in this
// network namespace.
func offloadDevice(info bpfsys.ProgInfo) Object {
	var doc Object
	doc.add("ifindex", info.Ifindex)
	doc.add("ns_dev", info.NetNSDev)
	doc.add("ns_inode", info.NetNSIno)
	if here, err := netns.Inode(""); err == nil && here == info.NetNSIno {
		if name, err := deviceName(info.Ifindex); err == nil {
			doc.add("ifname", name)
		}
	}
	return doc
}

// loadedAt is the time, in seconds since 1970, of a time in ns since boot.
func loadedAt(ns uint64) int64 {
	var now, boot unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME, &now) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return int64(ns / 1e9)
	}
	return (now.Nano() - boot.Nano() + int64(ns)) / 1e9
}

func parseID(ref string) (uint32, error) {
	number, ok := strings.CutPrefix(ref, "id:")
	id, err := strconv.ParseUint(number, 0, 32)
	if !ok || err != nil {
		return 0, fault.New(fault.ErrUsage, "%q is not id:N or the path of a pin", ref)
	}
	return uint32(id), nil
}

// addHolders adds the processes that have an object open to its document, where
// there are any. Those that can't be looked into aren't told, as in bpftool.
func addHolders(kind holders.Kind, docs []Object) []Object {
	if len(docs) == 0 {
		return docs
	}
	ids := make([]uint32, len(docs))
	for i, doc := range docs {
		ids[i], _ = doc.Get("id").(uint32)
	}
	found, _ := holders.Scan(kind, ids)
	for i := range docs {
		if by := found[ids[i]]; len(by) > 0 {
			docs[i].add("pids", by)
		}
	}
	return docs
}
