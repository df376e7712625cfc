// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* pod-traffic: counts bytes and packets in both directions per Pod address, and drops or reports
 * packets from or to listed addresses.
 *
 * Hook: tc ingress and egress (TCX or clsact; the _l3 functions on devices without an Ethernet
 * header), cgroup_skb ingress and egress.
 * Verdict: as blocklist's, whose lists it consults: drop (tc: TC_ACT_SHOT, cgroup_skb: 0) if a list
 * says so. Everything else goes on (tc: TC_ACT_UNSPEC, so that later programs run; cgroup_skb: 1).
 * Kernel: 5.10, the oldest one tested; what blocklist.h needs is not newer.
 *
 * On the host's side of a veth, ingress is what the Pod sends and egress what it receives. Bytes
 * are skb->len, what a veth's own counters add up; in cgroup_skb that is without the Ethernet
 * header. Packets are segments: one skb that the stack will split (GSO) or has merged (GRO) counts
 * as many.
 *
 * What a list drops is counted where the interface has counted it: at tc ingress, which is behind the
 * device's counters. At tc egress, which is in front of them, and at cgroup_skb it isn't.
 *
 * Exact: a tc program runs with softirqs off, so it is alone on its CPU and plain additions to
 * per-CPU counters lose nothing. A cgroup_skb program also runs in process context, where a softirq
 * that runs its counterpart can come in between: those add atomically. Each counter has one of the
 * two kinds of writer only.
 */
#include "address.h"
#include "blocklist.h"

/* 0: on tc the address of the Pod follows from the direction: the source at ingress, the
 * destination at egress. 1: whatever the direction, a source in pod_prefixes transmits and a
 * destination in pod_prefixes receives; both count when both are Pods. */
const volatile __u8 match_prefixes = 0;

/* 1: packets are judged by the lists. 0: none is. */
const volatile __u8 blocklist = 1;

struct pod_key {
	ip_addr_t address;
	__u32 ifindex;
};

struct cgroup_pod_key {
	ip_addr_t address;
	__u64 cgroup_id;
};

struct pod_counters {
	__u64 transmit_bytes;
	__u64 transmit_packets;
	__u64 receive_bytes;
	__u64 receive_packets;
};

struct prefix {
	__u32 prefixlen;
	ip_addr_t address;
};

/* What is in no Pod's entry. Transmit and receive follow from the direction. */
enum traffic_row {
	TC_NON_IP,        /* ARP and everything else that isn't IP */
	TC_TRUNCATED,     /* IP, but the header is cut short */
	TC_MAP_FULL,      /* no room for the address in pods */
	TC_NOT_A_POD,     /* with match_prefixes: neither address is a Pod's */
	CGROUP_TRUNCATED, /* neither an IPv4 nor an IPv6 header */
	CGROUP_MAP_FULL,  /* no room for the address in cgroup_pods */
	TC_TOO_DEEP,      /* more VLAN tags than the parser follows */
	TC_MULTICAST,     /* to a multicast address or 255.255.255.255 */
	TC_UNSPECIFIED,   /* from 0.0.0.0 or ::, a Pod that has no address yet */
	CGROUP_MULTICAST, /* the same two, seen at cgroup_skb */
	CGROUP_UNSPECIFIED,
	TRAFFIC_ROWS,
};

enum direction {
	TRANSMIT,
	RECEIVE,
};

static const struct pod_counters nothing;

