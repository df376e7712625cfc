/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What flows.bpf.c and flows_kprobe.bpf.c have in common: what they keep and tell user space, and all
 * but how they learn of calls, where they keep what belongs to a socket, and how they take what only
 * one may have. Who includes it defines READ and READ_INTO, which take a field out of an object of
 * the kernel, and the functions that are declared here. */
#ifndef BPFNET_FLOWS_H
#define BPFNET_FLOWS_H

#include "kernel.h"

#define USES         4
#define FIRST        (USES + 1) /* a use that is in flow_first */
#define CLOSED_FLOWS 16384
#define OPENED_FLOWS 8192
#define FLOW_PEERS   65536
#define TALKING      4096
#define WALKS        1024
#define SETTLED      2 /* a state is stored a moment after its hook */

/* What one process moved through a socket. Programs only add. */
struct flow_use {
	__u64 key;   /* of the process; 0: free. In the last one of a socket: those with no other */
	__u64 start; /* of the thread group leader, ns of CLOCK_BOOTTIME */
	__u64 transmit_bytes;
	__u64 receive_bytes;
	__u64 transmit_calls;
	__u64 receive_calls;
	__u64 cgroup_id;
	__u32 pid;
	__u32 uid;
	char command[16]; /* of the leader */
};

/* Who has closed a TCP connection, or the first who did. */
enum flow_ending : __u8 {
	ENDING_NONE,
	ENDING_LOCAL,    /* sent the first FIN */
	ENDING_PEER,     /* sent the first FIN */
	ENDING_ABORTED,  /* reset or given up */
	ENDING_REFUSED,  /* never opened */
	ENDING_GIVEN_UP, /* by its process, before it was open */
};

enum flow_flag : __u8 {
	FLOW_INWARD = 1,  /* the peer opened it */
	FLOW_EXISTED = 2, /* before counting began */
	FLOW_SUPPOSED =
		4, /* the first use is of who has it open, or its listener, and may never use it */
	FLOW_REST = 8,    /* the use is of several processes (only in records) */
	FLOW_ENDED = 32,  /* it was told, but the kernel hasn't let go of it */
	FLOW_UNREAD = 16, /* TCP: it had received nothing yet; its position isn't known before */
	FLOW_UNTOLD = 64, /* the kernel's own counters aren't known (only in records) */
	FLOW_FIN = 128,   /* TCP: the connection ended after its processes had closed it */
};

/* With whom a thread's call talks. */
struct flow_talk {
	__u64 cookie; /* of the socket; 0: with nobody. Not in one that is kept with the socket */
	ip_addr_t peer;
	__be16 port;
	__u8 pad[6];
};

/* Programs only add. */
struct flow_peer {
	__u64 transmit_bytes;
	__u64 receive_bytes;
	__u64 transmit_calls;
	__u64 receive_calls;
};

/* What a process moves with the first peer that a socket talks with which isn't connected, so that
 * who has no other one needs no search for it. Not in the process's flow_use. */
struct flow_first {
	__u64 key; /* as in flow_use; 0: nobody yet, NOBODY: nobody any more */
	struct flow_peer moved;
	ip_addr_t peer;
	__be16 port;
	__u8 known; /* the peer is */
	__u8 pad[5];
};

#define NOBODY (~0ULL)

/* A socket. What each call needs is at the beginning. */
struct flow_socket {
	__u64 cookie; /* 0, or another socket's: this one hasn't been met yet */
	__u64 opened; /* ns of CLOCK_BOOTTIME; of TCP: when it was begun to connect */
	__u64 ended;  /* TCP: the connection, 0: it hasn't; processes may still have the socket */
	ip_addr_t local; /* of TCP: when it was connected */
	ip_addr_t peer;
	__u32 netns;
	__u32 position; /* TCP: sequence number up to which reads are counted */
	__u16 local_port;
	__be16 peer_port;
	__u16 family;
	__u16 protocol;
	__u32 error; /* errno that the connection ended with */
	__u16 type;
	__u8 flags;
	enum flow_ending ending;
	__u8 from; /* TCP: the change of state that was seen last */
	__u8 to;
	__u8 pad[6];
	__u32 talker;  /* the thread that talk is of; 0: none */
	__u32 crowded; /* not 0: a thread found the place taken, and flow_talks has its talk */
	struct flow_use uses[USES + 1];
	struct flow_talk talk;
	struct flow_first first;
	/* What it was when a walk passed last, as sums: what it is, and what only counts. And the
	 * walks by whose numbers either has changed. */
	__u64 seen;
	__u64 seen_counts;
	__u64 changed;
	__u64 changed_counts; /* that, too */
	__u64 seen_uses;
	__u32 settled; /* walks that found it so, up to SETTLED: its uses tell whether it has changed */
	__u8 pad2[4];
};

enum flow_event : __u8 {
	EVENT_NONE, /* it is open */
	EVENT_OPENED,
	EVENT_CLOSED,
	EVENT_FAILED, /* to open */
};

