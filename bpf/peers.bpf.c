// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* peers: remembers whom endpoints contact of their own accord, and whether they were answered.
 *
 * Hook: tc ingress and egress (TCX or clsact; the _l3 functions on devices without an Ethernet
 * header), cgroup_skb ingress and egress. Both directions are needed: one alone can't tell a
 * contact from an answer.
 * Verdict: the packet always goes on (tc: TC_ACT_UNSPEC, so that later programs run; cgroup_skb: 1).
 * Kernel: 5.10, the oldest one tested; bpf_spin_lock (5.1), bpf_jiffies64 (5.6), bpf_ktime_get_boot_ns
 * (5.8).
 *
 * The endpoint is the source of what is sent and the destination of what is received, as in
 * pod-traffic. An attempt is, of TCP, a SYN that the endpoint sends; the same sequence number again
 * is the same attempt. A SYN-ACK that acknowledges it is its answer, an RST that does its refusal. Of
 * everything else it is the first packet of a flow (addresses, ports, protocol; of ICMP an echo
 * request, its identifier the port) that the endpoint sends and the peer didn't begin, its answer the
 * first one that the peer sends, and an ABORT of SCTP a refusal. A flow that was silent for two
 * minutes begins anew, and whoever sends first began it. An ICMP message that a destination is
 * unreachable, with a packet of an attempt in it, refuses that, but for "fragmentation needed".
 * Addresses of many receivers, unspecified ones, loopback, and the endpoint itself are no peers;
 * ICMP other than echo begins nothing; later fragments are left out.
 *
 * Exact: what must happen once a flow is decided by who inserts its entry, or under a lock; counters
 * are added to atomically, so it doesn't matter how many CPUs and softirqs meet the same entry. The
 * exception is the LRU maps': an entry may be given to another key while a program writes to it.
 */
#include "address.h"
#include "packet.h"

#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_RST 0x04

#define ICMP4_ECHO_REPLY   0
#define ICMP4_UNREACHABLE  3
#define ICMP4_FRAGMENT     4 /* its code: fragmentation needed */
#define ICMP4_ECHO_REQUEST 8
#define ICMP6_UNREACHABLE  1
#define ICMP6_ECHO_REQUEST 128
#define ICMP6_ECHO_REPLY   129

#define SCTP_HEADER 12
#define SCTP_ABORT  6

#define EEXIST 17

#define FLOW_IDLE (120LL * 1000 * 1000 * 1000) /* ns without a packet until a flow begins anew */

/* How old what a flow knows of its last packet may be: 1 s where a jiffy is the longest, 10 ms.
 * Within that, a packet costs no look at the clock. */
#define FLOW_TOUCH 100

/* A TCP segment that acknowledges a SYN may do so with data that went along. */
#define MAX_FAST_OPEN 0xffff

#define FLOW_LOCKS 64

enum peer_hook : __u8 {
	PEER_TC,
	PEER_CGROUP,
};

/* A peer, as an endpoint has contacted it. */
struct peer_key {
	ip_addr_t endpoint;
	ip_addr_t peer;
	__u64 place; /* PEER_TC: ifindex; PEER_CGROUP: id of the socket's cgroup */
	__u16 port;  /* 0: the protocol has none */
	__u8 protocol;
	enum peer_hook hook;
	__u8 pad[4];
};

struct peer_entry {
	__u64 attempts;
	__u64 answers;
	__u64 refusals;
	__u64 first; /* ns of CLOCK_BOOTTIME: of the attempt that made the entry */
	__u64 last;  /* of the packet that changed it last */
};

struct flow_key {
	ip_addr_t endpoint;
	ip_addr_t peer;
	__u64 place;
	__u16 local_port;
	__u16 peer_port;
	__u8 protocol;
	enum peer_hook hook;
	__u8 pad[2];
};

enum flow_state : __u8 {
	FLOW_WAITS, /* for an answer */
	FLOW_ANSWERED,
	FLOW_REFUSED,
};

