// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Programs that are attached through perf events.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tracepoint/sched/sched_switch")
int tracepoint(void *ctx)
{
	return 0;
}

SEC("kprobe/tcp_connect")
int kprobe(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
