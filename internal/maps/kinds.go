package maps

import (
	"strings"

	"github.com/cilium/ebpf"
)

// kind is what the map commands need to know of a map type.
type kind struct {
	word    string // bpftool's
	perCPU  bool   // a value for each CPU
	indexed bool   // keys are 0..max_entries-1
	fixed   bool   // entries are always there: they can't be deleted
	batch   bool   // the kernel's batch lookup walks it well
	hashed  bool   // walking goes back to the start when its place was deleted
	holds   string // "map" or "program": values read as ids and are written as descriptors
	refuses string // why there are no entries to read; "" when there are
}

const (
	isStream  = "it hands records on to the one process that consumes it"
	isQueue   = "reading an element of it takes the element out"
	isStorage = "its entries hang on kernel objects, and only BPF iterators can list them"
	noLookup  = "the kernel doesn't let programs outside of it read its values"
)

var kinds = map[ebpf.MapType]kind{
	ebpf.Hash:                {word: "hash", batch: true, hashed: true},
	ebpf.Array:               {word: "array", indexed: true, fixed: true, batch: true},
	ebpf.ProgramArray:        {word: "prog_array", indexed: true, holds: "program"},
	ebpf.PerfEventArray:      {word: "perf_event_array", indexed: true, refuses: isStream},
	ebpf.PerCPUHash:          {word: "percpu_hash", perCPU: true, batch: true, hashed: true},
	ebpf.PerCPUArray:         {word: "percpu_array", perCPU: true, indexed: true, fixed: true, batch: true},
	ebpf.StackTrace:          {word: "stack_trace"},
	ebpf.CGroupArray:         {word: "cgroup_array", indexed: true, refuses: noLookup},
	ebpf.LRUHash:             {word: "lru_hash", batch: true, hashed: true},
	ebpf.LRUCPUHash:          {word: "lru_percpu_hash", perCPU: true, batch: true, hashed: true},
	ebpf.LPMTrie:             {word: "lpm_trie", batch: true},
	ebpf.ArrayOfMaps:         {word: "array_of_maps", indexed: true, holds: "map"},
	ebpf.HashOfMaps:          {word: "hash_of_maps", hashed: true, holds: "map"},
	ebpf.DevMap:              {word: "devmap", indexed: true},
	ebpf.SockMap:             {word: "sockmap", indexed: true},
	ebpf.CPUMap:              {word: "cpumap", indexed: true},
	ebpf.XSKMap:              {word: "xskmap", indexed: true, refuses: noLookup},
	ebpf.SockHash:            {word: "sockhash", hashed: true},
	ebpf.CGroupStorage:       {word: "cgroup_storage", hashed: true},
	ebpf.ReusePortSockArray:  {word: "reuseport_sockarray", indexed: true},
	ebpf.PerCPUCGroupStorage: {word: "percpu_cgroup_storage", perCPU: true, hashed: true},
	ebpf.Queue:               {word: "queue", refuses: isQueue},
	ebpf.Stack:               {word: "stack", refuses: isQueue},
	ebpf.SkStorage:           {word: "sk_storage", refuses: isStorage},
	ebpf.DevMapHash:          {word: "devmap_hash", hashed: true},
	ebpf.StructOpsMap:        {word: "struct_ops", indexed: true},
	ebpf.RingBuf:             {word: "ringbuf", refuses: isStream},
	ebpf.InodeStorage:        {word: "inode_storage", refuses: isStorage},
	ebpf.TaskStorage:         {word: "task_storage", refuses: isStorage},
	ebpf.BloomFilter:         {word: "bloom_filter", refuses: "it only answers whether a value may be in it"},
	ebpf.UserRingbuf:         {word: "user_ringbuf", refuses: isStream},
	ebpf.CgroupStorage:       {word: "cgrp_storage", refuses: isStorage},
	ebpf.Arena:               {word: "arena", refuses: "it is memory without entries"},
}

// kindOf returns what is known of a map type; one that this package doesn't
// know is read like a hash.
func kindOf(t ebpf.MapType) kind {
	if k, ok := kinds[t]; ok {
		return k
	}
	return kind{word: TypeName(t), hashed: true}
}

// TypeName is bpftool's word for a map type, which cilium/ebpf spells
// differently.
func TypeName(t ebpf.MapType) string {
	if k, ok := kinds[t]; ok {
		return k.word
	}
	return strings.ToLower(t.String())
}