struct flow {
	__u64 began;    /* ns of CLOCK_BOOTTIME */
	__u64 last;     /* of its last packet, FLOW_TOUCH jiffies late at most; but TCP: began */
	__u64 checked;  /* jiffies at last */
	__u32 sequence; /* TCP: of the SYN */
	enum flow_state state;
	__u8 pad[3];
};

struct endpoint_key {
	ip_addr_t address;
	__u64 place;
	enum peer_hook hook;
	__u8 pad[7];
};

struct endpoint_counters {
	__u64 opened;   /* attempts of the endpoint's own */
	__u64 received; /* attempts of others */
};

struct flow_lock {
	struct bpf_spin_lock lock;
};

enum peer_row {
	PEERS_MADE,      /* entries that were ever made in peer_entries, or found no room there */
	PEERS_NO_ROOM,   /* attempts, of either side, that found no room in peer_endpoints */
	PEERS_TRUNCATED, /* packets whose headers are cut short or contradict themselves */
	PEERS_TOO_DEEP, /* packets with more VLAN tags or extension headers than the parser follows */
	PEER_ROWS,
};

/* Whom endpoints have contacted; the one that was used least lately makes room.
 * Key: endpoint, place, peer, protocol and the peer's port. Value: counters and times. Writer: all
 * programs. Reader: bpfnet watch peers. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct peer_key);
	__type(value, struct peer_entry);
} peer_entries SEC(".maps");

/* Flows that endpoints began.
 * Key: struct flow_key. Value: how far it has come. Writer, reader: all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} peer_flows SEC(".maps");

/* Flows that others began, so that what endpoints answer is no contact. A map of its own: others
 * may begin as many as they like, and no flow of an endpoint is forgotten for it.
 * Key: struct flow_key. Value: as in peer_flows, without a state. Writer, reader: all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow_key);
	__type(value, struct flow);
} incoming SEC(".maps");

/* How many connections endpoints have had.
 * Key: address and place. Value: connections, per CPU. Writer: all programs. Reader: bpfnet watch
 * peers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct endpoint_key);
	__type(value, struct endpoint_counters);
} peer_endpoints SEC(".maps");

/* What is in no entry.
 * Key: enum peer_row. Value: a number, per CPU. Writer: all programs. Reader: bpfnet watch peers. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PEER_ROWS);
	__type(key, enum peer_row);
	__type(value, __u64);
} peer_rows SEC(".maps");

/* Locks of flows, which LRU maps can't hold themselves.
 * Key: a hash of the ports. Value: a lock. Writer: all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOW_LOCKS);
	__type(key, __u32);
	__type(value, struct flow_lock);
} flow_locks SEC(".maps");

/* Where a packet was met: what a global function can be told in a number. */
enum place {
	PLACE_LAYER_IP = 1,
	PLACE_SENT = 2, /* by the endpoint; else received */
	PLACE_CGROUP = 4,
};

static __always_inline enum layer layer_of(__u32 place)
{
	return place & PLACE_LAYER_IP ? LAYER_IP : LAYER_ETHERNET;
}

