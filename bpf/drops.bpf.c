// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* drops: counts the packets that the kernel drops, by its reason and place, and remembers which.
 *
 * Hook: tp_btf/kfree_skb, which every packet meets that is freed without having arrived.
 * Kernel: 5.10, the oldest one tested; the reason needs 5.17, the receiving socket 6.11. What the
 * kernel has no argument for is dead code.
 *
 * Packets are those on the wire (gso_segs), bytes those from the IP header on; of what has none all
 * of the skb. Not counted: what was consumed, and what never was on a network: messages between
 * processes (AF_UNIX, netlink).
 *
 * Everything is read from pointers that the kernel may have used for something else meanwhile: of an
 * skb in a queue of TCP or UDP skb->dev, of a fragment skb->sk. An interface or a socket counts only
 * if its network namespace has a loopback interface that is in that namespace.
 *
 * Exact: counters are added to atomically. The exception is the LRU map's: an entry may be given to
 * another key while a program writes to it. A packet that is dropped by an interrupt while the program
 * runs isn't seen since Linux 6.0: the kernel counts it as missed.
 */
#include "packet.h"
#include <bpf/bpf_core_read.h>

#define AF_INET   2
#define AF_INET6  10
#define AF_PACKET 17

#define TCP_TIME_WAIT    6
#define TCP_NEW_SYN_RECV 12

#define EEXIST 17

#define DEVICE_NAME 16 /* IFNAMSIZ */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
	struct net_device *loopback_dev;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
	char name[DEVICE_NAME];
};

struct inode {
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
};

