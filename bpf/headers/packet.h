/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The packet parser, for XDP, tc and cgroup_skb.
 *
 * Contract:
 *  - A packet starts with an Ethernet header (LAYER_ETHERNET) or with its IP header (LAYER_IP: tun,
 *    wireguard, cgroup_skb), which is then told by its version field.
 *  - Up to MAX_VLAN_TAGS tags (802.1Q, 802.1ad) are stepped over. A tag that the NIC took off
 *    (vlan_tci) isn't in the packet, so there is nothing to step over.
 *  - IPv4 options and up to MAX_EXTENSIONS IPv6 extension headers are stepped over. ESP, "no next
 *    header" and unknown numbers end the chain: they are the protocol.
 *  - A later fragment (offset above 0) has no upper-layer header: its ports and flags are 0. In IPv6
 *    its protocol is what the fragment header says.
 *  - A header that doesn't fit into the packet, or contradicts itself, is PARSE_TRUNCATED. Nothing is
 *    read beyond the packet.
 *  - parse_link, parse_network and parse_transport build on each other; a program stops at the layer
 *    it needs, and pays and fails only for that. parse_address needs parse_link only.
 *  - Nothing is changed in the packet. The part of an skb that isn't linear is read with
 *    bpf_skb_load_bytes by a second view (see packet_view); callers retry with it on
 *    PARSE_TRUNCATED.
 * Every function is inlined, so that fields nobody asks for cost nothing, and loops are unrolled:
 * needs no kernel newer than 5.10.
 */
#ifndef BPFNET_PACKET_H
#define BPFNET_PACKET_H

#include "base.h"
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define MAX_VLAN_TAGS  2
#define MAX_EXTENSIONS 8

#define IPV4_MORE_FRAGMENTS  0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV6_MORE_FRAGMENTS  0x0001
#define IPV6_FRAGMENT_OFFSET 0xfff8

#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_ACK 0x10

enum layer {
	LAYER_ETHERNET,
	LAYER_IP,
};

enum parse_result {
	PARSE_OK,
	PARSE_NOT_IP,    /* ethertype says what it is; 0 if LAYER_IP has neither version 4 nor 6 */
	PARSE_TRUNCATED, /* a header is cut short or contradicts itself */
	PARSE_TOO_DEEP,  /* more VLAN tags or extension headers than are followed */
};

enum fragment {
	FRAGMENT_NONE,
	FRAGMENT_FIRST,
	FRAGMENT_LATER,
};

struct packet {
	__u32 network;   /* offset of the IP header */
	__u32 transport; /* offset of the upper-layer header */
	__u16 ethertype; /* behind the VLAN tags, host order */
	__u8 protocol;   /* upper-layer protocol */
	__u8 fragment;   /* enum fragment */
	__be32 fragment_id;
	__u16 source_port; /* host order */
	__u16 destination_port;
	__u8 tcp_flags;
};

/* Where bytes come from: directly from memory, or, when skb is set, by copying from the skb. Both
 * forms are compile-time constants to the functions below. */
struct packet_view {
	void *data;
	void *data_end;
	struct __sk_buff *skb;
};

#define VIEW_LINEAR(context)                                                                       \
	{                                                                                          \
		.data = (void *)(long)(context)->data,                                             \
		.data_end = (void *)(long)(context)->data_end,                                     \
	}

#define VIEW_COPY(context)                                                                         \
	{                                                                                          \
		.skb = (context),                                                                  \
	}

struct ethernet_header {
	__u8 destination[ETH_ALEN];
	__u8 source[ETH_ALEN];
	__be16 ethertype;
};

struct vlan_header {
	__be16 tag;
	__be16 ethertype;
};

/* The first 8 bytes of any extension header: none is shorter. */
struct ipv6_extension {
	__u8 next;
	__u8 length;
	__be16 fragment_offset; /* this and the next in fragment headers */
	__be32 fragment_id;
};

struct port_header {
	__be16 source;
	__be16 destination;
};

struct tcp_header {
	__be16 source;
	__be16 destination;
	__be32 sequence;
	__be32 acknowledgement;
	__u8 data_offset;
	__u8 flags;
	__be16 window;
	__be16 checksum;
	__be16 urgent;
};

/* Reads a header of a named type into *to; evaluates to whether it was there. A macro, because the
 * type decides how wide the loads are. */