/* A use of a socket, as it is told to user space. */
struct flow_record {
	__u64 sequence; /* in a log: from 1 on, 0 while it is written */
	__u64 cookie;
	__u64 opened;
	__u64 time; /* of the event; of a TCP connection that was closed: of its end */
	struct flow_use use;
	__u64 transmitted; /* TCP: what the kernel took from callers, by its own counters */
	__u64 received;    /* and what it gave to them */
	ip_addr_t local;
	ip_addr_t peer;
	__u32 netns;
	__u32 srtt_us;
	__u32 min_rtt_us;
	__u32 retransmits;
	__u32 error;
	__u16 local_port;
	__be16 peer_port;
	__u16 family;
	__u16 protocol;
	__u8 state;
	__u8 owners;
	enum flow_flag flags;
	enum flow_ending ending;
	enum flow_event event;
	__u8 first;   /* the use is what was moved with the first peer alone */
	__u16 type;   /* SOCK_STREAM, SOCK_DGRAM, SOCK_RAW */
	__u32 number; /* in flows_dump: of those of the socket, from 0 on */
};

/* What counts in a use of a socket, as it is told to who knows the rest. */
struct flow_change {
	__u64 cookie; /* where a flow_record has 0 */
	__u64 transmit_bytes;
	__u64 receive_bytes;
	__u64 transmit_calls;
	__u64 receive_calls;
	__u64 transmitted;
	__u64 received;
	__u32 srtt_us;
	__u32 min_rtt_us;
	__u32 retransmits;
	__u32 number; /* as in flow_record */
};

/* What a process moves through a socket that isn't connected. */
struct flow_peer_key {
	__u64 cookie;
	__u64 opened;  /* of the socket */
	__u64 process; /* as in flow_use; 0: those with no other */
	ip_addr_t peer;
	__be16 port;
	__u8 pad[6];
};

/* What is known of all. */
struct flow_sums {
	__u64 began;   /* ns of CLOCK_BOOTTIME */
	__u64 closed;  /* records in closed_flows, ever */
	__u64 opened;  /* records in opened_flows, ever */
	__u64 no_room; /* sockets for which there was no memory */
	__u64 no_room_bytes;
	__u64 walks;  /* of flows_dump, ever */
	__u64 missed; /* returns of calls that no program saw, as far as it was noticed */
};

/* A walk of flows_dump. */
struct flow_walk {
	__u64 number; /* of all walks, as far as the reader knows */
	__u64 since;  /* it leaves out sockets that haven't changed since the walk of this number */
};

enum flow_log {
	LOG_CLOSED,
	LOG_OPENED,
};

static struct tcp_sock *tcp_of(struct sock *sk);
static struct task_struct *current_task(void);

/* Supposes who will use a connection that comes in, if nobody has. */
static void suppose(struct sock *sk, struct flow_socket *socket);

/* What is known of a socket, if anything is. */
static struct flow_socket *find(struct sock *sk);
static void forget(struct sock *sk);

/* Sets what is 0. */
static void set_once(__u64 *to, __u64 value);

/* Takes the next number of a log; nobody else has it. Evaluates to 0 if it can't. */
static _Bool take_number(__u64 *count, enum flow_log log, __u64 *number);

/* Takes a place that a socket has for processes. Evaluates to the key of the process that has it, 0 if
 * nobody had. */
static __u64 take_place(struct sock *sk, __u64 *place, __u32 number, __u64 key);

/* What sockets had that were closed, a ring.
 * Key: sequence modulo size. Value: see the struct. Writer: flows_destroy, flows_release. Reader:
 * bpfnet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CLOSED_FLOWS);
	__type(key, __u32);
	__type(value, struct flow_record);
} closed_flows SEC(".maps");

/* Connections that were opened, or couldn't be, a ring.
 * Key: sequence modulo size. Value: see the struct. Writer: flows_state. Reader: bpfnet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OPENED_FLOWS);
	__type(key, __u32);
	__type(value, struct flow_record);
} opened_flows SEC(".maps");

/* Peers of sockets that aren't connected, but for the first one. What an entry had that made room
 * stays in the counters of its socket.
 * Key, value: see the structs. Writer: those that count. Reader: bpfnet. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOW_PEERS);
	__type(key, struct flow_peer_key);
	__type(value, struct flow_peer);
} flow_peers SEC(".maps");

/* Key: 0. Value: see the struct. Writer: all programs. Reader: bpfnet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_sums);
} flow_totals SEC(".maps");

/* Walks that leave something out.
 * Key: thread that reads. Value: see the struct. Writer: bpfnet, for its own walks. Reader:
 * flows_dump. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, WALKS);
	__type(key, __u64);
	__type(value, struct flow_walk);
} flow_walks SEC(".maps");

/* Only what this process, those of this cgroup and below it, sockets of this port or protocol move
 * is counted; 0: all. */
