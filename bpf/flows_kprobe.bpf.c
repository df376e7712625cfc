// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* flows_kprobe: counts what flows.bpf.c counts, where the kernel hasn't got what that needs.
 *
 * Hooks: kprobes at the entry and at the return of the calls of sockets; typed tracepoints;
 * cgroup_sock and sock_ops at the root. Verdict: none. Minimum kernel: 5.9 (iterators over hashes).
 *
 * There are no atomic operations that return a value, so that what only one may have is claimed with
 * a new element of a hash. Sockets are in a hash, too, which may be full: what is lost then is
 * counted.
 */
#include "kernel.h"

#define READ                       BPF_CORE_READ
#define READ_INTO(to, from, field) BPF_CORE_READ_INTO((to), (from), field)

#include "flows.h"

#define SOCKETS 32768
#define CALLS   32768
#define CLAIMS  65536
#define TICKETS 4096
#define TRIES   64

#define EEXIST 17

#define S_IFMT   0170000
#define S_IFSOCK 0140000

/* Counters of sockets.
 * Key: address of the socket. Value: see the struct. Writer: all programs. Reader: flows_dump. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, SOCKETS);
	__type(key, __u64);
	__type(value, struct flow_socket);
} flow_sockets SEC(".maps");

/* What a socket has at first.
 * Key: 0. Value: zero. Reader: all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_socket);
} flow_none SEC(".maps");

/* One of the places that a socket has for processes. */
struct flow_place {
	__u64 sk;
	__u64 number;
};

/* Which process has a place.
 * Key: see the struct. Value: as in flow_use. Writer, reader: all programs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CLAIMS);
	__type(key, struct flow_place);
	__type(value, __u64);
} flow_claims SEC(".maps");

/* Calls that don't call each other. */
enum flow_call {
	CALL_SENDMSG,
	CALL_SENDMSG6,
	CALL_SENDPAGE,
	CALL_RECVMSG,
	CALL_RECVMSG6,
	CALL_SOCK_RECVMSG,
};

struct flow_call_key {
	__u64 thread;
	__u64 call;
};

struct flow_call_entry {
	__u64 sk;
	__u64 message; /* that the peer will be in */
	struct flow_talk talk;
	__u32 flags;
	__u8 known; /* with whom it talks is */
	__u8 pad[3];
};

/* Calls between their entry and their return.
 * Key, value: see the structs. Writer, reader: programs of both. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CALLS);
	__type(key, struct flow_call_key);
	__type(value, struct flow_call_entry);
} flow_calls SEC(".maps");

struct flow_ticket {
	__u64 log;
	__u64 number;
};

/* The last numbers of records that were given away.
 * Key: see the struct. Value: nothing. Writer, reader: those that log. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * TICKETS);
	__type(key, struct flow_ticket);
	__type(value, __u8);
} flow_tickets SEC(".maps");

struct flow_birth {
	__u64 listener;
	__u64 child;
};

/* The connection that a listener makes at this moment, on this processor.
 * Key: 0. Value: see the struct. Writer: flows_clone, flows_cloned. Reader: flows_state. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_birth);
} flow_births SEC(".maps");

static __always_inline struct tcp_sock *tcp_of(struct sock *sk)
{
	return is_tcp(sk) ? (struct tcp_sock *)sk : NULL;
}

static __always_inline struct task_struct *current_task(void)
{
	return (struct task_struct *)bpf_get_current_task();
}

static __always_inline void set_once(__u64 *to, __u64 value)
{
	if (!*to)
		*to = value;
}

/* One more than the next number of a log; 0: none was found. One that was given away long ago looks
 * free: then there are many after it. Not static, so that it is verified by itself. */
__noinline __u64 next_number(__u32 log)
{
	struct flow_ticket ticket = {.log = log}, old = {.log = log};
	struct flow_sums *all = totals();
	__u64 next, *count;
	__u8 none = 0;
	int error;

	if (!all)
		return 0;
	count = log == LOG_CLOSED ? &all->closed : &all->opened;
	next = *(volatile __u64 *)count;
	for (int i = 0; i < TRIES; i++, next++) {
		ticket.number = next;
		error = bpf_map_update_elem(&flow_tickets, &ticket, &none, BPF_NOEXIST);
		if (error == -EEXIST)
			continue;
		if (error) /* nobody has it, and passing it over would leave a hole */
			return 0;
		if (*(volatile __u64 *)count > next + TICKETS / 2) {
			bpf_map_delete_elem(&flow_tickets, &ticket);
			next = *(volatile __u64 *)count;
			continue;
		}
		old.number = next - TICKETS;
		bpf_map_delete_elem(&flow_tickets, &old);
		__sync_fetch_and_add(count, 1);
		return next + 1;
	}
	return 0;
}

