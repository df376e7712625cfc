package bpftool

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"bpfnet/internal/bpfsys"
)

// This file describes links of probes: perf events, and kprobes and uprobes by
// the dozen.

// The numbers of enum bpf_perf_event_type.
const (
	perfUprobe     = 1
	perfUretprobe  = 2
	perfKprobe     = 3
	perfKretprobe  = 4
	perfTracepoint = 5
	perfEvent      = 6
)

// perfInfo is struct bpf_link_info of a perf event that has a name.
type perfInfo struct {
	linkHeader
	typ, _         uint32
	name           unsafe.Pointer
	length, offset uint32
	values         [3]uint64
}

func describePerfEvent(doc *Object, info *linkInfo, fd int) error {
	typ := info.u32(0)
	switch typ {
	case perfEvent:
		describeEvent(doc, info)
		return nil
	case perfUprobe, perfUretprobe, perfKprobe, perfKretprobe, perfTracepoint:
	default:
		return nil // a later kernel's
	}
	name := make([]byte, longestName)
	ask := perfInfo{name: unsafe.Pointer(&name[0]), length: longestName}
	if err := bpfsys.Info(fd, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); err != nil {
		return fmt.Errorf("read what is probed: %w", err)
	}
	*doc = append(*doc, probeFields(typ, text(name), ask)...)
	return nil
}

// probeFields describes what one of the probes that have a name is on.
func probeFields(typ uint32, name string, info perfInfo) Object {
	switch typ {
	case perfTracepoint:
		return Object{{"tracepoint", name}, {"cookie", info.values[0]}}
	case perfKprobe, perfKretprobe:
		return Object{
			{"retprobe", typ == perfKretprobe}, {"addr", info.values[0]}, {"func", name}, {"offset", info.offset},
			{"missed", info.values[1]}, {"cookie", info.values[2]},
		}
	}
	return Object{
		{"retprobe", typ == perfUretprobe}, {"file", name}, {"offset", info.offset},
		{"cookie", info.values[0]}, {"ref_ctr_offset", info.values[1]},
	}
}

// perf's words for its kinds of events (PERF_TYPE_*) and for the events of two
// of them (PERF_COUNT_HW_*, PERF_COUNT_SW_*).
var (
	perfTypes   = []string{"hardware", "software", "tracepoint", "hw-cache", "raw", "breakpoint"}
	perfConfigs = [][]string{
		0: {"cpu-cycles", "instructions", "cache-references", "cache-misses", "branch-instructions",
			"branch-misses", "bus-cycles", "stalled-cycles-frontend", "stalled-cycles-backend", "ref-cycles"},
		1: {"cpu-clock", "task-clock", "page-faults", "context-switches", "cpu-migrations", "minor-faults",
			"major-faults", "alignment-faults", "emulation-faults", "dummy", "bpf-output", "cgroup-switches"},
	}
	perfCaches    = []string{"L1-dcache", "L1-icache", "LLC", "dTLB", "iTLB", "branch", "node"}
	perfCacheOps  = []string{"load", "store", "prefetch"}
	perfCacheEnds = []string{"refs", "misses"}
)

const perfHWCache = 3 // PERF_TYPE_HW_CACHE

func describeEvent(doc *Object, info *linkInfo) {
	config, typ := info.u64(8), info.u32(16)
	doc.add("event_type", worded(perfTypes, typ))
	doc.add("event_config", perfConfig(typ, config))
	doc.add("cookie", info.u64(24))
}

// perfConfig names an event of a kind; a number where there is no name.
func perfConfig(typ uint32, config uint64) any {
	if typ == perfHWCache {
		return fmt.Sprintf("%v-%v-%v", worded(perfCaches, uint32(config&0xff)),
			worded(perfCacheOps, uint32(config>>8&0xff)), worded(perfCacheEnds, uint32(config>>16)))
	}
	if typ < uint32(len(perfConfigs)) && config < uint64(len(perfConfigs[typ])) {
		return perfConfigs[typ][config]
	}
	return config
}

// kprobesInfo is struct bpf_link_info of many kprobes.
type kprobesInfo struct {
	linkHeader
	addresses    unsafe.Pointer
	count, flags uint32
	missed       uint64
	cookies      unsafe.Pointer
	_            [16]byte
}

const probesReturn = 1 // BPF_F_KPROBE_MULTI_RETURN, BPF_F_UPROBE_MULTI_RETURN