const volatile __u32 pid;
const volatile __u64 cgroup_id;
const volatile __u32 cgroup_level; /* of cgroup_id below the root */
const volatile __u16 port;
const volatile __u16 protocol;

static __always_inline struct flow_sums *totals(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&flow_totals, &zero);
}

static __always_inline __u32 size_of(void *map)
{
	return ((struct bpf_map *)map)->max_entries;
}

static __always_inline _Bool is_filtered(void)
{
	return pid || cgroup_id;
}

/* Whether what the current task does is counted. */
static __always_inline _Bool counts_task(void)
{
	if (pid && bpf_get_current_pid_tgid() >> 32 != pid)
		return 0;
	return !cgroup_id || bpf_get_current_ancestor_cgroup_id(cgroup_level) == cgroup_id;
}

/* A raw socket may have the protocol's number, too. */
static __always_inline _Bool is_tcp(struct sock *sk)
{
	return READ(sk, sk_protocol) == IPPROTO_TCP && READ(sk, sk_type) == SOCK_STREAM;
}

static __always_inline __u16 local_port_of(struct sock *sk)
{
	struct tcp_sock *tcp;

	if (READ(sk, __sk_common.skc_num) || !is_tcp(sk))
		return READ(sk, __sk_common.skc_num);
	tcp = tcp_of(sk); /* skc_num is 0 before and after */
	if (!tcp)
		return 0;
	return bpf_ntohs(READ(tcp, inet_conn.icsk_inet.inet_sport));
}

/* Whether what a socket moves is counted. */
static __always_inline _Bool counts_socket(struct sock *sk)
{
	__u16 family = READ(sk, __sk_common.skc_family);

	if (family != AF_INET && family != AF_INET6)
		return 0;
	return !protocol || READ(sk, sk_protocol) == protocol;
}

static __always_inline _Bool counts_ports(struct sock *sk)
{
	return !port || bpf_ntohs(READ(sk, __sk_common.skc_dport)) == port ||
	       local_port_of(sk) == port;
}

static __always_inline void map_address(ip_addr_t *to, __be32 address)
{
	to->in6_u.u6_addr32[0] = 0;
	to->in6_u.u6_addr32[1] = 0;
	to->in6_u.u6_addr32[2] = bpf_htonl(0xffff);
	to->in6_u.u6_addr32[3] = address;
}

static __always_inline void read_addresses(struct sock *sk, ip_addr_t *local, ip_addr_t *peer)
{
	if (READ(sk, __sk_common.skc_family) == AF_INET) {
		map_address(local, READ(sk, __sk_common.skc_rcv_saddr));
		map_address(peer, READ(sk, __sk_common.skc_daddr));
		return;
	}
	READ_INTO(local, sk, __sk_common.skc_v6_rcv_saddr);
	READ_INTO(peer, sk, __sk_common.skc_v6_daddr);
}

/* Where reading has got to. A FIN takes a sequence number that nobody reads, which splice passes
 * over with the data in front of it. */
static __always_inline __u32 read_position(struct sock *sk, struct tcp_sock *tcp)
{
	__u32 position = READ(tcp, copied_seq);

	if (READ(sk, __sk_common.skc_flags) >> bpf_core_enum_value(enum sock_flags, SOCK_DONE) &
	            1 &&
	    position == READ(tcp, rcv_nxt))
		position--;
	return position;
}

/* Where reading began. */
static __always_inline __u32 first_position(struct tcp_sock *tcp)
{
	return READ(tcp, rcv_nxt) - (__u32)READ(tcp, bytes_received);
}

/* Whether the kernel's own counters of a socket are those of what its callers move: not of one that
 * TLS or MPTCP moves more through, and of one that was disconnected they are gone. */
static __always_inline _Bool is_comparable(struct sock *sk, struct tcp_sock *tcp)
{
	return READ(sk, __sk_common.skc_dport) && !READ(tcp, inet_conn.icsk_ulp_ops);
}

/* Whether a FIN waits, or has been sent and not acknowledged. */
static __always_inline _Bool has_fin(int state)
{
	return state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_LAST_ACK || state == BPF_TCP_CLOSING;
}

/* What the kernel knows of a TCP socket. Unsent data is what is written and not sent yet, less a
 * FIN that waits behind it. */
static __always_inline void read_tcp(struct sock *sk, struct flow_record *record)
{
	struct tcp_sock *tcp = tcp_of(sk);
	__u32 unsent;

	if (!tcp)
		return;
	if (!is_comparable(sk, tcp))
		record->flags |= FLOW_UNTOLD;
	unsent = READ(tcp, write_seq) - READ(tcp, snd_nxt);
	if (unsent && (record->flags & FLOW_FIN || has_fin(record->state)))
		unsent--;
	record->transmitted = READ(tcp, bytes_sent) - READ(tcp, bytes_retrans) + unsent;
	record->received =
		READ(tcp, bytes_received) - (__u32)(READ(tcp, rcv_nxt) - read_position(sk, tcp));
	record->srtt_us = READ(tcp, srtt_us) >> 3;
	record->min_rtt_us = READ(tcp, rtt_min.s[0].v);
	record->retransmits = READ(tcp, total_retrans);
}

