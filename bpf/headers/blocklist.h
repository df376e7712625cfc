/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The blocklist's maps, which all its programs share, and the question they answer: is an address of
 * this packet on a list?
 *
 * Most addresses are on none, so each family has a filter in front of its lists: bits that are zero
 * where no entry can match. Two loads tell that a packet of two unlisted IPv4 addresses goes on, six
 * one of two IPv6 addresses, however many entries there are. Behind a bit that is set, each list in
 * use is a hash that is asked once for each prefix length in use there, the longest first.
 *
 * Who changes lists sets the bits of an entry before the entry is there, and clears them after it is
 * gone: a bit too many costs time, one too few would let a packet through.
 */
#ifndef BPFNET_BLOCKLIST_H
#define BPFNET_BLOCKLIST_H

#include "packet.h"

#define MAX_LISTS 32

#define FILTER4_WORDS  262144  /* a bit for each /24 */
#define LENGTHS4       65536   /* a word for each /16 */
#define FILTER6_WORDS  1048576 /* a word for each hashed /48, in it a bit for each hashed /64 */
#define COARSE6_HASHED 262144  /* a word for each hashed /32, in it a bit for each hashed /48 */
#define COARSE6_WORDS  (COARSE6_HASHED + 1024) /* then a bit for each /16 */

#define MAX_LENGTHS4 33
#define MAX_LENGTHS6 129
#define STEPS6       16 /* prefix lengths that are tried in a go */

#define MAX_DOMAINS 65536
#define MAX_ANSWERS 131072
#define DOMAIN_SIZE 256

#define MAX_HITS     262144
#define TICK_CPUS    256 /* more share a tick */
#define EPISODES     16384
#define EVENTS_BYTES (256 * 1024)

/* The offset of a transport header isn't above this: 8 extension headers of at most 2,048 bytes. */
#define MAX_TRANSPORT 0x7fff

#define HASH_MULTIPLIER                                                                            \
	0x9e3779b97f4a7c15ULL /* 2^64 divided by the golden ratio: Knuth, TAOCP 6.4 */
#define NSEC_PER_SEC 1000000000ULL

struct block_key4 {
	__u32 prefixlen;
	__u32 address; /* host order, no bits beyond the prefix */
};

struct block_key6 {
	__u32 prefixlen;
	__u32 pad;
	__u64 high; /* host order */
	__u64 low;
};

/* What is known of an entry. */
struct block_entry {
	__u32 expires; /* seconds of CLOCK_BOOTTIME; 0: never */
	__u32 note;    /* key of notes; 0: none */
};

/* A prefix length in use, with its mask in host order. */
struct block_length6 {
	__u64 high;
	__u64 low;
	__u32 prefixlen;
	__u32 pad;
};

/* How lists are read. A mask has a bit for each list. */
struct block_config {
	__u32 lists;           /* that are in force */
	__u32 drop;            /* whose entries drop the packet */
	__u32 alert;           /* whose entries report it */
	__u32 source;          /* that source addresses are looked up in */
	__u32 destination;     /* that destination addresses are looked up in */
	__u32 allow;           /* whose entries overrule those of the others */
	__u32 episode_seconds; /* how long after an event an entry and an address make no other */
	__u32 lengths4_count;
	__u32 lengths6_count;
	__u8 identities[MAX_LISTS];  /* of lists, in hits and events: a list that is replaced has
	                                another number, and stays who it is */
	__u8 lengths4[MAX_LENGTHS4]; /* prefix lengths in use, the longest first */
	__u8 pad[3];
	struct block_length6 lengths6[MAX_LENGTHS6];
};

/* What is known of a list; for user space alone. It is in force if its bit is in the settings. */
struct block_list {
	char name[64]; /* what people call it; with a * behind it: the addresses of its domains */
	__u64 changed; /* when, in seconds since 1970 */
	__u64 entries4;
	__u64 entries6;
	__u64 identity;
	__u64 stale;   /* entries removed whose bits may still be set */
	__u64 expires; /* when the next entry does, in seconds of CLOCK_BOOTTIME; 0: none does */
};

struct block_note {
	char text[128];
};

/* A domain on a list; for user space alone, like its answers. */
struct domain_key {
	__u32 list;             /* its identity */
	char name[DOMAIN_SIZE]; /* lower case, without the last dot; may begin with "*." */
};

