// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* flows: counts what processes send and receive through sockets, in bytes that the calls moved.
 *
 * Hooks: typed tracepoints, or fexit where they don't tell how much was sent; cgroup_sock and
 * cgroup_sock_addr at the root. Verdict: none. Minimum kernel: 5.12 (atomic operations that return
 * a value, socket cookies in tracing); sk_storage in tracing is of 5.11, the tracepoints of lengths
 * of 6.3.
 *
 * What was sent is what a call returned. What TCP gave to its reader is by how much copied_seq grew
 * where the window is adjusted after each piece: a look ahead (MSG_PEEK) doesn't move it, splice
 * does, and tells no length otherwise. Of datagrams it is what a call returned.
 *
 * Counters live with the socket, so there is no table that could be full. A socket has some for each
 * of the first processes that use it, and for all others together. When a socket ends, what it had
 * is written into a log, of which the oldest record makes room.
 */
#include "kernel.h"

#define READ(from, field)          ((from)->field)
#define READ_INTO(to, from, field) __builtin_memcpy((to), &(from)->field, sizeof((from)->field))

#include "flows.h"

/* Counters of sockets.
 * Key: socket. Value: see the struct. Writer: all programs. Reader: flows_dump. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct flow_socket);
} flow_sockets SEC(".maps");

/* From the hook that sees the address to the end of the call, which doesn't, where another thread
 * has the place with the socket.
 * Key: thread. Value: see the struct. Writer: flows_sendmsg4 and the like, which those that count
 * clear. Reader: those. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, TALKING);
	__type(key, __u64);
	__type(value, struct flow_talk);
} flow_talks SEC(".maps");

void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak;

/* Since 6.2 without a call. */
static __always_inline struct tcp_sock *tcp_of(struct sock *sk)
{
	if (!is_tcp(sk))
		return NULL;
	if (&bpf_rdonly_cast)
		return bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct tcp_sock));
	return bpf_skc_to_tcp_sock(sk);
}

/* It has one once anybody has asked for it. */
static __always_inline __u64 cookie_of(struct sock *sk)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter;

	return likely(cookie) ? cookie : bpf_get_socket_cookie(sk);
}

static __always_inline struct flow_socket *find(struct sock *sk)
{
	return bpf_sk_storage_get(&flow_sockets, sk, NULL, 0);
}

static __always_inline _Bool is_kept(struct sock *sk, const struct flow_socket *socket)
{
	return socket->cookie == cookie_of(sk);
}

/* It has a copy of its listener's. */
static __always_inline void suppose(struct sock *sk, struct flow_socket *socket)
{
}

/* It is the kernel's to do. */
static __always_inline void forget(struct sock *sk)
{
}

/* Of two threads that make what is kept with a socket at the same time, one is told that it can't,
 * and finds the other's then. */
#define MADE(sk)                                                                                   \
	(bpf_sk_storage_get(&flow_sockets, (sk), NULL, BPF_SK_STORAGE_GET_F_CREATE)                \
	         ?: bpf_sk_storage_get(&flow_sockets, (sk), NULL, BPF_SK_STORAGE_GET_F_CREATE))

static __always_inline struct flow_socket *make(struct sock *sk)
{
	return MADE(sk);
}

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task_btf();
}

static __always_inline void set_once(__u64 *to, __u64 value)
{
	__sync_val_compare_and_swap(to, 0, value);
}

static __always_inline _Bool take_number(__u64 *count, enum flow_log log, __u64 *number)
{
	*number = __sync_fetch_and_add(count, 1);
	return 1;
}

static __always_inline __u64 take_place(struct sock *sk, __u64 *place, __u32 number, __u64 key)
{
	return __sync_val_compare_and_swap(place, 0, key);
}

static __always_inline void read_peer(struct bpf_sock_addr *ctx, _Bool is_v6, ip_addr_t *peer)
{
	if (!is_v6) {
		map_address(peer, ctx->user_ip4);
		return;
	}
	peer->in6_u.u6_addr32[0] = ctx->user_ip6[0];
	peer->in6_u.u6_addr32[1] = ctx->user_ip6[1];
	peer->in6_u.u6_addr32[2] = ctx->user_ip6[2];
	peer->in6_u.u6_addr32[3] = ctx->user_ip6[3];
}

/* Keeps for the end of the call with whom it talks. The kernel has locked the socket, so that others
 * come here before or after, and only the end of a call in between. */
