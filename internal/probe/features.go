package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
)

// feature is one entry of the list: a name, and how to find out.
type feature struct {
	name      string
	group     string
	mechanism string // what the probe does
	since     string // kernel release, for messages only; "" for what is a matter of mounting
	op        Op     // what the probe needs capabilities for
	guarded   bool   // hardened kernels refuse it to everybody
	mount     bool   // depends on what is mounted, so that the answer can change
	probe     func(dir string) error
}

// features is in the order of reports. A new probe is one function and one line.
var features = []feature{
	{name: "bpffs", group: "basics", mechanism: "statfs", op: OpPin, mount: true, probe: probeBPFFS},
	{name: "bpffs_symlink", group: "basics", mechanism: "symlink", op: OpPin, mount: true, probe: probeSymlink},
	{name: "btf", group: "basics", mechanism: "open", since: "5.4", op: OpOpenPin, probe: probeBTF},
	{name: "link_update", group: "basics", mechanism: "bpf_link", since: "5.7", op: OpUpdateLink, probe: probeLinkUpdate},
	{name: "prog_test_run", group: "basics", mechanism: "run", since: "4.12", op: OpTestRun, probe: probeTestRun},
	{name: "atomics", group: "basics", mechanism: "load", since: "5.12", op: OpLoadTC, probe: probeAtomics},
	{name: "stats", group: "basics", mechanism: "enable", since: "5.8", op: OpEnableStats, probe: probeStats},

	{name: "xdp", group: "xdp", mechanism: "load", since: "4.8", op: OpLoadXDP, probe: probeXDP},
	{name: "xdp_frags", group: "xdp", mechanism: "load", since: "5.18", op: OpLoadXDP, probe: probeXDPFrags},
	{name: "xdp_generic", group: "xdp", mechanism: "bpf_link", since: "5.9", op: OpCreateNetNS, probe: probeXDPGeneric},
	{name: "xdp_native", group: "xdp", mechanism: "bpf_link", since: "5.9", op: OpCreateNetNS, probe: probeXDPNative},

	{name: "tc", group: "tc", mechanism: "load", since: "4.1", op: OpLoadTC, probe: probeTC},
	{name: "tcx", group: "tc", mechanism: "bpf_link", since: "6.6", op: OpAttachTCX, probe: probeTCX},
	{name: "cls_bpf", group: "tc", mechanism: "netlink", since: "4.5", op: OpCreateNetNS, probe: probeClsBPF},

	{name: "cgroup2", group: "cgroup", mechanism: "mountinfo", op: OpQueryHook, mount: true, probe: probeCgroup2},
	{name: "cgroup_skb", group: "cgroup", mechanism: "bpf_link", since: "5.7", op: OpAttachCgroup, probe: probeCgroupSKB},
	{name: "cgroup_sock", group: "cgroup", mechanism: "bpf_link", since: "5.7", op: OpAttachCgroup, probe: probeCgroupSock},
	{name: "cgroup_sock_addr", group: "cgroup", mechanism: "bpf_link", since: "5.7", op: OpAttachCgroup, probe: probeCgroupSockAddr},
	{name: "sockops", group: "cgroup", mechanism: "bpf_link", since: "5.7", op: OpAttachCgroup, probe: probeSockOps},

	{name: "tp_btf", group: "tracing", mechanism: "attach", since: "5.5", op: OpAttachTracing, probe: probeTpBTF},
	{name: "tp_btf_sock_length", group: "tracing", mechanism: "attach", since: "6.3", op: OpAttachTracing, probe: probeSockLength},
	{name: "raw_tp", group: "tracing", mechanism: "attach", since: "4.17", op: OpAttachTracing, probe: probeRawTP},
	{name: "tracepoint", group: "tracing", mechanism: "perf_event", since: "4.7", op: OpAttachPerf, mount: true, probe: probeTracepoint},
	{name: "fentry", group: "tracing", mechanism: "attach", since: "5.5", op: OpLoadTrampoline, guarded: true, probe: probeFentry},
	{name: "lsm", group: "tracing", mechanism: "attach", since: "5.7", op: OpLoadTrampoline, guarded: true, probe: probeLSM},
	{name: "kprobe", group: "tracing", mechanism: "perf_event", since: "4.17", op: OpAttachPerf, guarded: true, probe: probeKprobe},
	{name: "kprobe_multi", group: "tracing", mechanism: "bpf_link", since: "5.18", op: OpAttachTracing, guarded: true, probe: probeKprobeMulti},
	{name: "uprobe", group: "tracing", mechanism: "perf_event", since: "4.17", op: OpAttachUprobe, probe: probeUprobe},
	{name: "iterators", group: "tracing", mechanism: "bpf_link", since: "5.8", op: OpAttachTracing, probe: probeIterators},

	{name: "map_array", group: "maps", mechanism: "create", since: "3.19", op: OpCreateMap, probe: createsMap(words(ebpf.Array))},
	{name: "map_hash", group: "maps", mechanism: "create", since: "3.19", op: OpCreateMap, probe: createsMap(words(ebpf.Hash))},
	{name: "map_percpu_array", group: "maps", mechanism: "create", since: "4.6", op: OpCreateMap, probe: createsMap(words(ebpf.PerCPUArray))},
	{name: "map_percpu_hash", group: "maps", mechanism: "create", since: "4.6", op: OpCreateMap, probe: createsMap(words(ebpf.PerCPUHash))},
	{name: "map_lru_hash", group: "maps", mechanism: "create", since: "4.10", op: OpCreateMap, probe: createsMap(words(ebpf.LRUHash))},
	{name: "map_lpm_trie", group: "maps", mechanism: "create", since: "4.11", op: OpCreateMap, probe: createsMap(lpmTrie)},
	{name: "map_in_map", group: "maps", mechanism: "create", since: "4.12", op: OpCreateMap, probe: createsMap(mapInMap)},
	{name: "map_sk_storage", group: "maps", mechanism: "create", since: "5.2", op: OpCreateMap, probe: createsMap(sockStore)},
	{name: "map_batch", group: "maps", mechanism: "update, lookup", since: "5.6", op: OpCreateMap, probe: probeBatchHash},
	{name: "map_batch_percpu_array", group: "maps", mechanism: "update, lookup", since: "5.13", op: OpCreateMap, probe: probeBatchPerCPU},

	{name: "ring_buffer", group: "events", mechanism: "create", since: "5.8", op: OpCreateMap, probe: createsMap(ringBuf)},
	{name: "perf_buffer", group: "events", mechanism: "perf_event", since: "4.3", op: OpPerfBuffer, probe: probePerfBuffer},
}