enum domain_status {
	DOMAIN_PENDING, /* nobody has asked yet */
	DOMAIN_RESOLVED,
	DOMAIN_NO_NAME,
	DOMAIN_FAILED, /* no server gave an answer */
};

struct block_domain {
	__u32 number;  /* in the keys of its answers; from 1 */
	__u32 note;    /* key of notes; 0: none */
	__u32 expires; /* seconds of CLOCK_BOOTTIME; 0: never */
	__u32 grace;   /* seconds that an address stays after it left the answer */
	__u32 due;     /* when to ask again, in seconds of CLOCK_BOOTTIME */
	__u32 checked; /* when somebody asked last; 0: never */
	enum domain_status status;
	__u32 forced; /* 1: addresses that lock people out are taken, too */
};

/* An address that a domain has. */
struct answer_key {
	__u32 list; /* identity of the domain's list */
	__u32 domain;
	__u16 ipv4; /* 1 if it is one: its address is mapped */
	__u16 pad;
	ip_addr_t address;
};

enum answer_source {
	ANSWER_RESOLVED = 1,
	ANSWER_SEEN, /* on the wire */
};

struct block_answer {
	__u32 expires; /* seconds of CLOCK_BOOTTIME; 0: as long as the domain has it */
	__u32 note;
	enum answer_source source;
};

/* An entry of a list that was hit. */
struct hit_key {
	__u8 list;      /* its identity */
	__u8 prefixlen; /* of an IPv4 prefix, too: 0 to 32 */
	__u16 ipv4;     /* 1 if it is one: its address is mapped */
	ip_addr_t address;
};

struct hit_counters {
	__u64 packets;
	__u64 bytes;
	__u64 last_seen; /* ns of CLOCK_BOOTTIME */
};

/* What became of packets that met a list, or that couldn't be looked up. */
enum block_row {
	BLOCK_DROPPED,
	BLOCK_ALERTED,           /* passed, but reported or counted as such */
	BLOCK_ALLOWED,           /* passed: an address on the allow list may be on others */
	BLOCK_NON_IP,            /* passed */
	BLOCK_TRUNCATED,         /* passed */
	BLOCK_TOO_DEEP,          /* passed: more VLAN tags than the parser follows */
	BLOCK_HITS_FULL,         /* hits that found no room in hits */
	BLOCK_EVENTS_SUPPRESSED, /* hits within an episode */
	BLOCK_EVENTS_LOST,       /* events that found no room in block_events */
	BLOCK_ROWS,
};

enum block_direction : __u8 {
	DIRECTION_INGRESS,
	DIRECTION_EGRESS,
};

enum block_hook : __u8 {
	HOOK_XDP,
	HOOK_TC,
	HOOK_CGROUP,
};

/* One hit of an entry whose list reports. */
struct block_event {
	__u64 time;       /* ns of CLOCK_BOOTTIME */
	__u64 cgroup_id;  /* 0: unknown */
	__u64 suppressed; /* hits of the same entry and address since the event before */
	ip_addr_t source;
	ip_addr_t destination;
	struct hit_key entry;
	__u32 ifindex;
	__u32 length; /* of the packet, in bytes */
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	enum block_direction direction;
	enum block_hook hook;
	__u8 dropped;
	__u8 matched_destination; /* 1: the destination address is on the list, 0: the source */
	__u8 pad[3];
};

/* The last event of an entry and an address whose hash falls here. */
struct episode {
	__u32 tag;     /* of the hash; 0: unused */
	__u32 seconds; /* when its event was, CLOCK_BOOTTIME */
	__u64 suppressed;
};

/* Where entries may match, IPv4: a bit for each /24.
 * Key: address >> 14. Value: bit (address >> 8) & 63 is set if an entry covers or lies in that /24.
 * Writer: bpfnet blocklist, through memory. Reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FILTER4_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} filters4 SEC(".maps");

/* Which prefix lengths are in use, IPv4.
 * Key: address >> 16. Value: bit n is set if an entry of length n covers or lies in that /16.
 * Writer: bpfnet blocklist, through memory. Reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LENGTHS4);
	__type(key, __u32);
	__type(value, __u64);
} lengths4 SEC(".maps");

/* Where entries of length 48 and more may match, IPv6.
 * Key: hash of the /48. Value: bit (hash of the /64) is set if an entry lies in that /64 or covers
 * it. Writer: bpfnet blocklist, through memory. Reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FILTER6_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} filters6 SEC(".maps");

/* Where shorter entries may match, IPv6.
 * Key: hash of the /32, for lengths 32 to 47, with bit (hash of the /48); from COARSE6_HASHED on
 * address >> 118, for lengths 0 to 31, with bit (address >> 112) & 63. Writer: bpfnet blocklist,
 * through memory. Reader: the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, COARSE6_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} coarse_filters6 SEC(".maps");

/* No program calls this: it has clang write the types out, which in inner maps alone stay without
 * their members. */