static __always_inline _Bool has_first(const struct flow_socket *socket)
{
	return socket->first.moved.transmit_calls || socket->first.moved.receive_calls;
}

/* Whether a use is told: that of a supposed owner only if nobody else has used the socket, and that
 * of all others if there was any; that of a process with the first peer by itself. A connection
 * that nobody has used is told when it has ended. */
static __always_inline _Bool is_told(const struct flow_socket *socket, __u32 i)
{
	const struct flow_use *use = &socket->uses[i];
	_Bool moved;

	if (i == FIRST)
		return has_first(socket);
	moved = use->transmit_calls || use->receive_bytes || use->receive_calls;
	if (i == USES || moved)
		return moved;
	if (!use->key)
		return !i && socket->ended;
	if (use->key == socket->first.key && has_first(socket))
		return 0;
	return i || !(socket->flags & FLOW_SUPPOSED) || !socket->uses[1].key;
}

/* What is the same in all records of a socket. */
static __always_inline void read_socket(const struct flow_socket *socket,
                                        struct flow_record *record)
{
	record->cookie = socket->cookie;
	record->opened = socket->opened;
	record->netns = socket->netns;
	record->family = socket->family;
	record->protocol = socket->protocol;
	record->type = socket->type;
	record->flags = socket->flags;
	record->ending = socket->ending;
	record->error = socket->error;
	record->owners = 0;
	for (__u32 i = 0; i < USES; i++) {
		if (!socket->uses[i].key)
			break; /* they are taken in their order */
		record->owners += is_told(socket, i) || socket->uses[i].key == socket->first.key;
	}
}

/* Adds a use; what is the same in all records is there, and with whom all of them talk. */
static __always_inline void describe_use(const struct flow_socket *socket, __u32 i,
                                         struct flow_record *record)
{
	if (i != FIRST) {
		record->use = socket->uses[i];
		if (i == USES)
			record->flags |= FLOW_REST;
		return;
	}
	for (__u32 j = 0; j < USES; j++)
		if (socket->uses[j].key == socket->first.key)
			record->use = socket->uses[j];
	record->flags &= ~FLOW_REST;
	record->first = 1;
	record->peer = socket->first.peer;
	record->peer_port = socket->first.port;
	record->use.transmit_bytes = socket->first.moved.transmit_bytes;
	record->use.receive_bytes = socket->first.moved.receive_bytes;
	record->use.transmit_calls = socket->first.moved.transmit_calls;
	record->use.receive_calls = socket->first.moved.receive_calls;
}

static __always_inline void read_addresses_of(struct sock *sk, const struct flow_socket *socket,
                                              struct flow_record *record)
{
	__u32 port = READ(sk, __sk_common.skc_dport);

	/* Not in one instruction with that of socket, whose type is another one. */
	asm volatile("" : "+r"(port));
	record->state = READ(sk, __sk_common.skc_state);
	if (is_tcp(sk) && !port) {
		record->local = socket->local;
		record->peer = socket->peer;
		record->local_port = socket->local_port;
		record->peer_port = socket->peer_port;
		return;
	}
	read_addresses(sk, &record->local, &record->peer);
	record->local_port = local_port_of(sk);
	record->peer_port = port;
}

/* What a socket is and has; sk is NULL where it can't be read. */
static __always_inline void describe_socket(struct sock *sk, const struct flow_socket *socket,
                                            struct flow_record *record)
{
	read_socket(socket, record);
	if (sk) {
		read_addresses_of(sk, socket, record);
		read_tcp(sk, record);
		return;
	}
	record->flags |= FLOW_UNTOLD;
	if (socket->protocol == IPPROTO_TCP && socket->type == SOCK_STREAM)
		record->state = BPF_TCP_CLOSE;
	record->local = socket->local;
	record->peer = socket->peer;
	record->local_port = socket->local_port;
	record->peer_port = socket->peer_port;
}

/* The place for the next record of a ring; nobody reads it before it is written. */
static __always_inline struct flow_record *begin_record(void *ring, __u64 number)
{
	__u32 slot = number % size_of(ring);
	struct flow_record *record = bpf_map_lookup_elem(ring, &slot);

	if (!record)
		return NULL;
	record->sequence = 0;
	barrier();
	__builtin_memset((void *)record + sizeof(record->sequence), 0,
	                 sizeof(*record) - sizeof(record->sequence));
	record->time = bpf_ktime_get_boot_ns();
	return record;
}

static __always_inline void end_record(struct flow_record *record, __u64 number)
{
	barrier();
	record->sequence = number + 1;
}

