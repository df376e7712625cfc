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

#define MAX_DOMAINS 65536
#define MAX_ANSWERS 131072
#define DOMAIN_SIZE 256

#define MAX_HITS     262144
#define EPISODES     16384
#define EVENTS_BYTES (256 * 1024)

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

/* What a hit is reported with. */
struct block_packet {
	ip_addr_t source;
	ip_addr_t destination;
	__u64 cgroup_id;
	__u32 ifindex;
	__u32 length;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	enum block_direction direction;
	enum block_hook hook;
	__u8 ipv4;
};

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
	return prefixlen ? ~0U << (32 - prefixlen) : 0;
}

static __always_inline __u64 mask64(__u32 prefixlen)
{
	return prefixlen ? ~0ULL << (64 - prefixlen) : 0;
}

static __always_inline _Bool is_in_force(const struct block_entry *entry)
{
	return !entry->expires || bpf_ktime_get_boot_ns() < entry->expires * NSEC_PER_SEC;
}

static __always_inline struct block_config *configuration(void)
{
	__u32 zero = 0;
	void *current = bpf_map_lookup_elem(&settings, &zero);

	return current ? bpf_map_lookup_elem(current, &zero) : NULL;
}

/* The length of the longest prefix of a list that covers the address; -1 if none does. Global, so
 * that it is verified once. */
__noinline int longest_match4(__u32 list, __u32 address)
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
		if (entry && is_in_force(entry))
			return key.prefixlen;
	}
	return -1;
}

__noinline int longest_match6(__u32 list, __u64 high, __u64 low)
{
	struct block_config *config = configuration();
	void *entries = bpf_map_lookup_elem(&lists6, &list);

	if (!config || !entries)
		return -1;
	for (__u32 i = 0; i < MAX_LENGTHS6 && i < config->lengths6_count; i++) {
		const struct block_length6 *length = &config->lengths6[i];
		struct block_key6 key = {.prefixlen = length->prefixlen,
		                         .high = high & length->high,
		                         .low = low & length->low};
		struct block_entry *entry = bpf_map_lookup_elem(entries, &key);

		if (entry && is_in_force(entry))
			return key.prefixlen;
	}
	return -1;
}

static __always_inline void add_block_row(enum block_row row, __u64 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(&block_rows, &row);

	if (!counter)
		return;
	__sync_fetch_and_add(&counter->packets, 1);
	__sync_fetch_and_add(&counter->bytes, bytes);
}

static __always_inline __u64 high_of(const ip_addr_t *address)
{
	return (__u64)bpf_ntohl(address->s6_addr32[0]) << 32 | bpf_ntohl(address->s6_addr32[1]);
}

static __always_inline __u64 low_of(const ip_addr_t *address)
{
	return (__u64)bpf_ntohl(address->s6_addr32[2]) << 32 | bpf_ntohl(address->s6_addr32[3]);
}

static __always_inline int longest_match(__u32 list, const ip_addr_t *address, _Bool ipv4)
{
	if (ipv4)
		return longest_match4(list, bpf_ntohl(address->s6_addr32[3]));
	return longest_match6(list, high_of(address), low_of(address));
}

/* Zeroes what is beyond the prefix. */
static __always_inline void cut(ip_addr_t *address, __u32 prefixlen, _Bool ipv4)
{
	__u64 mask;

	if (ipv4) {
		address->s6_addr32[3] &= bpf_htonl(mask4(prefixlen & 63));
		return;
	}
	mask = prefixlen < 64 ? mask64(prefixlen) : ~0ULL;
	address->s6_addr32[0] &= bpf_htonl(mask >> 32);
	address->s6_addr32[1] &= bpf_htonl(mask);
	mask = prefixlen > 64 ? mask64((prefixlen - 64) & 127) : 0;
	address->s6_addr32[2] &= bpf_htonl(mask >> 32);
	address->s6_addr32[3] &= bpf_htonl(mask);
}

static __always_inline void count_hit(const struct hit_key *key, __u32 bytes, __u64 now)
{
	static const struct hit_counters none;
	struct hit_counters *counters = bpf_map_lookup_elem(&hits, key);

	if (!counters) {
		bpf_map_update_elem(&hits, key, &none, BPF_NOEXIST);
		counters = bpf_map_lookup_elem(&hits, key);
	}
	if (!counters) {
		add_block_row(BLOCK_HITS_FULL, bytes);
		return;
	}
	__sync_fetch_and_add(&counters->packets, 1);
	__sync_fetch_and_add(&counters->bytes, bytes);
	counters->last_seen = now;
}

/* Whether a hit is the first of an episode. Two that come at the same time may both be; one that
 * takes the place of another entry's ends that one's episode. */