static __noinline __attribute__((used)) void list_types(struct block_key4 *key4,
                                                        struct block_key6 *key6,
                                                        struct block_entry *entry,
                                                        struct block_config *config)
{
}

struct settings_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_config);
};

/* How lists are read; replaced as a whole, so that no packet meets half a change.
 * Key: 0. Value: an array with one struct block_config. Writer: bpfnet blocklist. Reader: the
 * programs, once a filter has a bit. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct settings_map);
} settings SEC(".maps");

struct list4_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct block_key4);
	__type(value, struct block_entry);
};

struct list6_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct block_key6);
	__type(value, struct block_entry);
};

/* The entries of each list; replaced as a whole.
 * Key: number of the list. Value: a hash of its prefixes. Writer: bpfnet blocklist. Reader: the
 * programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_LISTS);
	__type(key, __u32);
	__array(values, struct list4_map);
} lists4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_LISTS);
	__type(key, __u32);
	__array(values, struct list6_map);
} lists6 SEC(".maps");

/* The names of the lists.
 * Key: number of the list. Value: its name, empty if the number is free. Writer, reader: bpfnet
 * blocklist. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LISTS);
	__type(key, __u32);
	__type(value, struct block_list);
} block_lists SEC(".maps");

/* Why entries are on their lists; many share one.
 * Key: number, from 1. Value: text. Writer, reader: bpfnet blocklist. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct block_note);
} block_notes SEC(".maps");

/* The domains on the lists.
 * Key: list and name. Value: see struct block_domain. Writer, reader: bpfnet blocklist. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DOMAINS);
	__type(key, struct domain_key);
	__type(value, struct block_domain);
} block_domains SEC(".maps");

/* The addresses that domains have. Those of a list's domains are the entries of a list of their own,
 * which the programs read.
 * Key: list, domain, address. Value: how long, why, and who found it. Writer, reader: bpfnet
 * blocklist. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ANSWERS);
	__type(key, struct answer_key);
	__type(value, struct block_answer);
} block_answers SEC(".maps");

/* What each entry was hit by.
 * Key: list and prefix. Value: packets, bytes, and when the last one came. Writer: the programs;
 * bpfnet blocklist deletes. Reader: bpfnet blocklist list --hits. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_HITS);
	__type(key, struct hit_key);
	__type(value, struct hit_counters);
} hits SEC(".maps");

/* Which hits were reported lately.
 * Key: hash of the entry and the other address. Value: see struct episode. Writer, reader: the
 * programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, EPISODES);
	__type(key, __u32);
	__type(value, struct episode);
} episodes SEC(".maps");

/* Hits of entries whose list reports.
 * Record: struct block_event. Writer: the programs. Reader: bpfnet watch alerts. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_BYTES);
	__type(value, struct block_event);
} block_events SEC(".maps");

/* What became of packets; those that met no list are in no row.
 * Key: enum block_row. Value: packets and bytes, per CPU. Writer: the programs. Reader: bpfnet
 * blocklist lists. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BLOCK_ROWS);
	__type(key, enum block_row);
	__type(value, struct counter);
} block_rows SEC(".maps");

static __always_inline __u64 hash(__u64 value)
{
	return value * HASH_MULTIPLIER;
}

static __always_inline __u64 word_of(void *map, __u32 index)
{
	__u64 *word = bpf_map_lookup_elem(map, &index);

	return word ? *word : 0;
}

/* Whether an entry may cover the address; address in host order. */
static __always_inline _Bool may_match4(__u32 address)
{
	return word_of(&filters4, address >> 14) >> ((address >> 8) & 63) & 1;
}

