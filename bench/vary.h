/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef BPFNET_VARY_H
#define BPFNET_VARY_H

#include "packet.h"

#define ADDRESSES 10000

/* Gives each run another of ADDRESSES source addresses. */
static __always_inline void vary(struct __sk_buff *skb)
{
	static __u32 turn;
	struct ethernet_header *ethernet = (void *)(long)skb->data;
	struct iphdr *ip = (void *)(ethernet + 1);

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return;
	turn = turn + 1 < ADDRESSES ? turn + 1 : 0;
	ip->saddr = bpf_htonl(0x0a000000 + turn);
}

#endif
