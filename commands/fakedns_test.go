package commands

import (
	"context"
	"net/netip"
	"time"

	"bpfnet/internal/dns"
	"bpfnet/internal/fault"
)

// fakeExchanges are four that an instance of dns sees, one of each kind. Who has
// another reader, "taken", steals them.
type fakeExchanges struct{ notes []string }

func newFakeExchanges(instance string, steal bool) (ExchangeSource, error) {
	switch {
	case instance == "taken" && !steal:
		return nil, fault.New(fault.ErrConflict, "read events of map taken/dns_events: process 812 (bpfnet) has it open, and only one can read it").
			Hint("--steal reads it all the same")
	case instance == "taken":
		return &fakeExchanges{notes: []string{"map taken/dns_events is open in process 812 (bpfnet)"}}, nil
	}
	return &fakeExchanges{}, nil
}

func fakeExchangesOf() []*dns.Exchange {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600_000_000, time.UTC)
	ask := func(after time.Duration, place dns.Place) *dns.Exchange {
		return &dns.Exchange{
			Status: dns.Answered, Time: at.Add(after), Latency: 1234567 * time.Nanosecond, Place: place, Transport: "udp", ID: 4711,
			Client: netip.MustParseAddrPort("198.51.100.7:40001"), Server: netip.MustParseAddrPort("10.96.0.10:53"),
			Name: "www.shop.example", Type: "A", Class: "IN", Rcode: "noerror",
		}
	}
	pod := dns.Place{IfIndex: 4, Ingress: true, FromAsker: true, CgroupID: 9007199254740993}
	good := ask(0, pod)
	good.Answers = []dns.Record{
		{Name: "www.shop.example", Type: "CNAME", TTL: time.Minute, Data: "web.shop.example."},
		{Name: "web.shop.example", Type: "A", TTL: 30 * time.Second, Data: "192.0.2.7"},
	}
	missing := ask(time.Second, pod)
	missing.Name, missing.Rcode, missing.Truncated = `no\000.\027[31m.example`, "nxdomain", true
	silent := ask(2*time.Second, dns.Place{AtCgroup: true, IfIndex: 2, FromAsker: true, CgroupID: 77})
	silent.Status, silent.Latency, silent.Rcode, silent.Type, silent.Retries = dns.Unanswered, dns.Unmeasured, "", "AAAA", 2
	silent.Client, silent.Server = netip.MustParseAddrPort("[fd00::1]:40001"), netip.MustParseAddrPort("[2001:db8::53]:53")
	late := ask(3*time.Second, dns.Place{IfIndex: 9})
	late.Status, late.Latency, late.Transport = dns.Unasked, dns.Unmeasured, "tcp"
	late.Name, late.Type, late.Class, late.Rcode = "", "", "", "formerr"
	return []*dns.Exchange{good, missing, silent, late}
}

func (f *fakeExchanges) Notes() []string { return f.notes }

// Read tells of them one by one, and waits for the end.
func (f *fakeExchanges) Read(ctx context.Context, how dns.Watching) error {
	for _, x := range fakeExchangesOf() {
		if how.Passes != nil && !how.Passes(x.Place) {
			continue
		}
		how.Begun([]*dns.Exchange{x})
		if err := how.Tell([]*dns.Exchange{x}); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

func (f *fakeExchanges) Lost() (uint64, error)  { return uint64(len(f.notes)) * 3, nil }
func (f *fakeExchanges) Forgotten() uint64      { return 0 }
func (f *fakeExchanges) Counters() dns.Counters { return dns.Counters{Malformed: 1} }
func (f *fakeExchanges) Waiting() int           { return 0 }
func (f *fakeExchanges) Close() error           { return nil }