static __always_inline _Bool take_number(__u64 *count, enum flow_log log, __u64 *number)
{
	*number = next_number(log) - 1;
	return *number + 1 != 0;
}

static __always_inline __u64 take_place(struct sock *sk, __u64 *place, __u32 number, __u64 key)
{
	struct flow_place claim = {.sk = (__u64)sk, .number = number};
	__u64 *holder;

	if (!bpf_map_update_elem(&flow_claims, &claim, &key, BPF_NOEXIST))
		return 0;
	holder = bpf_map_lookup_elem(&flow_claims, &claim);
	return holder ? *holder : NOBODY;
}

/* What tells a socket from others that has no cookie. It was there before counting began, and nobody
 * has asked for one since. */
#define NO_COOKIE (1ULL << 63)

static __always_inline __u64 cookie_of(struct sock *sk)
{
	__u64 cookie = READ(sk, __sk_common.skc_cookie.counter);

	return cookie ?: NO_COOKIE | (__u64)bpf_get_prandom_u32() << 31 | bpf_get_prandom_u32();
}

static __always_inline _Bool is_kept(struct sock *sk, const struct flow_socket *socket)
{
	return socket->cookie & NO_COOKIE ||
	       (socket->cookie && socket->cookie == READ(sk, __sk_common.skc_cookie.counter));
}

static __always_inline void forget(struct sock *sk)
{
	struct flow_place claim = {.sk = (__u64)sk};
	__u64 key = (__u64)sk;

	bpf_map_delete_elem(&flow_sockets, &key);
#pragma unroll
	for (int i = 0; i < USES; i++) {
		claim.number = i;
		bpf_map_delete_elem(&flow_claims, &claim);
	}
}

/* NULL, too, where something else was at the address whose end nobody saw. */
static __always_inline struct flow_socket *find(struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct flow_socket *socket = bpf_map_lookup_elem(&flow_sockets, &key);

	return socket && socket->cookie && unlikely(!is_kept(sk, socket)) ? NULL : socket;
}

static __noinline struct flow_socket *make_new(struct sock *sk)
{
	struct flow_socket *none, *old;
	__u64 key = (__u64)sk;
	__u32 zero = 0;

	old = bpf_map_lookup_elem(&flow_sockets, &key);
	if (old) {
		if (!(old->flags & FLOW_ENDED))
			log_closed(NULL, old);
		forget(sk);
	}
	none = bpf_map_lookup_elem(&flow_none, &zero);
	if (none)
		bpf_map_update_elem(&flow_sockets, &key, none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&flow_sockets, &key);
}

static __always_inline struct flow_socket *make(struct sock *sk)
{
	struct flow_socket *socket = find(sk);

	return likely(socket != NULL) ? socket : make_new(sk);
}

/* Registers of x86 or of arm64; the object is the same. */
#define REGISTER(ctx, x86, arm64)                                                                  \
	(bpf_core_field_exists((ctx)->di) ? BPF_CORE_READ((ctx), x86)                              \
	                                  : BPF_CORE_READ((ctx), regs[arm64]))

static __always_inline __u64 first(struct pt_regs *ctx)
{
	return REGISTER(ctx, di, 0);
}

static __always_inline struct sock *socket_of(struct pt_regs *ctx)
{
	struct socket *socket = (struct socket *)first(ctx);

	return READ(socket, sk);
}

static __always_inline struct msghdr *message_of(struct pt_regs *ctx)
{
	return (struct msghdr *)REGISTER(ctx, si, 1);
}

static __always_inline int flags_of(struct pt_regs *ctx)
{
	return REGISTER(ctx, cx, 3);
}

static __always_inline __u64 returned(struct pt_regs *ctx)
{
	return REGISTER(ctx, ax, 0);
}

static __always_inline struct flow_birth *birth(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&flow_births, &zero);
}

/* The kernel makes a connection and opens it in one go. */
SEC("kprobe/inet_csk_clone_lock")
int flows_clone(struct pt_regs *ctx)
{
	struct flow_birth *now = birth();

	if (now) {
		now->listener = first(ctx);
		now->child = 0;
	}
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flows_cloned, struct sock *sk, int from, int to)
{
	struct flow_birth *now;

	if (from != BPF_TCP_LISTEN || to != BPF_TCP_SYN_RECV)
		return 0;
	now = birth();
	if (now && !now->child) /* else the kernel left flows_clone out */
		now->child = (__u64)sk;
	return 0;
}

