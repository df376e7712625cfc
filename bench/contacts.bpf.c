// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* contacts: peers behind a step that gives each run another source port and sequence number, since
 * BPF_PROG_TEST_RUN hands every run the same packet; and that step alone.
 *
 * Hook: none; run by BPF_PROG_TEST_RUN.
 * Verdict: pass.
 * Kernel: 5.10, like the program measured.
 */
#include "../bpf/peers.bpf.c"

static __always_inline void renew(struct __sk_buff *skb)
{
	static __u32 turn;
	struct tcp_header *tcp =
		(void *)(long)skb->data + sizeof(struct ethernet_header) + sizeof(struct iphdr);

	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return;
	turn++;
	tcp->source = turn;
	tcp->sequence = turn;
}

SEC("tcx/ingress")
int peers_new(struct __sk_buff *skb)
{
	renew(skb);
	return observe_tc(skb, PLACE_SENT);
}

SEC("tcx/ingress")
int new_alone(struct __sk_buff *skb)
{
	renew(skb);
	return TC_NEXT;
}
