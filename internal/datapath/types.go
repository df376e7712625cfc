package datapath

import (
	"context"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
)

// Direction is which way a packet passes a device, seen from the device.
type Direction string

// The directions that tc programs can be attached to.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
	Both    Direction = "both"
)

// XDPMode is how an XDP program is run.
type XDPMode string

// The modes of XDP. Auto tries native, then generic.
const (
	ModeAuto    XDPMode = "auto"
	ModeNative  XDPMode = "native"
	ModeGeneric XDPMode = "generic"
	ModeOffload XDPMode = "offload"
)

// LoadRequest says what to load and under which name.
type LoadRequest struct {
	Source     string            // name of a built-in program, or path of an object file
	Object     []byte            // the object; nil for a built-in program
	Name       string            // directory in bpffs; default: Source without folder and ending
	Programs   []string          // programs of the object to load; empty: all
	Set        map[string]string // global variable -> value as text
	MaxEntries map[string]uint32 // map name -> max_entries
	Mechanism  string            // of a built-in program that has several; empty: the best that works
	ReuseMaps  bool              // keep the maps of the loaded instance that is replaced
	Replace    bool              // replace a loaded instance of that name
	DryRun     bool
}

// Loaded is the answer to a LoadRequest.
type Loaded struct {
	Changed  bool      `json:"changed"`
	Name     string    `json:"name"`
	Source   string    `json:"source"`
	Builtin  bool      `json:"builtin"`
	Replaced bool      `json:"replaced"` // running links were moved to the new programs
	Programs []Program `json:"programs"`
	Maps     []MapRef  `json:"maps"`
	Notes    []string  `json:"notes"`
}

// ObjectID is the kernel's id of a program or map; 0, which is null in JSON, when
// there is none yet because nothing was changed.
type ObjectID uint32

// MarshalJSON writes the number, or null.
func (id ObjectID) MarshalJSON() ([]byte, error) {
	if id == 0 {
		return []byte("null"), nil
	}
	return strconv.AppendUint(nil, uint64(id), 10), nil
}

// Program is a loaded program as the kernel reports it.
type Program struct {
	ID            ObjectID   `json:"id"`
	Name          string     `json:"name"`    // the full function name, from the pin
	Section       string     `json:"section"` // ELF section, "tcx/ingress"
	Type          string     `json:"type"`    // bpftool's word, "sched_cls"
	Tag           string     `json:"tag"`
	GPLCompatible *bool      `json:"gpl_compatible"`
	LoadedAt      *time.Time `json:"loaded_at"`
	UID           *uint32    `json:"uid"`
	BytesXlated   *uint32    `json:"bytes_xlated"`
	BytesJited    *uint32    `json:"bytes_jited"`
	MapIDs        []uint32   `json:"map_ids"`
	BTFID         *uint32    `json:"btf_id"`
	Pinned        string     `json:"pinned"`
	Set           string     `json:"set"` // the loaded instance it belongs to
	RunCount      *uint64    `json:"run_count"`
	RunTimeNS     *uint64    `json:"run_time_ns"`
}

// MapRef names a map that a loaded instance pins.
type MapRef struct {
	ID         ObjectID `json:"id"`
	Name       string   `json:"name"`
	Type       string   `json:"type"` // bpftool's word, "percpu_hash"
	MaxEntries uint32   `json:"max_entries"`
	Entries    *uint64  `json:"entries"` // entries in use; null for arrays and when unknown
	Pinned     string   `json:"pinned"`
}

// Position is where among other tc programs a new one goes. At most one field
// is set; the zero value is last.
type Position struct {
	First  bool
	Last   bool
	Before string // name of a loaded instance, or "id:N" of a program
	After  string
}

// AttachRequest says which program of a loaded instance to attach where. Hook
// is one of "tc", "xdp", "sockops", "cgroup", "trace"; the fields that the hook
// doesn't use are zero.
type AttachRequest struct {
	Hook      string
	Name      string    // the loaded instance
	Program   string    // program of the instance; empty: the one that fits the hook
	Device    string    // tc, xdp
	IfIndex   uint32    // of Device when it was found; 0: whichever has the name
	MayBeGone bool      // that Device isn't there any more is a note, and no error
	Direction Direction // tc, cgroup with cgroup_skb programs
	Position  Position  // tc
	Mode      XDPMode   // xdp
	Cgroup    string    // sockops, cgroup: path of the cgroup2 directory
	Replace   bool      // take over an attachment that another instance of ours holds
	DryRun    bool
}

