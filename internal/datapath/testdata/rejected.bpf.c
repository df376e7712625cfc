// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// A program that reads beyond what it checked.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int unchecked(struct xdp_md *ctx)
{
	return *(__u8 *)(long)ctx->data;
}

char _license[] SEC("license") = "Dual BSD/GPL";
