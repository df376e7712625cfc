package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"bpfnet/internal/fault"
	"bpfnet/internal/netns"
	"bpfnet/internal/testkit"
)

const loopback = "127.0.0.1:0"

func want(t *testing.T, got, wanted string) {
	t.Helper()
	if got != wanted {
		t.Errorf("got  %s\nwant %s", got, wanted)
	}
}

func TestResolve(t *testing.T) {
	s := serve(t, "", loopback, zone(t,
		"both.example. 300 A 192.0.2.2", "both.example. 200 A 192.0.2.1", "both.example. 300 A 192.0.2.1",
		"both.example. 100 AAAA 2001:db8::1", "both.example. 400 AAAA ::ffff:192.0.2.1",
		"four.example. 60 A 192.0.2.4",
		"alias.example. 30 CNAME Second.Example.", "second.example. 20 CNAME four.example.",
		"dangling.example. 30 CNAME nowhere.example.",
		"text.example. 30 TXT nothing",
		"odd.example. 30 CNAME a\\.b\\032c.example.", "a\\.b\\032c.example. 30 A 192.0.2.5",
		"forever.example. 4294967295 A 192.0.2.6",
		"mixed.EXAMPLE. 30 A 192.0.2.7",
		". 3600 SOA a. b. 1 1 1 1 40"))
	r := resolver("", s.at)
	for name, wanted := range map[string]string{
		"both.example":     "192.0.2.1 3m20s 192.0.2.2 5m0s 2001:db8::1 1m40s chain=both.example ttl=1m40s",
		"four.example.":    "192.0.2.4 1m0s chain=four.example ttl=40s",
		"alias.example":    "192.0.2.4 20s chain=alias.example,second.example,four.example ttl=20s",
		"dangling.example": "chain=dangling.example,nowhere.example ttl=30s",
		"text.example":     "chain=text.example ttl=40s",
		"odd.example":      "192.0.2.5 30s chain=odd.example ttl=30s",
		"forever.example":  "192.0.2.6 0s chain=forever.example ttl=0s",
		"MIXED.example":    "192.0.2.7 30s chain=mixed.example ttl=30s",
		"no.example":       `chain=no.example ttl=40s error="resolve no.example: no such name (NXDOMAIN)"`,
		"":                 `chain= ttl=0s error="resolve \"\": is not a name"`,
		"a b":              `chain= ttl=0s error="resolve \"a b\": is not a name"`,
		"a..b":             `chain= ttl=0s error="resolve \"a..b\": is not a name"`,
	} {
		want(t, shown(r.Resolve(t.Context(), name)), wanted)
	}
	if _, err := r.Resolve(t.Context(), "no.example"); !errors.Is(err, ErrNoName) {
		t.Errorf("%v is no ErrNoName", err)
	}
	if _, err := r.Resolve(t.Context(), "a b"); !errors.Is(err, fault.ErrUsage) {
		t.Errorf("%v is no ErrUsage", err)
	}
}

func TestTruncated(t *testing.T) {
	var records []string
	for i := range 200 {
		records = append(records, fmt.Sprintf("big.example. 60 A 192.0.2.%d", i), fmt.Sprintf("big.example. 60 AAAA 2001:db8::%x", i))
	}
	answer := zone(t, records...)
	for name, cut := range map[string]func(w wire.ResponseWriter, q, reply *wire.Msg){
		"emptied": func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Truncated = true
			_ = w.WriteMsg(reply)
		},
		"cut within a record": func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Truncated, reply.Answer = true, rrs(t, records[0])
			packed, _ := reply.Pack()
			_, _ = w.Write(packed[:len(packed)-3])
		},
	} {
		s := serve(t, "", loopback, func(w wire.ResponseWriter, q, reply *wire.Msg) {
			if isTCP(w) {
				answer(w, q, reply)
			} else {
				cut(w, q, reply)
			}
		})
		res, err := resolver("", s.at).Resolve(t.Context(), "big.example")
		if err != nil || len(res.Addresses) != 400 || s.tcp.Load() != 2 {
			t.Errorf("%s: %d addresses, %d questions by TCP, %v", name, len(res.Addresses), s.tcp.Load(), err)
		}
	}
}

