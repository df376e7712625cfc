// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* dns: tells user space what DNS servers answer and, if it wants to know, what they are asked.
 *
 * Hook: tc ingress and egress (TCX or clsact; the _l3 functions on devices without an Ethernet
 * header), cgroup_skb ingress and egress.
 * Verdict: the packet always goes on (tc: TC_ACT_UNSPEC, so that later programs run; cgroup_skb: 1).
 * Kernel: 5.10, the oldest one tested; bounded loops (5.3), ring buffers, bpf_ktime_get_boot_ns (5.8).
 *
 * A response is a UDP packet from port 53 with the QR bit, of which the first 4096 bytes are told; a
 * query is one to port 53 without. Of TCP, from port 53, and to it, everything is told that has
 * payload, in pieces of 4096 bytes, or that begins or ends a connection: user space puts the stream
 * together. A first fragment is told as far as it goes; later ones don't say what they are part of,
 * and are counted.
 *
 * Queries are told only while their reader wants them, which is a number in a map: without, they
 * cost what all other packets do. Who wants to know of queries without an answer needs their names,
 * so they are in the ring buffer with their time, and user space finds the response to each: a table
 * of when queries were seen, in the kernel, would be one more that overflows.
 */
#include "packet.h"

#define DNS_PORT         53
#define DNS_HEADER       12
#define DNS_FLAGS        2 /* offset of the byte with the QR bit */
#define DNS_QR           0x80
#define DNS_EVENTS_BYTES (1024 * 1024)

#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_RST 0x04

#define PIECE_SMALL  512 /* what most responses fit into */
#define PIECE_MEDIUM 2048
#define PIECE_LARGE  4096
#define MAX_PIECES   16 /* of one packet: 64 KiB */

enum dns_direction : __u8 {
	DNS_INGRESS,
	DNS_EGRESS,
};

enum dns_hook : __u8 {
	DNS_TC,
	DNS_CGROUP,
};

/* A packet, or a piece of one; behind it is its payload. The record may be longer: what follows the
 * payload means nothing. */
struct dns_event {
	__u64 time;      /* ns of CLOCK_BOOTTIME */
	__u64 cgroup_id; /* of the socket that the packet belongs to here; 0: unknown */
	ip_addr_t source;
	ip_addr_t destination;
	__u32 ifindex;
	__u32 sequence; /* TCP: of the first byte of the payload that is here */
	__u32 length; /* payload of the packet, in bytes; of a first fragment all of the message */
	__u32 offset; /* where the piece is in the payload */
	__u32 captured; /* how much of it is here */
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	enum dns_direction direction;
	enum dns_hook hook;
	__u8 tcp_flags;
	__u8 pad[4];
};

/* What couldn't be told, or not wholly. */
enum dns_row {
	DNS_LOST,      /* found no room in dns_events */
	DNS_TOO_LONG,  /* longer than what is told; bytes are those that aren't */
	DNS_TRUNCATED, /* a header is cut short or contradicts itself: it may not be DNS */
	DNS_TOO_DEEP,  /* more VLAN tags or extension headers than the parser follows: as above */
	DNS_FRAGMENT,  /* later fragments of TCP and UDP: as above */
	DNS_OTHER,     /* UDP from port 53 that is no response, or to it that is no query */
	DNS_ROWS,
};

/* Responses and queries.
 * Record: struct dns_event and payload. Writer: all programs. Reader: bpfnet. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, DNS_EVENTS_BYTES);
	__type(value, struct dns_event);
} dns_events SEC(".maps");

/* What isn't in dns_events.
 * Key: enum dns_row. Value: packets and bytes, per CPU. Writer: all programs. Reader: bpfnet. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DNS_ROWS);
	__type(key, enum dns_row);
	__type(value, struct counter);
} dns_rows SEC(".maps");

/* 1 if queries are wanted.
 * Key: 0. Value: a number. Writer: bpfnet, whoever reads dns_events. Reader: all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} dns_queries SEC(".maps");

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

static __always_inline void add_row(enum dns_row row, __u64 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&dns_rows, &row);

	if (!counter)
		return;
	__sync_fetch_and_add(&counter->packets, 1);
	__sync_fetch_and_add(&counter->bytes, bytes);
}

static __always_inline _Bool wants_queries(void)
{
	__u32 key = 0, *wanted = bpf_map_lookup_elem(&dns_queries, &key);

	return wanted && *wanted;
}

static __always_inline _Bool is_wanted(const struct packet *packet)
{
	return unlikely(packet->source_port == DNS_PORT) ||
	       (unlikely(packet->destination_port == DNS_PORT) && wants_queries());
}

static __always_inline enum parse_result parse_all(const struct packet_view *view, __u32 place,
                                                   struct packet *packet)
{
	enum parse_result result = parse_link(view, layer_of(place), packet);

	if (result == PARSE_OK)
		result = parse_network(view, packet);
	if (result == PARSE_OK)
		result = parse_transport(view, packet);
	return result;
}

/* Where the packet ends by its IP header; what follows is padding. Super-packets longer than the
 * field say 0. */
