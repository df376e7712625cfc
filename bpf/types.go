package bpf

// The types that programs and user space share, generated from the C sources.
// Counters are per CPU and programs only add to them; user space adds the CPUs
// up.
type (
	// Counter is a value of the maps packets (xdp-counter) and counters
	// (port-filter).
	Counter = portFilterCounter
	// InterfaceCounters is a value of the map interfaces: packets and bytes by
	// class, each packet in exactly one.
	InterfaceCounters = xdpCounterInterfaceCounters

	// PodKey is a key of the map pods.
	PodKey = podTrafficPodKey
	// CgroupPodKey is a key of the map cgroup_pods.
	CgroupPodKey = podTrafficCgroupPodKey
	// PodCounters is a value of the maps pods, cgroup_pods and rows.
	PodCounters = podTrafficPodCounters
	// Prefix is a key of the map pod_prefixes. IPv4 prefixes are mapped
	// (::ffff:a.b.c.d), their length is 96 more.
	Prefix = podTrafficPrefix
	// TrafficRow is a key of the map rows.
	TrafficRow = podTrafficTrafficRow

	// DropKey is a key of the map drop_entries: IPv4 addresses are mapped.
	DropKey = dropsDropKey
	// DropEntry is a value of the map drop_entries. Times are ns of CLOCK_BOOTTIME.
	DropEntry = dropsDropEntry
	// DropRow is a key of the map drop_rows, whose values are numbers.
	DropRow = dropsDropRow
	// DropWay is which way a packet passed an interface.
	DropWay = dropsDropWay

	// PeerKey is a key of the map peer_entries: IPv4 addresses are mapped.
	PeerKey = peersPeerKey
	// PeerEntry is a value of the map peer_entries. Times are ns of CLOCK_BOOTTIME.
	PeerEntry = peersPeerEntry
	// EndpointKey is a key of the map peer_endpoints.
	EndpointKey = peersEndpointKey
	// EndpointCounters is a value of the map peer_endpoints.
	EndpointCounters = peersEndpointCounters
	// PeerHook says what the place in a key is: an interface's index, or a cgroup's
	// id.
	PeerHook = peersPeerHook
	// PeerRow is a key of the map peer_rows, whose values are numbers.
	PeerRow = peersPeerRow

	// FlowRecord is a value of the maps closed_flows and opened_flows, and what
	// flows_dump writes. Times are ns of CLOCK_BOOTTIME, IPv4 addresses are mapped.
	FlowRecord = flowsFlowRecord
	// FlowEnding says who has ended a connection.
	FlowEnding = flowsFlowEnding
	// FlowPeerKey is a key of the map flow_peers: IPv4 addresses are mapped.
	FlowPeerKey = flowsFlowPeerKey
	// FlowPeer is a value of the map flow_peers.
	FlowPeer = flowsFlowPeer
	// FlowWalk is a value of the map flow_walks, by thread.
	FlowWalk = flowsFlowWalk
	// FlowSums is the value of the map flow_totals.
	FlowSums = flowsFlowSums

	// PolicyPage is a page of a policy that holds verdicts.
	PolicyPage = portFilterPolicyPage
	// PolicyHeader is page PolicyHeaderPage of a policy.
	PolicyHeader = portFilterPolicyHeader
	// PolicyRule is one of the RulesPerPage rules of a page from
	// PolicyRulesPage on. A number of 0 ends them.
	PolicyRule = portFilterPolicyRule
	// PortProtocol says which protocol's ports a rule means.
	PortProtocol = portFilterPortProtocol
	// PortSide says which port of a packet a rule means.
	PortSide = portFilterPortSide
	// PortRow is a key of the map counters: one of the rows below, or PortRows
	// plus the number of a rule.
	PortRow = portFilterPortRow

	// BlockKey4 is a key of the inner maps of lists4: a prefix length and an
	// address in host order without bits beyond it.
	BlockKey4 = blocklistBlockKey4
	// BlockKey6 is a key of the inner maps of lists6, in host order.
	BlockKey6 = blocklistBlockKey6
	// BlockEntry is a value of the inner maps of lists4 and lists6.
	BlockEntry = blocklistBlockEntry
	// BlockConfig is the value of the inner map of settings.
	BlockConfig = blocklistBlockConfig
	// BlockLength6 is an IPv6 prefix length in use, with its mask.
	BlockLength6 = blocklistBlockLength6
	// BlockList is a value of the map block_lists.
	BlockList = blocklistBlockList
	// BlockNote is a value of the map block_notes.
	BlockNote = blocklistBlockNote
	// DomainKey is a key of the map block_domains.
	DomainKey = blocklistDomainKey
	// BlockDomain is a value of the map block_domains.
	BlockDomain = blocklistBlockDomain
	// DomainStatus is how the last question for a domain's addresses ended.
	DomainStatus = blocklistDomainStatus
	// AnswerKey is a key of the map block_answers: IPv4 addresses are mapped.
	AnswerKey = blocklistAnswerKey
	// BlockAnswer is a value of the map block_answers.
	BlockAnswer = blocklistBlockAnswer
	// AnswerSource is who found an address of a domain.
	AnswerSource = blocklistAnswerSource
	// HitKey is a key of the map hits: IPv4 addresses are mapped, the length of
	// their prefix is 0 to 32.
	HitKey = blocklistHitKey
	// HitCounters is a value of the map hits.
	HitCounters = blocklistHitCounters
	// BlockEvent is a record of the ring buffer block_events.
	BlockEvent = blocklistBlockEvent
	// BlockRow is a key of the map block_rows.
	BlockRow = blocklistBlockRow

	// DNSEvent is the head of a record of the ring buffer dns_events; Captured
	// bytes of payload follow it, and then some that mean nothing.
	DNSEvent = dnsDnsEvent
	// DNSDirection is the way in which program dns saw a packet go.
	DNSDirection = dnsDnsDirection
	// DNSHook is where it saw it.
	DNSHook = dnsDnsHook
	// DNSRow is a key of the map dns_rows, whose values are Counters.
	DNSRow = dnsDnsRow
)