// Attachment is one program on one hook, as the kernel reports it.
type Attachment struct {
	Changed    bool     `json:"changed"`
	Name       string   `json:"name"`    // loaded instance
	Program    string   `json:"program"` // function
	Hook       string   `json:"hook"`    // "xdp", "tcx_ingress", "clsact_egress", "cgroup_inet_ingress", "sock_ops", …
	Mechanism  string   `json:"mechanism"`
	Mode       *string  `json:"mode"` // xdp: native, generic, offload
	DevName    *string  `json:"devname"`
	IfIndex    *uint32  `json:"ifindex"`
	NetNS      *uint64  `json:"netns"` // inode of the network namespace
	Cgroup     *string  `json:"cgroup"`
	CgroupID   *string  `json:"cgroup_id"` // text: jq would round it
	Target     *string  `json:"target"`    // trace: what is traced, "sched/sched_switch"
	ProgID     ObjectID `json:"prog_id"`
	LinkID     *uint32  `json:"link_id"` // null for clsact filters
	Pinned     *string  `json:"pinned"`
	Defunct    bool     `json:"defunct"` // the interface or cgroup is gone
	RefusedWhy []string `json:"refused"` // why better mechanisms or modes were not taken
	Notes      []string `json:"notes"`   // what the user should know about this choice
}

// Attached is the answer to an AttachRequest or DetachRequest.
type Attached struct {
	Changed     bool
	Name        string
	Attachments []Attachment
	Notes       []string // why there was nothing to detach, and what was left out
}

// DetachRequest selects attachments of a loaded instance; empty selectors match
// everything.
type DetachRequest struct {
	Hook      string // "tc", "xdp", "sockops", "cgroup", "trace"; empty: any
	Name      string // empty only with Defunct
	Program   string
	Device    string
	IfIndex   uint32 // of Device when it was found; 0: whichever has the name
	Direction Direction
	Cgroup    string
	Defunct   bool // only attachments whose target is gone
	DryRun    bool
}

// UnloadRequest names what to remove from bpffs.
type UnloadRequest struct {
	Name   string
	All    bool
	Detach bool // detach first; without it an attached instance is a conflict
	DryRun bool
}

// Unloaded is the answer to an UnloadRequest.
type Unloaded struct {
	Changed  bool     `json:"changed"`
	Names    []string `json:"names"`
	Detached int      `json:"detached"`
}

// Instance is one loaded instance with everything that belongs to it.
type Instance struct {
	Name        string            `json:"name"`
	Source      string            `json:"source"`
	Builtin     bool              `json:"builtin"`
	Parameters  map[string]string `json:"parameters"` // what --set and --max-entries were given
	Programs    []Program         `json:"programs"`
	Maps        []MapRef          `json:"maps"`
	Attachments []Attachment      `json:"attachments"`
}

// Options of Open.
type Options struct {
	Root        string        // bpffs directory; default pinned.DefaultRoot
	NetNS       string        // path of the namespace to run against; empty: the caller's
	LockTimeout time.Duration // how long a writer waits for the lock
	Mount       bool          // mount bpffs on /sys/fs/bpf if it isn't
}

// API is what the command line calls. *Engine implements it against the kernel;
// command tests use a fake.
type API interface {
	Load(context.Context, LoadRequest) (Loaded, error)
	// Attach does what all requests, at least one and of one instance, ask for,
	// or nothing.
	Attach(context.Context, ...AttachRequest) (Attached, error)
	// Detach takes off what any of the requests, at least one, selects. They
	// differ in their selectors alone.
	Detach(context.Context, ...DetachRequest) (Attached, error)
	Unload(context.Context, UnloadRequest) (Unloaded, error)

	// Instances lists what is loaded, sorted by name; with a name only that
	// one, ErrNotFound if there is none. With an error it lists those that can be
	// read.
	Instances(ctx context.Context, name string) ([]Instance, error)

	// Attachments lists where one instance hangs, without reading the rest of
	// it; ErrNotFound if it isn't loaded.
	Attachments(ctx context.Context, name string) ([]Attachment, error)

	// EnableStats makes the kernel count runs and run time of every program
	// until the returned function is called.
	EnableStats() (stop func() error, err error)

	// OpenMap opens a pinned map of a loaded instance by name. readOnly asks
	// for a descriptor that can't write.
	OpenMap(instance, name string, readOnly bool) (*ebpf.Map, error)

	// Update runs fn while it holds the exclusive lock.
	Update(ctx context.Context, fn func() error) error
}
