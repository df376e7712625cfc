// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// A user's own object with maps of many kinds: limits by prefix, a set of
// addresses, events, a queue, globals.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>

enum action { pass, drop, reset };

struct prefix {
	__u32 prefixlen;
	struct in_addr address;
};

struct limit {
	__u32 pps;
	enum action action;
};

struct event {
	__u64 time;
	__be32 source_address;
	__u32 bytes;
	char name[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1000);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, struct limit);
} limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8);
	__type(key, struct in_addr);
	__type(value, __u8);
} allow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct in_addr);
	__type(value, __u64);
} packets_by_source_address SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
	__type(value, struct event);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4);
	__type(value, __u32);
} jobs SEC(".maps");

__u64 seen;
struct limit last = {.pps = 7, .action = drop};

SEC("tc")
int count(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	if ((void *)(ip + 1) > end || skb->protocol != bpf_htons(ETH_P_IP))
		return -1; // TC_ACT_UNSPEC: the next program decides
	__sync_fetch_and_add(&seen, 1);

	struct prefix prefix = {.prefixlen = 32, .address.s_addr = ip->saddr};
	struct limit *limit = bpf_map_lookup_elem(&limits, &prefix);
	if (limit)
		last = *limit;

	struct in_addr source = {.s_addr = ip->saddr};
	__u64 one = 1, *packets = bpf_map_lookup_elem(&packets_by_source_address, &source);
	if (packets)
		(*packets)++;
	else
		bpf_map_update_elem(&packets_by_source_address, &source, &one, BPF_NOEXIST);

	if (bpf_map_lookup_elem(&allow, &source))
		return -1;
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return -1;
	*event = (struct event){
		.time = bpf_ktime_get_ns(),
		.source_address = ip->saddr,
		.bytes = skb->len,
		.name = "packet",
	};
	bpf_ringbuf_submit(event, 0);
	return -1;
}

SEC("tc")
int job(struct __sk_buff *skb)
{
	__u32 length = skb->len;
	bpf_map_push_elem(&jobs, &length, 0);
	return -1;
}

char _license[] SEC("license") = "GPL";