/* high: the first 64 bits of the address, in host order. */
static __always_inline _Bool may_match6(__u64 high)
{
	__u64 bits;

	bits = word_of(&filters6, hash(high >> 16) >> 44) >> (hash(high) >> 58);
	bits |= word_of(&coarse_filters6, hash(high >> 32) >> 46) >> (hash(high >> 16) >> 58);
	bits |= word_of(&coarse_filters6, COARSE6_HASHED + (high >> 54)) >> ((high >> 48) & 63);
	return bits & 1;
}

static __always_inline __u32 mask4(__u32 prefixlen)
{
	return ~0ULL << (32 - prefixlen);
}

static __always_inline __u64 mask64(__u32 prefixlen)
{
	return prefixlen ? ~0ULL << (64 - prefixlen) : 0;
}

/* The time as of the last tick of a CPU, which is much cheaper than the time. Each CPU has its own: what
 * another one writes may be seen in another order. */
static volatile struct {
	__u64 jiffies;
	__u64 time; /* ns of CLOCK_BOOTTIME */
} ticks[TICK_CPUS];

static __always_inline __u64 tick_time(void)
{
	__u32 cpu = bpf_get_smp_processor_id() & (TICK_CPUS - 1);
	__u64 jiffies = bpf_jiffies64();

	if (unlikely(ticks[cpu].jiffies != jiffies)) {
		ticks[cpu].time = bpf_ktime_get_boot_ns();
		ticks[cpu].jiffies = jiffies;
	}
	return ticks[cpu].time;
}

static __always_inline __u32 seconds_of(__u64 time)
{
	return time / NSEC_PER_SEC;
}

/* An end of 0 never comes: without overflow it would be the first to have come. */
static __always_inline _Bool is_in_force(const struct block_entry *entry, __u32 seconds)
{
	return entry->expires - 1 >= seconds;
}

static __always_inline struct block_config *configuration(void)
{
	__u32 zero = 0;
	void *current = bpf_map_lookup_elem(&settings, &zero);

	return current ? bpf_map_lookup_elem(current, &zero) : NULL;
}

/* The length of the longest prefix of a list that covers the address; -1 if none does. */
static __always_inline int longest_match4(__u32 list, __u32 address, __u32 seconds)
{
	struct block_config *config = configuration();
	void *entries = bpf_map_lookup_elem(&lists4, &list);
	__u64 lengths = word_of(&lengths4, address >> 16);

	if (!config || !entries)
		return -1;
	for (__u32 i = 0; i < MAX_LENGTHS4 && i < config->lengths4_count; i++) {
		struct block_key4 key = {.prefixlen = config->lengths4[i] & 63};
		struct block_entry *entry;

		if (!(lengths >> key.prefixlen & 1))
			continue;
		key.address = address & mask4(key.prefixlen);
		entry = bpf_map_lookup_elem(entries, &key);
		if (entry && is_in_force(entry, seconds))
			return key.prefixlen;
	}
	return -1;
}

/* The same for STEPS6 of the prefix lengths in use, from the first on. Global functions are verified
 * once, and apart from the loops that call them: this and those below are here so that the verifier
 * doesn't walk far. */
__noinline int match6(__u32 list, __u64 high, __u64 low, __u32 first, __u32 seconds)
{
	struct block_config *config = configuration();
	void *entries = bpf_map_lookup_elem(&lists6, &list);
	__u64 from = first;

	for (__u32 i = 0; i < STEPS6 && config && entries; i++, from++) {
		const struct block_length6 *length;
		struct block_key6 key = {};
		struct block_entry *entry;

		barrier_var(from);
		if (from >= MAX_LENGTHS6 || from >= config->lengths6_count)
			return -1;
		length = config->lengths6 + from;
		key.prefixlen = length->prefixlen;
		key.high = high & length->high;
		key.low = low & length->low;
		entry = bpf_map_lookup_elem(entries, &key);
		if (entry && is_in_force(entry, seconds))
			return key.prefixlen;
	}
	return -1;
}

static __always_inline int longest_match6(__u32 list, __u64 high, __u64 low, __u32 seconds)
{
	struct block_config *config = configuration();
	int length = -1;

	for (__u32 i = 0; i < MAX_LENGTHS6 && config && i < config->lengths6_count; i += STEPS6) {
		length = match6(list, high, low, i, seconds);
		if (length >= 0)
			break;
	}
	return length;
}

static __always_inline void add_block_row(enum block_row row, __u64 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&block_rows, &row);

	if (!counter)
		return;
	__sync_fetch_and_add(&counter->packets, 1);
	__sync_fetch_and_add(&counter->bytes, bytes);
}

