// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* port-filter: drops or passes packets by protocol and port, source or destination.
 *
 * Hook: tc ingress and egress (TCX or clsact) and XDP; the _l3 functions on devices without an
 * Ethernet header.
 * Verdict: pass (tc: TC_ACT_UNSPEC, so that later programs run; XDP: XDP_PASS) or drop
 * (TC_ACT_SHOT, XDP_DROP). In this order:
 *   1. Not IP, ICMP, ICMPv6: pass, unless strict.
 *   2. Headers cut short, or more of them than the parser follows: drop. No host accepts the
 *      former, and behind the latter any port could hide.
 *   3. A later fragment: as its first one; the default if that one wasn't seen.
 *   4. With established: TCP without SYN, or with ACK: pass.
 *   5. The rule of the destination port and that of the source port: a drop in either wins.
 *   6. DHCP: pass, unless strict.
 *   7. The default.
 * Kernel: 5.10, the oldest one tested; nothing here is newer.
 */
#include "packet.h"

#define PAGE_BYTES         512
#define PAGE_VERDICTS      256
#define PAGE_RULES         32
#define TABLE_PAGES        1536 /* 2 sides x 3 protocols x 256 */
#define HEADER_PAGE        TABLE_PAGES
#define RULES_PAGE         (HEADER_PAGE + 1)
#define RULES_PAGES        128
#define POLICY_PAGES       (RULES_PAGE + RULES_PAGES)
#define MAX_RULES          4096
#define FRAGMENTS_FOLLOWED 16384

#define DHCP_SERVER   67
#define DHCP_CLIENT   68
#define DHCPV6_CLIENT 546
#define DHCPV6_SERVER 547

enum port_side : __u8 {
	SIDE_DESTINATION,
	SIDE_SOURCE,
};

enum port_protocol : __u8 {
	PORT_TCP,
	PORT_UDP,
	PORT_SCTP,
	PORT_NONE, /* a protocol without ports */
};

/* An entry of the table: 0 where there is no rule, else the rule's number and what it says. */
enum port_verdict {
	VERDICT_NUMBER = 0x7fff,
	VERDICT_DROP = 0x8000,
};

/* Page HEADER_PAGE. */
struct policy_header {
	__u32 version;     /* 0: the policy that the object starts with; ~0: being laid out */
	__u8 default_drop; /* packets without a rule */
	__u8 established;  /* pass TCP without SYN or with ACK */
	__u8 strict;       /* treat ARP, ICMP, ICMPv6, DHCP and other non-IP like everything else */
	__u8 no_source;    /* no rule has a source port: those needn't be looked up */
	__u32 generation;  /* counts policies, for user space alone */
	__u8 pad[PAGE_BYTES - 12];
};

/* What the table was made from, for user space alone. */
struct policy_rule {
	__u16 number; /* from 1; 0: unused */
	__u16 first_port;
	__u16 last_port;
	enum port_protocol protocol;
	enum port_side side;
	__u8 drop;
	__u8 pad[7];
};

/* A page of a policy. Which member it is follows from its index. */
struct policy_page {
	union {
		__u16 verdict[PAGE_VERDICTS]; /* of 256 neighbouring ports: pages of the table */
		struct policy_header header;
		struct policy_rule rules[PAGE_RULES]; /* the pages from RULES_PAGE on */
	};
};

/* Where a packet is counted. Each packet is in exactly one entry; rule n is in PORT_ROWS + n. */
enum port_row {
	DEFAULT_PASS,
	DEFAULT_DROP,
	ESTABLISHED,
	UNTOUCHED, /* ARP, ICMP, ICMPv6, DHCP: passed */
	FRAGMENT_PASS,
	FRAGMENT_DROP,
	TRUNCATED, /* dropped */
	NON_IP,    /* neither IP nor ARP: passed */
	TOO_DEEP,  /* more VLAN tags or extension headers than are followed: dropped */
	PORT_ROWS = 16,
};

