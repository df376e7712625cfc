// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* addresses: pod-traffic behind a step that gives each run another source address, since
 * BPF_PROG_TEST_RUN hands every run the same packet.
 *
 * Hook: none; run by BPF_PROG_TEST_RUN.
 * Verdict: pass.
 * Kernel: 5.10, like the program measured.
 */
#include "../bpf/pod_traffic.bpf.c"
#include "vary.h"

SEC("tcx/ingress")
int pod_traffic_vary(struct __sk_buff *skb)
{
	vary(skb);
	return sent_tc(skb, LAYER_ETHERNET);
}