/* What is lost for want of room. */
static __always_inline void lose(__u64 bytes)
{
	struct flow_sums *all = totals();

	if (!all)
		return;
	/* Adding 0 would become an operation that isn't known before 5.12. */
	asm volatile("" : "+r"(bytes));
	__sync_fetch_and_add(&all->no_room, 1);
	__sync_fetch_and_add(&all->no_room_bytes, bytes);
}

/* Appends the uses of a socket that has ended. */
static __always_inline void log_closed(struct sock *sk, const struct flow_socket *socket)
{
	struct flow_sums *all = totals();
	struct flow_record *record;
	__u64 number;

	if (!all)
		return;
	for (__u32 i = 0; i <= FIRST; i++) {
		if (!is_told(socket, i))
			continue;
		if (!take_number(&all->closed, LOG_CLOSED, &number)) {
			lose(socket->uses[i].transmit_bytes + socket->uses[i].receive_bytes);
			continue;
		}
		record = begin_record(&closed_flows, number);
		if (!record)
			continue;
		describe_socket(sk, socket, record);
		record->event = EVENT_CLOSED;
		if (socket->ended)
			record->time = socket->ended;
		describe_use(socket, i, record);
		end_record(record, number);
	}
}

/* Ends what a socket was used for so far, and begins anew: it was connected to another peer. */
static __noinline void restart(struct sock *sk, struct flow_socket *socket)
{
	log_closed(NULL, socket);
	for (int i = 0; i <= USES; i++) {
		socket->uses[i].transmit_bytes = 0;
		socket->uses[i].receive_bytes = 0;
		socket->uses[i].transmit_calls = 0;
		socket->uses[i].receive_calls = 0;
	}
	socket->first.key = NOBODY;
	socket->first.moved.transmit_bytes = 0;
	socket->first.moved.receive_bytes = 0;
	socket->first.moved.transmit_calls = 0;
	socket->first.moved.receive_calls = 0;
	socket->opened = bpf_ktime_get_boot_ns();
	socket->ended = 0;
	socket->flags = is_tcp(sk) ? FLOW_UNREAD : 0;
	socket->ending = ENDING_NONE;
	socket->error = 0;
}

static __always_inline _Bool is_same(const ip_addr_t *a, const ip_addr_t *b)
{
	return a->in6_u.u6_addr32[3] == b->in6_u.u6_addr32[3] &&
	       a->in6_u.u6_addr32[2] == b->in6_u.u6_addr32[2] &&
	       a->in6_u.u6_addr32[1] == b->in6_u.u6_addr32[1] &&
	       a->in6_u.u6_addr32[0] == b->in6_u.u6_addr32[0];
}

static __always_inline _Bool was_used(const struct flow_socket *socket)
{
	return socket->uses[0].transmit_calls || socket->uses[0].receive_calls ||
	       socket->uses[1].transmit_calls || socket->uses[1].receive_calls || has_first(socket);
}

/* What is remembered of sockets: when they end their addresses can't be read, and who closes a
 * connection by force takes the peer away first. */
static __always_inline void store_addresses(struct sock *sk, struct flow_socket *socket)
{
	read_addresses(sk, &socket->local, &socket->peer);
	socket->local_port = local_port_of(sk);
	socket->peer_port = READ(sk, __sk_common.skc_dport);
}

static __noinline void remember_addresses(struct sock *sk, struct flow_socket *socket)
{
	ip_addr_t local, peer;

	read_addresses(sk, &local, &peer);
	if (unlikely(was_used(socket) && (READ(sk, __sk_common.skc_dport) != socket->peer_port ||
	                                  !is_same(&peer, &socket->peer))))
		restart(sk, socket);
	store_addresses(sk, socket);
}

/* Whether they are still the ones that are remembered; not for TCP. */
static __always_inline _Bool has_addresses(struct sock *sk, const struct flow_socket *socket)
{
	ip_addr_t local, peer;

	if (socket->peer_port != READ(sk, __sk_common.skc_dport) ||
	    socket->local_port != READ(sk, __sk_common.skc_num))
		return 0;
	if (READ(sk, __sk_common.skc_family) == AF_INET)
		return socket->peer.in6_u.u6_addr32[3] == READ(sk, __sk_common.skc_daddr) &&
		       socket->local.in6_u.u6_addr32[3] == READ(sk, __sk_common.skc_rcv_saddr);
	read_addresses(sk, &local, &peer);
	return is_same(&socket->peer, &peer) && is_same(&socket->local, &local);
}

/* Makes a socket known that was met for the first time. A new one that TCP made of a listener has
 * a copy of what that had: its process, as far as it is known, and nothing moved. */
