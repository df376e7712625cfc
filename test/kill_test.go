package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestKillAtEveryStep kills each command that changes something after each of
// its system calls that do. Whatever was left, readers work, each packet meets
// the old policy or the new one, the command run again leads to what an
// undisturbed run leads to, and unloading leaves nothing. The short form, which
// is the default, tries some of the calls; with BPFNET_TEST_ALL=1 it is all.
func TestKillAtEveryStep(t *testing.T) {
	for _, c := range crashes() {
		t.Run(c.name, c.run)
	}
}

// crashes are the commands that change something: a new one is a new line.
func crashes() []crash {
	words := func(line string) []string { return strings.Fields(line) }
	lines := func(text ...string) (all [][]string) {
		for _, line := range text {
			all = append(all, words(line))
		}
		return all
	}
	policy := []string{"ports default drop", "ports allow 80/udp 81/udp", "ports remove 81/udp"}
	filter := func(load string, attach ...string) [][]string {
		return lines(slices.Concat([]string{load}, policy, attach)...)
	}
	const (
		loadTC   = "load port-filter --prog port_filter_ingress --prog port_filter_egress"
		loadXDP  = "load port-filter --prog port_filter_xdp"
		tcBoth   = "attach tc port-filter --dev veth-b --direction both"
		xdp      = "attach xdp port-filter --dev veth-a --mode generic"
		loadMine = "load $OBJECTS/limits.o --name mine --max-entries allow=10000"
		loadPods = "load pod-traffic --prog pod_traffic_cgroup_ingress --prog pod_traffic_cgroup_egress"
		cgroup   = "attach cgroup pod-traffic --cgroup $CGROUP"
		loadSome = "load $OBJECTS/several.o --name mine --prog sockets --prog switches"
		sockops  = "attach sockops mine --cgroup $CGROUP"
		probes   = "load $OBJECTS/probes.o --name mine --prog "
	)
	blocked := lines("load blocklist --prog blocklist_ingress --prog blocklist_egress", "attach tc blocklist --dev veth-a --direction ingress",
		"blocklist add 10.77.0.6 2001:db8:bad::/48 --list feed --reason scans --force", "blocklist add 203.0.113.0/24")
	everywhere := filter("load port-filter", tcBoth, xdp, "attach tc port-filter --dev veth-a --direction ingress")
	full := lines(loadMine, `map set mine/limits 10.9.0.0/16 {"pps":1,"action":"pass"}`, `map set mine/limits 10.0.0.0/24 {"pps":1,"action":"pass"}`)

	list := words("ports list")
	entries := words("blocklist list")
	limited, allowed, counted := words("map dump mine/limits"), words("map dump mine/allow"), words("map dump mine/packets_by_source_address")
	return []crash{
		{name: "load", command: words("load port-filter")},
		{name: "load-object", command: words("load $OBJECTS/limits.o --name mine")},
		{name: "replace-tc", prepare: filter(loadTC, tcBoth), command: words(loadTC + " --prog port_filter_xdp --replace --reuse-maps"), compare: list, keeps: true},
		{name: "replace-xdp", prepare: filter(loadXDP, xdp), command: words(loadXDP + " --prog port_filter_xdp_l3 --replace --reuse-maps"), compare: list, keeps: true},
		{name: "replace-everywhere", prepare: everywhere, command: words(loadTC + " --prog port_filter_xdp --replace --reuse-maps"), compare: list, keeps: true},
		{name: "replace-policy", prepare: filter(loadTC, tcBoth), command: words(loadTC + " --prog port_filter_xdp --replace"), compare: list},
		{name: "replace-cgroup", prepare: lines(loadPods, cgroup), command: words("load pod-traffic --replace")},
		{name: "replace-again", prepare: filter(loadTC, tcBoth), halfway: words("renameat " + loadTC + " --prog port_filter_xdp --replace"), command: words(loadTC + " --prog port_filter_xdp --replace"), compare: list},
		{name: "load-after-unload", prepare: filter(loadTC), halfway: words("renameat unload port-filter"), command: words("load xdp-counter")},
		{name: "attach-tc", prepare: filter(loadTC), command: words(tcBoth), compare: list},
		{name: "attach-tc-second", prepare: slices.Concat(filter(loadTC, tcBoth), lines("load pod-traffic")), command: words("attach tc pod-traffic --dev veth-b --direction both --first"), compare: list, keeps: true},
		{name: "attach-xdp", prepare: filter(loadXDP), command: words(xdp), compare: list},
		{name: "attach-xdp-instead", prepare: filter(loadXDP, xdp, "load xdp-counter"), command: words("attach xdp xdp-counter --dev veth-a --replace"), compare: list},
		{name: "attach-cgroup", prepare: lines(loadPods), command: words(cgroup)},
		{name: "attach-trace", prepare: lines("load $OBJECTS/several.o --name mine"), command: words("attach trace mine --prog switches_typed")},
		{name: "load-flows", command: words("load flows")},
		{name: "replace-flows", prepare: lines("load flows"), command: words("load flows --set port=80 --replace")},
		{name: "attach-flows", prepare: lines("load flows"), command: words("attach trace flows")},
		{name: "detach-flows", prepare: lines("load flows", "attach trace flows"), command: words("detach trace flows")},
		{name: "unload-flows", prepare: lines("load flows", "attach trace flows"), command: words("unload flows --detach")},
		{name: "attach-tracepoint", prepare: lines(probes + "tracepoint"), command: words("attach trace mine"), needs: "tracepoint"},
		{name: "attach-kprobe", prepare: lines(probes + "kprobe"), command: words("attach trace mine"), needs: "kprobe"},
		{name: "attach-sockops", prepare: lines(loadSome), command: words(sockops)},
		{name: "detach-tc", prepare: filter(loadTC, tcBoth), command: words("detach tc port-filter --dev veth-b"), compare: list},
		{name: "detach-xdp", prepare: filter(loadXDP, xdp), command: words("detach xdp port-filter"), compare: list},
		{name: "detach-cgroup", prepare: lines(loadPods, cgroup), command: words("detach cgroup pod-traffic --cgroup $CGROUP")},
		{name: "detach-sockops", prepare: lines(loadSome, sockops), command: words("detach sockops mine --cgroup $CGROUP")},
		{name: "detach-trace", prepare: lines(loadSome, "attach trace mine"), command: words("detach trace mine")},
		{name: "detach-tracepoint", prepare: lines(probes+"tracepoint", "attach trace mine"), command: words("detach trace mine"), needs: "tracepoint"},
		{name: "unload", prepare: filter(loadTC), command: words("unload port-filter")},
		{name: "unload-detach", prepare: everywhere, command: words("unload port-filter --detach")},
		{name: "unload-all", prepare: slices.Concat(filter(loadTC, tcBoth), lines(loadPods, cgroup)), command: words("unload --all --detach")},
		{name: "ports-allow", prepare: filter(loadTC, tcBoth), command: words("ports allow 82/udp 83/udp"), compare: list},
		{name: "ports-deny", prepare: filter(loadTC, tcBoth, "ports default pass"), command: words("ports deny 81-83/udp"), compare: list},
		{name: "ports-remove", prepare: filter(loadTC, tcBoth, "ports allow 82-83/udp"), command: words("ports remove 82-83/udp"), compare: list},
		{name: "ports-default", prepare: filter(loadXDP, xdp), command: words("ports default pass"), compare: list},
		{name: "import", prepare: full, command: words("map import mine/limits $INPUT"), input: limits(40), compare: limited},
		{name: "import-replace", prepare: full, command: words("map import mine/limits $INPUT --replace"), input: limits(40), compare: limited},
		{name: "import-large", prepare: lines(loadMine, "map set mine/allow 10.9.0.0 1"), command: words("map import mine/allow $INPUT --replace"), input: addresses(9000), compare: allowed},
		{name: "import-per-cpu", prepare: lines(loadMine), command: words("map import mine/packets_by_source_address $INPUT"), input: addresses(20), compare: counted},
		{name: "clear", prepare: full, command: words("map clear mine/limits"), compare: limited},
		{name: "set", prepare: lines(loadMine), command: words(`map set mine/limits 10.0.0.0/24 {"pps":7,"action":"drop"}`), compare: limited},
		{name: "delete", prepare: full, command: words("map delete mine/limits 10.0.0.0/24"), compare: limited},
		{name: "pin", prepare: lines(loadMine), command: words("map pin mine/limits $PIN")},
		{name: "unpin", prepare: lines(loadMine, "map pin mine/limits $PIN"), command: words("map unpin $PIN")},
		{name: "blocklist-first", command: words("blocklist add 203.0.113.0/24 --reason scans"), compare: entries},
		{name: "blocklist-add", prepare: blocked, command: words("blocklist add 192.0.2.0/24 2001:db8::/48 --list feed --reason new"), compare: entries, keeps: true},
		{name: "blocklist-add-list", prepare: blocked, command: words("blocklist add 10.77.0.6 --list allow"), compare: entries},
		{name: "blocklist-remove", prepare: blocked, command: words("blocklist remove 10.77.0.6 --list feed"), compare: entries},
		{name: "blocklist-import", prepare: blocked, command: words("blocklist import $INPUT --list feed"), input: feed(3000), compare: entries, keeps: true},
		{name: "blocklist-replace", prepare: blocked, command: words("blocklist import $INPUT --list feed --replace --force"), input: "10.77.0.6\n" + feed(3000), compare: entries, keeps: true},
		{name: "blocklist-replace-all", prepare: blocked, command: words("blocklist import $INPUT --list feed --replace"), input: feed(3000), compare: entries},
		{name: "blocklist-domain", prepare: blocked, command: words("blocklist add 192.0.2.0/24 --domain *.bad.example --list feed --reason names"), compare: entries, keeps: true},
		{name: "blocklist-replace-domains", prepare: slices.Concat(blocked, lines("blocklist add --domain *.bad.example --list feed")), command: words("blocklist import $INPUT --list feed --replace"), input: "*.worse.example\n203.0.113.9\n", compare: entries},
		{name: "blocklist-remove-domain", prepare: slices.Concat(blocked, lines("blocklist add --domain *.bad.example --list feed")), command: words("blocklist remove --domain *.bad.example --list feed"), compare: entries, keeps: true},
		{name: "blocklist-action", prepare: blocked, command: words("blocklist action alert --list feed --match source"), compare: words("blocklist test 10.77.0.6")},
		{name: "blocklist-clear", prepare: blocked, command: words("blocklist clear"), compare: entries},
		{name: "blocklist-sync", prepare: slices.Concat(blocked, lines("blocklist add 192.0.2.1 --list feed --expires 1ms", "status --interval 1100ms --once")), command: words("blocklist sync"), compare: entries, keeps: true},
	}
}

// limits is an input for a map of limits by prefix.
func limits(count int) string {
	var text strings.Builder
	for i := range count {
		fmt.Fprintf(&text, `10.0.%d.0/24 {"pps":%d,"action":"drop"}`+"\n", i, i)
	}
	return text.String()
}

// addresses is an input for a map by address.
func addresses(count int) string {
	var text strings.Builder
	for i := range count {
		fmt.Fprintf(&text, "10.1.%d.%d 1\n", i/250, i%250)
	}
	return text.String()
}

// feed is a list of addresses to block.
func feed(count int) string {
	var text strings.Builder
	text.WriteString("2001:db8:feed::/48\n")
	for i := range count {
		fmt.Fprintf(&text, "198.18.%d.%d ; SBL%d\n", i/250, i%250, i%100)
	}
	return text.String()
}
