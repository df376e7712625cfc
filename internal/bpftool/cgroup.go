package bpftool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf/btf"

	"bpfnet/internal/fault"
	"bpfnet/internal/probe"
)

// Cgroups describes what is attached to a cgroup.
type Cgroups interface {
	// Cgroup describes the programs that are attached to the cgroup2 directory
	// at path, or, effective, those that run for its processes, which are also
	// those of the cgroups above it. ErrNotFound if there is no such directory,
	// ErrUsage if it isn't one of cgroup2.
	Cgroup(ctx context.Context, path string, effective bool) (Cgroup, error)
}

// Cgroup is what is attached to a cgroup, whoever attached it.
type Cgroup struct {
	Path      string // absolute
	ID        uint64
	Effective bool // Programs are those that run, not those that are attached here
	KernelBTF bool // the kernel has BTF of its own
	LinksRead bool // false: which links hold programs isn't known
	Programs  []CgroupProgram
	Notes     []string // what couldn't be read, and why
}

// CgroupProgram is a program on one of the hooks of a cgroup.
type CgroupProgram struct {
	AttachType uint32 // enum bpf_attach_type
	Flags      uint32 // BPF_F_ALLOW_*; 0 for what runs
	Running
	BTFObject, BTFType uint32  // what an LSM program is attached to
	BTFName            *string // its name, "bpf_lsm_socket_connect"
}

// cgroupAttachTypes are the hooks of a cgroup in the order of their numbers:
// bpftool asks for them in that order.
func cgroupAttachTypes() []uint32 {
	var numbers []uint32
	for number, word := range attachTypes {
		if strings.HasPrefix(word, "cgroup_") || word == "lsm_cgroup" {
			numbers = append(numbers, uint32(number))
		}
	}
	return numbers
}

// Cgroup implements API.
func (k *Kernel) Cgroup(_ context.Context, path string, effective bool) (Cgroup, error) {
	c := Cgroup{Path: path, Effective: effective}
	dir, err := openCgroup(&c)
	if err != nil {
		return c, err
	}
	defer dir.Close()
	_, err = os.Stat("/sys/kernel/btf/vmlinux")
	c.KernelBTF = err == nil
	known, err := k.links()
	c.LinksRead = err == nil
	if err != nil {
		c.Notes = append(c.Notes, fmt.Sprintf("what holds programs of others isn't shown: %v", err))
	}
	holding := c.andAbove()
	for _, attachType := range cgroupAttachTypes() {
		list, err := queryCgroup(dir, attachType, effective)
		if err != nil {
			return c, err
		}
		for _, a := range list {
			c.Programs = append(c.Programs, known.cgroup(c, holding, attachType, a))
		}
	}
	return c, nil
}

// openCgroup opens the directory, and fills in what it is.
func openCgroup(c *Cgroup) (*os.File, error) {
	abs, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, fault.New(fault.ErrUsage, "show cgroup %q: %w", c.Path, err)
	}
	c.Path = abs
	dir, err := os.Open(abs)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.ErrNotFound, "show cgroup %q: no such cgroup", abs).
			Hint("give the directory below the cgroup2 mount, such as /sys/fs/cgroup/system.slice")
	}
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	var fsys unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fsys); err != nil || fsys.Type != unix.CGROUP2_SUPER_MAGIC {
		dir.Close()
		return nil, fault.New(fault.ErrUsage, "show cgroup %q: not a directory of a cgroup2 file system", abs).
			Hint("mount -t cgroup2 shows where cgroup2 is")
	}
	c.ID = inode(abs)
	return dir, nil
}

// inode is what a cgroup is known by; 0 when it can't be read.
func inode(path string) uint64 {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0
	}
	return stat.Ino
}

func queryCgroup(dir *os.File, attachType uint32, effective bool) ([]attached, error) {
	flags := uint32(0)
	if effective {
		flags = queryEffective
	}
	list, err := query(uint32(dir.Fd()), attachType, flags)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil // this kernel doesn't have the hook
	case err != nil:
		return nil, fmt.Errorf("query programs of %s: %w", attachTypes[attachType], probe.Explain(probe.OpQueryHook, err))
	}
	return list, nil
}