// The layout of the blocklist's maps; see headers/blocklist.h.
const (
	MaxLists       = 32
	DomainSize     = 256    // bytes of a domain with its end
	CoarseHashed   = 262144 // words of coarse_filters6 in front of those for each /16
	HashMultiplier = 0x9e3779b97f4a7c15
)

// How the last question for a domain's addresses ended.
const (
	DomainPending  = blocklistDomainStatusDOMAIN_PENDING
	DomainResolved = blocklistDomainStatusDOMAIN_RESOLVED
	DomainNoName   = blocklistDomainStatusDOMAIN_NO_NAME
	DomainFailed   = blocklistDomainStatusDOMAIN_FAILED
)

// Who found an address of a domain.
const (
	AnswerResolved = blocklistAnswerSourceANSWER_RESOLVED
	AnswerSeen     = blocklistAnswerSourceANSWER_SEEN
)

// What became of packets: keys of the map block_rows.
const (
	BlockDropped          = blocklistBlockRowBLOCK_DROPPED
	BlockAlerted          = blocklistBlockRowBLOCK_ALERTED
	BlockAllowed          = blocklistBlockRowBLOCK_ALLOWED
	BlockNonIP            = blocklistBlockRowBLOCK_NON_IP
	BlockTruncated        = blocklistBlockRowBLOCK_TRUNCATED
	BlockTooDeep          = blocklistBlockRowBLOCK_TOO_DEEP
	BlockHitsFull         = blocklistBlockRowBLOCK_HITS_FULL
	BlockEventsSuppressed = blocklistBlockRowBLOCK_EVENTS_SUPPRESSED
	BlockEventsLost       = blocklistBlockRowBLOCK_EVENTS_LOST
	BlockRows             = blocklistBlockRowBLOCK_ROWS // how many there are
)

// Where program dns saw a packet, and which way it went.
const (
	DNSIngress = dnsDnsDirectionDNS_INGRESS
	DNSEgress  = dnsDnsDirectionDNS_EGRESS
	DNSTC      = dnsDnsHookDNS_TC
	DNSCgroup  = dnsDnsHookDNS_CGROUP
)

// What program dns couldn't tell: keys of its map dns_rows. Behind what is
// truncated, too deep or a fragment there may be something else than DNS.
const (
	DNSLost      = dnsDnsRowDNS_LOST
	DNSTooLong   = dnsDnsRowDNS_TOO_LONG
	DNSTruncated = dnsDnsRowDNS_TRUNCATED
	DNSTooDeep   = dnsDnsRowDNS_TOO_DEEP
	DNSFragment  = dnsDnsRowDNS_FRAGMENT
	DNSOther     = dnsDnsRowDNS_OTHER
	DNSRows      = dnsDnsRowDNS_ROWS // how many there are
)

// What is in no Pod's entry: keys of the map rows of pod-traffic.
const (
	TCNonIP           = podTrafficTrafficRowTC_NON_IP
	TCTruncated       = podTrafficTrafficRowTC_TRUNCATED
	TCMapFull         = podTrafficTrafficRowTC_MAP_FULL
	TCNotAPod         = podTrafficTrafficRowTC_NOT_A_POD
	TCTooDeep         = podTrafficTrafficRowTC_TOO_DEEP
	TCMulticast       = podTrafficTrafficRowTC_MULTICAST
	TCUnspecified     = podTrafficTrafficRowTC_UNSPECIFIED
	CgroupTruncated   = podTrafficTrafficRowCGROUP_TRUNCATED
	CgroupMapFull     = podTrafficTrafficRowCGROUP_MAP_FULL
	CgroupMulticast   = podTrafficTrafficRowCGROUP_MULTICAST
	CgroupUnspecified = podTrafficTrafficRowCGROUP_UNSPECIFIED
	TrafficRows       = podTrafficTrafficRowTRAFFIC_ROWS // how many there are
)