// TestOldServer: EDNS is left out for servers that don't know it.
func TestOldServer(t *testing.T) {
	answer := zone(t, "old.example. 60 A 192.0.2.1", "old.example. 60 AAAA 2001:db8::1")
	s := serve(t, "", loopback, func(w wire.ResponseWriter, q, reply *wire.Msg) {
		if q.IsEdns0() == nil {
			answer(w, q, reply)
			return
		}
		if q.IsEdns0().UDPSize() != askedSize {
			t.Errorf("asked for %d bytes", q.IsEdns0().UDPSize())
		}
		reply.Rcode, reply.Question = wire.RcodeFormatError, nil
		_ = w.WriteMsg(reply)
	})
	want(t, shown(resolver("", s.at).Resolve(t.Context(), "old.example")), "192.0.2.1 1m0s 2001:db8::1 1m0s chain=old.example ttl=1m0s")
	if s.plain.Load() != 2 || s.udp.Load() != 4 {
		t.Errorf("%d questions, %d without EDNS", s.udp.Load(), s.plain.Load())
	}
}

func TestNextServer(t *testing.T) {
	good := serve(t, "", loopback, zone(t, "x.example. 60 A 192.0.2.1", "x.example. 60 AAAA 2001:db8::1"))
	for name, bad := range map[string]func(w wire.ResponseWriter, q, reply *wire.Msg){
		"SERVFAIL": fails(wire.RcodeServerFailure),
		"REFUSED":  fails(wire.RcodeRefused),
		"BADVERS":  fails(wire.RcodeBadVers),
		"silence":  func(wire.ResponseWriter, *wire.Msg, *wire.Msg) {},
		"loop": func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Answer = rrs(t, "x.example. 60 CNAME y.example.", "y.example. 60 CNAME x.example.")
			_ = w.WriteMsg(reply)
		},
		"no TCP": func(w wire.ResponseWriter, q, reply *wire.Msg) {
			if isTCP(w) {
				w.Close()
				return
			}
			reply.Truncated = true
			_ = w.WriteMsg(reply)
		},
	} {
		b := serve(t, "", loopback, bad)
		r := resolver("", b.at, good.at)
		r.config.timeout = 1500 * time.Millisecond
		for range 2 {
			want(t, name+": "+shown(r.Resolve(t.Context(), "x.example")), name+": 192.0.2.1 1m0s 2001:db8::1 1m0s chain=x.example ttl=1m0s")
		}
		if asked := b.udp.Load(); asked != 2 {
			t.Errorf("%s: the server was asked %d times, once for each family, then the other one", name, asked)
		}
	}
}

func fails(rcode int) func(w wire.ResponseWriter, q, reply *wire.Msg) {
	return func(w wire.ResponseWriter, q, reply *wire.Msg) {
		reply.Rcode = rcode
		if rcode > 0xf {
			reply.SetEdns0(askedSize, false)
		}
		_ = w.WriteMsg(reply)
	}
}

