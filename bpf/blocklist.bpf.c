// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
//go:build ignore

/* blocklist: drops or reports packets from or to listed addresses.
 *
 * Hook: tc ingress and egress (TCX or clsact) and XDP; the _l3 functions on devices without an
 * Ethernet header; cgroup_skb ingress and egress.
 * Verdict: drop (tc: TC_ACT_SHOT, XDP: XDP_DROP, cgroup_skb: 0) if the source or destination address
 * is on a list that drops, and not on the allow list. Everything else goes on (tc: TC_ACT_UNSPEC, so
 * that later programs run; XDP: XDP_PASS; cgroup_skb: 1): what isn't IP or has no whole IP header,
 * too. Fragments have addresses, so each one is judged.
 * Kernel: 5.10, the oldest one tested; bounded loops (5.3), ring buffers, bpf_ktime_get_boot_ns (5.8).
 */
#include "blocklist.h"

__noinline __u64 step_frame(struct xdp_md *frame, __u32 transport, __u32 protocol)
{
	struct packet_view view = VIEW_LINEAR(frame);

	return step(&view, transport, protocol);
}

__noinline int report_frame(struct xdp_md *frame, __u32 list, __u64 high, __u64 low, __u64 place)
{
	struct packet_view view = VIEW_LINEAR(frame);
	struct block_event *event = new_event(list, high, low, place, view.data_end - view.data);

	if (!event)
		return 0;
	event->ifindex = frame->ingress_ifindex;
	event->hook = HOOK_XDP;
	read_event(&view, frame, (step_over *)step_frame, place, event);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

__noinline int judge_frame(struct xdp_md *frame, __u64 high, __u64 low, __u64 place)
{
	return judge(frame, (report_hit *)report_frame, high, low, place,
	             frame->data_end - frame->data);
}

static __always_inline int block_tc(struct __sk_buff *skb, __u32 place)
{
	return is_blocked(skb, place) ? TC_DROP : TC_NEXT;
}

static __always_inline int block_xdp(struct xdp_md *frame, __u64 place)
{
	struct packet_view view = VIEW_LINEAR(frame);
	__u64 bytes = view.data_end - view.data;
	struct ends ends = {};
	__u32 actions = 0;

	read_ends(&view, place, &ends);
	if (likely(is_harmless(&ends.suspicion)))
		return XDP_PASS;
	if (unlikely(ends.suspicion.result != PARSE_OK)) {
		add_block_row(unjudged(ends.suspicion.result), bytes);
		return XDP_PASS;
	}
	if (ends.suspicion.source)
		actions |= judge_frame(frame, ends.source.high, ends.source.low,
		                       place_of(&ends, END_SOURCE, place));
	if (ends.suspicion.destination)
		actions |= judge_frame(frame, ends.destination.high, ends.destination.low,
		                       place_of(&ends, END_DESTINATION, place));
	return conclude(actions, bytes) ? XDP_DROP : XDP_PASS;
}

SEC("tcx/ingress")
int blocklist_ingress(struct __sk_buff *skb)
{
	return block_tc(skb, 0);
}

SEC("tcx/egress")
int blocklist_egress(struct __sk_buff *skb)
{
	return block_tc(skb, PLACE_EGRESS);
}

SEC("tcx/ingress")
int blocklist_ingress_l3(struct __sk_buff *skb)
{
	return block_tc(skb, PLACE_LAYER_IP);
}

SEC("tcx/egress")
int blocklist_egress_l3(struct __sk_buff *skb)
{
	return block_tc(skb, PLACE_LAYER_IP | PLACE_EGRESS);
}

SEC("cgroup_skb/ingress")
int blocklist_cgroup_ingress(struct __sk_buff *skb)
{
	return !is_blocked(skb, PLACE_LAYER_IP | PLACE_CGROUP);
}

SEC("cgroup_skb/egress")
int blocklist_cgroup_egress(struct __sk_buff *skb)
{
	return !is_blocked(skb, PLACE_LAYER_IP | PLACE_CGROUP | PLACE_EGRESS);
}

SEC("xdp")
int blocklist_xdp(struct xdp_md *frame)
{
	return block_xdp(frame, 0);
}

SEC("xdp")
int blocklist_xdp_l3(struct xdp_md *frame)
{
	return block_xdp(frame, PLACE_LAYER_IP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
