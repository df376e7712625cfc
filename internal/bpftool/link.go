package bpftool

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"unsafe"

	"bpfnet/internal/bpfsys"
	"bpfnet/internal/fault"
	"bpfnet/internal/holders"
	"bpfnet/internal/netns"
	"bpfnet/pinned"
)

// Links describes the kernel's links, anybody's.
type Links interface {
	// Links describes the links that ref means: all of them, in the order of
	// their ids, with "", or "id:N", the path of a pin, NAME or NAME/HOOK of a
	// loaded instance. ErrNotFound if there is none, ErrUsage if ref is none of
	// these.
	Links(ctx context.Context, ref string, pids bool) ([]Object, error)
}

// linkHeader is the beginning of struct bpf_link_info. Behind it is what the
// type of the link has.
type linkHeader struct{ typ, id, progID, _ uint32 }

// linkInfo is struct bpf_link_info, without the texts and lists that it can
// point to.
type linkInfo struct {
	linkHeader
	rest [48]byte
}

func (info *linkInfo) u32(offset int) uint32 { return binary.NativeEndian.Uint32(info.rest[offset:]) }
func (info *linkInfo) u64(offset int) uint64 { return binary.NativeEndian.Uint64(info.rest[offset:]) }

func readLink(fd int) (*linkInfo, error) {
	info := new(linkInfo)
	if err := bpfsys.Info(fd, unsafe.Pointer(info), unsafe.Sizeof(*info)); err != nil {
		return nil, fmt.Errorf("read link: %w", err)
	}
	return info, nil
}

// Links implements API.
func (k *Kernel) Links(_ context.Context, ref string, pids bool) ([]Object, error) {
	var docs []Object
	describe := func(fd int) error {
		doc, err := describeLink(fd)
		docs = append(docs, doc)
		return err
	}
	err := netns.Do(k.netns, func() error {
		word, _, named := strings.Cut(ref, ":")
		switch {
		case ref == "":
			return linkKind.each(describe)
		case word == "id", named, strings.HasPrefix(ref, "/"):
			return linkKind.with(ref, describe)
		}
		return k.eachOfInstance(linkKind, pinned.Links, ref, isHook, describe)
	})
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 && ref != "" {
		return nil, fault.New(fault.ErrNotFound, "show link %q: no such link", ref).
			Hint("bpfnet -j link show   shows all links of the kernel")
	}
	if pids {
		docs = addHolders(holders.Link, docs)
	}
	return docs, nil
}

// isHook says whether the pin of a link is on a hook: pins are called
// HOOK:FUNCTION:TARGET.
func isHook(pin, hook string) bool { return strings.HasPrefix(pin, hook+":") }

// describeLink is bpftool's document of a link.
func describeLink(fd int) (Object, error) {
	info, err := readLink(fd)
	if err != nil {
		return nil, err
	}
	var doc Object
	doc.add("id", info.id)
	doc.add("type", worded(linkTypes, info.typ))
	doc.add("prog_id", info.progID)
	if info.typ < uint32(len(linkDetails)) && linkDetails[info.typ] != nil {
		err = linkDetails[info.typ](&doc, info, fd)
	}
	return doc, err
}

// linkDetails add what bpftool prints of a type of links. The offsets are those
// of the members of struct bpf_link_info, counted from its union.
var linkDetails = [...]func(doc *Object, info *linkInfo, fd int) error{
	linkRawTracepoint: describeRawTracepoint,
	linkTracing:       describeTracing,
	linkCgroup: func(doc *Object, info *linkInfo, _ int) error {
		doc.add("cgroup_id", info.u64(0))
		doc.add("attach_type", worded(attachTypes, info.u32(8)))
		return nil
	},
	linkIter: describeIterator,
	linkNetNS: func(doc *Object, info *linkInfo, _ int) error {
		doc.add("netns_ino", info.u32(0))
		doc.add("attach_type", worded(attachTypes, info.u32(4)))
		return nil
	},
	linkXDP: func(doc *Object, info *linkInfo, _ int) error {
		addDevice(doc, info)
		return nil
	},
	linkPerfEvent:   describePerfEvent,
	linkKprobeMulti: describeKprobes,
	linkStructOps: func(doc *Object, info *linkInfo, _ int) error {
		doc.add("map_id", info.u32(0))
		return nil
	},
	linkNetfilter: func(doc *Object, info *linkInfo, _ int) error {
		*doc = append(*doc, newNetfilter(info).fields()...)
		return nil
	},
	linkTCX:         describeDeviceLink,
	linkUprobeMulti: describeUprobes,
	linkNetkit:      describeDeviceLink,
	linkSockmap: func(doc *Object, info *linkInfo, _ int) error {
		doc.add("map_id", info.u32(0))
		doc.add("attach_type", worded(attachTypes, info.u32(4)))
		return nil
	},
}