/* An address in host order; of IPv4 the upper half doesn't count. */
struct number {
	__u64 high;
	__u64 low;
};

static __always_inline __u64 high_of(const ip_addr_t *address)
{
	return (__u64)bpf_ntohl(address->s6_addr32[0]) << 32 | bpf_ntohl(address->s6_addr32[1]);
}

static __always_inline __u64 low_of(const ip_addr_t *address)
{
	return (__u64)bpf_ntohl(address->s6_addr32[2]) << 32 | bpf_ntohl(address->s6_addr32[3]);
}

static __always_inline struct number number_of(const ip_addr_t *address)
{
	return (struct number){.high = high_of(address), .low = low_of(address)};
}

/* How a packet was met: what a global function can be told in a number. In the upper half is a hash
 * of the address at its other end. */
enum place {
	PLACE_LAYER_IP = 1,
	PLACE_EGRESS = 2,
	PLACE_CGROUP = 4,
	PLACE_IPV4 = 8,
	PLACE_DESTINATION = 16, /* which address is looked up */
};

static __always_inline enum layer layer_of(__u64 place)
{
	return place & PLACE_LAYER_IP ? LAYER_IP : LAYER_ETHERNET;
}

/* What asking a list needs to know of it, in a number, for the settings may change after the list was
 * found in them. */
enum list_bits {
	LIST_NUMBER = MAX_LISTS - 1,
	LIST_DROPS = 0x100,
	LIST_ALERTS = 0x200,
	LIST_ALLOWS = 0x400,
	LIST_IDENTITY = 16,  /* the first bit, of 8 */
	LIST_PREFIXLEN = 24, /* the first bit of the length of the entry that was hit */
};

static __always_inline __u32 list_of(const struct block_config *config, __u32 number)
{
	return number | (config->drop >> number & 1) * LIST_DROPS |
	       (config->alert >> number & 1) * LIST_ALERTS |
	       (config->allow >> number & 1) * LIST_ALLOWS |
	       config->identities[number] << LIST_IDENTITY;
}

static __always_inline int longest_match(__u32 list, __u64 high, __u64 low, __u64 place,
                                         __u32 seconds)
{
	list &= LIST_NUMBER;
	return place & PLACE_IPV4 ? longest_match4(list, low, seconds)
	                          : longest_match6(list, high, low, seconds);
}

/* The entry of a list that covers an address. */
static __always_inline struct hit_key key_of(__u32 list, __u32 prefixlen, __u64 high, __u64 low,
                                             __u64 place)
{
	struct hit_key key = {.list = list >> LIST_IDENTITY & 0xff, .prefixlen = prefixlen};

	if (place & PLACE_IPV4) {
		key.ipv4 = 1;
		key.address = mapped(bpf_htonl(low & mask4(prefixlen & 63)));
		return key;
	}
	high &= prefixlen < 64 ? mask64(prefixlen) : ~0ULL;
	low &= prefixlen > 64 ? mask64((prefixlen - 64) & 127) : 0;
	key.address.s6_addr32[0] = bpf_htonl(high >> 32);
	key.address.s6_addr32[1] = bpf_htonl(high);
	key.address.s6_addr32[2] = bpf_htonl(low >> 32);
	key.address.s6_addr32[3] = bpf_htonl(low);
	return key;
}

static __always_inline void count_hit(const struct hit_key *key, __u32 bytes, __u64 now)
{
	static const struct hit_counters none;
	struct hit_counters *counters = bpf_map_lookup_elem(&hits, key);

	if (unlikely(!counters)) {
		bpf_map_update_elem(&hits, key, &none, BPF_NOEXIST);
		counters = bpf_map_lookup_elem(&hits, key);
	}
	if (unlikely(!counters)) {
		add_block_row(BLOCK_HITS_FULL, bytes);
		return;
	}
	__sync_fetch_and_add(&counters->packets, 1);
	__sync_fetch_and_add(&counters->bytes, bytes);
	counters->last_seen = now;
}

static __always_inline __u32 hash_number(const struct number *number)
{
	return hash(number->high ^ hash(number->low)) >> 32;
}

