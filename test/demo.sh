#!/usr/bin/env bash
# Shows bpfnet on real traffic: two "Pods", network namespaces whose host-side
# devices hang on a bridge, are counted and filtered, and the numbers compared
# with those of the kernel. The host of the Pods is a namespace, too, and bpfnet
# keeps its state in a bpffs directory of the demo's own, so that nothing on this
# machine is touched. Ends with an error when a number doesn't match.
#
# Usage: demo.sh [BPFNET]
set -euo pipefail

tool=$(realpath "${1:-./bpfnet}")
if [[ $EUID -ne 0 ]]; then
	echo "demo: loading BPF programs needs root: sudo $0 $tool"
	exec sudo "$0" "$tool"
fi
PATH=$PATH:/usr/sbin:/sbin

id=bpfnet-demo-$$
host=$id-host pod_a=$id-a pod_b=$id-b
a4=10.77.0.4 b4=10.77.0.5 b6=fd77::5
export BPFNET_BPFFS=/sys/fs/bpf/$id
unset BPFNET_OUTPUT

servers=()
cleanup() {
	trap - EXIT INT TERM
	[[ ${#servers[@]} -eq 0 ]] || { kill "${servers[@]}" && wait "${servers[@]}"; } 2>/dev/null || true
	"$tool" unload --all --detach -q >/dev/null 2>&1 || true
	for ns in "$pod_a" "$pod_b" "$host"; do
		ip netns del "$ns" 2>/dev/null || true
	done
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() {
	echo "demo: $*" >&2
	exit 1
}

# ip netns exec would hide bpffs; nsenter doesn't.
in_ns() { nsenter --net="/run/netns/$1" -- "${@:2}"; }
ns=$host
bpfnet() { "$tool" --netns "$ns" "$@"; }
show() {
	echo "\$ bpfnet $*"
	bpfnet "$@" 2>&1
}

# pod NAMESPACE DEVICE IPV4 IPV6
pod() {
	ip netns add "$1"
	# No packets but those that the demo sends: no address probing, no routers.
	in_ns "$1" sysctl -qw net.ipv6.conf.default.router_solicitations=0 net.ipv6.conf.default.dad_transmits=0
	ip -n "$1" link set lo up
	ip -n "$host" link add "$2" type veth peer name eth0 netns "$1"
	ip -n "$host" link set "$2" master br0
	ip -n "$1" addr add "$3/24" dev eth0
	ip -n "$1" addr add "$4/64" dev eth0 nodad
	ip -n "$1" link set eth0 up
}

# serve PORT: a traffic server in Pod b.
serve() {
	nsenter --net="/run/netns/$pod_b" -- iperf3 -s -p "$1" >/dev/null 2>&1 &
	servers+=($!)
	until in_ns "$pod_b" ss -Hltn "sport = :$1" | grep -q .; do sleep 0.05; done
}

# send ARGUMENTS: iperf3 from Pod a to Pod b, shown as one line.
send() {
	in_ns "$pod_a" iperf3 -c "$b4" -J --connect-timeout 1000 "$@" |
		jq -er '"  \(.start.test_start.protocol): \(.end.sum_received.bytes // .end.sum.bytes) bytes, \((.end.sum_received.bits_per_second // .end.sum.bits_per_second) / 1e9 * 100 | round / 100) Gbit/s"'
}

# link DEVICE: what the device counts, as bpfnet names it: what the host's side
# receives is what the Pod transmits.
link() {
	ip -n "$host" -s -j link show dev "$1" |
		jq -c '.[0].stats64 | {transmit_bytes: .rx.bytes, receive_bytes: .tx.bytes}'
}

# settled: the devices' counters and bpfnet's at one moment: reads until the
# devices' counters are the same before and after.
settled() {
	local before after
	for _ in {1..50}; do
		before=$(link veth-a)$(link veth-b)
		document=$(bpfnet watch pods --once -o json)
		after=$(link veth-a)$(link veth-b)
		[[ $before != "$after" ]] || {
			link_a=$(link veth-a) link_b=$(link veth-b)
			return
		}
		sleep 0.1
	done
	die "the traffic doesn't come to rest"
}

# same WHAT OURS THEIRS
same() {
	[[ $2 == "$3" ]] || die "$1: bpfnet counted $2, the kernel $3"
	printf '  %-8s bpfnet      %s\n           ip -s link  %s\n' "$1" "$2" "$3"
}

say "1. Two Pods on a bridge"
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
ip netns add "$host"
in_ns "$host" sysctl -qw net.ipv6.conf.default.disable_ipv6=1 # the host's devices stay silent
ip -n "$host" link add br0 type bridge mcast_snooping 0
ip -n "$host" link set br0 up
pod "$pod_a" veth-a "$a4" fd77::4
pod "$pod_b" veth-b "$b4" "$b6"
serve 5201
serve 80
echo "  Pod a: $a4 behind veth-a; Pod b: $b4, $b6 behind veth-b"
echo "  (veth-a and veth-b go up when they are watched, so that not a byte is missed)"

say "2. Load pod-traffic and attach it to both host-side devices, both directions"
show load pod-traffic
show attach tc pod-traffic --dev veth-a --direction both
show attach tc pod-traffic --dev veth-b --direction both
[[ $(bpfnet attach tc pod-traffic --dev veth-a --direction both -o json | jq .changed) == false ]] ||
	die "attaching again changed something"
echo "  (attaching again changes nothing)"
ip -n "$host" link set veth-a up
ip -n "$host" link set veth-b up
for _ in {1..50}; do
	in_ns "$pod_a" ping -qc1 -W1 "$b4" >/dev/null 2>&1 && break
	sleep 0.1
done

say "3. Real traffic: TCP both ways, UDP, ping over IPv4 and IPv6"
send -n 50M
send -n 50M --reverse
send -u -b 200M -n 10M
in_ns "$pod_a" ping -qc3 -i0.2 "$b4" | sed -n 's/^3 packets/  ping: &/p'
in_ns "$pod_a" ping -qc3 -i0.2 "$b6" | sed -n 's/^3 packets/  ping: &/p'

say "4. What bpfnet counted"
show watch pods --once
echo
echo "\$ bpfnet watch pods --once -o json | jq -c '.pods[] | [.address, .devname, .transmit_bytes, .receive_bytes]'"
bpfnet watch pods --once -o json | jq -c '.pods[] | [.address, .devname, .transmit_bytes, .receive_bytes]'

say "5. The same as the interfaces count, byte for byte"
settled
bytes='{transmit_bytes, receive_bytes}'
of() { jq -c --arg dev "$1" "[.pods[] | select(.devname == \$dev)] |
	{transmit_bytes: (map(.transmit_bytes) | add), receive_bytes: (map(.receive_bytes) | add)}" <<<"$document"; }
sum() { jq -nc --argjson a "$1" --argjson b "$2" '$a | with_entries(.value += $b[.key])'; }
others=$(jq -c ".others | $bytes" <<<"$document")
same "in all" "$(jq -c ".total | $bytes" <<<"$document")" "$(sum "$link_a" "$link_b")"
[[ $(sum "$(sum "$(of veth-a)" "$(of veth-b)")" "$others") == "$(jq -c ".total | $bytes" <<<"$document")" ]] ||
	die "the rows don't add up to the total"
echo "  veth-a   $(of veth-a)"
echo "  veth-b   $(of veth-b)"
echo "  others   $others: ARP and multicast, which are no Pod's"
echo "  (Packets are segments, as they go over a wire; a veth counts the bigger buffers before they are split.)"

say "6. The map itself, and what is loaded"
show map dump pod-traffic/pods --limit 2
show status

say "7. Let only port 80 into Pod b: with the filter in place, two commands"
ns=$pod_b
show load port-filter --quiet
show attach tc port-filter --dev eth0 --direction ingress --quiet
echo "  port 5201 before: $(send -n 1M -p 5201 | sed 's/^ *//')"
show ports allow 80/tcp
show ports default drop
echo "  port 80:   $(send -n 1M -p 80 | sed 's/^ *//')"
if in_ns "$pod_a" iperf3 -c "$b4" -p 5201 -n 1M --connect-timeout 1000 >/dev/null 2>&1; then
	die "port 5201 can still be reached"
fi
echo "  port 5201: no connection"
in_ns "$pod_a" ping -qc1 -W1 "$b4" >/dev/null || die "ping doesn't pass"
echo "  ping:      passes (ARP, ICMP and DHCP do, unless --strict)"
show ports list
dropped=$(bpfnet ports list -o json | jq '.rows[] | select(.row == "default_drop").packets')
[[ $dropped -gt 0 ]] || die "nothing was dropped"

say "8. Clean up"
show unload --all --detach
[[ $(bpfnet status -o json | jq '.instances | length') == 0 ]] || die "something is still loaded"
cleanup
[[ ! -e $BPFNET_BPFFS ]] || die "$BPFNET_BPFFS is still there"
say "All numbers match; nothing is left."