// andAbove returns the ids of the cgroups whose links may hold what c shows: its
// own, and for what is effective those of the cgroups above.
func (c Cgroup) andAbove() []uint64 {
	ids := []uint64{c.ID}
	for dir := c.Path; c.Effective && filepath.Dir(dir) != dir; {
		dir = filepath.Dir(dir)
		ids = append(ids, inode(dir))
	}
	return ids
}

// cgroup describes a program on a hook of c, which links of the cgroups with
// these ids may hold.
func (known knownLinks) cgroup(c Cgroup, ids []uint64, attachType uint32, a attached) CgroupProgram {
	p := CgroupProgram{AttachType: attachType, Running: known.running(a.progID, func(info *linkInfo) bool {
		return info.typ == linkCgroup && info.u32(8) == attachType && slices.Contains(ids, info.u64(0))
	})}
	if !c.Effective {
		p.Flags = a.progFlags
	}
	if fd, err := progKind.Open(a.progID); err == nil {
		info, _ := programInfo(fd)
		unix.Close(fd)
		p.BTFObject, p.BTFType = info.AttachBTFObject, info.AttachBTF
	}
	if p.BTFType != 0 {
		p.BTFName = kernelTypeName(p.BTFType)
	}
	return p
}

// kernelTypeName is the name of a type of the kernel's own BTF.
func kernelTypeName(id uint32) *string {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil
	}
	typ, err := spec.TypeByID(btf.TypeID(id))
	if err != nil {
		return nil
	}
	name := typ.TypeName()
	return &name
}

// Bpftool is the document that bpftool prints.
func (c Cgroup) Bpftool() []Object {
	docs := []Object{}
	for _, p := range c.Programs {
		doc := Object{{"id", p.ProgID}, {"attach_type", worded(attachTypes, p.AttachType)}}
		if !c.Effective {
			doc.add("attach_flags", flagsWord(p.Flags))
		}
		name := ""
		if p.ProgName != nil {
			name = *p.ProgName
		}
		doc.add("name", name)
		if p.BTFName != nil {
			doc.add("attach_btf_name", *p.BTFName)
		} else if c.KernelBTF && p.BTFType == 0 {
			doc.add("attach_btf_name", "") // of type 0, which is void
		}
		doc.add("attach_btf_obj_id", p.BTFObject)
		doc.add("attach_btf_id", p.BTFType)
		docs = append(docs, doc)
	}
	return docs
}

// flagsWord is bpftool's word for the BPF_F_ALLOW_* flags.
func flagsWord(flags uint32) string {
	switch flags {
	case 0:
		return ""
	case unix.BPF_F_ALLOW_OVERRIDE:
		return "override"
	case unix.BPF_F_ALLOW_MULTI:
		return "multi"
	}
	return fmt.Sprintf("unknown(%x)", flags)
}

// CgroupRow is one attachment in bpfnet's words.
type CgroupRow struct {
	Hook      string  `json:"hook"`         // "cgroup_inet_ingress", "lsm_cgroup", …
	Mechanism *string `json:"mechanism"`    // "link", or "attach": a program without a link; null: not known
	Flags     *string `json:"attach_flags"` // "multi", "override", "exclusive"; null for what runs
	Cgroup    string  `json:"cgroup"`       // path that was asked for
	CgroupID  string  `json:"cgroup_id"`    // text: jq would round it
	Target    *string `json:"target"`       // lsm_cgroup: what the program is attached to
	ProgID    uint32  `json:"prog_id"`
	ProgName  *string `json:"prog_name"`
	LinkID    *uint32 `json:"link_id"` // null: no link holds it, or it may not be read
	Pinned    *string `json:"pinned"`  // pin of the link, if it is bpfnet's
}

// Rows lists the programs.
func (c Cgroup) Rows() []CgroupRow {
	rows := []CgroupRow{}
	for _, p := range c.Programs {
		row := CgroupRow{
			Hook: attachTypes[p.AttachType], Cgroup: c.Path, CgroupID: strconv.FormatUint(c.ID, 10),
			Target: p.BTFName, ProgID: p.ProgID, ProgName: p.ProgName, LinkID: p.LinkID, Pinned: p.Pinned,
		}
		switch {
		case p.LinkID != nil:
			row.Mechanism = ptr("link")
		case c.LinksRead:
			row.Mechanism = ptr("attach")
		}
		if word := flagsWord(p.Flags); !c.Effective {
			if word == "" {
				word = "exclusive"
			}
			row.Flags = &word
		}
		rows = append(rows, row)
	}
	return rows
}