func TestFailures(t *testing.T) {
	long := make([]string, maxChain+5)
	for i := range long {
		long[i] = fmt.Sprintf("c%d.example. 60 CNAME c%d.example.", i, i+1)
	}
	raw := func(change func(reply *wire.Msg)) func(w wire.ResponseWriter, q, reply *wire.Msg) {
		return func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Answer = rrs(t, q.Question[0].Name+" 60 A 192.0.2.66")
			change(reply)
			_ = w.WriteMsg(reply)
		}
	}
	for _, c := range []struct {
		answer func(w wire.ResponseWriter, q, reply *wire.Msg)
		wanted string // without the server
	}{
		{fails(wire.RcodeServerFailure), "SERVER failed (SERVFAIL)"},
		{fails(wire.RcodeRefused), "SERVER refused (REFUSED)"},
		{fails(wire.RcodeNotAuth), "SERVER failed (NOTAUTH)"},
		{fails(3333), "SERVER failed (code 3333)"},
		{func(wire.ResponseWriter, *wire.Msg, *wire.Msg) {}, "no answer from SERVER within 1s"},
		{raw(func(m *wire.Msg) { m.Id++ }), "no answer from SERVER within 1s, but 1 to another question"},
		{raw(func(m *wire.Msg) { m.Question[0].Name = "other.example." }), "no answer from SERVER within 1s, but 1 to another question"},
		{raw(func(m *wire.Msg) { m.Question[0].Qtype = wire.TypeMX }), "no answer from SERVER within 1s, but 1 to another question"},
		{raw(func(m *wire.Msg) { m.Question = nil }), "no answer from SERVER within 1s, but 1 to another question"},
		{raw(func(m *wire.Msg) { m.Response = false }), "no answer from SERVER within 1s, but 1 to another question"},
		{func(w wire.ResponseWriter, q, _ *wire.Msg) {
			_, _ = w.Write([]byte{byte(q.Id >> 8), byte(q.Id), 0x84, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0, 0xc0})
		}, "no answer from SERVER within 1s, but 1 to another question"},
		{func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Truncated = !isTCP(w)
			if isTCP(w) {
				reply.Id++
			}
			_ = w.WriteMsg(reply)
		}, "SERVER answers something else by TCP"},
		{func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Truncated = true
			if !isTCP(w) {
				_ = w.WriteMsg(reply)
			}
		}, "no answer from SERVER by TCP within 1s"},
		{func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Answer = rrs(t, "c0.example. 60 CNAME c1.example.", "c1.example. 60 CNAME c0.example.")
			_ = w.WriteMsg(reply)
		}, "SERVER: its CNAMEs lead in a circle"},
		{func(w wire.ResponseWriter, q, reply *wire.Msg) {
			reply.Answer = rrs(t, long...)
			_ = w.WriteMsg(reply)
		}, "SERVER: its CNAMEs lead on too often"},
	} {
		t.Run(c.wanted, func(t *testing.T) {
			t.Parallel()
			s := serve(t, "", loopback, c.answer)
			r := resolver("", s.at)
			r.config.attempts = 1
			if !strings.Contains(c.wanted, "within 1s") {
				r.config.timeout = 20 * time.Second // of a machine that has much else to do
			}
			_, err := r.Resolve(t.Context(), "c0.example")
			want(t, fmt.Sprint(err), "resolve c0.example: "+strings.ReplaceAll(c.wanted, "SERVER", s.at.String()))
		})
	}
}

