package test

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// ratio is what a scrape says of pod-traffic, -1 if it says nothing.
func (e exporter) ratio() float64 {
	e.Helper()
	lines := seriesOf(e.text(), `bpfnet_reconcile_ratio{program="pod-traffic"} `)
	if len(lines) == 0 {
		return -1
	}
	value, err := strconv.ParseFloat(lines[0][strings.LastIndex(lines[0], " ")+1:], 64)
	if err != nil {
		e.Fatal(err)
	}
	return value
}

// What pod-traffic counts is what the interfaces count, with segmentation offload, both
// address families, and fragments; a packet that it doesn't get to see is missing; and
// nothing is said where it can't be known.
func TestReconcile(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	e := n.export(t)
	if got := e.ratio(); got != -1 {
		t.Errorf("attached to nothing: %v", got)
	}
	for _, name := range []string{"veth-a", "veth-b"} {
		n.must(t, "attach", "tc", "pod-traffic", "--dev", name, "--direction", "both")
	}
	e.text()
	scraped := make(chan struct{})
	var scraping sync.WaitGroup
	scraping.Go(func() { // while packets pass, too
		for {
			select {
			case <-scraped:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if answer, err := http.Get("http://" + e.address + "/metrics"); err == nil {
				answer.Body.Close()
			}
		}
	})
	n.sh(t, `
nsenter --net=/run/netns/$POD_B iperf3 -s -D -I /tmp/$POD_B.pid >/dev/null
trap 'kill $(tr -d "\0" < /tmp/$POD_B.pid)' EXIT
A="nsenter --net=/run/netns/$POD_A"
send() { # the server listens anew after each client
	until nsenter --net=/run/netns/$POD_B ss -Hltn "sport = :5201" | grep -q .; do sleep 0.05; done
	$A iperf3 "$@" >/dev/null
}
send -c 10.77.0.5 -t 1
send -c fd77::5 -t 1 -R
send -c 10.77.0.5 -u -b 100M -l 4000 -t 1
$A ping -c 3 -i 0.2 -s 3000 -q 10.77.0.5 >/dev/null`)
	close(scraped)
	scraping.Wait()
	n.quiet(t, func() device { return n.device(t, "veth-a") })
	if got := e.ratio(); got < 0.999 || got > 1.001 {
		t.Errorf("ratio %v", got)
	}

	n.must(t, "load", "port-filter")
	n.must(t, "ports", "deny", "9/udp")
	n.must(t, "attach", "tc", "port-filter", "--dev", "veth-a", "--direction", "ingress", "--first")
	n.sh(t, "nsenter --net=/run/netns/$POD_A bash -c 'dd if=/dev/zero bs=1400 count=100000 status=none >/dev/udp/10.77.0.5/9'")
	if got := e.ratio(); got < 0.1 || got > 0.999 {
		t.Errorf("ratio %v of what was dropped before", got)
	}
	n.must(t, "detach", "tc", "pod-traffic", "--dev", "veth-b", "--direction", "egress")
	if got := e.ratio(); got != -1 {
		t.Errorf("in one direction: %v", got)
	}
}
