// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* blocklist: drops or reports packets from or to listed addresses.
 *
 * Hook: tc ingress and egress (TCX or clsact) and XDP; the _l3 functions on devices without an
 * Ethernet header; cgroup_skb ingress and egress.
 * Verdict: drop (tc: TC_ACT_SHOT, XDP: XDP_DROP, cgroup_skb: 0) if the source or destination address
 * is on a list that drops, and not on the allow list. Everything else goes on (tc: TC_ACT_UNSPEC, so
 * that later programs run; XDP: XDP_PASS; cgroup_skb: 1): what isn't IP or has no whole IP header,
 * too. Fragments have addresses, so each one is judged.
 * Kernel: 5.10, the oldest one tested; bounded loops (5.3), ring buffers, bpf_ktime_get_boot_ns (5.8).
 */
#include "blocklist.h"

static __always_inline void read_rest(const struct packet_view *view, const struct packet *parsed,
                                      struct block_packet *packet)
{
	struct packet rest = *parsed;

	if (parse_network(view, &rest) != PARSE_OK)
		return;
	packet->protocol = rest.protocol;
	if (parse_transport(view, &rest) != PARSE_OK)
		return;
	packet->source_port = rest.source_port;
	packet->destination_port = rest.destination_port;
}

/* Whether an address of the packet may be on a list, and which. */
struct suspicion {
	enum parse_result result;
	_Bool source;
	_Bool destination;
};

static __always_inline struct suspicion suspect4(const struct packet_view *view,
                                                 const struct packet *parsed)
{
	struct iphdr ip;

	if (unlikely(!read_header(view, parsed->network, &ip) || ip.version != 4))
		return (struct suspicion){.result = PARSE_TRUNCATED};
	return (struct suspicion){.source = may_match4(bpf_ntohl(ip.saddr)),
	                          .destination = may_match4(bpf_ntohl(ip.daddr))};
}

static __always_inline struct suspicion suspect6(const struct packet_view *view,
                                                 const struct packet *parsed)
{
	struct ipv6hdr ip;

	if (unlikely(!read_header(view, parsed->network, &ip) || ip.version != 6))
		return (struct suspicion){.result = PARSE_TRUNCATED};
	return (struct suspicion){.source = may_match6(high_of(&ip.saddr)),
	                          .destination = may_match6(high_of(&ip.daddr))};
}

static __always_inline struct suspicion suspect(const struct packet_view *view, enum layer layer,
                                                struct packet *parsed)
{
	enum parse_result result = parse_link(view, layer, parsed);

	if (unlikely(result != PARSE_OK))
		return (struct suspicion){.result = result};
	return parsed->ethertype == ETH_P_IP ? suspect4(view, parsed) : suspect6(view, parsed);
}

static __always_inline enum block_row unjudged(enum parse_result result)
{
	switch (result) {
	case PARSE_NOT_IP:
		return BLOCK_NON_IP;
	case PARSE_TOO_DEEP:
		return BLOCK_TOO_DEEP;
	default:
		return BLOCK_TRUNCATED;
	}
}

/* Where a packet was met: what a global function can be told in a number. */
enum place {
	PLACE_LAYER_IP = 1,
	PLACE_EGRESS = 2,
	PLACE_CGROUP = 4,
};

static __always_inline enum layer layer_of(__u32 place)
{
	return place & PLACE_LAYER_IP ? LAYER_IP : LAYER_ETHERNET;
}

static __always_inline struct suspicion read_packet(const struct packet_view *view, __u32 place,
                                                    struct block_packet *packet, _Bool whole)
{
	struct packet parsed = {};
	struct suspicion suspicion = suspect(view, layer_of(place), &parsed);

	if (suspicion.result != PARSE_OK)
		return suspicion;
	packet->ipv4 = parsed.ethertype == ETH_P_IP;
	parse_address(view, &parsed, END_SOURCE, &packet->source);
	parse_address(view, &parsed, END_DESTINATION, &packet->destination);
	if (whole)
		read_rest(view, &parsed, packet);
	return suspicion;
}

/* The copy is slow, and seldom needed. */
static __always_inline struct suspicion read_skb(struct __sk_buff *skb, __u32 place,
                                                 struct block_packet *packet, _Bool whole)
{
	struct packet_view linear = VIEW_LINEAR(skb);
	struct packet_view copy = VIEW_COPY(skb);
	struct suspicion suspicion = read_packet(&linear, place, packet, whole);

	if (unlikely(suspicion.result == PARSE_TRUNCATED))
		suspicion = read_packet(&copy, place, packet, whole);
	return suspicion;
}