func describeDeviceLink(doc *Object, info *linkInfo, _ int) error {
	addDevice(doc, info)
	doc.add("attach_type", worded(attachTypes, info.u32(4)))
	return nil
}

// addDevice names the device of a link. The kernel tells its index and not the
// network namespace: a device of this namespace that has the index but doesn't
// run the link isn't it.
func addDevice(doc *Object, info *linkInfo) {
	index, name := info.u32(0), "(unknown)"
	if index == 0 {
		name = "(detached)"
	} else if holdsLink(index, info) {
		if found, err := deviceName(index); err == nil {
			name = found
		}
	}
	doc.add("devname", name)
	doc.add("ifindex", index)
}

// holdsLink says whether a device of this network namespace runs a link.
func holdsLink(index uint32, info *linkInfo) bool {
	if info.typ == linkXDP {
		return xdpRuns(index, info.progID)
	}
	list, err := query(index, info.u32(4), 0)
	if err != nil {
		return false
	}
	for _, a := range list {
		if a.linkID == info.id {
			return true
		}
	}
	return false
}

// namedInfo is struct bpf_link_info of links that have a name: raw tracepoints
// and iterators.
type namedInfo struct {
	linkHeader
	name   unsafe.Pointer
	length uint32
	_      [28]byte
}

const longestName = 4096 // PATH_MAX; what the kernel names is shorter

func linkName(fd int) (string, error) {
	name := make([]byte, longestName)
	ask := namedInfo{name: unsafe.Pointer(&name[0]), length: longestName}
	if err := bpfsys.Info(fd, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); err != nil {
		return "", fmt.Errorf("read name of link: %w", err)
	}
	return text(name), nil
}

func describeRawTracepoint(doc *Object, info *linkInfo, fd int) error {
	name, err := linkName(fd)
	doc.add("tp_name", name)
	doc.add("cookie", info.u64(16))
	return err
}

func describeTracing(doc *Object, info *linkInfo, _ int) error {
	typ := any(uint32(0))
	err := progKind.with(fmt.Sprintf("id:%d", info.progID), func(fd int) error {
		prog, err := programInfo(fd)
		typ = worded(programTypes, prog.Type)
		return err
	})
	doc.add("prog_type", typ)
	doc.add("attach_type", worded(attachTypes, info.u32(0)))
	doc.add("target_obj_id", info.u32(4))
	doc.add("target_btf_id", info.u32(8))
	doc.add("cookie", info.u64(16))
	return err
}

// cgroupOrders are the words for enum bpf_cgroup_iter_order.
var cgroupOrders = []string{"order_unspec", "self_only", "descendants_pre", "descendants_post", "ancestors_up"}

func describeIterator(doc *Object, info *linkInfo, fd int) error {
	name, err := linkName(fd)
	doc.add("target_name", name)
	switch name {
	case "bpf_map_elem", "bpf_sk_storage_map":
		doc.add("map_id", info.u32(12))
	case "task", "task_file", "task_vma":
		if tid, pid := info.u32(16), info.u32(20); tid != 0 {
			doc.add("tid", tid)
		} else if pid != 0 {
			doc.add("pid", pid)
		}
	case "cgroup":
		doc.add("cgroup_id", info.u64(16))
		order := "unknown"
		if n := info.u32(24); int(n) < len(cgroupOrders) {
			order = cgroupOrders[n]
		}
		doc.add("order", order)
	}
	return err
}