static __noinline void begin(struct sock *sk, struct flow_socket *socket, __u64 cookie, __u8 flags)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	struct tcp_sock *tcp;

	if (socket->cookie) {
		flags |= FLOW_SUPPOSED | FLOW_INWARD;
		socket->opened = bpf_ktime_get_boot_ns();
	} else { /* two threads may do so at the same time, and flow_peers has it in its keys */
		set_once(&socket->opened, bpf_ktime_get_boot_ns());
	}
	socket->ended = 0;
	socket->from = socket->to = 0;
	socket->netns = READ(net, ns.inum);
	socket->family = READ(sk, __sk_common.skc_family);
	socket->protocol = READ(sk, sk_protocol);
	socket->type = READ(sk, sk_type);
	socket->flags = flags;
	socket->settled = 0;
	if (is_tcp(sk)) {
		tcp = tcp_of(sk);
		/* From its first byte on, or from here on where others may have read some. */
		if (tcp && !READ(tcp, bytes_received))
			socket->flags |= FLOW_UNREAD;
		else if (tcp && (flags & FLOW_EXISTED || is_filtered()))
			socket->position = read_position(sk, tcp);
		else if (tcp)
			socket->position = first_position(tcp);
	} else {
		store_addresses(sk, socket);
	}
	socket->cookie = cookie;
}

/* What is kept with a socket, made now if nothing was; NULL: there is no room. */
static struct flow_socket *make(struct sock *sk);

/* What tells a socket from all others, and whether it is the one that something is kept with. */
static __u64 cookie_of(struct sock *sk);
static _Bool is_kept(struct sock *sk, const struct flow_socket *socket);

/* Evaluates to NULL where there is no room for a socket that wasn't met before; what it moves is
 * lost then. TCP's reads aren't: the next one tells them, too. */
static __always_inline struct flow_socket *meet(struct sock *sk, struct flow_socket *socket,
                                                __u8 flags, __u32 moves)
{
	if (!socket)
		socket = make(sk);
	if (!socket) {
		lose(moves);
		return NULL;
	}
	if (unlikely(!is_kept(sk, socket)))
		begin(sk, socket, cookie_of(sk), flags);
	return socket;
}

/* Processes of one pid don't start within 2^20 ns, and a pid has at most 22 bits. */
static __always_inline __u64 process_key(__u32 tgid, __u64 start)
{
	return (__u64)tgid << 42 | (start >> 20 & ((1ULL << 42) - 1));
}

static __always_inline void describe(struct flow_use *use, struct task_struct *leader, __u64 start)
{
	const struct cred *cred = READ(leader, cred);
	struct css_set *cgroups = READ(leader, cgroups);
	struct cgroup *cgroup = READ(cgroups, dfl_cgrp);
	struct kernfs_node *node = READ(cgroup, kn);

	use->start = start;
	use->pid = READ(leader, tgid);
	use->uid = READ(cred, euid.val);
	use->cgroup_id = READ(node, id);
	READ_INTO(&use->command, leader, comm);
}

/* The counters of a process in a socket that aren't the first. */
static __noinline struct flow_use *find_use(struct sock *sk, struct flow_socket *socket,
                                            struct task_struct *leader, __u64 key)
{
	__u64 holder;

#pragma unroll
	for (int i = 0; i < USES; i++) {
		struct flow_use *use = &socket->uses[i];

		holder = use->key;
		if (!holder) {
			holder = take_place(sk, &use->key, i, key);
			if (!holder) {
				describe(use, leader, READ(leader, start_boottime));
				use->key = key;
				return use;
			}
		}
		if (holder == key)
			return use;
	}
	return &socket->uses[USES];
}

/* The counters of a process in a socket. */
static __always_inline struct flow_use *use_of(struct sock *sk, struct flow_socket *socket,
                                               struct task_struct *task)
{
	struct task_struct *leader = READ(task, group_leader);
	__u64 key = process_key(READ(task, tgid), READ(leader, start_boottime));

	if (likely(socket->uses[0].key == key))
		return &socket->uses[0];
	return find_use(sk, socket, leader, key);
}

static __always_inline struct flow_use *current_use(struct sock *sk, struct flow_socket *socket)
{
	return use_of(sk, socket, current_task());
}

static __always_inline _Bool is_datagram(struct sock *sk)
{
	__u16 number = READ(sk, sk_protocol);

	return number == IPPROTO_UDP || number == IPPROTO_UDPLITE;
}

/* The counters of a peer that isn't the first. */
static __noinline struct flow_peer *find_peer(const struct flow_socket *socket,
                                              const struct flow_use *use,
                                              const struct flow_talk *with)
{
	struct flow_peer_key key = {};
	struct flow_peer *peer, none = {};

	key.cookie = socket->cookie;
	key.opened = socket->opened;
	key.process = use->key;
	key.peer = with->peer;
	key.port = with->port;
	peer = bpf_map_lookup_elem(&flow_peers, &key);
	if (peer)
		return peer;
	bpf_map_update_elem(&flow_peers, &key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&flow_peers, &key);
}

