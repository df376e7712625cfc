/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What kind of address an address is. */
#ifndef BPFNET_ADDRESS_H
#define BPFNET_ADDRESS_H

#include "base.h"

static __always_inline _Bool is_mapped(const ip_addr_t *address)
{
	return !(address->s6_addr32[0] | address->s6_addr32[1]) &&
	       address->s6_addr32[2] == bpf_htonl(0xffff);
}

/* An address of many receivers, 224.0.0.0/4, 255.255.255.255 or ff00::/8. A subnet's own broadcast
 * address can't be told from a host's. */
static __always_inline _Bool is_multicast(const ip_addr_t *address)
{
	__be32 address4 = address->s6_addr32[3];

	if (!is_mapped(address))
		return address->s6_addr[0] == 0xff;
	return (address4 & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
	       address4 == bpf_htonl(0xffffffff);
}

static __always_inline _Bool is_unspecified(const ip_addr_t *address)
{
	return !(address->s6_addr32[0] | address->s6_addr32[1] | address->s6_addr32[3]) &&
	       (!address->s6_addr32[2] || is_mapped(address));
}

/* 127.0.0.0/8 or ::1. */
static __always_inline _Bool is_loopback(const ip_addr_t *address)
{
	if (is_mapped(address))
		return (address->s6_addr32[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(address->s6_addr32[0] | address->s6_addr32[1] | address->s6_addr32[2]) &&
	       address->s6_addr32[3] == bpf_htonl(1);
}

#endif