/* The place of an entry and another address among the episodes; its tag in *tag. */
static __always_inline struct episode *episode_of(const struct hit_key *key, __u32 other,
                                                  __u32 *tag)
{
	struct number number = number_of(&key->address);
	__u64 mixed = hash(hash(number.high ^ hash(number.low)) ^
	                   ((__u64)other << 32 | key->list << 8 | key->prefixlen));
	__u32 index = mixed >> 50;

	*tag = (__u32)(mixed >> 18) | 1;
	return bpf_map_lookup_elem(&episodes, &index);
}

/* Counts a hit that belongs to an episode; false if it is to be reported. */
static __always_inline _Bool is_suppressed(const struct hit_key *key, __u32 other, __u32 length,
                                           __u64 now)
{
	struct block_config *config = configuration();
	__u32 tag;
	struct episode *episode = episode_of(key, other, &tag);

	if (!config || !episode || episode->tag != tag ||
	    seconds_of(now) >= episode->seconds + config->episode_seconds)
		return 0;
	__sync_fetch_and_add(&episode->suppressed, 1);
	add_block_row(BLOCK_EVENTS_SUPPRESSED, length);
	return 1;
}

/* Begins an episode, and ends the one that another entry has in its place. Two hits at the same time
 * may both begin one. Evaluates to how many hits the one before suppressed. */
static __always_inline __u64 begin_episode(const struct hit_key *key, __u32 other, __u64 now)
{
	__u64 suppressed = 0;
	__u32 tag;
	struct episode *episode = episode_of(key, other, &tag);

	if (!episode)
		return 0;
	if (episode->tag == tag)
		suppressed = episode->suppressed;
	episode->tag = tag;
	episode->seconds = seconds_of(now);
	episode->suppressed = 0;
	return suppressed;
}

/* Steps over an extension header of IPv6; in the result are transport, fragment and protocol, 0 if it
 * is cut short. Of what a global function returns the verifier knows nothing, so that it doesn't follow
 * every way through 8 headers. */
static __always_inline __u64 step(const struct packet_view *view, __u32 transport, __u32 protocol)
{
	struct packet parsed = {.transport = transport & MAX_TRANSPORT, .protocol = protocol};

	if (!parse_extension(view, &parsed))
		return 0;
	return (__u64)parsed.transport << 16 | parsed.fragment << 8 | parsed.protocol;
}

typedef __u64 step_over(void *context, __u32 transport, __u32 protocol);

static __always_inline enum parse_result parse_extensions(void *context, step_over *step,
                                                          struct packet *parsed)
{
	for (int i = 0; i < MAX_EXTENSIONS && more_extensions(parsed); i++) {
		__u64 next = step(context, parsed->transport, parsed->protocol);

		if (!next)
			return PARSE_TRUNCATED;
		parsed->protocol = next;
		if (next >> 8 & 3)
			parsed->fragment = next >> 8 & 3;
		parsed->transport = next >> 16 & MAX_TRANSPORT;
	}
	return more_extensions(parsed) ? PARSE_TOO_DEEP : PARSE_OK;
}

/* Reads what of an event stands in the packet; what can't be read stays 0. */
static __always_inline void read_event(const struct packet_view *view, void *context,
                                       step_over *step, __u64 place, struct block_event *event)
{
	struct packet parsed = {};

	if (parse_link(view, layer_of(place), &parsed) != PARSE_OK)
		return;
	parse_address(view, &parsed, END_SOURCE, &event->source);
	parse_address(view, &parsed, END_DESTINATION, &event->destination);
	if (parsed.ethertype == ETH_P_IP) {
		if (parse_ipv4(view, &parsed) != PARSE_OK)
			return;
	} else if (parse_ipv6_fixed(view, &parsed) != PARSE_OK ||
	           parse_extensions(context, step, &parsed) != PARSE_OK) {
		return;
	}
	event->protocol = parsed.protocol;
	if (parse_transport(view, &parsed) != PARSE_OK)
		return;
	event->source_port = parsed.source_port;
	event->destination_port = parsed.destination_port;
}

/* What lists that cover an address of a packet do with it. */
enum block_action {
	ACTION_DROP = 1,
	ACTION_ALERT = 2,
	ACTION_ALLOWED = 4,
	ACTION_REPORT = 8,
	ACTION_PREFIXLEN = 8, /* the first bit, in what a single list does */
};