func lookup(name string) (feature, bool) {
	for _, f := range features {
		if f.name == name {
			return f, true
		}
	}
	return feature{}, false
}

func (f feature) result(ctx context.Context, dir string, neededBy []string) Result {
	result := Result{
		Feature: f.name, Group: f.group, Mechanism: f.mechanism, Since: f.since,
		NeededBy: append([]string{}, neededBy...),
	}
	err := ctx.Err()
	if err == nil {
		err = f.cached(dir)
	}
	result.Status = f.status(err)
	if err != nil {
		result.Detail = new(string)
		*result.Detail = f.detail(result.Status, err)
	}
	return result
}

func (f feature) status(err error) Status {
	switch {
	case err == nil:
		return Available
	case errors.Is(err, ErrForbidden):
		return Forbidden
	case isDenied(err):
		return f.denied()
	case errors.Is(err, ErrNotSupported):
		return Unsupported
	default:
		return Unknown
	}
}

// denied judges a refusal that isn't known to be the kernel's policy.
func (f feature) denied() Status {
	if len(missing(Needs(f.op))) > 0 || inUserNamespace() {
		return NoPermission
	}
	return Unknown
}

// detail says in a few words why the feature isn't available.
func (f feature) detail(status Status, err error) string {
	switch lacking := missing(Needs(f.op)); {
	case status == Forbidden:
		return fmt.Sprintf("%v although no capability is missing: %v", rootCause(err), ErrForbidden)
	case status == NoPermission && len(lacking) > 0:
		return fmt.Sprintf("%s: %v (%s)", f.op, rootCause(err), areMissing(lacking))
	case status == NoPermission:
		return "capabilities of a user namespace don't count"
	case isDenied(err) && lowMemlock(f.op):
		return fmt.Sprintf("%v (RLIMIT_MEMLOCK is %s)", rootCause(err), memlockText())
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return strings.TrimPrefix(strings.TrimSuffix(text, ": "+ErrNotSupported.Error()), ErrNotSupported.Error()+": ")
}
