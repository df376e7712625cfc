// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// Sends a record each time it runs; the first byte of the packet says how.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum verdict { PASS, DROP };

struct event {
	__u64 number;
	__be32 source_ip;
	enum verdict verdict;
	char comm[8];
};

struct sample {
	__u64 number;
	__u32 length;
	__u32 mark;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} events SEC(".maps");

/* Key and value are those of the map, as the kernel wants them, not the records. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} samples SEC(".maps");

/* No structure is called like it. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} blobs SEC(".maps");

__u64 sent;    /* records that were sent, or should have been */
__u64 refused; /* of them those that found no space */

/* These put the types into the BTF. */
struct event *unused_event __attribute__((unused));
struct sample *unused_sample __attribute__((unused));

/* A record, and what programs put behind it. */
struct record {
	struct event event;
	__u8 payload[16];
};

static __always_inline long send(struct xdp_md *ctx, __u8 how, __u64 number)
{
	struct record r = {
		.event = {.number = number,
	                  .source_ip = bpf_htonl(0x0a000001),
	                  .verdict = DROP,
	                  .comm = "curl"},
		.payload = {0xca, 0xfe},
	};
	struct sample s = {.number = number, .length = 60, .mark = 7};
	void *place;

	switch (how) {
	case 'r':
		return bpf_ringbuf_output(&events, &r.event, sizeof(r.event), 0);
	case 'q': /* quietly */
		return bpf_ringbuf_output(&events, &r.event, sizeof(r.event), BPF_RB_NO_WAKEUP);
	case 'l':
		return bpf_ringbuf_output(&events, &r, sizeof(r), 0);
	case 's':
		return bpf_ringbuf_output(&events, &r, 5, 0);
	case 'b':
		return bpf_ringbuf_output(&blobs, &r, 5, 0);
	case 'd':
		place = bpf_ringbuf_reserve(&events, sizeof(r), 0);
		if (place)
			bpf_ringbuf_discard(place, 0);
		return place ? 0 : -1;
	case 'p':
		return bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, &s, sizeof(s));
	}
	return bpf_perf_event_output(ctx, &samples, BPF_F_CURRENT_CPU, &r, sizeof(r));
}

SEC("xdp")
int send_record(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	__u8 *how = (void *)(long)ctx->data;

	if ((void *)(how + 1) > end)
		return XDP_PASS;
	__u64 number = sent; /* kernels before 5.12 can't add and read at once */
	__sync_fetch_and_add(&sent, 1);
	if (send(ctx, *how, number))
		__sync_fetch_and_add(&refused, 1);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