func TestNobodyListens(t *testing.T) {
	s := serve(t, "", loopback, zone(t, "x.example. 60 A 192.0.2.1", "x.example. 60 AAAA 2001:db8::1"))
	conn, err := net.ListenPacket("udp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	nobody := netip.MustParseAddrPort(conn.LocalAddr().String())
	_, err = resolver("", nobody).Resolve(t.Context(), "x.example")
	want(t, fmt.Sprint(err), fmt.Sprintf("resolve x.example: %s refuses the connection: connection refused", nobody))
	_, err = resolver("", nobody, s.at).Resolve(t.Context(), "x.example")
	if err != nil {
		t.Error(err)
	}
}

// TestOneFamily: what isn't known isn't taken for what isn't there.
func TestOneFamily(t *testing.T) {
	answer := zone(t, "x.example. 60 A 192.0.2.1", "x.example. 60 AAAA 2001:db8::1", "no4.example. 60 AAAA 2001:db8::1")
	var failing, code atomic.Int32
	code.Store(wire.RcodeServerFailure)
	s := serve(t, "", loopback, func(w wire.ResponseWriter, q, reply *wire.Msg) {
		if int32(q.Question[0].Qtype) == failing.Load() {
			fails(int(code.Load()))(w, q, reply)
		} else {
			answer(w, q, reply)
		}
	})
	r := resolver("", s.at)
	failing.Store(int32(wire.TypeAAAA))
	want(t, shown(r.Resolve(t.Context(), "x.example")), fmt.Sprintf(`192.0.2.1 1m0s chain=x.example ttl=1m0s failed6="%s failed (SERVFAIL)"`, s.at))
	want(t, shown(r.Resolve(t.Context(), "no4.example")), fmt.Sprintf(`chain= ttl=0s error="resolve no4.example: %s failed (SERVFAIL)"`, s.at))
	want(t, shown(r.Resolve(t.Context(), "no.example")), fmt.Sprintf(`chain= ttl=0s error="resolve no.example: %s failed (SERVFAIL)"`, s.at))
	failing.Store(int32(wire.TypeA))
	want(t, shown(r.Resolve(t.Context(), "x.example")), fmt.Sprintf(`2001:db8::1 1m0s chain=x.example ttl=1m0s failed4="%s failed (SERVFAIL)"`, s.at))
	code.Store(wire.RcodeNameError)
	want(t, shown(r.Resolve(t.Context(), "x.example")), "2001:db8::1 1m0s chain=x.example ttl=1m0s")
}

func TestAttempts(t *testing.T) {
	a := serve(t, "", loopback, func(wire.ResponseWriter, *wire.Msg, *wire.Msg) {})
	b := serve(t, "", loopback, fails(wire.RcodeServerFailure))
	r := resolver("", a.at, b.at)
	r.config.timeout = 1500 * time.Millisecond
	_, err := r.Resolve(t.Context(), "x.example")
	want(t, fmt.Sprint(err), fmt.Sprintf("resolve x.example: no answer from %s within 1.5s; %s failed (SERVFAIL)", a.at, b.at))
	if a.udp.Load() != 4 || b.udp.Load() != 4 {
		t.Errorf("%d questions to one server, %d to the other", a.udp.Load(), b.udp.Load())
	}
}

func TestCancel(t *testing.T) {
	s := serve(t, "", loopback, func(wire.ResponseWriter, *wire.Msg, *wire.Msg) {})
	r := resolver("", s.at)
	r.config.timeout = time.Minute
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("enough")) })
	start := time.Now()
	_, err := r.Resolve(ctx, "x.example")
	want(t, fmt.Sprint(err), "resolve x.example: enough")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestResolveAll(t *testing.T) {
	answer := zone(t, "x.example. 60 A 192.0.2.1")
	s := serve(t, "", loopback, func(w wire.ResponseWriter, q, reply *wire.Msg) {
		if !strings.HasPrefix(q.Question[0].Name, "silent.") {
			answer(w, q, reply)
		}
	})
	names := slices.Repeat([]string{"x.example", "silent.example", "no.example", "a b"}, 25)
	var order []int
	texts := make([]string, len(names))
	start := time.Now()
	resolver("", s.at).ResolveAll(t.Context(), names, func(i int, res Resolution, err error) {
		order = append(order, i)
		texts[i] = fmt.Sprint(len(res.Addresses), err)
	})
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if len(order) != len(names) || !strings.HasPrefix(texts[order[0]], "1 ") && order[0]%4 == 1 {
		t.Errorf("done for %v", order)
	}
	for i, name := range names {
		wanted := []string{
			"1 <nil>", fmt.Sprintf("0 resolve %s: no answer from %s within 1s", name, s.at),
			"0 resolve no.example: no such name (NXDOMAIN)", `0 resolve "a b": is not a name`,
		}[i%4]
		want(t, texts[i], wanted)
	}
}

// Who has enough doesn't wait for sockets of all the other names.
func TestCancelMany(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began, ended := time.Now(), 0
	names := make([]string, 20_000)
	for i := range names {
		names[i] = "x.example"
	}
	resolver(testkit.NetNS(t), netip.MustParseAddrPort("127.0.0.1:1")).ResolveAll(ctx, names, func(_ int, _ Resolution, err error) {
		if ended++; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	if took := time.Since(began); ended != len(names) || took > 10*time.Second {
		t.Errorf("%d names in %v", ended, took)
	}
}

func TestRotate(t *testing.T) {
	answer := zone(t, "x.example. 60 A 192.0.2.1", "x.example. 60 AAAA 2001:db8::1")
	a, b := serve(t, "", loopback, answer), serve(t, "", loopback, answer)
	r := resolver("", a.at, b.at)
	r.config.rotate = true
	for range 4 {
		if _, err := r.Resolve(t.Context(), "x.example"); err != nil {
			t.Fatal(err)
		}
	}
	if a.udp.Load() != 4 || b.udp.Load() != 4 {
		t.Errorf("%d questions to one server, %d to the other", a.udp.Load(), b.udp.Load())
	}
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for text, wanted := range map[string]string{
		"# nameserver 192.0.2.9\nnameserver 192.0.2.1 # x\n;nameserver 192.0.2.9\nnameserver\nnameserver here\n": "[192.0.2.1:53] 5s 2 false",
		"nameserver fe80::1%eth0\nnameserver ::1\noptions timeout:1 attempts:1 rotate edns0 ndots:5\n":           "[[fe80::1%eth0]:53 [::1]:53] 1s 1 true",
		"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n" +
			"options timeout:99 attempts:99\n": "[192.0.2.1:53 192.0.2.2:53 192.0.2.3:53] 30s 2 false",
		"nameserver 192.0.2.1\noptions timeout:0 attempts:x timeout\n": "[192.0.2.1:53] 1s 2 false",
		"search example\n": "no DNS server in " + path,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := NewResolver(path, "")
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(r.config.servers, r.config.timeout, r.config.attempts, r.config.rotate)
		}
		want(t, got, wanted)
	}
	_, err := NewResolver(path, "")
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("%v is no ErrNotFound", err)
	}
	_, err = NewResolver(path+"x", "")
	want(t, fmt.Sprint(err), fmt.Sprintf("read which DNS servers there are: open %sx: no such file or directory", path))
}