static __always_inline int talk(struct bpf_sock_addr *ctx, _Bool is_v6)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct flow_socket *socket = NULL;
	struct flow_talk aside = {};

	if ((protocol && ctx->protocol != protocol) || !counts_task())
		return 1;
	if (ctx->sk)
		socket = MADE(ctx->sk);
	if (!socket)
		return 1;
	if (unlikely(!socket->first.known)) {
		read_peer(ctx, is_v6, &socket->first.peer);
		socket->first.port = ctx->user_port;
		socket->first.known = 1;
	}
	if (likely(!socket->talker || socket->talker == (__u32)thread)) {
		socket->talker = thread;
		read_peer(ctx, is_v6, &socket->talk.peer);
		socket->talk.port = ctx->user_port;
		return 1;
	}
	socket->crowded = 1;
	aside.cookie = bpf_get_socket_cookie(ctx);
	read_peer(ctx, is_v6, &aside.peer);
	aside.port = ctx->user_port;
	bpf_map_update_elem(&flow_talks, &thread, &aside, BPF_ANY);
	return 1;
}

/* With whom a thread talks that found the place taken. */
static __noinline struct flow_talk *talk_aside(struct sock *sk, struct task_struct *task)
{
	__u64 thread = (__u64)task->tgid << 32 | (__u32)task->pid;
	struct flow_talk *talk = bpf_map_lookup_elem(&flow_talks, &thread);

	return talk && talk->cookie == cookie_of(sk) ? talk : NULL;
}

/* What is lost without memory is told apart. */
static __always_inline void count_datagrams(struct sock *sk, struct task_struct *task, int length,
                                            _Bool sent)
{
	struct flow_socket *socket = find(sk);
	struct flow_talk *with = NULL;
	_Bool is_talker = 0;

	if (likely(socket)) {
		if (unlikely(!has_addresses(sk, socket)) && socket->cookie)
			remember_addresses(sk, socket);
		is_talker = socket->talker == task->pid;
		if (is_talker)
			with = &socket->talk;
		else if (unlikely(socket->crowded))
			with = talk_aside(sk, task);
	}
	if (length > 0 && (counts_ports(sk) || (with && bpf_ntohs(with->port) == port))) {
		socket = meet(sk, socket, 0, length);
		if (socket)
			count_talk(sk, socket, use_of(sk, socket, task), with, length, sent);
	}
	if (is_talker && socket)
		socket->talker = 0;
	else if (with)
		with->cookie = 0;
}

/* Counts what a call has moved. Of what TCP receives flows_read has the bytes. */
static __always_inline void count_call(struct sock *sk, int length, _Bool sent)
{
	struct task_struct *task = current_task();
	struct flow_socket *socket;
	struct flow_use *use;

	if (!counts_socket(sk) || !counts_task())
		return;
	if (is_datagram(sk)) {
		count_datagrams(sk, task, length, sent);
		return;
	}
	if (length <= 0 || !counts_ports(sk))
		return;
	socket = meet(sk, NULL, 0, sent || !is_tcp(sk) ? length : 0);
	if (!socket)
		return;
	if (!is_tcp(sk) && !has_addresses(sk, socket))
		remember_addresses(sk, socket);
	use = use_of(sk, socket, task);
	if (!sent && is_tcp(sk)) {
		__sync_fetch_and_add(&use->receive_calls, 1);
		return;
	}
	add(counters_of(use), length, sent);
}

static __always_inline void count_sent(struct sock *sk, int length)
{
	count_call(sk, length, 1);
}

static __always_inline void count_received(struct sock *sk, int length, int flags)
{
	count_call(sk, flags & (MSG_PEEK | MSG_ERRQUEUE) ? 0 : length, 0);
}

SEC("cgroup/sendmsg4")
int flows_sendmsg4(struct bpf_sock_addr *ctx)
{
	return talk(ctx, 0);
}

SEC("cgroup/sendmsg6")
int flows_sendmsg6(struct bpf_sock_addr *ctx)
{
	return talk(ctx, 1);
}

SEC("cgroup/recvmsg4")
int flows_recvmsg4(struct bpf_sock_addr *ctx)
{
	return talk(ctx, 0);
}