/* Which packet a fragment belongs to. */
struct fragment_key {
	ip_addr_t source;
	ip_addr_t destination;
	__be32 id;
	__u32 ifindex;
	__u32 protocol; /* 0 in IPv6, where only the first fragment's counts */
};

struct fragment_verdict {
	__u8 drop;
};

struct decision {
	__u32 row; /* key of counters */
	_Bool drop;
};

struct policy_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POLICY_PAGES);
	__type(key, __u32);
	__type(value, struct policy_page);
};

/* The two places for a policy: one is in force, the next one is laid out in the other. Both have
 * pins, so that user space finds them without CAP_SYS_ADMIN, which opening a map by its id needs.
 * Key: page. Value: 512 bytes; all zero is no rules, pass. Writer: bpfnet ports, only of the one
 * that isn't in force. Reader: the programs, of the other. */
struct policy_map first_policy SEC(".maps");
struct policy_map second_policy SEC(".maps");

/* The policy in force. A new one is filled first and then put here, so that each packet is judged
 * by one policy as a whole.
 * Key: 0. Value: a map of POLICY_PAGES pages: page ((side * 3) + protocol) * 256 + (port >> 8) of the
 * table, then struct policy_header, then pages of struct policy_rule. Writer: bpfnet ports. Reader:
 * the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct policy_map);
} policy SEC(".maps") = {
	.values = {&first_policy},
};

/* What was passed and dropped, and why.
 * Key: enum port_row, or PORT_ROWS + number of the rule. Value: packets and bytes, per CPU.
 * Writer: the programs. Reader: bpfnet ports list, bpfnet watch counters. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PORT_ROWS + MAX_RULES);
	__type(key, enum port_row);
	__type(value, struct counter);
} counters SEC(".maps");

/* The verdicts of first fragments, for the later ones.
 * Key: what makes fragments one packet. Value: 1 for drop. Writer, reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FRAGMENTS_FOLLOWED);
	__type(key, struct fragment_key);
	__type(value, struct fragment_verdict);
} fragments SEC(".maps");

static __always_inline struct decision pass(__u32 row)
{
	return (struct decision){.row = row, .drop = 0};
}

static __always_inline struct decision drop(__u32 row)
{
	return (struct decision){.row = row, .drop = 1};
}

static __always_inline struct decision default_verdict(const struct policy_header *header)
{
	return header->default_drop ? drop(DEFAULT_DROP) : pass(DEFAULT_PASS);
}

static __always_inline enum port_protocol protocol_of(const struct packet *packet)
{
	switch (packet->protocol) {
	case IPPROTO_TCP:
		return PORT_TCP;
	case IPPROTO_UDP:
		return PORT_UDP;
	case IPPROTO_SCTP:
		return PORT_SCTP;
	default:
		return PORT_NONE;
	}
}

static __always_inline _Bool is_icmp(const struct packet *packet)
{
	return packet->protocol == (packet->ethertype == ETH_P_IP ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static __always_inline _Bool both_ports(const struct packet *packet, __u16 one, __u16 other)
{
	return (packet->source_port == one || packet->source_port == other) &&
	       (packet->destination_port == one || packet->destination_port == other);
}

static __always_inline _Bool is_dhcp(const struct packet *packet)
{
	if (packet->protocol != IPPROTO_UDP)
		return 0;
	return packet->ethertype == ETH_P_IP ? both_ports(packet, DHCP_SERVER, DHCP_CLIENT)
	                                     : both_ports(packet, DHCPV6_CLIENT, DHCPV6_SERVER);
}

static __always_inline _Bool is_established(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP &&
	       (packet->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) != TCP_FLAG_SYN;
}

static __always_inline __u16 lookup_port(void *rules, enum port_protocol protocol,
                                         enum port_side side, __u16 port)
{
	__u32 index = (side * 3 + protocol) * 256 + (port >> 8);
	struct policy_page *page = bpf_map_lookup_elem(rules, &index);

	return page ? page->verdict[port & 0xff] : 0;
}

/* The verdict of the rules, 0 if there is none for this packet. */
static __always_inline __u16 lookup_rule(void *rules, const struct policy_header *header,
                                         const struct packet *packet)
{
	enum port_protocol protocol = protocol_of(packet);
	__u16 source, destination;

	if (protocol == PORT_NONE)
		return 0;
	destination = lookup_port(rules, protocol, SIDE_DESTINATION, packet->destination_port);
	if (header->no_source || destination & VERDICT_DROP)
		return destination;
	source = lookup_port(rules, protocol, SIDE_SOURCE, packet->source_port);
	if (source & VERDICT_DROP)
		return source;
	return destination ? destination : source;
}