struct socket {
	struct file *file;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* Before 5.16: the pointer, in whose low bits are flags; the lowest says that it is none. */
struct sock_cgroup_data___5_10 {
	__u64 val;
};

struct sock_common {
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
	__u16 sk_protocol;
};

struct sock___5_10 {
	struct sock_cgroup_data___5_10 sk_cgrp_data;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned int len;
	int skb_iif;
	__be16 protocol;
	__u16 network_header;
	unsigned int tail;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
};

struct skb_shared_info {
	unsigned short gso_segs;
};

#pragma clang attribute pop

enum skb_drop_reason {
	SKB_CONSUMED = 1,
};

/* Where a packet was on its way. */
enum drop_way : __u8 {
	DROP_WAY_UNKNOWN,
	DROP_INGRESS, /* received by the interface */
	DROP_EGRESS,  /* on its way out */
};

/* What packets have in common that are counted together. */
struct drop_key {
	ip_addr_t source; /* zero, as the next: it isn't an IP packet */
	ip_addr_t destination;
	__u64 location;     /* address in the kernel's code */
	__u64 cgroup_id;    /* of the socket; 0: not known */
	__u32 reason;       /* of enum skb_drop_reason; 0: this kernel tells none */
	__u32 netns;        /* inode, of the interface or else of the socket; 0: not known */
	__u32 ifindex;      /* 0: not known */
	__u32 socket;       /* inode of the socket; 0: not known, or no process has it */
	__u32 socket_netns; /* inode; 0: not known */
	__u16 source_port;  /* host order; 0: none, or not known */
	__u16 destination_port;
	__u16 ethertype; /* host order; 0: not known */
	__u8 protocol;
	enum drop_way way;
};

struct drop_entry {
	__u64 packets;
	__u64 bytes;
	__u64 first; /* ns of CLOCK_BOOTTIME */
	__u64 last;
	char device[DEVICE_NAME];
};

enum drop_row {
	DROPS_MADE,    /* entries that were ever made in drop_entries, or found no room there */
	DROPS_NO_ROOM, /* packets whose reason found no room in drop_reasons */
	DROP_ROWS,
};

/* How many arguments the tracepoint has in this kernel. */
const volatile __u32 kfree_skb_args;

/* What was dropped, by reason.
 * Key: reason. Value: how much, per CPU. Writer: the program. Reader: bpfnet watch drops. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct counter);
} drop_reasons SEC(".maps");

/* What was dropped; what was dropped least lately makes room.
 * Key: struct drop_key. Value: how much, and when. Writer: the program. Reader: bpfnet watch drops. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct drop_key);
	__type(value, struct drop_entry);
} drop_entries SEC(".maps");

/* What isn't in the other maps.
 * Key: enum drop_row. Value: a number, per CPU. Writer: the program. Reader: bpfnet watch drops. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_ROWS);
	__type(key, enum drop_row);
	__type(value, __u64);
} drop_rows SEC(".maps");

void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak;

/* A packet, and what of it can be read: offsets are from the start of its buffer. */
struct dropped {
	__u64 head;
	__u32 network;
	__u32 tail;
	__u32 size; /* bytes from the IP header on */
};

static __always_inline void add_row(enum drop_row row)
{
	__u64 *count = bpf_map_lookup_elem(&drop_rows, &row);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Copies memory of the kernel's, whose size is a constant multiple of 4. Where the kernel is locked
 * down for confidentiality there is no bpf_probe_read_kernel. */
static __always_inline void copy(void *to, __u32 size, const void *from)
{
	const struct in6_addr *words;

	if (!&bpf_rdonly_cast) {
		bpf_probe_read_kernel(to, size, from);
		return;
	}
#pragma unroll
	for (__u32 i = 0; i < size / 4; i++) {
		words = bpf_rdonly_cast(from + i * 4, bpf_core_type_id_kernel(struct in6_addr));
		((__u32 *)to)[i] = words->s6_addr32[0];
	}
}

/* Reads a pointer as a number, with which the verifier lets everything be calculated. */
static __always_inline __u64 number_at(const void *pointer)
{
	__u64 number = 0;

	copy(&number, sizeof(number), pointer);
	return number;
}

/* Reads a header if the packet has all of it in one piece. */
#define read_at(packet, offset, to)                                                                \
	({                                                                                         \
		_Bool there_ = (offset) + sizeof(*(to)) <= (packet)->tail;                         \
		if (there_)                                                                        \
			copy((to), sizeof(*(to)), (void *)((packet)->head + (offset)));            \
		there_;                                                                            \
	})

/* The inode of a network namespace, 0 if it isn't one. */
static __always_inline __u32 netns_of(struct net *net)
{
	struct net_device *loopback;

	if (!net)
		return 0;
	loopback = net->loopback_dev;
	if (!loopback || loopback->nd_net.net != net)
		return 0;
	return net->ns.inum;
}

static __always_inline __u64 cgroup_of(struct sock *sk)
{
	if (bpf_core_field_exists(struct sock_cgroup_data, cgroup)) {
		return sk->sk_cgrp_data.cgroup->kn->id;
	} else {
		__u64 value = ((struct sock___5_10 *)sk)->sk_cgrp_data.val;
		__u64 id = 0;

		if (!(value & 1))
			BPF_CORE_READ_INTO(&id, (struct cgroup *)(value & ~3ULL), kn, id);
		return id;
	}
}

static __always_inline _Bool is_network(__u16 family)
{
	return family == AF_INET || family == AF_INET6 || family == AF_PACKET;
}

/* Describes the socket; false for what has none that could send or receive packets. */
static __always_inline _Bool describe_socket(struct sock *sk, struct drop_key *key)
{
	__u8 state;

	if (!sk || !is_network(sk->__sk_common.skc_family))
		return 0;
	key->socket_netns = netns_of(sk->__sk_common.skc_net.net);
	if (!key->socket_netns)
		return 0;
	state = sk->__sk_common.skc_state;
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		return 1; /* it has nothing more */
	key->cgroup_id = cgroup_of(sk);
	key->socket = sk->sk_socket->file->f_inode->i_ino;
	return 1;
}

/* Describes the interface, and returns it if the packet still has it. */
static __always_inline struct net_device *describe_interface(struct sk_buff *skb,
                                                             struct drop_key *key)
{
	struct net_device *dev = skb->dev;
	__u32 received = skb->skb_iif;

	key->netns = dev ? netns_of(dev->nd_net.net) : 0;
	if (key->netns) {
		key->ifindex = dev->ifindex;
		key->way = received == key->ifindex ? DROP_INGRESS : DROP_EGRESS;
		return dev;
	}
	key->netns = key->socket_netns;
	key->ifindex = received;
	if (received)
		key->way = DROP_INGRESS;
	return NULL;
}

static __always_inline void map_address(ip_addr_t *to, __be32 address)
{
	to->s6_addr32[2] = bpf_htonl(0xffff);
	to->s6_addr32[3] = address;
}

/* The bytes that the header says, if that many are there; it says 0 of the biggest ones. */
static __always_inline __u32 size_of(const struct dropped *packet, __u32 said)
{
	return said && said <= packet->size ? said : packet->size;
}

static __always_inline void describe_ports(const struct dropped *packet, __u32 offset,
                                           struct drop_key *key)
{
	struct port_header ports;

	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP &&
	    key->protocol != IPPROTO_SCTP && key->protocol != IPPROTO_UDPLITE)
		return;
	if (!read_at(packet, offset, &ports))
		return;
	key->source_port = bpf_ntohs(ports.source);
	key->destination_port = bpf_ntohs(ports.destination);
}

static __always_inline _Bool describe_ipv4(struct dropped *packet, struct drop_key *key)
{
	struct iphdr ip;

	if (!read_at(packet, packet->network, &ip) || ip.version != 4)
		return 0;
	map_address(&key->source, ip.saddr);
	map_address(&key->destination, ip.daddr);
	key->protocol = ip.protocol;
	packet->size = size_of(packet, bpf_ntohs(ip.tot_len));
	if (!(bpf_ntohs(ip.frag_off) & IPV4_FRAGMENT_OFFSET) && ip.ihl >= 5)
		describe_ports(packet, packet->network + ip.ihl * 4, key);
	return 1;
}

static __always_inline _Bool describe_ipv6(struct dropped *packet, struct drop_key *key)
{
	__u32 offset = packet->network + sizeof(struct ipv6hdr);
	struct ipv6_extension extension;
	struct ipv6hdr ip;

	if (!read_at(packet, packet->network, &ip) || ip.version != 6)
		return 0;
	__builtin_memcpy(&key->source, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(&key->destination, &ip.daddr, sizeof(ip.daddr));
	key->protocol = ip.nexthdr;
	if (ip.payload_len)
		packet->size = size_of(packet, sizeof(ip) + bpf_ntohs(ip.payload_len));
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (likely(!is_extension(key->protocol)))
			break;
		if (!read_at(packet, offset, &extension))
			return 1;
		if (key->protocol == IPPROTO_FRAGMENT &&
		    bpf_ntohs(extension.fragment_offset) & IPV6_FRAGMENT_OFFSET) {
			key->protocol = extension.next;
			return 1;
		}
		if (key->protocol == IPPROTO_FRAGMENT)
			offset += sizeof(extension);
		else if (key->protocol == IPPROTO_AH)
			offset += (extension.length + 2) * 4;
		else
			offset += (extension.length + 1) * 8;
		key->protocol = extension.next;
	}
	describe_ports(packet, offset, key);
	return 1;
}

/* What will be in a packet that has no header yet: the ends of its socket. */
static __always_inline void describe_ends(struct sock *sk, struct drop_key *key)
{
	__u16 family = sk->__sk_common.skc_family;

	if (family == AF_INET) {
		map_address(&key->source, sk->__sk_common.skc_rcv_saddr);
		map_address(&key->destination, sk->__sk_common.skc_daddr);
	} else if (family == AF_INET6) {
		key->source = sk->__sk_common.skc_v6_rcv_saddr;
		key->destination = sk->__sk_common.skc_v6_daddr;
	} else {
		return;
	}
	key->protocol = sk->sk_protocol;
	key->source_port = sk->__sk_common.skc_num;
	key->destination_port = bpf_ntohs(sk->__sk_common.skc_dport);
}

/* The size of the packet. */
static __always_inline __u32 describe_packet(struct sk_buff *skb, struct sock *sk,
                                             struct drop_key *key)
{
	struct dropped packet = {
		.head = number_at(&skb->head),
		.network = skb->network_header,
		.tail = skb->tail,
	};