// Which way packets were that program drops counts.
const (
	DropIngress = dropsDropWayDROP_INGRESS
	DropEgress  = dropsDropWayDROP_EGRESS
)

// What is in no entry of program drops: keys of its map drop_rows.
const (
	DropsMade   = dropsDropRowDROPS_MADE
	DropsNoRoom = dropsDropRowDROPS_NO_ROOM
)

// Where program peers was.
const (
	PeerTC     = peersPeerHookPEER_TC
	PeerCgroup = peersPeerHookPEER_CGROUP
)

// What is in no entry of program peers: keys of its map peer_rows.
const (
	PeersMade      = peersPeerRowPEERS_MADE
	PeersNoRoom    = peersPeerRowPEERS_NO_ROOM
	PeersTruncated = peersPeerRowPEERS_TRUNCATED
	PeersTooDeep   = peersPeerRowPEERS_TOO_DEEP
	PeerRows       = peersPeerRowPEER_ROWS // how many there are
)

// Where port-filter counts packets that no rule names: keys of its map counters.
const (
	DefaultPass  = portFilterPortRowDEFAULT_PASS
	DefaultDrop  = portFilterPortRowDEFAULT_DROP
	Established  = portFilterPortRowESTABLISHED
	Untouched    = portFilterPortRowUNTOUCHED
	FragmentPass = portFilterPortRowFRAGMENT_PASS
	FragmentDrop = portFilterPortRowFRAGMENT_DROP
	Truncated    = portFilterPortRowTRUNCATED
	NonIP        = portFilterPortRowNON_IP
	TooDeep      = portFilterPortRowTOO_DEEP
	PortRows     = portFilterPortRowPORT_ROWS // rule n is counted in PortRows+n
)

// Protocols and sides of port-filter's rules.
const (
	PortTCP  = portFilterPortProtocolPORT_TCP
	PortUDP  = portFilterPortProtocolPORT_UDP
	PortSCTP = portFilterPortProtocolPORT_SCTP

	SideDestination = portFilterPortSideSIDE_DESTINATION
	SideSource      = portFilterPortSideSIDE_SOURCE
)

// The layout of a policy of port-filter; see PolicyIndex.
const (
	VerdictDrop      = 0x8000 // bit of an entry; the others are the rule's number
	PolicyHeaderPage = 1536
	PolicyRulesPage  = PolicyHeaderPage + 1
	RulesPerPage     = 32
	MaxRules         = 4095 // highest number of a rule
)

// PolicyIndex returns which page of a policy holds the verdict for a port, and
// where in the page it is. An entry is 0 without a rule, else the rule's number
// with VerdictDrop added if it drops.
func PolicyIndex(side PortSide, protocol PortProtocol, port uint16) (page uint32, entry int) {
	return (uint32(side)*3+uint32(protocol))*256 + uint32(port>>8), int(port & 0xff)
}

// What the flags of a FlowRecord say.
const (
	FlowInward   = flowsFlowFlagFLOW_INWARD
	FlowExisted  = flowsFlowFlagFLOW_EXISTED
	FlowSupposed = flowsFlowFlagFLOW_SUPPOSED
	FlowRest     = flowsFlowFlagFLOW_REST
	FlowUntold   = flowsFlowFlagFLOW_UNTOLD
)

// What a FlowRecord's Ending says.
const (
	FlowEndedLocal   = flowsFlowEndingENDING_LOCAL
	FlowEndedPeer    = flowsFlowEndingENDING_PEER
	FlowEndedAborted = flowsFlowEndingENDING_ABORTED
	FlowEndedRefused = flowsFlowEndingENDING_REFUSED
	FlowEndedGivenUp = flowsFlowEndingENDING_GIVEN_UP
)

// What a FlowRecord's Event says.
const (
	FlowOpened = flowsFlowEventEVENT_OPENED
	FlowClosed = flowsFlowEventEVENT_CLOSED
	FlowFailed = flowsFlowEventEVENT_FAILED
)

// FlowChange is what flows_dump writes of a use of a socket whose reader knows the rest:
// struct flow_change, which isn't in the object's types since no map has it.
type FlowChange struct {
	Cookie                                                   uint64 // where a FlowRecord has 0
	TransmitBytes, ReceiveBytes, TransmitCalls, ReceiveCalls uint64
	Transmitted, Received                                    uint64
	SrttUs, MinRttUs, Retransmits                            uint32
	Number                                                   uint32 // as in FlowRecord
}
