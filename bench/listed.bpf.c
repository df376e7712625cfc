// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* listed: blocklist, and an LPM trie, behind a step that gives each run other addresses, since
 * BPF_PROG_TEST_RUN hands every run the same packet, and what comes from memory decides what large lists
 * cost.
 *
 * Hook: none; run by BPF_PROG_TEST_RUN.
 * Verdict: as blocklist; the empty programs pass.
 * Kernel: 5.10, like the program measured.
 */
#include "../bpf/blocklist.bpf.c"

#define ADDRESSES 65536

/* Addresses to take turns with; IPv4 mapped.
 * Key: number. Value: an address. Writer: the benchmark. Reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ADDRESSES);
	__type(key, __u32);
	__type(value, ip_addr_t);
} sources SEC(".maps");

/* A list as a plain map of the kernel's has it.
 * Key: prefix, the address as in packets. Value: as in a list. Writer: the benchmark. Reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct block_key4);
	__type(value, struct block_entry);
} prefixes SEC(".maps");

static __u64 turn;

/* Marsaglia, Xorshift RNGs, 2003: 13, 7, 17. */
static __always_inline __u64 next_number(void)
{
	__u64 x = turn ? turn : HASH_MULTIPLIER;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	turn = x;
	return x;
}

static __always_inline void vary4(struct __sk_buff *skb)
{
	struct ethernet_header *ethernet = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(ethernet + 1);
	__u32 number = next_number() & (ADDRESSES - 1);
	ip_addr_t *address = bpf_map_lookup_elem(&sources, &number);

	if (address && (void *)(ip + 1) <= (void *)(long)skb->data_end)
		ip->saddr = address->s6_addr32[3];
}

static __always_inline void vary6(struct __sk_buff *skb)
{
	struct ethernet_header *ethernet = (void *)(long)skb->data;
	struct ipv6hdr *ip = (void *)(ethernet + 1);
	__u32 number = next_number() & (ADDRESSES - 1);
	ip_addr_t *address = bpf_map_lookup_elem(&sources, &number);

	if (address && (void *)(ip + 1) <= (void *)(long)skb->data_end)
		ip->saddr = *address;
}

SEC("tcx/ingress")
int empty_vary4(struct __sk_buff *skb)
{
	vary4(skb);
	return TC_NEXT;
}

SEC("tcx/ingress")
int empty_vary6(struct __sk_buff *skb)
{
	vary6(skb);
	return TC_NEXT;
}

SEC("tcx/ingress")
int blocklist_vary4(struct __sk_buff *skb)
{
	vary4(skb);
	return block_tc(skb, 0);
}

SEC("tcx/ingress")
int blocklist_vary6(struct __sk_buff *skb)
{
	vary6(skb);
	return block_tc(skb, 0);
}

SEC("tcx/ingress")
int lpm_vary4(struct __sk_buff *skb)
{
	struct ethernet_header *ethernet = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct block_key4 key = {.prefixlen = 32};

	vary4(skb);
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return TC_NEXT;
	key.address = ip->saddr;
	return bpf_map_lookup_elem(&prefixes, &key) ? TC_DROP : TC_NEXT;
}
