// Package bpf holds the BPF programs: their C sources, the objects compiled
// from them, and the catalogue that says what each is for.
package bpf

import (
	"slices"

	"github.com/cilium/ebpf"
)

// Program is one entry of the catalogue: a built-in program and what a user
// needs to know to choose it.
type Program struct {
	Name       string      // as on the command line, "pod-traffic"
	Summary    string      // one sentence
	Hooks      []Hook      // where it can be attached; one is enough
	Parameters []Parameter // what --set takes
	Maps       []Map       // what it pins
	Features   []string    // names of the probes (package probe) it depends on at every hook

	// PerInterface says that its counters are told apart by interface index
	// alone, so that one loaded instance can't serve two network namespaces in
	// which the same index is in use.
	PerInterface bool

	// Shared names the group of maps that it has in common with other programs
	// and instances, and that outlive it; "" if it has none. They are all maps,
	// but data sections, of the program of that name.
	Shared string

	// Mechanisms are the ways in which it can do its work, best first, of which the
	// first that the kernel takes is loaded; empty: there is one.
	Mechanisms []Mechanism

	// Seed names the iterator that is run once before tracing begins; "" if it has none.
	Seed string

	// AtRoot says that its cgroup programs belong to those that trace, and are
	// attached with them, at the root of cgroup2.
	AtRoot bool

	// Arguments are variables that the kernel itself decides.
	Arguments []Arguments

	// Object is the compiled ELF object.
	Object []byte
	// Spec parses Object; each call returns a fresh copy.
	Spec func() (*ebpf.CollectionSpec, error)
}

// Arguments is a constant variable of an object that is set, when it is loaded, to
// how many arguments a typed tracepoint has in the running kernel. What reads those
// that it hasn't is dead code then, which the verifier leaves out.
type Arguments struct {
	Variable   string
	Tracepoint string // "kfree_skb"
}

// Hook is a place where a program can be attached.
type Hook struct {
	Name    string // "xdp", "tc", "cgroup"
	Feature string // name of the probe that it depends on
}

// Mechanism is a way in which a program does its work.
type Mechanism struct {
	Name    string   // "tp_btf"
	Without []string // programs of the object that it leaves out
	Object  []byte   // that it is in; nil: the program's
}

// MechanismNames are the words for the mechanisms of a program, each once.
func MechanismNames(of []Mechanism) []string {
	names := []string{}
	for _, m := range of {
		if !slices.Contains(names, m.Name) {
			names = append(names, m.Name)
		}
	}
	return names
}

var (
	hookTrace  = Hook{"trace", "tp_btf"}
	hookTC     = Hook{"tc", "tc"}
	hookXDP    = Hook{"xdp", "xdp"}
	hookCgroup = Hook{"cgroup", "cgroup_skb"}
)

// Parameter is a tunable global variable of a program.
type Parameter struct {
	Name    string `json:"name"`
	Type    string `json:"type"`    // the C type, "u32"
	Default string `json:"default"` // as --set would take it
	Unit    string `json:"unit"`    // "" when it has none
	Summary string `json:"summary"`
}

// Map is a map that users may read.
type Map struct {
	Name    string `json:"name"`
	Summary string `json:"summary"`
}

// Catalogue returns the built-in programs, sorted by name.
func Catalogue() []Program {
	return []Program{blocklist(), dns(), drops(), flows(), peers(), podTraffic(), portFilter(), xdpCounter()}
}

func blocklist() Program {
	return Program{
		Name:       "blocklist",
		Summary:    "drop or report packets from or to listed addresses",
		Hooks:      []Hook{hookTC, hookXDP, hookCgroup},
		Parameters: []Parameter{},
		Maps:       blockMaps(),
		Features:   blockFeatures(),
		Shared:     "blocklist",
		Object:     _BlocklistBytes,
		Spec:       loadBlocklist,
	}
}

func dns() Program {
	return Program{
		Name:       "dns",
		Summary:    "report what DNS servers are asked and answer, over UDP and TCP",
		Hooks:      []Hook{hookTC, hookCgroup},
		Parameters: []Parameter{},
		Maps: []Map{
			{"dns_events", "the messages, a ring buffer"},
			{"dns_queries", "1 while somebody reads queries, too"},
			{"dns_rows", "what was lost, cut short or couldn't be read"},
		},
		Features: []string{"map_array", "map_percpu_array", "ring_buffer"},
		Object:   _DnsBytes,
		Spec:     loadDns,
	}
}

