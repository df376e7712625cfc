package commands

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
)

// fakeConnectionEvents are of a connection that is opened, of a Pod's that is closed, which a
// child of the server has used, too, and of one that is refused, all in the first read.
// The second one has lost some.
type fakeConnectionEvents struct {
	reads int
}

func (f *fake) ConnectionEvents(_ context.Context, r flow.EventsRequest) (flow.EventSource, []string, error) {
	if r.Instance == "old" {
		return nil, nil, fault.New(fault.ErrUnsupported, "this kernel has no BTF").Hint("events of connections take the program")
	}
	f.events = r
	return &fakeConnectionEvents{}, []string{"flows is loaded without a filter"}, nil
}

func (f *fakeConnectionEvents) Close() error { return nil }

func (f *fakeConnectionEvents) Read(bool) ([]flow.Event, flow.EventLoss, error) {
	f.reads++
	if f.reads > 1 {
		return nil, flow.EventLoss{Events: 7}, nil
	}
	rows := fakeRows(1, sampleStart)
	opened, closed, failed := rows[0], rows[1], rows[3]
	opened.TCP.Retransmits = 0
	closed.TCP.State, closed.Opened = "close", sampleStart.Add(-90*time.Second)
	child := closed
	child.Process = flow.Process{PID: 812, Start: uint64(2 * time.Minute), Command: "sh\x1b[2J", Cgroup: 4022}
	child.Counters = flow.Counters{TransmitBytes: 1e6, TransmitCalls: 2}
	failed.TCP.State, failed.Closed = "syn_sent", nil
	failed.Local = netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:50002")
	failed.Peer, failed.Family = netip.MustParseAddrPort("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:40443"), unix.AF_INET6
	return []flow.Event{
		{Kind: "opened", Time: sampleStart.Add(-999 * time.Millisecond), Rows: []flow.Row{opened}},
		{Kind: "closed", Time: sampleStart.Add(-time.Millisecond), Rows: []flow.Row{closed, child}, Ended: "local", Reason: "fin"},
		{Kind: "failed", Time: sampleStart, Rows: []flow.Row{failed}, Ended: "peer", Reason: "refused"},
	}, flow.EventLoss{}, nil
}
