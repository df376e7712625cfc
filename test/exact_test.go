package test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"bpfnet/internal/testkit"
)

// device is what the kernel counts on a host-side device, seen from the Pod.
type device struct{ transmit, receive uint64 }

func (n node) device(t *testing.T, name string) device {
	t.Helper()
	var links []struct {
		Stats64 struct{ Rx, Tx struct{ Bytes uint64 } }
	}
	out := n.sh(t, "ip -n $HOST -s -j link show dev "+name)
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("%v in %s", err, out)
	}
	return device{transmit: links[0].Stats64.Rx.Bytes, receive: links[0].Stats64.Tx.Bytes}
}

// pods is the document bpfnet.pods/v1, as far as this test reads it.
type pods struct {
	Loss struct {
		MapFull uint64 `json:"map_full"`
	}
	Pods   []row
	Others row
	Total  row
}

type row struct {
	Address  string
	DevName  *string
	Transmit uint64 `json:"transmit_bytes"`
	Receive  uint64 `json:"receive_bytes"`
	Packets  uint64 `json:"transmit_packets"`
}

func (n node) pods(t *testing.T, args ...string) pods {
	t.Helper()
	var doc pods
	out := n.must(t, append([]string{"watch", "pods", "--once", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return doc
}

// What the Pods' rows and the others add up to is what the interface counted,
// to the byte, with TCP segmentation offload and GRO on, both address families,
// UDP and fragments.
func TestPodTrafficEqualsTheInterface(t *testing.T) {
	n := newNode(t)
	before := n.attachUnseen(t)
	n.sh(t, `
nsenter --net=/run/netns/$POD_B iperf3 -s -D -I /tmp/$POD_B.pid >/dev/null
trap 'kill $(tr -d "\0" < /tmp/$POD_B.pid)' EXIT
until nsenter --net=/run/netns/$POD_B ss -Hltn "sport = :5201" | grep -q .; do sleep 0.05; done
A="nsenter --net=/run/netns/$POD_A"
$A iperf3 -c 10.77.0.5 -t 2 >/dev/null
$A iperf3 -c fd77::5 -t 1 -R >/dev/null
$A iperf3 -c 10.77.0.5 -u -b 100M -l 4000 -t 1 >/dev/null
$A ping -c 3 -i 0.2 -s 3000 -q 10.77.0.5 >/dev/null
$A ping -c 3 -i 0.2 -q fd77::5 >/dev/null`)
	var counted pods
	after := n.quiet(t, func() device {
		counted = n.pods(t)
		return n.device(t, "veth-a")
	})
	want := device{transmit: after.transmit - before.transmit, receive: after.receive - before.receive}
	sum := counted.Others
	for _, p := range counted.Pods {
		sum.Transmit += p.Transmit
		sum.Receive += p.Receive
	}
	if got := (device{sum.Transmit, sum.Receive}); got != want {
		t.Errorf("counted %+v, the interface %+v", got, want)
	}
	if got := (device{counted.Total.Transmit, counted.Total.Receive}); got != want {
		t.Errorf("total %+v, the interface %+v", got, want)
	}
	if counted.Loss.MapFull != 0 || want.transmit < 10e6 {
		t.Errorf("map_full %d, %d bytes sent", counted.Loss.MapFull, want.transmit)
	}
	if top := n.pods(t, "--limit", "1"); len(top.Pods) != 1 || top.Pods[0].Transmit+top.Others.Transmit < want.transmit {
		t.Errorf("with one row: %+v", top)
	}
}

// With lists, too: what comes in from the Pod is on the interface's counters and is
// counted, what is dropped on its way to the Pod is on neither.
func TestPodTrafficDropsListed(t *testing.T) {
	n := newNode(t)
	n.must(t, "blocklist", "add", addressB, "--force") // before the program is loaded
	n.must(t, "blocklist", "action", "alert")
	before := n.attachUnseen(t)
	const pings = `
for ns in $POD_A $POD_B; do
	for to in 10.77.0.4 10.77.0.5 fd77::4 fd77::5; do nsenter --net=/run/netns/$ns ping -c 2 -i 0.2 -W 1 -q $to >/dev/null || echo $ns to $to; done
done`
	if lost := n.sh(t, pings); lost != "" {
		t.Errorf("an alert stopped pings:\n%s", lost)
	}
	n.must(t, "blocklist", "action", "drop")
	n.must(t, "blocklist", "add", "fd77::5", "--force")
	if lost := n.sh(t, pings); strings.Count(lost, "\n") != 4 {
		t.Errorf("pings between the Pods weren't all stopped:\n%s", lost)
	}
	var total row
	after := n.quiet(t, func() device {
		total = n.pods(t).Total
		return n.device(t, "veth-a")
	})
	if got, want := (device{total.Transmit, total.Receive}), (device{after.transmit - before.transmit, after.receive - before.receive}); got != want {
		t.Errorf("counted %+v, the interface %+v", got, want)
	}
	if got := n.must(t, "blocklist", "list", "--hits", "-o", "ndjson"); strings.Count(got, `"packets":0`) != 0 {
		t.Errorf("an entry without hits:\n%s", got)
	}
	n.must(t, "load", "pod-traffic", "--replace", "--set", "blocklist=0")
	if lost := n.sh(t, pings); lost != "" {
		t.Errorf("lists that aren't consulted stopped pings:\n%s", lost)
	}
	n.must(t, "unload", "pod-traffic", "--detach")
	if got := n.must(t, "blocklist", "list", "-o", "ndjson"); strings.Count(got, "\n") != 2 {
		t.Errorf("left of the list:\n%s", got)
	}
}

// In cgroup_skb what is dropped isn't counted, in neither direction.
func TestPodTrafficDropsListedInCgroup(t *testing.T) {
	n := newNode(t)
	cgroup := testkit.Cgroup(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "cgroup", "pod-traffic", "--cgroup", cgroup)
	ping := "echo 0 >" + cgroup + "/cgroup.procs; exec nsenter --net=/run/netns/$POD_A ping -c 3 -i 0.2 -W 1 -q " + addressB
	n.sh(t, ping)
	counted := n.pods(t).Total
	if counted.Transmit == 0 || counted.Receive != counted.Transmit {
		t.Errorf("counted %+v", counted)
	}
	n.must(t, "blocklist", "add", addressB, "--force")
	n.must(t, "blocklist", "action", "drop")
	for _, match := range []string{"source", "destination"} { // of replies, and of requests
		n.must(t, "blocklist", "action", "--match", match)
		n.sh(t, "! ("+ping+")")
		after := n.pods(t).Total
		if match == "source" {
			counted.Transmit = after.Transmit
		}
		if after.Receive != counted.Receive || after.Transmit != counted.Transmit {
			t.Errorf("match %s: counted %+v, before %+v", match, after, counted)
		}
	}
}

// attachUnseen attaches pod-traffic to veth-a while no packet passes, so that it
// and the interface begin to count at the same packet, and returns what the
// interface had counted.
func (n node) attachUnseen(t *testing.T) device {
	t.Helper()
	for range 20 {
		n.must(t, "load", "pod-traffic")
		before := n.quiet(t, func() device { return n.device(t, "veth-a") })
		n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
		if n.device(t, "veth-a") == before {
			return before
		}
		n.must(t, "unload", "pod-traffic", "--detach")
	}
	t.Fatal("packets pass all the time")
	return device{}
}

// quiet reads until nothing has moved between two readings.
func (n node) quiet(t *testing.T, read func() device) device {
	t.Helper()
	last := read()
	for range 100 {
		time.Sleep(50 * time.Millisecond)
		now := read()
		if now == last {
			return now
		}
		last = now
	}
	t.Fatal(fmt.Sprint("traffic never stops: ", last))
	return last
}

// Counters go up only, whatever readers do.
func TestReadersDoNotDisturb(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	n.sh(t, "nsenter --net=/run/netns/$POD_A ping -c 3 -i 0.2 -q 10.77.0.5")
	var last uint64
	for range 5 {
		n.sh(t, "nsenter --net=/run/netns/$POD_A ping -c 1 -q 10.77.0.5")
		var sent uint64
		for _, p := range n.pods(t).Pods {
			if p.Address == addressA {
				sent = p.Packets
			}
		}
		if sent <= last {
			t.Fatalf("%d packets after %d", sent, last)
		}
		last = sent
	}
}
