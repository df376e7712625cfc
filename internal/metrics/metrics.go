// Package metrics makes metrics for Prometheus of what the loaded programs count, and
// serves them. It keeps no counter that the kernel has; what it has to remember are
// the last values of what goes away.
package metrics

// Metric is one of the metrics that there are.
type Metric struct {
	Name    string
	Help    string
	Counter bool // otherwise a gauge
	Labels  []string
}

// podLabels are those of OpenTelemetry's semantic conventions, where it has one. They
// never hold an address.
var podLabels = []string{
	"program", "observed_at", "k8s_namespace_name", "k8s_pod_name", "k8s_pod_uid", "container_name", "container_id",
	"network_interface_name", "cgroup_id", "network_io_direction",
}

var (
	podBytes = &Metric{"bpfnet_pod_network_io_bytes_total",
		"Bytes that a Pod or container sent and received, by the interface or cgroup where they were seen.", true, podLabels}
	podPackets = &Metric{"bpfnet_pod_network_io_packets_total",
		"Packets that a Pod or container sent and received, by the interface or cgroup where they were seen.", true, podLabels}

	podConnections = &Metric{"bpfnet_pod_connections_total",
		"Connections that a Pod or container began (transmit) and others began with it (receive), by the interface or cgroup where they were seen.", true, podLabels}
	podPeers = &Metric{"bpfnet_pod_distinct_peers",
		"Addresses that a Pod or container has contacted, or that have answered it, within five minutes.", false, podLabels[:len(podLabels)-1]}

	unattributedLabels = []string{"program", "observed_at", "reason", "network_io_direction"}
	unattributedBytes  = &Metric{"bpfnet_unattributed_bytes_total",
		"Bytes that pod-traffic saw and that are no Pod's, by why.", true, unattributedLabels}
	unattributedPackets = &Metric{"bpfnet_unattributed_packets_total",
		"Packets that pod-traffic saw and that are no Pod's, by why.", true, unattributedLabels}

	interfaceLabels = []string{"program", "network_interface_name", "network_type", "network_transport", "network_io_direction"}
	interfaceBytes  = &Metric{"bpfnet_interface_network_io_bytes_total",
		"Bytes that came in at an interface with xdp-counter, by protocol.", true, interfaceLabels}
	interfacePackets = &Metric{"bpfnet_interface_network_io_packets_total",
		"Packets that came in at an interface with xdp-counter, by protocol.", true, interfaceLabels}

	filterLabels = []string{"program", "verdict", "rule"}
	filterBytes  = &Metric{"bpfnet_port_filter_bytes_total",
		"Bytes that port-filter decided on, by the rule, or the reason without one.", true, filterLabels}
	filterPackets = &Metric{"bpfnet_port_filter_packets_total",
		"Packets that port-filter decided on, by the rule, or the reason without one.", true, filterLabels}

	packetDrops = &Metric{"bpfnet_packet_drops_total",
		"Packets that programs dropped, by why.", true, []string{"program", "reason"}}

	blocklistHits = &Metric{"bpfnet_blocklist_hits_total",
		"Packets that met an entry of a list, since the exporter started.", true, []string{"list", "action"}}
	blocklistHitBytes = &Metric{"bpfnet_blocklist_hit_bytes_total",
		"Bytes of packets that met an entry of a list, since the exporter started.", true, []string{"list", "action"}}
	blocklistPackets = &Metric{"bpfnet_blocklist_packets_total",
		"Packets that met a list or couldn't be looked up, by what became of them.", true, []string{"outcome"}}
	blocklistEntries = &Metric{"bpfnet_blocklist_entries",
		"Entries of a list: addresses, prefixes and domains.", false, []string{"list", "action"}}

	lostEvents = &Metric{"bpfnet_lost_events_total",
		"Events that found no room, also while nobody read them.", true, []string{"program", "stage"}}

	reconcileRatio = &Metric{"bpfnet_reconcile_ratio",
		"Bytes that pod-traffic counted at tc, of those that its interfaces counted since the exporter started; 1 when exact.", false, []string{"program"}}

	backendInfo = &Metric{"bpfnet_backend_info",
		"By which mechanism and mode a program is attached; always 1.", false, []string{"program", "hook", "mechanism", "mode"}}
	attachments = &Metric{"bpfnet_attachments",
		"Where a program is attached; defunct: the interface or cgroup has gone.", false, []string{"program", "hook", "mechanism", "mode", "state"}}
	mapEntries = &Metric{"bpfnet_map_entries",
		"Entries in use of a map.", false, []string{"program", "map"}}
	mapCapacity = &Metric{"bpfnet_map_capacity",
		"Entries that a map has room for.", false, []string{"program", "map"}}
	progRuns = &Metric{"bpfnet_prog_runs_total",
		"Runs of a BPF program while the kernel counts them.", true, []string{"program", "function"}}
	progSeconds = &Metric{"bpfnet_prog_run_seconds_total",
		"Time that a BPF program ran while the kernel measured it.", true, []string{"program", "function"}}

	alertsTotal = &Metric{"bpfnet_alerts_total",
		"Alerts that rules have raised since the watch began.", true, []string{"rule", "severity"}}
	alertsFiring = &Metric{"bpfnet_alerts_firing",
		"Alerts that are on, of rules that tell when one is over.", false, []string{"rule"}}
	sinkDeliveries = &Metric{"bpfnet_sink_deliveries_total",
		"Alerts that a sink has taken.", true, []string{"sink"}}
	sinkDropped = &Metric{"bpfnet_sink_dropped_total",
		"Alerts that found no room in the queue of a sink.", true, []string{"sink"}}
	sinkRefused = &Metric{"bpfnet_sink_refused_total",
		"Alerts that a sink doesn't want.", true, []string{"sink"}}
	sinkRetries = &Metric{"bpfnet_sink_retries_total",
		"How often a delivery to a sink was tried again.", true, []string{"sink"}}
	sinkQueue = &Metric{"bpfnet_sink_queue_length",
		"Alerts that wait for a sink or are on the way to it.", false, []string{"sink"}}
	sinkUp = &Metric{"bpfnet_sink_up",
		"Whether a sink took what it was sent last: 1 or 0.", false, []string{"sink"}}

	buildInfo = &Metric{"bpfnet_build_info",
		"Which bpfnet this is; always 1.", false, []string{"version", "revision", "goversion"}}
	scrapeErrors = &Metric{"bpfnet_scrape_errors_total",
		"Scrapes in which something couldn't be read.", true, []string{"source"}}
	scrapeSuccess = &Metric{"bpfnet_scrape_success",
		"Whether all was read in this scrape: 1 or 0.", false, []string{"source"}}
	scrapeSeconds = &Metric{"bpfnet_scrape_duration_seconds",
		"How long it took to read the kernel for this scrape.", false, nil}
)

// All returns the metrics that there are, but for those about the process and Go.
func All() []Metric {
	return []Metric{
		*podBytes, *podPackets, *podConnections, *podPeers, *unattributedBytes, *unattributedPackets, *interfaceBytes, *interfacePackets,
		*filterBytes, *filterPackets, *packetDrops, *blocklistHits, *blocklistHitBytes, *blocklistPackets, *blocklistEntries,
		*lostEvents, *reconcileRatio, *backendInfo, *attachments, *mapEntries, *mapCapacity, *progRuns, *progSeconds,
		*alertsTotal, *alertsFiring, *sinkDeliveries, *sinkDropped, *sinkRefused, *sinkRetries, *sinkQueue, *sinkUp,
		*buildInfo, *scrapeErrors, *scrapeSuccess, *scrapeSeconds,
	}
}

// The values of labels.
const (
	transmit = "transmit"
	receive  = "receive"
	other    = "other"
)
