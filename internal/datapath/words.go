package datapath

import (
	"strings"

	"github.com/cilium/ebpf"
)

// programTypes are bpftool's words for program types (its prog_type_name
// table), which cilium/ebpf spells differently.
var programTypes = map[ebpf.ProgramType]string{
	ebpf.SocketFilter:          "socket_filter",
	ebpf.Kprobe:                "kprobe",
	ebpf.SchedCLS:              "sched_cls",
	ebpf.SchedACT:              "sched_act",
	ebpf.TracePoint:            "tracepoint",
	ebpf.XDP:                   "xdp",
	ebpf.PerfEvent:             "perf_event",
	ebpf.CGroupSKB:             "cgroup_skb",
	ebpf.CGroupSock:            "cgroup_sock",
	ebpf.LWTIn:                 "lwt_in",
	ebpf.LWTOut:                "lwt_out",
	ebpf.LWTXmit:               "lwt_xmit",
	ebpf.SockOps:               "sock_ops",
	ebpf.SkSKB:                 "sk_skb",
	ebpf.CGroupDevice:          "cgroup_device",
	ebpf.SkMsg:                 "sk_msg",
	ebpf.RawTracepoint:         "raw_tracepoint",
	ebpf.CGroupSockAddr:        "cgroup_sock_addr",
	ebpf.LWTSeg6Local:          "lwt_seg6local",
	ebpf.LircMode2:             "lirc_mode2",
	ebpf.SkReuseport:           "sk_reuseport",
	ebpf.FlowDissector:         "flow_dissector",
	ebpf.CGroupSysctl:          "cgroup_sysctl",
	ebpf.RawTracepointWritable: "raw_tracepoint_writable",
	ebpf.CGroupSockopt:         "cgroup_sockopt",
	ebpf.Tracing:               "tracing",
	ebpf.StructOps:             "struct_ops",
	ebpf.Extension:             "ext",
	ebpf.LSM:                   "lsm",
	ebpf.SkLookup:              "sk_lookup",
	ebpf.Syscall:               "syscall",
	ebpf.Netfilter:             "netfilter",
}

func programType(t ebpf.ProgramType) string {
	if word, ok := programTypes[t]; ok {
		return word
	}
	return strings.ToLower(t.String())
}

// cgroupHooks are bpftool's words for the places in a cgroup where a program
// can hang.
var cgroupHooks = map[ebpf.AttachType]string{
	ebpf.AttachCGroupInetIngress:      "cgroup_inet_ingress",
	ebpf.AttachCGroupInetEgress:       "cgroup_inet_egress",
	ebpf.AttachCGroupInetSockCreate:   "cgroup_inet_sock_create",
	ebpf.AttachCgroupInetSockRelease:  "cgroup_inet_sock_release",
	ebpf.AttachCGroupSockOps:          "cgroup_sock_ops",
	ebpf.AttachCGroupDevice:           "cgroup_device",
	ebpf.AttachCGroupInet4Bind:        "cgroup_inet4_bind",
	ebpf.AttachCGroupInet6Bind:        "cgroup_inet6_bind",
	ebpf.AttachCGroupInet4Connect:     "cgroup_inet4_connect",
	ebpf.AttachCGroupInet6Connect:     "cgroup_inet6_connect",
	ebpf.AttachCGroupInet4PostBind:    "cgroup_inet4_post_bind",
	ebpf.AttachCGroupInet6PostBind:    "cgroup_inet6_post_bind",
	ebpf.AttachCGroupUDP4Sendmsg:      "cgroup_udp4_sendmsg",
	ebpf.AttachCGroupUDP6Sendmsg:      "cgroup_udp6_sendmsg",
	ebpf.AttachCGroupUDP4Recvmsg:      "cgroup_udp4_recvmsg",
	ebpf.AttachCGroupUDP6Recvmsg:      "cgroup_udp6_recvmsg",
	ebpf.AttachCgroupInet4GetPeername: "cgroup_inet4_getpeername",
	ebpf.AttachCgroupInet6GetPeername: "cgroup_inet6_getpeername",
	ebpf.AttachCgroupInet4GetSockname: "cgroup_inet4_getsockname",
	ebpf.AttachCgroupInet6GetSockname: "cgroup_inet6_getsockname",
	ebpf.AttachCGroupSysctl:           "cgroup_sysctl",
	ebpf.AttachCGroupGetsockopt:       "cgroup_getsockopt",
	ebpf.AttachCGroupSetsockopt:       "cgroup_setsockopt",
}

// Hook words that are not in cgroupHooks.
const (
	hookXDP   = "xdp"
	hookTrace = "trace"
)

// hookRoot is for programs of cgroups that belong to those that trace.
const hookRoot = "root"

// The ways an attachment is held.
const (
	mechanismLink    = "link"    // a pinned bpf_link
	mechanismNetlink = "netlink" // a clsact filter
)

// hookGroup returns the group of commands, as in AttachRequest.Hook, that a hook
// word belongs to.
func hookGroup(hook string) string {
	switch {
	case hook == hookXDP:
		return "xdp"
	case strings.HasPrefix(hook, "tcx_"), strings.HasPrefix(hook, "clsact_"):
		return "tc"
	case hook == "cgroup_sock_ops":
		return "sockops"
	case strings.HasPrefix(hook, "cgroup_"):
		return "cgroup"
	default:
		return "trace"
	}
}

// hookDirection returns the direction that a hook word implies, if any.
func hookDirection(hook string) Direction {
	switch {
	case strings.HasSuffix(hook, "_ingress"):
		return Ingress
	case strings.HasSuffix(hook, "_egress"):
		return Egress
	default:
		return ""
	}
}