static __always_inline _Bool begins_episode(const struct hit_key *key, const ip_addr_t *other,
                                            __u32 length, __u64 now, __u64 *suppressed)
{
	struct block_config *config = configuration();
	__u64 mixed = hash(high_of(&key->address) ^ hash(low_of(&key->address)));
	__u32 seconds = now / NSEC_PER_SEC, index, tag;
	struct episode *episode;

	mixed = hash(mixed ^ high_of(other) ^
	             hash(low_of(other) + key->list * 256 + key->prefixlen));
	index = mixed >> 50;
	tag = (__u32)(mixed >> 18) | 1;
	episode = bpf_map_lookup_elem(&episodes, &index);
	if (!config || !episode)
		return 1;
	if (episode->tag == tag && seconds - episode->seconds < config->episode_seconds) {
		__sync_fetch_and_add(&episode->suppressed, 1);
		add_block_row(BLOCK_EVENTS_SUPPRESSED, length);
		return 0;
	}
	*suppressed = episode->tag == tag ? episode->suppressed : 0;
	episode->tag = tag;
	episode->seconds = seconds;
	episode->suppressed = 0;
	return 1;
}

static __always_inline void report(const struct block_packet *packet, const struct hit_key *key,
                                   enum end end, _Bool dropped, __u64 now)
{
	const ip_addr_t *other = end == END_SOURCE ? &packet->destination : &packet->source;
	__u64 suppressed = 0;
	struct block_event *event;

	if (!begins_episode(key, other, packet->length, now, &suppressed))
		return;
	event = bpf_ringbuf_reserve(&block_events, sizeof(*event), 0);
	if (!event) {
		add_block_row(BLOCK_EVENTS_LOST, packet->length);
		return;
	}
	*event = (struct block_event){
		.time = now,
		.cgroup_id = packet->cgroup_id,
		.suppressed = suppressed,
		.source = packet->source,
		.destination = packet->destination,
		.entry = *key,
		.ifindex = packet->ifindex,
		.length = packet->length,
		.source_port = packet->source_port,
		.destination_port = packet->destination_port,
		.protocol = packet->protocol,
		.direction = packet->direction,
		.hook = packet->hook,
		.dropped = dropped,
		.matched_destination = end == END_DESTINATION,
	};
	bpf_ringbuf_submit(event, 0);
}

/* What lists that cover an address of a packet have done with it. */
enum block_action {
	ACTION_DROP = 1,
	ACTION_ALERT = 2,
	ACTION_ALLOWED = 4,
};

static __always_inline const ip_addr_t *address_of(const struct block_packet *packet, enum end end)
{
	return end == END_SOURCE ? &packet->source : &packet->destination;
}

/* What a hit needs to know of its list, in a number: the settings may have changed since the list was
 * found in them. */
enum hit_bits {
	HIT_IDENTITY = 0xff,
	HIT_DROP = 0x100,
	HIT_ALERT = 0x200,
};

static __always_inline __u32 hit_of(const struct block_config *config, __u32 list)
{
	__u32 of = config->identities[list & (MAX_LISTS - 1)];

	if (config->drop >> list & 1)
		of |= HIT_DROP;
	if (config->alert >> list & 1)
		of |= HIT_ALERT;
	return of;
}

/* Counts a hit of an entry, and reports it if its list does. Evaluates to the list's actions. */
static __always_inline int hit(const struct block_packet *packet, enum end end, __u32 of,
                               __u32 prefixlen)
{
	struct hit_key key = {.list = of & HIT_IDENTITY,
	                      .prefixlen = prefixlen,
	                      .ipv4 = packet->ipv4,
	                      .address = *address_of(packet, end)};
	__u64 now = bpf_ktime_get_boot_ns();

	cut(&key.address, key.prefixlen, packet->ipv4);
	count_hit(&key, packet->length, now);
	if (of & HIT_ALERT)
		report(packet, &key, end, of & HIT_DROP, now);
	return (of & HIT_DROP ? ACTION_DROP : 0) | (of & HIT_ALERT ? ACTION_ALERT : 0);
}

static __always_inline _Bool is_allowed(const struct block_config *config, const ip_addr_t *address,
                                        _Bool ipv4)
{
	for (__u32 list = 0; list < MAX_LISTS; list++) {
		if (config->allow >> list & 1 && longest_match(list, address, ipv4) >= 0)
			return 1;
	}
	return 0;
}

/* Judges one address of a packet by every list. record is a global function that counts a hit: so
 * the verifier sees it once, and not once for each list. */
#define judge_address(context, record, packet, end, place)                                         \
	({                                                                                         \
		const ip_addr_t *address_ = address_of(packet, end);                               \
		struct block_config *config_ = configuration();                                    \
		int actions_ = 0, length_;                                                         \
		__u32 lists_ = 0;                                                                  \
		if (config_ && is_allowed(config_, address_, (packet)->ipv4))                      \
			actions_ = ACTION_ALLOWED;                                                 \
		else if (config_)                                                                  \
			lists_ = config_->lists &                                                  \
			         ((end) == END_SOURCE ? config_->source : config_->destination);   \
		for (__u32 list_ = 0; list_ < MAX_LISTS; list_++) {                                \
			if (!(lists_ >> list_ & 1))                                                \
				continue;                                                          \
			length_ = longest_match(list_, address_, (packet)->ipv4);                  \
			if (length_ >= 0)                                                          \
				actions_ |= record(context, hit_of(config_, list_), length_, end,  \
				                   place);                                         \
		}                                                                                  \
		actions_;                                                                          \
	})

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

#endif