func drops() Program {
	return Program{
		Name:       "drops",
		Summary:    "count the packets that the kernel drops, by its reason, and remember which",
		Hooks:      []Hook{hookTrace},
		Parameters: []Parameter{},
		Maps: []Map{
			{"drop_reasons", "how much was dropped, by reason"},
			{"drop_entries", "what was dropped; the least recent make room"},
			{"drop_rows", "how many entries there ever were, and what found no room"},
		},
		Features:  []string{"map_lru_hash", "map_percpu_array", "map_percpu_hash"},
		Arguments: []Arguments{{"kfree_skb_args", "kfree_skb"}},
		Object:    _DropsBytes,
		Spec:      loadDrops,
	}
}

// blockMaps are the maps in which the lists are.
func blockMaps() []Map {
	return []Map{
		{"filters4", "where IPv4 entries may match"},
		{"lengths4", "which lengths IPv4 prefixes have, and where"},
		{"filters6", "where IPv6 entries of 48 bits and more may match"},
		{"coarse_filters6", "where shorter IPv6 entries may match"},
		{"settings", "which lists are in use, and what they do"},
		{"lists4", "the IPv4 entries of each list"},
		{"lists6", "the IPv6 entries of each list"},
		{"block_lists", "the names of the lists"},
		{"block_notes", "why entries are listed"},
		{"block_domains", "the domains on the lists"},
		{"block_answers", "the addresses that domains have"},
		{"hits", "what each entry was hit by"},
		{"episodes", "which hits were reported lately"},
		{"block_events", "reported hits, a ring buffer"},
		{"block_rows", "what became of packets"},
	}
}

// blockFeatures are the features that consulting the lists depends on.
func blockFeatures() []string {
	return []string{"map_array", "map_hash", "map_in_map", "map_percpu_array", "ring_buffer"}
}

// FlowFilter are the parameters of flows, by what they choose.
const (
	FlowPID         = "pid"
	FlowCgroup      = "cgroup_id"
	FlowCgroupLevel = "cgroup_level"
	FlowPort        = "port"
	FlowProtocol    = "protocol"
	// FlowWalks is the map that readers of flows write, too.
	FlowWalks = "flow_walks"
)

func flows() Program {
	lengths := []string{"flows_sent", "flows_received"}
	page := "flows_inet_sendpage"
	returns := []string{"flows_inet_sendmsg", "flows_inet6_sendmsg", "flows_inet_recvmsg", "flows_inet6_recvmsg", "flows_sock_recvmsg"}
	return Program{
		Name:    "flows",
		Summary: "count what each process sends and receives through each socket",
		Hooks:   []Hook{hookTrace},
		Parameters: []Parameter{
			{Name: FlowPID, Type: "u32", Default: "0", Summary: "count only this process; 0: all"},
			{Name: FlowCgroup, Type: "u64", Default: "0", Summary: "count only processes of this cgroup, and those below it; 0: all"},
			{Name: FlowCgroupLevel, Type: "u32", Default: "0", Summary: "how far cgroup_id is below the root"},
			{Name: FlowPort, Type: "u16", Default: "0", Summary: "count only sockets with this port, here or at the peer; 0: all"},
			{Name: FlowProtocol, Type: "u16", Default: "0", Summary: "count only sockets of this protocol, as a number; 0: all"},
		},
		Maps: []Map{
			{"flow_sockets", "counters of sockets that are open: in their own memory, with kprobes a hash"},
			{"closed_flows", "counters of sockets that were closed, a ring"},
			{"opened_flows", "connections that were opened, a ring"},
			{"flow_peers", "counters of peers of sockets that aren't connected; the least recent make room"},
			{"flow_talks", "with whom calls talk that haven't ended"},
			{FlowWalks, "which changes those who read flow_sockets know"},
			{"flow_totals", "how many records there ever were in both, and what found no room"},
			{"flow_calls", "with kprobes: calls that haven't returned"},
			{"flow_claims", "with kprobes: which process has which place in flow_sockets"},
			{"flow_tickets", "with kprobes: the last numbers in both rings"},
			{"flow_births", "with kprobes: the connection that a listener is making"},
			{"flow_none", "with kprobes: what a socket has at first"},
		},
		Features: []string{"map_array", "map_lru_hash", "map_sk_storage"},
		Mechanisms: []Mechanism{
			{Name: "tp_btf", Without: append(returns, page)},
			{Name: "fexit", Without: lengths},
			{Name: "fexit", Without: append(lengths, page)}, // Linux 6.5 and later have no sendpage
			{Name: "kprobe", Object: _FlowsKprobeBytes},
			{Name: "kprobe", Object: _FlowsKprobeBytes, Without: []string{page, page + "_return"}},
		},
		Seed:   "flows_seed",
		AtRoot: true,
		Object: _FlowsBytes,
		Spec:   loadFlows,
	}
}