/* Asks a list, and counts the hit: what it does with the packet. */
__noinline __u32 ask_list(__u32 list, __u64 high, __u64 low, __u64 place, __u32 length)
{
	__u64 now = tick_time();
	int prefixlen = longest_match(list, high, low, place, seconds_of(now));
	__u32 actions = list / LIST_DROPS & (ACTION_DROP | ACTION_ALERT | ACTION_ALLOWED);
	struct hit_key key;

	if (prefixlen < 0)
		return 0;
	if (actions & ACTION_ALLOWED)
		return actions;
	key = key_of(list, prefixlen, high, low, place);
	count_hit(&key, length, now);
	if (actions & ACTION_ALERT && !is_suppressed(&key, place >> 32, length, now))
		actions |= ACTION_REPORT;
	return actions | prefixlen << ACTION_PREFIXLEN;
}

static __always_inline struct block_event *new_event(__u32 list, __u64 high, __u64 low, __u64 place,
                                                     __u32 length)
{
	struct hit_key key = key_of(list, list >> LIST_PREFIXLEN, high, low, place);
	__u64 now = bpf_ktime_get_boot_ns(), suppressed = begin_episode(&key, place >> 32, now);
	struct block_event *event = bpf_ringbuf_reserve(&block_events, sizeof(*event), 0);

	if (!event) {
		add_block_row(BLOCK_EVENTS_LOST, length);
		return NULL;
	}
	*event = (struct block_event){
		.time = now,
		.suppressed = suppressed,
		.entry = key,
		.length = length,
		.direction = place & PLACE_EGRESS ? DIRECTION_EGRESS : DIRECTION_INGRESS,
		.dropped = !!(list & LIST_DROPS),
		.matched_destination = !!(place & PLACE_DESTINATION),
	};
	return event;
}

__noinline __u64 step_skb(struct __sk_buff *skb, __u32 transport, __u32 protocol)
{
	struct packet_view view = VIEW_COPY(skb);

	return step(&view, transport, protocol);
}

