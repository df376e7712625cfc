package maps

import (
	"slices"
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
	sockets bool   // values read as cookies, and are written as descriptors that only their owner has
	target  string // what the first 4 bytes of a value are that packets are redirected by; a program may follow
	refusal
}

// refusal says why there are no entries to read, and what to do instead.
type refusal struct {
	refuses string // "": there are entries
	hint    string // {map} and {id} stand for the map
}

var (
	isStream  = refusal{"it hands records on to the one process that consumes it", "bpfnet map events {map} reads them"}
	isInput   = refusal{"it hands records of a process on to programs", "bpfnet map show {map} names the programs that read it"}
	isQueue   = refusal{"it has no keys", "bpfnet map peek {map} shows its next element, bpfnet map pop {map} takes it out"}
	isFilter  = refusal{"it only answers whether a value may be in it", "bpfnet map peek {map} VALUE asks it"}
	isStorage = refusal{"its entries hang on kernel objects, and only BPF iterators can list them", "bpftool iter pin ITERATOR.o PATH map id {id} lists them by an iterator of yours"}
	ofSockets = refusal{isStorage.refuses, "ss --all --bpf-map-id={id} shows those of this network namespace"}
	noLookup  = refusal{"the kernel doesn't let processes read its values", "bpfnet map show {map} --pids names the programs that use it and the processes that may know"}
	isMemory  = refusal{"it is memory without entries", "bpfnet map show {map} --pids names the programs and processes that share it"}
)

var kinds = map[ebpf.MapType]kind{
	ebpf.Hash:                {word: "hash", batch: true, hashed: true},
	ebpf.Array:               {word: "array", indexed: true, fixed: true, batch: true},
	ebpf.ProgramArray:        {word: "prog_array", indexed: true, holds: "program"},
	ebpf.PerfEventArray:      {word: "perf_event_array", indexed: true, refusal: isStream},
	ebpf.PerCPUHash:          {word: "percpu_hash", perCPU: true, batch: true, hashed: true},
	ebpf.PerCPUArray:         {word: "percpu_array", perCPU: true, indexed: true, fixed: true, batch: true},
	ebpf.StackTrace:          {word: "stack_trace"},
	ebpf.CGroupArray:         {word: "cgroup_array", indexed: true, refusal: noLookup},
	ebpf.LRUHash:             {word: "lru_hash", batch: true, hashed: true},
	ebpf.LRUCPUHash:          {word: "lru_percpu_hash", perCPU: true, batch: true, hashed: true},
	ebpf.LPMTrie:             {word: "lpm_trie", batch: true},
	ebpf.ArrayOfMaps:         {word: "array_of_maps", indexed: true, holds: "map"},
	ebpf.HashOfMaps:          {word: "hash_of_maps", hashed: true, holds: "map"},
	ebpf.DevMap:              {word: "devmap", indexed: true, target: "ifindex"},
	ebpf.SockMap:             {word: "sockmap", indexed: true, sockets: true},
	ebpf.CPUMap:              {word: "cpumap", indexed: true, target: "qsize"},
	ebpf.XSKMap:              {word: "xskmap", indexed: true, refusal: noLookup},
	ebpf.SockHash:            {word: "sockhash", hashed: true, sockets: true},
	ebpf.CGroupStorage:       {word: "cgroup_storage", hashed: true},
	ebpf.ReusePortSockArray:  {word: "reuseport_sockarray", indexed: true, sockets: true},
	ebpf.PerCPUCGroupStorage: {word: "percpu_cgroup_storage", perCPU: true, hashed: true},
	ebpf.Queue:               {word: "queue", refusal: isQueue},
	ebpf.Stack:               {word: "stack", refusal: isQueue},
	ebpf.SkStorage:           {word: "sk_storage", refusal: ofSockets},
	ebpf.DevMapHash:          {word: "devmap_hash", hashed: true, target: "ifindex"},
	ebpf.StructOpsMap:        {word: "struct_ops", indexed: true},
	ebpf.RingBuf:             {word: "ringbuf", refusal: isStream},
	ebpf.InodeStorage:        {word: "inode_storage", refusal: isStorage},
	ebpf.TaskStorage:         {word: "task_storage", refusal: isStorage},
	ebpf.BloomFilter:         {word: "bloom_filter", refusal: isFilter},
	ebpf.UserRingbuf:         {word: "user_ringbuf", refusal: isInput},
	ebpf.CgroupStorage:       {word: "cgrp_storage", refusal: isStorage},
	ebpf.Arena:               {word: "arena", refusal: isMemory},
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

// a is the word with its article.
func (k kind) a() string {
	if strings.ContainsRune("aeio", rune(k.word[0])) || strings.HasPrefix(k.word, "xsk") || strings.HasPrefix(k.word, "l") {
		return "an " + k.word
	}
	return "a " + k.word
}

// TypeWords are the words of all map types that TypeName knows, sorted.
func TypeWords() []string {
	words := make([]string, 0, len(kinds))
	for _, k := range kinds {
		words = append(words, k.word)
	}
	slices.Sort(words)
	return words
}

// typeOf is the map type of a word.
func typeOf(word string) (ebpf.MapType, bool) {
	for t, k := range kinds {
		if k.word == word {
			return t, true
		}
	}
	return ebpf.UnspecifiedMap, false
}