/* Its listener's process, as far as it is known. */
static __always_inline void suppose(struct sock *sk, struct flow_socket *socket)
{
	struct flow_birth *now = birth();
	struct flow_socket *listener;
	const struct flow_use *of;
	struct flow_use *use = &socket->uses[0];

	if (!now || !now->listener || now->child != (__u64)sk || use->key)
		return;
	listener = find((struct sock *)now->listener);
	now->listener = 0;
	if (!listener || !listener->uses[0].key ||
	    take_place(sk, &use->key, 0, listener->uses[0].key))
		return;
	of = &listener->uses[0];
	use->start = of->start;
	use->cgroup_id = of->cgroup_id;
	use->pid = of->pid;
	use->uid = of->uid;
	__builtin_memcpy(use->command, of->command, sizeof(use->command));
	use->key = of->key;
	socket->flags |= FLOW_SUPPOSED;
}

/* Has the kernel make cookies, which other programs can't. */
SEC("cgroup/sock_create")
int flows_created(struct bpf_sock *sk)
{
	bpf_get_socket_cookie(sk);
	return 1;
}

SEC("sockops")
int flows_established(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		bpf_get_socket_cookie(ops);
	return 1;
}

/* Counts what a call has moved. Of what TCP receives flows_read has the bytes. */
static __always_inline void count_call(struct sock *sk, const struct flow_talk *with, int length,
                                       _Bool sent)
{
	struct flow_socket *socket;
	struct flow_use *use;

	if (length <= 0 || !counts_socket(sk) || !counts_task())
		return;
	if (!is_datagram(sk))
		with = NULL;
	if (!counts_ports(sk) && !(with && bpf_ntohs(with->port) == port))
		return;
	socket = meet(sk, NULL, 0, sent || !is_tcp(sk) ? length : 0);
	if (!socket)
		return;
	if (!is_tcp(sk) && !has_addresses(sk, socket))
		remember_addresses(sk, socket);
	use = current_use(sk, socket);
	if (!sent && is_tcp(sk)) {
		__sync_fetch_and_add(&use->receive_calls, 1);
		return;
	}
	count_talk(sk, socket, use, with, length, sent);
}

/* The peer that a message names. Evaluates to 0 if it names none. */
static __always_inline _Bool read_name(struct msghdr *message, struct flow_talk *talk)
{
	void *name = READ(message, msg_name);
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;

	if (!name || bpf_probe_read_kernel(&v4, sizeof(v4), name))
		return 0;
	if (v4.sin_family == AF_INET) {
		map_address(&talk->peer, v4.sin_addr.s_addr);
		talk->port = v4.sin_port;
		return 1;
	}
	if (v4.sin_family != AF_INET6 || bpf_probe_read_kernel(&v6, sizeof(v6), name))
		return 0;
	talk->peer = *(ip_addr_t *)&v6.sin6_addr;
	talk->port = v6.sin6_port;
	return 1;
}

static __always_inline void miss(void)
{
	struct flow_sums *all = totals();

	if (all)
		__sync_fetch_and_add(&all->missed, 1);
}

/* Keeps for the return which socket it is. A call that is still there has returned unseen; or there
 * are too many. */
static __always_inline int enter(struct pt_regs *ctx, enum flow_call call,
                                 struct flow_call_entry *entry)
{
	struct flow_call_key key = {.thread = bpf_get_current_pid_tgid(), .call = call};

	if (!counts_task())
		return 0;
	entry->sk = (__u64)socket_of(ctx);
	if (bpf_map_update_elem(&flow_calls, &key, entry, BPF_NOEXIST)) {
		miss();
		bpf_map_update_elem(&flow_calls, &key, entry, BPF_ANY);
	}
	return 0;
}

/* The name isn't the caller's any more when the call returns. */
static __always_inline int enter_send(struct pt_regs *ctx, enum flow_call call)
{
	struct flow_call_entry entry = {};

	entry.known = read_name(message_of(ctx), &entry.talk);
	return enter(ctx, call, &entry);
}

static __always_inline int enter_receive(struct pt_regs *ctx, enum flow_call call)
{
	struct flow_call_entry entry = {.message = (__u64)message_of(ctx), .flags = flags_of(ctx)};

	return enter(ctx, call, &entry);
}

