package commands

import (
	"context"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
)

// Connections are three of curl's, one of a Pod's server and its listener, one that the
// kernel keeps, and a socket of datagrams.
func (f *fake) Connections(_ context.Context, r flow.CensusRequest) (flow.Census, []string, error) {
	f.census = r
	if slices.Contains(r.States, "open") {
		return flow.Census{}, nil, fault.New(fault.ErrUsage, "the kernel has no state %q", "open").Hint("one of: established")
	}
	curl := flow.Process{PID: 900, Start: 3600_120000000, Command: "curl", UID: 1000}
	nginx := flow.Process{PID: 811, Start: 60_000000000, Command: "nginx", Cgroup: 4022}
	rows := []flow.Row{
		fakeConnection(1, curl, "established", "198.51.100.7:443"), fakeConnection(2, curl, "established", "198.51.100.7:443"),
		fakeConnection(3, curl, "syn_sent", "198.51.100.9:443"), fakeConnection(4, nginx, "established", "10.77.0.4:40000"),
		fakeConnection(5, flow.Process{}, "time_wait", "198.51.100.7:443"),
	}
	if r.Listen {
		rows = append(rows, fakeConnection(6, nginx, "listen", ""))
	}
	return flow.Census{Time: sampleStart, Rows: rows, Seen: 2, Skipped: 1}, []string{"sockets are missing of network namespaces that this user may not enter: 1"}, nil
}

func fakeConnection(cookie uint64, p flow.Process, state, peer string) flow.Row {
	r := flow.Row{
		Cookie: cookie, NetNS: 4026531840, Transport: "tcp", Family: unix.AF_INET, Local: netip.MustParseAddrPort("10.77.0.5:8080"),
		Process: p, Owners: 1, TCP: &flow.TCP{State: state}, Status: flow.Exact,
	}
	if peer != "" {
		r.Peer = netip.MustParseAddrPort(peer)
	}
	return r
}