static __always_inline void add_row(enum peer_row row)
{
	__u64 *count = bpf_map_lookup_elem(&peer_rows, &row);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void add_unread(enum parse_result result)
{
	if (result == PARSE_TRUNCATED)
		add_row(PEERS_TRUNCATED);
	else if (result == PARSE_TOO_DEEP)
		add_row(PEERS_TOO_DEEP);
}

static __always_inline void add_connection(const struct flow_key *flow, _Bool opened)
{
	struct endpoint_key key = {
		.address = flow->endpoint,
		.place = flow->place,
		.hook = flow->hook,
	};
	static const struct endpoint_counters none;
	struct endpoint_counters *counters = bpf_map_lookup_elem(&peer_endpoints, &key);

	if (!counters) {
		bpf_map_update_elem(&peer_endpoints, &key, &none, BPF_NOEXIST);
		counters = bpf_map_lookup_elem(&peer_endpoints, &key);
	}
	if (!counters)
		add_row(PEERS_NO_ROOM);
	else if (opened)
		__sync_fetch_and_add(&counters->opened, 1);
	else
		__sync_fetch_and_add(&counters->received, 1);
}

static __always_inline struct peer_key key_of(const struct flow_key *flow)
{
	return (struct peer_key){
		.endpoint = flow->endpoint,
		.peer = flow->peer,
		.place = flow->place,
		.port = flow->peer_port,
		.protocol = flow->protocol,
		.hook = flow->hook,
	};
}

/* Whether an entry is new: false if it was there before. Kernels older than 6.4 return an int from
 * a map's function, whose sign isn't extended where the verifier calls it directly. */
static __always_inline _Bool insert(void *map, const void *key, const void *value)
{
	return (int)bpf_map_update_elem(map, key, value, BPF_NOEXIST) != -EEXIST;
}

/* The entry of a flow's peer, made if it is new; NULL when there is none at once again. */
static __always_inline struct peer_entry *entry_of(const struct flow_key *flow, __u64 now)
{
	struct peer_entry fresh = {.first = now, .last = now};
	struct peer_key key = key_of(flow);
	struct peer_entry *entry = bpf_map_lookup_elem(&peer_entries, &key);

	if (entry)
		return entry;
	if (insert(&peer_entries, &key, &fresh))
		add_row(PEERS_MADE);
	return bpf_map_lookup_elem(&peer_entries, &key);
}

static __always_inline struct flow_lock *lock_of(const struct flow_key *key)
{
	__u32 index = (key->local_port ^ key->peer_port) % FLOW_LOCKS;

	return bpf_map_lookup_elem(&flow_locks, &index);
}

/* Whether a flow is the same one, or a later one of the same key. */
static __always_inline _Bool is_same(const struct flow_key *key, const struct flow *flow,
                                     const struct flow *fresh)
{
	if (key->protocol == IPPROTO_TCP)
		return flow->sequence == fresh->sequence;
	return (__s64)(fresh->last - flow->last) <= FLOW_IDLE;
}

/* Begins a flow: found is the entry that its key has, NULL if there is none. False if somebody else
 * was first. */
static __always_inline _Bool begin(void *flows, const struct flow_key *key, struct flow *found,
                                   const struct flow *fresh)
{
	struct flow_lock *lock;
	_Bool same;

	if (!found)
		return insert(flows, key, fresh);
	lock = lock_of(key);
	if (!lock)
		return 0;
	bpf_spin_lock(&lock->lock);
	same = is_same(key, found, fresh);
	if (!same)
		*found = *fresh;
	bpf_spin_unlock(&lock->lock);
	return !same;
}

static __always_inline struct flow begin_at(__u64 now, __u32 sequence)
{
	return (struct flow){
		.began = now,
		.last = now,
		.checked = bpf_jiffies64(),
		.sequence = sequence,
	};
}

/* The endpoint begins a flow. The entry comes first, so that an answer finds it; the flow begins no
 * earlier than the entry, which tells its answers from those of an entry that made room before. */
static __always_inline void attempt(const struct flow_key *key, struct flow *found, __u32 sequence)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct peer_entry *entry = entry_of(key, now);
	struct flow fresh = begin_at(now, sequence);

	if (entry && entry->first > now)
		fresh.began = entry->first;
	if (!begin(&peer_flows, key, found, &fresh))
		return;
	if (entry) {
		__sync_fetch_and_add(&entry->attempts, 1);
		entry->last = now;
	}
	add_connection(key, 1);
}

/* Somebody else begins a flow. */
static __always_inline void arrive(const struct flow_key *key, struct flow *found, __u32 sequence)
{
	struct flow fresh = begin_at(bpf_ktime_get_boot_ns(), sequence);

	if (begin(&incoming, key, found, &fresh))
		add_connection(key, 0);
}

