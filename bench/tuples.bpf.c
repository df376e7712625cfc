// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* tuples: counts what flows counts, on the same tracepoints, in a hash by process and addresses,
 * which is what it is measured against. And programs there that do nothing.
 *
 * Hook: typed tracepoints. Verdict: none. Kernel: 6.3.
 */
#include "kernel.h"

struct tuple {
	__u64 start; /* of the process */
	__u32 pid;
	__u16 protocol;
	__u16 local_port;
	ip_addr_t local;
	ip_addr_t peer;
	__be16 peer_port;
	__u16 pad;
	__u32 netns;
};

struct moved {
	__u64 transmit_bytes;
	__u64 receive_bytes;
	__u64 transmit_calls;
	__u64 receive_calls;
	__u64 cgroup_id;
	__u32 uid;
	__u32 position;
	char command[16];
};

/* Key, value: see the structs. Writer: the programs. Reader: nobody. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple);
	__type(value, struct moved);
} tuples SEC(".maps");

static __always_inline void map_address(ip_addr_t *to, __be32 address)
{
	to->in6_u.u6_addr32[2] = bpf_htonl(0xffff);
	to->in6_u.u6_addr32[3] = address;
}

static __always_inline struct moved *moved_by(struct sock *sk)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf(), *leader;
	struct tuple key = {};
	struct moved *known, new = {};

	leader = task->group_leader;
	key.start = leader->start_boottime;
	key.pid = task->tgid;
	key.protocol = sk->sk_protocol;
	key.local_port = sk->__sk_common.skc_num;
	key.peer_port = sk->__sk_common.skc_dport;
	key.netns = sk->__sk_common.skc_net.net->ns.inum;
	if (sk->__sk_common.skc_family == AF_INET) {
		map_address(&key.local, sk->__sk_common.skc_rcv_saddr);
		map_address(&key.peer, sk->__sk_common.skc_daddr);
	} else {
		bpf_core_read(&key.local, sizeof(key.local), &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(&key.peer, sizeof(key.peer), &sk->__sk_common.skc_v6_daddr);
	}
	known = bpf_map_lookup_elem(&tuples, &key);
	if (known)
		return known;
	new.uid = leader->cred->euid.val;
	new.cgroup_id = leader->cgroups->dfl_cgrp->kn->id;
	for (int i = 0; i < sizeof(new.command); i++)
		new.command[i] = leader->comm[i];
	bpf_map_update_elem(&tuples, &key, &new, BPF_NOEXIST);
	return bpf_map_lookup_elem(&tuples, &key);
}

static __always_inline _Bool is_internet(struct sock *sk)
{
	return sk->__sk_common.skc_family == AF_INET || sk->__sk_common.skc_family == AF_INET6;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(tuples_sent, struct sock *sk, int length, int flags)
{
	struct moved *moved;

	if (length <= 0 || !is_internet(sk))
		return 0;
	moved = moved_by(sk);
	if (!moved)
		return 0;
	__sync_fetch_and_add(&moved->transmit_bytes, length);
	__sync_fetch_and_add(&moved->transmit_calls, 1);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(tuples_received, struct sock *sk, int length, int flags)
{
	struct moved *moved;

	if (length <= 0 || flags & MSG_PEEK || !is_internet(sk))
		return 0;
	moved = moved_by(sk);
	if (!moved)
		return 0;
	__sync_fetch_and_add(&moved->receive_calls, 1);
	if (sk->sk_protocol != IPPROTO_TCP)
		__sync_fetch_and_add(&moved->receive_bytes, length);
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(tuples_read, struct sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct moved *moved;
	__u32 position;

	if (!tcp || !is_internet(sk))
		return 0;
	moved = moved_by(sk);
	if (!moved)
		return 0;
	position = tcp->copied_seq;
	if (moved->position)
		__sync_fetch_and_add(&moved->receive_bytes, position - moved->position);
	moved->position = position;
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(empty_sent, struct sock *sk, int length, int flags)
{
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(empty_received, struct sock *sk, int length, int flags)
{
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(empty_read, struct sock *sk)
{
	return 0;
}

SEC("cgroup/sendmsg4")
int empty_sendmsg4(struct bpf_sock_addr *ctx)
{
	return 1;
}

SEC("cgroup/recvmsg4")
int empty_recvmsg4(struct bpf_sock_addr *ctx)
{
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
