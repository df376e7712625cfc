package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bpfnet/internal/testkit"
)

// onHost runs bpfnet on the node's host as somebody there would, without --netns.
func (n node) onHost(args ...string) result {
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + n.host, "--", binary}, args...)...)
	cmd.Env = append(os.Environ(), n.env()...)
	return runOf(cmd)
}

// place is a Pod's uid, and the path of the cgroup of a container in it.
func place(t *testing.T) (uid, path string) {
	t.Helper()
	id := containerID(t)
	uid = fmt.Sprintf("%s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], id[20:32])
	return uid, "kubepods/burstable/pod" + uid + "/" + id
}

// where is what an attachment document says of its attachments.
func (r result) where(t *testing.T) string {
	t.Helper()
	if r.code != 0 {
		return strings.TrimSpace(r.stderr)
	}
	return jq(t, `"\(.changed) " + ([.attachments[] | .devname // .cgroup] | unique | join(" "))`, r.stdout)
}

func (n node) attached(t *testing.T, name string) string {
	t.Helper()
	return jq(t, `[.instances[0].attachments[] | .devname // .cgroup] | unique | join(" ")`, n.must(t, "status", name, "-o", "json"))
}

// A Pod and a container stand for their interfaces, cgroups, processes and network
// namespaces.
func TestTargets(t *testing.T) {
	n := newNode(t)
	uid, path := place(t)
	pid := container(t, n.podA, path, "ping", "-q", "-i0.2", addressB)
	id, web := filepath.Base(path), containerID(t)
	container(t, n.podB, "docker/"+web, "sleep", "600")
	cgroup := jq(t, ".[0].cgroup", n.onHost("endpoint", "show", "pod:"+uid, "-o", "json").stdout)
	own := jq(t, ".[0].containers[0].cgroup", n.onHost("endpoint", "show", "pod:"+uid, "-o", "json").stdout)

	n.must(t, "load", "pod-traffic")
	for _, test := range []struct{ hook, selector, want string }{
		{"tc pod-traffic --direction both", "--pod " + uid, "veth-a"},
		{"tc pod-traffic --direction both", "--container " + id[:12], "veth-a"},
		{"tc pod-traffic --direction both", "--container " + web, "veth-b"},
		{"cgroup pod-traffic", "--pod " + uid, cgroup},
		{"cgroup pod-traffic", "--container " + id, own},
		{"cgroup pod-traffic --direction ingress", "--pod " + uid, cgroup},
	} {
		line := append(strings.Fields(test.hook), strings.Fields(test.selector)...)
		if got := n.onHost(append([]string{"attach", "-o", "json", "--dry-run"}, line...)...).where(t); got != "true "+test.want {
			t.Errorf("dry run of %q: %s", line, got)
		}
		for _, changed := range []string{"true ", "false "} {
			if got := n.onHost(append([]string{"attach", "-o", "json"}, line...)...).where(t); got != changed+test.want {
				t.Errorf("attach %q: %s, want %s", line, got, changed+test.want)
			}
		}
		if got := n.onHost(append([]string{"detach", "-o", "json"}, line...)...).where(t); got != "true "+test.want {
			t.Errorf("detach %q: %s", line, got)
		}
		if left := n.attached(t, "pod-traffic"); left != "" {
			t.Errorf("detach %q leaves %s", line, left)
		}
	}

	n.watchTargets(t, uid, id, web, pid)

	inside := n.onHost("--netns", "pod:"+uid, "attach", "tc", "pod-traffic", "--dev", "eth0", "--direction", "ingress", "-o", "json")
	if got := jq(t, `"\(.devname) \(.netns)"`, inside.stdout); got != fmt.Sprint("eth0 ", netnsInode(t, n.podA)) {
		t.Errorf("in the Pod's namespace: %s%s", got, inside.stderr)
	}
	n.onHost("--netns", "container:"+id, "unload", "pod-traffic", "--detach").check(t, "unload", 0, "")
}

// watchTargets looks at the rows of endpoints, counted at both points.
func (n node) watchTargets(t *testing.T, uid, id, web string, pid int) {
	t.Helper()
	for _, selector := range [][]string{{"--pod", uid}, {"--container", web}} {
		n.onHost(append([]string{"attach", "tc", "pod-traffic", "--direction", "both"}, selector...)...).check(t, "attach", 0, "")
	}
	n.onHost("attach", "cgroup", "pod-traffic", "--container", id).check(t, "attach", 0, "")
	n.sh(t, "nsenter --net=/run/netns/$POD_A ping -q -c3 -i0.2 10.77.0.5")
	for _, test := range []struct{ selector, want string }{
		{"--pod " + uid, "10.77.0.4 veth-a"}, {"--container " + id, "10.77.0.4 veth-a"}, {"--container " + web, "10.77.0.5 veth-b"},
		{fmt.Sprint("--once --pid ", pid), "10.77.0.4 veth-a"},
		{"--observe cgroup --pod " + uid, "10.77.0.4"}, {"--observe cgroup --container " + id, "10.77.0.4"},
		{fmt.Sprint("--observe cgroup --pid ", pid), "10.77.0.4"}, {"--observe cgroup --container " + web, ""},
	} {
		r := n.onHost(append([]string{"watch", "pods", "-o", "json", "--count", "1"}, strings.Fields(strings.TrimPrefix(test.selector, "--once "))...)...)
		got := jq(t, `[.pods[] | select(.address | test(":") | not) | "\(.address) \(.devname // "")"] | join(", ")`, r.stdout)
		if sum := jq(t, `([.pods[].transmit_bytes] | add // 0) + .others.transmit_bytes == .total.transmit_bytes`, r.stdout); got != test.want || sum != "true" {
			t.Errorf("watch pods %s: %q, want %q\n%s", test.selector, got, test.want, r.stderr)
		}
	}
	if out := n.sh(t, fmt.Sprintf("echo %d | xargs nsenter --net=/run/netns/$HOST bpfnet watch pods --once --pid", pid)); !strings.Contains(out, "10.77.0.4") || strings.Contains(out, "10.77.0.5") {
		t.Errorf("by xargs: %s", out)
	}
	n.onHost("detach", "cgroup", "pod-traffic").check(t, "detach", 0, "")
	n.onHost("detach", "tc", "pod-traffic").check(t, "detach", 0, "")
}

func netnsInode(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("stat", "-Lc", "%i", "/run/netns/"+name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// Of a Pod with several interfaces either all are attached to or none.
func TestTargetsAllOrNothing(t *testing.T) {
	n := newNode(t)
	uid, path := place(t)
	container(t, n.podA, path, "sleep", "600")
	n.sh(t, `ip -n $HOST link add veth-a2 type veth peer name net1 netns $POD_A; ip -n $HOST link set veth-a2 up; ip -n $POD_A link set net1 up`)
	n.must(t, "load", "xdp-counter")
	n.must(t, "load", "xdp-counter", "--name", "holder")
	n.must(t, "attach", "xdp", "holder", "--dev", "veth-a2", "--mode", "generic")
	attach := []string{"attach", "xdp", "xdp-counter", "--pod", uid, "--mode", "generic", "-o", "json"}
	n.onHost(attach...).check(t, "attach", 4, "holder/xdp_counter is attached there")
	if left := n.attached(t, "xdp-counter"); left != "" {
		t.Errorf("left: %s", left)
	}
	if got := n.onHost(append(attach, "--replace")...).where(t); got != "true veth-a veth-a2" {
		t.Errorf("both: %s", got)
	}
	n.sh(t, `ip -n $HOST link del veth-a2`)
	if got := n.onHost(attach...).where(t); got != "false veth-a" {
		t.Errorf("the one that is left: %s", got)
	}
	n.must(t, "unload", "--all", "--detach")
	r := n.onHost("run", "xdp-counter", "--pod", uid, "--mode", "generic", "--once", "-o", "json")
	if got := jq(t, `[.interfaces[].devname] | join(" ")`, r.stdout); r.code != 0 || got != "veth-a" || !strings.Contains(r.stderr, "attached xdp to veth-a, generic") {
		t.Errorf("run: exit %d, %s\n%s", r.code, got, r.stderr)
	}
	n.onHost("run", "xdp-counter", "--pod", "nobody/here", "--dry-run").check(t, "run", 3, `attach xdp "xdp-counter": `)
	n.onHost("run", "xdp-counter", "--pod", "nobody/here").check(t, "run", 3, `attach xdp "xdp-counter": `)
	if left := n.summary(t); left != "" {
		t.Errorf("left: %s", left)
	}
}

// All Pods of a node; those on the host's network have no interface.
func TestAllPods(t *testing.T) {
	n := newNode(t)
	n.must(t, "load", "pod-traffic")
	n.onHost("attach", "tc", "pod-traffic", "--all-pods", "--direction", "both").check(t, "without Pods", 3, "bpfnet: attach tc \"pod-traffic\": ")
	_, pathA := place(t)
	_, pathB := place(t)
	agent, pathHost := place(t)
	container(t, n.podA, pathA, "sleep", "600")
	container(t, n.podB, pathB, "sleep", "600")
	container(t, n.host, pathHost, "sleep", "600")
	all := []string{"tc", "pod-traffic", "--all-pods", "--direction", "both", "-o", "json"}
	for _, changed := range []string{"true", "false"} {
		r := n.onHost(append([]string{"attach"}, all...)...)
		if got := r.where(t); got != changed+" veth-a veth-b" {
			t.Errorf("attach: %s", got)
		}
		r.check(t, "attach", 0, "bpfnet attach cgroup pod-traffic --all-pods has all")
	}
	if got := n.onHost(append([]string{"detach"}, all...)...).where(t); got != "true veth-a veth-b" {
		t.Errorf("detach: %s", got)
	}
	r := n.onHost("attach", "tc", "pod-traffic", "--pod", agent, "--direction", "both")
	r.check(t, "on the host's network", 3, "Pod "+agent+" has no interface: it shares the host's network\nhint: bpfnet attach cgroup NAME --pod "+agent+"\n")
	n.must(t, "unload", "pod-traffic")
}

// In a pid namespace of its own there are only the test's Pods: they are seen by
// one attachment, whatever their network is.
func TestAllPodsByCgroup(t *testing.T) {
	n := newNode(t)
	dir := testkit.Cgroup(t)
	n.must(t, "load", "pod-traffic")
	_, pathA := place(t)
	_, pathHost := place(t)
	t.Cleanup(func() {
		for _, path := range []string{pathA, pathHost} {
			for full := filepath.Join(dir, path); full != dir; full = filepath.Dir(full) {
				_ = os.Remove(full)
			}
		}
	})
	script := fmt.Sprintf(`
start() { mkdir -p "$2"; ( echo 0 > "$2/cgroup.procs"; exec nsenter --net="/run/netns/$1" "${@:3}" ) }
start $POD_A %[1]s/%[2]s sleep 600 & start $HOST %[1]s/%[3]s sleep 600 &
until [ $(cat %[1]s/%[2]s/cgroup.procs %[1]s/%[3]s/cgroup.procs 2>/dev/null | wc -l) = 2 ]; do sleep 0.05; done
on() { nsenter --net=/run/netns/$HOST bpfnet "$@"; }
on attach cgroup pod-traffic --all-pods -o ndjson -q | jq -r '"\(.changed) \(.cgroup) \(.attachments | length)"'
on attach cgroup pod-traffic --all-pods -o ndjson -q | jq -r '"\(.changed) \(.cgroup)"'
start $POD_A %[1]s/%[2]s ping -q -c2 -i0.2 10.77.0.5 >/dev/null
start $HOST %[1]s/%[3]s ping -q -c2 -i0.2 10.77.0.5 >/dev/null
on watch pods -q --once -o json | jq -r '[.observed_at] + [.pods[] | "\(.address) \(.transmit_packets)"] | sort | join(", ")'
on detach cgroup pod-traffic --all-pods -o ndjson -q | jq -r '.attachments | length'
kill %%1 %%2`, dir, pathA, pathHost)
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte("set -eu\n"+script), 0o600); err != nil {
		t.Fatal(err)
	}
	got := n.sh(t, "unshare --pid --fork --mount-proc --kill-child bash "+file)
	want := fmt.Sprintf("true %[1]s/kubepods 2\nfalse %[1]s/kubepods\n10.77.0.1 2, 10.77.0.4 2, cgroup\n2\n", dir)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	n.must(t, "unload", "pod-traffic")
}

// An interface that goes away while all Pods are attached to is left out, and
// nothing of it stays.
func TestAllPodsThatVanish(t *testing.T) {
	n := newNode(t)
	for _, namespace := range []string{n.podA, n.podB} {
		_, path := place(t)
		container(t, namespace, path, "sleep", "600")
	}
	n.must(t, "load", "pod-traffic")
	w := byLink
	if !hasFeature("tcx") {
		w = byFilter
	}
	args := []string{"attach", "tc", "pod-traffic", "--all-pods", "--direction", "both", "-o", "json"}
	calls := n.callsUntilAttached(t, w, args)
	devices := strings.Fields(n.attached(t, "pod-traffic"))
	order := jq(t, `[.attachments[].devname] | join(" ")`, n.must(t, append(args, "--dry-run")...))
	n.must(t, "detach", "tc", "pod-traffic")
	last := order[strings.LastIndex(order, " ")+1:]
	r := n.whileAttaching(t, w.call, calls, args, func() { n.sh(t, "ip -n $HOST link del "+last) })
	r.check(t, "attach", 0, "note: "+last+" went away before it was attached to\n")
	other := strings.Join(slices.DeleteFunc(devices, func(d string) bool { return d == last }), " ")
	if got := r.where(t); got != "true "+other || n.attached(t, "pod-traffic") != other || strings.Contains(n.summary(t), "!") {
		t.Errorf("without %s: %s, left %s", last, got, n.summary(t))
	}
	n.must(t, "unload", "pod-traffic", "--detach")
}