/* Counts and reports a hit of a packet. */
__noinline int record_skb(struct __sk_buff *skb, __u32 of, __u32 prefixlen, __u32 end, __u32 place)
{
	struct block_packet packet = {.ifindex = skb->ifindex,
	                              .length = skb->len,
	                              .direction = place & PLACE_EGRESS ? DIRECTION_EGRESS
	                                                                : DIRECTION_INGRESS,
	                              .hook = place & PLACE_CGROUP ? HOOK_CGROUP : HOOK_TC};

	if (place & (PLACE_EGRESS | PLACE_CGROUP))
		packet.cgroup_id = bpf_skb_cgroup_id(skb);
	if (read_skb(skb, place, &packet, 1).result != PARSE_OK)
		return 0;
	return hit(&packet, end, of, prefixlen);
}

__noinline int record_frame(struct xdp_md *frame, __u32 of, __u32 prefixlen, __u32 end, __u32 place)
{
	struct packet_view view = VIEW_LINEAR(frame);
	struct block_packet packet = {.ifindex = frame->ingress_ifindex,
	                              .length = view.data_end - view.data,
	                              .direction = DIRECTION_INGRESS,
	                              .hook = HOOK_XDP};

	if (read_packet(&view, place, &packet, 1).result != PARSE_OK)
		return 0;
	return hit(&packet, end, of, prefixlen);
}

/* For packets that the short way suspects or can't read; a function of its own, so that the way of
 * the other packets stays short. */
static __noinline _Bool block_skb(struct __sk_buff *skb, __u32 place)
{
	struct block_packet packet = {};
	struct suspicion suspicion = read_skb(skb, place, &packet, 0);
	int actions = 0;

	if (suspicion.result != PARSE_OK) {
		add_block_row(unjudged(suspicion.result), skb->len);
		return 0;
	}
	if (suspicion.source)
		actions |= judge_address(skb, record_skb, &packet, END_SOURCE, place);
	if (suspicion.destination)
		actions |= judge_address(skb, record_skb, &packet, END_DESTINATION, place);
	return conclude(actions, skb->len);
}

static __noinline _Bool block_frame(struct xdp_md *frame, __u32 place)
{
	struct packet_view view = VIEW_LINEAR(frame);
	__u64 bytes = view.data_end - view.data;
	struct block_packet packet = {};
	struct suspicion suspicion = read_packet(&view, place, &packet, 0);
	int actions = 0;

	if (suspicion.result != PARSE_OK) {
		add_block_row(unjudged(suspicion.result), bytes);
		return 0;
	}
	if (suspicion.source)
		actions |= judge_address(frame, record_frame, &packet, END_SOURCE, place);
	if (suspicion.destination)
		actions |= judge_address(frame, record_frame, &packet, END_DESTINATION, place);
	return conclude(actions, bytes);
}

static __always_inline _Bool is_harmless(const struct packet_view *view, __u32 place)
{
	struct packet parsed = {};
	struct suspicion suspicion = suspect(view, layer_of(place), &parsed);

	return suspicion.result == PARSE_OK && !suspicion.source && !suspicion.destination;
}

static __always_inline _Bool is_blocked(struct __sk_buff *skb, __u32 place)
{
	struct packet_view view = VIEW_LINEAR(skb);

	return unlikely(!is_harmless(&view, place)) && block_skb(skb, place);
}

static __always_inline int block_tc(struct __sk_buff *skb, __u32 place)
{
	return is_blocked(skb, place) ? TC_DROP : TC_NEXT;
}

static __always_inline int block_xdp(struct xdp_md *frame, __u32 place)
{
	struct packet_view view = VIEW_LINEAR(frame);

	return unlikely(!is_harmless(&view, place)) && block_frame(frame, place) ? XDP_DROP
	                                                                         : XDP_PASS;
}

SEC("tcx/ingress")
int blocklist_ingress(struct __sk_buff *skb)
{
	return block_tc(skb, 0);
}

SEC("tcx/egress")
int blocklist_egress(struct __sk_buff *skb)
{
	return block_tc(skb, PLACE_EGRESS);
}

SEC("tcx/ingress")
int blocklist_ingress_l3(struct __sk_buff *skb)
{
	return block_tc(skb, PLACE_LAYER_IP);
}

SEC("tcx/egress")
int blocklist_egress_l3(struct __sk_buff *skb)
{
	return block_tc(skb, PLACE_LAYER_IP | PLACE_EGRESS);
}

SEC("cgroup_skb/ingress")
int blocklist_cgroup_ingress(struct __sk_buff *skb)
{
	return !is_blocked(skb, PLACE_LAYER_IP | PLACE_CGROUP);
}

SEC("cgroup_skb/egress")
int blocklist_cgroup_egress(struct __sk_buff *skb)
{
	return !is_blocked(skb, PLACE_LAYER_IP | PLACE_CGROUP | PLACE_EGRESS);
}

SEC("xdp")
int blocklist_xdp(struct xdp_md *frame)
{
	return block_xdp(frame, 0);
}

SEC("xdp")
int blocklist_xdp_l3(struct xdp_md *frame)
{
	return block_xdp(frame, PLACE_LAYER_IP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