/* Whether a process talks with the first peer, and nobody else had. */
static __always_inline _Bool is_first(struct sock *sk, struct flow_socket *socket,
                                      const struct flow_use *use, const struct flow_talk *with)
{
	__u64 key = use->key;

	if (with->port != socket->first.port || !is_same(&with->peer, &socket->first.peer))
		return 0;
	if (likely(socket->first.key == key))
		return key;
	return key && !socket->first.key && !take_place(sk, &socket->first.key, FIRST, key);
}

static __always_inline void add(struct flow_peer *to, int length, _Bool sent)
{
	__sync_fetch_and_add(sent ? &to->transmit_bytes : &to->receive_bytes, length);
	__sync_fetch_and_add(sent ? &to->transmit_calls : &to->receive_calls, 1);
}

/* The counters of a use are those of a peer. */
static __always_inline struct flow_peer *counters_of(struct flow_use *use)
{
	return (struct flow_peer *)&use->transmit_bytes;
}

/* Counts for the process, and the peer if it isn't the one that the socket is connected to. */
static __always_inline void count_talk(struct sock *sk, struct flow_socket *socket,
                                       struct flow_use *use, const struct flow_talk *with,
                                       int length, _Bool sent)
{
	struct flow_peer *peer;

	if (with && !(with->port == socket->peer_port && is_same(&with->peer, &socket->peer))) {
		if (likely(is_first(sk, socket, use, with))) {
			add(&socket->first.moved, length, sent);
			return;
		}
		peer = find_peer(socket, use, with);
		if (peer)
			add(peer, length, sent);
	}
	add(counters_of(use), length, sent);
}

/* Moves the position on; evaluates to by how much. The socket is locked. */
static __always_inline __s32 read_on(struct sock *sk, struct tcp_sock *tcp,
                                     struct flow_socket *socket)
{
	__u32 from = socket->position, to = read_position(sk, tcp);

	if (socket->flags & FLOW_UNREAD) {
		socket->flags &= ~FLOW_UNREAD;
		from = first_position(tcp);
	}
	socket->position = to;
	return to - from;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(flows_read, struct sock *sk)
{
	struct tcp_sock *tcp = tcp_of(sk);
	struct flow_socket *socket;
	__s32 grown;

	if (!tcp || !counts_socket(sk) || !counts_ports(sk))
		return 0;
	if (!counts_task()) {
		/* What others read isn't what the next reader reads. */
		socket = find(sk);
		if (socket)
			read_on(sk, tcp, socket);
		return 0;
	}
	socket = meet(sk, NULL, 0, 0);
	grown = socket ? read_on(sk, tcp, socket) : 0;
	if (grown <= 0)
		return 0;
	current_use(sk, socket)->receive_bytes +=
		grown; /* nobody else does: the socket is locked */
	return 0;
}

/* Appends that a connection was opened, or couldn't be. */
static __noinline void log_opened(struct sock *sk, const struct flow_socket *socket,
                                  enum flow_event event)
{
	struct flow_sums *all = totals();
	struct flow_record *record;
	__u64 number;