#define read_header(view, offset, to)                                                              \
	({                                                                                         \
		_Bool ok_;                                                                         \
		if ((view)->skb) {                                                                 \
			ok_ = !bpf_skb_load_bytes((view)->skb, (offset), (to), sizeof(*(to)));     \
		} else {                                                                           \
			typeof(to) from_ = (view)->data + (offset);                                \
			ok_ = (void *)(from_ + 1) <= (view)->data_end;                             \
			if (ok_)                                                                   \
				*(to) = *from_;                                                    \
		}                                                                                  \
		ok_;                                                                               \
	})

static __always_inline _Bool is_vlan(__u16 ethertype)
{
	return ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD;
}

static __always_inline enum parse_result ip_or_not(const struct packet *packet)
{
	if (packet->ethertype == ETH_P_IP || packet->ethertype == ETH_P_IPV6)
		return PARSE_OK;
	return PARSE_NOT_IP;
}

static __always_inline enum parse_result parse_ethernet(const struct packet_view *view,
                                                        struct packet *packet)
{
	struct ethernet_header ethernet;
	struct vlan_header vlan;

	if (!read_header(view, 0, &ethernet))
		return PARSE_TRUNCATED;
	packet->network = sizeof(ethernet);
	packet->ethertype = bpf_ntohs(ethernet.ethertype);
#pragma unroll
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		if (likely(!is_vlan(packet->ethertype)))
			return ip_or_not(packet);
		if (!read_header(view, packet->network, &vlan))
			return PARSE_TRUNCATED;
		packet->network += sizeof(vlan);
		packet->ethertype = bpf_ntohs(vlan.ethertype);
	}
	return is_vlan(packet->ethertype) ? PARSE_TOO_DEEP : ip_or_not(packet);
}

static __always_inline enum parse_result parse_version(const struct packet_view *view,
                                                       struct packet *packet)
{
	__u8 version;

	if (!read_header(view, 0, &version))
		return PARSE_TRUNCATED;
	version >>= 4;
	packet->network = 0;
	packet->ethertype = version == 4 ? ETH_P_IP : version == 6 ? ETH_P_IPV6 : 0;
	return ip_or_not(packet);
}

/* Sets network and ethertype. */
static __always_inline enum parse_result parse_link(const struct packet_view *view,
                                                    enum layer layer, struct packet *packet)
{
	return layer == LAYER_ETHERNET ? parse_ethernet(view, packet) : parse_version(view, packet);
}

static __always_inline enum parse_result parse_ipv4(const struct packet_view *view,
                                                    struct packet *packet)
{
	struct iphdr ip;
	__u16 fragment;

	if (!read_header(view, packet->network, &ip) || ip.version != 4 || ip.ihl < 5)
		return PARSE_TRUNCATED;
	packet->transport = packet->network + ip.ihl * 4;
	packet->protocol = ip.protocol;
	packet->fragment_id = ip.id;
	fragment = bpf_ntohs(ip.frag_off);
	if (likely(!(fragment & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET))))
		packet->fragment = FRAGMENT_NONE;
	else if (fragment & IPV4_FRAGMENT_OFFSET)
		packet->fragment = FRAGMENT_LATER;
	else
		packet->fragment = FRAGMENT_FIRST;
	return PARSE_OK;
}

static __always_inline _Bool is_extension(__u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_AH ||
	       protocol == IPPROTO_FRAGMENT;
}

/* What follows the header of a later fragment is data. */
static __always_inline _Bool more_extensions(const struct packet *packet)
{
	return is_extension(packet->protocol) && packet->fragment != FRAGMENT_LATER;
}

/* Steps over one extension header. A fragment header with offset 0 and nothing to follow (an atomic
 * fragment, RFC 6946) leaves the packet whole. */
static __always_inline _Bool parse_extension(const struct packet_view *view, struct packet *packet)
{
	struct ipv6_extension extension;
	__u16 offset;

	if (!read_header(view, packet->transport, &extension))
		return 0;
	if (packet->protocol == IPPROTO_FRAGMENT) {
		packet->transport += sizeof(extension);
		packet->fragment_id = extension.fragment_id;
		offset = bpf_ntohs(extension.fragment_offset);
		if (offset & IPV6_FRAGMENT_OFFSET)
			packet->fragment = FRAGMENT_LATER;
		else if (offset & IPV6_MORE_FRAGMENTS)
			packet->fragment = FRAGMENT_FIRST;
	} else if (packet->protocol == IPPROTO_AH) {
		packet->transport += (extension.length + 2) * 4;
	} else {
		packet->transport += (extension.length + 1) * 8;
	}
	packet->protocol = extension.next;
	return 1;
}

