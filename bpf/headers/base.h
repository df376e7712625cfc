/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every program includes: kernel types, helpers, and the types that several programs share. */
#ifndef BPFNET_BASE_H
#define BPFNET_BASE_H

#include <linux/bpf.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define likely(condition)   __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

/* An address of either family; IPv4 is mapped, ::ffff:a.b.c.d. */
typedef struct in6_addr ip_addr_t;

/* How much was seen. Programs only add. */
struct counter {
	__u64 packets;
	__u64 bytes;
};

/* Verdicts of tc programs, for TCX and for clsact filters in direct-action mode alike. NEXT leaves
 * the packet to the programs behind this one. */
enum tc_verdict {
	TC_NEXT = -1,
	TC_DROP = 2,
};

/* Plain additions are exact where softirqs are off for as long as the program runs: in XDP and tc.
 * There nothing else can write to this CPU's copy of the counter in between. */
static __always_inline void count(struct counter *counter, __u64 bytes)
{
	counter->packets++;
	counter->bytes += bytes;
}

#endif
