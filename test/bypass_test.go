package test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"

	"bpfnet/internal/testkit"
)

// redirect attaches a program of somebody else that puts what Pod B sends into
// Pod A, as network plug-ins do.
func (n node) redirect(t *testing.T) {
	t.Helper()
	index := jq(t, `.[0].ifindex`, n.sh(t, "ip -n $HOST -j link show veth-a"))
	var to uint32
	if _, err := fmt.Sscan(index, &to); err != nil {
		t.Fatal(err)
	}
	p := testkit.Classifier(t, "into_pod", testkit.Redirecting(asm.FnRedirectPeer, to))
	pin := filepath.Join(filepath.Dir(n.root), testkit.Name(t))
	if err := p.Pin(pin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Unpin() })
	n.sh(t, "nsenter --net=/run/netns/$HOST sh -c 'tc qdisc add dev veth-b clsact && tc filter add dev veth-b ingress bpf da pinned "+pin+"'")
}

// TestHostSideBypassed counts at tc and at the cgroup of a Pod that packets are put
// into, and looks at what doctor and watch say.
func TestHostSideBypassed(t *testing.T) {
	n := newNode(t)
	pid := container(t, n.podA, "docker/"+containerID(t), "ping", "-q", "-i0.05", addressB)
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")

	// watch returns where was counted, by how many packets to the Pod the counters
	// grew, and what was said.
	watch := func(args ...string) (at string, received int, notes string) {
		t.Helper()
		cmd := n.bpfnet(append([]string{"watch", "pods", "--count", "2", "--interval", "400ms", "--address", addressA, "-o", "ndjson"}, args...)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, stderr.String())
		}
		got := jq(t, `"\(.observed_at) \(.pods | map(.receive_packets) | add // 0)"`, stdout.String())
		var before, now int
		if _, err := fmt.Sscanf(got, "%s %d\n%s %d", &at, &before, &at, &now); err != nil {
			t.Fatalf("%v: %s", err, got)
		}
		return at, now - before, stderr.String()
	}
	if at, received, notes := watch(); at != "tc" || received == 0 || notes != "" {
		t.Errorf("with veth alone: %s, %d packets, %s", at, received, notes)
	}
	if got := jq(t, `.host_side | tojson`, n.must(t, "doctor", "-o", "json")); got != `{"bypassed":false,"programs":[],"detail":null}` {
		t.Errorf("doctor says %s", got)
	}

	n.redirect(t)
	time.Sleep(100 * time.Millisecond) // for what is on its way
	const note = "into_pod on veth-b (clsact_ingress) calls bpf_redirect_peer"
	if at, received, notes := watch(); at != "tc" || received != 0 || !strings.Contains(notes, note) || !strings.Contains(notes, "attach cgroup pod-traffic") {
		t.Errorf("past tc: %s, %d packets, %s", at, received, notes)
	}
	got := jq(t, `.host_side | [.bypassed, (.programs[] | .devname, .prog_name, .calls, .misses), .detail] | tojson`, n.must(t, "doctor", "-o", "json"))
	if want := `[true,"veth-b","into_pod",["bpf_redirect_peer"],["transmit","receive"],null]`; got != want {
		t.Errorf("doctor says %s, want %s", got, want)
	}
	if table := n.must(t, "doctor"); !strings.Contains(table, note) {
		t.Errorf("doctor says\n%s", table)
	}

	cgroup := jq(t, `.[0].cgroup`, n.must(t, "endpoint", "show", fmt.Sprint("pid:", pid), "-o", "json"))
	n.must(t, "attach", "cgroup", "pod-traffic", "--cgroup", cgroup)
	if at, received, notes := watch(); at != "cgroup" || received == 0 || !strings.Contains(notes, note) {
		t.Errorf("at both: %s, %d packets, %s", at, received, notes)
	}
	if at, received, _ := watch("--observe", "tc"); at != "tc" || received != 0 {
		t.Errorf("at tc, asked for: %s, %d packets", at, received)
	}
}

// TestUnreadPrograms: who may not look into programs of others is told so.
func TestUnreadPrograms(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.must(t, "attach", "tc", "pod-traffic", "--dev", "veth-a", "--direction", "both")
	state := func(caps string) string {
		t.Helper()
		_, stdout, _ := n.runAs(t, caps, "doctor", "-o", "json")
		return jq(t, `.host_side | "\(.bypassed) \(.detail)"`, stdout)
	}
	if got := state(enough); got != "false null" {
		t.Errorf("bpfnet's own programs: %s", got)
	}
	n.redirect(t)
	if got := state(enough); !strings.HasPrefix(got, "null ") || !strings.Contains(got, "on veth-b: ") || !strings.Contains(got, "CAP_SYS_ADMIN") {
		t.Errorf("without CAP_SYS_ADMIN: %s", got)
	}
	if code, _, stderr := n.runAs(t, enough, "watch", "pods", "--once"); code != 0 || !strings.Contains(stderr, "whether packets pass by tc is not known") {
		t.Errorf("watch: exit %d: %s", code, stderr)
	}
	// The kernel hides addresses, unless they are everybody's.
	if got := state(enough + " sys_admin"); !strings.Contains(got, "CAP_SYSLOG") && got != "true null" {
		t.Errorf("without CAP_SYSLOG: %s", got)
	}
	if got := state(enough + " sys_admin syslog"); got != "true null" {
		t.Errorf("with CAP_SYSLOG: %s", got)
	}
}