/* Traffic per Pod address, seen at tc.
 * Key: the Pod's address and the interface it was seen on. Value: bytes and packets, per CPU.
 * Writer: the tc programs. Reader: bpfnet watch pods. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct pod_key);
	__type(value, struct pod_counters);
} pods SEC(".maps");

/* Traffic per Pod address, seen at cgroup_skb.
 * Key: the Pod's address and the cgroup of the socket. Value: bytes and packets, per CPU.
 * Writer: the cgroup_skb programs. Reader: bpfnet watch pods. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct cgroup_pod_key);
	__type(value, struct pod_counters);
} cgroup_pods SEC(".maps");

/* Which addresses are Pods, for match_prefixes.
 * Key: prefix; IPv4 mapped, its length plus 96. Value: 1. Writer: user space. Reader: the tc
 * programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} pod_prefixes SEC(".maps");

/* Traffic that is in no Pod's entry, so that nothing is lost.
 * Key: enum traffic_row. Value: bytes and packets, per CPU. Writer: all programs. Reader: bpfnet
 * watch pods. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TRAFFIC_ROWS);
	__type(key, enum traffic_row);
	__type(value, struct pod_counters);
} rows SEC(".maps");

static __always_inline __u64 segments(const struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs;

	return segments ? segments : 1;
}

static __always_inline void add(struct pod_counters *counters, enum direction direction,
                                const struct __sk_buff *skb)
{
	if (direction == TRANSMIT) {
		counters->transmit_bytes += skb->len;
		counters->transmit_packets += segments(skb);
	} else {
		counters->receive_bytes += skb->len;
		counters->receive_packets += segments(skb);
	}
}

static __always_inline void add_atomic(struct pod_counters *counters, enum direction direction,
                                       const struct __sk_buff *skb)
{
	if (direction == TRANSMIT) {
		__sync_fetch_and_add(&counters->transmit_bytes, skb->len);
		__sync_fetch_and_add(&counters->transmit_packets, segments(skb));
	} else {
		__sync_fetch_and_add(&counters->receive_bytes, skb->len);
		__sync_fetch_and_add(&counters->receive_packets, segments(skb));
	}
}

/* The entry of a key, made if it is new; NULL when there is no room. Another CPU or a softirq may
 * make it at the same time: whoever comes second finds it. */