static __always_inline __u32 end_of_packet(const struct packet_view *view,
                                           const struct packet *packet)
{
	__u32 all = view->skb->len, end = all;
	struct ipv6hdr ip6;
	struct iphdr ip4;

	if (packet->ethertype == ETH_P_IP) {
		if (read_header(view, packet->network, &ip4) && ip4.tot_len)
			end = packet->network + bpf_ntohs(ip4.tot_len);
	} else if (read_header(view, packet->network, &ip6) && ip6.payload_len) {
		end = packet->network + sizeof(ip6) + bpf_ntohs(ip6.payload_len);
	}
	return end < all ? end : all;
}

/* What a packet carries: offsets in it, and the row if it isn't told. */
struct message {
	__u32 start;
	__u32 end;      /* of what is in the packet */
	__u32 length;   /* more than that in a first fragment */
	__u32 sequence; /* of the first byte */
	enum dns_row row;
	_Bool told;
};

static __always_inline struct message find_udp(const struct packet_view *view,
                                               const struct packet *packet)
{
	struct message message = {.row = DNS_TRUNCATED, .end = end_of_packet(view, packet)};
	__be16 length;
	__u8 flags;

	if (!read_header(view, packet->transport + 4, &length))
		return message;
	message.start = packet->transport + 8;
	message.length = bpf_ntohs(length) - 8;
	if (bpf_ntohs(length) < 8 || message.start > message.end)
		return message;
	if (message.end > message.start + message.length)
		message.end = message.start + message.length;
	message.row = DNS_OTHER;
	message.told = message.length >= DNS_HEADER &&
	               read_header(view, message.start + DNS_FLAGS, &flags) &&
	               (flags & DNS_QR ? packet->source_port == DNS_PORT
	                               : packet->destination_port == DNS_PORT && wants_queries());
	return message;
}

static __always_inline struct message find_tcp(const struct packet_view *view,
                                               const struct packet *packet)
{
	struct message message = {.row = DNS_TRUNCATED, .end = end_of_packet(view, packet)};
	struct tcp_header tcp;

	if (!read_header(view, packet->transport, &tcp))
		return message;
	message.start = packet->transport + (tcp.data_offset >> 4) * 4;
	if (tcp.data_offset >> 4 < 5 || message.start > message.end)
		return message;
	message.length = message.end - message.start;
	message.sequence = bpf_ntohl(tcp.sequence) + !!(tcp.flags & TCP_FLAG_SYN);
	message.told = 1;
	return message;
}

/* Writes a piece. room is one of the sizes above: the kernel wants to know it when it loads the
 * program. */
static __always_inline _Bool tell(const struct packet_view *view, const struct dns_event *event,
                                  __u32 from, const __u32 room)
{
	struct dns_event *record = bpf_ringbuf_reserve(&dns_events, sizeof(*event) + room, 0);
	__u64 last = event->captured - 1;

	if (!record)
		return 0;
	*record = *event;
	/* The compiler knows that this changes nothing, the verifier doesn't. */
	asm volatile("%0 &= %1" : "+r"(last) : "i"(room - 1));
	if (event->captured && bpf_skb_load_bytes(view->skb, from, record + 1, last + 1)) {
		bpf_ringbuf_discard(record, 0);
		return 0;
	}
	bpf_ringbuf_submit(record, 0);
	return 1;
}

static __always_inline _Bool tell_piece(const struct packet_view *view,
                                        const struct dns_event *event, __u32 from)
{
	if (event->captured <= PIECE_SMALL)
		return tell(view, event, from, PIECE_SMALL);
	if (event->captured <= PIECE_MEDIUM)
		return tell(view, event, from, PIECE_MEDIUM);
	return tell(view, event, from, PIECE_LARGE);
}

static __always_inline void describe(const struct packet_view *view, const struct packet *packet,
                                     __u32 place, struct dns_event *event)
{
	event->time = bpf_ktime_get_boot_ns();
	event->cgroup_id = bpf_skb_cgroup_id(view->skb);
	parse_address(view, packet, END_SOURCE, &event->source);
	parse_address(view, packet, END_DESTINATION, &event->destination);
	event->ifindex = view->skb->ifindex;
	event->source_port = packet->source_port;
	event->destination_port = packet->destination_port;
	event->protocol = packet->protocol;
	event->direction = place & PLACE_EGRESS ? DNS_EGRESS : DNS_INGRESS;
	event->hook = place & PLACE_CGROUP ? DNS_CGROUP : DNS_TC;
	event->tcp_flags = packet->tcp_flags;
}

/* Where the headers of a packet are, in a number. */
enum location {
	AT_TRANSPORT = 0xffff,
	AT_NETWORK = 0x1f0000,
	AT_IPV4 = 0x200000,
	AT_UDP = 0x400000,
	AT_FOUND = 0x800000,
};

/* Finds the headers of a packet from or to a DNS server, and counts what can't be told; 0 if it is none.
 * Global, so that what follows is verified once and not for each way through the headers. */