	if (!all)
		return;
	if (!take_number(&all->opened, LOG_OPENED, &number)) {
		lose(0);
		return;
	}
	record = begin_record(&opened_flows, number);
	if (!record)
		return;
	describe_socket(sk, socket, record);
	record->event = event;
	if (event == EVENT_OPENED)
		record->state = BPF_TCP_ESTABLISHED; /* in a moment */
	record->use = socket->uses[0];
	end_record(record, number);
}

static __always_inline void end(struct sock *sk, struct flow_socket *socket, int from)
{
	switch (from) {
	case BPF_TCP_SYN_SENT:
		socket->ending = READ(sk, sk_shutdown) ? ENDING_GIVEN_UP : ENDING_REFUSED;
		break;
	case BPF_TCP_SYN_RECV:
	case BPF_TCP_ESTABLISHED:
	case BPF_TCP_CLOSE_WAIT:
		socket->ending = ENDING_ABORTED;
		break;
	}
	if (has_fin(from))
		socket->flags |= FLOW_FIN;
	socket->ended = bpf_ktime_get_boot_ns();
	socket->error = READ(sk, sk_err); /* who has it open takes it away by asking for it */
	if (socket->error && from != BPF_TCP_SYN_SENT)
		socket->ending = ENDING_ABORTED;
}

/* Whether the other program has seen a change of state. */
static __always_inline _Bool is_seen(struct flow_socket *socket, int from, int to)
{
	if (socket->from == from && socket->to == to)
		return 1;
	socket->from = from;
	socket->to = to;
	return 0;
}

static __always_inline int change_state(struct sock *sk, int from, int to)
{
	struct flow_socket *socket;

	if (!is_tcp(sk) || !counts_socket(sk) || !counts_ports(sk))
		return 0;
	switch (to) {
	case BPF_TCP_SYN_SENT:
	case BPF_TCP_LISTEN: /* by the process itself; later states aren't */
		socket = counts_task() ? meet(sk, NULL, 0, 0) : NULL;
		if (!socket || is_seen(socket, from, to))
			return 0;
		if (was_used(socket) || socket->ended)
			restart(sk, socket);
		else if (socket->flags & FLOW_EXISTED)
			socket->opened = bpf_ktime_get_boot_ns();
		socket->flags &= ~FLOW_EXISTED;
		socket->flags |= FLOW_UNREAD;
		socket->settled = 0;
		remember_addresses(sk, socket);
		current_use(sk, socket);
		return 0;
	case BPF_TCP_ESTABLISHED:
		socket = find(sk);
		if (!socket && is_filtered())
			return 0;
		socket = meet(sk, NULL, from == BPF_TCP_SYN_RECV ? FLOW_INWARD : 0, 0);
		if (!socket || is_seen(socket, from, to))
			return 0;
		socket->settled = 0;
		remember_addresses(sk, socket);
		if (from == BPF_TCP_SYN_RECV)
			suppose(sk, socket);
		log_opened(sk, socket, EVENT_OPENED);
		return 0;
	}
	socket = find(sk);
	if (!socket || is_seen(socket, from, to))
		return 0;
	socket->settled = 0;
	if (to == BPF_TCP_CLOSE) {
		end(sk, socket, from);
		if (from == BPF_TCP_SYN_SENT)
			log_opened(sk, socket, EVENT_FAILED);
	} else if (to == BPF_TCP_FIN_WAIT1 && !socket->ending)
		socket->ending = ENDING_LOCAL;
	else if (to == BPF_TCP_CLOSE_WAIT && !socket->ending)
		socket->ending = ENDING_PEER;
	return 0;
}

/* The kernel leaves a program out while a processor is already running it, as where a packet
 * comes in between. So there are two, which never run both at that moment, and each leaves to
 * the other what that has done. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flows_state, struct sock *sk, int from, int to)
{
	return change_state(sk, from, to);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flows_state_again, struct sock *sk, int from, int to)
{
	return change_state(sk, from, to);
}

/* Ends a connection whose end no program has seen, later than it was. The process didn't end it:
 * what a process does is seen. */
static __always_inline void end_unseen(struct sock *sk, struct flow_socket *socket)
{
	end(sk, socket, BPF_TCP_CLOSE);
	if (socket->to != BPF_TCP_SYN_SENT)
		return;
	socket->ending = ENDING_REFUSED;
	log_opened(sk, socket, EVENT_FAILED);
}

/* The last that is heard of a TCP socket: its processes have closed it, and the peer is done. */
static __always_inline int destroy(struct sock *sk)
{
	struct flow_socket *socket = find(sk);

	if (!socket || !is_kept(sk, socket) || socket->flags & FLOW_ENDED)
		return 0;
	socket->flags |= FLOW_ENDED;
	if (unlikely(!socket->ended))
		end_unseen(sk, socket);
	log_closed(sk, socket);
	forget(sk);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(flows_destroy, struct sock *sk)
{
	return destroy(sk);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(flows_destroy_again, struct sock *sk)
{
	return destroy(sk);
}

/* Evaluates to which uses of a socket are told, as bits. They are taken in their order, but for the
 * last, which is there where the others couldn't be taken. */
static __always_inline __u32 told_uses(const struct flow_socket *socket)
{
	__u32 told = is_told(socket, 0) | is_told(socket, FIRST) << FIRST;

#pragma unroll
	for (__u32 i = 1; i < USES; i++) {
		if (!socket->uses[i].key)
			break;
		told |= is_told(socket, i) << i;
	}
	return told | is_told(socket, USES) << USES;
}

/* Writes the uses that are told; what is the same in all of their records is there. */
static __always_inline void write_uses(struct seq_file *seq, const struct flow_socket *socket,
                                       struct flow_record *record, __u32 told)
{
#pragma unroll
	for (__u32 i = 0; i <= FIRST; i++) {
		if (!(told & 1U << i))
			continue;
		describe_use(socket, i, record);
		bpf_seq_write(seq, record, sizeof(*record));
		record->number++;
	}
}

static __always_inline void note_beginning(void)
{
	struct flow_sums *all = totals();

	if (all && !all->began)
		all->began = bpf_ktime_get_boot_ns();
}

/* Meets a socket that a process has open. */
static __always_inline void seed(struct task_struct *task, struct sock *sk)
{
	struct flow_socket *socket;
	struct tcp_sock *tcp;

	if (!sk || !counts_socket(sk) || !counts_ports(sk) || (pid && READ(task, tgid) != pid))
		return;
	socket = meet(sk, NULL, FLOW_EXISTED, 0);
	if (!socket)
		return;
	socket->settled = 0;
	tcp = tcp_of(sk);
	if (tcp)
		read_on(sk, tcp, socket); /* it may be known from an earlier time */
	remember_addresses(sk, socket);
	if (socket->uses[0].key)
		return;
	socket->flags |= FLOW_SUPPOSED;
	use_of(sk, socket, task);
}

#endif
