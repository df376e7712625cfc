// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* xdp-counter: counts packets and bytes, in total and by interface and protocol.
 *
 * Hook: XDP; xdp_counter on devices with an Ethernet header, xdp_counter_l3 on devices without.
 * Verdict: XDP_PASS, always.
 * Kernel: 5.10, the oldest one tested; nothing here is newer.
 *
 * The section is "xdp", not "xdp.frags": 5.10 refuses the latter, and a program that sees only
 * whole frames counts their length without a helper. Native mode with an MTU above some 3,500 bytes
 * is therefore refused by the driver; generic mode works.
 */
#include "packet.h"

/* Each packet is in exactly one of these, so an interface's total is their sum. */
struct interface_counters {
	struct counter tcp4;
	struct counter udp4;
	struct counter icmp4;
	struct counter sctp4;
	struct counter other4;
	struct counter tcp6;
	struct counter udp6;
	struct counter icmp6;
	struct counter sctp6;
	struct counter other6;
	struct counter arp;
	struct counter other_ethertype;
	struct counter truncated;
	struct counter reserved[3]; /* rounds the size up to a power of two; always 0 */
};

#define CLASS(name)  (__builtin_offsetof(struct interface_counters, name) / sizeof(struct counter))
#define CLASS_MASK   (sizeof(struct interface_counters) / sizeof(struct counter) - 1)
#define IPV6_CLASSES (CLASS(tcp6) - CLASS(tcp4))

/* Everything that was seen.
 * Key: 0. Value: packets and bytes, per CPU. Writer: the programs below. Reader: bpfnet watch
 * counters. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counter);
} packets SEC(".maps");

/* What was seen on each interface.
 * Key: interface index; 0 holds what came in on interfaces whose index is beyond the map.
 * Value: packets and bytes by class, per CPU. Writer: the programs below. Reader: bpfnet watch
 * counters. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct interface_counters);
} interfaces SEC(".maps");

static __always_inline __u32 protocol_class(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return CLASS(tcp4);
	case IPPROTO_UDP:
		return CLASS(udp4);
	case IPPROTO_SCTP:
		return CLASS(sctp4);
	default:
		return CLASS(other4);
	}
}

static __always_inline __u32 ip_class(const struct packet *packet)
{
	if (packet->ethertype == ETH_P_IP)
		return packet->protocol == IPPROTO_ICMP ? CLASS(icmp4)
		                                        : protocol_class(packet->protocol);
	return packet->protocol == IPPROTO_ICMPV6 ? CLASS(icmp6)
	                                          : IPV6_CLASSES + protocol_class(packet->protocol);
}

/* A chain of headers too long to follow counts as what is known of it: its address family. */
static __always_inline __u32 too_deep_class(const struct packet *packet)
{
	return packet->ethertype == ETH_P_IPV6 ? CLASS(other6) : CLASS(other_ethertype);
}

static __always_inline __u32 classify(const struct packet_view *view, enum layer layer)
{
	struct packet packet = {};
	enum parse_result result = parse_link(view, layer, &packet);

	if (result == PARSE_NOT_IP)
		return packet.ethertype == ETH_P_ARP ? CLASS(arp) : CLASS(other_ethertype);
	if (result == PARSE_OK)
		result = parse_network(view, &packet);
	if (likely(result == PARSE_OK))
		return ip_class(&packet);
	return result == PARSE_TRUNCATED ? CLASS(truncated) : too_deep_class(&packet);
}

static __always_inline struct interface_counters *interface_entry(__u32 ifindex)
{
	struct interface_counters *entry = bpf_map_lookup_elem(&interfaces, &ifindex);
	__u32 beyond = 0;

	return likely(entry) ? entry : bpf_map_lookup_elem(&interfaces, &beyond);
}

static __always_inline int count_frame(struct xdp_md *frame, enum layer layer)
{
	struct packet_view view = VIEW_LINEAR(frame);
	__u64 bytes = view.data_end - view.data;
	__u32 class = classify(&view, layer);
	__u32 everything = 0;
	struct counter *total = bpf_map_lookup_elem(&packets, &everything);
	struct interface_counters *entry = interface_entry(frame->ingress_ifindex);

	if (total)
		count(total, bytes);
	if (entry)
		count((struct counter *)entry + (class & CLASS_MASK), bytes);
	return XDP_PASS;
}

SEC("xdp")
int xdp_counter(struct xdp_md *frame)
{
	return count_frame(frame, LAYER_ETHERNET);
}

SEC("xdp")
int xdp_counter_l3(struct xdp_md *frame)
{
	return count_frame(frame, LAYER_IP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