__noinline int locate(struct __sk_buff *skb, __u32 place)
{
	struct packet_view view = VIEW_COPY(skb);
	struct packet packet = {};
	enum parse_result result = parse_all(&view, place, &packet);

	if (result == PARSE_NOT_IP)
		return 0;
	if (result != PARSE_OK) {
		add_row(result == PARSE_TOO_DEEP ? DNS_TOO_DEEP : DNS_TRUNCATED, skb->len);
		return 0;
	}
	if (packet.protocol != IPPROTO_UDP && packet.protocol != IPPROTO_TCP)
		return 0;
	if (packet.fragment == FRAGMENT_LATER)
		add_row(DNS_FRAGMENT, skb->len);
	if (!is_wanted(&packet))
		return 0;
	return AT_FOUND | (packet.transport & AT_TRANSPORT) | (packet.network << 16 & AT_NETWORK) |
	       (packet.ethertype == ETH_P_IP ? AT_IPV4 : 0) |
	       (packet.protocol == IPPROTO_UDP ? AT_UDP : 0);
}

static __always_inline struct packet packet_at(__u32 location)
{
	return (struct packet){
		.transport = location & AT_TRANSPORT,
		.network = (location & AT_NETWORK) >> 16,
		.ethertype = location & AT_IPV4 ? ETH_P_IP : ETH_P_IPV6,
		.protocol = location & AT_UDP ? IPPROTO_UDP : IPPROTO_TCP,
	};
}

/* Tells the piece of a packet that begins at an offset of its payload; evaluates to the offset of
 * the next one, 0 if there is none. Global, too. */
__noinline int tell_from(struct __sk_buff *skb, __u32 place, __u32 location, __u32 offset)
{
	struct packet_view view = VIEW_COPY(skb);
	struct dns_event event = {.offset = offset};
	struct packet packet = packet_at(location);
	struct message message;
	__u32 rest;

	if (parse_transport(&view, &packet) != PARSE_OK)
		return 0; /* it was there before */
	message = packet.protocol == IPPROTO_UDP ? find_udp(&view, &packet)
	                                         : find_tcp(&view, &packet);
	if (!message.told) {
		add_row(message.row, skb->len);
		return 0;
	}
	if (!message.length && !(packet.tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_FIN | TCP_FLAG_RST)))
		return 0; /* an acknowledgement */
	rest = message.end - message.start - offset;
	if (offset > message.end - message.start)
		return 0;
	event.length = message.length;
	event.captured = rest < PIECE_LARGE ? rest : PIECE_LARGE;
	event.sequence = message.sequence + offset;
	describe(&view, &packet, place, &event);
	if (!tell_piece(&view, &event, message.start + offset)) {
		add_row(DNS_LOST, rest);
		return 0;
	}
	if (rest <= PIECE_LARGE)
		return 0;
	if (packet.protocol == IPPROTO_UDP || offset >= (MAX_PIECES - 1) * PIECE_LARGE) {
		add_row(DNS_TOO_LONG, rest - PIECE_LARGE);
		return 0;
	}
	return offset + PIECE_LARGE;
}

/* For packets that the short way can't read or that are wanted; a function of its own, so that
 * the way of the other packets stays short. */
static __noinline int tell_all(struct __sk_buff *skb, __u32 place)
{
	__u32 location = locate(skb, place), offset = 0;

	if (!location)
		return 0;
	for (int i = 0; i < MAX_PIECES; i++) {
		offset = tell_from(skb, place, location, offset);
		if (!offset)
			break;
	}
	return 0;
}

static __always_inline _Bool is_unrelated(const struct packet_view *view, __u32 place)
{
	struct packet packet = {};

	return parse_common(view, layer_of(place), &packet) && !is_wanted(&packet);
}

static __always_inline void observe(struct __sk_buff *skb, __u32 place)
{
	struct packet_view view = VIEW_LINEAR(skb);

	if (unlikely(!is_unrelated(&view, place)))
		tell_all(skb, place);
}

static __always_inline int observe_tc(struct __sk_buff *skb, __u32 place)
{
	observe(skb, place);
	return TC_NEXT;
}

static __always_inline int observe_cgroup(struct __sk_buff *skb, __u32 place)
{
	observe(skb, place | PLACE_CGROUP | PLACE_LAYER_IP);
	return 1;
}

SEC("tcx/ingress")
int dns_ingress(struct __sk_buff *skb)
{
	return observe_tc(skb, 0);
}

SEC("tcx/egress")
int dns_egress(struct __sk_buff *skb)
{
	return observe_tc(skb, PLACE_EGRESS);
}

SEC("tcx/ingress")
int dns_ingress_l3(struct __sk_buff *skb)
{
	return observe_tc(skb, PLACE_LAYER_IP);
}

SEC("tcx/egress")
int dns_egress_l3(struct __sk_buff *skb)
{
	return observe_tc(skb, PLACE_LAYER_IP | PLACE_EGRESS);
}

SEC("cgroup_skb/ingress")
int dns_cgroup_ingress(struct __sk_buff *skb)
{
	return observe_cgroup(skb, 0);
}

SEC("cgroup_skb/egress")
int dns_cgroup_egress(struct __sk_buff *skb)
{
	return observe_cgroup(skb, PLACE_EGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