/* What became of an attempt, once. */
static __always_inline void settle(const struct flow_key *key, struct flow *flow,
                                   enum flow_state state)
{
	struct flow_lock *lock = lock_of(key);
	struct peer_key peer = key_of(key);
	struct peer_entry *entry;
	_Bool waited;

	if (flow->state != FLOW_WAITS || !lock)
		return;
	bpf_spin_lock(&lock->lock);
	waited = flow->state == FLOW_WAITS;
	flow->state = waited ? state : flow->state;
	bpf_spin_unlock(&lock->lock);
	if (!waited)
		return;
	entry = bpf_map_lookup_elem(&peer_entries, &peer);
	if (!entry || flow->began < entry->first)
		return;
	if (state == FLOW_ANSWERED)
		__sync_fetch_and_add(&entry->answers, 1);
	else
		__sync_fetch_and_add(&entry->refusals, 1);
	entry->last = bpf_ktime_get_boot_ns();
}

/* Whether a flow has had a packet lately; this is one, then. */
static __always_inline _Bool is_alive(struct flow *flow)
{
	__u64 jiffies = bpf_jiffies64(), now;

	if (jiffies - flow->checked < FLOW_TOUCH)
		return 1;
	now = bpf_ktime_get_boot_ns();
	if ((__s64)(now - flow->last) > FLOW_IDLE)
		return 0;
	flow->last = now;
	flow->checked = jiffies;
	return 1;
}

/* A packet of a flow without a handshake. */
static __always_inline void send(const struct flow_key *key)
{
	struct flow *own = bpf_map_lookup_elem(&peer_flows, key), *other;

	if (own && is_alive(own))
		return;
	other = bpf_map_lookup_elem(&incoming, key);
	if (!other || !is_alive(other))
		attempt(key, own, 0);
}

static __always_inline void receive(const struct flow_key *key, enum flow_state state)
{
	struct flow *own = bpf_map_lookup_elem(&peer_flows, key), *other;

	if (own && is_alive(own)) {
		settle(key, own, state);
		return;
	}
	other = bpf_map_lookup_elem(&incoming, key);
	if (!other || !is_alive(other))
		arrive(key, other, 0);
}

static __always_inline _Bool acknowledges(const struct tcp_header *tcp, const struct flow *flow)
{
	__u32 beyond = bpf_ntohl(tcp->acknowledgement) - flow->sequence - 1;

	return tcp->flags & TCP_FLAG_ACK && beyond <= MAX_FAST_OPEN;
}

static __always_inline void send_tcp(const struct flow_key *key, const struct tcp_header *tcp)
{
	__u32 sequence = bpf_ntohl(tcp->sequence);
	struct flow *own;

	if ((tcp->flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST | TCP_FLAG_FIN)) !=
	    TCP_FLAG_SYN)
		return;
	own = bpf_map_lookup_elem(&peer_flows, key);
	if (!own || own->sequence != sequence)
		attempt(key, own, sequence);
}

static __always_inline void receive_tcp(const struct flow_key *key, const struct tcp_header *tcp)
{
	struct flow *flow;

	if ((tcp->flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST)) == TCP_FLAG_SYN) {
		flow = bpf_map_lookup_elem(&incoming, key);
		arrive(key, flow, bpf_ntohl(tcp->sequence));
	} else if (tcp->flags & (TCP_FLAG_SYN | TCP_FLAG_RST)) {
		flow = bpf_map_lookup_elem(&peer_flows, key);
		if (flow && acknowledges(tcp, flow))
			settle(key, flow, tcp->flags & TCP_FLAG_RST ? FLOW_REFUSED : FLOW_ANSWERED);
	}
}

