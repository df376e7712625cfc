// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
// A ring buffer whose definition says the type of its records. libbpf can't load it, cilium/ebpf can.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct reading {
	__s32 celsius;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
	__type(value, struct reading);
} thermometer SEC(".maps");

SEC("xdp")
int measure(struct xdp_md *ctx)
{
	struct reading r = {.celsius = -4};

	bpf_ringbuf_output(&thermometer, &r, sizeof(r), 0);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