func peers() Program {
	return Program{
		Name:       "peers",
		Summary:    "remember whom endpoints contact, and whether they were answered",
		Hooks:      []Hook{hookTC, hookCgroup},
		Parameters: []Parameter{},
		Maps: []Map{
			{"peer_entries", "whom endpoints have contacted, and how often; the least recent make room"},
			{"peer_endpoints", "how many connections endpoints have opened and received"},
			{"peer_flows", "flows that endpoints began lately"},
			{"incoming", "flows that others began lately"},
			{"peer_rows", "how many entries there ever were, what found no room or couldn't be read"},
			{"flow_locks", "locks of flows"},
		},
		Features:     []string{"map_array", "map_lru_hash", "map_percpu_array", "map_percpu_hash"},
		PerInterface: true,
		Object:       _PeersBytes,
		Spec:         loadPeers,
	}
}

func podTraffic() Program {
	return Program{
		Name:    "pod-traffic",
		Summary: "count bytes and packets in both directions per Pod address; consults the lists of blocklist",
		Hooks:   []Hook{hookTC, hookCgroup},
		Parameters: []Parameter{{
			Name:    "match_prefixes",
			Type:    "u8",
			Default: "0",
			Summary: "1: an address is a Pod's if pod_prefixes holds it, whatever the direction (tc)",
		}, {
			Name:    "blocklist",
			Type:    "u8",
			Default: "1",
			Summary: "0: the lists of blocklist aren't consulted",
		}},
		Maps: append([]Map{
			{"pods", "traffic per Pod address and interface, seen at tc"},
			{"cgroup_pods", "traffic per Pod address and cgroup, seen at cgroup_skb"},
			{"pod_prefixes", "which addresses are Pods, for match_prefixes"},
			{"rows", "traffic that is in no Pod's entry"},
		}, blockMaps()...),
		Features:     append(blockFeatures(), "map_percpu_hash", "map_lpm_trie"),
		PerInterface: true,
		Shared:       "blocklist",
		Object:       _PodTrafficBytes,
		Spec:         loadPodTraffic,
	}
}

func portFilter() Program {
	return Program{
		Name:       "port-filter",
		Summary:    "pass or drop packets by protocol and port, source or destination",
		Hooks:      []Hook{hookTC, hookXDP},
		Parameters: []Parameter{},
		Maps: []Map{
			{"policy", "the policy in force, swapped as a whole"},
			{"first_policy", "one place for a policy, in force at first: no rules, pass"},
			{"second_policy", "the other place"},
			{"counters", "what was passed and dropped, by rule"},
			{"fragments", "verdicts of first fragments, for the later ones"},
		},
		Features: []string{"map_array", "map_in_map", "map_percpu_array", "map_lru_hash"},
		Object:   _PortFilterBytes,
		Spec:     loadPortFilter,
	}
}

func xdpCounter() Program {
	return Program{
		Name:       "xdp-counter",
		Summary:    "count packets and bytes, in total and by interface and protocol",
		Hooks:      []Hook{hookXDP},
		Parameters: []Parameter{},
		Maps: []Map{
			{"packets", "everything that was seen"},
			{"interfaces", "what was seen on each interface, by protocol"},
		},
		Features:     []string{"map_percpu_array"},
		PerInterface: true,
		Object:       _XdpCounterBytes,
		Spec:         loadXdpCounter,
	}
}

// Lookup returns the built-in program of that name.
func Lookup(name string) (Program, bool) {
	for _, p := range Catalogue() {
		if p.Name == name {
			return p, true
		}
	}
	return Program{}, false
}