/* Judges a packet that isn't a later fragment. */
static __always_inline struct decision judge(void *rules, const struct policy_header *header,
                                             const struct packet *packet)
{
	__u16 verdict;

	if (!header->strict && is_icmp(packet))
		return pass(UNTOUCHED);
	if (header->established && is_established(packet))
		return pass(ESTABLISHED);
	verdict = lookup_rule(rules, header, packet);
	if (verdict)
		return (struct decision){.row = PORT_ROWS + (verdict & VERDICT_NUMBER),
		                         .drop = !!(verdict & VERDICT_DROP)};
	if (!header->strict && is_dhcp(packet))
		return pass(UNTOUCHED);
	return default_verdict(header);
}

static __always_inline struct decision judge_later_fragment(const struct policy_header *header,
                                                            const struct packet *packet,
                                                            const struct fragment_key *key)
{
	struct fragment_verdict *first;

	first = bpf_map_lookup_elem(&fragments, key);
	if (first)
		return first->drop ? drop(FRAGMENT_DROP) : pass(FRAGMENT_PASS);
	if (!header->strict && is_icmp(packet))
		return pass(UNTOUCHED);
	return header->default_drop ? drop(FRAGMENT_DROP) : pass(FRAGMENT_PASS);
}

static __always_inline struct decision judge_fragment(void *rules,
                                                      const struct policy_header *header,
                                                      const struct packet *packet,
                                                      const struct fragment_key *key)
{
	struct fragment_verdict first = {};
	struct decision decision;

	if (packet->fragment == FRAGMENT_LATER)
		return judge_later_fragment(header, packet, key);
	decision = judge(rules, header, packet);
	first.drop = decision.drop;
	bpf_map_update_elem(&fragments, key, &first, BPF_ANY);
	return decision;
}

static __always_inline struct decision judge_unparsed(const struct policy_header *header,
                                                      const struct packet *packet,
                                                      enum parse_result result)
{
	if (result == PARSE_TRUNCATED)
		return drop(TRUNCATED);
	if (result == PARSE_TOO_DEEP)
		return drop(TOO_DEEP);
	if (header->strict)
		return default_verdict(header);
	return pass(packet->ethertype == ETH_P_ARP ? UNTOUCHED : NON_IP);
}

static __always_inline enum parse_result
identify(const struct packet_view *view, const struct packet *packet, struct fragment_key *key)
{
	key->id = packet->fragment_id;
	key->protocol = packet->ethertype == ETH_P_IP ? packet->protocol : 0;
	if (parse_address(view, packet, END_SOURCE, &key->source) != PARSE_OK)
		return PARSE_TRUNCATED;
	return parse_address(view, packet, END_DESTINATION, &key->destination);
}

static __always_inline enum parse_result parse(const struct packet_view *view, enum layer layer,
                                               struct packet *packet, struct fragment_key *key)
{
	enum parse_result result = parse_link(view, layer, packet);

	if (result == PARSE_OK)
		result = parse_network(view, packet);
	if (result == PARSE_OK)
		result = parse_transport(view, packet);
	if (result == PARSE_OK && packet->fragment != FRAGMENT_NONE)
		result = identify(view, packet, key);
	return result;
}