static __always_inline struct pod_counters *entry_of(void *map, const void *key)
{
	struct pod_counters *entry = bpf_map_lookup_elem(map, key);

	if (likely(entry))
		return entry;
	bpf_map_update_elem(map, key, &nothing, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

static __always_inline struct pod_counters *row_of(enum traffic_row row)
{
	return bpf_map_lookup_elem(&rows, &row);
}

static __always_inline void add_row(enum traffic_row row, enum direction direction,
                                    const struct __sk_buff *skb)
{
	struct pod_counters *counters = row_of(row);

	if (counters)
		add(counters, direction, skb);
}

static __always_inline void add_pod(const struct pod_key *key, enum direction direction,
                                    const struct __sk_buff *skb)
{
	struct pod_counters *entry = entry_of(&pods, key);

	if (likely(entry))
		add(entry, direction, skb);
	else
		add_row(TC_MAP_FULL, direction, skb);
}

static __always_inline enum traffic_row row_for(enum parse_result result)
{
	switch (result) {
	case PARSE_NOT_IP:
		return TC_NON_IP;
	case PARSE_TOO_DEEP:
		return TC_TOO_DEEP;
	default:
		return TC_TRUNCATED;
	}
}

static __always_inline enum parse_result
parse_view(const struct packet_view *view, enum layer layer, enum end end, ip_addr_t *address)
{
	struct packet packet = {};
	enum parse_result result = parse_link(view, layer, &packet);

	return result == PARSE_OK ? parse_address(view, &packet, end, address) : result;
}

static __always_inline enum parse_result parse(struct __sk_buff *skb, enum layer layer,
                                               enum end end, ip_addr_t *address)
{
	struct packet_view linear = VIEW_LINEAR(skb);
	struct packet_view copy = VIEW_COPY(skb);
	enum parse_result result = parse_view(&linear, layer, end, address);

	if (unlikely(result == PARSE_TRUNCATED))
		result = parse_view(&copy, layer, end, address);
	return result;
}

/* Where the Pod's address is in what it sends, or receives. */
static __always_inline enum end end_of(enum direction direction)
{
	return direction == TRANSMIT ? END_SOURCE : END_DESTINATION;
}

/* Whether an address where the Pod's should be is nobody's own. */
static __always_inline _Bool is_nobody(const ip_addr_t *address, enum direction direction)
{
	return direction == TRANSMIT ? is_unspecified(address) : is_multicast(address);
}

/* Counts for the Pod that the direction points to. */
static __always_inline void count_by_direction(struct __sk_buff *skb, enum layer layer,
                                               enum direction direction)
{
	struct pod_key key = {.ifindex = skb->ifindex};
	enum parse_result result = parse(skb, layer, end_of(direction), &key.address);

	if (unlikely(result != PARSE_OK))
		add_row(row_for(result), direction, skb);
	else if (unlikely(is_nobody(&key.address, direction)))
		add_row(direction == TRANSMIT ? TC_UNSPECIFIED : TC_MULTICAST, direction, skb);
	else
		add_pod(&key, direction, skb);
}

static __always_inline _Bool is_pod(const ip_addr_t *address)
{
	struct prefix key = {.prefixlen = 128, .address = *address};

	return bpf_map_lookup_elem(&pod_prefixes, &key);
}

/* Counts for both ends, if they are Pods. */
static __always_inline void count_by_prefix(struct __sk_buff *skb, enum layer layer,
                                            enum direction direction)
{
	struct pod_key source = {.ifindex = skb->ifindex}, destination = source;
	enum parse_result result = parse(skb, layer, END_SOURCE, &source.address);
	_Bool from_pod, to_pod;

	if (unlikely(result != PARSE_OK)) {
		add_row(row_for(result), direction, skb);
		return;
	}
	parse(skb, layer, END_DESTINATION, &destination.address);
	from_pod = is_pod(&source.address);
	to_pod = is_pod(&destination.address);
	if (from_pod)
		add_pod(&source, TRANSMIT, skb);
	if (to_pod)
		add_pod(&destination, RECEIVE, skb);
	if (!from_pod && !to_pod)
		add_row(TC_NOT_A_POD, direction, skb);
}

static __always_inline void count_pods(struct __sk_buff *skb, enum layer layer,
                                       enum direction direction)
{
	if (match_prefixes)
		count_by_prefix(skb, layer, direction);
	else
		count_by_direction(skb, layer, direction);
}

static __always_inline _Bool is_listed(struct __sk_buff *skb, __u64 place)
{
	return blocklist && is_blocked(skb, place);
}

static __always_inline int sent_tc(struct __sk_buff *skb, enum layer layer)
{
	_Bool listed = is_listed(skb, layer == LAYER_IP ? PLACE_LAYER_IP : 0);

	count_pods(skb, layer, TRANSMIT);
	return listed ? TC_DROP : TC_NEXT;
}

static __always_inline int received_tc(struct __sk_buff *skb, enum layer layer)
{
	if (is_listed(skb, (layer == LAYER_IP ? PLACE_LAYER_IP : 0) | PLACE_EGRESS))
		return TC_DROP;
	count_pods(skb, layer, RECEIVE);
	return TC_NEXT;
}

static __always_inline struct pod_counters *cgroup_entry(struct __sk_buff *skb,
                                                         enum direction direction)
{
	struct cgroup_pod_key key = {.cgroup_id = bpf_skb_cgroup_id(skb)};
	struct pod_counters *entry;

	if (unlikely(parse(skb, LAYER_IP, end_of(direction), &key.address) != PARSE_OK))
		return row_of(CGROUP_TRUNCATED);
	if (unlikely(is_nobody(&key.address, direction)))
		return row_of(direction == TRANSMIT ? CGROUP_UNSPECIFIED : CGROUP_MULTICAST);
	entry = entry_of(&cgroup_pods, &key);
	return likely(entry) ? entry : row_of(CGROUP_MAP_FULL);
}

static __always_inline int count_cgroup(struct __sk_buff *skb, enum direction direction)
{
	struct pod_counters *entry;

	if (is_listed(skb,
	              PLACE_LAYER_IP | PLACE_CGROUP | (direction == TRANSMIT ? PLACE_EGRESS : 0)))
		return 0;
	entry = cgroup_entry(skb, direction);
	if (entry)
		add_atomic(entry, direction, skb);
	return 1;
}

SEC("tcx/ingress")
int pod_traffic_ingress(struct __sk_buff *skb)
{
	return sent_tc(skb, LAYER_ETHERNET);
}

SEC("tcx/egress")
int pod_traffic_egress(struct __sk_buff *skb)
{
	return received_tc(skb, LAYER_ETHERNET);
}

SEC("tcx/ingress")
int pod_traffic_ingress_l3(struct __sk_buff *skb)
{
	return sent_tc(skb, LAYER_IP);
}

SEC("tcx/egress")
int pod_traffic_egress_l3(struct __sk_buff *skb)
{
	return received_tc(skb, LAYER_IP);
}

SEC("cgroup_skb/egress")
int pod_traffic_cgroup_egress(struct __sk_buff *skb)
{
	return count_cgroup(skb, TRANSMIT);
}

SEC("cgroup_skb/ingress")
int pod_traffic_cgroup_ingress(struct __sk_buff *skb)
{
	return count_cgroup(skb, RECEIVE);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