SEC("cgroup/recvmsg6")
int flows_recvmsg6(struct bpf_sock_addr *ctx)
{
	return talk(ctx, 1);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(flows_sent, struct sock *sk, int length, int flags)
{
	count_sent(sk, length);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(flows_received, struct sock *sk, int length, int flags)
{
	count_received(sk, length, flags);
	return 0;
}

SEC("fexit/inet_sendmsg")
int BPF_PROG(flows_inet_sendmsg, struct socket *socket, void *message, __u64 size, int length)
{
	count_sent(socket->sk, length);
	return 0;
}

SEC("fexit/inet6_sendmsg")
int BPF_PROG(flows_inet6_sendmsg, struct socket *socket, void *message, __u64 size, int length)
{
	count_sent(socket->sk, length);
	return 0;
}

/* sendfile before 6.5. Protocols without one of their own come by inet_sendmsg. */
SEC("fexit/inet_sendpage")
int BPF_PROG(flows_inet_sendpage, struct socket *socket, void *page, int offset, __u64 size,
             int flags, long length)
{
	if (socket->sk->__sk_common.skc_prot->sendpage)
		count_sent(socket->sk, length);
	return 0;
}

SEC("fexit/inet_recvmsg")
int BPF_PROG(flows_inet_recvmsg, struct socket *socket, void *message, __u64 size, int flags,
             int length)
{
	count_received(socket->sk, length, flags);
	return 0;
}

SEC("fexit/inet6_recvmsg")
int BPF_PROG(flows_inet6_recvmsg, struct socket *socket, void *message, __u64 size, int flags,
             int length)
{
	count_received(socket->sk, length, flags);
	return 0;
}

/* Raw and ping sockets of IPv6. */
SEC("fexit/sock_common_recvmsg")
int BPF_PROG(flows_sock_recvmsg, struct socket *socket, void *message, __u64 size, int flags,
             int length)
{
	count_received(socket->sk, length, flags);
	return 0;
}

/* The last that is heard of other sockets. */
SEC("cgroup/sock_release")
int flows_release(struct bpf_sock *sk)
{
	struct flow_socket *socket = bpf_sk_storage_get(&flow_sockets, sk, 0, 0);

	if (!socket || (socket->protocol == IPPROTO_TCP && socket->type == SOCK_STREAM) ||
	    !socket->cookie)
		return 1;
	socket->flags |= FLOW_ENDED;
	log_closed(NULL, socket);
	return 1;
}

static __always_inline __u64 mix(__u64 sum, const void *data, __u32 size)
{
	const __u64 *words = data;

#pragma unroll
	for (__u32 i = 0; i < size / sizeof(*words); i++) {
		sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15ULL;
		sum ^= sum >> 32;
	}
	return sum;
}

/* Whether the kernel has nothing new to tell of a connection until its state changes, which has a
 * hook, or somebody uses it: all that was sent is acknowledged, so it isn't sent again, nor is the
 * round trip time measured; and what comes in isn't told before it is read. Others than processes
 * may move data where the kernel has a use for the socket itself (MPTCP, sockmap). */
static __always_inline _Bool is_settled(struct sock *sk)
{
	struct tcp_sock *tcp = tcp_of(sk);

	return tcp && tcp->write_seq == tcp->snd_una && !tcp->inet_conn.icsk_ulp_ops &&
	       !sk->sk_user_data && !is_filtered() && !port;
}

/* Notes whether a socket has changed since a walk passed, whoever's. So no use has to tell, and
 * nothing is missed that changes without one: states, round trip times, what is sent again. A walk
 * that isn't the last that was begun tells the last one, too, which may have passed before. */
static __always_inline void note_change(struct flow_socket *socket, struct flow_sums *all,
                                        const struct flow_walk *walk, __u64 is, __u64 counts)
{
	__u64 number;

	if (is == socket->seen && counts == socket->seen_counts)
		return;
	number = __sync_fetch_and_add(&all->walks, 0);
	if (!walk || walk->number != number)
		number++;
	if (is != socket->seen)
		socket->changed = number;
	socket->changed_counts = number;
	barrier();
	socket->seen = is;
	socket->seen_counts = counts;
}

#define USE_NAMES   (sizeof(struct flow_use) - offsetof(struct flow_use, cgroup_id))
#define FIRST_NAMES (sizeof(struct flow_first) - offsetof(struct flow_first, peer))

static __always_inline void write_counts(struct seq_file *seq, const struct flow_socket *socket,
                                         const struct flow_record *record, __u32 told)
{
	struct flow_change change = {
		.cookie = record->cookie,
		.transmitted = record->transmitted,
		.received = record->received,
		.srtt_us = record->srtt_us,
		.min_rtt_us = record->min_rtt_us,
		.retransmits = record->retransmits,
	};

#pragma unroll
	for (__u32 i = 0; i <= USES; i++) {
		if (!(told & 1U << i))
			continue;
		change.transmit_bytes = socket->uses[i].transmit_bytes;
		change.receive_bytes = socket->uses[i].receive_bytes;
		change.transmit_calls = socket->uses[i].transmit_calls;
		change.receive_calls = socket->uses[i].receive_calls;
		bpf_seq_write(seq, &change, sizeof(change));
		change.number++;
	}
	if (!(told & 1U << FIRST))
		return;
	change.transmit_bytes = socket->first.moved.transmit_bytes;
	change.receive_bytes = socket->first.moved.receive_bytes;
	change.transmit_calls = socket->first.moved.transmit_calls;
	change.receive_calls = socket->first.moved.receive_calls;
	bpf_seq_write(seq, &change, sizeof(change));
}

/* Writes all uses of sockets that are told, of all network namespaces: as struct flow_record, as
 * struct flow_change where only that has changed since the reader asks, or none if nothing has. */
SEC("iter/bpf_sk_storage_map")
int flows_dump(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	__u64 reader = bpf_get_current_pid_tgid(), is, counts, uses;
	struct flow_socket *socket = ctx->value;
	struct seq_file *seq = ctx->meta->seq;
	struct flow_sums *all = totals();
	struct flow_record record = {};
	struct sock *sk = ctx->sk;
	struct flow_walk *walk;
	__u32 told;

	if (all && !ctx->meta->seq_num)
		__sync_fetch_and_add(&all->walks, 1);
	if (!all || !sk || !socket || !socket->cookie || socket->flags & FLOW_ENDED)
		return 0;
	told = told_uses(socket);
	is = told;
	counts = socket->flags;
#pragma unroll
	for (__u32 i = 0; i <= USES; i++) {
		if (!(told & 1U << i))
			continue;
		is = mix(is, &socket->uses[i], 2 * sizeof(socket->uses[i].key));
		is = mix(is, &socket->uses[i].cgroup_id, USE_NAMES);
		counts = mix(counts, &socket->uses[i].transmit_bytes,
		             4 * sizeof(socket->uses[i].transmit_bytes));
	}
	if (told & 1U << FIRST) {
		is = mix(is, &socket->first, sizeof(socket->first.key));
		is = mix(is, &socket->first.peer, FIRST_NAMES);
		counts = mix(counts, &socket->first.moved, sizeof(socket->first.moved));
	}
	uses = mix(is, &counts, sizeof(counts));
	walk = bpf_map_lookup_elem(&flow_walks, &reader);
	/* Walks that leave nothing out take nobody's word. */
	if (socket->settled == SETTLED && socket->seen_uses == uses && walk && walk->since &&
	    socket->changed_counts <= walk->since)
		return 0;
	if (socket->settled < SETTLED)
		socket->settled++; /* before it is looked at */
	barrier();
	if (socket->cookie != sk->__sk_common.skc_cookie.counter)
		return 0; /* a copy of its listener's */
	read_socket(socket, &record);
	read_addresses_of(sk, socket, &record);
	is = mix(is, &record.cookie, 2 * sizeof(record.cookie));
	is = mix(is, &record.local, sizeof(record) - offsetof(struct flow_record, local));
	read_tcp(sk, &record);
	is += record.flags; /* that has one, too */
	counts = mix(counts, &record.transmitted, 2 * sizeof(record.transmitted));
	counts = mix(counts, &record.netns, 2 * sizeof(record.cookie)); /* with what is beside it */
	note_change(socket, all, walk, is, counts);
	socket->seen_uses = uses;
	if (!is_settled(sk))
		socket->settled = 0;
	if (walk && socket->changed_counts <= walk->since)
		return 0;
	if (walk && socket->changed <= walk->since) {
		write_counts(seq, socket, &record, told);
		return 0;
	}
	write_uses(seq, socket, &record, told);
	return 0;
}

/* Run once before the others are attached: meets the sockets that are there already. */
SEC("iter/task_file")
int flows_seed(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;

	note_beginning();
	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (socket)
		seed(task, socket->sk);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
