// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// An object as iproute2 loads it: old-style map definitions with its extra
// fields, section names of its own, no BTF.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct bpf_elf_map {
	__u32 type, size_key, size_value, max_elem, flags, id, pinning, inner_id, inner_idx;
};

struct bpf_elf_map SEC("maps") packets = {
	.type = BPF_MAP_TYPE_ARRAY,
	.size_key = sizeof(__u32),
	.size_value = sizeof(__u64),
	.max_elem = 2,
};

static __always_inline void count(__u32 slot)
{
	__u64 *n = bpf_map_lookup_elem(&packets, &slot);

	if (n)
		__sync_fetch_and_add(n, 1);
}

SEC("classifier/count")
int count_tc(struct __sk_buff *skb)
{
	count(0);
	return -1;
}

SEC("xdp_count")
int count_xdp(struct xdp_md *ctx)
{
	count(1);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
