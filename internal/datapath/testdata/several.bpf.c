// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// One program of each kind that can be attached, and variables of each size.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} shared SEC(".maps");

const volatile __u8 small = 1;
const volatile __s64 step = 1;
const volatile _Bool enabled = 1;

static __always_inline void ran(__u32 slot)
{
	__u64 *n = bpf_map_lookup_elem(&runs, &slot);
	__u64 *all = bpf_map_lookup_elem(&shared, &(__u32){0});

	if (n && all && enabled && small) {
		__sync_fetch_and_add(n, step);
		__sync_fetch_and_add(all, 1);
	}
}

SEC("xdp")
int first(struct xdp_md *ctx)
{
	ran(0);
	return XDP_PASS;
}

SEC("xdp/again")
int second(struct xdp_md *ctx)
{
	ran(1);
	return XDP_PASS;
}

SEC("tc")
int both_ways(struct __sk_buff *skb)
{
	ran(2);
	return -1;
}

SEC("cgroup/connect4")
int connects(struct bpf_sock_addr *ctx)
{
	ran(3);
	return 1;
}

SEC("sockops")
int sockets(struct bpf_sock_ops *ctx)
{
	ran(4);
	return 1;
}

SEC("raw_tp/sched_switch")
int switches(void *ctx)
{
	ran(5);
	return 0;
}

SEC("tp_btf/sched_switch")
int switches_typed(void *ctx)
{
	ran(6);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