static __always_inline void set_place(struct flow_key *key, struct __sk_buff *skb, __u32 place)
{
	if (place & PLACE_CGROUP) {
		key->hook = PEER_CGROUP;
		key->place = bpf_skb_cgroup_id(skb);
	} else {
		key->hook = PEER_TC;
		key->place = skb->ifindex;
	}
}

static __always_inline void set_ports(struct flow_key *key, _Bool sent, __u16 source,
                                      __u16 destination)
{
	key->local_port = sent ? source : destination;
	key->peer_port = sent ? destination : source;
}

/* Reads who speaks with whom, but for the place. */
static __always_inline enum parse_result describe(const struct packet_view *view,
                                                  const struct packet *packet, _Bool sent,
                                                  struct flow_key *key)
{
	key->protocol = packet->protocol;
	set_ports(key, sent, packet->source_port, packet->destination_port);
	if (parse_address(view, packet, sent ? END_SOURCE : END_DESTINATION, &key->endpoint) !=
	    PARSE_OK)
		return PARSE_TRUNCATED;
	return parse_address(view, packet, sent ? END_DESTINATION : END_SOURCE, &key->peer);
}

static __always_inline _Bool is_nobody(const ip_addr_t *address)
{
	return is_multicast(address) || is_unspecified(address) || is_loopback(address);
}

static __always_inline _Bool is_equal(const ip_addr_t *one, const ip_addr_t *other)
{
	return !((one->s6_addr32[0] ^ other->s6_addr32[0]) |
	         (one->s6_addr32[1] ^ other->s6_addr32[1]) |
	         (one->s6_addr32[2] ^ other->s6_addr32[2]) |
	         (one->s6_addr32[3] ^ other->s6_addr32[3]));
}

static __always_inline _Bool is_contact(const struct flow_key *key)
{
	return !is_nobody(&key->endpoint) && !is_nobody(&key->peer) &&
	       !is_equal(&key->endpoint, &key->peer);
}

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 identifier; /* of an echo */
	__be16 sequence;
};

static __always_inline _Bool is_echo_request(__u8 protocol, __u8 type)
{
	return type == (protocol == IPPROTO_ICMP ? ICMP4_ECHO_REQUEST : ICMP6_ECHO_REQUEST);
}

static __always_inline _Bool is_echo_reply(__u8 protocol, __u8 type)
{
	return type == (protocol == IPPROTO_ICMP ? ICMP4_ECHO_REPLY : ICMP6_ECHO_REPLY);
}

static __always_inline _Bool is_unreachable(__u8 protocol, const struct icmp_header *icmp)
{
	if (protocol == IPPROTO_ICMP)
		return icmp->type == ICMP4_UNREACHABLE && icmp->code != ICMP4_FRAGMENT;
	return icmp->type == ICMP6_UNREACHABLE;
}

/* What an ICMP message has at least of a packet's upper-layer header. */
struct embedded_header {
	__be16 source;
	__be16 destination;
	__be32 sequence; /* of TCP; its first half is the identifier of an echo */
};

/* Reads the flow of the packet in an ICMP message; the sequence number, if it is TCP's. */
static __always_inline _Bool describe_embedded(const struct packet_view *view,
                                               const struct packet *packet, struct flow_key *key,
                                               __u32 *sequence)
{
	struct embedded_header header;

	if (packet->fragment == FRAGMENT_LATER || describe(view, packet, 1, key) != PARSE_OK)
		return 0;
	switch (packet->protocol) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (!read_header(view, packet->transport, &header) ||
		    !is_echo_request(packet->protocol, bpf_ntohs(header.source) >> 8))
			return 0;
		key->local_port = bpf_ntohl(header.sequence) >> 16;
		return 1;
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
		if (!read_header(view, packet->transport, &header))
			return 0;
		set_ports(key, 1, bpf_ntohs(header.source), bpf_ntohs(header.destination));
		*sequence = bpf_ntohl(header.sequence);
	}
	return 1;
}

/* Looks for the attempt whose packet is embedded in a message at an offset. Global, so that it is
 * verified by itself. */