// TestServers: the servers of all files, each once.
func TestServers(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "nameserver 192.0.2.1\nnameserver 127.0.0.53\n", "b": "nameserver 192.0.2.1\nnameserver 2001:db8::53\n", "c": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want(t, fmt.Sprint(serversIn([]string{dir + "/none", dir + "/*"})), "[192.0.2.1 127.0.0.53 2001:db8::53]")
}

// TestNamespace: servers are reached in the namespace that the resolver was
// given, from whatever thread; UDP and TCP, IPv4, IPv6 and a zone.
func TestNamespace(t *testing.T) {
	nsA, nsB := testkit.Pair(t)
	answer := zone(t, "x.example. 60 A 192.0.2.1", "x.example. 60 AAAA 2001:db8::1")
	cut := func(w wire.ResponseWriter, q, reply *wire.Msg) {
		if isTCP(w) {
			answer(w, q, reply)
			return
		}
		reply.Truncated = true
		_ = w.WriteMsg(reply)
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for _, address := range []string{"10.77.0.2", "fd77::2", linkLocal(t, nsA, nsB)} {
		listen := strings.Replace(address, "%a", "%b", 1)
		s := serve(t, nsB, net.JoinHostPort(listen, "53"), cut)
		if err := os.WriteFile(path, []byte("nameserver "+address+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := NewResolver(path, nsA)
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range []string{"", nsA, nsB} {
			_ = netns.Do(from, func() error {
				want(t, shown(r.Resolve(t.Context(), "x.example")), "192.0.2.1 1m0s 2001:db8::1 1m0s chain=x.example ttl=1m0s")
				return nil
			})
		}
		if s.tcp.Load() != 6 {
			t.Errorf("%s: %d questions by TCP", address, s.tcp.Load())
		}
	}
	// The process's own namespace, whatever thread asks: there is no such server.
	r := resolver("", netip.MustParseAddrPort("[fe80::1%a]:53"))
	_ = netns.Do(nsA, func() error {
		if _, err := r.Resolve(t.Context(), "x.example"); err == nil {
			t.Error("asked in the namespace of the thread")
		}
		return nil
	})
	_, err := resolver("/run/netns/not-there", netip.MustParseAddrPort("192.0.2.1:53")).Resolve(t.Context(), "x.example")
	want(t, fmt.Sprint(err), `resolve x.example: open network namespace "/run/netns/not-there": open /run/netns/not-there: no such file or directory`)
}

// linkLocal is the link-local address of device "b", as seen through "a", once it
// can be used.
func linkLocal(t *testing.T, nsA, nsB string) (address string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := netns.Do(nsB, func() error {
			dev, err := net.InterfaceByName("b")
			if err != nil {
				return err
			}
			addrs, err := dev.Addrs()
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip := a.(*net.IPNet).IP; ip.IsLinkLocalUnicast() && ip.To4() == nil {
					address = ip.String() + "%a"
					conn, err := net.ListenPacket("udp", net.JoinHostPort(ip.String()+"%b", "53"))
					if err != nil {
						return err
					}
					return conn.Close()
				}
			}
			return errors.New("no address")
		})
		if err == nil {
			// The far end has one that is checked just as long.
			return address
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
