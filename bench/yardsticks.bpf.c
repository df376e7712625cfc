// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* yardsticks: the least that programs of each kind can do, to measure the built-in ones against.
 *
 * Hook: none; run by BPF_PROG_TEST_RUN.
 * Verdict: pass.
 * Kernel: 5.10, like the programs measured.
 */
#include "packet.h"
#include "vary.h"

/* Key: 0. Value: a counter. Writer: the programs. Reader: nobody. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} totals SEC(".maps");

/* Key: protocol. Value: a counter. Writer: the programs. Reader: nobody. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct counter);
} protocols SEC(".maps");

/* Key: address. Value: a counter. Writer: the programs. Reader: nobody. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, ip_addr_t);
	__type(value, struct counter);
} addresses SEC(".maps");

/* Key: word. Value: 64 ports, a bit each. Writer: nobody. Reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} ports SEC(".maps");

static __always_inline void count_address(struct __sk_buff *skb)
{
	struct packet_view view = VIEW_LINEAR(skb);
	struct packet packet = {};
	ip_addr_t source;
	const struct counter zero = {};
	struct counter *counter;

	if (parse_link(&view, LAYER_ETHERNET, &packet) != PARSE_OK ||
	    parse_address(&view, &packet, END_SOURCE, &source) != PARSE_OK)
		return;
	counter = bpf_map_lookup_elem(&addresses, &source);
	if (counter)
		count(counter, skb->len);
	else
		bpf_map_update_elem(&addresses, &source, &zero, BPF_NOEXIST);
}

SEC("xdp")
int xdp_empty(struct xdp_md *frame)
{
	return XDP_PASS;
}

SEC("tcx/ingress")
int tc_empty(struct __sk_buff *skb)
{
	return TC_NEXT;
}

SEC("cgroup_skb/egress")
int cgroup_empty(struct __sk_buff *skb)
{
	return 1;
}

SEC("xdp")
int xdp_array(struct xdp_md *frame)
{
	__u32 key = 0;
	struct counter *counter = bpf_map_lookup_elem(&totals, &key);

	if (counter)
		count(counter, frame->data_end - frame->data);
	return XDP_PASS;
}

SEC("xdp")
int xdp_protocol(struct xdp_md *frame)
{
	struct packet_view view = VIEW_LINEAR(frame);
	struct packet packet = {};
	struct counter *counter;
	__u32 key;

	if (parse_link(&view, LAYER_ETHERNET, &packet) != PARSE_OK ||
	    parse_ipv4(&view, &packet) != PARSE_OK)
		return XDP_PASS;
	key = packet.protocol;
	counter = bpf_map_lookup_elem(&protocols, &key);
	if (counter)
		count(counter, frame->data_end - frame->data);
	return XDP_PASS;
}

SEC("xdp")
int xdp_bitmap(struct xdp_md *frame)
{
	struct packet_view view = VIEW_LINEAR(frame);
	struct packet packet = {};
	__u64 *bits;
	__u32 word;

	if (parse_link(&view, LAYER_ETHERNET, &packet) != PARSE_OK ||
	    parse_ipv4(&view, &packet) != PARSE_OK || parse_transport(&view, &packet) != PARSE_OK)
		return XDP_PASS;
	word = packet.destination_port / 64;
	bits = bpf_map_lookup_elem(&ports, &word);
	return bits && (*bits >> (packet.destination_port % 64) & 1) ? XDP_DROP : XDP_PASS;
}

SEC("tcx/ingress")
int tc_hash(struct __sk_buff *skb)
{
	count_address(skb);
	return TC_NEXT;
}

SEC("tcx/ingress")
int tc_vary(struct __sk_buff *skb)
{
	vary(skb);
	return TC_NEXT;
}

SEC("tcx/ingress")
int tc_vary_hash(struct __sk_buff *skb)
{
	vary(skb);
	count_address(skb);
	return TC_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
