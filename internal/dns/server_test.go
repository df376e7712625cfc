package dns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"bpfnet/internal/netns"
)

// server is a DNS server with UDP and TCP on one address.
type server struct {
	at       netip.AddrPort
	udp, tcp atomic.Int64 // questions
	plain    atomic.Int64 // of them without EDNS
	answer   func(w wire.ResponseWriter, q, reply *wire.Msg)
}

// serve starts a server in a namespace; answer fills a reply and sends it.
func serve(t testing.TB, namespace, address string, answer func(w wire.ResponseWriter, q, reply *wire.Msg)) *server {
	t.Helper()
	s := &server{answer: answer}
	var packets net.PacketConn
	var listener net.Listener
	err := netns.Do(namespace, func() (err error) {
		for range 10 { // the port may be in use by TCP
			if packets, err = net.ListenPacket("udp", address); err != nil {
				return err
			}
			if listener, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
				return nil
			}
			packets.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.at = netip.MustParseAddrPort(packets.LocalAddr().String())
	for _, server := range []*wire.Server{{PacketConn: packets, Handler: s}, {Listener: listener, Handler: s}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		go server.ActivateAndServe()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return s
}

func (s *server) ServeDNS(w wire.ResponseWriter, q *wire.Msg) {
	if isTCP(w) {
		s.tcp.Add(1)
	} else {
		s.udp.Add(1)
	}
	if q.IsEdns0() == nil {
		s.plain.Add(1)
	}
	s.answer(w, q, new(wire.Msg).SetReply(q))
}

func isTCP(w wire.ResponseWriter) bool { return w.RemoteAddr().Network() == "tcp" }

// zone answers from records as in a zone file, with CNAMEs followed; a name
// without records doesn't exist, and its SOA is the last record, if that is one.
func zone(t testing.TB, records ...string) func(w wire.ResponseWriter, q, reply *wire.Msg) {
	t.Helper()
	all := rrs(t, records...)
	return func(w wire.ResponseWriter, q, reply *wire.Msg) {
		name, known := q.Question[0].Name, false
		for range 3 {
			for _, rr := range all {
				if !strings.EqualFold(rr.Header().Name, name) || rr.Header().Rrtype == wire.TypeSOA {
					continue
				}
				known = true
				if alias, ok := rr.(*wire.CNAME); ok {
					reply.Answer = append(reply.Answer, rr)
					name = alias.Target
				} else if rr.Header().Rrtype == q.Question[0].Qtype {
					reply.Answer = append(reply.Answer, rr)
				}
			}
		}
		if !known {
			reply.Rcode = wire.RcodeNameError
		}
		if soa := all[len(all)-1]; len(reply.Answer) == 0 && soa.Header().Rrtype == wire.TypeSOA {
			reply.Ns = []wire.RR{soa}
		}
		_ = w.WriteMsg(reply)
	}
}

func rrs(t testing.TB, records ...string) []wire.RR {
	t.Helper()
	all := make([]wire.RR, len(records))
	for i, text := range records {
		var err error
		if all[i], err = wire.NewRR(text); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// resolver asks servers, with a time-out that tests can wait for.
func resolver(namespace string, servers ...netip.AddrPort) *Resolver {
	return &Resolver{namespace: namespace, config: config{servers: servers, timeout: time.Second, attempts: 2}}
}

// shown is a resolution in a line.
func shown(r Resolution, err error) string {
	text := ""
	for _, a := range r.Addresses {
		text += fmt.Sprintf("%s %s ", a.Addr, a.TTL)
	}
	text += fmt.Sprintf("chain=%s ttl=%s", strings.Join(r.Chain, ","), r.TTL)
	if r.Failed4 != nil {
		text += fmt.Sprintf(" failed4=%q", r.Failed4)
	}
	if r.Failed6 != nil {
		text += fmt.Sprintf(" failed6=%q", r.Failed6)
	}
	if err != nil {
		text += fmt.Sprintf(" error=%q", err)
	}
	return text
}