__noinline int refuse(struct __sk_buff *skb, __u32 place, __u32 offset)
{
	struct packet_view view = VIEW_COPY(skb);
	struct flow_key key = {};
	struct packet packet = {};
	ip_addr_t receiver;
	__u32 sequence = 0;
	struct flow *flow;

	if (parse_link(&view, layer_of(place), &packet) != PARSE_OK ||
	    parse_address(&view, &packet, END_DESTINATION, &receiver) != PARSE_OK)
		return 0;
	packet.network = offset & 0xffff;
	if (parse_network(&view, &packet) != PARSE_OK ||
	    !describe_embedded(&view, &packet, &key, &sequence) ||
	    !is_equal(&key.endpoint, &receiver))
		return 0;
	set_place(&key, skb, place);
	flow = bpf_map_lookup_elem(&peer_flows, &key);
	if (flow && (key.protocol != IPPROTO_TCP || flow->sequence == sequence))
		settle(&key, flow, FLOW_REFUSED);
	return 0;
}

static __always_inline void observe_icmp(struct __sk_buff *skb, __u32 place,
                                         const struct packet *packet, struct flow_key *key)
{
	struct icmp_header icmp;

	if (bpf_skb_load_bytes(skb, packet->transport, &icmp, sizeof(icmp))) {
		add_row(PEERS_TRUNCATED);
		return;
	}
	key->local_port = bpf_ntohs(icmp.identifier);
	if (is_echo_request(key->protocol, icmp.type)) {
		if (place & PLACE_SENT)
			send(key);
		else
			receive(key, FLOW_ANSWERED);
	} else if (place & PLACE_SENT) {
		return;
	} else if (is_echo_reply(key->protocol, icmp.type)) {
		struct flow *own = bpf_map_lookup_elem(&peer_flows, key);

		if (own)
			settle(key, own, FLOW_ANSWERED);
	} else if (is_unreachable(key->protocol, &icmp)) {
		refuse(skb, place, packet->transport + sizeof(icmp));
	}
}

static __always_inline void observe_tcp(struct __sk_buff *skb, __u32 place,
                                        const struct packet *packet, const struct flow_key *key)
{
	struct tcp_header tcp;

	if (bpf_skb_load_bytes(skb, packet->transport, &tcp, sizeof(tcp)))
		return; /* it was there before */
	if (place & PLACE_SENT)
		send_tcp(key, &tcp);
	else
		receive_tcp(key, &tcp);
}

static __always_inline void observe_flow(struct __sk_buff *skb, __u32 place,
                                         const struct packet *packet, const struct flow_key *key)
{
	enum flow_state state = FLOW_ANSWERED;
	__u8 chunk;

	if (place & PLACE_SENT) {
		send(key);
		return;
	}
	if (key->protocol == IPPROTO_SCTP &&
	    !bpf_skb_load_bytes(skb, packet->transport + SCTP_HEADER, &chunk, sizeof(chunk)) &&
	    chunk == SCTP_ABORT)
		state = FLOW_REFUSED;
	receive(key, state);
}

static __always_inline enum parse_result parse_all(const struct packet_view *view, __u32 place,
                                                   struct packet *packet)
{
	enum parse_result result = parse_link(view, layer_of(place), packet);
	struct port_header ports;

	if (result == PARSE_OK)
		result = parse_network(view, packet);
	if (result == PARSE_OK)
		result = parse_transport(view, packet);
	if (result != PARSE_OK || packet->protocol != IPPROTO_UDPLITE ||
	    packet->fragment == FRAGMENT_LATER)
		return result;
	if (!read_header(view, packet->transport, &ports))
		return PARSE_TRUNCATED;
	packet->source_port = bpf_ntohs(ports.source);
	packet->destination_port = bpf_ntohs(ports.destination);
	return PARSE_OK;
}

