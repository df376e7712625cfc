package test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"bpfnet/internal/netns"
)

// While the policy changes over and over, and the program under it is replaced,
// no packet to a port that every policy forbids passes, and none to a port that
// every policy allows is lost.
func TestPolicyChangesHaveNoGap(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "port-filter")
	n.must(t, "ports", "allow", "80/udp")
	n.must(t, "ports", "default", "drop")
	n.must(t, "attach", "tc", "port-filter", "--dev", "veth-b", "--direction", "egress")

	allowed, forbidden := n.listen(t, 80), n.listen(t, 81)
	ctx, cancel := context.WithCancel(context.Background())
	toAllowed, toForbidden := make(chan uint64, 1), make(chan uint64, 1)
	go n.flood(ctx, t, 80, toAllowed)
	go n.flood(ctx, t, 81, toForbidden)
	for i := range 20 {
		n.must(t, "ports", "allow", "1000-2000/udp", "443/tcp")
		n.must(t, "ports", "deny", "1500/udp")
		n.must(t, "load", "port-filter", "--replace", "--reuse-maps", "--prog", "port_filter_egress", "--prog", [...]string{"port_filter_ingress", "port_filter_xdp"}[i%2])
		n.must(t, "ports", "remove", "1000-2000/udp", "443/tcp", "1500/udp")
		n.must(t, "attach", "tc", "port-filter", "--dev", "veth-b", "--direction", "egress")
	}
	cancel()
	sent, refused := <-toAllowed, <-toForbidden
	time.Sleep(200 * time.Millisecond) // what is under way arrives
	if refused == 0 || forbidden.Load() != 0 {
		t.Errorf("%d of %d packets to the forbidden port passed", forbidden.Load(), refused)
	}
	if got := allowed.Load(); got == 0 || got != sent {
		t.Errorf("%d of %d packets to the allowed port arrived", got, sent)
	}
}

// listen counts the datagrams that arrive at a port of Pod b.
func (n node) listen(t *testing.T, port int) *atomic.Uint64 {
	t.Helper()
	var conn *net.UDPConn
	err := netns.Do("/run/netns/"+n.podB, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetReadBuffer(1 << 20)
	var count atomic.Uint64
	go func() {
		for buffer := make([]byte, 64); ; count.Add(1) {
			if _, err := conn.Read(buffer); err != nil {
				return
			}
		}
	}()
	return &count
}

// flood sends a datagram to a port of Pod b every 200 microseconds or so until
// the context ends, and then says how many.
func (n node) flood(ctx context.Context, t *testing.T, port int, sent chan<- uint64) {
	var count uint64
	err := netns.Do("/run/netns/"+n.podA, func() error {
		conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.ParseIP(addressB), Port: port})
		if err != nil {
			return err
		}
		defer conn.Close()
		for ctx.Err() == nil {
			if _, err := conn.Write([]byte("x")); err != nil {
				return err
			}
			count++
			time.Sleep(200 * time.Microsecond)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	sent <- count
}