__noinline int report_skb(struct __sk_buff *skb, __u32 list, __u64 high, __u64 low, __u64 place)
{
	struct packet_view view = VIEW_COPY(skb);
	struct block_event *event = new_event(list, high, low, place, skb->len);

	if (!event)
		return 0;
	event->ifindex = skb->ifindex;
	event->hook = place & PLACE_CGROUP ? HOOK_CGROUP : HOOK_TC;
	if (place & (PLACE_EGRESS | PLACE_CGROUP))
		event->cgroup_id = bpf_skb_cgroup_id(skb);
	read_event(&view, skb, (step_over *)step_skb, place, event);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

typedef int report_hit(void *context, __u32 list, __u64 high, __u64 low, __u64 place);

/* Judges an address of a packet by every list, those that allow first. */
static __always_inline __u32 judge(void *context, report_hit *report, __u64 high, __u64 low,
                                   __u64 place, __u32 length)
{
	struct block_config *config = configuration();
	__u32 actions = 0, done, list;
	__u64 lists;

	if (!config)
		return 0;
	lists = config->lists & ~config->allow;
	lists &= place & PLACE_DESTINATION ? config->destination : config->source;
	lists = config->allow | lists << MAX_LISTS;
	for (int i = 0; i < MAX_LISTS && lists; i++, lists &= lists - 1) {
		list = list_of(config, __builtin_ctzll(lists) & LIST_NUMBER);
		done = ask_list(list, high, low, place, length);
		if (done & ACTION_ALLOWED)
			return ACTION_ALLOWED;
		if (done & ACTION_REPORT)
			report(context, list | done >> ACTION_PREFIXLEN << LIST_PREFIXLEN, high,
			       low, place);
		actions |= done;
	}
	return actions;
}

__noinline int judge_skb(struct __sk_buff *skb, __u64 high, __u64 low, __u64 place)
{
	return judge(skb, (report_hit *)report_skb, high, low, place, skb->len);
}

/* Whether an address of the packet may be on a list, and which. */
struct suspicion {
	enum parse_result result;
	_Bool source;
	_Bool destination;
};

static __always_inline struct suspicion suspect4(const struct packet_view *view,
                                                 const struct packet *parsed)
{
	struct iphdr ip;

	if (unlikely(!read_header(view, parsed->network, &ip) || ip.version != 4))
		return (struct suspicion){.result = PARSE_TRUNCATED};
	return (struct suspicion){.source = may_match4(bpf_ntohl(ip.saddr)),
	                          .destination = may_match4(bpf_ntohl(ip.daddr))};
}

static __always_inline struct suspicion suspect6(const struct packet_view *view,
                                                 const struct packet *parsed)
{
	struct ipv6hdr ip;

	if (unlikely(!read_header(view, parsed->network, &ip) || ip.version != 6))
		return (struct suspicion){.result = PARSE_TRUNCATED};
	return (struct suspicion){.source = may_match6(high_of(&ip.saddr)),
	                          .destination = may_match6(high_of(&ip.daddr))};
}

static __always_inline struct suspicion suspect(const struct packet_view *view, __u64 place,
                                                struct packet *parsed)
{
	enum parse_result result = parse_link(view, layer_of(place), parsed);

	if (unlikely(result != PARSE_OK))
		return (struct suspicion){.result = result};
	return parsed->ethertype == ETH_P_IP ? suspect4(view, parsed) : suspect6(view, parsed);
}

/* What is judged of a packet. The addresses are only there if one is suspected. */
struct ends {
	struct suspicion suspicion;
	struct number source;
	struct number destination;
	_Bool ipv4;
};

static __always_inline _Bool is_harmless(const struct suspicion *suspicion)
{
	return suspicion->result == PARSE_OK && !suspicion->source && !suspicion->destination;
}

static __always_inline void read_ends(const struct packet_view *view, __u64 place,
                                      struct ends *ends)
{
	struct packet parsed = {};
	ip_addr_t source, destination;

	ends->suspicion = suspect(view, place, &parsed);
	if (likely(is_harmless(&ends->suspicion) || ends->suspicion.result != PARSE_OK))
		return;
	if (parse_address(view, &parsed, END_SOURCE, &source) != PARSE_OK ||
	    parse_address(view, &parsed, END_DESTINATION, &destination) != PARSE_OK)
		return;
	ends->source = number_of(&source);
	ends->destination = number_of(&destination);
	ends->ipv4 = parsed.ethertype == ETH_P_IP;
}

static __always_inline __u64 place_of(const struct ends *ends, enum end end, __u64 place)
{
	const struct number *other = end == END_SOURCE ? &ends->destination : &ends->source;

	return place | (ends->ipv4 ? PLACE_IPV4 : 0) |
	       (end == END_DESTINATION ? PLACE_DESTINATION : 0) | (__u64)hash_number(other) << 32;
}

/* Counts what became of a packet; evaluates to whether to drop it. */
static __always_inline _Bool conclude(int actions, __u64 bytes)
{
	if (actions & ACTION_DROP)
		add_block_row(BLOCK_DROPPED, bytes);
	else if (actions & ACTION_ALERT)
		add_block_row(BLOCK_ALERTED, bytes);
	else if (actions & ACTION_ALLOWED)
		add_block_row(BLOCK_ALLOWED, bytes);
	return actions & ACTION_DROP;
}

static __always_inline enum block_row unjudged(enum parse_result result)
{
	switch (result) {
	case PARSE_NOT_IP:
		return BLOCK_NON_IP;
	case PARSE_TOO_DEEP:
		return BLOCK_TOO_DEEP;
	default:
		return BLOCK_TRUNCATED;
	}
}

/* For headers that can't be read directly. The copy is slow, and seldom needed. */
static __noinline void copy_ends(struct __sk_buff *skb, __u64 place, struct ends *ends)
{
	struct packet_view view = VIEW_COPY(skb);

	read_ends(&view, place, ends);
}

static __always_inline _Bool is_blocked(struct __sk_buff *skb, __u64 place)
{
	struct packet_view view = VIEW_LINEAR(skb);
	struct ends ends = {}, copied = {};
	__u32 actions = 0;

	read_ends(&view, place, &ends);
	if (likely(is_harmless(&ends.suspicion)))
		return 0;
	if (unlikely(ends.suspicion.result == PARSE_TRUNCATED)) {
		copy_ends(skb, place, &copied);
		ends = copied;
	}
	if (unlikely(ends.suspicion.result != PARSE_OK)) {
		add_block_row(unjudged(ends.suspicion.result), skb->len);
		return 0;
	}
	if (ends.suspicion.source)
		actions |= judge_skb(skb, ends.source.high, ends.source.low,
		                     place_of(&ends, END_SOURCE, place));
	if (ends.suspicion.destination)
		actions |= judge_skb(skb, ends.destination.high, ends.destination.low,
		                     place_of(&ends, END_DESTINATION, place));
	return conclude(actions, skb->len);
}

#endif
