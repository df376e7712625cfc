package alert

import (
	"net/netip"
	"testing"
	"time"

	"bpfnet/internal/blocklist"
)

func hit() blocklist.Event {
	return blocklist.Event{
		Time:   time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Source: netip.MustParseAddrPort("198.51.100.7:40001"), Destination: netip.MustParseAddrPort("10.0.0.1:443"),
		Protocol: 6, Matched: blocklist.Source,
		Entry: blocklist.Entry{List: "feed", Prefix: netip.MustParsePrefix("198.51.100.0/24")},
	}
}

// TestFingerprint checks which hits are told as the same thing.
func TestFingerprint(t *testing.T) {
	want := OfBlocklist(hit(), nil, 0).Fingerprint
	for name, test := range map[string]struct {
		change func(*blocklist.Event)
		same   bool
	}{
		"another time": {func(e *blocklist.Event) { e.Time = e.Time.Add(time.Hour) }, true},
		"another port": {func(e *blocklist.Event) { e.Source = netip.MustParseAddrPort("198.51.100.7:1") }, true},
		"another address of the entry": {func(e *blocklist.Event) {
			e.Source = netip.MustParseAddrPort("198.51.100.8:40001")
		}, true},
		"the way back": {func(e *blocklist.Event) {
			e.Source, e.Destination, e.Matched = e.Destination, e.Source, blocklist.Destination
		}, true},
		"another list":    {func(e *blocklist.Event) { e.Entry.List = "drops" }, false},
		"another prefix":  {func(e *blocklist.Event) { e.Entry.Prefix = netip.MustParsePrefix("198.51.100.0/25") }, false},
		"another far end": {func(e *blocklist.Event) { e.Destination = netip.MustParseAddrPort("10.0.0.2:443") }, false},
	} {
		e := hit()
		test.change(&e)
		if got := OfBlocklist(e, nil, 0).Fingerprint; (got == want) != test.same {
			t.Errorf("%s: %s, first it was %s", name, got, want)
		}
	}
}

// TestTransport checks the words for protocols, and that what isn't known is null.
func TestTransport(t *testing.T) {
	for protocol, want := range map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 47: "47", 58: "icmp", 132: "sctp"} {
		e := hit()
		e.Protocol = protocol
		if got := NetworkOf(e).Transport; got == nil || *got != want {
			t.Errorf("%d: %v, want %s", protocol, got, want)
		}
	}
	e := hit()
	e.Protocol, e.Source = 0, netip.AddrPortFrom(e.Source.Addr(), 0)
	if n := NetworkOf(e); n.Transport != nil || n.Source.Port != nil || n.Destination.Port == nil {
		t.Errorf("%+v", n)
	}
}
