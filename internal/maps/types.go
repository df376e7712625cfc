// Package maps reads and writes the entries of BPF maps, anybody's, pinned or
// not, typed by the BTF that a map carries.
package maps

import (
	"context"
	"encoding/json"

	"bpfnet/internal/holders"
)

// API is what the map commands call. *Store implements it against the kernel;
// command tests use a fake.
//
// A map is named "NAME/MAP" (a map of a loaded instance), "id:N", "name:S", by
// the absolute path of its pin, or by a bare word, which stands for name:S.
// Keys and values are text as package codec describes it. Errors are of the kinds of package fault: ErrNotFound for a
// map or key that isn't there, ErrUsage for text that doesn't fit the type,
// ErrConflict, ErrPermission and ErrUnsupported.
type API interface {
	// List describes every map of the kernel, sorted by id. Without the
	// capability for that it describes those pinned below the root and says
	// so in Notes.
	List(ctx context.Context) (Listing, error)
	Show(ctx context.Context, ref string) (Map, error)
	Get(ctx context.Context, ref, key string) (Entry, error)
	Set(ctx context.Context, request SetRequest) (Change, error)
	Delete(ctx context.Context, request DeleteRequest) (Change, error)
	// Dump calls emit once for each entry, and never twice for one key. It
	// stops with the first error that emit returns.
	Dump(ctx context.Context, request DumpRequest, emit func(Row) error) (Dumped, error)
	// Pinned lists the references of the maps pinned below the root, sorted.
	Pinned() ([]string, error)

	Users
	Pinner
	Queues
	Watcher
	Eventer
	Importer
	Clearer
	Creator
	Walker
}

// Map describes a map, in bpftool's words.
type Map struct {
	ID           uint32   `json:"id"`
	Type         string   `json:"type"` // "percpu_hash"
	Name         string   `json:"name"` // in full where a pin or BTF tells it; else at most 15 characters
	Ref          string   `json:"map"`  // how to name it: "NAME/MAP", a path, or "id:N"
	Flags        uint32   `json:"flags"`
	BytesKey     uint32   `json:"bytes_key"`
	BytesValue   uint32   `json:"bytes_value"`
	MaxEntries   uint32   `json:"max_entries"`
	BytesMemlock *uint64  `json:"bytes_memlock"`
	Frozen       bool     `json:"frozen"`
	Pinned       []string `json:"pinned"` // pins below the root and in /sys/fs/bpf, and the path that was asked for
	BTFID        *uint32  `json:"btf_id"`
	KeyType      *string  `json:"key_type"` // null: the map carries no type for it
	ValueType    *string  `json:"value_type"`

	Fill      *uint64           `json:"fill"`     // entries in use; nil: not counted (see Users), or the type has none
	ProgIDs   []uint32          `json:"prog_ids"` // programs that use it; nil without the capability to list them
	Processes []holders.Process `json:"pids"`     // that have it open; nil: not asked for (see Users)
}

// Listing is the answer of List.
type Listing struct {
	Maps  []Map
	Notes []string // what is missing and why
}

// Entry is one entry of a map. A per-CPU value is
// {"per_cpu":[…one per CPU…],"sum":…}.
type Entry struct {
	Map   string          `json:"map"`
	MapID uint32          `json:"map_id"`
	Key   json.RawMessage `json:"key"`
	Value json.RawMessage `json:"value"`
	Sum   json.RawMessage `json:"-"` // the part of Value that sums up a per-CPU value; else nil
	Notes []string        `json:"-"`
}

// Condition says when Set may write.
type Condition int

// The conditions of Set.
const (
	Always    Condition = iota
	IfAbsent            // the key isn't there yet
	IfPresent           // the key is there
)

// SetRequest says what to write. The value of a per-CPU map is written for
// every CPU, unless it has the form {"per_cpu":[…]} that Get prints.
type SetRequest struct {
	Map, Key, Value string
	Condition       Condition
	ConditionWord   string // how Condition was given, for hints: "--if-absent", "noexist"
	DryRun          bool
}

// DeleteRequest names the entry to remove.
type DeleteRequest struct {
	Map, Key string
	DryRun   bool
}

// Change is what a writer did, or with DryRun would do.
type Change struct {
	Changed  bool            `json:"changed"`
	Map      string          `json:"map"`
	MapID    uint32          `json:"map_id"`
	Key      json.RawMessage `json:"key"`
	Value    json.RawMessage `json:"value"`    // null after Delete
	Previous json.RawMessage `json:"previous"` // null when there was none
	Notes    []string        `json:"notes"`
}

// DumpRequest says what to read.
type DumpRequest struct {
	Map   string
	Limit uint64 // at most that many entries; 0: all
	// Match is what the text of the key begins with; "hex:…" compares bytes.
	Match string
}

// Row is one entry of a dump, as JSON. The slices are overwritten by the next
// row.
type Row struct {
	Key, Value []byte
	Sum        []byte // the part of Value that sums up a per-CPU value; else nil
}

// Dumped sums up a dump.
type Dumped struct {
	Map     Map
	Entries uint64
	Notes   []string
}