func describeKprobes(doc *Object, info *linkInfo, fd int) error {
	count := info.u32(8)
	doc.add("retprobe", info.u32(12)&probesReturn != 0)
	doc.add("func_cnt", count)
	doc.add("missed", info.u64(16))
	functions := []Object{}
	if count > 0 {
		addresses, cookies := make([]uint64, count), make([]uint64, count)
		ask := kprobesInfo{addresses: unsafe.Pointer(&addresses[0]), cookies: unsafe.Pointer(&cookies[0]), count: count}
		if err := bpfsys.Info(fd, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); err != nil {
			return fmt.Errorf("read what is probed: %w", err)
		}
		functions = probedFunctions(addresses, cookies)
	}
	doc.add("funcs", functions)
	return nil
}

// probedFunctions describes functions by their addresses, in the order of these.
// Those that the kernel doesn't name, or not to this user, are left out.
func probedFunctions(addresses, cookies []uint64) []Object {
	byAddress := map[uint64]uint64{}
	for i, address := range addresses {
		byAddress[address] = cookies[i]
	}
	slices.Sort(addresses)
	symbols := kernelSymbols(byAddress)
	functions := []Object{}
	for _, address := range addresses {
		s, ok := symbols[address]
		if !ok {
			continue
		}
		var doc Object
		doc.add("addr", address)
		doc.add("func", s.name)
		doc.add("module", s.module)
		doc.add("cookie", byAddress[address])
		functions = append(functions, doc)
	}
	return functions
}

type symbol struct {
	name   string
	module *string // nil: the kernel itself
}

// endbr is the length of the instruction that functions begin with where
// indirect branches are tracked: probes are behind it.
const endbr = 4

// kernelSymbols finds the functions at some addresses.
func kernelSymbols(addresses map[uint64]uint64) map[uint64]symbol {
	file, err := os.Open("/proc/kallsyms")
	if err != nil {
		return nil
	}
	defer file.Close()
	return readSymbols(file, addresses)
}

func readSymbols(r io.Reader, addresses map[uint64]uint64) map[uint64]symbol {
	exact, behind := map[uint64]symbol{}, map[uint64]symbol{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 {
			continue
		}
		address, err := strconv.ParseUint(fields[0], 16, 64)
		if err != nil || address == 0 {
			continue
		}
		s := symbol{name: fields[2]}
		if len(fields) > 3 {
			module := strings.Trim(fields[3], "[]")
			s.module = &module
		}
		keep(exact, addresses, address, s)
		keep(behind, addresses, address+endbr, s)
	}
	for address, s := range exact {
		behind[address] = s
	}
	return behind
}

// keep remembers the first symbol of an address that is asked for.
func keep(symbols map[uint64]symbol, addresses map[uint64]uint64, address uint64, s symbol) {
	_, asked := addresses[address]
	if _, known := symbols[address]; asked && !known {
		symbols[address] = s
	}
}

// uprobesInfo is struct bpf_link_info of many uprobes.
type uprobesInfo struct {
	linkHeader
	path, offsets, counters, cookies unsafe.Pointer
	pathSize, count, flags, pid      uint32
}

func describeUprobes(doc *Object, info *linkInfo, fd int) error {
	count := info.u32(36)
	path := make([]byte, longestName)
	offsets, counters, cookies := make([]uint64, count), make([]uint64, count), make([]uint64, count)
	if count > 0 { // else the kernel doesn't tell (before Linux 6.8), and would refuse the question
		ask := uprobesInfo{
			path: unsafe.Pointer(&path[0]), pathSize: longestName, count: count,
			offsets: unsafe.Pointer(&offsets[0]), counters: unsafe.Pointer(&counters[0]), cookies: unsafe.Pointer(&cookies[0]),
		}
		if err := bpfsys.Info(fd, unsafe.Pointer(&ask), unsafe.Sizeof(ask)); err != nil {
			return fmt.Errorf("read what is probed: %w", err)
		}
	}
	doc.add("retprobe", info.u32(40)&probesReturn != 0)
	doc.add("path", text(path))
	doc.add("func_cnt", count)
	doc.add("pid", int32(info.u32(44)))
	functions := make([]Object, count)
	for i := range functions {
		functions[i].add("offset", offsets[i])
		functions[i].add("ref_ctr_offset", counters[i])
		functions[i].add("cookie", cookies[i])
	}
	doc.add("funcs", functions)
	return nil
}