static __always_inline int leave(struct pt_regs *ctx, enum flow_call call)
{
	struct flow_call_key key = {.thread = bpf_get_current_pid_tgid(), .call = call};
	struct flow_call_entry *found = bpf_map_lookup_elem(&flow_calls, &key), entry;
	_Bool sent = call < CALL_RECVMSG;
	struct flow_talk *with;
	int length = returned(ctx);

	if (!found)
		return 0;
	entry = *found;
	bpf_map_delete_elem(&flow_calls, &key);
	if (!entry.sk || entry.flags & (MSG_PEEK | MSG_ERRQUEUE))
		return 0;
	if (!sent)
		entry.known = read_name((struct msghdr *)entry.message, &entry.talk);
	with = entry.known ? &entry.talk : NULL;
	asm volatile("" : "+r"(with)); /* the verifier knows nothing of what is beyond NULL */
	count_call((struct sock *)entry.sk, with, length, sent);
	return 0;
}

SEC("kprobe/inet_sendmsg")
int flows_inet_sendmsg(struct pt_regs *ctx)
{
	return enter_send(ctx, CALL_SENDMSG);
}

SEC("kretprobe/inet_sendmsg")
int flows_inet_sendmsg_return(struct pt_regs *ctx)
{
	return leave(ctx, CALL_SENDMSG);
}

SEC("kprobe/inet6_sendmsg")
int flows_inet6_sendmsg(struct pt_regs *ctx)
{
	return enter_send(ctx, CALL_SENDMSG6);
}

SEC("kretprobe/inet6_sendmsg")
int flows_inet6_sendmsg_return(struct pt_regs *ctx)
{
	return leave(ctx, CALL_SENDMSG6);
}

/* sendfile before 6.5. Protocols without one of their own come by inet_sendmsg. */
SEC("kprobe/inet_sendpage")
int flows_inet_sendpage(struct pt_regs *ctx)
{
	struct flow_call_entry entry = {};

	if (!READ(socket_of(ctx), __sk_common.skc_prot, sendpage))
		return 0;
	return enter(ctx, CALL_SENDPAGE, &entry);
}

SEC("kretprobe/inet_sendpage")
int flows_inet_sendpage_return(struct pt_regs *ctx)
{
	return leave(ctx, CALL_SENDPAGE);
}

SEC("kprobe/inet_recvmsg")
int flows_inet_recvmsg(struct pt_regs *ctx)
{
	return enter_receive(ctx, CALL_RECVMSG);
}

SEC("kretprobe/inet_recvmsg")
int flows_inet_recvmsg_return(struct pt_regs *ctx)
{
	return leave(ctx, CALL_RECVMSG);
}

SEC("kprobe/inet6_recvmsg")
int flows_inet6_recvmsg(struct pt_regs *ctx)
{
	return enter_receive(ctx, CALL_RECVMSG6);
}

SEC("kretprobe/inet6_recvmsg")
int flows_inet6_recvmsg_return(struct pt_regs *ctx)
{
	return leave(ctx, CALL_RECVMSG6);
}

/* Raw and ping sockets of IPv6. */
SEC("kprobe/sock_common_recvmsg")
int flows_sock_recvmsg(struct pt_regs *ctx)
{
	return enter_receive(ctx, CALL_SOCK_RECVMSG);
}

SEC("kretprobe/sock_common_recvmsg")
int flows_sock_recvmsg_return(struct pt_regs *ctx)
{
	return leave(ctx, CALL_SOCK_RECVMSG);
}

/* The last that is heard of other sockets. */
SEC("kprobe/inet_release")
int flows_release(struct pt_regs *ctx)
{
	struct sock *sk = socket_of(ctx);
	struct flow_socket *socket = sk && !is_tcp(sk) ? find(sk) : NULL;

	if (!socket)
		return 0;
	socket->flags |= FLOW_ENDED;
	log_closed(NULL, socket);
	forget(sk);
	return 0;
}

/* Writes all uses of all sockets, of all network namespaces, as struct flow_record. */
SEC("iter/bpf_map_elem")
int flows_dump(struct bpf_iter__bpf_map_elem *ctx)
{
	struct flow_socket *socket = ctx->value;
	struct seq_file *seq = ctx->meta->seq;
	struct flow_record record = {};
	__u64 *key = ctx->key;
	struct sock *sk;
	__u32 told;

	if (!key || !socket || !socket->cookie || socket->flags & FLOW_ENDED)
		return 0;
	told = told_uses(socket);
	sk = (struct sock *)*key;
	describe_socket(likely(is_kept(sk, socket)) ? sk : NULL, socket, &record);
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
	if (!task || !file || (READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = file->private_data;
	if (socket) /* else opened by its path alone */
		seed(task, READ(socket, sk));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