static __always_inline enum parse_result parse_ipv6_fixed(const struct packet_view *view,
                                                          struct packet *packet)
{
	struct ipv6hdr ip;

	if (!read_header(view, packet->network, &ip) || ip.version != 6)
		return PARSE_TRUNCATED;
	packet->transport = packet->network + sizeof(ip);
	packet->protocol = ip.nexthdr;
	packet->fragment = FRAGMENT_NONE;
	packet->fragment_id = 0;
	return PARSE_OK;
}

static __always_inline enum parse_result parse_ipv6(const struct packet_view *view,
                                                    struct packet *packet)
{
	if (parse_ipv6_fixed(view, packet) != PARSE_OK)
		return PARSE_TRUNCATED;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (likely(!more_extensions(packet)))
			return PARSE_OK;
		if (!parse_extension(view, packet))
			return PARSE_TRUNCATED;
	}
	return more_extensions(packet) ? PARSE_TOO_DEEP : PARSE_OK;
}

/* Sets transport, protocol, fragment and fragment_id. */
static __always_inline enum parse_result parse_network(const struct packet_view *view,
                                                       struct packet *packet)
{
	return packet->ethertype == ETH_P_IP ? parse_ipv4(view, packet) : parse_ipv6(view, packet);
}

/* Sets source_port, destination_port and tcp_flags of TCP, UDP and SCTP; 0 for everything else and
 * for later fragments. */
static __always_inline enum parse_result parse_transport(const struct packet_view *view,
                                                         struct packet *packet)
{
	struct tcp_header tcp;
	struct port_header ports;

	packet->source_port = packet->destination_port = 0;
	packet->tcp_flags = 0;
	if (packet->fragment == FRAGMENT_LATER)
		return PARSE_OK;
	if (packet->protocol == IPPROTO_TCP) {
		if (!read_header(view, packet->transport, &tcp))
			return PARSE_TRUNCATED;
		packet->source_port = bpf_ntohs(tcp.source);
		packet->destination_port = bpf_ntohs(tcp.destination);
		packet->tcp_flags = tcp.flags;
	} else if (packet->protocol == IPPROTO_UDP || packet->protocol == IPPROTO_SCTP) {
		if (!read_header(view, packet->transport, &ports))
			return PARSE_TRUNCATED;
		packet->source_port = bpf_ntohs(ports.source);
		packet->destination_port = bpf_ntohs(ports.destination);
	}
	return PARSE_OK;
}

/* Parses what nearly all packets are: whole IP packets, IPv6 without extension headers. False for
 * all others, which tells nothing about them. Short, so that what a program does with the packet
 * finds its fields in registers. */
static __always_inline _Bool parse_common(const struct packet_view *view, enum layer layer,
                                          struct packet *packet)
{
	if (unlikely(parse_link(view, layer, packet) != PARSE_OK))
		return 0;
	if (packet->ethertype == ETH_P_IP) {
		if (unlikely(parse_ipv4(view, packet) != PARSE_OK ||
		             packet->fragment != FRAGMENT_NONE))
			return 0;
	} else if (unlikely(parse_ipv6_fixed(view, packet) != PARSE_OK ||
	                    is_extension(packet->protocol))) {
		return 0;
	}
	return parse_transport(view, packet) == PARSE_OK;
}

static __always_inline ip_addr_t mapped(__be32 address)
{
	return (ip_addr_t){.in6_u = {.u6_addr32 = {0, 0, bpf_htonl(0xffff), address}}};
}

enum end {
	END_SOURCE,
	END_DESTINATION,
};

/* Reads one of the addresses. Needs parse_link only. */
static __always_inline enum parse_result parse_address(const struct packet_view *view,
                                                       const struct packet *packet, enum end end,
                                                       ip_addr_t *address)
{
	struct ipv6hdr ip6;
	struct iphdr ip4;

	if (packet->ethertype == ETH_P_IP) {
		if (!read_header(view, packet->network, &ip4) || ip4.version != 4)
			return PARSE_TRUNCATED;
		*address = mapped(end == END_SOURCE ? ip4.saddr : ip4.daddr);
		return PARSE_OK;
	}
	if (!read_header(view, packet->network, &ip6) || ip6.version != 6)
		return PARSE_TRUNCATED;
	*address = end == END_SOURCE ? ip6.saddr : ip6.daddr;
	return PARSE_OK;
}

#endif