/* All packets but those that the short way is done with. Global, so that it is verified once. */
__noinline int observe(struct __sk_buff *skb, __u32 place)
{
	struct packet_view view = VIEW_COPY(skb);
	struct packet packet = {};
	struct flow_key key = {};
	enum parse_result result = parse_all(&view, place, &packet);

	if (result == PARSE_OK && packet.fragment != FRAGMENT_LATER)
		result = describe(&view, &packet, place & PLACE_SENT, &key);
	if (result != PARSE_OK) {
		add_unread(result);
		return 0;
	}
	if (packet.fragment == FRAGMENT_LATER || !is_contact(&key))
		return 0;
	set_place(&key, skb, place);
	switch (packet.protocol) {
	case IPPROTO_TCP:
		observe_tcp(skb, place, &packet, &key);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		observe_icmp(skb, place, &packet, &key);
		break;
	default:
		observe_flow(skb, place, &packet, &key);
	}
	return 0;
}

/* Whether a flow has had a packet lately, without a look at the clock. */
static __always_inline _Bool is_lively(const struct flow *flow)
{
	return flow && bpf_jiffies64() - flow->checked < FLOW_TOUCH;
}

/* Whether a UDP packet changes nothing. */
static __always_inline _Bool is_known(struct __sk_buff *skb, const struct packet_view *view,
                                      const struct packet *packet, __u32 place)
{
	struct flow_key key = {};
	struct flow *own;

	if (unlikely(describe(view, packet, place & PLACE_SENT, &key) != PARSE_OK))
		return 0;
	set_place(&key, skb, place);
	own = bpf_map_lookup_elem(&peer_flows, &key);
	if (is_lively(own))
		return place & PLACE_SENT || own->state != FLOW_WAITS;
	return !own && is_lively(bpf_map_lookup_elem(&incoming, &key));
}

/* Whether a TCP segment neither asks for a connection nor says what becomes of one. */
static __always_inline _Bool is_data(const struct packet *packet, __u32 place)
{
	if (place & PLACE_SENT)
		return (packet->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) != TCP_FLAG_SYN;
	return !(packet->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_RST));
}

/* The short way of what most packets are. */
static __always_inline _Bool is_old(struct __sk_buff *skb, __u32 place)
{
	struct packet_view view = VIEW_LINEAR(skb);
	struct packet packet = {};

	if (unlikely(!parse_common(&view, layer_of(place), &packet)))
		return 0;
	if (packet.protocol == IPPROTO_TCP)
		return is_data(&packet, place);
	return packet.protocol == IPPROTO_UDP && is_known(skb, &view, &packet, place);
}

static __always_inline int observe_tc(struct __sk_buff *skb, __u32 place)
{
	if (unlikely(!is_old(skb, place)))
		observe(skb, place);
	return TC_NEXT;
}

static __always_inline int observe_cgroup(struct __sk_buff *skb, __u32 place)
{
	place |= PLACE_CGROUP | PLACE_LAYER_IP;
	if (unlikely(!is_old(skb, place)))
		observe(skb, place);
	return 1;
}

SEC("tcx/ingress")
int peers_ingress(struct __sk_buff *skb)
{
	return observe_tc(skb, PLACE_SENT);
}

SEC("tcx/egress")
int peers_egress(struct __sk_buff *skb)
{
	return observe_tc(skb, 0);
}

SEC("tcx/ingress")
int peers_ingress_l3(struct __sk_buff *skb)
{
	return observe_tc(skb, PLACE_LAYER_IP | PLACE_SENT);
}

SEC("tcx/egress")
int peers_egress_l3(struct __sk_buff *skb)
{
	return observe_tc(skb, PLACE_LAYER_IP);
}

SEC("cgroup_skb/egress")
int peers_cgroup_egress(struct __sk_buff *skb)
{
	return observe_cgroup(skb, PLACE_SENT);
}

SEC("cgroup_skb/ingress")
int peers_cgroup_ingress(struct __sk_buff *skb)
{
	return observe_cgroup(skb, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
