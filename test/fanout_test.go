package test

import (
	"encoding/json"
	"strings"
	"testing"

	"bpfnet/internal/testkit"
)

// peersAlert is an alert of a rule that looks at peers.
type peersAlert struct {
	Rule, Fingerprint string
	EndedAt           *string `json:"ended_at"`
	Observed          struct {
		Metric        string
		AnsweredPeers uint64 `json:"answered_peers"`
		Peak          uint64
	}
	Evidence struct {
		Endpoint    string
		PodUID      string   `json:"pod_uid"`
		SamplePeers []string `json:"sample_peers"`
		Peer        *string
	}
}

// TestFanout has a Pod contact 60 addresses outside, of which 20 answer, and try 30
// ports of another Pod, which as many addresses outside try at the same time: that the
// first one does both is told, of the second nothing is. A recording of the same time
// gives the same.
func TestFanout(t *testing.T) {
	n := newNode(t)
	outside := testkit.NetNS(t)
	uid, path := place(t)
	_, scanned := place(t)
	container(t, n.podA, path, "sleep", "600")
	container(t, n.podB, scanned, "sleep", "600")
	n.sh(t, `OUT=`+outside+`
ip -n $HOST link add up0 type veth peer name eth0
ip -n $HOST link set eth0 netns $OUT
ip -n $HOST addr add 192.0.2.1/24 dev up0
ip -n $HOST link set up0 up
nsenter --net=$OUT sh -e -c '
ip addr add 192.0.2.254/24 dev eth0
ip link set lo up
ip link set eth0 up
for i in $(seq 60); do ip addr add 198.51.100.$i/32 dev lo; done
ip route add default via 192.0.2.1'
ip -n $HOST route add 198.51.100.0/24 via 192.0.2.254
nsenter --net=/run/netns/$HOST sysctl -qw net.ipv4.ip_forward=1`)
	n.must(t, "load", "peers")
	for _, dev := range []string{"veth-a", "veth-b"} {
		n.must(t, "attach", "tc", "peers", "--dev", dev, "--direction", "both")
	}

	rules := []string{"--fanout", "50/3s", "--fanout", "30/3s,answered", "--scan", "25ports/3s", "--scan", "80failed/3s", "--burst", "80connections/3s,transmit"}
	dir := t.TempDir()
	recording := begin(t, n.bpfnet("watch", "peers", "--interval", "200ms", "--count", "70", "-o", "ndjson"), dir+"/samples", dir+"/notes", `"schema"`)
	live := begin(t, n.bpfnet(append([]string{"watch", "alerts", "--interval", "200ms", "--for", "12s", "-o", "ndjson"}, rules...)...), dir+"/alerts", dir+"/said", "doesn't count 10.77.0.0/24, ")
	n.sh(t, `OUT=`+outside+`
for i in $(seq 20); do nsenter --net=/run/netns/$POD_A ping -c1 -W1 -q 198.51.100.$i & done
for i in $(seq 60); do nsenter --net=$OUT ping -I 198.51.100.$i -c1 -W1 -q 10.77.0.5 & done
nsenter --net=$OUT bash -c 'for port in $(seq 100 160); do (exec 3<>/dev/tcp/10.77.0.5/$port); done' 2>/dev/null &
wait
nsenter --net=/run/netns/$POD_A bash -c '
for i in $(seq 60); do (exec 3<>/dev/tcp/198.51.100.$i/81); done
for port in $(seq 100 129); do (exec 3<>/dev/tcp/10.77.0.5/$port); done' 2>/dev/null || true`)
	watched, _ := live(), recording()
	replay := append([]string{"watch", "alerts", "--replay", dir + "/samples", "-o", "ndjson"}, rules...)
	replayed := n.must(t, replay...)
	if again := n.must(t, replay...); again != replayed {
		t.Errorf("replayed once\n%sand once\n%s", replayed, again)
	}

	fingerprints := map[string]string{}
	for name, text := range map[string]string{"live": watched, "replayed": replayed} {
		began, ended := map[string]peersAlert{}, map[string]peersAlert{}
		for line := range strings.Lines(text) {
			var a peersAlert
			if err := json.Unmarshal([]byte(line), &a); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			if a.Evidence.Endpoint != "pod" || a.Evidence.PodUID != uid {
				t.Errorf("%s: it is about somebody else: %s", name, line)
			}
			which := began
			if a.EndedAt != nil {
				which = ended
			}
			which[a.Rule+" "+a.Observed.Metric] = a
		}
		peaks := map[string]uint64{"fanout ": 60, "scan ports": 30, "scan failed": 90, "burst connections": 110}
		if len(began) != len(peaks) || len(ended) != len(peaks) || strings.Count(text, "\n") != 2*len(peaks) {
			t.Fatalf("%s:\n%s", name, text)
		}
		for what, peak := range peaks {
			if a := ended[what]; a.Observed.Peak != peak || a.Fingerprint != began[what].Fingerprint {
				t.Errorf("%s: %s: %+v, want a peak of %d", name, what, a, peak)
			}
			if before, ok := fingerprints[what]; ok && before != began[what].Fingerprint {
				t.Errorf("%s: %s has another fingerprint", name, what)
			}
			fingerprints[what] = began[what].Fingerprint
		}
		if a := began["fanout "]; a.Observed.AnsweredPeers != 20 || len(a.Evidence.SamplePeers) != 10 || !strings.HasPrefix(a.Evidence.SamplePeers[0], "198.51.100.") {
			t.Errorf("%s: %+v", name, a)
		}
		if peer := began["scan ports"].Evidence.Peer; peer == nil || *peer != addressB {
			t.Errorf("%s: the scan is one of %v", name, peer)
		}
	}
	n.must(t, "unload", "peers", "--detach")
}
