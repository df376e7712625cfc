// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Programs on functions and tracepoints, in the three ways that take a name.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("fentry/vfs_read")
int reads_typed(void *ctx)
{
	return 0;
}

SEC("kprobe/vfs_read")
int reads(void *ctx)
{
	return 0;
}

SEC("tracepoint/sched/sched_switch")
int switches(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