	packet.size = skb->len + (number_at(&skb->data) - packet.head) - packet.network;
	key->ethertype = bpf_ntohs(skb->protocol);
	if (key->ethertype == ETH_P_IP && describe_ipv4(&packet, key))
		return packet.size;
	if (key->ethertype == ETH_P_IPV6 && describe_ipv6(&packet, key))
		return packet.size;
	if (!key->ethertype && sk)
		describe_ends(sk, key);
	return skb->len;
}

static __always_inline __u32 packets_of(struct sk_buff *skb)
{
	__u32 at = bpf_core_field_offset(struct skb_shared_info, gso_segs);
	__u32 segments[1];

	/* Read with the half word beside it: what is copied is in units of 4 bytes. */
	copy(segments, sizeof(segments), (void *)(number_at(&skb->head) + skb->end + (at & ~3)));
	segments[0] = at & 2 ? segments[0] >> 16 : segments[0] & 0xffff;
	return segments[0] ? segments[0] : 1;
}

static __always_inline void count_reason(__u32 reason, __u32 packets, __u32 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&drop_reasons, &reason);
	static const struct counter none;

	if (!counter) {
		bpf_map_update_elem(&drop_reasons, &reason, &none, BPF_NOEXIST);
		counter = bpf_map_lookup_elem(&drop_reasons, &reason);
	}
	if (!counter) {
		add_row(DROPS_NO_ROOM);
		return;
	}
	__sync_fetch_and_add(&counter->packets, packets);
	__sync_fetch_and_add(&counter->bytes, bytes);
}

