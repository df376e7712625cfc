package test

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bpfnet/internal/netns"
)

// crashPorts are UDP ports of Pod b. Whatever the policy is, it passes the last.
var crashPorts = [...]int{81, 82, 83, 80}

// verdicts say which of crashPorts packets reach.
type verdicts [len(crashPorts)]bool

// addressListed is where Pod a sends from to all of crashPorts but the last.
const addressListed = "10.77.0.6"

// traffic sends from Pod a to crashPorts of Pod b.
type traffic struct {
	conns    [len(crashPorts)]net.Conn
	received [len(crashPorts)]*atomic.Uint64
}

func newTraffic(t *testing.T, n node) traffic {
	t.Helper()
	var tr traffic
	n.sh(t, "ip -n $POD_A addr add "+addressListed+"/24 dev eth0")
	for i, port := range crashPorts {
		from := net.UDPAddr{IP: net.ParseIP(addressListed)}
		if i == len(crashPorts)-1 {
			from.IP = net.ParseIP(addressA)
		}
		tr.received[i] = n.listen(t, port)
		err := netns.Do("/run/netns/"+n.podA, func() (err error) {
			tr.conns[i], err = net.DialUDP("udp4", &from, &net.UDPAddr{IP: net.ParseIP(addressB), Port: port})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.conns[i].Close() })
	}
	return tr
}

func (tr traffic) counts() (counts [len(crashPorts)]uint64) {
	for i := range counts {
		counts[i] = tr.received[i].Load()
	}
	return counts
}

// send sends a packet to each port, to the last one last.
func (tr traffic) send(t *testing.T) {
	for _, conn := range tr.conns {
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Error(err)
		}
	}
}

// settle waits for the packets sent: until what the last port gets has come, and
// with it what was sent before, or gives up.
func (tr traffic) settle(last uint64) {
	for deadline := time.Now().Add(5 * time.Second); tr.counts()[len(crashPorts)-1] < last && time.Now().Before(deadline); {
		time.Sleep(100 * time.Microsecond)
	}
	time.Sleep(2 * time.Millisecond) // another CPU may be behind
}

// verdictTries is how often a packet is sent that doesn't arrive: a slow machine
// may need longer than one is waited for.
const verdictTries = 3

// verdicts tries which ports packets reach.
func (tr traffic) verdicts(t *testing.T) (passed verdicts) {
	t.Helper()
	before := tr.counts()
	for try := uint64(1); try <= verdictTries && slices.Contains(passed[:], false); try++ {
		tr.send(t)
		tr.settle(before[len(crashPorts)-1] + try)
		for i, count := range tr.counts() {
			passed[i] = count > before[i]
		}
	}
	if !passed[len(crashPorts)-1] {
		t.Errorf("a packet to port %d, which every policy allows, is lost", crashPorts[len(crashPorts)-1])
	}
	return passed
}

// flood sends to all ports until it is stopped, and then checks: a port with the
// same verdict before and after had it all the time. With lossy, packets to
// allowed ports may be lost.
func (tr traffic) flood(t *testing.T) (stop func(before, after verdicts, lossy bool)) {
	began := tr.counts()
	var group sync.WaitGroup
	var sent uint64
	end := make(chan struct{})
	group.Go(func() {
		for ; ; time.Sleep(300 * time.Microsecond) {
			select {
			case <-end:
				return
			default:
				tr.send(t)
				sent++
			}
		}
	})
	return func(before, after verdicts, lossy bool) {
		t.Helper()
		close(end)
		group.Wait()
		tr.settle(began[len(crashPorts)-1] + sent)
		for i, count := range tr.counts() {
			count -= began[i]
			switch {
			case before[i] != after[i]:
			case before[i] && count != sent && !lossy:
				t.Errorf("%d of %d packets to the allowed port %d arrived", count, sent, crashPorts[i])
			case !before[i] && count != 0:
				t.Errorf("%d of %d packets to the forbidden port %d passed", count, sent, crashPorts[i])
			}
		}
	}
}