static __always_inline struct decision decide(void *rules, const struct policy_header *header,
                                              const struct packet *packet, enum parse_result result,
                                              const struct fragment_key *key)
{
	if (result != PARSE_OK)
		return judge_unparsed(header, packet, result);
	if (key && packet->fragment != FRAGMENT_NONE)
		return judge_fragment(rules, header, packet, key);
	return judge(rules, header, packet);
}

/* Judges and counts; evaluates to whether to drop. Without a key the packet isn't a fragment. */
static __always_inline _Bool filter(const struct packet *packet, enum parse_result result,
                                    const struct fragment_key *key, __u64 bytes)
{
	__u32 header_page = HEADER_PAGE, in_force = 0;
	struct policy_page *page;
	struct decision decision;
	struct counter *counter;
	void *rules;

	rules = bpf_map_lookup_elem(&policy, &in_force);
	if (!rules)
		return 0;
	page = bpf_map_lookup_elem(rules, &header_page);
	if (!page)
		return 0;
	decision = decide(rules, &page->header, packet, result, key);
	counter = bpf_map_lookup_elem(&counters, &decision.row);
	if (counter)
		count(counter, bytes);
	return decision.drop;
}

/* For what parse_common doesn't take. A function of its own, so that the way of the other packets
 * stays short; the call costs as much as they do. */
static __noinline int filter_uncommon_tc(struct __sk_buff *skb, enum layer layer)
{
	struct packet_view view = VIEW_COPY(skb);
	struct fragment_key key = {.ifindex = skb->ifindex};
	struct packet packet = {};
	enum parse_result result = parse(&view, layer, &packet, &key);

	return filter(&packet, result, &key, skb->len) ? TC_DROP : TC_NEXT;
}

static __always_inline int filter_tc(struct __sk_buff *skb, enum layer layer)
{
	struct packet_view view = VIEW_LINEAR(skb);
	struct packet packet = {};

	if (unlikely(!parse_common(&view, layer, &packet)))
		return filter_uncommon_tc(skb, layer);
	return filter(&packet, PARSE_OK, NULL, skb->len) ? TC_DROP : TC_NEXT;
}

static __noinline int filter_uncommon_xdp(struct xdp_md *frame, enum layer layer)
{
	struct packet_view view = VIEW_LINEAR(frame);
	struct fragment_key key = {.ifindex = frame->ingress_ifindex};
	__u64 bytes = view.data_end - view.data;
	struct packet packet = {};
	enum parse_result result = parse(&view, layer, &packet, &key);

	return filter(&packet, result, &key, bytes) ? XDP_DROP : XDP_PASS;
}

static __always_inline int filter_xdp(struct xdp_md *frame, enum layer layer)
{
	struct packet_view view = VIEW_LINEAR(frame);
	__u64 bytes = view.data_end - view.data;
	struct packet packet = {};

	if (unlikely(!parse_common(&view, layer, &packet)))
		return filter_uncommon_xdp(frame, layer);
	return filter(&packet, PARSE_OK, NULL, bytes) ? XDP_DROP : XDP_PASS;
}

SEC("tcx/ingress")
int port_filter_ingress(struct __sk_buff *skb)
{
	return filter_tc(skb, LAYER_ETHERNET);
}

SEC("tcx/egress")
int port_filter_egress(struct __sk_buff *skb)
{
	return filter_tc(skb, LAYER_ETHERNET);
}

SEC("tcx/ingress")
int port_filter_ingress_l3(struct __sk_buff *skb)
{
	return filter_tc(skb, LAYER_IP);
}

SEC("tcx/egress")
int port_filter_egress_l3(struct __sk_buff *skb)
{
	return filter_tc(skb, LAYER_IP);
}

SEC("xdp")
int port_filter_xdp(struct xdp_md *frame)
{
	return filter_xdp(frame, LAYER_ETHERNET);
}

SEC("xdp")
int port_filter_xdp_l3(struct xdp_md *frame)
{
	return filter_xdp(frame, LAYER_IP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
