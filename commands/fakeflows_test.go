package commands

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bpfnet/internal/dns"
	"bpfnet/internal/fault"
	"bpfnet/internal/flow"
)

func fakeExecutable(pid uint32, _ uint64) string {
	return map[uint32]string{811: "/usr/sbin/nginx", 900: "/usr/bin/curl"}[pid]
}

// fakeFlows are samples of a Pod's server, which curl asks from outside any container
// and one on another machine, and of a datagram. Each later sample has 1,000 bytes more
// for curl, a connection that was refused, and a loss.
type fakeFlows struct {
	samples uint64
	lost    uint64 // before the first; then nothing more is
}

func (f *fake) Flows(_ context.Context, r flow.Request) (flow.Sampler, []string, error) {
	if r.Backend == "fexit" {
		return nil, nil, fault.New(fault.ErrUnsupported, "count flows by fexit: this kernel has no trampolines")
	}
	f.flows = r
	if r.Instance == "crowded" {
		return &fakeFlows{lost: 5}, nil, nil
	}
	return &fakeFlows{}, []string{r.Instance + " is not loaded, so counting begins now"}, nil
}

func (f *fakeFlows) Close() error { return nil }

func (f *fakeFlows) Sample(context.Context) (flow.Sample, error) {
	n := f.samples
	f.samples++
	at := sampleStart.Add(time.Duration(n) * time.Second)
	s := flow.Sample{
		Time: at, Since: sampleStart.Add(-time.Minute),
		Backend: flow.Backend{TCPTransmit: "tp_btf/sock_send_length", TCPReceive: "tp_btf/tcp_rcv_space_adjust", Datagrams: "tp_btf/sock_send_length", Store: "sk_storage"},
		Rows:    fakeRows(n, at),
		Loss:    flow.Loss{Events: n, Unattributed: 2 * n},
	}
	if f.lost > 0 {
		s.Loss = flow.Loss{Events: f.lost}
	}
	return s, nil
}

func fakeRows(n uint64, at time.Time) []flow.Row {
	curl := flow.Process{PID: 900, Start: uint64(time.Hour) + 123456789, Command: "curl", UID: 1000}
	nginx := flow.Process{PID: 811, Start: uint64(time.Minute), Command: "nginx", Cgroup: 4022}
	client, server, service := netip.MustParseAddrPort("10.77.0.4:40000"), netip.MustParseAddrPort("10.77.0.5:8080"), netip.MustParseAddrPort("10.96.0.1:80")
	sent := 1000 + 1000*n
	rows := []flow.Row{
		{
			Cookie: 9007199254740993, NetNS: 4026531840, Transport: "tcp", Family: unix.AF_INET, Local: client, Peer: service, NAT: server, Process: curl, Owners: 1,
			Counters: flow.Counters{TransmitBytes: sent, ReceiveBytes: 300, TransmitCalls: 1 + n, ReceiveCalls: 1},
			TCP:      &flow.TCP{State: "established", SRTT: 1210, MinRTT: 14, Retransmits: 2, Transmitted: pointer(sent), Received: pointer(uint64(300))},
			Opened:   sampleStart.Add(-time.Second), Status: flow.Exact,
		},
		{
			Cookie: 2, NetNS: 4026532301, Transport: "tcp", Family: unix.AF_INET, Local: server, Peer: client, Process: nginx, Owners: 2, Inward: true,
			Counters: flow.Counters{TransmitBytes: 300, ReceiveBytes: sent, TransmitCalls: 1, ReceiveCalls: 1 + n},
			TCP:      &flow.TCP{State: "established", SRTT: 900}, Status: flow.Sum,
		},
		{
			Cookie: 3, NetNS: 4026532301, Transport: "tcp", Family: unix.AF_INET6, Local: netip.MustParseAddrPort("[fd77::5]:8080"), Peer: netip.MustParseAddrPort("[2001:db8::1]:50000"),
			Process: nginx, Owners: 1, Inward: true, Counters: flow.Counters{TransmitBytes: 5e6, ReceiveBytes: 70, TransmitCalls: 40, ReceiveCalls: 1},
			TCP: &flow.TCP{State: "established"}, Status: flow.Exact,
		},
	}
	if n == 0 {
		return append(rows, flow.Row{
			Cookie: 4, NetNS: 4026531840, Transport: "udp", Family: unix.AF_INET, Local: netip.MustParseAddrPort("192.0.2.1:50001"), Peer: netip.MustParseAddrPort("192.0.2.53:53"),
			Counters: flow.Counters{TransmitBytes: 30, TransmitCalls: 1}, Closed: &at, Status: flow.Polled,
		})
	}
	return append(rows, flow.Row{
		Cookie: 10 + n, NetNS: 4026531840, Transport: "tcp", Family: unix.AF_INET, Local: netip.MustParseAddrPort("192.0.2.1:50002"), Peer: netip.MustParseAddrPort("198.51.100.7:443"),
		Process: curl, Owners: 1, TCP: &flow.TCP{State: "close", Error: uint32(unix.ECONNREFUSED)}, Opened: at.Add(-time.Millisecond), Closed: &at, Status: flow.Exact,
	})
}

// peerAnswers are older than the flows of fakeFlows: names of two peers that curl asked
// for, one of them also somebody else by another name, and one of a peer that nginx has.
func peerAnswers() []dns.Answer {
	answer := func(client, name, address string) dns.Answer {
		return dns.Answer{
			Time: sinceBoot() - 2*time.Minute, Client: netip.AddrPortFrom(netip.MustParseAddr(client), 5353), Name: name,
			Addresses: []dns.Address{{Addr: netip.MustParseAddr(address), TTL: time.Minute}},
		}
	}
	return []dns.Answer{
		answer("10.77.0.4", "www.shop.example", "10.96.0.1"), answer("10.77.0.9", "other.example", "10.96.0.1"),
		answer("192.0.2.1", "a\x1b[31m.example", "198.51.100.7"), answer("10.77.0.5", strings.Repeat("long.", 40)+"example", "2001:db8::1"),
	}
}
