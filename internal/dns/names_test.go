package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestNames: the asked name is known by whom asked and by all, until its TTL and the
// grace are over, and the last answer counts.
func TestNames(t *testing.T) {
	n := NewNames(100, time.Minute)
	learn := func(client, name string, at time.Duration, records ...string) {
		t.Helper()
		a, _, err := decode(reply(t, name, records...))
		if err != nil {
			t.Fatal(err)
		}
		a.Client, a.Time = netip.AddrPortFrom(netip.MustParseAddr(client), 4000), at
		n.Learn(a)
	}
	learn("10.0.0.1", "Www.a.example.", time.Hour, "www.a.example. 60 CNAME cdn.example.", "cdn.example. 30 A 192.0.2.1", "cdn.example. 30 AAAA 2001:db8::1")
	learn("10.0.0.2", "b.example.", time.Hour, "b.example. 300 A 192.0.2.1", "evil.example. 300 A 192.0.2.2")
	learn("fd00::1", "c.example.", time.Hour, "c.example. 0 A 192.0.2.3")
	for _, c := range []struct {
		client, addr string
		after        time.Duration
		wanted       string
	}{
		{"10.0.0.1", "192.0.2.1", 0, "www.a.example"},
		{"10.0.0.1", "192.0.2.1", -moment, "www.a.example"},
		{"10.0.0.1", "192.0.2.1", -2 * moment, ""},
		{"10.0.0.1", "2001:db8::1", 89 * time.Second, "www.a.example"},
		{"10.0.0.1", "2001:db8::1", 90 * time.Second, ""},
		{"10.0.0.1", "192.0.2.1", 90 * time.Second, "b.example"},
		{"10.0.0.2", "192.0.2.1", 359 * time.Second, "b.example"},
		{"10.0.0.3", "192.0.2.1", 0, "b.example"},
		{"10.0.0.2", "192.0.2.2", 0, ""},
		{"fd00::1", "192.0.2.3", 59 * time.Second, "c.example"},
		{"fd00::1", "192.0.2.3", time.Minute, ""},
		{"fd00::1", "192.0.2.4", 0, ""},
	} {
		if got := n.Of(netip.MustParseAddr(c.client), netip.MustParseAddr(c.addr), time.Hour+c.after); got != c.wanted {
			t.Errorf("%s calls %s %q after %s, want %q", c.client, c.addr, got, c.after, c.wanted)
		}
	}
}

// TestNamesBefore: of one who asks an address has the name that it had at the time, of the
// last few, and one since it was asked for first.
func TestNamesBefore(t *testing.T) {
	n := NewNames(100, time.Minute)
	client, address := netip.MustParseAddrPort("10.0.0.1:4000"), netip.MustParseAddr("192.0.2.1")
	for i, name := range strings.Fields("a b b c a d") {
		n.Learn(Answer{Name: name, Client: client, Time: time.Duration(1+i) * time.Second, Addresses: []Address{{address, 0}}})
	}
	for at, want := range []string{"", "", "b", "b", "c", "a", "d"} {
		if got := n.Of(client.Addr(), address, time.Duration(at)*time.Second); got != want {
			t.Errorf("at %d s: %q, want %q", at, got, want)
		}
	}
}

// TestNamesBounded: what expires first makes room, what has expired before.
func TestNamesBounded(t *testing.T) {
	n := NewNames(100, 0)
	client := netip.MustParseAddrPort("10.0.0.1:4000")
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}) }
	learn := func(i int, now, ttl time.Duration) {
		n.Learn(Answer{Name: fmt.Sprint(i), Client: client, Time: now, Addresses: []Address{{addr(i), ttl}}})
		if len(n.known) > 100 {
			t.Fatalf("%d are known", len(n.known))
		}
	}
	for i := range 1000 {
		learn(i, 0, time.Hour+time.Duration(i)*time.Second)
	}
	if n.Of(client.Addr(), addr(999), 0) != "999" || n.Of(client.Addr(), addr(0), 0) != "" {
		t.Error("another one than the oldest made room")
	}
	for i := range 100 {
		learn(i, 2*time.Hour, time.Second)
	}
	if n.Of(client.Addr(), addr(99), 2*time.Hour) != "99" {
		t.Error("what has expired makes no room")
	}
}