/* The entry of a key, made if it is new; NULL when there is none at once again. Kernels older than
 * 6.4 return an int from a map's function, whose sign isn't extended where the verifier calls it
 * directly. */
static __always_inline struct drop_entry *find_entry(const struct drop_key *key,
                                                     const struct net_device *dev, __u64 now)
{
	struct drop_entry *entry = bpf_map_lookup_elem(&drop_entries, key);
	struct drop_entry fresh = {.first = now};

	if (entry)
		return entry;
	if (dev)
		copy(fresh.device, sizeof(fresh.device), dev->name);
	if ((int)bpf_map_update_elem(&drop_entries, key, &fresh, BPF_NOEXIST) != -EEXIST)
		add_row(DROPS_MADE);
	return bpf_map_lookup_elem(&drop_entries, key);
}

static __always_inline void count_entry(const struct drop_key *key, const struct net_device *dev,
                                        __u32 packets, __u32 bytes)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct drop_entry *entry = find_entry(key, dev, now);

	if (!entry)
		return;
	__sync_fetch_and_add(&entry->packets, packets);
	__sync_fetch_and_add(&entry->bytes, bytes);
	entry->last = now;
}

SEC("tp_btf/kfree_skb")
int drops_kfree_skb(__u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[0];
	struct drop_key key = {.location = ctx[1]};
	struct net_device *dev;
	struct sock *sk = NULL;
	__u32 packets, bytes;
	_Bool owned;

	if (kfree_skb_args > 2)
		key.reason = ctx[2];
	if (kfree_skb_args > 2 && bpf_core_enum_value_exists(enum skb_drop_reason, SKB_CONSUMED) &&
	    key.reason == bpf_core_enum_value(enum skb_drop_reason, SKB_CONSUMED))
		return 0;
	if (kfree_skb_args > 3)
		sk = (struct sock *)ctx[3];
	if (!sk)
		sk = skb->sk;
	owned = describe_socket(sk, &key);
	dev = describe_interface(skb, &key);
	if (!owned && !key.ifindex && !skb->protocol)
		return 0;
	bytes = describe_packet(skb, owned ? sk : NULL, &key);
	packets = packets_of(skb);
	count_reason(key.reason, packets, bytes);
	count_entry(&key, dev, packets, bytes);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
